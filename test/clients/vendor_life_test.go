package clients

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"slices"
	"testing"

	volumes3 "github.com/chnsz/golangsdk/openstack/blockstorage/v3/volumes"
	groups "github.com/chnsz/golangsdk/openstack/drs/v2/replicationconsistencygroups"
	pairs "github.com/chnsz/golangsdk/openstack/drs/v2/replications"
)

// TestVendorSDKLifecycle is every action of a group, with data that follows it from zone to zone.
// After each call nothing but the statuses that are documented for it may be seen.
func TestVendorSDKLifecycle(t *testing.T) {
	t.Parallel()
	v := deploy(t).vendor()
	prod, dr := v.volume("prod", "az1", 1), v.volume("dr", "az2", 1)
	extraProd, extraDR := v.volume("extra-prod", "az1", 1), v.volume("extra-dr", "az2", 1)
	p, extra := v.pair("p", prod, dr), v.pair("extra", extraProd, extraDR)
	if got := v.getPair(p); got.ReplicationModel != "hypermetro" || got.ReplicationStatus != "inactive" || got.Progress != "" || got.FaultLevel != "0" ||
		got.FailureDetail != "" || got.ReplicationConsistencyGroupID != "" || got.Description != "of p" {
		t.Errorf("new pair: %+v", got)
	}
	made := must[*groups.ReplicationConsistencyGroupCreateorUpdate](t)(groups.Create(v.drs, groups.CreateOps{
		Name: "g", ReplicationIDs: []string{p}, PriorityStation: "az1", ReplicationModel: "hypermetro",
	}).Extract())
	g := made.ID
	settle(t, "new group", []string{"creating"}, "available", v.groupStatus(g))
	if got := v.getGroup(g); got.ReplicationStatus != "inactive" || got.FaultLevel != "0" || got.Description != "" || !slices.Equal(got.ReplicationIDs, []string{p}) {
		t.Errorf("new group: %+v", got)
	}
	refused(t, groups.FailOver(v.drs, g).ExtractErr(), http.StatusConflict)
	refused(t, groups.Reverse(v.drs, g).ExtractErr(), http.StatusConflict)
	refused(t, groups.Reprotect(v.drs, g).ExtractErr(), http.StatusConflict)

	data := make([]byte, 4<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	const off = 512 << 20
	v.write(v.uri(prod), data, off)
	holds := func(volume string) {
		t.Helper()
		if got := v.read(v.uri(volume), len(data), off); !bytes.Equal(got, data) {
			t.Fatalf("%s does not hold what was written", volume)
		}
	}

	ok(t, groups.Sync(v.drs, g).ExtractErr())
	ok(t, groups.Sync(v.drs, g).ExtractErr()) // idempotent, also while copying
	settle(t, "sync", []string{"available/copying/az1"}, "available/active/az1", v.groupState(g))
	if got := v.getPair(p); got.ReplicationStatus != "active" || got.Progress != "100" || got.ReplicationConsistencyGroupID != g {
		t.Errorf("pair of an active group: %+v", got)
	}
	if got := must[*volumes3.Volume](t)(volumes3.Get(v.cinder, prod).Extract()); got.ReplicationStatus != "active" {
		t.Errorf("replication_status of a volume in an active group: %q", got.ReplicationStatus)
	}

	ok(t, groups.Extend(v.drs, g, groups.ReplicationsOps{ID: p, NewSize: 2}).ExtractErr())
	for _, id := range []string{prod, dr} {
		if got := must[*volumes3.Volume](t)(volumes3.Get(v.cinder, id).Extract()); got.Size != 2 {
			t.Errorf("volume %s has %d GiB when extend is answered", id, got.Size)
		}
	}
	if state := must[string](t)(v.groupState(g)()); state != "available/active/az1" {
		t.Errorf("extend left the group %s", state)
	}

	ok(t, groups.Reverse(v.drs, g).ExtractErr())
	settle(t, "switchover", []string{"reversing/active/az1"}, "available/active/az2", v.groupState(g))
	holds(dr)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	v.write(v.uri(dr), data, off)

	ok(t, groups.FailOver(v.drs, g).ExtractErr())
	refused(t, groups.FailOver(v.drs, g).ExtractErr(), http.StatusConflict)
	settle(t, "failover", []string{"failovering/active/az2", "failovering/active-stopped/az2"}, "failovered/active-stopped/az1", v.groupState(g))
	refused(t, groups.FailOver(v.drs, g).ExtractErr(), http.StatusConflict)
	refused(t, groups.Reverse(v.drs, g).ExtractErr(), http.StatusConflict)
	ok(t, groups.Stop(v.drs, g).ExtractErr())
	holds(prod)

	ok(t, groups.Reprotect(v.drs, g).ExtractErr())
	settle(t, "reprotect", []string{"available/copying/az1"}, "available/active/az1", v.groupState(g))

	// Once more, with the other call that means the same.
	ok(t, groups.FailOver(v.drs, g).ExtractErr())
	settle(t, "second failover", []string{"failovering/active/az1", "failovering/active-stopped/az1"}, "failovered/active-stopped/az2", v.groupState(g))
	holds(dr)
	ok(t, groups.Sync(v.drs, g).ExtractErr())
	settle(t, "sync after failover", []string{"available/copying/az2"}, "available/active/az2", v.groupState(g))

	// Members change while it is paused; stop is effective before its answer.
	_, err := groups.Update(v.drs, g, groups.UpdateOpts{AddReplicationIDs: []string{extra}}).Extract()
	refused(t, err, http.StatusConflict)
	ok(t, groups.Stop(v.drs, g).ExtractErr())
	if state := must[string](t)(v.groupState(g)()); state != "available/active-stopped/az2" {
		t.Errorf("stop was answered while the group was %s", state)
	}
	ok(t, groups.Stop(v.drs, g).ExtractErr())
	update := func(what string, o groups.UpdateOpts) {
		t.Helper()
		u := must[*groups.ReplicationConsistencyGroupCreateorUpdate](t)(groups.Update(v.drs, g, o).Extract())
		if u.ID != g || u.Status != "updating" {
			t.Errorf("%s: %+v", what, u)
		}
		settle(t, what, []string{"updating"}, "available", v.groupStatus(g))
	}
	update("rename", groups.UpdateOpts{Name: "h", Description: "d"})
	update("empty update", groups.UpdateOpts{})
	if got := v.getGroup(g); got.Name != "h" || got.Description != "d" || got.UpdatedAt == "" {
		t.Errorf("renamed group: %+v", got)
	}
	// The group's primary is az2 by now, the new pair's az1: they do not belong together.
	_, err = groups.Update(v.drs, g, groups.UpdateOpts{AddReplicationIDs: []string{extra}}).Extract()
	refused(t, err, http.StatusBadRequest)
	ok(t, groups.Sync(v.drs, g).ExtractErr())
	settle(t, "sync after a pause", []string{"available/copying/az2"}, "available/active/az2", v.groupState(g))
	ok(t, groups.Reverse(v.drs, g).ExtractErr())
	settle(t, "switchover back", []string{"reversing/active/az2"}, "available/active/az1", v.groupState(g))
	ok(t, groups.Stop(v.drs, g).ExtractErr())
	update("add", groups.UpdateOpts{AddReplicationIDs: []string{extra}})
	if got := v.getGroup(g); !slices.Contains(got.ReplicationIDs, extra) || len(got.ReplicationIDs) != 2 {
		t.Errorf("after add: %+v", got)
	}
	ok(t, groups.Sync(v.drs, g).ExtractErr())
	settle(t, "sync of two", []string{"available/copying/az1"}, "available/active/az1", v.groupState(g))
	holds(prod)
	ok(t, groups.Stop(v.drs, g).ExtractErr())
	update("remove", groups.UpdateOpts{RemoveReplicationIDs: []string{extra}})
	if got := v.getPair(extra); got.ReplicationConsistencyGroupID != "" || got.Status != "available" {
		t.Errorf("removed pair: %+v", got)
	}
	update("empty the group", groups.UpdateOpts{RemoveReplicationIDs: []string{p}})
	ok(t, groups.Delete(v.drs, g).ExtractErr())
	settle(t, "deleted group", []string{"available", "deleting"}, gone, v.groupStatus(g))
	v.deletePair(p)
	v.deletePair(extra)
	for _, id := range []string{prod, dr, extraProd, extraDR} {
		v.deleteVolume(id)
	}
	if left := append(v.listPairs(pairs.ListOpts{}), v.listGroups(groups.ListOpts{})...); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

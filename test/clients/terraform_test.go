package clients

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	groups "github.com/chnsz/golangsdk/openstack/drs/v2/replicationconsistencygroups"
	pairs "github.com/chnsz/golangsdk/openstack/drs/v2/replications"
	"github.com/chnsz/golangsdk/openstack/evs/v2/cloudvolumes"
)

// provider makes the calls of the Terraform provider's resources, each in its order and with the
// pending and target statuses that it accepts.
type provider struct{ *vendor }

// createPair is resource drs_replication_v2, create.
func (p provider) createPair(name, station string, volumes ...string) string {
	p.t.Helper()
	for _, id := range volumes {
		v := must[*cloudvolumes.Volume](p.t)(cloudvolumes.Get(p.evs, id).Extract())
		// Of those that are not in the priority station the servers would be stopped.
		if v.AvailabilityZone != station && len(v.Attachments) != 0 {
			p.t.Fatalf("volume %s is attached: %+v", id, v.Attachments)
		}
	}
	made := must[*pairs.ReplicationCreate](p.t)(pairs.Create(p.drs, pairs.CreateOps{
		Name: name, VolumeIDs: volumes, PriorityStation: station, ReplicationModel: "hypermetro",
	}).Extract())
	settle(p.t, "create pair", []string{"creating"}, "available", p.pairStatus(made.ID))
	got := p.getPair(made.ID)
	if got.Name != name || got.Description != "" || got.VolumeIDs != volumes[0]+","+volumes[1] || got.PriorityStation != station || got.ReplicationModel != "hypermetro" {
		p.t.Errorf("terraform would replace the pair: %+v", got)
	}
	return made.ID
}

// destroyPair is its delete.
func (p provider) destroyPair(id string) {
	p.t.Helper()
	ok(p.t, pairs.Delete(p.drs, id).ExtractErr())
	settle(p.t, "destroy pair", []string{"deleting", "available"}, gone, p.pairStatus(id))
}

// createGroup is resource drs_replicationconsistencygroup_v2, create. It does not wait for active.
func (p provider) createGroup(name, station string, members ...string) string {
	p.t.Helper()
	made := must[*groups.ReplicationConsistencyGroupCreateorUpdate](p.t)(groups.Create(p.drs, groups.CreateOps{
		Name: name, ReplicationIDs: members, PriorityStation: station, ReplicationModel: "hypermetro",
	}).Extract())
	settle(p.t, "create group", []string{"creating"}, "available", p.groupStatus(made.ID))
	ok(p.t, groups.Sync(p.drs, made.ID).ExtractErr())
	p.readGroup(made.ID, name, station, members...)
	return made.ID
}

// readGroup is its read: what differs from the configuration would be planned to be changed.
func (p provider) readGroup(id, name, station string, members ...string) {
	p.t.Helper()
	got := p.getGroup(id)
	slices.Sort(got.ReplicationIDs) // a set in the schema
	slices.Sort(members)
	if got.Name != name || got.Description != "" || got.PriorityStation != station || got.ReplicationModel != "hypermetro" || !slices.Equal(got.ReplicationIDs, members) {
		p.t.Errorf("terraform would change the group: %+v", got)
	}
}

// updateGroup is its update.
func (p provider) updateGroup(id string, o groups.UpdateOpts) {
	p.t.Helper()
	ok(p.t, groups.Stop(p.drs, id).ExtractErr())
	p.getGroup(id)
	must[*groups.ReplicationConsistencyGroupCreateorUpdate](p.t)(groups.Update(p.drs, id, o).Extract())
	settle(p.t, "update group", []string{"updating", "creating"}, "available", p.groupStatus(id))
	ok(p.t, groups.Sync(p.drs, id).ExtractErr())
	p.getGroup(id)
}

// destroyGroup is its delete.
func (p provider) destroyGroup(id string) {
	p.t.Helper()
	ok(p.t, groups.Stop(p.drs, id).ExtractErr())
	if got := p.getGroup(id); len(got.ReplicationIDs) > 0 {
		must[*groups.ReplicationConsistencyGroupCreateorUpdate](p.t)(groups.Update(p.drs, id, groups.UpdateOpts{RemoveReplicationIDs: got.ReplicationIDs}).Extract())
		settle(p.t, "empty group", []string{"updating"}, "available", p.groupStatus(id))
	}
	ok(p.t, groups.Delete(p.drs, id).ExtractErr())
	settle(p.t, "destroy group", []string{"deleting", "available"}, gone, p.groupStatus(id))
}

// fill gives a synchronization something to do.
func (p provider) fill(volume string, mib int) {
	p.t.Helper()
	data := make([]byte, mib<<20)
	if _, err := rand.Read(data); err != nil {
		p.t.Fatal(err)
	}
	p.write(p.uri(volume), data, 0)
}

// copying fails the test if the group is not copying at this moment.
func (p provider) copying(id string) {
	p.t.Helper()
	if got := p.getGroup(id); got.ReplicationStatus != "copying" {
		p.t.Fatalf("the group is %s and not copying any more: there is too little to copy", got.ReplicationStatus)
	}
}

func (p provider) untilActive(id, station string) {
	p.t.Helper()
	settle(p.t, "sync", []string{"available/copying/" + station}, "available/active/"+station, p.groupState(id))
}

// TestTerraform replays apply, change and destroy, with the changes that come too early for the
// service: while copying, and after a failover.
func TestTerraform(t *testing.T) {
	t.Parallel()
	const fillMiB = 192
	p := provider{deploy(t).vendor()}
	apply := func(n string, fill int) (pair, prod, dr string) {
		t.Helper()
		prod, dr = p.volume("prod"+n, "az1", 1), p.volume("dr"+n, "az2", 1)
		if fill > 0 {
			p.fill(prod, fill)
		}
		return p.createPair("pair"+n, "az1", prod, dr), prod, dr
	}

	// Apply; then change name and members while copying and while active.
	pair1, prod1, dr1 := apply("1", fillMiB)
	pair2, prod2, dr2 := apply("2", 0)
	g := p.createGroup("g", "az1", pair1)
	p.copying(g)
	p.updateGroup(g, groups.UpdateOpts{AddReplicationIDs: []string{pair2}})
	p.readGroup(g, "g", "az1", pair1, pair2)
	p.copying(g)
	p.updateGroup(g, groups.UpdateOpts{Name: "h"})
	p.readGroup(g, "h", "az1", pair1, pair2)
	p.untilActive(g, "az1")
	p.updateGroup(g, groups.UpdateOpts{}) // a change of something that the API does not have
	p.untilActive(g, "az1")
	p.updateGroup(g, groups.UpdateOpts{RemoveReplicationIDs: []string{pair2}})
	p.untilActive(g, "az1")
	p.updateGroup(g, groups.UpdateOpts{RemoveReplicationIDs: []string{pair1}}) // its sync has nothing to do
	p.readGroup(g, "h", "az1")
	p.updateGroup(g, groups.UpdateOpts{AddReplicationIDs: []string{pair1}})
	p.untilActive(g, "az1")
	p.destroyGroup(g)

	// Destroy while copying. The pairs know each other's data: their group is made anew.
	p.fill(prod1, fillMiB)
	g = p.createGroup("copying", "az1", pair1, pair2)
	p.copying(g)
	p.destroyGroup(g)

	// Destroy after a failover, of the group and of all that it was made of.
	g = p.createGroup("lost", "az1", pair1, pair2)
	p.untilActive(g, "az1")
	ok(t, groups.FailOver(p.drs, g).ExtractErr())
	settle(t, "failover", []string{"failovering"}, "failovered", p.groupStatus(g))
	p.destroyGroup(g)
	for _, id := range []string{pair1, pair2} {
		p.destroyPair(id)
	}
	for _, id := range []string{prod1, dr1, prod2, dr2} {
		p.deleteVolume(id)
	}

	// Destroy right after apply, and destroy and apply again at once.
	pair3, prod3, dr3 := apply("3", 0)
	for i := range 3 {
		g := p.createGroup(fmt.Sprint("again", i), "az1", pair3)
		p.destroyGroup(g)
		p.destroyPair(pair3)
		began := time.Now()
		pair3 = p.createPair("pair3", "az1", prod3, dr3)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("a pair was made again only after %s", took)
		}
	}
	p.destroyPair(pair3)
	p.deleteVolume(prod3)
	p.deleteVolume(dr3)
}

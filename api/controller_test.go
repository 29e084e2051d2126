package api_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

// keepDisks is what nodes do about volumes, without any disk: it reports as present what is
// wanted and as absent what is deleted, until ctx ends.
func keepDisks(ctx context.Context, st store.Store) error {
	for {
		kvs, _, err := st.List(ctx, store.PrefixVolumes)
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			v, err := store.Decode[store.Volume](kv.Value)
			if err != nil {
				return err
			}
			o := store.VolumeObserved{Volume: v.ID, Node: v.Node, State: "present", SizeBytes: v.SizeBytes}
			if v.Deleted {
				o.State, o.SizeBytes = "absent", 0
			}
			old, _, err := store.GetT[store.VolumeObserved](ctx, st, store.KeyObservedVolume(v.ID))
			if err == nil && old == o {
				continue
			}
			if err != nil && !errors.Is(err, lockstep.ErrNotFound) {
				return err
			}
			if _, _, err := st.Txn(ctx, []store.Cmp{{Key: kv.Key, ModRev: kv.ModRev}},
				[]store.Op{{Key: store.KeyObservedVolume(v.ID), Value: store.Encode(o)}}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestController runs volumes and pairs through the real controller on the in-memory store, as the
// Terraform provider does: create, poll, pair, refuse, delete, poll for 404.
func TestController(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, n := range []string{"1", "2"} {
		id := lockstep.NodeID("node" + n)
		_, _, err := r.store.Txn(ctx, nil, []store.Op{
			{Key: store.KeyNode(id), Value: store.Encode(store.Node{
				ID: id, AZ: lockstep.AZ("az" + n), NBDSocket: "/run/nbd.sock", TotalBytes: 1 << 50, FreeBytes: 1 << 49, Instance: n,
			})},
			{Key: store.KeyAliveNode(id), Value: store.Encode(store.Presence{Node: id})},
		})
		ok(t, err)
	}
	ctrl := control.New(control.Config{Store: r.store, ID: "c", Zones: []lockstep.AZ{"az1", "az2"}})
	nodes, run := make(chan error, 1), make(chan error, 1)
	go func() { nodes <- keepDisks(ctx, r.store) }()
	go func() { run <- ctrl.Run(ctx) }()
	r.srv.Close()
	r.srv = httptest.NewServer(api.New(api.Config{Service: ctrl, Store: r.store, Identity: r.users}))
	defer r.srv.Close()

	until := func(path string, status int, text string, pending ...string) {
		t.Helper()
		for {
			a := r.v2("GET", path, "")
			if a.StatusCode == status && strings.Contains(a.body, text) {
				return
			}
			known := false
			for _, p := range pending {
				known = known || strings.Contains(a.body, `"status":"`+p+`"`)
			}
			if !known || ctx.Err() != nil {
				t.Fatalf("%s: %d %s while waiting for %d with %s", path, a.StatusCode, a.body, status, text)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	want := func(a answer, status int, text string) {
		t.Helper()
		check(t, a)
		if a.StatusCode != status || !strings.Contains(a.body, text) {
			t.Errorf("%d %s, want %d with %s", a.StatusCode, a.body, status, text)
		}
	}
	const available = `"status":"available"`
	v1, v2, odd := r.volume("az1"), r.volume("az2"), ""
	a := r.v2("POST", "/volumes", `{"volume":{"size":11,"availability_zone":"az2"}}`)
	want(a, 202, `"name":null`)
	odd = a.str(t, "volume.id")
	for _, v := range []string{v1, v2, odd} {
		until("/volumes/"+v, 200, available, "creating")
	}
	pairOf := func(a, b, station string) string {
		return `{"replication":{"name":"","volume_ids":["` + a + `","` + b + `"],"priority_station":"` + station + `","replication_model":"hypermetro"}}`
	}
	const pairs = "/os-vendor-replications"
	want(r.v2("POST", pairs, pairOf(v1, odd, "az1")), 400, "37100041")
	want(r.v2("POST", pairs, pairOf(v2, odd, "az2")), 400, "")
	want(r.v2("POST", pairs, pairOf(v1, v2, "az3")), 400, "az3")
	a = r.v2("POST", pairs, pairOf(v1, v2, "az1"))
	want(a, 202, `"volume_ids":"`+v1+","+v2+`"`)
	pair := a.str(t, "replication.id")
	until(pairs+"/"+pair, 200, available, "creating")
	a = r.v2("GET", pairs+"/"+pair, "")
	want(a, 200, `"name":"","description":null`)
	want(a, 200, `"replication_status":"inactive","progress":null,"failure_detail":null`)
	want(r.v2("POST", pairs, pairOf(v1, v2, "az1")), 400, "3710005")
	want(r.v2("DELETE", "/volumes/"+v1, ""), 400, pair)
	want(r.v2("POST", "/volumes/"+v2+"/action", `{"os-extend":{"new_size":20}}`), 400, pair)
	want(r.v2("POST", "/volumes/"+odd+"/action", `{"os-extend":{"new_size":1}}`), 400, "EVS.1014")
	want(r.v2("POST", "/volumes/"+odd+"/action", `{"os-extend":{"new_size":20}}`), 202, "")
	until("/volumes/"+odd, 200, available, "extending")
	want(r.v2("GET", "/volumes/"+odd, ""), 200, `"size":20`)
	want(r.v2("PUT", "/volumes/"+odd, `{"volume":{"name":"o"}}`), 200, `"name":"o"`)
	want(r.v2("POST", "/volumes/"+odd+"/action", `{"os-reserve":null}`), 202, "")
	want(r.v2("POST", "/volumes/"+odd+"/action", `{"os-attach":{"instance_uuid":"s","mountpoint":"/dev/vdb"}}`), 202, "")
	want(r.v2("GET", "/volumes/"+odd, ""), 200, `"status":"in-use"`)
	want(r.v2("DELETE", "/volumes/"+odd, ""), 400, "")
	want(r.v2("POST", "/volumes/"+odd+"/action", `{"os-detach":null}`), 202, "")
	want(r.v2("DELETE", "/volumes/"+odd+"/metadata/none", ""), 404, "none")
	want(r.v2("POST", "/volumes/"+odd+"/action", `{"os-initialize_connection":{}}`), 200, `"uri":"nbd+unix:///`+odd)
	want(r.v2("GET", "/os-availability-zone", ""), 200, `"zoneName":"az1"`)
	want(r.v2("GET", "/os-lockstep-nodes", ""), 200, `"id":"node1"`)
	want(r.v2("GET", groupsPath+"/none", ""), 404, "none")
	want(r.v2("POST", groupsPath+"/none/action", `{"os-stop-replication-consistency-group":null}`), 404, "none")
	want(r.v2("DELETE", pairs+"/"+pair, ""), 202, "")
	until(pairs+"/"+pair, 404, "", "deleting", "available")
	for _, v := range []string{v1, odd} {
		want(r.v2("DELETE", "/volumes/"+v, ""), 202, "")
		until("/volumes/"+v, 404, "", "deleting", "available")
	}
	want(r.v2("GET", "/volumes", ""), 200, v2)

	cancel()
	if err := <-nodes; !errors.Is(err, context.Canceled) {
		t.Errorf("nodes: %v", err)
	}
	if err := <-run; err != nil {
		t.Errorf("controller: %v", err)
	}
}

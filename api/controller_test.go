package api_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api"
	"github.com/lockstep-dr/lockstep/api/identity"
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

// live is a rig whose API asks the real controller on the in-memory store.
type live struct {
	*rig
	ctx  context.Context
	ctrl *control.Controller
	stop func() // the controller and what stands in for nodes; the API goes on
}

// newLive starts one with a node in az1 and one in az2. Groups settle although nobody answers.
func newLive(t *testing.T) *live {
	t.Helper()
	r := newRig(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
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
	ctrl := control.New(control.Config{
		Store: r.store, ID: "c", Zones: []lockstep.AZ{"az1", "az2"}, SettleTimeout: 20 * time.Millisecond,
	})
	nodes, run := make(chan error, 1), make(chan error, 1)
	go func() { nodes <- keepDisks(ctx, r.store) }()
	go func() { run <- ctrl.Run(ctx) }()
	r.srv.Close()
	logger := slog.New(slog.NewJSONHandler(r.log, nil))
	r.srv = serve(t, api.New(api.Config{Service: ctrl, Store: r.store, Identity: r.users, Logger: logger}), logger)
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-nodes; !errors.Is(err, context.Canceled) {
				t.Errorf("nodes: %v", err)
			}
			if err := <-run; err != nil {
				t.Errorf("controller: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return &live{rig: r, ctx: ctx, ctrl: ctrl, stop: stop}
}

// until polls below the project until the answer has that status and text, as clients do: anything
// but a pending status in between is an error.
func (r *live) until(path string, status int, text string, pending ...string) {
	r.t.Helper()
	for {
		a := r.v2("GET", path, "")
		if a.StatusCode == status && strings.Contains(a.body, text) {
			return
		}
		known := false
		for _, p := range pending {
			known = known || strings.Contains(a.body, `"status":"`+p+`"`)
		}
		if !known || r.ctx.Err() != nil {
			r.t.Fatalf("%s: %d %s while waiting for %d with %s", path, a.StatusCode, a.body, status, text)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// want checks an answer's status and that text is in it.
func (r *live) want(a answer, status int, text string) {
	r.t.Helper()
	check(r.t, a)
	if a.StatusCode != status || !strings.Contains(a.body, text) {
		r.t.Errorf("%s %s: %d %s, want %d with %s", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.body, status, text)
	}
}

const available = `"status":"available"`

// madeVolume, madePair and madeGroup make one and wait until it is available.
func (r *live) madeVolume(az string) string {
	r.t.Helper()
	v := r.volume(az)
	r.until("/volumes/"+v, 200, available, "creating")
	return v
}

func (r *live) madePair(v1, v2, station string) string {
	r.t.Helper()
	a := r.v2("POST", pairsPath, pairOf(v1, v2, station))
	r.want(a, 202, "")
	pair := a.str(r.t, "replication.id")
	r.until(pairsPath+"/"+pair, 200, available, "creating")
	return pair
}

func (r *live) madeGroup(pairs ...string) string {
	r.t.Helper()
	g := r.group(pairs...)
	r.until(groupsPath+"/"+g, 200, available, "creating")
	return g
}

const pairsPath = "/os-vendor-replications"

func pairOf(a, b, station string) string {
	return `{"replication":{"name":"","volume_ids":["` + a + `","` + b + `"],"priority_station":"` + station + `","replication_model":"hypermetro"}}`
}

// TestController runs volumes and pairs through the real controller on the in-memory store, as the
// Terraform provider does: create, poll, pair, refuse, delete, poll for 404.
func TestController(t *testing.T) {
	r := newLive(t)
	want, until := r.want, r.until
	v1, v2, odd := r.volume("az1"), r.volume("az2"), ""
	a := r.v2("POST", "/volumes", `{"volume":{"size":11,"availability_zone":"az2"}}`)
	want(a, 202, `"name":null`)
	odd = a.str(t, "volume.id")
	for _, v := range []string{v1, v2, odd} {
		until("/volumes/"+v, 200, available, "creating")
	}
	const pairs = pairsPath
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
	want(r.v2("POST", "/volumes/"+v1+"/action", `{"revert":{"snapshot_id":"s"}}`), 400, "rolled back")
	want(r.v2("POST", "/volumes/"+v1+"/action", `{"os-force_delete":{}}`), 400, pair)
	want(r.v2("POST", "/os-volume-transfer", `{"transfer":{"volume_id":"`+v2+`"}}`), 400, "cannot be transferred")
	want(r.v2("POST", "/os-volume-transfer", `{"transfer":{"volume_id":"`+odd+`"}}`), 501, "not supported")
	want(r.v2("POST", "/os-volume-transfer", `{"transfer":{"volume_id":"none"}}`), 404, "none")
	want(r.v2("POST", "/os-volume-transfer", `{}`), 400, "transfer")
	want(r.v2("POST", "/volumes/"+odd+"/action", `{"revert":{"snapshot_id":"s"}}`), 501, "revert")
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
	want(r.v2("PUT", "/os-lockstep-nodes/none", `{"node":{"resync_limit_mib":7}}`), 404, "none")
	want(r.v2("PUT", "/os-lockstep-nodes/node1", `{"node":{"resync_limit_mib":7}}`), 200, "")
	want(r.v2("GET", "/os-lockstep-nodes", ""), 200, `"resync_limit_mib":7`)
	want(r.v2("GET", groupsPath+"/none", ""), 404, "none")
	want(r.v2("POST", groupsPath+"/none/action", `{"os-stop-replication-consistency-group":null}`), 404, "none")
	want(r.v2("DELETE", pairs+"/"+pair, ""), 202, "")
	until(pairs+"/"+pair, 404, "", "deleting", "available")
	for _, v := range []string{v1, odd} {
		want(r.v2("DELETE", "/volumes/"+v, ""), 202, "")
		until("/volumes/"+v, 404, "", "deleting", "available")
	}
	want(r.v2("GET", "/volumes", ""), 200, v2)
}

// TestProjectsApart: an administrator of another project finds nothing of this one below the path of
// the own project, and nothing of it in lists, limits and summaries.
func TestProjectsApart(t *testing.T) {
	r := newLive(t)
	v1, v2 := r.madeVolume("az1"), r.madeVolume("az2")
	pair := r.madePair(v1, v2, "az1")
	group := r.madeGroup(pair)
	free1, free2 := r.madeVolume("az1"), r.madeVolume("az2")
	free := r.madePair(free1, free2, "az1")
	plain := r.madeVolume("az2")

	p2, err := r.users.CreateProject(t.Context(), "default", "p2")
	ok(t, err)
	ok(t, r.users.Assign(t.Context(), identity.Assignment{User: r.boot.UserID, Project: p2.ID, Roles: []string{identity.RoleAdmin}}))
	eve := r.login("admin", password, `{"project":{"id":"`+p2.ID+`"}}`)
	as := func(method, path, body string) answer {
		return r.do(method, "/v2/"+p2.ID+path, body, "X-Auth-Token: "+eve)
	}
	a := as("POST", "/volumes", `{"volume":{"size":10,"availability_zone":"az1","name":"hers"}}`)
	r.want(a, 202, "")
	hers := a.str(t, "volume.id")
	for as("GET", "/volumes/"+hers, "").str(t, "volume.status") != "available" {
		time.Sleep(5 * time.Millisecond)
	}
	const model = `"priority_station":"az1","replication_model":"hypermetro"`
	act := groupsPath + "/" + group + "/action"
	rows := []struct{ method, path, body string }{
		{"GET", "/volumes/" + v1, ""},
		{"PUT", "/volumes/" + v1, `{"volume":{"name":"x"}}`},
		{"DELETE", "/volumes/" + plain, ""},
		{"POST", "/volumes/" + plain + "/action", `{"os-extend":{"new_size":20}}`},
		{"POST", "/volumes/" + plain + "/action", `{"lockstep-release":null}`},
		{"POST", "/volumes/" + plain + "/action", `{"os-initialize_connection":{}}`},
		{"POST", "/volumes/" + plain + "/action", `{"os-attach":{"instance_uuid":"s"}}`},
		{"GET", "/volumes/" + v1 + "/metadata", ""},
		{"PUT", "/volumes/" + v1 + "/metadata", `{"metadata":{}}`},
		{"GET", "/cloudvolumes/" + v1, ""},
		{"PUT", "/cloudvolumes/" + v1, `{"volume":{"name":"x"}}`},
		{"DELETE", "/cloudvolumes/" + plain, ""},
		{"GET", "/os-vendor-volumes/" + v1, ""},
		{"GET", "/os-vendor-volumes/" + v1 + "/tags", ""},
		{"GET", pairsPath + "/" + pair, ""},
		{"DELETE", pairsPath + "/" + free, ""},
		{"POST", pairsPath, pairOf(hers, plain, "az1")},
		{"POST", pairsPath, pairOf(plain, hers, "az1")},
		{"POST", groupsPath, `{"replication_consistency_group":{"replication_ids":["` + free + `"],` + model + `}}`},
		{"GET", groupsPath + "/" + group, ""},
		{"GET", groupsPath + "/" + group + "/history", ""},
		{"PUT", groupsPath + "/" + group, `{"replication_consistency_group":{"name":"x"}}`},
		{"PUT", groupsPath + "/" + group, `{"replication_consistency_group":{"add_replication_ids":["` + free + `"]}}`},
		{"PUT", groupsPath + "/" + group, `{"replication_consistency_group":{"remove_replication_ids":["` + pair + `"]}}`},
		{"DELETE", groupsPath + "/" + group, ""},
		{"POST", act, `{"os-failover-replication-consistency-group":null}`},
		{"POST", act, `{"os-sync-replication-consistency-group":null}`},
		{"POST", act, `{"os-reverse-replication-consistency-group":null}`},
		{"POST", act, `{"os-stop-replication-consistency-group":null}`},
		{"POST", act, `{"os-reprotect-replication-consistency-group":null}`},
		{"POST", act, `{"os-extend-replication-volumes":{"id":"` + pair + `","new_size":20}}`},
		{"POST", act, `{"lockstep-continue":{"reason":"r"}}`},
		{"POST", act, `{"lockstep-one-sided":{"policy":"strict"}}`},
		{"POST", act, `{"lockstep-resync-limit":{"mib":7}}`},
	}
	r.stop() // so that nothing but the calls can change the store
	before := dump(t, r.store)
	for _, row := range rows {
		r.want(as(row.method, row.path, row.body), 404, "")
		r.want(r.do(row.method, "/v2/"+r.project+row.path, row.body, "X-Auth-Token: "+eve), 403, "")
	}
	for path, text := range map[string]string{
		"/volumes/summary":      `"total_count":1,"total_size":10`,
		"/limits":               `"totalVolumesUsed":1`,
		pairsPath:               `{"replications":[]}`,
		groupsPath:              `{"replication_consistency_groups":[]}`,
		"/os-vendor-volumes":    hers,
		"/cloudvolumes/detail":  hers,
		"/volumes/detail":       hers,
		"/volumes?name=hers":    hers,
		pairsPath + "?limit=10": `{"replications":[]}`,
	} {
		a := as("GET", path, "")
		r.want(a, 200, text)
		for _, id := range []string{v1, v2, plain, pair, group, free} {
			if strings.Contains(a.body, id) {
				t.Errorf("%s shows %s of another project", path, id)
			}
		}
	}
	if after := dump(t, r.store); !reflect.DeepEqual(before, after) {
		t.Error("the store changed")
	}
}

// dump is everything in the store but users and tokens.
func dump(t *testing.T, st store.Store) map[string]string {
	t.Helper()
	kvs, _, err := st.List(t.Context(), "")
	ok(t, err)
	out := map[string]string{}
	for _, kv := range kvs {
		if !strings.HasPrefix(kv.Key, store.PrefixIdentity) {
			out[kv.Key] = fmt.Sprintf("%d %s", kv.ModRev, kv.Value)
		}
	}
	return out
}

// TestStoreLoss: from the first call on, a 503 tells what it means and not where the store is; the log
// has that.
func TestStoreLoss(t *testing.T) {
	r := newLive(t)
	v := r.madeVolume("az1")
	r.stop()
	r.store.SetDown(true)
	for _, a := range []answer{r.v2("GET", "/volumes", ""), r.v2("DELETE", "/volumes/"+v, ""), r.v2("GET", "/volumes/"+v, "")} {
		check(t, a)
		if got := a.str(t, "serviceUnavailable.message"); a.StatusCode != 503 || got != faultStoreAway {
			t.Errorf("%d %q, want 503 %q", a.StatusCode, got, faultStoreAway)
		}
		if !strings.Contains(r.log.String(), lockstep.ErrStoreUnavailable.Error()) {
			t.Error("the log does not tell the error")
		}
	}
}

const faultStoreAway = "the store does not answer: nothing can be looked up or changed until it is back; " +
	"a change that was under way may or may not have happened"

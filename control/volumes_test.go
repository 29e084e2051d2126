package control

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: a volume's life beside pairs, as its node reports it.
func TestVolumeLife(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	v := must[VolumeView](t)(c.CreateVolume(s.ctx, caller, VolumeCreate{
		Name: ptr("root"), SizeGiB: 2, Type: "sata", Metadata: map[string]string{"k": "v"}, Multiattach: true,
	}))
	if v.Status != StatusCreating || v.AZ != "az1" || v.Node != "a1" || v.Type != "SATA" || v.Access.Mode != store.AccessPlain || v.ReplicationStatus != ReplicationDisabled {
		t.Fatalf("created: %+v", v)
	}
	id := v.ID
	status := func(want string) {
		t.Helper()
		eventually(t, "volume "+want, func() bool {
			got, err := c.GetVolume(s.ctx, caller, id)
			return err == nil && got.Status == want
		})
	}
	status(StatusAvailable)

	v = must[VolumeView](t)(c.UpdateVolume(s.ctx, caller, id, func(v *store.Volume) error {
		v.Name, v.Metadata["k"] = nil, "w"
		v.Status, v.Attachments = StatusInUse, []store.Attachment{{ID: "1", Server: "srv"}}
		v.SizeBytes, v.Pair, v.Access, v.Node = 1, "p", store.Access{}, "b1" // not for callers to change
		return nil
	}))
	if v.Name != nil || v.Metadata["k"] != "w" || v.UpdatedAt == nil || v.SizeBytes != 2*lockstep.GiB || v.Pair != "" || v.Node != "a1" || v.Access.Mode != store.AccessPlain {
		t.Fatalf("updated: %+v", v)
	}
	if err := c.ExtendVolume(s.ctx, caller, id, 3); err != nil {
		t.Fatal(err)
	}
	status(StatusInUse) // grown, and attached as before
	must[VolumeView](t)(c.UpdateVolume(s.ctx, caller, id, func(v *store.Volume) error {
		v.Status, v.Attachments = StatusAvailable, nil
		return nil
	}))
	if err := c.DeleteVolume(s.ctx, caller, id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "volume gone, report included", func() bool {
		_, err := c.GetVolume(s.ctx, caller, id)
		_, reported := s.dump()[store.KeyObservedVolume(id)]
		return err != nil && !reported
	})
}

// Goal: a volume that its node cannot make is in error with the reason, and can be deleted.
func TestVolumeWithoutSpace(t *testing.T) {
	s := newSite(t, "a1")
	c, _ := s.controller()
	s.set(func() { s.full["a1"] = true })
	v := must[VolumeView](t)(c.CreateVolume(s.ctx, caller, VolumeCreate{SizeGiB: 1, AZ: "az1"}))
	eventually(t, "error", func() bool {
		got, err := c.GetVolume(s.ctx, caller, v.ID)
		return err == nil && got.Status == StatusError && strings.Contains(got.Failure, "the pool is full")
	})
	if err := c.DeleteVolume(s.ctx, caller, v.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gone", func() bool {
		_, err := c.GetVolume(s.ctx, caller, v.ID)
		return err != nil
	})
}

func TestConnectionURI(t *testing.T) {
	s := newStill(t)
	if got := must[string](t)(s.c.ConnectionURI(s.ctx, caller, s.a)); got != "nbd+unix:///"+string(s.a)+"?socket=%2Frun%2Fa1.sock" {
		t.Errorf("Unix socket: %s", got)
	}
	n, _, err := store.GetT[store.Node](s.ctx, s.st, store.KeyNode("a1"))
	if err != nil {
		t.Fatal(err)
	}
	n.NBDSocket = ""
	s.put(store.KeyNode("a1"), n)
	if got := must[string](t)(s.c.ConnectionURI(s.ctx, caller, s.a)); got != "nbd://127.0.0.1:10809/"+string(s.a) {
		t.Errorf("TCP: %s", got)
	}
	n.NBDAddress = ""
	s.put(store.KeyNode("a1"), n)
	_, err = s.c.ConnectionURI(s.ctx, caller, s.a)
	refused(t, err, KindUnavailable, "")
}

// Goal: placement by pin, by load, and by space.
func TestPlace(t *testing.T) {
	const gib = lockstep.GiB
	c := New(Config{Zones: []lockstep.AZ{"az1", "az2"}})
	world := func() *snapshot {
		s := newSnapshot()
		for _, n := range []store.Node{
			{ID: "a1", AZ: "az1", FreeBytes: 100 * gib},
			{ID: "a2", AZ: "az1", FreeBytes: 50 * gib},
			{ID: "a3", AZ: "az1", FreeBytes: 10 * gib},
			{ID: "b1", AZ: "az2", FreeBytes: 10 * gib},
			{ID: "c1", AZ: "az3", FreeBytes: 10 * gib},
		} {
			s.nodes[n.ID], s.alive[n.ID] = n, store.Presence{}
		}
		return s
	}
	rows := []struct {
		name string
		vol  store.Volume
		az   lockstep.AZ
		with func(*snapshot)
		want lockstep.NodeID
		kind Kind
		code string
	}{
		{name: "empty: the first", vol: store.Volume{SizeBytes: gib}, want: "a1"},
		{name: "an AZ of nodes only", vol: store.Volume{SizeBytes: gib}, az: "az3", want: "c1"},
		{name: "least allocated", vol: store.Volume{SizeBytes: gib}, az: "az1", want: "a3", with: func(s *snapshot) {
			s.volumes["x"] = store.Volume{Node: "a1", SizeBytes: 5 * gib}
			s.volumes["y"] = store.Volume{Node: "a2", SizeBytes: 2 * gib}
			s.volumes["z"] = store.Volume{Node: "a3", SizeBytes: gib}
			for v := range s.volumes {
				s.observed[v] = store.VolumeObserved{State: observedPresent}
			}
		}},
		{name: "only one has the space", vol: store.Volume{SizeBytes: 80 * gib}, az: "az1", want: "a1"},
		{
			name: "space promised to volumes not made yet", vol: store.Volume{SizeBytes: 80 * gib}, az: "az1", kind: KindQuota, code: codeNoRoom,
			with: func(s *snapshot) { s.volumes["x"] = store.Volume{Node: "a1", SizeBytes: 30 * gib} },
		},
		{name: "no pool has the space", vol: store.Volume{SizeBytes: 101 * gib}, az: "az1", kind: KindQuota, code: codeNoRoom},
		{name: "pinned by id", vol: store.Volume{SizeBytes: gib, Metadata: map[string]string{"node": "a2"}}, az: "az1", want: "a2"},
		{name: "pinned by number", vol: store.Volume{SizeBytes: gib, Metadata: map[string]string{"node": "3"}}, az: "az1", want: "a3"},
		{name: "pinned to another AZ", vol: store.Volume{SizeBytes: gib, Metadata: map[string]string{"node": "b1"}}, az: "az1", kind: KindBadRequest},
		{
			name: "pinned to a dead node", vol: store.Volume{SizeBytes: gib, Metadata: map[string]string{"node": "a2"}}, az: "az1", kind: KindUnavailable,
			with: func(s *snapshot) { delete(s.alive, "a2") },
		},
		{
			name: "a dead node does not count", vol: store.Volume{SizeBytes: gib}, az: "az1", want: "a2",
			with: func(s *snapshot) { delete(s.alive, "a1") },
		},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			s := world()
			if row.with != nil {
				row.with(s)
			}
			for id := range s.volumes {
				s.weigh(id, 1)
			}
			v := row.vol
			err := c.place(s, &v, row.az)
			if row.want == "" {
				refused(t, err, row.kind, row.code)
				return
			}
			if err != nil || v.Node != row.want {
				t.Fatalf("placed on %q, error %v; want %s", v.Node, err, row.want)
			}
		})
	}
}

// Goal: lists show the things of the caller's project, newest first.
func TestLists(t *testing.T) {
	s := newStill(t)
	vols := must[[]VolumeView](t)(s.c.ListVolumes(s.ctx, caller))
	if len(vols) < 10 || !slices.IsSortedFunc(vols, func(a, b VolumeView) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID))
	}) {
		t.Errorf("volumes: %d, or not in order", len(vols))
	}
	if pairs := must[[]PairView](t)(s.c.ListPairs(s.ctx, caller)); len(pairs) != 6 {
		t.Errorf("%d pairs, want 6", len(pairs))
	}
	if groups := must[[]GroupView](t)(s.c.ListGroups(s.ctx, caller)); len(groups) != 4 || groups[0].ID != s.empty {
		t.Errorf("groups: %+v", groups)
	}
	other := Caller{Project: "p2"}
	if got := must[[]VolumeView](t)(s.c.ListVolumes(s.ctx, other)); len(got) != 0 {
		t.Errorf("another project sees %d volumes", len(got))
	}
	zones := must[[]Zone](t)(s.c.Zones(s.ctx))
	if !slices.Equal(zones, []Zone{{"az1", true}, {"az2", true}}) {
		t.Errorf("zones: %+v", zones)
	}
	s.alive("b1", false)
	if zones := must[[]Zone](t)(s.c.Zones(s.ctx)); zones[1].Available {
		t.Error("az2 is available without a node")
	}
	nodes := must[[]NodeView](t)(s.c.Nodes(s.ctx))
	if len(nodes) != 2 || !nodes[0].Alive || nodes[1].Alive {
		t.Errorf("nodes: %+v", nodes)
	}
	defaults := 0
	for _, typ := range s.c.Types() {
		if typ.Default {
			defaults++
		}
	}
	if defaults != 1 {
		t.Errorf("%d default types", defaults)
	}
}

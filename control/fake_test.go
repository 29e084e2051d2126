package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

// site is a store with fake nodes: they keep the contract between nodes and controllers without
// a byte of data, and break it as a test asks.
type site struct {
	t   testing.TB
	st  store.Store
	mem *memstore.Mem // st, unless the test brought its own store
	ctx context.Context

	mu      sync.Mutex // guards all below
	nodes   map[lockstep.NodeID]*fakeNode
	cut     bool                          // the link between the AZs
	slow    bool                          // copying does not end
	dirty   map[lockstep.VolumeID]int64   // reported dirty bytes
	fail    map[lockstep.VolumeID]string  // reported failures of replicas
	small   map[lockstep.VolumeID]bool    // files that do not grow
	full    map[lockstep.NodeID]bool      // pools in which nothing can be made
	boots   map[lockstep.NodeID]string    // present boot ids
	mute    map[lockstep.NodeID]bool      // nodes that are alive but do nothing
	down    map[lockstep.NodeID]chan bool // closed when a killed node has stopped
	stops   map[lockstep.NodeID]context.CancelFunc
	point   map[lockstep.VolumeID]uint64 // epochs of recovery points
	crammed map[lockstep.NodeID]bool     // pools without room for a divergence image
}

func newSite(t testing.TB, nodes ...string) *site {
	mem := memstore.NewMem()
	s := newSiteOn(t, mem, nodes...)
	s.mem = mem
	return s
}

func newSiteOn(t testing.TB, st store.Store, nodes ...string) *site {
	ctx, cancel := context.WithCancel(context.Background())
	s := &site{
		t: t, st: st, ctx: ctx,
		nodes: map[lockstep.NodeID]*fakeNode{}, dirty: map[lockstep.VolumeID]int64{},
		fail: map[lockstep.VolumeID]string{}, small: map[lockstep.VolumeID]bool{},
		full: map[lockstep.NodeID]bool{}, boots: map[lockstep.NodeID]string{}, mute: map[lockstep.NodeID]bool{},
		down: map[lockstep.NodeID]chan bool{}, stops: map[lockstep.NodeID]context.CancelFunc{},
		point: map[lockstep.VolumeID]uint64{}, crammed: map[lockstep.NodeID]bool{},
	}
	t.Cleanup(func() {
		cancel()
		s.stopNodes()
	})
	for _, n := range nodes {
		s.start(lockstep.NodeID(n))
	}
	return s
}

// azOf: node a1 is in az1, node b2 in az2.
func azOf(n lockstep.NodeID) lockstep.AZ {
	return lockstep.AZ("az" + string(n[0]-'a'+'1'))
}

func (s *site) start(id lockstep.NodeID) {
	n := &fakeNode{site: s, id: id, poke: make(chan struct{}, 1), answered: map[lockstep.GroupID]protocol.Answer{}}
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan bool)
	s.mu.Lock()
	if s.boots[id] == "" {
		s.boots[id] = "boot-" + string(id)
	}
	s.nodes[id], s.down[id], s.stops[id] = n, done, cancel
	s.mu.Unlock()
	s.put(store.KeyNode(id), store.Node{
		ID: id, AZ: azOf(id), NBDSocket: "/run/" + string(id) + ".sock",
		NBDAddress: "127.0.0.1:10809", TotalBytes: 1 << 50, FreeBytes: 1 << 49, Instance: "i-" + string(id), BootID: lockstep.BootID(s.bootOf(id)),
	})
	s.put(store.KeyAliveNode(id), store.Presence{Node: id})
	go func() {
		defer close(done)
		n.run(ctx)
	}()
	s.pokeAll()
}

func (s *site) bootOf(id lockstep.NodeID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.boots[id]
}

// kill stops a node and takes its presence away.
func (s *site) kill(id lockstep.NodeID) {
	s.stop(id)
	if _, _, err := s.st.Txn(s.ctx, nil, []store.Op{{Key: store.KeyAliveNode(id), Delete: true}}); err != nil {
		s.t.Fatal(err)
	}
	s.pokeAll()
}

func (s *site) stop(id lockstep.NodeID) {
	s.mu.Lock()
	cancel, done := s.stops[id], s.down[id]
	delete(s.nodes, id)
	s.mu.Unlock()
	cancel()
	<-done
}

// stopNodes stops all nodes at one moment: none sees another one go.
func (s *site) stopNodes() {
	s.mu.Lock()
	var wait []chan bool
	for id := range s.nodes {
		s.stops[id]()
		wait = append(wait, s.down[id])
	}
	s.mu.Unlock()
	for _, done := range wait {
		<-done
	}
	s.mu.Lock()
	clear(s.nodes)
	s.mu.Unlock()
}

// set changes what the nodes find, and lets them find it.
func (s *site) set(change func()) {
	s.mu.Lock()
	change()
	s.mu.Unlock()
	s.pokeAll()
}

// silence makes a node stay alive but do nothing any more.
func (s *site) silence(id lockstep.NodeID) {
	s.mu.Lock()
	s.mute[id] = true
	n := s.nodes[id]
	s.mu.Unlock()
	n.busy.Lock() // a step that had begun has ended now
	defer n.busy.Unlock()
}

func (s *site) pokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		select {
		case n.poke <- struct{}{}:
		default:
		}
	}
}

func (s *site) put(key string, v any) {
	s.t.Helper()
	if _, _, err := s.st.Txn(context.Background(), nil, []store.Op{{Key: key, Value: store.Encode(v)}}); err != nil {
		s.t.Fatal(err)
	}
}

// dump is the whole store.
func (s *site) dump() map[string]string {
	kvs, _, err := s.st.List(context.Background(), "")
	if err != nil {
		s.t.Fatal(err)
	}
	m := map[string]string{}
	for _, kv := range kvs {
		m[kv.Key] = fmt.Sprintf("%d %s", kv.ModRev, kv.Value)
	}
	return m
}

func (s *site) record(id lockstep.GroupID) protocol.Record {
	s.t.Helper()
	r, _, err := store.GetT[protocol.Record](context.Background(), s.st, store.KeyRecord(id))
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// testConfig has times that let a test of many steps end soon.
func (s *site) testConfig() Config {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if os.Getenv("CONTROL_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return Config{
		Store: s.st, ClusterID: "c1", Zones: []lockstep.AZ{"az1", "az2"}, Logger: log,
		LeaderTTL: time.Second, Patience: 200 * time.Millisecond, SettleTimeout: time.Second,
		StopTimeout: time.Second, ExtendTimeout: time.Second, ReverseTimeout: time.Second,
		ResyncMin: 20 * time.Millisecond, ResyncMax: 200 * time.Millisecond, ResyncReset: time.Second,
		RetryStore: 10 * time.Millisecond,
	}
}

// controller starts a controller; stop waits for its end.
func (s *site) controller(change ...func(*Config)) (c *Controller, stop func()) {
	cfg := s.testConfig()
	for _, ch := range change {
		ch(&cfg)
	}
	c = New(cfg)
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				s.t.Errorf("controller ended with %v", err)
			}
		})
	}
	s.t.Cleanup(stop)
	return c, stop
}

// fakeNode is one storage node without storage.
type fakeNode struct {
	*site
	id       lockstep.NodeID
	poke     chan struct{}
	answered map[lockstep.GroupID]protocol.Answer
	reported map[string][]byte
	busy     sync.Mutex // held during a step
}

func (n *fakeNode) run(ctx context.Context) {
	n.reported = map[string][]byte{}
	_, rev, err := n.st.List(ctx, "cluster")
	if err != nil {
		return
	}
	events := n.st.Watch(ctx, "", rev)
	for {
		n.step(ctx)
		select {
		case <-ctx.Done():
			return
		case _, ok := <-events:
			if !ok {
				return
			}
		case <-n.poke:
		}
	}
}

func (n *fakeNode) step(ctx context.Context) {
	n.busy.Lock()
	defer n.busy.Unlock()
	n.mu.Lock()
	mute := n.mute[n.id]
	n.mu.Unlock()
	if mute {
		return
	}
	vols, _, err := store.ListT[store.Volume](ctx, n.st, store.PrefixVolumes)
	if err != nil {
		return
	}
	for _, v := range vols {
		if v.Value.Node == n.id {
			n.volume(ctx, v.Value)
		}
	}
	recs, _, err := store.ListT[protocol.Record](ctx, n.st, store.PrefixRecords)
	if err != nil {
		return
	}
	for _, r := range recs {
		if slices.Contains(r.Value.Nodes(), n.id) {
			n.group(ctx, r.Value, r.ModRev)
		} else if a, was := n.answered[r.Value.Group]; (was || slices.Contains(r.Value.Untold, n.id)) && a.Epoch < r.Value.Epoch {
			// It left the group, perhaps in an earlier life, and says so, late perhaps: the record may be
			// gone by now.
			a = protocol.Answer{Group: r.Value.Group, Node: n.id, Epoch: r.Value.Epoch, Step: protocol.StepTold}
			n.answered[a.Group] = a
			time.Sleep(time.Millisecond)
			_, _, _ = n.st.Txn(ctx, nil, []store.Op{{Key: store.KeyAnswer(a.Group, n.id), Value: store.Encode(a)}})
		}
	}
}

func (n *fakeNode) report(ctx context.Context, key string, v any) {
	b := store.Encode(v)
	if string(n.reported[key]) == string(b) {
		return
	}
	if _, _, err := n.st.Txn(ctx, nil, []store.Op{{Key: key, Value: b}}); err == nil {
		n.reported[key] = b
	}
}

func (n *fakeNode) volume(ctx context.Context, v store.Volume) {
	o := store.VolumeObserved{Volume: v.ID, Node: n.id, State: observedPresent, SizeBytes: v.SizeBytes}
	before, _, err := store.GetT[store.VolumeObserved](ctx, n.st, store.KeyObservedVolume(v.ID))
	known := err == nil
	n.mu.Lock()
	switch {
	case v.Deleted:
		o.State, o.SizeBytes = observedAbsent, 0
	case n.full[n.id] && (!known || before.State == observedNoSpace):
		o.State, o.Error = observedNoSpace, "the pool is full"
	case n.small[v.ID] || known && before.SizeBytes > v.SizeBytes:
		o.SizeBytes = before.SizeBytes
	}
	n.mu.Unlock()
	if known && reflect.DeepEqual(before, o) {
		return
	}
	// The controller may have removed the deleted volume meanwhile: nothing is left behind then.
	_, rev, err := store.GetT[store.Volume](ctx, n.st, store.KeyVolume(v.ID))
	if err != nil {
		return
	}
	_, _, _ = n.st.Txn(ctx, []store.Cmp{{Key: store.KeyVolume(v.ID), ModRev: rev}},
		[]store.Op{{Key: store.KeyObservedVolume(v.ID), Value: store.Encode(o)}})
}

// up reports whether the peer answers over the link; n.mu is held.
func (n *fakeNode) up(peer lockstep.NodeID) bool {
	return !n.cut && n.nodes[peer] != nil
}

func (n *fakeNode) group(ctx context.Context, r protocol.Record, rev int64) {
	n.mu.Lock()
	primary := slices.Contains(r.PrimaryNodes(), n.id)
	az := r.Secondary
	if primary {
		az = r.Primary
	}
	boot := lockstep.BootID(n.boots[n.id])
	peers, all := map[lockstep.NodeID]store.PeerObserved{}, true
	boots, instances := map[lockstep.NodeID]lockstep.BootID{}, map[lockstep.NodeID]string{}
	for _, p := range r.PeersOf(n.id, az) {
		up := n.up(p)
		all = all && up
		peers[p] = store.PeerObserved{Connected: up, BootID: lockstep.BootID(n.boots[p])}
		boots[p], instances[p] = lockstep.BootID(n.boots[p]), "i-"+string(p)
	}
	slow := n.slow
	seen := store.GroupObserved{
		Group: r.Group, Node: n.id, Epoch: r.Epoch, Role: "secondary", Peers: peers,
		Volumes: map[lockstep.VolumeID]store.ReplicaObserved{},
	}
	failed := ""
	for _, m := range r.Members {
		if m.In(az).Node != n.id {
			continue
		}
		v := m.In(az).Volume
		o := store.ReplicaObserved{Failed: n.fail[v], DirtyBytes: n.dirty[v], PointEpoch: n.point[v]}
		o.Images = n.imagesOf(ctx, r, v, primary)
		if o.Failed != "" {
			failed = o.Failed
		}
		if primary && r.State == protocol.StateCopying && slow {
			o.TotalBytes, o.ToSendBytes = m.SizeBytes, m.SizeBytes/2
		}
		seen.Volumes[v] = o
	}
	n.mu.Unlock()

	a := protocol.Answer{
		Group: r.Group, Node: n.id, Epoch: r.Epoch, Step: protocol.StepAdopted, BootID: boot,
		Instance: "i-" + string(n.id), Healthy: failed == "", Error: failed,
	}
	if primary {
		seen.Role = "primary"
		seen.Serving = !r.InSync || all
		switch r.State {
		case protocol.StateNormal:
			if r.InSync && !all {
				n.commit(ctx, r, rev, func() (protocol.Record, error) {
					return r.Trip(r.Epoch, protocol.CauseLink, "a secondary does not answer")
				})
				return
			}
		case protocol.StateTripping:
			seen.Serving = false
			a.Step, a.Drained, a.PeersBack = protocol.StepTripping, all, all
		case protocol.StateCopying:
			if !all {
				n.commit(ctx, r, rev, func() (protocol.Record, error) {
					return r.AbortCopy(r.Epoch, protocol.CauseCopyAborted, "the link is down")
				})
				return
			}
			if !slow {
				a.Step, a.PeerBoots, a.PeerInstances = protocol.StepTwoSided, boots, instances
			}
		case protocol.StateFailovering:
			seen.Serving = false
			a.Step = protocol.StepHeld
		case protocol.StateReversing:
			seen.Serving = false
			if all {
				a.Step, a.PeerBoots, a.PeerInstances = protocol.StepReversed, boots, instances
			}
		case protocol.StateDeleted:
			a.Step = protocol.StepTold
		}
	} else {
		switch r.State {
		case protocol.StateFailovering:
			a.Step = protocol.StepReady
		case protocol.StateDeleted:
			a.Step = protocol.StepTold
		case protocol.StateNormal, protocol.StateTripping, protocol.StateCopying, protocol.StateReversing:
		}
	}
	silent := primary && r.InSync && r.State == protocol.StateNormal // nothing is asked
	if !silent && !reflect.DeepEqual(n.answered[r.Group], a) {
		// Only while the record is there: a buried group gets no new answer.
		ok, _, err := n.st.Txn(ctx, []store.Cmp{{Key: store.KeyRecord(r.Group), ModRev: rev}},
			[]store.Op{{Key: store.KeyAnswer(r.Group, n.id), Value: store.Encode(a)}})
		if err != nil || !ok {
			return
		}
		n.answered[r.Group] = a
	}
	if r.State != protocol.StateDeleted {
		n.report(ctx, store.KeyObservedGroup(r.Group, n.id), seen)
	}
}

func (n *fakeNode) commit(ctx context.Context, r protocol.Record, rev int64, step func() (protocol.Record, error)) {
	next, err := step()
	if err != nil {
		return
	}
	_, _, _ = n.st.Txn(ctx, []store.Cmp{{Key: store.KeyRecord(r.Group), ModRev: rev}},
		[]store.Op{{Key: store.KeyRecord(r.Group), Value: store.Encode(next)}})
}

// caller is the user of the tests.
var caller = Caller{Project: "p1", User: "alice", RequestID: "req-1", Operator: true}

// eventually waits until ask is true.
func eventually(t testing.TB, what string, ask func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ask() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(3 * time.Millisecond)
	}
}

// refused checks that err is a refusal of that kind and code.
func refused(t testing.TB, err error, kind Kind, code string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got error %v, want a refusal of kind %d", err, kind)
	}
	if e.Kind != kind || e.Code != code {
		t.Fatalf("got kind %d code %q (%s), want kind %d code %q", e.Kind, e.Code, e.Message, kind, code)
	}
	if e.Message == "" {
		t.Fatal("a refusal without a message")
	}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// volume makes a volume and waits until it is available.
func (s *site) volume(c *Controller, az lockstep.AZ, gib int64) lockstep.VolumeID {
	s.t.Helper()
	v, err := c.CreateVolume(s.ctx, caller, VolumeCreate{SizeGiB: gib, AZ: az})
	if err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "volume available", func() bool {
		got, err := c.GetVolume(s.ctx, caller, v.ID)
		return err == nil && got.Status == StatusAvailable
	})
	return v.ID
}

// pair makes two volumes and a pair with its production side in az1.
func (s *site) pair(c *Controller) lockstep.PairID {
	s.t.Helper()
	p, err := c.CreatePair(s.ctx, caller, PairCreate{
		Volumes:  []lockstep.VolumeID{s.volume(c, "az1", 1), s.volume(c, "az2", 1)},
		Priority: "az1", Model: modelHypermetro,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "pair available", func() bool {
		got, err := c.GetPair(s.ctx, caller, p.ID)
		return err == nil && got.Status == StatusAvailable
	})
	return p.ID
}

// group makes a group of n pairs.
func (s *site) group(c *Controller, n int) (lockstep.GroupID, []lockstep.PairID) {
	s.t.Helper()
	var pairs []lockstep.PairID
	for range n {
		pairs = append(pairs, s.pair(c))
	}
	g, err := c.CreateGroup(s.ctx, caller, GroupCreate{Pairs: pairs, Priority: "az1", Model: modelHypermetro})
	if err != nil {
		s.t.Fatal(err)
	}
	s.awaitGroup(c, g.ID, StatusAvailable, ReplicationInactive)
	return g.ID, pairs
}

// syncedGroup makes a group and synchronizes it.
func (s *site) syncedGroup(c *Controller, n int) (lockstep.GroupID, []lockstep.PairID) {
	s.t.Helper()
	g, pairs := s.group(c, n)
	s.act(c, g, ActionSync)
	s.awaitGroup(c, g, StatusAvailable, ReplicationActive)
	return g, pairs
}

func (s *site) act(c *Controller, g lockstep.GroupID, a Action) {
	s.t.Helper()
	if err := c.Act(s.ctx, caller, g, a, nil); err != nil {
		s.t.Fatalf("%s: %v", a, err)
	}
}

func (s *site) awaitGroup(c *Controller, id lockstep.GroupID, status, rep string) GroupView {
	s.t.Helper()
	var last GroupView
	deadline := time.Now().Add(10 * time.Second)
	for {
		g, err := c.GetGroup(s.ctx, caller, id)
		if err == nil && g.Status == status && g.ReplicationStatus == rep {
			return g
		}
		last = g
		if time.Now().After(deadline) {
			s.t.Fatalf("group is %s/%s/%s (%s), error %v; want %s/%s", last.Status, last.ReplicationStatus, last.FaultLevel, last.Reason, err, status, rep)
		}
		time.Sleep(3 * time.Millisecond)
	}
}

// imagesOf keeps divergence images as a node does; they are remembered in the report. n.mu is held.
func (n *fakeNode) imagesOf(ctx context.Context, r protocol.Record, v lockstep.VolumeID, primary bool) []uint64 {
	o, _, err := store.GetT[store.GroupObserved](ctx, n.st, store.KeyObservedGroup(r.Group, n.id))
	var images []uint64
	if err == nil {
		images = o.Volumes[v].Images
	}
	noImage := slices.ContainsFunc(r.Members, func(m protocol.Member) bool {
		return m.NoImage && (m.Replicas[0].Volume == v || m.Replicas[1].Volume == v)
	})
	if f := r.Forced; !noImage && f != nil && !f.Waived && !primary && r.State == protocol.StateNormal && !n.crammed[n.id] && !slices.Contains(images, uint64(f.Epoch)) {
		images = append(slices.Clone(images), uint64(f.Epoch))
	}
	return slices.DeleteFunc(slices.Clone(images), func(e uint64) bool { return slices.Contains(r.Discard, lockstep.Epoch(e)) })
}

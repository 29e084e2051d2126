package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: a secondary that does not answer never causes a back-out; the failover goes on when it
// answers, and repeating it meanwhile changes nothing.
func TestFailoverWaitsForItsSecondary(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	s.silence("b1")
	if err := c.Act(s.ctx, caller, id, ActionFailover, nil); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusFailovering, ReplicationActive)
	epoch := s.record(id).Epoch
	refused(t, c.Act(s.ctx, caller, id, ActionFailover, nil), KindConflict, "")
	refused(t, c.Act(s.ctx, caller, id, ActionStop, nil), KindConflict, "")
	time.Sleep(500 * time.Millisecond) // longer than the patience of this test's controller
	if r := s.record(id); r.State != protocol.StateFailovering || r.Epoch != epoch {
		t.Fatalf("without an answer the record became %s", r.Describe())
	}
	s.set(func() { s.mute["b1"] = false })
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	checkRest(t, s)
}

// Goal: a failover that meets a failed secondary disk ends in error_failovering with the record in
// sync, and can be tried again.
func TestFailoverBacksOut(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	dr := s.record(id).Members[0].In("az2").Volume
	s.set(func() { s.fail[dr] = "EIO" })
	s.act(c, id, ActionFailover)
	g := s.awaitGroup(c, id, StatusErrorFailovered, ReplicationActive)
	if g.Failure == nil || *g.Failure != codeInternal || !strings.Contains(g.Reason, "EIO") || g.Priority != "az1" {
		t.Fatalf("after the back-out: failure %v, reason %q, priority %s", g.Failure, g.Reason, g.Priority)
	}
	s.set(func() { delete(s.fail, dr) })
	s.act(c, id, ActionFailover)
	g = s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	if g.Failure != nil {
		t.Fatalf("a failure stays: %s", *g.Failure)
	}
}

// Goal: a secondary host that rebooted ends a failover by way of tripping; sync is the way on.
func TestFailoverMeetsARebootedSecondary(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	s.set(func() { s.boots["b1"] = "boot-2" })
	s.act(c, id, ActionFailover)
	eventually(t, "error or recovered by itself", func() bool {
		g, err := c.GetGroup(s.ctx, caller, id)
		return err == nil && g.Status == StatusErrorFailovered
	})
	// Replication goes on by itself, the error stays to be seen until the user acts.
	s.awaitGroup(c, id, StatusErrorFailovered, ReplicationActive)
	s.act(c, id, ActionSync)
	// Active is shown while the record is tripping, too: it is in sync until the trip is over.
	eventually(t, "in sync with the secondary's new life", func() bool {
		r := s.record(id)
		return r.State == protocol.StateNormal && r.InSync && r.BootIDs["b1"] == "boot-2"
	})
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	if r := s.record(id); r.Primary != "az1" {
		t.Fatalf("record: primary %s", r.Primary)
	}
}

// Goal: a switchover whose primary does not finish is given up with roles and in sync unchanged.
func TestReverseGivenUp(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller(func(c *Config) { c.ReverseTimeout = 100 * time.Millisecond })
	id, _ := s.syncedGroup(c, 1)
	s.silence("a1")
	s.act(c, id, ActionReverse)
	g := s.awaitGroup(c, id, StatusErrorReversing, ReplicationActive)
	if g.Priority != "az1" || g.Failure == nil {
		t.Fatalf("%+v", g)
	}
	s.set(func() { s.mute["a1"] = false })
	s.act(c, id, ActionReverse)
	g = s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	if g.Priority != "az2" {
		t.Fatalf("priority %s", g.Priority)
	}
	// Also from an error status a group can be taken apart: stop makes it not replicate.
	s.act(c, id, ActionStop)
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: g.Pairs}))
	s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)
}

// Goal: a stop that the primary does not confirm says so, and takes effect when it can.
func TestStopNotConfirmed(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller(func(c *Config) { c.StopTimeout = 50 * time.Millisecond })
	id, _ := s.syncedGroup(c, 1)
	s.silence("a1")
	refused(t, c.Act(s.ctx, caller, id, ActionStop, nil), KindConflict, codeBusy)
	s.set(func() { s.mute["a1"] = false })
	s.awaitGroup(c, id, StatusAvailable, ReplicationStopped)
	s.act(c, id, ActionStop)
}

// Goal: stop while copying is effective at once, and no automatic sync follows.
func TestStopWhileCopying(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.group(c, 1)
	s.set(func() { s.slow = true })
	s.act(c, id, ActionSync)
	s.act(c, id, ActionStop)
	if r := s.record(id); r.State != protocol.StateNormal || r.Intent != protocol.IntentPaused {
		t.Fatalf("record: %s", r.Describe())
	}
	g := s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)
	if g.FaultLevel != FaultNone {
		t.Fatalf("fault level %s", g.FaultLevel)
	}
}

// Goal: an extend is taken while copying, the copying goes on at the epoch of the new sizes, and it
// ends in sync.
func TestExtendWhileCopying(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, pairs := s.group(c, 2)
	s.set(func() { s.slow = true })
	s.act(c, id, ActionSync)
	before := s.record(id)
	if err := c.Act(s.ctx, caller, id, ActionExtend, []Extend{{pairs[0], 2}, {pairs[1], 3}}); err != nil {
		t.Fatal(err)
	}
	after := s.record(id)
	if after.State != protocol.StateCopying || after.Epoch != before.Epoch+1 || after.Members[0].SizeBytes != 2*lockstep.GiB || after.Members[1].SizeBytes != 3*lockstep.GiB {
		t.Fatalf("record: %s, %+v", after.Describe(), after.Members)
	}
	s.set(func() { s.slow = false })
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	checkRest(t, s)
}

// Goal: a copying that comes in sync in the middle of an extend changes nothing for it; one that is
// aborted waits for its end before it starts again.
func TestExtendAndTheEndOfCopying(t *testing.T) {
	for name, end := range map[string]func(*site){
		"in sync": func(s *site) { s.set(func() { s.slow = false }) },
		"aborted": func(s *site) { s.set(func() { s.cut = true }); s.set(func() { s.cut, s.slow = false, false }) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "a1", "b1")
			c, _ := s.controller(func(c *Config) { c.ExtendTimeout = 5 * time.Second })
			id, pairs := s.group(c, 1)
			s.set(func() { s.slow = true })
			s.act(c, id, ActionSync)
			stuck := s.record(id).Members[0].In("az1").Volume
			s.set(func() { s.small[stuck] = true })
			result := make(chan error, 1)
			go func() { result <- c.Act(s.ctx, caller, id, ActionExtend, []Extend{{pairs[0], 2}}) }()
			eventually(t, "the extend waits for the primary", func() bool {
				kvs, _, err := s.st.List(s.ctx, store.PrefixOps)
				return err == nil && len(kvs) == 1 && strings.Contains(string(kvs[0].Value), stepWaitPrimary)
			})
			end(s)
			eventually(t, "the copying has ended", func() bool { return s.record(id).State == protocol.StateNormal })
			if m := s.record(id).Members[0]; m.SizeBytes != lockstep.GiB || m.ExtendBytes != 2*lockstep.GiB {
				t.Fatalf("in between: %+v", m)
			}
			s.set(func() { delete(s.small, stuck) })
			if err := <-result; err != nil {
				t.Fatal(err)
			}
			s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
			checkRest(t, s)
			if m := s.record(id).Members[0]; m.SizeBytes != 2*lockstep.GiB || m.ExtendBytes != 0 {
				t.Fatalf("in the end: %+v", m)
			}
		})
	}
}

// Goal: an extend that cannot end is taken back as a whole, and a later one may succeed.
func TestExtendGivenUp(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller(func(c *Config) { c.ExtendTimeout = 200 * time.Millisecond })
	id, pairs := s.syncedGroup(c, 2)
	stuck := s.record(id).Members[1].In("az2").Volume
	s.set(func() { s.small[stuck] = true })
	ext := []Extend{{pairs[0], 4}, {pairs[1], 4}}
	err := c.Act(s.ctx, caller, id, ActionExtend, ext)
	refused(t, err, KindConflict, "")
	checkRest(t, s) // sizes everywhere as before
	for _, m := range s.record(id).Members {
		if m.SizeBytes != lockstep.GiB {
			t.Fatalf("pair %s has %d bytes", m.Pair, m.SizeBytes)
		}
	}
	s.set(func() { delete(s.small, stuck) })
	if err := c.Act(s.ctx, caller, id, ActionExtend, ext); err != nil {
		t.Fatal(err)
	}
	checkRest(t, s)
	if got := s.record(id).Members[1].SizeBytes; got != 4*lockstep.GiB {
		t.Fatalf("pair has %d bytes", got)
	}
}

// Goal: a failover in the middle of an extend is taken and keeps the old size; a retry of an
// extend that runs joins it.
func TestExtendAndFailover(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller(func(c *Config) { c.ExtendTimeout = 5 * time.Second })
	id, pairs := s.syncedGroup(c, 1)
	stuck := s.record(id).Members[0].In("az1").Volume
	s.set(func() { s.small[stuck] = true })
	results := make(chan error, 2)
	for range 2 {
		go func() { results <- c.Act(s.ctx, caller, id, ActionExtend, []Extend{{pairs[0], 2}}) }()
	}
	eventually(t, "the extend waits for the primary", func() bool {
		kvs, _, err := s.st.List(s.ctx, store.PrefixOps)
		return err == nil && len(kvs) == 1 && strings.Contains(string(kvs[0].Value), stepWaitPrimary)
	})
	refused(t, c.Act(s.ctx, caller, id, ActionExtend, []Extend{{pairs[0], 3}}), KindConflict, codeBusy)
	refused(t, c.Act(s.ctx, caller, id, ActionReverse, nil), KindConflict, codeBusy)
	s.act(c, id, ActionFailover)
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	for range 2 {
		refused(t, <-results, KindConflict, "")
	}
	checkRest(t, s)
	if got := s.record(id).Members[0]; got.SizeBytes != lockstep.GiB || got.ExtendBytes != 0 {
		t.Fatalf("after the failover: %+v", got)
	}
}

// Goal: a change of name or description is in the group's history with its request; an update that
// changes nothing is not.
func TestRenameIsInTheHistory(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.group(c, 1)
	entries := len(must[[]store.HistoryEntry](t)(c.History(s.ctx, caller, id)))
	for i, u := range []GroupUpdate{{}, {Name: ptr("n"), SetName: true}, {SetDesc: true}} {
		by := caller
		by.RequestID = fmt.Sprint("req-", i)
		must[GroupView](t)(c.UpdateGroup(s.ctx, by, id, u))
		list := must[[]store.HistoryEntry](t)(c.History(s.ctx, caller, id))
		if want := entries + i; len(list) != want {
			t.Fatalf("update %d: %d entries, want %d: %+v", i, len(list), want, list)
		}
		if e := list[len(list)-1]; i > 0 && (e.RequestID != by.RequestID || e.By != caller.User || e.What != "name or description changed") {
			t.Errorf("update %d: %+v", i, e)
		}
	}
}

// Goal: a group can be made while a node is away; a rename is taken whatever the group does.
func TestCreateAndRenameWithoutANode(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	p := s.pair(c)
	s.kill("b1")
	g := must[GroupView](t)(c.CreateGroup(s.ctx, caller, GroupCreate{Pairs: []lockstep.PairID{p}, Priority: "az1", Model: modelHypermetro}))
	if g.Status != StatusCreating {
		t.Fatalf("created: %s", g.Status)
	}
	s.awaitGroup(c, g.ID, StatusAvailable, ReplicationInactive)
	s.start("b1")
	s.act(c, g.ID, ActionSync)
	s.awaitGroup(c, g.ID, StatusAvailable, ReplicationActive)
	epoch := s.record(g.ID).Epoch
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, g.ID, GroupUpdate{Name: ptr("x")}))
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, g.ID, GroupUpdate{SetName: true})) // null clears it
	view := s.awaitGroup(c, g.ID, StatusAvailable, ReplicationActive)
	if view.Name != nil || s.record(g.ID).Epoch != epoch {
		t.Fatalf("after the renames: name %v, epoch %d of %d", view.Name, s.record(g.ID).Epoch, epoch)
	}
	// While failovering only the name changes, and the failover goes on.
	s.silence("b1")
	s.act(c, g.ID, ActionFailover)
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, g.ID, GroupUpdate{Name: ptr("y")}))
	s.awaitGroup(c, g.ID, StatusFailovering, ReplicationActive)
	s.set(func() { s.mute["b1"] = false })
	view = s.awaitGroup(c, g.ID, StatusFailovered, ReplicationStopped)
	if *view.Name != "y" {
		t.Fatalf("name %q", *view.Name)
	}
}

// Goal: a controller refuses the store of another cluster.
func TestOtherCluster(t *testing.T) {
	s := newSite(t)
	s.controller()
	eventually(t, "cluster made", func() bool { _, ok := s.dump()[store.KeyCluster]; return ok })
	cfg := s.testConfig()
	cfg.ClusterID = "c2"
	if err := New(cfg).Run(s.ctx); err == nil || !strings.Contains(err.Error(), "c1") {
		t.Fatalf("got %v", err)
	}
}

// Goal: answers come from the cache, are never older than a change that was made through another
// controller, and are still right when the cache does not follow.
func TestReadsAreNotOld(t *testing.T) {
	s := newSite(t, "a1")
	c1, _ := s.controller()
	c2, stop2 := s.controller()
	for range 50 {
		v := must[VolumeView](t)(c1.CreateVolume(s.ctx, caller, VolumeCreate{SizeGiB: 1, AZ: "az1"}))
		must[VolumeView](t)(c2.GetVolume(s.ctx, caller, v.ID))
	}
	if !c2.peekCache(func(s *snapshot) {}) {
		t.Fatal("the second controller has no cache")
	}
	stop2()
	if got := must[[]VolumeView](t)(c2.ListVolumes(s.ctx, caller)); len(got) != 50 {
		t.Fatalf("%d volumes without a cache", len(got))
	}
}

// Goal: a change that loses every attempt says so instead of trying for ever.
func TestUpdateIsBounded(t *testing.T) {
	s := newSite(t)
	c := New(s.testConfig())
	tries := 0
	err := c.update(context.Background(), nil, func(tx *tx) error {
		tries++
		if _, _, err := get[store.Cluster](tx, store.KeyCluster); err != nil {
			return err
		}
		s.put(store.KeyCluster, store.Cluster{Region: strings.Repeat("x", tries)})
		tx.put(store.KeyCluster, store.Cluster{})
		return nil
	})
	if !errors.Is(err, lockstep.ErrConflict) || tries != maxAttempts {
		t.Fatalf("%d tries, error %v", tries, err)
	}
	var e *Error
	if !errors.As(asRefusal(err), &e) || e.Code != codeBusy {
		t.Fatalf("became %v", e)
	}
}

// Goal: a leader that was replaced commits nothing any more.
func TestFence(t *testing.T) {
	s := newSite(t)
	c := New(s.testConfig())
	s.put(store.KeyLeader, store.Presence{Node: "other"})
	err := c.update(context.Background(), []store.Cmp{{Key: store.KeyLeader, ModRev: 1}}, func(tx *tx) error {
		tx.create("x", store.Cluster{})
		return nil
	})
	if !errors.Is(err, errFenced) {
		t.Fatalf("got %v", err)
	}
	if _, written := s.dump()["x"]; written {
		t.Fatal("a replaced leader wrote")
	}
}

package control

import (
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: one application's whole life, as a user sees it, ends with an empty store.
// Method: four volumes, two pairs, a group, and every call in turn.
func TestLifeCycle(t *testing.T) {
	s := newSite(t, "a1", "a2", "b1", "b2")
	c, _ := s.controller()
	id, pairs := s.group(c, 2)

	g := s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)
	if g.FaultLevel != FaultNone || g.Progress != nil || g.Priority != "az1" {
		t.Fatalf("a new group is %+v", g)
	}
	r := s.record(id)
	if n := r.PrimaryNodes(); len(n) != 2 {
		t.Fatalf("production volumes are on %v, not spread", n)
	}

	s.set(func() { s.slow = true })
	s.act(c, id, ActionSync)
	g = s.awaitGroup(c, id, StatusAvailable, ReplicationCopying)
	eventually(t, "progress 50", func() bool {
		g, err := c.GetGroup(s.ctx, caller, id)
		return err == nil && g.Progress != nil && *g.Progress == "50"
	})
	s.act(c, id, ActionSync) // idempotent while copying
	s.set(func() { s.slow = false })
	g = s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	if *g.Progress != "100" {
		t.Fatalf("progress %s when active", *g.Progress)
	}
	epoch := s.record(id).Epoch
	s.act(c, id, ActionSync) // and when active
	if got := s.record(id).Epoch; got != epoch {
		t.Fatalf("sync of an active group made epoch %d of %d", got, epoch)
	}

	// Failover and back.
	s.act(c, id, ActionFailover)
	g = s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	if g.Priority != "az2" || g.FaultLevel != FaultNone || g.Failure != nil {
		t.Fatalf("failed over: %+v", g)
	}
	refused(t, c.Act(s.ctx, caller, id, ActionFailover, nil), KindConflict, "")
	s.act(c, id, ActionReprotect)
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	s.act(c, id, ActionReverse)
	eventually(t, "switched back", func() bool {
		g, err := c.GetGroup(s.ctx, caller, id)
		return err == nil && g.Priority == "az1" && g.Status == StatusAvailable && g.ReplicationStatus == ReplicationActive
	})

	// Extend while active: statuses unchanged, sizes announced, retry harmless.
	ext := []Extend{{pairs[0], 3}, {pairs[1], 2}}
	for range 2 {
		if err := c.Act(s.ctx, caller, id, ActionExtend, ext); err != nil {
			t.Fatal(err)
		}
	}
	g = s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	for _, m := range s.record(id).Members {
		want := int64(3)
		if m.Pair == pairs[1] {
			want = 2
		}
		if m.SizeBytes != want*lockstep.GiB || m.ExtendBytes != 0 {
			t.Fatalf("member %s has %d bytes, extending to %d", m.Pair, m.SizeBytes, m.ExtendBytes)
		}
		for _, rep := range m.Replicas {
			v := must[VolumeView](t)(c.GetVolume(s.ctx, caller, rep.Volume))
			if v.SizeBytes != want*lockstep.GiB || v.ReplicationStatus != ReplicationActive {
				t.Fatalf("volume %s: %d bytes, %s", v.ID, v.SizeBytes, v.ReplicationStatus)
			}
		}
		p := must[PairView](t)(c.GetPair(s.ctx, caller, m.Pair))
		if p.Meta.SizeGiB != want || p.ReplicationStatus != ReplicationActive || *p.Progress != "100" {
			t.Fatalf("pair %+v", p)
		}
	}

	// Stop is effective when it answers, and idempotent.
	for range 2 {
		s.act(c, id, ActionStop)
		if r := s.record(id); r.InSync || r.State != protocol.StateNormal {
			t.Fatalf("stop answered while the record was %s", r.Describe())
		}
	}
	s.awaitGroup(c, id, StatusAvailable, ReplicationStopped)

	// A rename, then one pair leaves, then the other.
	g = must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Name: ptr("web"), SetName: true}))
	if g.Status != StatusUpdating || *g.Name != "web" {
		t.Fatalf("update answered %+v", g)
	}
	s.awaitGroup(c, id, StatusAvailable, ReplicationStopped)
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: pairs[:1]}))
	s.awaitGroup(c, id, StatusAvailable, ReplicationStopped)
	checkAccess(t, c, pairs[0], "az1")
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Add: pairs[:1], Remove: pairs[1:]}))
	s.awaitGroup(c, id, StatusAvailable, ReplicationStopped)
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: pairs[:1]}))
	g = s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)
	if len(g.Pairs) != 0 || g.Progress != nil {
		t.Fatalf("an emptied group is %+v", g)
	}

	history := must[[]store.HistoryEntry](t)(c.History(s.ctx, caller, id))
	var what []string
	for _, h := range history {
		what = append(what, h.What)
		if h.By == "" || h.Group != id {
			t.Fatalf("entry %+v", h)
		}
	}
	all := strings.Join(what, "\n")
	for _, want := range []string{"created", "copying from az1", "in sync", "failover from az1", "failed over: az2", "switched over: az1", "extended 2", "stopping (pause)", "members changed"} {
		if !strings.Contains(all, want) {
			t.Errorf("history lacks %q:\n%s", want, all)
		}
	}

	if err := c.DeleteGroup(s.ctx, caller, id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "group gone", func() bool {
		_, err := c.GetGroup(s.ctx, caller, id)
		return err != nil
	})
	for _, p := range pairs {
		view := must[PairView](t)(c.GetPair(s.ctx, caller, p))
		if err := c.DeletePair(s.ctx, caller, p); err != nil {
			t.Fatal(err)
		}
		eventually(t, "pair gone", func() bool {
			_, err := c.GetPair(s.ctx, caller, p)
			return err != nil
		})
		for _, v := range view.Volumes {
			got := must[VolumeView](t)(c.GetVolume(s.ctx, caller, v))
			if want := got.AZ == "az1"; (got.Access.Mode == store.AccessPlain) != want || got.Pair != "" {
				t.Fatalf("after the pair: %+v", got.Volume)
			}
			if err := c.ReleaseVolume(s.ctx, caller, v); err != nil {
				t.Fatal(err)
			}
			if got := must[VolumeView](t)(c.GetVolume(s.ctx, caller, v)); got.Access.Mode != store.AccessPlain {
				t.Fatalf("released: %+v", got.Access)
			}
			if err := c.DeleteVolume(s.ctx, caller, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "an empty store", func() bool {
		for key := range s.dump() {
			for _, prefix := range []string{store.PrefixVolumes, store.PrefixObservedVol, store.PrefixPairs, store.PrefixGroups, store.PrefixRecords, store.PrefixAnswers, store.PrefixObservedGroup, store.PrefixOps, store.PrefixHistory} {
				if strings.HasPrefix(key, prefix) {
					return false
				}
			}
		}
		return true
	})
}

// checkAccess: a pair in no group serves its primary side only, and says why at the other.
func checkAccess(t *testing.T, c *Controller, id lockstep.PairID, primary lockstep.AZ) {
	t.Helper()
	p := must[PairView](t)(c.GetPair(t.Context(), caller, id))
	if p.Priority != primary || p.Group != "" {
		t.Fatalf("pair outside: priority %s, group %q", p.Priority, p.Group)
	}
	for _, vid := range p.Volumes {
		v := must[VolumeView](t)(c.GetVolume(t.Context(), caller, vid))
		switch {
		case v.AZ == primary && v.Access.Mode != store.AccessPlain:
			t.Fatalf("primary volume: %+v", v.Access)
		case v.AZ != primary && (v.Access.Mode != store.AccessRefused || !strings.Contains(v.Access.Reason, string(id))):
			t.Fatalf("other volume: %+v", v.Access)
		}
	}
}

// Goal: pairs that leave a failed-over group keep the role they have then, and the emptied group
// can be deleted.
func TestLeaveFailedOverGroup(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, pairs := s.syncedGroup(c, 1)
	s.act(c, id, ActionFailover)
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	s.act(c, id, ActionStop) // a no-op
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: pairs}))
	s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)
	checkAccess(t, c, pairs[0], "az2")
	if err := c.DeleteGroup(s.ctx, caller, id); err != nil {
		t.Fatal(err)
	}
	// A new group takes the pair only the other way round.
	_, err := c.CreateGroup(s.ctx, caller, GroupCreate{Pairs: pairs, Priority: "az1", Model: modelHypermetro})
	refused(t, err, KindBadRequest, "")
	g := must[GroupView](t)(c.CreateGroup(s.ctx, caller, GroupCreate{Pairs: pairs, Priority: "az2", Model: modelHypermetro}))
	s.awaitGroup(c, g.ID, StatusAvailable, ReplicationInactive)
}

// Goal: after a link fault the group synchronizes again by itself, a paused one does not, and the
// pauses between tries grow.
func TestAutoResync(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	s.set(func() { s.cut = true })
	g := s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)
	if g.FaultLevel != FaultLink {
		t.Fatalf("fault level %s with the link down", g.FaultLevel)
	}
	refused(t, c.Act(s.ctx, caller, id, ActionFailover, nil), KindConflict, "")
	s.set(func() { s.cut = false })
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)

	// Stopped during the fault: it stays so when the link is back.
	s.set(func() { s.cut = true })
	s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)
	s.act(c, id, ActionStop)
	s.set(func() { s.cut = false })
	eventually(t, "peers seen again", func() bool {
		o, _, err := store.GetT[store.GroupObserved](s.ctx, s.st, store.KeyObservedGroup(id, "a1"))
		return err == nil && o.Peers["b1"].Connected
	})
	epoch := s.record(id).Epoch
	// Nothing may happen: two more calls through the leader show that it has seen the change.
	s.volume(c, "az1", 1)
	s.volume(c, "az1", 1)
	if r := s.record(id); r.Epoch != epoch || r.State != protocol.StateNormal {
		t.Fatalf("a paused group moved: %s", r.Describe())
	}
	s.act(c, id, ActionSync)
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
}

func TestBackoff(t *testing.T) {
	s := newSite(t, "a1", "b1")
	now := s.testConfig()
	clock := newStamp()
	now.Now = clock.now
	c := New(now)
	d := newDriver(c, nil)
	c.cache.snap = newSnapshot()
	r := protocol.NewGroup("g", "p", "az1", "az2", []protocol.Member{{Pair: "p", Replicas: [2]protocol.Replica{
		{Volume: "v1", Node: "a1", AZ: "az1"}, {Volume: "v2", Node: "b1", AZ: "az2"},
	}}})
	r.Intent, r.Cause = protocol.IntentRun, protocol.CauseLink
	s.put(store.KeyRecord("g"), r)
	c.cache.snap.alive["a1"], c.cache.snap.alive["b1"] = store.Presence{}, store.Presence{}
	sight := Sight{GroupObserved: store.GroupObserved{Peers: map[lockstep.NodeID]store.PeerObserved{"b1": {Connected: true}}}}
	c.cache.snap.sights["g"] = map[lockstep.NodeID]Sight{"a1": sight}

	var waits []string
	for range 6 {
		wait := must[timeDuration](t)(d.autoSync(s.ctx, "g", r))
		waits = append(waits, wait.String())
		clock.add(wait)
		before := s.record("g")
		must[timeDuration](t)(d.autoSync(s.ctx, "g", r))
		after := s.record("g")
		if after.State != protocol.StateCopying || after.Epoch != before.Epoch+1 {
			t.Fatalf("no sync after %s: %s", wait, after.Describe())
		}
		after.State, after.InSync = protocol.StateNormal, false
		s.put(store.KeyRecord("g"), after)
	}
	if want := []string{"20ms", "40ms", "80ms", "160ms", "200ms", "200ms"}; !slices.Equal(waits, want) {
		t.Fatalf("waits %v, want %v", waits, want)
	}
	// In sync for long enough: from the beginning.
	in := r
	in.InSync = true
	left := must[timeDuration](t)(d.autoSync(s.ctx, "g", in))
	clock.add(left)
	must[timeDuration](t)(d.autoSync(s.ctx, "g", in))
	if wait := must[timeDuration](t)(d.autoSync(s.ctx, "g", r)); wait.String() != "20ms" {
		t.Fatalf("after a long time in sync the wait is %s", wait)
	}
	// No node, no link, a failed disk: no sync.
	delete(c.cache.snap.alive, "b1")
	clock.add(timeDuration(1e9))
	if wait := must[timeDuration](t)(d.autoSync(s.ctx, "g", r)); wait != 0 {
		t.Fatalf("waits %s though a node is gone", wait)
	}
}

// Goal: the tombstone of a group outlives a node that is away, is not seen at the API, and goes
// when the node has been told.
func TestTombstone(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.group(c, 1)
	// An abandoned group with members: deleted under the API's feet, as an operator would.
	s.kill("b1")
	r := s.record(id)
	dead := must[protocol.Record](t)(r.Delete())
	g, _, err := store.GetT[store.Group](s.ctx, s.st, store.KeyGroup(id))
	if err != nil {
		t.Fatal(err)
	}
	g.Overlay = StatusDeleting
	s.put(store.KeyRecord(id), dead)
	s.put(store.KeyGroup(id), g)
	eventually(t, "gone at the API", func() bool {
		_, err := c.GetGroup(s.ctx, caller, id)
		return err != nil
	})
	if list := must[[]GroupView](t)(c.ListGroups(s.ctx, caller)); len(list) != 0 {
		t.Fatalf("the list shows %+v", list)
	}
	eventually(t, "a1 told", func() bool {
		a, _, err := store.GetT[protocol.Answer](s.ctx, s.st, store.KeyAnswer(id, "a1"))
		return err == nil && a.Step == protocol.StepTold
	})
	if s.record(id).State != protocol.StateDeleted {
		t.Fatal("the tombstone went before b1 was told")
	}
	s.start("b1")
	eventually(t, "buried", func() bool {
		for key := range s.dump() {
			if strings.Contains(key, string(id)) && !strings.HasPrefix(key, store.PrefixPairs) && !strings.HasPrefix(key, store.PrefixVolumes) {
				return false
			}
		}
		return true
	})
}

// Goal: the disk that is left of a dissolved pair says whether it holds a consistent image.
func TestDissolvedPairTellsOfItsImage(t *testing.T) {
	for name, synced := range map[string]bool{"was in sync": true, "never in sync": false} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "a1", "b1")
			c, _ := s.controller()
			id, pairs := s.group(c, 1)
			s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)
			dr := s.record(id).Members[0].In("az2").Volume
			if synced {
				s.act(c, id, ActionSync)
				s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
				s.act(c, id, ActionStop)
			}
			must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: pairs}))
			s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)
			if err := c.DeletePair(s.ctx, caller, pairs[0]); err != nil {
				t.Fatal(err)
			}
			v := must[VolumeView](t)(c.GetVolume(s.ctx, caller, dr))
			if v.Access.Mode != store.AccessRefused || strings.Contains(v.Access.Reason, "no consistent image") == synced {
				t.Errorf("access %+v", v.Access)
			}
		})
	}
}

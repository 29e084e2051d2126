package control

import (
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// tell writes a node's report of a verification.
func (s *site) tell(g lockstep.GroupID, w VerificationView, node lockstep.NodeID, change func(*store.VerifyObserved)) {
	r := s.record(g)
	o := store.VerifyObserved{ID: w.ID, Node: node, InSyncEpoch: r.InSyncEpoch, State: store.VerifyRunning}
	change(&o)
	s.put(store.KeyObservedVerify(g, node), o)
}

func equalNow(o *store.VerifyObserved) {
	o.State, o.Bytes, o.Writes = store.VerifyEqual, 1<<30, map[string]string{string(o.Node) + ">b1": "1.2.3"}
}

func differing(o *store.VerifyObserved) {
	o.Differences = store.VerifyDifferences{Count: 1, Bytes: 512, First: []store.Difference{{Volume: "v", Node: o.Node, Off: 4096, Len: 512}}}
}

func (s *site) awaitVerified(c *Controller, g lockstep.GroupID, want store.VerifyState) VerificationView {
	s.t.Helper()
	var v VerificationView
	eventually(s.t, "the verification is "+string(want), func() bool {
		view := must[GroupView](s.t)(c.GetGroup(s.ctx, caller, g))
		if view.Verification != nil {
			v = *view.Verification
		}
		return v.State == want
	})
	return v
}

func historyOf(t *testing.T, s *site, c *Controller, g lockstep.GroupID) string {
	t.Helper()
	var all []string
	for _, e := range must[[]store.HistoryEntry](t)(c.History(s.ctx, caller, g)) {
		all = append(all, e.What+" by "+e.By)
	}
	return strings.Join(all, "\n")
}

// Goal: a verification is asked for once, ends when every primary node has compared all, and leaves a
// proof; a second call answers the running one.
func TestVerify(t *testing.T) {
	s := newSite(t, "a1", "a2", "b1")
	c, _ := s.controller()
	g, _ := s.syncedGroup(c, 2)
	nodes := s.record(g).PrimaryNodes()
	if len(nodes) != 2 {
		t.Fatalf("primary nodes %v", nodes)
	}
	w := must[VerificationView](t)(c.Verify(s.ctx, caller, g, 7))
	if w.State != store.VerifyRunning || w.RateMiB != 7 || w.By != "alice" || w.TotalBytes == 0 || w.Epoch != s.record(g).Epoch {
		t.Fatalf("%+v", w)
	}
	again := must[VerificationView](t)(c.Verify(s.ctx, caller, g, 9))
	if again.ID != w.ID || again.RateMiB != 7 {
		t.Errorf("a second call: %+v", again)
	}
	s.tell(g, w, nodes[0], equalNow)
	s.tell(g, w, nodes[1], func(o *store.VerifyObserved) { o.Bytes, o.Why = 5, "waits: x" })
	eventually(t, "the progress shows", func() bool {
		v := must[GroupView](t)(c.GetGroup(s.ctx, caller, g)).Verification
		return v.Bytes == 1<<30+5 && len(v.Waits) == 1
	})
	s.tell(g, VerificationView{Verification: store.Verification{ID: "another"}}, nodes[1], equalNow)
	time.Sleep(20 * time.Millisecond)
	if v := must[GroupView](t)(c.GetGroup(s.ctx, caller, g)).Verification; v.State != store.VerifyRunning || v.Proof != nil {
		t.Fatalf("ended by a report of another verification: %+v", v)
	}
	s.tell(g, w, nodes[1], equalNow)
	v := s.awaitVerified(c, g, store.VerifyEqual)
	if p := v.Proof; p == nil || p.ID != w.ID || p.Bytes != 2<<30 || p.Differences != 0 || len(p.Writes) != 2 || p.Epoch != s.record(g).Epoch || v.EndedAt == nil {
		t.Errorf("%+v, %+v", v, p)
	}
	if h := historyOf(t, s, c, g); !strings.Contains(h, "verification started, at 7 MiB/s by alice") || !strings.Contains(h, "verified: both sides are equal") {
		t.Errorf("history:\n%s", h)
	}

	// The next one that ends badly leaves the proof, of that time, as it was.
	w = must[VerificationView](t)(c.Verify(s.ctx, caller, g, 0))
	s.tell(g, w, nodes[0], func(o *store.VerifyObserved) { o.State, o.Why = store.VerifyNotCompleted, "no luck" })
	bad := s.awaitVerified(c, g, store.VerifyNotCompleted)
	if bad.Proof == nil || bad.Proof.ID == w.ID || !strings.Contains(bad.Reason, string(nodes[0])+": no luck") {
		t.Errorf("%+v", bad)
	}
}

// Goal: nothing is called equal that was not compared in one time in sync which lasts.
func TestVerifyIsNoProofOutOfSync(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, stop := s.controller()
	g, _ := s.syncedGroup(c, 1)
	for name, spoil := range map[string]func(VerificationView){
		"another time in sync": func(w VerificationView) {
			s.tell(g, w, "a1", func(o *store.VerifyObserved) { equalNow(o); o.InSyncEpoch-- })
		},
		"paused": func(w VerificationView) { s.act(c, g, ActionStop) },
	} {
		w := must[VerificationView](t)(c.Verify(s.ctx, caller, g, 0))
		spoil(w)
		v := s.awaitVerified(c, g, store.VerifyNotCompleted)
		if v.Proof != nil || v.Reason == "" {
			t.Errorf("%s: %+v", name, v)
		}
		s.act(c, g, ActionSync)
		s.awaitGroup(c, g, StatusAvailable, ReplicationActive)
	}

	// Without a leader the group leaves in sync and comes back, and the node says equal for the time
	// before: the next leader does not believe it.
	w := must[VerificationView](t)(c.Verify(s.ctx, caller, g, 0))
	stop()
	s.tell(g, w, "a1", equalNow)
	r := s.record(g)
	r.Epoch += 4
	r.InSyncEpoch = r.Epoch
	s.put(store.KeyRecord(g), r)
	next, _ := s.controller()
	if v := s.awaitVerified(next, g, store.VerifyNotCompleted); v.Proof != nil || !strings.Contains(v.Reason, "changed") {
		t.Errorf("%+v", v)
	}
}

// Goal: a difference is in the history and among the warnings at once, and stays a warning until a
// verification completes that finds none.
func TestVerifyTellsOfDifferences(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	g, _ := s.syncedGroup(c, 1)
	warns := func() bool {
		v := must[GroupView](t)(c.GetGroup(s.ctx, caller, g))
		return strings.Contains(strings.Join(v.Warnings, "\n"), "one difference of 512 bytes was found")
	}
	w := must[VerificationView](t)(c.Verify(s.ctx, caller, g, 0))
	s.tell(g, w, "a1", differing)
	eventually(t, "the warning shows", warns)
	eventually(t, "the history tells", func() bool {
		return strings.Contains(historyOf(t, s, c, g), "the sides differ: volume v, 512 bytes at 4096; the primary's bytes count by nodes")
	})
	s.tell(g, w, "a1", func(o *store.VerifyObserved) {
		equalNow(o)
		differing(o)
		o.Differences.First[0].Repaired = true
	})
	v := s.awaitVerified(c, g, store.VerifyEqual)
	if v.Proof.Differences != 1 || v.Differences.Count != 1 || !warns() {
		t.Errorf("%+v", v)
	}
	h := historyOf(t, s, c, g)
	if strings.Count(h, "the sides differ") != 1 || !strings.Contains(h, "and repaired from the primary") {
		t.Errorf("history:\n%s", h)
	}
	must[VerificationView](t)(c.Verify(s.ctx, caller, g, 0))
	if !warns() {
		t.Error("the warning is gone as soon as another verification begins")
	}
	must[struct{}](t)(struct{}{}, c.CancelVerify(s.ctx, caller, g))
	if v := s.awaitVerified(c, g, store.VerifyCancelled); v.Proof == nil || !warns() {
		t.Errorf("cancelled: %+v", v)
	}
	must[struct{}](t)(struct{}{}, c.CancelVerify(s.ctx, caller, g)) // nothing runs: nothing happens
	w = must[VerificationView](t)(c.Verify(s.ctx, caller, g, 0))
	s.tell(g, w, "a1", equalNow)
	if s.awaitVerified(c, g, store.VerifyEqual); warns() {
		t.Error("the warning stays after a verification that found nothing")
	}
}

// Goal: what cannot be verified is refused with what to do, and what is gone leaves nothing behind.
func TestVerifyRefusals(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	g, pairs := s.group(c, 1)
	verify := func(rate int64) error {
		_, err := c.Verify(s.ctx, caller, g, rate)
		return err
	}
	refused(t, verify(0), KindConflict, "")
	if err := verify(0); !strings.Contains(err.Error(), "synchronize it first") {
		t.Error(err)
	}
	refused(t, verify(-1), KindBadRequest, "")
	refused(t, verify(store.MaxVerifyRateMiB+1), KindBadRequest, "")
	stranger := caller
	stranger.Project = "p2"
	_, err := c.Verify(s.ctx, stranger, g, 0)
	refused(t, err, KindNotFound, "")
	refused(t, c.CancelVerify(s.ctx, stranger, g), KindNotFound, "")
	s.act(c, g, ActionSync)
	s.awaitGroup(c, g, StatusAvailable, ReplicationActive)
	s.silence("a1")
	s.kill("b1")
	refused(t, verify(0), KindConflict, codePeerUnreachable)
	s.start("b1")
	s.set(func() { s.mute["a1"] = false })
	s.awaitGroup(c, g, StatusAvailable, ReplicationActive)

	w := must[VerificationView](t)(c.Verify(s.ctx, caller, g, 0))
	s.tell(g, w, "a1", func(*store.VerifyObserved) {})
	s.act(c, g, ActionStop)
	s.awaitVerified(c, g, store.VerifyNotCompleted)
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, g, GroupUpdate{Remove: pairs}))
	s.awaitGroup(c, g, StatusAvailable, ReplicationInactive)
	refused(t, verify(0), KindConflict, "")
	if err := c.DeleteGroup(s.ctx, caller, g); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is left of the verification", func() bool {
		for key := range s.dump() {
			if strings.Contains(key, "verify/") {
				return false
			}
		}
		return true
	})
}

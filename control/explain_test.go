package control

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: in every condition a group says what it is, and of each action whether it would be taken
// now; what it says is refused is refused in the same words, and asking changes nothing.
func TestExplainSaysWhatActionsWouldAnswer(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	admin := caller
	admin.Admin = true
	id, _ := s.group(c, 2)
	s.awaitGroup(c, id, StatusAvailable, ReplicationInactive)

	expect := func(condition, reason string, allowed ...string) Explanation {
		t.Helper()
		var e Explanation
		eventually(t, "to explain leaves the store as it is", func() bool { // nodes and the controller write beside it
			before := s.dump()
			var err error
			if e, err = c.Explain(s.ctx, admin, id); err != nil {
				t.Fatal(err)
			}
			return reflect.DeepEqual(before, s.dump())
		})
		if e.Condition != condition || !strings.Contains(e.Reason, reason) {
			t.Errorf("condition %q (%q), want %q (%q)", e.Condition, e.Reason, condition, reason)
		}
		if e.Since.IsZero() {
			t.Errorf("%s: since is not known", condition)
		}
		var got []string
		for _, o := range e.Options {
			if o.Allowed {
				got = append(got, strings.TrimSuffix(o.Action+" "+string(o.Node), " "))
				if o.Effect == "" {
					t.Errorf("%s: what %s would do is not said", condition, o.Action)
				}
				continue
			}
			err := s.try(c, admin, id, o)
			if o.Action == optionForced { // it is refused for its token before all else
				if err == nil || o.Refusal == "" {
					t.Errorf("%s: a forced failover is explained with %q and answers %v", condition, o.Refusal, err)
				}
				continue
			}
			if err == nil || !strings.HasSuffix(err.Error(), o.Refusal) || o.Refusal == "" {
				t.Errorf("%s: %s %s is explained with %q and answers %v", condition, o.Action, o.Node, o.Refusal, err)
			}
		}
		if !slices.Equal(got, allowed) {
			t.Errorf("%s: taken now are %q, want %q", condition, got, allowed)
		}
		return e
	}

	expect("never synchronized", "", "sync", "stop", "extend")
	s.act(c, id, ActionSync)
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	inSync := expect("in sync", "", "failover", "sync", "reverse", "stop", "extend", "verify")

	s.silence("b1")
	s.act(c, id, ActionFailover)
	s.awaitGroup(c, id, StatusFailovering, ReplicationActive)
	s.kill("b1")
	e := expect("failovering", "b1 is not alive", "back-out")
	if len(e.Waiting) != 1 || !strings.Contains(e.Waiting[0], "node b1") || !strings.Contains(e.Waiting[0], "not alive") {
		t.Errorf("waits for %q", e.Waiting)
	}
	if e.Since.Before(inSync.Since) {
		t.Errorf("failovering since %s, before it was in sync at %s", e.Since, inSync.Since)
	}
	if err := c.Declare(s.ctx, admin, id, StateBackOut, "", "az2 died"); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusErrorFailovered, ReplicationInactive)
	e = expect("not in sync", "az2 died", "stop", "accept-lost-secondary b1")
	if !slices.ContainsFunc(e.Waiting, func(w string) bool { return strings.Contains(w, "synchronization") }) {
		t.Errorf("waits for %q", e.Waiting)
	}
	s.set(func() { s.mute["b1"] = false })
	s.start("b1")
	s.act(c, id, ActionSync)
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	s.act(c, id, ActionStop)
	e = expect("paused", "", "sync", "stop", "extend", "forced-failover")
	if o := e.Options[len(Actions)+1]; !strings.Contains(o.Effect, "az2 becomes the primary") || !strings.Contains(o.Effect, "0 bytes") {
		t.Errorf("a forced failover would do: %q", o.Effect)
	}
	s.act(c, id, ActionSync)
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	s.act(c, id, ActionFailover)
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	expect("failed over", "", "sync", "stop", "reprotect")
}

// try calls what an option names, for real.
func (s *site) try(c *Controller, who Caller, id lockstep.GroupID, o Option) error {
	if slices.Contains(Statements, Statement(o.Action)) {
		return c.Declare(s.ctx, who, id, Statement(o.Action), o.Node, "tried")
	}
	if o.Action == optionForced {
		return c.ForceFailover(s.ctx, who, id, "no token")
	}
	if o.Action == optionVerify {
		_, err := c.Verify(s.ctx, who, id, 0)
		return err
	}
	var ext []Extend
	if o.Action == string(ActionExtend) {
		ext = []Extend{{Pair: s.record(id).Members[0].Pair, SizeGiB: 2}}
	}
	return c.Act(s.ctx, who, id, Action(o.Action), ext)
}

// Goal: statements are for the role admin, and a group of another project does not exist.
func TestExplainIsForThoseWhoMayAct(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	e, err := c.Explain(s.ctx, caller, id)
	if err != nil || len(e.Options) != len(Actions)+2 {
		t.Fatalf("%d options, %v", len(e.Options), err)
	}
	_, err = c.Explain(s.ctx, Caller{Project: "other", Admin: true}, id)
	refused(t, err, KindNotFound, "")
}

// Goal: since is when the condition began, not when the record last changed.
func TestSinceIsWhenTheConditionBegan(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	first, err := c.Explain(s.ctx, caller, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetStrict(s.ctx, caller, id, true); err != nil { // a new epoch, in sync as before
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	again, err := c.Explain(s.ctx, caller, id)
	if err != nil || again.Epoch == first.Epoch || !again.Since.Equal(first.Since) || first.Since.IsZero() {
		t.Fatalf("epoch %d since %s, then epoch %d since %s, %v", first.Epoch, first.Since, again.Epoch, again.Since, err)
	}
}

// Goal: what is held and by whom, and what the other side lacks, is said.
func TestExplainNamesHeldNodesAndWhatIsBehind(t *testing.T) {
	now := newStamp().now()
	r := protocol.Record{
		Group: "g", Epoch: 9, State: protocol.StateTripping, InSync: true, Intent: protocol.IntentRun, Primary: "az1", Secondary: "az2",
		Members: []protocol.Member{{Pair: "p", Replicas: [2]protocol.Replica{{Volume: "v1", Node: "n1", AZ: "az1"}, {Volume: "v2", Node: "n2", AZ: "az2"}}}},
	}
	seen := map[lockstep.NodeID]Sight{"n1": {GroupObserved: store.GroupObserved{
		Node: "n1", Epoch: 9, Why: "tripping: no answer", Peers: map[lockstep.NodeID]store.PeerObserved{"n2": {}},
		Volumes: map[lockstep.VolumeID]store.ReplicaObserved{"v1": {DirtyBytes: 65536}},
	}, HeldSince: now.Add(-2 * heldAfter)}}
	f := inspect(r, seen, map[lockstep.NodeID]bool{"n1": true}, now)
	got := waiting(r, map[lockstep.NodeID]protocol.Answer{"n1": {Epoch: 8, Step: protocol.StepTripping}}, seen, f)
	if len(f.held) != 1 || len(got) != 1 || !strings.Contains(got[0], "node n1 has not answered") {
		t.Errorf("held %q, waits for %q", f.held, got)
	}
	if n := behind(r, seen); n != 0 {
		t.Errorf("in sync, and %d bytes are missing", n)
	}
	r.InSync = false
	if n := behind(r, seen); n != 65536 {
		t.Errorf("%d bytes are missing, want 65536", n)
	}
}

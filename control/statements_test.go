package control

import (
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// Goal: an operator's word lets a trip end without a dead primary node, but only once every
// secondary of that node has fenced it, and it counts for that one epoch.
func TestContinueFencesThroughSecondaries(t *testing.T) {
	member := func(pair, p, s string) protocol.Member {
		return protocol.Member{Pair: lockstep.PairID(pair), InSyncEpoch: 3, Replicas: [2]protocol.Replica{
			{Volume: lockstep.VolumeID(pair + "-p"), Node: lockstep.NodeID(p), AZ: "az1"},
			{Volume: lockstep.VolumeID(pair + "-s"), Node: lockstep.NodeID(s), AZ: "az2"},
		}}
	}
	r := protocol.Record{
		Group: "g", Epoch: 4, State: protocol.StateNormal, InSync: true, Intent: protocol.IntentRun, Primary: "az1", Secondary: "az2",
		InSyncEpoch: 3, Members: []protocol.Member{member("a", "p1", "s1"), member("b", "p2", "s2"), member("c", "p2", "s1")},
	}
	if _, err := r.Continue(); err == nil {
		t.Fatal("continue was taken while nothing trips")
	}
	r, err := r.Trip(4, protocol.CauseLink, "cut")
	if err != nil {
		t.Fatal(err)
	}
	answers := map[lockstep.NodeID]protocol.Answer{}
	say := func(node lockstep.NodeID, step protocol.Step) {
		answers[node] = protocol.Answer{Group: "g", Node: node, Epoch: r.Epoch, Step: step, BootID: "b", Healthy: true}
	}
	say("p1", protocol.StepTripping)
	say("s1", protocol.StepFenced)
	say("s2", protocol.StepFenced)
	if _, _, ok := protocol.Advance(r, answers, false); ok {
		t.Fatal("the trip ended without continue, although p2 did not confirm")
	}
	stated, err := r.Continue()
	if err != nil || stated.Epoch != r.Epoch {
		t.Fatalf("continue: epoch %d, %v", stated.Epoch, err)
	}
	delete(answers, "s2")
	if _, _, ok := protocol.Advance(stated, answers, false); ok {
		t.Fatal("p2 counts as fenced although s2, which holds one of its volumes, did not fence it")
	}
	say("s2", protocol.StepFenced)
	next, used, ok := protocol.Advance(stated, answers, false)
	if !ok || next.InSync || next.State != protocol.StateNormal || len(used) != 3 {
		t.Fatalf("not tripped: %v, %v, %v", next.Describe(), used, ok)
	}
	stated.Epoch++ // as after a way back and another trip
	for n, a := range answers {
		a.Epoch = stated.Epoch
		answers[n] = a
	}
	if _, _, ok := protocol.Advance(stated, answers, false); ok {
		t.Fatal("continue of an earlier epoch counted")
	}
}

// Goal: a failover whose secondary dies before it answers holds a primary that is well; an operator
// takes it back, by way of tripping, for what the secondary did is not known. Nobody else may.
func TestBackOutOfAFailoverThatDoesNotEnd(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	admin := caller
	admin.Admin = true
	refused(t, c.Declare(s.ctx, admin, id, StateBackOut, "", "nothing to take back"), KindConflict, "")
	s.silence("b1")
	s.act(c, id, ActionFailover)
	s.awaitGroup(c, id, StatusFailovering, ReplicationActive)
	s.kill("b1")
	refused(t, c.Declare(s.ctx, caller, id, StateBackOut, "", "not an admin"), KindForbidden, "")
	refused(t, c.Declare(s.ctx, admin, id, StateBackOut, "", ""), KindBadRequest, "")
	if err := c.Declare(s.ctx, admin, id, StateBackOut, "", "az2 died"); err != nil {
		t.Fatal(err)
	}
	g := s.awaitGroup(c, id, StatusErrorFailovered, ReplicationInactive)
	if r := s.record(id); r.InSync || r.Primary != "az1" || r.State != protocol.StateNormal || !strings.Contains(g.Reason, "az2 died") {
		t.Fatalf("%s: %q", r.Describe(), g.Reason)
	}
	s.set(func() { s.mute["b1"] = false })
	s.start("b1")
	s.act(c, id, ActionSync)
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
}

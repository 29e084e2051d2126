package protocol

import (
	"reflect"
	"testing"

	"github.com/lockstep-dr/lockstep"
)

type answers = map[lockstep.NodeID]Answer

// ans is a good answer of a node at epoch 10.
func ans(node lockstep.NodeID, step Step, change ...func(*Answer)) Answer {
	a := Answer{Group: "g", Node: node, Epoch: 10, Step: step, BootID: lockstep.BootID("b" + node), Instance: "i" + string(node), Healthy: true}
	if step == StepTwoSided || step == StepReversed {
		peer := lockstep.NodeID("s" + string(node[1:]))
		a.PeerBoots = map[lockstep.NodeID]lockstep.BootID{peer: lockstep.BootID("b" + peer)}
		a.PeerInstances = map[lockstep.NodeID]string{peer: "i" + string(peer)}
	}
	for _, c := range change {
		c(&a)
	}
	return a
}

func with(list ...Answer) answers {
	m := answers{}
	for _, a := range list {
		m[a.Node] = a
	}
	return m
}

func old(a *Answer)     { a.Epoch = 9 }
func foreign(a *Answer) { a.Group = "h" }
func sick(a *Answer)    { a.Healthy, a.Error = false, "I/O error" }
func back(a *Answer)    { a.PeersBack = true }
func drained(a *Answer) { a.Drained = true }
func reborn(a *Answer)  { a.BootID = "other" }
func peerReborn(a *Answer) {
	for id := range a.PeerBoots {
		a.PeerBoots[id] = "other"
	}
}
func peerUnknown(a *Answer) { a.PeerBoots = nil }

func TestAdvance(t *testing.T) {
	byPause := func(r *Record) { r.Intent, r.Cause = IntentPaused, CausePause }
	byF5 := func(r *Record) { r.Cause = CausePrimaryBoot }
	for _, c := range []struct {
		name     string
		rec      Record
		answers  answers
		patience bool
		ok       bool
		used     []lockstep.NodeID
		want     func(Record) bool
	}{
		{name: "normal stays", rec: rec(StateNormal, true), answers: with(ans(p1, StepAdopted)), patience: true},
		{name: "deleted stays", rec: rec(StateDeleted, false), patience: true},

		{
			name: "tripped by all", rec: rec(StateTripping, true), answers: with(ans(p1, StepTripping), ans(p2, StepTripping)), ok: true, used: []lockstep.NodeID{p1, p2},
			want: func(r Record) bool { return r.State == StateNormal && !r.InSync && r.InSyncEpoch == 5 },
		},
		{name: "one is missing", rec: rec(StateTripping, true), answers: with(ans(p1, StepTripping))},
		{name: "one is of the epoch before", rec: rec(StateTripping, true), answers: with(ans(p1, StepTripping), ans(p2, StepTripping, old))},
		{name: "one is of another group", rec: rec(StateTripping, true), answers: with(ans(p1, StepTripping), ans(p2, StepTripping, foreign))},
		{name: "one has a sick volume", rec: rec(StateTripping, true), answers: with(ans(p1, StepTripping), ans(p2, StepTripping, sick)), patience: true},
		{name: "secondaries do not confirm a trip", rec: rec(StateTripping, true), answers: with(ans(p1, StepTripping), ans(s1, StepTripping), ans(s2, StepTripping)), patience: true},
		{
			name: "way back", rec: rec(StateTripping, true), answers: with(ans(p1, StepTripping, back)), patience: true, ok: true, used: []lockstep.NodeID{p1},
			want: func(r Record) bool {
				return r.State == StateNormal && r.InSync && r.InSyncEpoch == 11 && r.BootIDs[p2] == "bp2"
			},
		},
		{name: "way back only with patience", rec: rec(StateTripping, true), answers: with(ans(p1, StepTripping, back))},
		{name: "no way back while a held node misses its secondary", rec: rec(StateTripping, true), answers: with(ans(p1, StepTripping, back), ans(p2, StepTripping, sick)), patience: true},
		{name: "no way back by nobody", rec: rec(StateTripping, true), patience: true},
		{name: "no way back after both rebooted", rec: rec(StateTripping, true, byF5), answers: with(ans(p1, StepTripping, back)), patience: true},
		{
			name: "a pause that drained", rec: rec(StateTripping, true, byPause), answers: with(ans(p1, StepTripping, drained), ans(p2, StepTripping, drained)), ok: true, used: []lockstep.NodeID{p1, p2},
			want: func(r Record) bool { return r.Drained && r.Cause == CausePause && r.Intent == IntentPaused },
		},
		{
			name: "a pause that did not drain", rec: rec(StateTripping, true, byPause), answers: with(ans(p1, StepTripping, drained), ans(p2, StepTripping)), ok: true, used: []lockstep.NodeID{p1, p2},
			want: func(r Record) bool { return !r.Drained && r.Cause == CauseLink && r.Intent == IntentPaused },
		},
		{
			name: "a pause that goes back has failed", rec: rec(StateTripping, true, byPause), answers: with(ans(p1, StepTripping, back)), patience: true, ok: true, used: []lockstep.NodeID{p1},
			want: func(r Record) bool { return r.InSync && r.Intent == IntentRun },
		},

		{
			name: "copied", rec: rec(StateCopying, false), answers: with(ans(p1, StepTwoSided, reborn), ans(p2, StepTwoSided)), ok: true, used: []lockstep.NodeID{p1, p2},
			want: func(r Record) bool {
				return r.InSync && r.State == StateNormal && r.InSyncEpoch == 11 && r.BootIDs[p1] == "other" && r.BootIDs[s1] == "bs1" && r.Members[1].InSyncEpoch == 11
			},
		},
		{name: "copying: one missing", rec: rec(StateCopying, false), answers: with(ans(p1, StepTwoSided)), patience: true},
		{name: "copying: one sick", rec: rec(StateCopying, false), answers: with(ans(p1, StepTwoSided), ans(p2, StepTwoSided, sick)), patience: true},
		{name: "copying: a secondary's flush is unknown", rec: rec(StateCopying, false), answers: with(ans(p1, StepTwoSided), ans(p2, StepTwoSided, peerUnknown)), patience: true},

		{
			name: "failed over, fenced", rec: rec(StateFailovering, true), answers: with(ans(s1, StepReady), ans(s2, StepReady), ans(p1, StepHeld), ans(p2, StepHeld)), ok: true, used: []lockstep.NodeID{s1, s2, p1, p2},
			want: func(r Record) bool { return r.FailedOver && r.Fenced && !r.InSync && r.Primary == "az2" },
		},
		{
			name: "failed over, an old primary is silent", rec: rec(StateFailovering, true), answers: with(ans(s1, StepReady), ans(s2, StepReady), ans(p1, StepHeld)), ok: true, used: []lockstep.NodeID{s1, s2},
			want: func(r Record) bool { return r.FailedOver && !r.Fenced },
		},
		{name: "a silent secondary keeps it failovering", rec: rec(StateFailovering, true), answers: with(ans(s1, StepReady), ans(p1, StepHeld), ans(p2, StepHeld)), patience: true},
		{
			name: "a rebooted secondary", rec: rec(StateFailovering, true), answers: with(ans(s1, StepReady, reborn)), ok: true, used: []lockstep.NodeID{s1},
			want: func(r Record) bool { return r.State == StateTripping && r.InSync && r.Cause == CauseBackOut },
		},
		{
			name: "a secondary with a failed disk", rec: rec(StateFailovering, true), answers: with(ans(s1, StepReady), ans(s2, StepReady, sick)), ok: true, used: []lockstep.NodeID{s2},
			want: func(r Record) bool { return r.State == StateNormal && r.InSync && r.Primary == "az1" },
		},

		{
			name: "reversed", rec: rec(StateReversing, true), answers: with(ans(p1, StepReversed), ans(p2, StepReversed)), ok: true, used: []lockstep.NodeID{p1, p2},
			want: func(r Record) bool {
				return r.InSync && r.Primary == "az2" && r.InSyncEpoch == 11 && r.BootIDs[p1] == "bp1"
			},
		},
		{name: "reversing: one missing", rec: rec(StateReversing, true), answers: with(ans(p1, StepReversed)), patience: true},
		{
			name: "reversing: one gave up", rec: rec(StateReversing, true), answers: with(ans(p1, StepReversed), ans(p2, StepGaveUp)), ok: true, used: []lockstep.NodeID{p2},
			want: func(r Record) bool { return r.InSync && r.Primary == "az1" && r.State == StateNormal },
		},
		{
			name: "reversing: a primary rebooted", rec: rec(StateReversing, true), answers: with(ans(p1, StepReversed, reborn)), ok: true, used: []lockstep.NodeID{p1},
			want: func(r Record) bool { return r.InSync && r.Primary == "az1" && r.BootIDs[p1] == "bp1" },
		},
		{
			name: "reversing: a secondary rebooted", rec: rec(StateReversing, true), answers: with(ans(p2, StepReversed, peerReborn)), ok: true, used: []lockstep.NodeID{p2},
			want: func(r Record) bool { return r.InSync && r.Primary == "az1" },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := c.rec.Clone()
			is, used, ok := Advance(c.rec, c.answers, c.patience)
			if ok != c.ok {
				t.Fatalf("ok is %v: %s", ok, is.Describe())
			}
			if !reflect.DeepEqual(before, c.rec) {
				t.Error("the old record was changed in place")
			}
			if !ok {
				return
			}
			if is.Epoch != 11 || !c.want(is) {
				t.Errorf("unexpected: %+v", is)
			}
			if !reflect.DeepEqual(used, c.used) {
				t.Errorf("used %v, want %v", used, c.used)
			}
		})
	}
}

// TestTwoLivesOfOneSecondary: two primary nodes flushed one secondary before and after its reboot.
func TestTwoLivesOfOneSecondary(t *testing.T) {
	r := rec(StateCopying, false)
	r.Members[1] = member("b", "p2", "s1")
	one := ans(p1, StepTwoSided)
	two := ans(p2, StepTwoSided)
	two.PeerBoots = map[lockstep.NodeID]lockstep.BootID{s1: "other"}
	if _, _, ok := Advance(r, with(one, two), true); ok {
		t.Error("committed in sync with two lives of one secondary")
	}
}

// Goal: a rebooted secondary ends a failover by way of tripping even if another one, asked first, says
// that it is unhealthy: in sync must not be kept with it.
func TestRebootedSecondaryCountsBeforeAnUnhealthyOne(t *testing.T) {
	r := rec(StateFailovering, true)
	have := answers{
		s1: {Group: r.Group, Node: s1, Epoch: r.Epoch, Step: StepReady, BootID: "bs1", Error: "full"},
		s2: {Group: r.Group, Node: s2, Epoch: r.Epoch, Step: StepReady, BootID: "reborn", Healthy: true},
	}
	next, _, ok := Advance(r, have, false)
	if !ok || next.State != StateTripping {
		t.Errorf("%v, %s", ok, next.Describe())
	}
	delete(have, s2)
	if next, _, ok = Advance(r, have, false); !ok || next.State != StateNormal || !next.InSync {
		t.Errorf("%v, %s", ok, next.Describe())
	}
}

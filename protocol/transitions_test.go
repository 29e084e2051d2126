package protocol

import (
	"errors"
	"reflect"
	"testing"

	"github.com/lockstep-dr/lockstep"
)

const (
	p1 = lockstep.NodeID("p1")
	p2 = lockstep.NodeID("p2")
	s1 = lockstep.NodeID("s1")
	s2 = lockstep.NodeID("s2")
)

func member(pair, p, s string) Member {
	return Member{Pair: lockstep.PairID(pair), SizeBytes: 1 << 20, Replicas: [2]Replica{
		{Volume: lockstep.VolumeID(pair + "-p"), Node: lockstep.NodeID(p), AZ: "az1"},
		{Volume: lockstep.VolumeID(pair + "-s"), Node: lockstep.NodeID(s), AZ: "az2"},
	}}
}

// rec is a group of two pairs over four nodes, once in sync at epoch 5, now at epoch 10.
func rec(state State, inSync bool, change ...func(*Record)) Record {
	r := NewGroup("g", "proj", "az1", "az2", []Member{member("a", "p1", "s1"), member("b", "p2", "s2")})
	r.Epoch, r.State, r.InSync, r.Intent, r.Cause, r.InSyncEpoch = 10, state, inSync, IntentRun, CauseNone, 5
	r.Fenced = false
	for i := range r.Members {
		r.Members[i].InSyncEpoch = 5
	}
	r.BootIDs = map[lockstep.NodeID]lockstep.BootID{p1: "bp1", p2: "bp2", s1: "bs1", s2: "bs2"}
	r.Instances = map[lockstep.NodeID]string{p1: "ip1", p2: "ip2", s1: "is1", s2: "is2"}
	for _, c := range change {
		c(&r)
	}
	return r
}

func failedOver(r *Record) { r.FailedOver = true; r.Primary, r.Secondary = "az2", "az1" }
func paused(r *Record)     { r.Intent = IntentPaused }
func neverSynced(r *Record) {
	r.InSyncEpoch, r.BootIDs = 0, nil
	for i := range r.Members {
		r.Members[i].InSyncEpoch = 0
	}
}
func extending(r *Record) { r.Members[0].ExtendBytes = 2 << 20 }
func empty(r *Record)     { r.Members = nil }

// everywhere lists a record for each condition a group can be in.
func everywhere() map[string]Record {
	return map[string]Record{
		"in sync": rec(StateNormal, true), "out": rec(StateNormal, false), "new": rec(StateNormal, false, neverSynced),
		"paused": rec(StateNormal, false, paused), "failed over": rec(StateNormal, false, failedOver),
		"tripping": rec(StateTripping, true), "copying": rec(StateCopying, false),
		"failovering": rec(StateFailovering, true), "reversing": rec(StateReversing, true),
		"deleted": rec(StateDeleted, false), "extending": rec(StateNormal, false, extending), "empty": rec(StateNormal, false, empty),
	}
}

func TestTransitions(t *testing.T) {
	for _, tr := range []struct {
		name    string
		do      func(Record) (Record, error)
		allowed []string
		want    func(t *testing.T, was, is Record)
	}{
		{"trip", func(r Record) (Record, error) { return r.Trip(10, CauseLink, "silence") }, []string{"in sync"}, func(t *testing.T, _, is Record) {
			expect(t, is.State == StateTripping && is.InSync && is.Cause == CauseLink && is.Reason == "silence", is)
		}},
		{"trip of another epoch", func(r Record) (Record, error) { return r.Trip(9, CauseLink, "") }, nil, nil},
		{"sync", Record.Sync, []string{"out", "new", "paused", "failed over"}, func(t *testing.T, was, is Record) {
			expect(t, is.State == StateCopying && !is.InSync && is.Intent == IntentRun && !is.FailedOver && is.Primary == was.Primary, is)
		}},
		{"abort", func(r Record) (Record, error) { return r.AbortCopy(10, CauseCopyAborted, "x") }, []string{"copying"}, func(t *testing.T, _, is Record) {
			expect(t, is.State == StateNormal && !is.InSync && is.Cause == CauseCopyAborted, is)
		}},
		{"abort of another epoch", func(r Record) (Record, error) { return r.AbortCopy(11, CauseCopyAborted, "x") }, nil, nil},
		{"failover", Record.Failover, []string{"in sync", "tripping"}, func(t *testing.T, _, is Record) {
			expect(t, is.State == StateFailovering && is.InSync, is)
		}},
		{"back-out, intact", func(r Record) (Record, error) { return r.BackOut(true, "x") }, []string{"failovering"}, func(t *testing.T, was, is Record) {
			expect(t, is.State == StateNormal && is.InSync && is.InSyncEpoch == is.Epoch && reflect.DeepEqual(is.BootIDs, was.BootIDs), is) // [F17]
		}},
		{"back-out, not intact", func(r Record) (Record, error) { return r.BackOut(false, "x") }, []string{"failovering"}, func(t *testing.T, _, is Record) {
			expect(t, is.State == StateTripping && is.InSync && is.Cause == CauseBackOut && is.InSyncEpoch == 5, is)
		}},
		{"reverse", Record.Reverse, []string{"in sync"}, func(t *testing.T, was, is Record) {
			expect(t, is.State == StateReversing && is.InSync && is.Primary == was.Primary, is)
		}},
		{"undo of reverse", func(r Record) (Record, error) { return r.UndoReverse("x") }, []string{"reversing"}, func(t *testing.T, was, is Record) {
			expect(t, is.State == StateNormal && is.InSync && is.Primary == was.Primary && reflect.DeepEqual(is.BootIDs, was.BootIDs), is)
		}},
		{"delete", Record.Delete, []string{"out", "new", "paused", "failed over", "extending", "empty", "deleted"}, func(t *testing.T, _, is Record) {
			expect(t, is.State == StateDeleted, is)
		}},
		{"members", func(r Record) (Record, error) {
			return r.SetMembers([]Member{member("a", "p1", "s1"), member("c", "p1", "s2")})
		}, []string{"out", "new", "paused", "failed over", "extending", "empty"}, func(t *testing.T, was, is Record) {
			expect(t, len(is.Members) == 2 && is.Members[1].InSyncEpoch == 0, is)
			if len(was.Members) > 0 {
				expect(t, is.Members[0].InSyncEpoch == was.Members[0].InSyncEpoch, is)
			}
		}},
		{"renew boot", func(r Record) (Record, error) { return r.RenewBoot(10, p1, "new", "dir", false) }, []string{"in sync", "out", "new", "paused", "failed over", "tripping", "copying", "reversing", "extending", "empty"}, func(t *testing.T, was, is Record) {
			expect(t, is.State == was.State && is.InSync == was.InSync && is.BootIDs[p1] == "new" && is.Instances[p1] == "dir" && was.BootIDs[p1] != "new", is)
		}},
		{"renew boot of another epoch", func(r Record) (Record, error) { return r.RenewBoot(9, p1, "new", "dir", false) }, nil, nil},
	} {
		t.Run(tr.name, func(t *testing.T) {
			allowed := map[string]bool{}
			for _, a := range tr.allowed {
				allowed[a] = true
			}
			for name, was := range everywhere() {
				before := was.Clone()
				is, err := tr.do(was)
				if !reflect.DeepEqual(before, was) {
					t.Errorf("%s: the old record was changed in place", name)
				}
				if !allowed[name] {
					var r *RefusedError
					if !errors.As(err, &r) || !reflect.DeepEqual(is, was) {
						t.Errorf("%s: want a refusal and the same record, have %v, %s", name, err, is.Describe())
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if was.State != StateDeleted && is.Epoch != was.Epoch+1 {
					t.Errorf("%s: epoch %d after %d", name, is.Epoch, was.Epoch)
				}
				tr.want(t, was, is)
			}
		})
	}
}

func expect(t *testing.T, ok bool, is Record) {
	t.Helper()
	if !ok {
		t.Errorf("unexpected: %+v", is)
	}
}

func TestPause(t *testing.T) {
	for name, c := range map[string]struct {
		state   State
		inSync  bool
		refused bool
		raised  bool
	}{
		"in sync": {state: StateTripping, inSync: true, raised: true}, "out": {state: StateNormal}, "new": {state: StateNormal},
		"paused": {state: StateNormal}, "failed over": {state: StateNormal}, "tripping": {state: StateTripping, inSync: true},
		"copying": {state: StateNormal, raised: true}, "failovering": {refused: true}, "reversing": {refused: true}, "deleted": {refused: true},
	} {
		was := everywhere()[name]
		is, err := was.Pause()
		if c.refused {
			if err == nil {
				t.Errorf("%s: not refused", name)
			}
			continue
		}
		if err != nil || is.State != c.state || is.InSync != c.inSync || is.Intent != IntentPaused || (is.Epoch > was.Epoch) != c.raised {
			t.Errorf("%s: %v, %s", name, err, is.Describe())
		}
	}
}

func TestSyncRefusals(t *testing.T) {
	for _, name := range []string{"extending", "empty"} {
		if _, err := everywhere()[name].Sync(); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

func TestSetSizes(t *testing.T) {
	sizes := map[lockstep.PairID]int64{"a": 2 << 20}
	is, err := rec(StateNormal, true).SetSizes(sizes)
	if err != nil || is.Members[0].SizeBytes != 2<<20 || is.Members[1].SizeBytes != 1<<20 || is.InSyncEpoch != is.Epoch {
		t.Errorf("%v, %+v", err, is)
	}
	if _, err := rec(StateNormal, false).SetSizes(map[lockstep.PairID]int64{"a": 1}); err == nil {
		t.Error("a volume may shrink")
	}
	for _, state := range []State{StateTripping, StateFailovering, StateReversing, StateDeleted} {
		if _, err := rec(state, state == StateTripping).SetSizes(sizes); err == nil {
			t.Errorf("extended while %s", state)
		}
	}
}

// TestSetSizesWhileCopying: the copying goes on at the new epoch. For a node it is what an abort, the
// new sizes and another sync would be, if it had missed the epochs in between.
func TestSetSizesWhileCopying(t *testing.T) {
	sizes := map[lockstep.PairID]int64{"a": 2 << 20}
	for name, from := range map[string]Record{
		"once in sync": rec(StateCopying, false, extending),
		"new":          rec(StateCopying, false, neverSynced, extending),
		"reprotect":    rec(StateCopying, false, func(r *Record) { r.Primary, r.Secondary = "az2", "az1" }, extending),
	} {
		is, err := from.SetSizes(sizes)
		if err != nil || is.Epoch != from.Epoch+1 || is.Members[0].SizeBytes != 2<<20 || is.Members[0].ExtendBytes != 0 {
			t.Fatalf("%s: %v, %+v", name, err, is)
		}
		want, err := from.AbortCopy(from.Epoch, CauseCopyAborted, "")
		if err == nil {
			want, err = want.SetSizes(sizes)
		}
		if err == nil {
			want, err = want.Sync()
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want.Epoch, want.Cause = is.Epoch, is.Cause
		if !reflect.DeepEqual(is, want) {
			t.Errorf("%s: %+v, want %+v", name, is, want)
		}
		// Reports of the epoch before end nothing.
		answers := map[lockstep.NodeID]Answer{}
		for _, n := range from.PrimaryNodes() {
			a := Answer{Group: "g", Node: n, Epoch: from.Epoch, Step: StepTwoSided, Healthy: true, BootID: "b", PeerBoots: map[lockstep.NodeID]lockstep.BootID{}}
			for _, peer := range from.PeersOf(n, from.Primary) {
				a.PeerBoots[peer] = "b"
			}
			answers[n] = a
		}
		if next, _, ok := Advance(from, answers, false); !ok || next.Members[0].ExtendBytes != 2<<20 {
			t.Errorf("%s: a pending extend changes the commit: %v, %+v", name, ok, next)
		}
		if _, _, ok := Advance(is, answers, false); ok {
			t.Errorf("%s: in sync by reports of the epoch before", name)
		}
	}
}

func TestRenewBootByF5GoesThroughTripping(t *testing.T) { // [F5] [F18]
	is, err := rec(StateNormal, true).RenewBoot(10, p1, "new", "dir", true)
	if err != nil || is.State != StateTripping || !is.InSync || is.Cause != CausePrimaryBoot {
		t.Errorf("%v, %s", err, is.Describe())
	}
	for _, state := range []State{StateFailovering, StateDeleted} {
		if _, err := rec(state, state == StateFailovering).RenewBoot(10, p1, "new", "dir", false); err == nil {
			t.Errorf("%s: not refused", state)
		}
	}
}

func TestNodesAndPeers(t *testing.T) {
	r := rec(StateNormal, true)
	r.Members = append(r.Members, member("c", "p1", "s2"))
	for name, c := range map[string]struct{ have, want []lockstep.NodeID }{
		"primaries":          {r.PrimaryNodes(), []lockstep.NodeID{p1, p2}},
		"secondaries":        {r.SecondaryNodes(), []lockstep.NodeID{s1, s2}},
		"all":                {r.Nodes(), []lockstep.NodeID{p1, p2, s1, s2}},
		"peers of p1":        {r.PeersOf(p1, "az1"), []lockstep.NodeID{s1, s2}},
		"peers of s2":        {r.PeersOf(s2, "az2"), []lockstep.NodeID{p1, p2}},
		"peers of a foreign": {r.PeersOf("x", "az1"), nil},
	} {
		if !reflect.DeepEqual(c.have, c.want) {
			t.Errorf("%s: %v", name, c.have)
		}
	}
}

package protocol

import (
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
)

// next gives the record after a transition that must be possible.
func then(t *testing.T) func(Record, error) Record {
	return func(r Record, err error) Record {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// Goal: no record that follows from a persisted one by legal steps contradicts it, for any of the nodes
// that must have persisted what lies between; and epochs that an older copy of the store makes by itself
// do, if they would change what was acknowledged where. (R93)
func TestContradicts(t *testing.T) {
	step := then(t)
	answer := func(r Record, node lockstep.NodeID, s Step) Answer {
		return Answer{
			Group: r.Group, Node: node, Epoch: r.Epoch, Step: s, Healthy: true, BootID: r.BootIDs[node], Instance: r.Instances[node],
			PeerBoots: r.BootIDs, PeerInstances: r.Instances,
		}
	}
	end := func(r Record, primaries, secondaries Step) Record {
		t.Helper()
		as := map[lockstep.NodeID]Answer{}
		for _, n := range r.PrimaryNodes() {
			as[n] = answer(r, n, primaries)
		}
		for _, n := range r.SecondaryNodes() {
			as[n] = answer(r, n, secondaries)
		}
		n, _, ok := Advance(r, as, true)
		if !ok {
			t.Fatalf("%s does not end", r.Describe())
		}
		return n
	}
	start := rec(StateNormal, true)
	history := []Record{start}
	add := func(r Record) Record { history = append(history, r); return r }
	r := add(step(start.SetStrict(true)))
	r = add(step(r.Trip(r.Epoch, CauseLink, "cut")))
	r = add(end(r, StepTripping, ""))
	r = add(step(r.SetMembers(r.Members)))
	r = add(step(r.Sync()))
	r = add(end(r, StepTwoSided, ""))
	r = add(step(r.Reverse()))
	r = add(end(r, StepReversed, ""))
	r = add(step(r.Failover()))
	r = add(end(r, StepHeld, StepReady))
	r = add(step(r.Sync()))
	r = add(end(r, StepTwoSided, ""))
	r = add(step(r.Pause()))
	r = add(end(r, StepTripping, ""))
	r = add(step(r.ForceFailover(r.Epoch, nil)))
	r = add(end(r, StepHeld, StepReady))
	r = add(step(r.Sync()))
	add(end(r, StepTwoSided, ""))
	for i, was := range history {
		if i+1 < len(history) {
			for _, node := range start.Nodes() {
				if history[i+1].Contradicts(was, node) {
					t.Errorf("%s: %s would contradict it at %s", was.Describe(), history[i+1].Describe(), node)
				}
			}
		}
		same := was.Clone() // what changes within an epoch
		same.Intent, same.Reason, same.ContinueAt, same.Untold = IntentPaused, "another", was.Epoch, []lockstep.NodeID{"gone"}
		same.Off, same.Lost = map[lockstep.NodeID]lockstep.Epoch{p1: was.Epoch}, map[lockstep.NodeID]lockstep.Epoch{s1: 5}
		same.Members[0].ExtendBytes = 1 << 40
		same = same.DiscardImage(3)
		if same.Contradicts(was, p1) || was.Contradicts(same, s1) {
			t.Errorf("%s: what changes within an epoch contradicts it", was.Describe())
		}
	}

	// What an older copy goes on to make.
	fork := func(n int) Record {
		r := start
		for i := range n {
			r = step(r.SetStrict(i%2 == 0))
		}
		return r
	}
	tripped := end(step(start.Trip(10, CauseLink, "cut")), StepTripping, "")
	over := end(step(start.Failover()), StepHeld, StepReady)
	for name, c := range map[string]struct {
		fork, was Record
		node      lockstep.NodeID
		want      bool
	}{
		"in sync at the same epoch":              {fork(2), tripped, p1, true},
		"in sync at a later one":                 {fork(4), tripped, p1, true},
		"the old primary at a later one":         {fork(4), over, s1, true},
		"the old primary, seen by itself":        {fork(4), over, p1, true},
		"out of sync, by another commit":         {end(step(fork(1).Trip(11, CauseLink, "")), StepTripping, ""), over, s1, true},
		"an older one, which is said elsewhere":  {start, over, s1, false},
		"nothing persisted":                      {fork(2), Record{}, p1, false},
		"recovered since":                        {tripped.Recovered(40, false), over, s1, false},
		"a policy changed by the store as it is": {step(tripped.SetStrict(true)), tripped, p1, false},
	} {
		if got := c.fork.Contradicts(c.was, c.node); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Goal: a node that starts after its store was restored, and has gone on by itself to the very epoch or a
// later one, serves nothing, clears nothing, and answers nothing. (R93)
func TestStoreThatWentOnFromAnOlderCopy(t *testing.T) {
	step := then(t)
	for _, epochs := range []int{2, 3} {
		was := rec(StateNormal, false)
		was.Epoch = 12
		fork := rec(StateNormal, true)
		for i := range epochs {
			fork = step(fork.SetStrict(i%2 == 0))
		}
		b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, was, "bp1"))
		acts := b.c.Step(RecordRead{Record: fork, FromStore: true, AtStart: true})
		mustNot[Batch](b, acts)
		mustNot[Batch](b, b.c.Step(up(s1, "bs1")))
		if _, mode, why := b.c.Status(); mode != ModeHeld || !strings.Contains(why, "store recover") {
			t.Errorf("%d: %s, %q", epochs, mode, why)
		}
		b.does(must[Batch](b, b.c.Step(RecordRead{Record: was.Recovered(20, false), FromStore: true})))
		if b.c.Saved().Record.Epoch != 21 {
			t.Errorf("persisted %d", b.c.Saved().Record.Epoch)
		}
		// An older copy of the directory has persisted less than there was: the record is right.
		strange := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, was, "bp1"))
		fork.Instances[p1] = "what it was"
		strange.c.Step(RecordRead{Record: fork, FromStore: true, AtStart: true})
		if _, _, why := strange.c.Status(); strings.Contains(why, "store recover") {
			t.Errorf("an older copy of the directory: %q", why)
		}
	}
}

// Goal: a recovery in the middle of a forced failover, which nobody committed, forgets it: no pair loses
// its data to the side that never had it, and synchronization goes on. (R94)
func TestRecoveredInTheMiddleOfAForcedFailover(t *testing.T) {
	r := rec(StateNormal, false, fenced)
	r.Members[1].InSyncEpoch = 0
	r, err := r.ForceFailover(10, nil)
	if err != nil || !r.Members[1].NoImage {
		t.Fatal(err)
	}
	n := r.Recovered(11, true)
	expect(t, n.Forced == nil && !n.Members[1].NoImage && n.Primary == "az1" && !n.FailedOver, n)
	if _, err := n.Sync(); err != nil {
		t.Fatal(err)
	}
	lost := rec(StateNormal, false, failedOver, lostOnce)
	if lost.Recovered(11, true).Forced == nil {
		t.Error("a forced failover that was committed is forgotten: the divergence image would not be kept")
	}
}

// Goal: a pause that became a failover which was taken back has failed: in sync again, the group wants to
// run, and synchronizes by itself after the next fault. (R101)
func TestInSyncAgainWantsToRun(t *testing.T) {
	step := then(t)
	r := step(rec(StateNormal, true).Pause())
	r = step(r.Failover())
	r = step(r.BackOut(true, "taken back"))
	expect(t, r.InSync && r.Intent == IntentRun, r)
}

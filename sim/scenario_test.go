package sim

import (
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// story is a hand-written run: one step after the other, clients and checkers always on.
type story struct {
	t *testing.T
	w *world
}

// begin builds a cluster with its group in sync and clients at work.
func begin(t *testing.T, np, ns int, brk Mutant, pairs ...[2]int) *story {
	t.Helper()
	w := newWorld(Options{Seed: 7, Story: true, Break: brk})
	w.lateness = 5
	w.build(np, ns, pairs)
	w.startClients(2, 1, 20)
	s := &story{t: t, w: w}
	w.want("sync", 60_000)
	s.until("the group is in sync", 20_000, func() bool { return w.store.rec.InSync })
	s.pass(2000)
	return s
}

func oneToOne(t *testing.T) *story { t.Helper(); return begin(t, 1, 1, Mutant{}, [2]int{0, 0}) }

func (s *story) check() {
	s.t.Helper()
	if s.w.failed != "" {
		s.t.Fatal(Result{Seed: 7, At: s.w.now, Failure: s.w.failed, Story: s.w.story}.Report(80))
	}
}

// pass lets virtual time go by.
func (s *story) pass(ms int64) { s.t.Helper(); s.w.run(ms, nil); s.check() }

// until waits for something and says what was missing if it does not come.
func (s *story) until(what string, ms int64, cond func() bool) {
	s.t.Helper()
	ok := s.w.run(ms, cond)
	s.check()
	if !ok {
		s.w.fail("expected within %d ms: %s; %s, cause %q", ms, what, s.w.store.rec.Describe(), s.w.store.rec.Cause)
		s.check()
	}
}

func (s *story) node(id string) *node { return s.w.node(lockstep.NodeID(id)) }
func (s *story) rec() protocol.Record { return s.w.store.rec }
func (s *story) want(op string)       { s.w.want(op, 20_000) }
func (s *story) state(st protocol.State) func() bool {
	return func() bool { return s.rec().State == st }
}

func (s *story) normal(inSync bool) func() bool {
	return func() bool { return s.rec().State == protocol.StateNormal && s.rec().InSync == inSync }
}

func (s *story) apart(a, b string, ms int64) {
	s.w.cutFor(lockstep.NodeID(a), lockstep.NodeID(b), ms)
	s.w.cutFor(lockstep.NodeID(b), lockstep.NodeID(a), ms)
}

// served waits until new writes are acknowledged.
func (s *story) served() {
	s.t.Helper()
	s.w.stopClients()
	s.until("clients are idle", 12_000, s.w.clientsIdle)
	if !s.w.serves() {
		s.w.fail("requests are not answered: %s", s.rec().Describe())
	}
	s.check()
	s.w.resumeClients()
}

// identical ends a story: in sync, quiet, both sides equal.
func (s *story) identical() {
	s.t.Helper()
	s.until("in sync", 60_000, s.normal(true))
	s.served()
	s.w.stopClients()
	s.until("clients are idle", 12_000, s.w.clientsIdle)
	s.w.quiet()
	s.check()
	s.w.checkIdentical()
	s.check()
}

func TestLinkCutTripsAndHealsByItself(t *testing.T) {
	s := oneToOne(t)
	s.apart("az1-n1", "az2-n1", 9000)
	s.until("tripped", 8000, s.normal(false))
	if s.rec().Cause != protocol.CauseLink {
		t.Errorf("cause is %q", s.rec().Cause)
	}
	s.served()
	s.identical()
}

func TestPrimaryKilledThenFailover(t *testing.T) {
	s := oneToOne(t)
	s.node("az1-n1").kill()
	s.want("failover")
	s.until("failed over", 5000, func() bool { return s.rec().FailedOver })
	if s.rec().Primary != az2 || s.rec().Fenced {
		t.Errorf("primary %s, fenced %v: the dead node confirmed nothing", s.rec().Primary, s.rec().Fenced)
	}
	s.served()
}

func TestFailoverToRebootedSecondaryIsRefusedByTripping(t *testing.T) {
	s := oneToOne(t)
	// The primary stands still, so that it cannot trip before the failover is asked for.
	s.node("az1-n1").pausedUntil = s.w.now + 4000
	s.node("az2-n1").rebootAfter(50)
	s.want("failover")
	s.until("backed out", 5000, func() bool {
		return s.rec().State == protocol.StateTripping && s.rec().Cause == protocol.CauseBackOut
	})
	s.until("tripped", 10_000, s.normal(false))
	if s.rec().Primary != az1 || s.rec().FailedOver {
		t.Errorf("%s", s.rec().Describe())
	}
	s.identical()
}

func TestBothRebootedPrimaryKeepsItsImage(t *testing.T) { // [F5]
	s := oneToOne(t)
	s.node("az1-n1").rebootAfter(600)
	s.node("az2-n1").rebootAfter(500)
	s.until("tripping by [F5]", 10_000, func() bool { return s.rec().State == protocol.StateTripping })
	if s.rec().Cause != protocol.CausePrimaryBoot {
		t.Errorf("cause is %q", s.rec().Cause)
	}
	if s.w.stats.TakeBacks != 0 {
		t.Error("regions were taken back from a rebooted secondary")
	}
	s.identical()
}

func TestPrimaryRebootedInSyncTakesBack(t *testing.T) { // [F2]
	s := oneToOne(t)
	before := s.rec().BootIDs["az1-n1"]
	s.node("az1-n1").rebootAfter(500)
	s.until("its new boot id is recorded", 10_000, func() bool { return s.rec().BootIDs["az1-n1"] != before })
	if !s.rec().InSync || s.w.stats.TakeBacks == 0 || s.w.stats.LossyReboots != 0 {
		t.Errorf("%s, %+v", s.rec().Describe(), s.w.stats)
	}
	s.identical()
}

func TestPrimaryRebootedWithoutLinkStaysHeld(t *testing.T) { // [F2]
	s := oneToOne(t)
	s.node("az1-n1").rebootAfter(500)
	s.apart("az1-n1", "az2-n1", 12_000)
	s.pass(10_000)
	if _, mode, _ := s.node("az1-n1").proc.core.Status(); mode != protocol.ModeHeld || !s.rec().InSync {
		t.Errorf("mode %s, %s", mode, s.rec().Describe())
	}
	s.identical()
}

func TestProcessRestartRepairs(t *testing.T) { // [F9]
	s := oneToOne(t)
	epoch, repairs := s.rec().Epoch, s.w.stats.Repairs
	s.node("az1-n1").restartAfter(100)
	s.until("repaired", 5000, func() bool { return s.w.stats.Repairs > repairs })
	s.served()
	if s.rec().Epoch != epoch {
		t.Errorf("a restart of a process made a new epoch: %s", s.rec().Describe())
	}
	s.identical()
}

func TestPauseDrains(t *testing.T) { // [F11]
	s := oneToOne(t)
	s.want("pause")
	s.until("paused", 5000, s.normal(false))
	if !s.rec().Drained || s.rec().Intent != protocol.IntentPaused {
		t.Errorf("drained %v, %s", s.rec().Drained, s.rec().Describe())
	}
	s.pass(15_000)
	if s.rec().InSync || s.rec().State != protocol.StateNormal {
		t.Errorf("a paused group went on by itself: %s", s.rec().Describe())
	}
	s.served()
	s.want("sync")
	s.identical()
}

func TestPauseThatCannotDrainIsATrip(t *testing.T) {
	s := oneToOne(t)
	s.apart("az1-n1", "az2-n1", 8000)
	s.pass(300)
	s.want("pause")
	s.until("stopped", 9000, s.normal(false))
	if s.rec().Drained || s.rec().Cause != protocol.CauseLink || s.rec().Intent != protocol.IntentPaused {
		t.Errorf("drained %v, cause %q, %s", s.rec().Drained, s.rec().Cause, s.rec().Describe())
	}
	s.served()
}

func TestSwitchoverThereAndBack(t *testing.T) { // [F12]
	s := oneToOne(t)
	for _, az := range []lockstep.AZ{az2, az1} {
		s.want("reverse")
		s.until("reversed to "+string(az), 10_000, func() bool { return s.rec().Primary == az && s.rec().State == protocol.StateNormal })
		if !s.rec().InSync || s.rec().FailedOver {
			t.Errorf("%s", s.rec().Describe())
		}
		s.served()
	}
	s.identical()
}

func TestReprotectUnitesTheMaps(t *testing.T) {
	for _, brk := range []Mutant{{}, {NoUnion: true}} {
		s := begin(t, 1, 1, brk, [2]int{0, 0})
		// The old primary gets writes that the other side never sees, and the new one gets none.
		s.apart("az1-n1", "az2-n1", 3000)
		s.pass(500)
		s.w.stopClients()
		s.want("failover")
		s.until("failed over", 6000, func() bool { return s.rec().FailedOver })
		s.pass(9000)
		if s.w.volOf(0, az1).cache == s.w.volOf(0, az2).cache {
			t.Fatal("the sides do not differ: the story tells nothing")
		}
		s.want("sync")
		s.w.run(20_000, s.normal(true))
		s.w.run(1000, nil)
		s.w.checkIdentical()
		if seen := s.w.failed != ""; seen != brk.NoUnion || !s.rec().InSync || s.rec().Primary != az2 {
			t.Errorf("maps united %v: %q, %s", !brk.NoUnion, s.w.failed, s.rec().Describe())
		}
	}
}

func TestRestartInCopyingAborts(t *testing.T) { // [F19]
	s := oneToOne(t)
	s.apart("az1-n1", "az2-n1", 6000)
	s.until("tripped", 8000, s.normal(false))
	s.until("copying, and persisted as such", 20_000, func() bool {
		return s.rec().State == protocol.StateCopying && s.node("az1-n1").file.saved.Record.Epoch == s.rec().Epoch
	})
	at := s.rec().Epoch
	s.node("az1-n1").restartAfter(10)
	s.until("aborted", 8000, func() bool { return s.rec().Epoch > at })
	if s.rec().State != protocol.StateNormal || s.rec().InSync {
		t.Errorf("%s", s.rec().Describe())
	}
	s.identical()
}

func TestTwoByTwoHeldUntilTheWayBack(t *testing.T) { // [F21]
	s := begin(t, 2, 2, Mutant{}, [2]int{0, 0}, [2]int{1, 1})
	s.node("az1-n2").kill()
	s.apart("az1-n1", "az2-n1", 9000)
	s.until("tripping", 8000, s.state(protocol.StateTripping))
	s.pass(3000)
	if s.rec().State != protocol.StateTripping {
		t.Fatalf("a trip went on without a dead primary node: %s", s.rec().Describe())
	}
	s.until("back in sync", 20_000, s.normal(true))
	if s.w.stats.WaysBack != 1 {
		t.Errorf("%+v", s.w.stats)
	}
	s.node("az1-n2").startProcess()
	s.identical()
}

func TestTwoByTwoHeldAllowsFailover(t *testing.T) {
	s := begin(t, 2, 2, Mutant{}, [2]int{0, 0}, [2]int{1, 1}, [2]int{0, 1})
	s.node("az1-n2").kill()
	s.apart("az1-n1", "az2-n1", 60_000)
	s.apart("az1-n1", "az2-n2", 60_000)
	s.until("tripping", 8000, s.state(protocol.StateTripping))
	s.want("failover")
	s.until("failed over", 5000, func() bool { return s.rec().FailedOver })
	s.served()
}

// cutDuringRepair: a repair is interrupted, the group is paused meanwhile, and the primary writes
// alone. What was still to be sent must not reach a secondary that heard of nothing.
func cutDuringRepair(t *testing.T, seed uint64, brk Mutant) *world {
	t.Helper()
	w := newWorld(Options{Seed: seed, Story: true, Break: brk})
	w.lateness = 5
	w.build(1, 1, [][2]int{{0, 0}, {0, 0}})
	w.startClients(2, 0, 10)
	w.want("sync", 60_000)
	w.run(20_000, func() bool { return w.store.rec.InSync })
	w.run(1000, nil)
	n := w.node("az1-n1")
	n.restartAfter(50)
	repairs := w.stats.Repairs
	w.run(10_000, func() bool { return w.stats.Repairs > repairs })
	w.cutFor("az1-n1", "az2-n1", 1500)
	w.want("pause", 5000)
	w.run(6000, nil)
	return w
}

func TestRepairEndsWithItsEpoch(t *testing.T) {
	seen := 0
	for seed := uint64(1); seed <= 40; seed++ {
		if w := cutDuringRepair(t, seed, Mutant{}); w.failed != "" {
			t.Fatalf("seed %d: %s\n%s\n%s", seed, w.failed, w.store.rec.Describe(), strings.Join(w.story, "\n"))
		}
		if w := cutDuringRepair(t, seed, Mutant{JobsGoOn: true}); w.failed != "" {
			seen++
		}
	}
	if seen == 0 {
		t.Error("a repair that goes on under an old epoch is not seen")
	}
	t.Logf("seen in %d of 40 seeds", seen)
}

// TestSameSeedSameStory: one seed decides everything.
func TestSameSeedSameStory(t *testing.T) {
	for seed := uint64(1); seed <= 12; seed++ {
		o := options(seed)
		o.Story = true
		a, b := Run(o), Run(o)
		if a.Hash != b.Hash || a.Events != b.Events || len(a.Story) == 0 {
			for i := range a.Story {
				if i >= len(b.Story) || a.Story[i] != b.Story[i] {
					t.Fatalf("seed %d parts at line %d:\n%s\n%s", seed, i, a.Story[i], b.Story[min(i, len(b.Story)-1)])
				}
			}
			t.Fatalf("seed %d: hashes %x and %x", seed, a.Hash, b.Hash)
		}
		if quiet := Run(options(seed)); quiet.Events != a.Events || quiet.Failure != a.Failure {
			t.Fatalf("seed %d: telling the story changes it", seed)
		}
	}
}

// commit does a transition at once, with no controller in between.
func (s *story) commit(do func(protocol.Record) (protocol.Record, error)) {
	s.t.Helper()
	next, err := do(s.rec())
	if err != nil {
		s.t.Fatal(err)
	}
	s.w.store.cas(s.w.store.read(), next, nil, "the story")
}

// TestLeaseWaitHoldsThroughAQuickReprotect: the old primary is alone, and answers reads for as long
// as its lease runs. A reprotect right after the failover must not cut the new primary's wait short.
func TestLeaseWaitHoldsThroughAQuickReprotect(t *testing.T) {
	for _, brk := range []Mutant{{}, {NoLeaseWait: true}} {
		w := newWorld(Options{Seed: 3, Story: true, Break: brk})
		w.lateness = 2
		w.build(1, 1, [][2]int{{0, 0}})
		w.startClients(0, 2, 3)
		s := &story{t: t, w: w}
		s.want("sync")
		s.until("in sync", 20_000, s.normal(true))
		s.pass(2000)
		for _, c := range w.ctls {
			c.stop(60_000)
		}
		for _, c := range w.apps {
			c.on = c.readers || c.az == az2 // a write under way would make reads wait
		}
		s.pass(100)
		old := s.node("az1-n1")
		old.storeCutUntil = w.now + 60_000
		s.apart("az1-n1", "az2-n1", 60_000)
		s.commit(protocol.Record.Failover)
		s.until("ready", 1000, func() bool { return w.store.answers["az2-n1"].answer.Step == protocol.StepReady })
		heir := s.node("az2-n1").proc
		heir.watching = false // it never sees the record in between
		s.commit(func(r protocol.Record) (protocol.Record, error) {
			next, _, _ := protocol.Advance(r, w.store.read().answers, false)
			return next, nil
		})
		s.commit(protocol.Record.Sync)
		heir.readRecord()
		w.run(1500, nil)
		if seen := strings.Contains(w.failed, "read"); seen != brk.NoLeaseWait {
			t.Errorf("lease wait %v: %q", !brk.NoLeaseWait, w.failed)
		}
	}
}

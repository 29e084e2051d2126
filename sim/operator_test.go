package sim

import (
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// held makes a trip that waits for az1-n2: the process there is gone, or its host, and az1-n1 lost
// its secondary.
func held(t *testing.T, brk Mutant, end func(*node), pairs ...[2]int) *story {
	t.Helper()
	s := begin(t, 2, 2, brk, pairs...)
	end(s.node("az1-n2"))
	s.apart("az1-n1", "az2-n1", 30_000)
	s.until("tripping", 8000, s.state(protocol.StateTripping))
	s.pass(2000)
	if s.rec().State != protocol.StateTripping {
		t.Fatalf("a trip went on without a dead primary node: %s", s.rec().Describe())
	}
	return s
}

// TestContinueThenTheDeadPrimaryComesBack: fenced through its secondaries, a dead primary node comes
// back to a group that left in sync without it, as a process of the same host or after a restart of
// the host, which then takes its regions back first, out of sync. [F2] [F10] [F22]
func TestContinueThenTheDeadPrimaryComesBack(t *testing.T) {
	for name, end := range map[string]func(*node){"same boot id": (*node).kill, "new boot id": (*node).crash} {
		t.Run(name, func(t *testing.T) {
			s := held(t, Mutant{}, end, [2]int{0, 0}, [2]int{1, 1}, [2]int{1, 0})
			at := s.rec().Epoch
			s.want("continue")
			s.until("continued", 5000, s.normal(false))
			for _, id := range []string{"az2-n1", "az2-n2"} {
				if saved := s.node(id).file.saved; saved.Record.Epoch != at || saved.Role != protocol.RoleSecondary {
					t.Errorf("%s has persisted epoch %d as %s, not the tripping epoch %d", id, saved.Record.Epoch, saved.Role, at)
				}
			}
			if s.rec().ContinueAt != 0 || s.rec().Drained || s.w.stats.Continued != 1 {
				t.Errorf("continue at %d, drained %v, %+v", s.rec().ContinueAt, s.rec().Drained, s.w.stats)
			}
			acks := s.w.stats.Acks
			s.pass(4000)
			if s.w.stats.Acks == acks {
				t.Error("nothing is served at the node that was left")
			}
			n := s.node("az1-n2")
			reboot := n.bootID() != s.rec().BootIDs[n.id]
			n.startProcess()
			s.pass(10_000)
			if (s.w.stats.TakeBacks > 0) != reboot || s.w.stats.LossyReboots != 0 {
				t.Errorf("new boot id %v: %+v", reboot, s.w.stats)
			}
			s.identical()
		})
	}
}

// TestConfirmedOff: said to be off, a dead host is not waited for, although no secondary can fence it;
// it comes back to a group that left in sync without it. A failover under way need not wait for the
// leases of its old primaries either. The word counts for one epoch. [F10]
func TestConfirmedOff(t *testing.T) {
	s := held(t, Mutant{}, (*node).crash, [2]int{0, 0}, [2]int{1, 1}, [2]int{1, 0})
	for _, id := range []string{"az2-n1", "az2-n2"} {
		s.node(id).storeCutUntil = s.w.now + 20_000 // they hear of no continue
	}
	s.commit(func(r protocol.Record) (protocol.Record, error) { return r.ConfirmOff("az1-n2") })
	s.until("tripped", 5000, s.normal(false))
	if s.rec().Drained || s.rec().Off != nil {
		t.Errorf("drained %v, off %v", s.rec().Drained, s.rec().Off)
	}
	s.node("az1-n2").startProcess()
	s.identical()
	if s.w.stats.LossyReboots != 0 {
		t.Errorf("%+v", s.w.stats)
	}
	s = oneToOne(t)
	s.node("az1-n1").kill()
	if _, err := s.rec().ConfirmOff("az1-n1"); err == nil {
		t.Error("taken while nothing waits for the node")
	}
	s.commit(protocol.Record.Failover)
	if _, err := s.rec().ConfirmOff("az2-n1"); err == nil {
		t.Error("taken for a secondary node")
	}
	s.commit(func(r protocol.Record) (protocol.Record, error) { return r.ConfirmOff("az1-n1") })
	s.until("failed over", 5000, func() bool { return s.rec().FailedOver })
	if !s.rec().Fenced {
		t.Error("the lease of a node that is off is waited for")
	}
	s.served()
}

// TestContinueWaitsForEverySecondary: the primary node that does not confirm is cut from the store
// alone and goes on with its secondary, until that has persisted the tripping epoch. [F10]
func TestContinueWaitsForEverySecondary(t *testing.T) {
	for _, brk := range []Mutant{{}, {FenceAssumed: true}} {
		s := begin(t, 2, 2, brk, [2]int{0, 0}, [2]int{1, 1})
		for _, id := range []string{"az1-n2", "az2-n2"} {
			s.node(id).storeCutUntil = s.w.now + 20_000
		}
		s.apart("az1-n1", "az2-n1", 60_000)
		s.until("tripping", 8000, s.state(protocol.StateTripping))
		s.want("continue")
		s.w.run(6000, nil)
		if brk.FenceAssumed {
			if !strings.Contains(s.w.failed, "last consistent image") {
				t.Errorf("a continue that does not wait is not seen: %q", s.w.failed)
			}
			continue
		}
		s.check()
		if s.rec().State != protocol.StateTripping {
			t.Fatalf("continued without a fence: %s", s.rec().Describe())
		}
		s.until("continued", 20_000, s.normal(false))
		s.w.cuts = map[[2]lockstep.NodeID]int64{}
		s.identical()
	}
}

// TestContinueRacesWithAWayBack: one of the two secondaries of the dead node is fenced when the
// group goes back to in sync; its fence is void then. [F21] [F22]
func TestContinueRacesWithAWayBack(t *testing.T) {
	for name, end := range map[string]func(*node){"same boot id": (*node).kill, "new boot id": (*node).crash} {
		t.Run(name, func(t *testing.T) {
			s := held(t, Mutant{}, end, [2]int{0, 0}, [2]int{1, 1}, [2]int{1, 0})
			s.node("az2-n1").storeCutUntil = s.w.now + 25_000
			at := s.rec().Epoch
			s.want("continue")
			s.until("one of two has fenced", 5000, func() bool { return s.w.store.answers["az2-n2"].answer.Step == protocol.StepFenced })
			s.w.cuts = map[[2]lockstep.NodeID]int64{}
			s.until("back in sync", 20_000, s.normal(true))
			if s.w.stats.WaysBack != 1 || s.rec().Epoch != at+1 || s.rec().ContinueAt != 0 {
				t.Errorf("%s, continue at %d, %+v", s.rec().Describe(), s.rec().ContinueAt, s.w.stats)
			}
			s.node("az1-n2").startProcess()
			s.identical()
			if s.w.stats.Continued != 0 || s.w.stats.LossyReboots != 0 {
				t.Errorf("%+v", s.w.stats)
			}
		})
	}
}

// TestAcceptLost: a primary that restarted its host while its secondary is away is held until an
// operator gives the secondary up; that one may come back all the same. [F5]
func TestAcceptLost(t *testing.T) {
	s := oneToOne(t)
	s.node("az2-n1").kill()
	s.node("az1-n1").rebootAfter(500)
	s.pass(10_000)
	if _, mode, _ := s.node("az1-n1").proc.core.Status(); mode != protocol.ModeHeld || !s.rec().InSync || s.w.stats.AcceptedLosses != 0 {
		t.Fatalf("mode %s, %s, %+v", mode, s.rec().Describe(), s.w.stats)
	}
	s.want("accept-lost")
	s.until("tripping by [F5]", 5000, func() bool {
		return s.rec().State == protocol.StateTripping && s.rec().Cause == protocol.CausePrimaryBoot
	})
	s.until("tripped", 5000, s.normal(false))
	s.served()
	if s.w.stats.TakeBacks != 0 || s.w.stats.AcceptedLosses == 0 {
		t.Errorf("the story tells nothing: %+v", s.w.stats)
	}
	s.node("az2-n1").startProcess()
	s.identical()
	if len(s.rec().Lost) != 0 {
		t.Errorf("given up in the next life in sync, too: %v", s.rec().Lost)
	}
}

// TestContinueThenAcceptLost: the node that was left behind restarted its host, and its secondary
// is gone when it comes back.
func TestContinueThenAcceptLost(t *testing.T) {
	s := held(t, Mutant{}, (*node).crash, [2]int{0, 0}, [2]int{1, 1})
	s.want("continue")
	s.until("continued", 5000, s.normal(false))
	s.node("az2-n2").kill()
	s.node("az1-n2").startProcess()
	s.pass(5000)
	if _, mode, _ := s.node("az1-n2").proc.core.Status(); mode != protocol.ModeHeld {
		t.Errorf("mode %s", mode)
	}
	s.w.wanted = append(s.w.wanted, &operation{name: "accept-lost", until: s.w.now + 20_000, do: func(v view) (protocol.Record, []lockstep.NodeID, error) {
		next, err := v.rec.AcceptLost("az2-n2") // while copying it is refused
		return next, nil, err
	}})
	s.until("its boot id is recorded", 10_000, func() bool { return s.rec().BootIDs["az1-n2"] == s.node("az1-n2").bootID() })
	s.served()
	s.node("az2-n2").startProcess()
	s.w.cuts = map[[2]lockstep.NodeID]int64{}
	s.identical()
}

// TestStrictNeedsTheStore: one-sided under the strict policy a primary serves while the store
// answers, and not a moment longer than its lease when the record has moved on. [F16]
func TestStrictNeedsTheStore(t *testing.T) {
	for _, brk := range []Mutant{{}, {StrictIgnored: true}} {
		s := begin(t, 1, 1, brk, [2]int{0, 0})
		s.want("strict")
		s.until("strict", 5000, func() bool { return s.rec().Strict && s.rec().InSync })
		s.apart("az1-n1", "az2-n1", 40_000)
		s.until("tripped", 8000, s.normal(false))
		s.served()
		s.want("pause") // nothing but this story makes an epoch
		s.until("paused", 5000, func() bool { return s.rec().State == protocol.StateNormal && s.rec().Intent == protocol.IntentPaused })
		s.pass(2000)
		s.node("az1-n1").storeCutUntil = s.w.now + 12_000
		s.pass(500)
		s.commit(func(r protocol.Record) (protocol.Record, error) { return r.SetMembers(r.Clone().Members) })
		s.w.run(2000, nil)
		if brk.StrictIgnored {
			if !strings.Contains(s.w.failed, "strict epoch") {
				t.Errorf("a primary that ignores the policy is not seen: %q", s.w.failed)
			}
			continue
		}
		s.check()
		acks, reads := s.w.stats.Acks, s.w.stats.Reads
		s.pass(6000)
		if s.w.stats.Acks != acks || s.w.stats.Reads != reads {
			t.Errorf("served without the store: %d acknowledgements, %d reads", s.w.stats.Acks-acks, s.w.stats.Reads-reads)
		}
		s.until("the store is back and it serves", 10_000, func() bool { return s.w.stats.Acks > acks && s.w.stats.Reads > reads })
		s.want("sync")
		s.w.cuts = map[[2]lockstep.NodeID]int64{}
		s.identical()
	}
}

// TestStrictServesThroughAttemptsToCopy: while the secondary is away, each attempt to synchronize is
// a new epoch, and none of them may stop a primary that has the store.
func TestStrictServesThroughAttemptsToCopy(t *testing.T) {
	s := oneToOne(t)
	s.want("strict")
	s.until("strict", 5000, func() bool { return s.rec().Strict && s.rec().InSync })
	s.node("az2-n1").kill()
	s.until("tripped", 8000, s.normal(false))
	s.pass(3000)
	last, longest, acks, syncs := s.w.now, int64(0), s.w.stats.Acks, s.w.stats.Syncs
	s.w.run(30_000, func() bool {
		if s.w.stats.Acks != acks {
			longest = max(longest, s.w.now-last)
			acks, last = s.w.stats.Acks, s.w.now
		}
		return false
	})
	s.check()
	if longest = max(longest, s.w.now-last); longest > 1500 || s.w.stats.Syncs-syncs < 3 {
		t.Errorf("no write was acknowledged for %d ms; %d attempts", longest, s.w.stats.Syncs-syncs)
	}
	s.node("az2-n1").startProcess()
	s.identical()
}

package sim

import "testing"

// TestMutants shows that the checkers see: each of these bugs of a shell must be caught by some
// seed of a bounded range. Three more are shown by stories: see TestRepairEndsWithItsEpoch,
// TestReprotectUnitesTheMaps and TestContinueWaitsForEverySecondary.
func TestMutants(t *testing.T) {
	const bound = 1500
	for _, m := range []struct {
		name  string
		brk   Mutant
		focus Focus
	}{
		{name: "no write intent before data", brk: Mutant{NoIntent: true}},
		{name: "intent cleared without the secondary's flush", brk: Mutant{ClearAlone: true}},
		{name: "older sessions accepted", brk: Mutant{StaleSessions: true}},
		{name: "acknowledged before the secondary has it", brk: Mutant{AckEarly: true}},
		{name: "secondary acknowledges before it applied", brk: Mutant{AckUnapplied: true}},
		{name: "no fence", brk: Mutant{NoFence: true}, focus: FocusFailover},
		{name: "no flush in batches", brk: Mutant{NoFlush: true}},
		{name: "no lease wait", brk: Mutant{NoLeaseWait: true}, focus: FocusFailover},
		{name: "boot id ignored in ready", brk: Mutant{BootIgnored: true}},
		{name: "no re-send", brk: Mutant{NoResend: true}},
		{name: "no recovery point", brk: Mutant{NoPoint: true}},
		{name: "reads without lease", brk: Mutant{NoReadLease: true}},
		{name: "reads of unacknowledged writes", brk: Mutant{ReadInFlight: true}},
		{name: "intent does not become dirty", brk: Mutant{NoDirtyFromIntent: true}},
		{name: "intent counts as dirty after a clear", brk: Mutant{IntentAssumed: true}},
		{name: "unrepaired regions served", brk: Mutant{UnrepairedServed: true}},
		{name: "intent of unrepaired regions cleared", brk: Mutant{UnrepairedCleared: true}, focus: FocusRestart},
		{name: "a running node said to be off", brk: Mutant{OffUntrue: true}, focus: FocusOperator},
		{name: "strict ignored", brk: Mutant{StrictIgnored: true}, focus: FocusOperator},
		{name: "no roll-back before a forced failover", brk: Mutant{NoRollBack: true}, focus: FocusForced},
		{name: "no divergence image", brk: Mutant{NoKeep: true}, focus: FocusForced},
		{name: "forced failover without the old primary's word", brk: Mutant{ForcedUnfenced: true}, focus: FocusForced},
		{name: "no wait for the store's lease", brk: Mutant{NoStoreWait: true}, focus: FocusForced},
	} {
		t.Run(m.name, func(t *testing.T) {
			for seed := uint64(1); seed <= bound; seed++ {
				if r := Run(Options{Seed: seed, Break: m.brk, Focus: m.focus}); r.Failure != "" {
					t.Logf("seed %d: %s", seed, r.Failure)
					return
				}
			}
			t.Errorf("no seed up to %d sees it", bound)
		})
	}
}

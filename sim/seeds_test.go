package sim

import (
	"flag"
	"testing"
)

var (
	seedCount = flag.Int("seeds", 500, "how many seeds TestSeeds plays")
	seedFirst = flag.Uint64("first", 1, "the first seed")
	focus     = flag.Int("focus", -1, "one kind of trouble for all seeds: see Focus")
	oneSeed   = flag.Uint64("seed", 0, "play this seed alone and tell its whole story")
	lines     = flag.Int("lines", 120, "lines of a failure's story")
)

// TestSeeds plays random clusters under random faults. Every promise is checked after every event.
func TestSeeds(t *testing.T) {
	if *oneSeed != 0 {
		opt := options(*oneSeed)
		opt.Story = true
		r := Run(opt)
		for _, line := range r.Story {
			t.Log(line)
		}
		if r.Failure != "" {
			t.Fatal(r.Failure)
		}
		return
	}
	var sum Stats
	var events uint64
	failures := 0
	for i := range *seedCount {
		seed := *seedFirst + uint64(i)
		opt := options(seed)
		r := Run(opt)
		sum.add(r.Stats)
		events += r.Events
		if r.Failure != "" {
			opt.Story = true
			t.Error(Run(opt).Report(*lines))
			if failures++; failures == 3 {
				break
			}
		}
	}
	t.Logf("%d seeds, %d events: %+v", *seedCount, events, sum)
}

// options gives every second seed a narrower kind of trouble.
func options(seed uint64) Options {
	o := Options{Seed: seed}
	if *focus >= 0 {
		o.Focus = Focus(*focus)
		return o
	}
	switch seed % 16 {
	case 1, 9:
		o.Focus = FocusForced
	case 3, 11:
		o.Focus = FocusFailover
	case 5, 13:
		o.Focus = FocusOperator
	case 7:
		o.Focus = FocusPause
	case 15:
		o.Focus = FocusRestart
	}
	return o
}

func (s *Stats) add(o Stats) {
	s.Acks += o.Acks
	s.Reads += o.Reads
	s.Trips += o.Trips
	s.WaysBack += o.WaysBack
	s.Syncs += o.Syncs
	s.InSyncs += o.InSyncs
	s.Failovers += o.Failovers
	s.Reverses += o.Reverses
	s.BackOuts += o.BackOuts
	s.Renewals += o.Renewals
	s.Aborts += o.Aborts
	s.TakeBacks += o.TakeBacks
	s.Repairs += o.Repairs
	s.LossyReboots += o.LossyReboots
	s.SaidOff += o.SaidOff
	s.Continued += o.Continued
	s.AcceptedLosses += o.AcceptedLosses
	s.StrictServed += o.StrictServed
	s.StrictWaits += o.StrictWaits
	s.Forced += o.Forced
	s.ForcedStrict += o.ForcedStrict
	s.RollBacks += o.RollBacks
	s.Kept += o.Kept
	s.WritesGivenUp += o.WritesGivenUp
}

package rig

import (
	"context"
	"testing"

	"github.com/lockstep-dr/lockstep/block"
)

// TestChainsSeeWhatIsMissing: an image that lost its newest write, one that lost an earlier one, and
// one with a write that nobody made are judged so.
func TestChainsSeeWhatIsMissing(t *testing.T) {
	disks := []block.Device{block.NewMemory(ChainBytes), block.NewMemory(ChainBytes)}
	c := NewChains(len(disks))
	c.FlushEvery = 8
	c.Run(disks)
	for c.stable[3].Load() < 20*ChainSlots {
		if err := c.Progress(Patience, 100); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Stop(Patience); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := c.Inspect(ctx, disks); err != nil {
		t.Fatalf("a good image: %v", err)
	}
	if lost, err := c.InspectAfterPowerLoss(ctx, disks); err != nil || lost != 0 {
		t.Fatalf("a good image: %d lost, %v", lost, err)
	}
	c.floor = [ChainCount]uint64{}
	put := func(chain int, at, k uint64) (undo func()) {
		t.Helper()
		disk, off := c.place(chain, at)
		old, b := make([]byte, BlockBytes), make([]byte, BlockBytes)
		fill(b, chain, k)
		for _, err := range []error{disks[disk].ReadAt(ctx, old, off), disks[disk].WriteAt(ctx, b, off, false)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return func() { _ = disks[disk].WriteAt(ctx, old, off, false) }
	}
	newest := c.acked[3].Load()
	window := uint64(2 * ChainSlots)
	for name, bad := range map[string]struct {
		at, k uint64
		power bool // wrong after a loss of both sides' power, too
	}{
		"the newest write is lost":              {newest, newest - window, newest == c.stable[3].Load()},
		"one before the newest is lost":         {newest - 1, newest - 1 - window, newest-1 <= c.stable[3].Load()},
		"a flushed one is lost":                 {c.stable[3].Load() - 1, c.stable[3].Load() - 1 - window, true},
		"two that were never acknowledged came": {newest + 2, newest + 2, true},
	} {
		undo := put(3, bad.at, bad.k)
		stable := c.stable[3].Load()
		if err := c.Inspect(ctx, disks); err == nil {
			t.Errorf("%s, and nothing is said", name)
		}
		c.acked[3].Store(newest)
		c.stable[3].Store(stable)
		if _, err := c.InspectAfterPowerLoss(ctx, disks); (err != nil) != bad.power {
			t.Errorf("%s, after a loss of power: %v", name, err)
		}
		c.floor = [ChainCount]uint64{}
		c.acked[3].Store(newest)
		c.stable[3].Store(stable)
		undo()
	}
	if err := c.Inspect(ctx, disks); err != nil {
		t.Fatal(err)
	}
}

package history

import (
	"context"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

// TestChainsAfterPowerLoss: an image that lost its newest write, one that lost an earlier one, and
// one with a write that nobody made are judged so.
func TestChainsAfterPowerLoss(t *testing.T) {
	const slots = 16
	c := NewChains(1, 2, 16, slots, 0)
	c.FlushEvery = 8
	disks := []block.Device{block.NewMemory(c.Bytes()), block.NewMemory(c.Bytes())}
	running, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(running, disks) }()
	for c.stable[3].Load() < 20*slots && len(ended) == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := c.Inspect(ctx, disks); err != nil {
		t.Fatalf("a good image: %v", err)
	}
	if lost, err := c.InspectAfterPowerLoss(ctx, disks); err != nil || lost != 0 {
		t.Fatalf("a good image: %d lost, %v", lost, err)
	}
	clear(c.floor)
	put := func(chain int, at, k uint64) (undo func()) {
		t.Helper()
		disk, off := c.Place(chain, at)
		old, b := make([]byte, BlockBytes), make([]byte, BlockBytes)
		c.stamp(disk, chain, k).fill(b)
		for _, err := range []error{disks[disk].ReadAt(ctx, old, off), disks[disk].WriteAt(ctx, b, off, false)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return func() { _ = disks[disk].WriteAt(ctx, old, off, false) }
	}
	newest := c.acked[3].Load()
	window := uint64(2 * slots)
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
		clear(c.floor)
		c.acked[3].Store(newest)
		c.stable[3].Store(stable)
		undo()
	}
	if err := c.Inspect(ctx, disks); err != nil {
		t.Fatal(err)
	}
}

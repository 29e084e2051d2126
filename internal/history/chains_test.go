package history

import (
	"context"
	"errors"
	"testing"

	"github.com/lockstep-dr/lockstep/block"
)

func TestChainsFindLostAndReorderedWrites(t *testing.T) {
	const acknowledged = 100
	for name, tc := range map[string]struct {
		acked uint64
		skip  func(chain int, k uint64) bool
		right bool
	}{
		"whole":                  {100, func(int, uint64) bool { return false }, true},
		"one in flight":          {99, func(int, uint64) bool { return false }, true},
		"last one lost":          {100, func(c int, k uint64) bool { return c == 7 && k == 100 }, false},
		"one in the middle lost": {100, func(c int, k uint64) bool { return c == 0 && k == 80 }, false},
		"second without first":   {98, func(c int, k uint64) bool { return c == 9 && k == 99 }, false},
		"never issued":           {98, func(int, uint64) bool { return false }, false},
	} {
		for _, disks := range []int{1, 2, 3} {
			c := NewChains(1, disks, 10, 16, 1<<20)
			image := make([][]byte, disks)
			for i := range image {
				image[i] = make([]byte, c.Bytes())
			}
			for chain := range 10 {
				c.acked[chain].Store(tc.acked)
				for k := uint64(1); k <= acknowledged; k++ {
					// On one disk write 80 is overwritten by 96; then its loss cannot be seen.
					if d, off := c.Place(chain, k); !tc.skip(chain, k) || disks == 1 && k == 80 {
						c.Fill(image[d][off-1<<20:], chain, k)
					}
				}
			}
			err := c.Judge(image)
			if right := err == nil; right != (tc.right || name == "one in the middle lost" && disks == 1) {
				t.Errorf("%s, %d disks: %v", name, disks, err)
			}
		}
	}
}

func TestChainsGoOnAfterALostConnection(t *testing.T) {
	c := NewChains(7, 2, 8, 4, 0)
	mem := []block.Device{block.NewMemory(c.Bytes()), block.NewMemory(c.Bytes())}
	hurt := []block.Device{&hurtDevice{Device: mem[0], failEvery: 100}, &hurtDevice{Device: mem[1], failEvery: 70}}
	for range 5 {
		if err := c.Run(t.Context(), hurt); err == nil { // each chain ends at a failure
			t.Fatal("no disk failed")
		}
		if err := c.Inspect(t.Context(), mem); err != nil {
			t.Fatal(err)
		}
	}
	if c.Acknowledged() == 0 {
		t.Fatal("nothing was written")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx, mem); err != nil {
		t.Fatalf("at the end of its context: %v", err)
	}
	disk, off := c.Place(3, c.Newest(3))
	if err := mem[disk].Zero(t.Context(), off, BlockBytes, block.ZeroFlags{}); err != nil {
		t.Fatal(err)
	}
	var image *ImageError
	if err := c.Inspect(t.Context(), mem); !errors.As(err, &image) {
		t.Fatalf("a lost write: %v", err)
	}
}

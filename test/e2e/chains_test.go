package e2e

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/internal/history"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// The chains of dependent writes that tests run; what they are is told by history.Chains.
const (
	chainCount = 32
	chainSlots = 16
	blockSize  = history.BlockBytes
	chainBytes = chainCount * chainSlots * blockSize
)

// chains is an application that writes chains in the background, with its memory of what was
// acknowledged.
type chains struct {
	*history.Chains

	cancel context.CancelFunc
	ended  chan struct{} // closed when all writers have ended; err says why
	err    error
}

func newChains() *chains {
	return &chains{Chains: history.NewChains(1, 2, chainCount, chainSlots, 0)}
}

// run starts the writers on two disks, after what was acknowledged.
func (c *chains) run(disks [2]block.Device) {
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel, c.ended = cancel, make(chan struct{})
	c.Longest() // a new count begins
	ended := c.ended
	go func() { // ends with the writers, or with the process of a failed test
		defer close(ended)
		c.err = c.Run(ctx, disks[:])
	}()
}

// stop ends the writers between two writes; an error of any is returned.
func (c *chains) stop(g *group) error {
	g.t.Helper()
	c.cancel()
	return c.broken(g)
}

// broken waits for the writers, whose disks are gone. A writer whose request is held for ever fails
// the test.
func (c *chains) broken(g *group) error {
	g.t.Helper()
	g.eventually(patience, "every write is answered", func() error {
		select {
		case <-c.ended:
			return nil
		default:
			return errNotYet
		}
	})
	return c.err
}

// progress waits until so many more writes are acknowledged.
func (c *chains) progress(g *group, within time.Duration, more uint64) {
	g.t.Helper()
	goal := c.Acknowledged() + more
	g.eventually(within, fmt.Sprintf("%d more writes", more), func() error {
		select {
		case <-c.ended:
			g.t.Fatalf("a writer failed: %v", c.err)
		default:
		}
		if have := c.Acknowledged(); have < goal {
			return fmt.Errorf("%d are missing", goal-have)
		}
		return nil
	})
}

// inspect judges the image of two disks within a bounded time.
func (c *chains) inspect(ctx context.Context, disks [2]block.Device) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return c.Inspect(ctx, disks[:])
}

// disks opens both disks of a group in a zone.
func (g *group) disks(az string) [2]block.Device {
	g.t.Helper()
	return [2]block.Device{g.open(g.pairs[0], az), g.open(g.pairs[1], az)}
}

func closeAll(disks [2]block.Device) {
	for _, d := range disks {
		if c, ok := d.(*nbdclient.Client); ok {
			_ = c.Close()
		}
	}
}

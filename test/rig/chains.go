package rig

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/internal/history"
)

// The chains of dependent writes that these tests run; what they are is told by history.Chains.
const (
	ChainCount = 16
	ChainSlots = 16
	BlockBytes = history.BlockBytes
	// ChainBytes is how much of the beginning of each disk the chains use.
	ChainBytes = ChainCount * ChainSlots * BlockBytes
)

// Chains is an application that writes chains in the background, with its memory of what was
// acknowledged and what was flushed.
type Chains struct {
	*history.Chains

	cancel context.CancelFunc
	ended  chan struct{} // closed when all writers have ended; err says why
	err    error
}

// NewChains is an application that has not written yet, for so many disks.
func NewChains(disks int) *Chains {
	return &Chains{Chains: history.NewChains(1, disks, ChainCount, ChainSlots, 0)}
}

// Total is how many writes were acknowledged.
func (c *Chains) Total() uint64 { return c.Acknowledged() }

// Run starts the writers, after what is there.
func (c *Chains) Run(disks []block.Device) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	c.cancel, c.ended = cancel, ended
	go func() { // ends with the writers, or with the process of a failed test
		defer close(ended)
		c.err = c.Chains.Run(ctx, disks)
	}()
}

// Stop ends the writers between two writes, and gives their errors. A request that is not answered in
// time is one, too: held is right only as long as the fault lasts.
func (c *Chains) Stop(within time.Duration) error {
	c.cancel()
	return c.Wait(within)
}

// Wait is for the end of writers whose disks are gone.
func (c *Chains) Wait(within time.Duration) error {
	select {
	case <-c.ended:
		return c.err
	case <-time.After(within):
		return ErrUnanswered
	}
}

// ErrUnanswered: a request was held although nothing is broken any more.
var ErrUnanswered = errors.New("a request was never answered")

// Progress waits until so many more writes are acknowledged; the end of all writers ends it.
func (c *Chains) Progress(within time.Duration, more uint64) error {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for goal := c.Total() + more; c.Total() < goal; <-tick.C {
		select {
		case <-c.ended:
			return fmt.Errorf("the writers have ended: %w", c.err)
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d writes are missing after %s", goal-c.Total(), more, within)
		}
	}
	return nil
}

// Inspect is that of history.Chains, in bounded time.
func (c *Chains) Inspect(ctx context.Context, disks []block.Device) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	return c.Chains.Inspect(ctx, disks)
}

// InspectAfterPowerLoss is that of history.Chains, in bounded time.
func (c *Chains) InspectAfterPowerLoss(ctx context.Context, disks []block.Device) (lost int, err error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	return c.Chains.InspectAfterPowerLoss(ctx, disks)
}

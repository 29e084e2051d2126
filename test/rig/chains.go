package rig

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

// A chain is a sequence of dependent writes: write k goes to disk k modulo the number of disks, and
// only after write k-1, on another disk, was acknowledged, as a database writes its table after its
// log. Each disk has ChainSlots blocks for a chain, used in turn, so an image holds the last writes of
// every chain, and from the newest one everything else is known exactly: any lost or reordered write
// shows.
const (
	ChainCount = 16
	ChainSlots = 16
	BlockBytes = 4096
	// ChainBytes is how much of the beginning of each disk the chains use.
	ChainBytes = ChainCount * ChainSlots * BlockBytes
)

// Chains is the application, with its memory of what was acknowledged and what was flushed.
type Chains struct {
	disks  int
	acked  [ChainCount]atomic.Uint64
	stable [ChainCount]atomic.Uint64 // acknowledged before a flush of all disks began that succeeded
	floor  [ChainCount]uint64        // what was there after the last loss of both sides' power, gaps and all
	total  atomic.Uint64

	// FlushEvery makes each chain flush all disks after so many writes; 0: never. FUAEvery makes every
	// so manieth write one with FUA.
	FlushEvery, FUAEvery uint64

	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error
}

// NewChains is an application that has not written yet, for so many disks.
func NewChains(disks int) *Chains { return &Chains{disks: disks} }

// Total is how many writes were acknowledged.
func (c *Chains) Total() uint64 { return c.total.Load() }

// place says where write k of a chain is; writes count from 1.
func (c *Chains) place(chain int, k uint64) (disk int, off int64) {
	n := uint64(c.disks)
	return int(k % n), int64(chain*ChainSlots+int(k/n%ChainSlots)) * BlockBytes
}

// fill makes the block of write k: chain, seq, filler that follows from them, checksum of all.
func fill(b []byte, chain int, k uint64) {
	binary.LittleEndian.PutUint64(b, uint64(chain))
	binary.LittleEndian.PutUint64(b[8:], k)
	r := rand.NewPCG(uint64(chain), k)
	for i := 16; i < BlockBytes-8; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	binary.LittleEndian.PutUint64(b[BlockBytes-8:], uint64(crc32.ChecksumIEEE(b[:BlockBytes-8])))
}

// parse gives the write that a block holds, 0 if it was never written.
func parse(b []byte, chain int) (uint64, error) {
	k := binary.LittleEndian.Uint64(b[8:])
	if k == 0 {
		for i, x := range b {
			if x != 0 {
				return 0, fmt.Errorf("byte %d of an unwritten block is %#x", i, x)
			}
		}
		return 0, nil
	}
	if have := binary.LittleEndian.Uint64(b); have != uint64(chain) {
		return 0, fmt.Errorf("a block of chain %d", have)
	}
	if binary.LittleEndian.Uint64(b[BlockBytes-8:]) != uint64(crc32.ChecksumIEEE(b[:BlockBytes-8])) {
		return 0, fmt.Errorf("write %d has a wrong checksum", k)
	}
	return k, nil
}

// Run starts the writers, after what is there.
func (c *Chains) Run(disks []block.Device) {
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel, c.failed = cancel, make(chan error, ChainCount)
	for i := range ChainCount {
		c.wg.Go(func() {
			if err := c.write(ctx, i, disks); err != nil {
				c.failed <- err
			}
		})
	}
}

func (c *Chains) write(ctx context.Context, chain int, disks []block.Device) error {
	// A request under way is waited for: only the end of the connection leaves one open.
	lasting := context.WithoutCancel(ctx)
	b := make([]byte, BlockBytes)
	for ctx.Err() == nil {
		k := c.acked[chain].Load() + 1
		fill(b, chain, k)
		disk, off := c.place(chain, k)
		fua := c.FUAEvery != 0 && k%c.FUAEvery == 0
		if err := disks[disk].WriteAt(lasting, b, off, fua); err != nil {
			return fmt.Errorf("chain %d, write %d: %w", chain, k, err)
		}
		c.acked[chain].Store(k)
		c.total.Add(1)
		if c.FlushEvery != 0 && k%c.FlushEvery == 0 {
			for i, d := range disks {
				if err := d.Flush(lasting); err != nil {
					return fmt.Errorf("chain %d, flush of disk %d after write %d: %w", chain, i, k, err)
				}
			}
			c.stable[chain].Store(k)
		}
	}
	return nil
}

// Stop ends the writers between two writes, and gives the first error of any. A request that is not
// answered in time is one, too: held is right only as long as the fault lasts.
func (c *Chains) Stop(within time.Duration) error {
	c.cancel()
	return c.Wait(within)
}

// Wait is for the end of writers whose disks are gone.
func (c *Chains) Wait(within time.Duration) error {
	ended := make(chan struct{})
	go func() { // ends with the writers, or with the process of a failed test
		c.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(within):
		return ErrUnanswered
	}
	select {
	case err := <-c.failed:
		return err
	default:
		return nil
	}
}

// ErrUnanswered: a request was held although nothing is broken any more.
var ErrUnanswered = errors.New("a request was never answered")

// Progress waits until so many more writes are acknowledged; a writer that failed ends it.
func (c *Chains) Progress(within time.Duration, more uint64) error {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for goal := c.total.Load() + more; c.total.Load() < goal; <-tick.C {
		select {
		case err := <-c.failed:
			c.failed <- err
			return fmt.Errorf("a writer failed: %w", err)
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d writes are missing after %s", goal-c.total.Load(), more, within)
		}
	}
	return nil
}

// Inspect judges an image: every acknowledged write is there or was overwritten by a later one of its
// chain, at most one unacknowledged write of a chain is there, and none without all before it. Then
// it sets the chains to go on after what is there.
func (c *Chains) Inspect(ctx context.Context, disks []block.Device) error {
	_, err := c.inspect(ctx, disks, true)
	return err
}

// InspectAfterPowerLoss judges an image that lost the page cache of both sides: what was flushed is
// there, and nothing that was never written. It tells how many acknowledged writes at the ends of the
// chains are gone.
func (c *Chains) InspectAfterPowerLoss(ctx context.Context, disks []block.Device) (lost int, err error) {
	return c.inspect(ctx, disks, false)
}

func (c *Chains) inspect(ctx context.Context, disks []block.Device, exact bool) (lost int, err error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	image := make([][]byte, len(disks))
	for i := range image {
		image[i] = make([]byte, ChainBytes)
		if err := disks[i].ReadAt(ctx, image[i], 0); err != nil {
			return 0, fmt.Errorf("read disk %d: %w", i, err)
		}
	}
	return c.judge(image, exact)
}

func (c *Chains) judge(image [][]byte, exact bool) (lost int, err error) {
	var errs []error
	for chain := range ChainCount {
		var newest uint64
		for disk := range image {
			for slot := range ChainSlots {
				at := (chain*ChainSlots + slot) * BlockBytes
				k, err := parse(image[disk][at:at+BlockBytes], chain)
				if err != nil {
					errs = append(errs, fmt.Errorf("chain %d, disk %d, slot %d: %w", chain, disk, slot, err))
				}
				newest = max(newest, k)
			}
		}
		acked, kept := c.acked[chain].Load(), c.acked[chain].Load()
		if !exact {
			kept = c.stable[chain].Load()
		}
		if newest < kept {
			errs = append(errs, fmt.Errorf("chain %d: write %d was to be kept, the newest that is there is %d", chain, kept, newest))
		}
		if newest > acked+1 {
			errs = append(errs, fmt.Errorf("chain %d: write %d is there, and only %d was acknowledged", chain, newest, acked))
		}
		sure := newest
		if !exact {
			sure = kept
		}
		errs = append(errs, c.gaps(image, chain, newest, sure)...)
		lost += int(acked - min(acked, newest))
		c.acked[chain].Store(newest)
		c.stable[chain].Store(min(c.stable[chain].Load(), newest))
		if !exact {
			c.floor[chain] = newest
		}
	}
	return lost, errors.Join(errs...)
}

// gaps looks for writes up to sure that are not in their place although none that is there can have
// overwritten them.
func (c *Chains) gaps(image [][]byte, chain int, newest, sure uint64) []error {
	var errs []error
	window := uint64(c.disks * ChainSlots)
	for k := newest; k > 0 && k+window > newest; k-- {
		if k > sure || k <= c.floor[chain] {
			continue
		}
		disk, off := c.place(chain, k)
		if have, err := parse(image[disk][off:off+BlockBytes], chain); err == nil && have != k {
			errs = append(errs, fmt.Errorf("chain %d: write %d is there, but at the place of write %d is %d", chain, newest, k, have))
		}
	}
	return errs
}

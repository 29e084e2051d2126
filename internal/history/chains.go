package history

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

// Chains are dependent writes over several disks. Write k of a chain goes to disk k modulo their
// number, and only after write k-1, on another disk, was acknowledged: as a database writes its
// table after its log. Each disk has so many slots for a chain, used in turn, so an image holds the
// last writes of every chain, and from the newest one everything else is known exactly: any lost or
// reordered write shows. Writes count from 1. The disks' range must be zeroes at the beginning.
type Chains struct {
	run                 uint64
	disks, count, slots int
	base                int64

	// FlushEvery makes each chain flush all disks after so many writes; 0: never. FUAEvery makes every
	// so manieth write one with FUA. Both are set before Run.
	FlushEvery, FUAEvery uint64

	acked   []atomic.Uint64
	stable  []atomic.Uint64 // acknowledged before a flush of all disks began that succeeded
	floor   []uint64        // what was there after the last loss of both sides' power, gaps and all
	total   atomic.Uint64
	longest atomic.Int64 // ns
}

// NewChains makes count chains over so many disks, with slots blocks of each disk for each, from
// byte base on.
func NewChains(run uint64, disks, count, slots int, base int64) *Chains {
	return &Chains{
		run: run, disks: disks, count: count, slots: slots, base: base,
		acked: make([]atomic.Uint64, count), stable: make([]atomic.Uint64, count), floor: make([]uint64, count),
	}
}

// Bytes is how much of each disk they use.
func (c *Chains) Bytes() int64 { return int64(c.count*c.slots) * BlockBytes }

// Acknowledged is the sum over all chains and time.
func (c *Chains) Acknowledged() uint64 { return c.total.Load() }

// Newest is the newest acknowledged write of a chain.
func (c *Chains) Newest(chain int) uint64 { return c.acked[chain].Load() }

// SetNewest makes write k the newest acknowledged one of a chain: an image to which everything went
// back may lack those after it.
func (c *Chains) SetNewest(chain int, k uint64) { c.acked[chain].Store(k) }

// Longest is the longest time that a write took to be acknowledged, since the last call of it.
func (c *Chains) Longest() time.Duration { return time.Duration(c.longest.Swap(0)) }

// Place says where a write is: the disk and the byte.
func (c *Chains) Place(chain int, k uint64) (disk int, off int64) {
	n := uint64(c.disks)
	return int(k % n), c.base + int64(chain*c.slots+int(k/n%uint64(c.slots)))*BlockBytes
}

func (c *Chains) stamp(disk, chain int, k uint64) stamp {
	return stamp{c.run, disk, kindChain, uint64(chain), Value(k)}
}

// Fill makes the content of a write.
func (c *Chains) Fill(b []byte, chain int, k uint64) {
	disk, _ := c.Place(chain, k)
	c.stamp(disk, chain, k).fill(b)
}

// Parse gives the write that a block of a chain on a disk holds, 0 if it was never written.
func (c *Chains) Parse(b []byte, disk, chain int) (uint64, error) {
	k, err := c.stamp(disk, chain, 0).read(b[:BlockBytes])
	return uint64(k), err
}

// Run goes on with every chain after its last acknowledged write, until ctx ends or a disk fails,
// and returns the disks' errors. A write that is under way at the end of ctx is waited for; only the
// loss of its connection leaves one open, and the next Run does it again.
func (c *Chains) Run(ctx context.Context, disks []block.Device) error {
	var wg sync.WaitGroup
	errs := make([]error, c.count)
	for chain := range c.count {
		wg.Go(func() { errs[chain] = c.write(ctx, chain, disks) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *Chains) write(ctx context.Context, chain int, disks []block.Device) error {
	lasting := context.WithoutCancel(ctx)
	b := make([]byte, BlockBytes)
	for ctx.Err() == nil {
		k := c.acked[chain].Load() + 1
		c.Fill(b, chain, k)
		disk, off := c.Place(chain, k)
		began := time.Now()
		if err := disks[disk].WriteAt(lasting, b, off, c.FUAEvery != 0 && k%c.FUAEvery == 0); err != nil {
			return fmt.Errorf("chain %d, write %d: %w", chain, k, err)
		}
		took := time.Since(began).Nanoseconds()
		for old := c.longest.Load(); took > old && !c.longest.CompareAndSwap(old, took); old = c.longest.Load() {
		}
		c.acked[chain].Store(k)
		c.total.Add(1)
		if c.FlushEvery == 0 || k%c.FlushEvery != 0 {
			continue
		}
		for i, d := range disks {
			if err := d.Flush(lasting); err != nil {
				return fmt.Errorf("chain %d, flush of disk %d after write %d: %w", chain, i, k, err)
			}
		}
		c.stable[chain].Store(k)
	}
	return nil
}

// Inspect reads the disks and judges them as Judge does. No chain may be running.
func (c *Chains) Inspect(ctx context.Context, disks []block.Device) error {
	image, err := c.read(ctx, disks)
	if err != nil {
		return err
	}
	if err := c.Judge(image); err != nil {
		return &ImageError{err}
	}
	return nil
}

// InspectAfterPowerLoss judges disks that lost the page cache of both sides: what was flushed is there,
// and nothing that was never written. It tells how many acknowledged writes at the ends of the chains
// are gone, and sets the chains to go on after what is there.
func (c *Chains) InspectAfterPowerLoss(ctx context.Context, disks []block.Device) (lost int, err error) {
	image, err := c.read(ctx, disks)
	if err != nil {
		return 0, err
	}
	return c.judge(image, false)
}

func (c *Chains) read(ctx context.Context, disks []block.Device) ([][]byte, error) {
	image := make([][]byte, c.disks)
	for i := range image {
		image[i] = make([]byte, c.Bytes())
		if err := disks[i].ReadAt(ctx, image[i], c.base); err != nil {
			return nil, fmt.Errorf("read disk %d: %w", i, err)
		}
	}
	return image, nil
}

// ImageError says what is wrong with an image; other errors of Inspect are the disks'.
type ImageError struct{ err error }

func (e *ImageError) Error() string { return e.err.Error() }
func (e *ImageError) Unwrap() error { return e.err }

// Judge judges an image, of each disk the chains' bytes: every acknowledged write is there or was
// overwritten by a later one of its chain, at most one unacknowledged write of a chain is there, and
// none without all before it. It then sets the chains to go on after what is there, as an
// application that recovers from its disks.
func (c *Chains) Judge(image [][]byte) error {
	_, err := c.judge(image, true)
	return err
}

// judge: exact, nothing acknowledged may be missing; else what was not flushed may be.
func (c *Chains) judge(image [][]byte, exact bool) (lost int, err error) {
	var errs []error
	for chain := range c.count {
		var newest uint64
		for disk := range image {
			for slot := range c.slots {
				at := (chain*c.slots + slot) * BlockBytes
				k, err := c.Parse(image[disk][at:at+BlockBytes], disk, chain)
				if err != nil {
					errs = append(errs, fmt.Errorf("chain %d, disk %d, slot %d: %w", chain, disk, slot, err))
				}
				newest = max(newest, k)
			}
		}
		acked := c.acked[chain].Load()
		kept, sure := acked, newest // writes up to sure are in their places
		if !exact {
			kept = c.stable[chain].Load()
			sure = kept
		}
		if newest < kept {
			errs = append(errs, fmt.Errorf("chain %d: write %d was to be kept, the newest that is there is %d", chain, kept, newest))
		}
		if newest > acked+1 {
			errs = append(errs, fmt.Errorf("chain %d: write %d is there, and only %d was acknowledged", chain, newest, acked))
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
	for k := newest; k > 0 && k+uint64(c.disks*c.slots) > newest; k-- {
		if k > sure || k <= c.floor[chain] {
			continue
		}
		disk, off := c.Place(chain, k)
		if have, err := c.Parse(image[disk][off-c.base:], disk, chain); err == nil && have != k {
			errs = append(errs, fmt.Errorf("chain %d: write %d is there, but at the place of write %d is %d", chain, newest, k, have))
		}
	}
	return errs
}

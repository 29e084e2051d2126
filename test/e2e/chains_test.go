package e2e

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
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// Chains of dependent writes. Write k of a chain goes to disk k%2, and only after write k-1, on the
// other disk, was acknowledged: as a database writes its table after its log. Each disk has
// slots blocks for a chain, used in turn, so an image holds the last 2*slots writes of every chain,
// and from the newest one everything else is known exactly: any lost or reordered write shows.
const (
	chainCount = 32
	chainSlots = 16
	blockSize  = 4096
	chainBytes = chainCount * chainSlots * blockSize
)

// place says where write k of a chain is; writes count from 1.
func place(chain int, k uint64) (disk int, off int64) {
	return int(k % 2), int64(chain*chainSlots+int(k/2%chainSlots)) * blockSize
}

// fill makes the block of write k: chain, seq, filler that follows from them, checksum of all.
func fill(b []byte, chain int, k uint64) {
	binary.LittleEndian.PutUint64(b, uint64(chain))
	binary.LittleEndian.PutUint64(b[8:], k)
	r := rand.NewPCG(uint64(chain), k)
	for i := 16; i < blockSize-8; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	binary.LittleEndian.PutUint64(b[blockSize-8:], uint64(crc32.ChecksumIEEE(b[:blockSize-8])))
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
	if binary.LittleEndian.Uint64(b[blockSize-8:]) != uint64(crc32.ChecksumIEEE(b[:blockSize-8])) {
		return 0, fmt.Errorf("write %d has a wrong checksum", k)
	}
	return k, nil
}

// chains is the application with its memory of what was acknowledged.
type chains struct {
	acked [chainCount]atomic.Uint64
	total atomic.Uint64
	// longest is the longest time between asking for a write and its acknowledgement, ns.
	longest atomic.Int64

	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error
}

// run starts the writers on two disks, after what was acknowledged.
func (c *chains) run(disks [2]block.Device) {
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel, c.failed = cancel, make(chan error, chainCount)
	c.longest.Store(0)
	for i := range chainCount {
		c.wg.Go(func() {
			if err := c.write(ctx, i, disks); err != nil {
				c.failed <- err
			}
		})
	}
}

func (c *chains) write(ctx context.Context, chain int, disks [2]block.Device) error {
	b := make([]byte, blockSize)
	for ctx.Err() == nil {
		k := c.acked[chain].Load() + 1
		fill(b, chain, k)
		disk, off := place(chain, k)
		began := time.Now()
		// A write under way is waited for: only the end of the connection leaves one open.
		if err := disks[disk].WriteAt(context.WithoutCancel(ctx), b, off, false); err != nil {
			return fmt.Errorf("chain %d, write %d: %w", chain, k, err)
		}
		if took := time.Since(began).Nanoseconds(); took > c.longest.Load() {
			c.longest.Store(took)
		}
		c.acked[chain].Store(k)
		c.total.Add(1)
	}
	return nil
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
	ended := make(chan struct{})
	go func() { // ends with the writers, or with the process of a failed test
		c.wg.Wait()
		close(ended)
	}()
	g.eventually(patience, "every write is answered", func() error {
		select {
		case <-ended:
			return nil
		default:
			return errNotYet
		}
	})
	select {
	case err := <-c.failed:
		return err
	default:
		return nil
	}
}

// progress waits until so many more writes are acknowledged.
func (c *chains) progress(g *group, within time.Duration, more uint64) {
	g.t.Helper()
	goal := c.total.Load() + more
	g.eventually(within, fmt.Sprintf("%d more writes", more), func() error {
		select {
		case err := <-c.failed:
			g.t.Fatalf("a writer failed: %v", err)
		default:
		}
		if have := c.total.Load(); have < goal {
			return fmt.Errorf("%d are missing", goal-have)
		}
		return nil
	})
}

// inspect judges an image: every acknowledged write is there or was overwritten by a later one of
// its chain, at most one unacknowledged write of a chain is there, and none without all before it.
// Then it sets the chains to go on after what is there.
func (c *chains) inspect(ctx context.Context, disks [2]block.Device) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var image [2][]byte
	for i := range image {
		image[i] = make([]byte, chainBytes)
		if err := disks[i].ReadAt(ctx, image[i], 0); err != nil {
			return fmt.Errorf("read disk %d: %w", i, err)
		}
	}
	return c.judge(image)
}

func (c *chains) judge(image [2][]byte) error {
	var errs []error
	for chain := range chainCount {
		var newest uint64
		for disk := range image {
			for slot := range chainSlots {
				at := (chain*chainSlots + slot) * blockSize
				k, err := parse(image[disk][at:at+blockSize], chain)
				if err != nil {
					errs = append(errs, fmt.Errorf("chain %d, disk %d, slot %d: %w", chain, disk, slot, err))
				}
				newest = max(newest, k)
			}
		}
		acked := c.acked[chain].Load()
		if newest < acked {
			errs = append(errs, fmt.Errorf("chain %d: write %d was acknowledged, the newest that is there is %d", chain, acked, newest))
		}
		if newest > acked+1 {
			errs = append(errs, fmt.Errorf("chain %d: write %d is there, and only %d was acknowledged", chain, newest, acked))
		}
		for k := newest; k > 0 && k+2*chainSlots > newest; k-- {
			disk, off := place(chain, k)
			if have, err := parse(image[disk][off:off+blockSize], chain); err == nil && have != k {
				errs = append(errs, fmt.Errorf("chain %d: write %d is there, but at the place of write %d is %d", chain, newest, k, have))
			}
		}
		c.acked[chain].Store(newest)
	}
	return errors.Join(errs...)
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

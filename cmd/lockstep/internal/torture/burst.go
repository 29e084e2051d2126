package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
	"github.com/lockstep-dr/lockstep/protocol"
)

const (
	burstDepth = 8        // writes in flight on each disk
	burstBytes = 64 << 10 // of each
	goesWithin = 10 * time.Second
)

// burst writes random data to random places of the group's disks in a zone, several writes at once,
// for that time or until the disks are lost. Nobody writes there again, so that what one side lacks
// stays to be seen when the sides are compared. It runs beside; a.wg waits for it.
func (a *aim) burst(ctx context.Context, az string, last time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, last)
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		defer cancel()
		var all sync.WaitGroup
		for _, d := range a.g.disks {
			c, err := a.rig.dial(ctx, d, az)
			if err != nil {
				a.note("burst: %v", err)
				continue
			}
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			for range burstDepth {
				all.Go(func() {
					rnd, data := rand.New(rand.NewPCG(rand.Uint64(), 2)), make([]byte, burstBytes)
					for ctx.Err() == nil {
						for i := range data {
							data[i] = byte(rnd.Uint32())
						}
						if c.WriteAt(ctx, data, burstAt+rnd.Int64N(burstRange/burstBytes)*burstBytes, false) != nil {
							return
						}
						pause(ctx, 2*time.Millisecond)
					}
				})
			}
		}
		all.Wait()
	}()
}

// goesRound waits until the chains have written all their slots anew.
func (a *aim) goesRound(ctx context.Context) error {
	goal := make([]uint64, chainsCount)
	for i := range goal {
		goal[i] = a.g.chains.Newest(i) + uint64(len(a.g.disks)*chainsSlots) + 2
	}
	return missed(poll(ctx, goesWithin, "the chains went round", func(context.Context) error {
		for i := range goal {
			if have := a.g.chains.Newest(i); have < goal[i] {
				return fmt.Errorf("chain %d lacks %d writes", i, goal[i]-have)
			}
		}
		return nil
	}))
}

// goesOn waits until the application wrote something.
func (a *aim) goesOn(ctx context.Context) error {
	goal := a.g.chains.Acknowledged() + chainsCount
	return missed(poll(ctx, goesWithin, "the application goes on", func(context.Context) error {
		if a.g.chains.Acknowledged() < goal {
			return errors.New("it does not")
		}
		return nil
	}))
}

// judged waits until the application has opened its disks again, and so judged their image.
func (a *aim) judged(ctx context.Context) error {
	goal := a.report.images.Load() + 1
	return missed(poll(ctx, goesWithin, "the disks are opened again", func(context.Context) error {
		a.g.mu.Lock()
		defer a.g.mu.Unlock()
		if a.report.images.Load() < goal && a.g.lost == nil {
			return errors.New("they are not")
		}
		return nil
	}))
}

// syncs brings the group back in sync by calls.
func (a *aim) syncs(ctx context.Context) error {
	var called time.Time
	return missed(poll(ctx, time.Minute, "the group is in sync again", func(ctx context.Context) error {
		r, err := a.record(ctx, a.g)
		if err != nil {
			return err
		}
		if r.State == protocol.StateNormal && r.InSync {
			return nil
		}
		if r.State == protocol.StateNormal && time.Since(called) > time.Second {
			called = time.Now()
			err = a.rig.c.Act(ctx, a.g.id, client.ActionSync)
			a.note("%s: synchronize: %v", r.Describe(), err)
		}
		return errors.New(r.Describe())
	}))
}

// Where the hot range stands, in bytes: between the registers and the bulk data.
const (
	hotAt      = 56 << 20
	hotBytes   = 1 << 20
	hotWriters = 2
	hotReaders = 4
)

// hammer writes whole ranges of one byte's value, and reads them beside it: whatever a read overlaps,
// each block of it has one value. It ends with ctx, after that time, or when the disk is lost.
func (a *aim) hammer(ctx context.Context, last time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, last)
	defer cancel()
	d := a.g.disks[0]
	var all sync.WaitGroup
	var value atomic.Uint64
	var reads atomic.Int64
	with := func(use func(c *nbdclient.Client, b []byte) error) {
		all.Go(func() {
			c, err := a.rig.dial(ctx, d, a.primary)
			if err != nil {
				return
			}
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			for b := make([]byte, hotBytes); ctx.Err() == nil && use(c, b) == nil; {
			}
		})
	}
	for range hotWriters {
		with(func(c *nbdclient.Client, b []byte) error {
			copy(b, bytes.Repeat([]byte{byte(value.Add(1)%255 + 1)}, len(b)))
			return c.WriteAt(ctx, b, hotAt, false)
		})
	}
	for range hotReaders {
		with(func(c *nbdclient.Client, b []byte) error {
			if err := c.ReadAt(ctx, b, hotAt); err != nil {
				return err
			}
			reads.Add(1)
			if at := tornAt(b); at >= 0 {
				a.g.lose(fmt.Errorf("a read of disk %d in %s was torn: byte %d is of another write than the first byte of its block", d.number, a.primary, hotAt+at))
			}
			return nil
		})
	}
	all.Wait()
	a.report.hot.Add(reads.Load())
}

// tornBlock is the unit that a read must give whole: the least that a disk's block may be is 512 bytes,
// and clients rely on 4 KiB.
const tornBlock = 4096

// tornAt gives the first byte that differs from the first one of its block, or -1.
func tornAt(b []byte) int {
	for off := 0; off < len(b); off += tornBlock {
		block := b[off : off+tornBlock]
		for i := range block {
			if block[i] != block[0] {
				return off + i
			}
		}
	}
	return -1
}

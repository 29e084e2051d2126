package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
)

// The workload: chains of dependent writes over two disks. Write k+1 of a chain is issued on the
// other disk only after write k was acknowledged, as a database issues its table write after its
// log write. So whatever image of the two disks is consistent holds a prefix of every chain, and
// an image that lost nothing holds at least what was acknowledged.
//
// Every write has a block of its own, which no other write ever touches: each chain owns as many
// blocks, the same of both disks, and write k goes to disk k%2, slot k/2. The base (base.go) lies
// between the blocks of two chains.
const (
	blockBytes  = 4096
	chainsCount = 8
	disksCount  = 2
	// The last MiB of each disk belongs to no chain: the probe writes there.
	reservedBytes = 1 << 20
)

// Layout of a block, little endian: magic, run, chain u32, disk u32, sequence u64, filler that
// follows from them, SHA-256 of all before it.
const (
	magic     = "LOCKSTEP-DEMO-1\n"
	runAt     = 16
	chainAt   = 24
	diskAt    = 28
	seqAt     = 32
	fillerAt  = 40
	sumAt     = blockBytes - sha256.Size
	fillerEnd = sumAt
)

// encode fills b with write seq of a chain.
func encode(b []byte, run uint64, chain int, seq uint64) {
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint64(b[runAt:], run)
	le.PutUint32(b[chainAt:], uint32(chain))
	le.PutUint32(b[diskAt:], uint32(seq%disksCount))
	le.PutUint64(b[seqAt:], seq)
	r := rand.New(rand.NewPCG(run, uint64(chain)<<40|seq))
	for i := fillerAt; i < fillerEnd; i += 8 {
		le.PutUint64(b[i:], r.Uint64())
	}
	sum := sha256.Sum256(b[:sumAt])
	copy(b[sumAt:], sum[:])
}

var unwritten [blockBytes]byte

// decode tells whether b is unwritten, or exactly write seq of the chain; anything else is an
// error.
func decode(b []byte, run uint64, chain int, seq uint64) (present bool, err error) {
	if bytes.Equal(b, unwritten[:]) {
		return false, nil
	}
	if sha256.Sum256(b[:sumAt]) != [sha256.Size]byte(b[sumAt:]) || string(b[:len(magic)]) != magic {
		return false, fmt.Errorf("chain %d, write %d: the block is neither empty nor whole", chain, seq)
	}
	le := binary.LittleEndian
	if r, c, s := le.Uint64(b[runAt:]), le.Uint32(b[chainAt:]), le.Uint64(b[seqAt:]); r != run || c != uint32(chain) || s != seq {
		return false, fmt.Errorf("chain %d, write %d: the block holds write %d of chain %d of run %d", chain, seq, s, c, r)
	}
	return true, nil
}

// history is what the workload knows: how many writes of each chain were acknowledged. It is the
// judge's memory, kept outside of the deployment.
type history struct {
	run   uint64
	slots uint64 // blocks of a chain on one disk
	// stride is the distance between the first blocks of two chains.
	stride int64
	next   [chainsCount]atomic.Uint64
}

// newHistory shares the disks out among the chains, with a gap of whole pieces after each.
func newHistory(run uint64, diskBytes, gapBytes int64) *history {
	slots := (diskBytes - reservedBytes - chainsCount*gapBytes) / blockBytes / chainsCount
	return &history{run: run, slots: uint64(slots), stride: slots*blockBytes + gapBytes}
}

// capacity is how many writes a chain can hold.
func (h *history) capacity() uint64 { return h.slots * disksCount }

// acknowledged is the sum over all chains.
func (h *history) acknowledged() (n uint64) {
	for i := range h.next {
		n += h.next[i].Load()
	}
	return n
}

func (h *history) offset(chain int, seq uint64) int64 {
	return int64(chain)*h.stride + int64(seq/disksCount)*blockBytes
}

// workload is a running set of chains.
type workload struct {
	h      *history
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error // capacity: one for each chain
}

// startWorkload continues every chain after its last acknowledged write.
func startWorkload(ctx context.Context, h *history, disks [disksCount]block.Device) *workload {
	ctx, cancel := context.WithCancel(ctx)
	w := &workload{h: h, cancel: cancel, failed: make(chan error, chainsCount)}
	for c := range chainsCount {
		w.wg.Go(func() {
			if err := w.chain(ctx, c, disks); err != nil && ctx.Err() == nil {
				w.failed <- err
			}
		})
	}
	return w
}

func (w *workload) chain(ctx context.Context, chain int, disks [disksCount]block.Device) error {
	b := make([]byte, blockBytes)
	for ctx.Err() == nil {
		seq := w.h.next[chain].Load()
		if seq >= w.h.capacity() {
			return nil // full; the others go on
		}
		encode(b, w.h.run, chain, seq)
		// A write that is under way when the chains are asked to stop is waited for, so that its
		// outcome is known: only the loss of the connection leaves one open.
		if err := disks[seq%disksCount].WriteAt(context.WithoutCancel(ctx), b, w.h.offset(chain, seq), false); err != nil {
			return fmt.Errorf("chain %d, write %d: %w", chain, seq, err)
		}
		w.h.next[chain].Store(seq + 1)
	}
	return nil
}

// stop ends the chains between two writes.
func (w *workload) stop() error {
	w.cancel()
	w.wg.Wait()
	select {
	case err := <-w.failed:
		return err
	default:
		return nil
	}
}

// broken waits for all chains to fail, as they must when their disks are gone.
func (w *workload) broken(ctx context.Context) error {
	ended := make(chan struct{})
	go func() { // ends with the chains, which stop waits for at the latest
		w.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		if len(w.failed) == 0 {
			return fmt.Errorf("the writers did not notice that their disks are gone")
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the writers: %w", context.Cause(ctx))
	}
}

// until waits for more acknowledged writes in every chain. It fails with the chains.
func (w *workload) until(ctx context.Context, more uint64) error {
	var goal [chainsCount]uint64
	for c := range goal {
		goal[c] = min(w.h.next[c].Load()+more, w.h.capacity())
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		reached := true
		for c := range goal {
			reached = reached && w.h.next[c].Load() >= goal[c]
		}
		if reached {
			return nil
		}
		select {
		case err := <-w.failed:
			return fmt.Errorf("write: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("wait for writes: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// verdict is what a look at two disks found.
type verdict struct {
	acknowledged uint64 // writes that had been acknowledged
	missing      uint64 // of them, those that are not there
	extra        uint64 // writes that are there and were never acknowledged: at most one a chain
	holes        uint64 // writes that are there without their predecessor
	beyond       uint64 // chains that hold more than the one write that was under way
}

// lostBytes is the recovery point: acknowledged data that is not there.
func (v verdict) lostBytes() uint64 { return v.missing * blockBytes }

// inspect reads every block of every chain and judges: all acknowledged writes are there, and the
// two disks are one consistent cut. It then sets each chain to go on after the last write that is
// there, as an application does that recovers from its disks.
func inspect(ctx context.Context, h *history, disks [disksCount]block.Device) (verdict, error) {
	var v verdict
	var found [chainsCount][]bool
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for c := range chainsCount {
		g.Go(func() (err error) {
			found[c], err = scan(ctx, h, disks, c)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return v, err
	}
	for c, present := range found {
		acked := h.next[c].Load()
		v.acknowledged += acked
		last := uint64(0)
		for seq, there := range present {
			seq := uint64(seq)
			switch {
			case there && seq > 0 && !present[seq-1]:
				v.holes++
			case there && seq >= acked:
				v.extra++
			case !there && seq < acked:
				v.missing++
			}
			if there {
				last = seq + 1
			}
		}
		if last > acked+1 {
			v.beyond++
		}
		h.next[c].Store(last)
	}
	switch {
	case v.missing > 0:
		return v, fmt.Errorf("%d acknowledged writes (%d bytes) are lost", v.missing, v.lostBytes())
	case v.holes > 0:
		return v, fmt.Errorf("%d writes are there without their predecessor: the disks are no consistent cut", v.holes)
	case v.beyond > 0:
		return v, fmt.Errorf("%d chains hold writes that were never issued", v.beyond)
	}
	return v, nil
}

// scanBytes is how much is read at once.
const scanBytes = 1 << 20

// scan tells for every write that a chain could ever hold whether it is
// there. All slots are read: those beyond the last write must be as they were made, empty.
func scan(ctx context.Context, h *history, disks [disksCount]block.Device, chain int) ([]bool, error) {
	present := make([]bool, h.capacity())
	buf := make([]byte, scanBytes)
	for d, disk := range disks {
		base := h.offset(chain, 0)
		for at := int64(0); at < int64(h.slots)*blockBytes; at += scanBytes {
			part := buf[:min(scanBytes, int64(h.slots)*blockBytes-at)]
			if err := disk.ReadAt(ctx, part, base+at); err != nil {
				return nil, fmt.Errorf("read disk %d at %d: %w", d, base+at, err)
			}
			for i := 0; i < len(part); i += blockBytes {
				slot := (at + int64(i)) / blockBytes
				seq := uint64(slot)*disksCount + uint64(d)
				there, err := decode(part[i:i+blockBytes], h.run, chain, seq)
				if err != nil {
					return nil, fmt.Errorf("disk %d: %w: %w", d, lockstep.ErrCorrupt, err)
				}
				present[seq] = there
			}
		}
	}
	return present, nil
}

// probe writes one block to the reserved end of a disk.
func probe(ctx context.Context, disk block.Device, stamp uint64) error {
	b := make([]byte, blockBytes)
	binary.LittleEndian.PutUint64(b, stamp)
	return disk.WriteAt(ctx, b, disk.Size()-blockBytes, false)
}

package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/bitmap"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/disk"
	"github.com/lockstep-dr/lockstep/internal/invariant"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// Volume is one node's replica of one volume and the data path of its requests: a block.Device.
// It consults the protocol only for the mode; see protocol.Mode.
//
// A client's write is an op from its admission to its acknowledgement. Ops that overlap are never
// in flight together, chunks of a resync included, so both sides apply them in one order. An op
// that was admitted is never abandoned: what both sides have would be unknown.
type Volume struct {
	id   lockstep.VolumeID
	key  uint64          // of its pair in frames; set under mu when it joins a group, while it is held
	pair lockstep.PairID // likewise
	disk *disk.Volume
	size atomic.Int64 // announced size, bytes
	fail func(v *Volume, err error)

	keepMarks   uint64     // background flushes for which marks of idle regions are kept
	intentLimit int64      // bytes that the write-intent log may mark while two-sided
	roomMu      sync.Mutex // one at a time makes room in it; held across the flushes of both sides

	mu        sync.Mutex // guards everything below; never held across I/O
	mode      protocol.Mode
	why       string
	epoch     lockstep.Epoch // under which link is used; kept while held
	gen       uint64         // raised by every change of mode, epoch or link
	changed   chan struct{}  // closed and renewed with gen
	closed    chan struct{}  // closed while the volume is refused: its exports are dropped
	link      *link
	lease     *lease
	draining  bool // held, but acknowledgements still count
	ops       []*op
	reads     []*read         // of the disk, under way
	spare     []*op           // to be used again
	answers   []block.Flusher // that finish has told
	bySeq     map[uint64]*op
	submitted int           // local I/O under way
	settled   chan struct{} // closed when submitted or ops shrink; nil: nobody waits
	failed    error
	stopped   bool           // the node stops: nothing waits any more
	todo      *bitmap.Bitmap // copying: chunks still to send
	todoEpoch lockstep.Epoch
	todoPeer  life // of the secondary that got the rest
	// unrepaired: in sync after a restart, what is still to compare; nil: nothing.
	unrepaired *unrepaired
	total      int64 // chunks to send when the copying began

	flushing atomic.Bool // a background flush is under way
	ahead    atomic.Bool // marks are being made ahead of a stream
}

type opKind uint8

const (
	opWrite opKind = iota
	opZero
	opChunk // a resync's claim on a range; not a client's request
)

// op is a write in flight.
type op struct {
	kind      opKind
	ext       lockstep.Extent
	data      []byte
	flags     uint16 // wire flags
	marked    bool   // in the write-intent log
	dirty     bool   // in the dirty map
	submitted bool   // local I/O begun, or done
	local     bool   // applied here
	acked     bool   // by the secondary, on the present link and epoch
	unsent    bool   // copying: the secondary gets it with its chunk
	seq       uint64
	sentAt    time.Duration // the clock when it was sent first, on whatever link; 0: never
	over      bool
	queued    bool             // a claim that waits for ops before it, while those after it wait for it
	done      chan error       // capacity 1; of an op without c
	c         block.Completion // of a batch
	gone      chan struct{}    // closed when the op has left the list; made on demand
}

func newVolume(d *disk.Volume, intentLimit int64, keepMarks uint64, fail func(*Volume, error)) *Volume {
	v := &Volume{
		id: d.ID(), disk: d, fail: fail, intentLimit: intentLimit, keepMarks: keepMarks, mode: protocol.ModeHeld, why: "starting",
		changed: make(chan struct{}), closed: make(chan struct{}), bySeq: map[uint64]*op{},
	}
	v.size.Store(d.Size())
	return v
}

// Size is the announced size in bytes.
func (v *Volume) Size() int64 { return v.size.Load() }

// refusal says why no request can be taken at all. Called with mu held.
func (v *Volume) refusal() error {
	if v.failed != nil {
		return v.failed
	}
	if v.stopped {
		return errStopped
	}
	if v.mode == protocol.ModeRefused {
		return fmt.Errorf("%s: %w", v.why, lockstep.ErrDemoted)
	}
	return nil
}

// errStopped ends what waits when the node stops; what became of a write is unknown to the client,
// and its marks are kept.
var errStopped = fmt.Errorf("the node is shutting down: %w", lockstep.ErrNotPrimary)

// release lets go of everything that waits: the node stops.
func (v *Volume) release() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stopped {
		return
	}
	v.stopped = true
	v.dropUnrepaired()
	v.gen++
	close(v.changed)
	v.changed = make(chan struct{})
	v.completeAll()
}

// wait unlocks mu, waits for one of the channels or ctx, and locks again.
func (v *Volume) wait(ctx context.Context, ch <-chan struct{}) error {
	v.mu.Unlock()
	defer v.mu.Lock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// WriteAt implements block.Device.
func (v *Volume) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := block.CheckRange(off, int64(len(p)), v.Size()); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	o := &op{kind: opWrite, ext: lockstep.Extent{Off: off, Len: int64(len(p))}, data: p}
	if fua {
		o.flags |= wire.FlagFUA
	}
	return v.write(ctx, o)
}

// Trim implements block.Device. It is Zero with holes: one result on both sides.
func (v *Volume) Trim(ctx context.Context, off, length int64, fua bool) error {
	return v.Zero(ctx, off, length, block.ZeroFlags{FUA: fua})
}

// Zero implements block.Device.
func (v *Volume) Zero(ctx context.Context, off, length int64, flags block.ZeroFlags) error {
	if err := block.CheckRange(off, length, v.Size()); err != nil {
		return err
	}
	if length == 0 {
		return nil
	}
	var bits uint16
	if flags.FUA {
		bits |= wire.FlagFUA
	}
	if flags.NoHole {
		bits |= wire.FlagNoHole
	}
	for end := off + length; off < end; {
		n := min(end-off, zeroBytes)
		if err := v.write(ctx, &op{kind: opZero, ext: lockstep.Extent{Off: off, Len: n}, flags: bits}); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// zeroBytes is the most that one op zeroes: a request of 4 GiB must neither look like a dead
// secondary nor keep a fence waiting for as long as it takes to write the zeroes.
const zeroBytes = int64(32) << 20

// admit waits until the mode takes requests to that range and nothing overlaps, and enters o.
func (v *Volume) admit(ctx context.Context, o *op) error {
	for {
		if err := v.admitRead(ctx, o.ext); err != nil {
			return err
		}
		if other := v.overlapping(o.ext); other != nil {
			if err := v.wait(ctx, other.leaving()); err != nil {
				return err
			}
			continue
		}
		v.ops = append(v.ops, o)
		invariant.Check(v.overlap)
		return nil
	}
}

// overlap says which two operations are in flight together that must not be. Called with mu held.
func (v *Volume) overlap() string {
	for i, a := range v.ops {
		for _, b := range v.ops[i+1:] {
			if a.ext.Overlaps(b.ext) && !a.queued && !b.queued {
				return fmt.Sprintf("volume %s: [%d,+%d) and [%d,+%d) are in flight together", v.id, a.ext.Off, a.ext.Len, b.ext.Off, b.ext.Len)
			}
		}
	}
	return ""
}

func (v *Volume) overlapping(e lockstep.Extent) *op {
	for _, o := range v.ops {
		if o.ext.Overlaps(e) {
			return o
		}
	}
	return nil
}

func (o *op) leaving() <-chan struct{} {
	if o.gone == nil {
		o.gone = make(chan struct{})
	}
	return o.gone
}

func (v *Volume) leave(o *op) {
	for i := range v.ops {
		if v.ops[i] == o {
			last := len(v.ops) - 1
			v.ops[i], v.ops[last] = v.ops[last], nil
			v.ops = v.ops[:last]
			break
		}
	}
	delete(v.bySeq, o.seq)
	o.over = true
	if o.gone != nil {
		close(o.gone)
	}
	v.settle()
}

func (v *Volume) settle() {
	if v.settled != nil {
		close(v.settled)
		v.settled = nil
	}
}

func replicates(m protocol.Mode) bool {
	return m == protocol.ModeTwoSided || m == protocol.ModeCopying || m == protocol.ModeCopyTwoSided
}

func tracksDirty(m protocol.Mode) bool {
	return m == protocol.ModeOneSided || m == protocol.ModeCopying || m == protocol.ModeCopyTwoSided
}

// write carries an op from admission to acknowledgement: the intent is durable before the data is
// submitted locally or sent.
func (v *Volume) write(ctx context.Context, o *op) error {
	o.done = make(chan error, 1)
	v.mu.Lock()
	if err := v.admit(ctx, o); err != nil {
		v.mu.Unlock()
		return err
	}
	send, err := v.submit(o)
	if err != nil {
		v.leave(o)
		v.mu.Unlock()
		return err
	}
	l := v.link
	at, frame := o.sentAt, v.frame(o)
	v.mu.Unlock()
	if send {
		l.enqueueAt(at, frame, o.data)
		l.push()
	}
	v.applied(o, v.apply(o))
	return <-o.done
}

// submit readies o for the present mode, doing what must precede the I/O; with mu held at both
// ends. A hold makes it wait here, without I/O; a demotion takes it out.
func (v *Volume) submit(o *op) (send bool, err error) {
	for {
		if err := v.refusal(); err != nil {
			return false, err
		}
		switch {
		case v.mode == protocol.ModeHeld:
			_ = v.wait(context.Background(), v.changed)
		case !o.marked && v.mode != protocol.ModePlain:
			twoSided := v.mode == protocol.ModeTwoSided
			v.mu.Unlock()
			var err error
			if twoSided {
				err = v.boundIntent(o.ext)
			}
			if err == nil {
				err = v.disk.MarkIntent(o.ext.Off, o.ext.Len)
				v.lookAhead(o.ext)
			}
			if err != nil {
				_ = v.broken(err)
			}
			v.mu.Lock()
			if err != nil {
				return false, err
			}
			o.marked = true
		case !o.dirty && tracksDirty(v.mode):
			v.mu.Unlock()
			err := v.disk.MarkDirty(o.ext.Off, o.ext.Len)
			if err != nil {
				_ = v.broken(err)
			}
			v.mu.Lock()
			if err != nil {
				return false, err
			}
			o.dirty = true
		default:
			o.submitted = true
			v.submitted++
			v.tear(o.ext)
			if v.mode == protocol.ModeOneSided {
				v.setTodo(o.ext)
			}
			if !replicates(v.mode) || v.link == nil {
				return false, nil
			}
			at := v.link.group.host.now()
			v.link.group.host.pace.wrote.Store(int64(at))
			if o.unsent = v.comesWithChunk(o.ext); o.unsent {
				return false, nil
			}
			o.seq, o.sentAt = v.link.nextSeq(), at
			v.bySeq[o.seq] = o
			return true, nil
		}
	}
}

// setTodo notes chunks that the secondary of a copying epoch did not get.
func (v *Volume) setTodo(e lockstep.Extent) {
	if v.todo != nil {
		from, to := chunks(e)
		v.todo.Grow(to) // a larger size counts before the epoch that announces it begins the list anew
		v.todo.SetRange(from, to)
	}
}

// comesWithChunk reports whether a write of a copying epoch need not be sent, because all its chunks are still to be
// sent: it is here and dirty when they are, for they are claimed after it has left. It spares the secondary the sync by
// which it would preserve the chunk for the write's sake. The write is one-sided, as every write was before the copying.
// Called with mu held.
func (v *Volume) comesWithChunk(e lockstep.Extent) bool {
	if v.mode != protocol.ModeCopying || v.todo == nil || v.todoEpoch != v.epoch || v.link == nil || v.todoPeer != v.link.life() {
		return false
	}
	from, to := chunks(e)
	return to <= v.todo.Len() && v.todo.AllSet(from, to)
}

// chunks gives the half-open range of chunk indexes that e touches.
func chunks(e lockstep.Extent) (from, to int) {
	return int(e.Off / lockstep.ChunkBytes), int((e.End() + lockstep.ChunkBytes - 1) / lockstep.ChunkBytes)
}

// frame is o's header under the present epoch. Called with mu held.
func (v *Volume) frame(o *op) wire.Header {
	kind := wire.KindWrite
	if o.kind == opZero {
		kind = wire.KindZero
	}
	return wire.Header{
		Kind: kind, Flags: o.flags, Epoch: v.epoch, Volume: v.key, Seq: o.seq,
		Offset: uint64(o.ext.Off), Length: uint64(o.ext.Len),
	}
}

func (v *Volume) apply(o *op) error {
	var err error
	if o.kind == opZero {
		err = v.disk.Zero(o.ext.Off, o.ext.Len, o.flags&wire.FlagNoHole != 0)
	} else {
		err = v.disk.WriteAt(o.data, o.ext.Off)
	}
	if err == nil && o.flags&wire.FlagFUA != 0 {
		err = v.disk.Sync()
	}
	return err
}

// complete acknowledges o if the present mode allows it. Called with mu held.
func (v *Volume) complete(o *op) {
	if o.over || !o.submitted || !o.local {
		return
	}
	var err error
	switch {
	case v.failed != nil:
		err = v.failed
	case v.stopped:
		err = errStopped
	}
	if err != nil {
		v.leave(o)
		v.finish(o, err)
		return
	}
	switch v.mode {
	case protocol.ModePlain:
	case protocol.ModeOneSided:
		if !o.dirty || v.lease != nil && !v.lease.holds(v.epoch) {
			return
		}
	case protocol.ModeTwoSided, protocol.ModeCopying, protocol.ModeCopyTwoSided:
		oneSided := o.unsent && v.mode == protocol.ModeCopying && o.dirty && (v.lease == nil || v.lease.holds(v.epoch))
		if !o.acked && !oneSided {
			return
		}
	case protocol.ModeHeld:
		if !v.draining || !o.acked {
			return
		}
	case protocol.ModeRefused:
		err = fmt.Errorf("%s: %w", v.why, lockstep.ErrDemoted)
	}
	v.leave(o)
	v.finish(o, err)
}

// acknowledged is the secondary's answer to a write; it counts only on the link and at the epoch
// on which it was asked for.
func (v *Volume) acknowledged(l *link, epoch lockstep.Epoch, seq uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	o := v.bySeq[seq]
	if o == nil || v.link != l || v.epoch != epoch || o.seq != seq {
		return
	}
	o.acked = true
	v.complete(o)
}

// broken makes the volume answer nothing but the error from now on: marks stay, nothing more is
// written, what was in flight ends with the error. It tells the owner, once, and gives the error
// that counts. Called without mu.
func (v *Volume) broken(err error) error {
	v.mu.Lock()
	if err := v.failed; err != nil {
		v.mu.Unlock()
		return err
	}
	v.failed = fmt.Errorf("volume %s: %w", v.id, err)
	if !errors.Is(err, lockstep.ErrNoSpace) && !errors.Is(err, lockstep.ErrVolumeFailed) {
		v.failed = fmt.Errorf("volume %s: %w: %w", v.id, lockstep.ErrVolumeFailed, err)
	}
	err = v.failed
	v.dropUnrepaired()
	v.gen++
	close(v.changed)
	v.changed = make(chan struct{})
	v.completeAll()
	v.mu.Unlock()
	v.fail(v, err)
	return err
}

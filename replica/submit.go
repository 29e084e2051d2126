package replica

import (
	"errors"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/internal/invariant"
	"github.com/lockstep-dr/lockstep/protocol"
)

// maxCachedRead is the largest read that a batch makes: copying more would keep its other requests waiting.
const maxCachedRead = 64 << 10

// batchOf is the block.Batch of one client of a volume. What it begins is the same op as any other write,
// under the same rules; it only never waits.
type batchOf struct {
	v    *Volume
	ops  []*op
	link *link // that frames were queued on; nil: none
	read read
}

// NewBatch implements block.Batcher.
func (v *Volume) NewBatch() block.Batch { return &batchOf{v: v} }

// admits reports whether the mode takes requests to the range now: admitRead without the wait. Called
// with mu held.
func (v *Volume) admits(ext lockstep.Extent) bool {
	return v.refusal() == nil && v.mode != protocol.ModeHeld && v.unrepairedIn(ext) == nil
}

// Write implements block.Batch. The intent is looked at under mu, and the op enters under the same lock:
// who clears marks sees either the op or the touch. So is the dirty map, which is cleared only by an epoch in
// which what is in flight is marked again before it is acknowledged one-sided.
func (b *batchOf) Write(p []byte, off int64, c block.Completion) bool {
	v := b.v
	ext := lockstep.Extent{Off: off, Len: int64(len(p))}
	if len(p) == 0 || block.CheckRange(off, ext.Len, v.Size()) != nil {
		return false
	}
	v.mu.Lock()
	sends, tracks := replicates(v.mode), tracksDirty(v.mode)
	if !sends && v.mode != protocol.ModePlain || !v.admits(ext) || v.overlapping(ext) != nil {
		v.mu.Unlock()
		return false
	}
	if sends && (v.link == nil || !v.disk.TryMarkIntent(off, ext.Len) || tracks && !v.disk.IsDirty(off, ext.Len)) {
		v.mu.Unlock()
		return false
	}
	o := v.newOp()
	*o = op{kind: opWrite, ext: ext, data: p, marked: sends, dirty: tracks, submitted: true, c: c}
	v.ops = append(v.ops, o)
	invariant.Check(v.overlap)
	v.submitted++
	v.tear(ext)
	b.ops = append(b.ops, o)
	if !sends {
		v.mu.Unlock()
		return true
	}
	l, at := v.link, v.link.group.host.now()
	l.group.host.pace.wrote.Store(int64(at))
	if o.unsent = v.comesWithChunk(ext); o.unsent {
		v.mu.Unlock()
		v.lookAhead(ext)
		return true
	}
	o.seq, o.sentAt = l.nextSeq(), at
	v.bySeq[o.seq] = o
	frame := v.frame(o)
	v.mu.Unlock()
	v.lookAhead(ext)
	l.enqueueAt(at, frame, p)
	if b.link != nil && b.link != l {
		b.link.push()
	}
	b.link = l
	return true
}

// lookAhead has the intent of a sequential stream marked before its writes come to it.
func (v *Volume) lookAhead(e lockstep.Extent) {
	if !v.disk.AheadDue(e.Off, e.Len) || !v.ahead.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer v.ahead.Store(false)
		_ = v.disk.MarkAhead(e.Off, e.Len) // the write that needs the mark meets the error
	}()
}

// Run implements block.Batch: what was queued leaves for the secondary first, so that both sides write at
// the same time.
func (b *batchOf) Run() {
	if len(b.ops) == 0 {
		return
	}
	if b.link != nil {
		b.link.push()
		b.link = nil
	}
	v := b.v
	for i, o := range b.ops {
		err := v.apply(o)
		v.applied(o, err)
		b.ops[i] = nil
	}
	b.ops = b.ops[:0]
	v.answer()
}

// applied notes that the local write of o has ended, and completes o if that was all.
func (v *Volume) applied(o *op, err error) {
	if err != nil && (!errors.Is(err, lockstep.ErrNoSpace) || o.seq != 0) {
		_ = v.broken(err) // before submitted falls: a demotion must see that what was sent is not here
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.submitted--
	o.local = true
	if err == nil {
		v.complete(o)
	} else if !o.over {
		v.leave(o)
		v.finish(o, err)
	}
	v.settle()
}

// Read implements block.Batch. It is ReadAt without a second try.
func (b *batchOf) Read(p []byte, off int64) bool {
	v := b.v
	ext := lockstep.Extent{Off: off, Len: int64(len(p))}
	if len(p) == 0 || len(p) > maxCachedRead || block.CheckRange(off, ext.Len, v.Size()) != nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.admits(ext) || v.inFlight(ext) {
		return false
	}
	gen := v.gen
	b.read = read{ext: ext, torn: b.read.torn[:0]}
	v.reads = append(v.reads, &b.read)
	v.mu.Unlock()
	ok := v.disk.ReadCached(p, off)
	v.mu.Lock()
	i := slices.Index(v.reads, &b.read)
	v.reads = slices.Delete(v.reads, i, i+1)
	return ok && len(b.read.torn) == 0 && v.gen == gen && (v.lease == nil || v.lease.holds(v.epoch))
}

// inFlight reports whether a client's write that overlaps is not acknowledged. Called with mu held.
func (v *Volume) inFlight(ext lockstep.Extent) bool {
	for _, o := range v.ops {
		if o.kind != opChunk && o.submitted && o.ext.Overlaps(ext) {
			return true
		}
	}
	return false
}

// newOp takes an op of an earlier batch, or makes one. Called with mu held.
func (v *Volume) newOp() *op {
	n := len(v.spare)
	if n == 0 {
		return new(op)
	}
	o := v.spare[n-1]
	v.spare = v.spare[:n-1]
	return o
}

// maxSpare is how many ops a volume keeps for later.
const maxSpare = 256

// finish tells who waits for o. Called with mu held; answers leave by answer, or by themselves.
func (v *Volume) finish(o *op, err error) {
	if o.c == nil {
		o.done <- err
		return
	}
	if f := o.c.Done(err); f != nil && !slices.Contains(v.answers, f) {
		v.answers = append(v.answers, f)
	}
	if o.gone == nil && len(v.spare) < maxSpare { // else somebody may still look at it
		*o = op{over: true}
		v.spare = append(v.spare, o)
	}
}

// answer sends what finish has told on its way. Called without mu.
func (v *Volume) answer() {
	v.mu.Lock()
	if len(v.answers) == 0 {
		v.mu.Unlock()
		return
	}
	var few [4]block.Flusher
	all := append(few[:0], v.answers...)
	clear(v.answers)
	v.answers = v.answers[:0]
	v.mu.Unlock()
	for _, f := range all {
		f.Flush()
	}
}

var _ block.Batcher = (*Volume)(nil)

package replica

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/internal/invariant"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// verifyBytes is what one claim of a verification covers, unless it is a hole: it is read and hashed on
// both sides, one after the other, while writes to it wait.
const verifyBytes = 256 << 10

// nextRange is what is compared next from off on; its length is 0 at the end of the volume. A hole is
// taken in larger pieces.
func (v *Volume) nextRange(off int64) lockstep.Extent {
	upTo := func(step int64) lockstep.Extent {
		return lockstep.Extent{Off: off, Len: min((off/step+1)*step, v.Size()) - off}
	}
	if e := upTo(compareBytes); e.Len > verifyBytes && v.isHole(e.Off, e.Len) {
		return e
	}
	return upTo(verifyBytes)
}

// quiet is a range of a volume in sync without a write in flight on either side: nothing is submitted
// to it here, and all that was ever sent of it is applied there. No write enters it before it is
// released. It holds for one mode and one link: what is asked after that is void.
type quiet struct {
	v      *Volume
	claim  *op
	ext    lockstep.Extent
	gen    uint64
	epoch  lockstep.Epoch
	link   *link
	ctx    context.Context // ends with the mode
	cancel context.CancelFunc
}

// quieten claims a range. Writes that come after it wait from the beginning, so that it comes to its
// turn under any load; those that are in flight are waited for.
func (v *Volume) quieten(ctx context.Context, e lockstep.Extent) (*quiet, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		if err := v.refusal(); err != nil {
			return nil, err
		}
		var until <-chan struct{} = v.changed
		if v.mode == protocol.ModeTwoSided {
			until = v.unrepairedIn(e)
		}
		if until != nil {
			if err := v.wait(ctx, until); err != nil {
				return nil, err
			}
			continue
		}
		gen := v.gen
		var before []*op
		for _, o := range v.ops {
			if o.ext.Overlaps(e) {
				before = append(before, o)
			}
		}
		claim := &op{kind: opChunk, ext: e, queued: true}
		v.ops = append(v.ops, claim)
		err := v.await(ctx, before, gen)
		claim.queued = false
		if err != nil || v.gen != gen {
			v.leave(claim)
			if err != nil {
				return nil, err
			}
			continue
		}
		invariant.Check(v.overlap)
		q := &quiet{v: v, claim: claim, ext: e, gen: gen, epoch: v.epoch, link: v.link}
		q.ctx, q.cancel = context.WithCancel(ctx)
		go func(changed <-chan struct{}) { // the claim must not outlast the mode: requests wait for it
			select {
			case <-changed:
				q.cancel()
			case <-q.ctx.Done():
			}
		}(v.changed)
		return q, nil
	}
}

// await waits until the ops are over, or the mode is another one. Called with mu held.
func (v *Volume) await(ctx context.Context, ops []*op, gen uint64) error {
	for _, o := range ops {
		for !o.over && v.gen == gen {
			left, changed := o.leaving(), v.changed
			v.mu.Unlock()
			var err error
			select {
			case <-left:
			case <-changed:
			case <-ctx.Done():
				err = ctx.Err()
			}
			v.mu.Lock()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (q *quiet) release() {
	q.cancel()
	q.v.mu.Lock()
	defer q.v.mu.Unlock()
	q.v.leave(q.claim)
}

// still reports, as an error, that the mode or the link is another one by now.
func (q *quiet) still() error {
	q.v.mu.Lock()
	defer q.v.mu.Unlock()
	if q.v.gen != q.gen {
		return fmt.Errorf("%w: the link or the mode changed", errVoid)
	}
	return nil
}

// void makes an error of the link one of the comparison, which is made again: that the link or the
// secondary is in trouble is noticed, and decided, elsewhere.
func (q *quiet) void(err error) error {
	if err == nil {
		return q.still()
	}
	return fmt.Errorf("%w: %w", errVoid, err)
}

// read reads the own bytes. An error here is not the volume's yet: no client has asked for them.
func (q *quiet) read(e lockstep.Extent) ([]byte, error) {
	if q.v.isHole(e.Off, e.Len) {
		return nil, nil
	}
	p := make([]byte, e.Len)
	if err := q.v.disk.TryReadAt(p, e.Off); err != nil {
		return nil, fmt.Errorf("the primary's disk cannot be read at [%d,+%d): %w", e.Off, e.Len, err)
	}
	return p, nil
}

// compare gives a byte for each chunk of the range, 1 where the sides differ.
func (q *quiet) compare() ([]byte, error) {
	own, err := q.read(q.ext)
	if err != nil {
		return nil, err
	}
	differ, err := q.v.differing(q.ctx, q.link, q.epoch, q.ext, own)
	return differ, q.void(err)
}

// theirs reads the secondary's bytes.
func (q *quiet) theirs(e lockstep.Extent) ([]byte, error) {
	r, err := q.link.ask(q.ctx, wire.Header{Kind: wire.KindRead, Epoch: q.epoch, Volume: q.v.key, Offset: uint64(e.Off), Length: uint64(e.Len)}, nil)
	if err = q.void(err); err != nil {
		return nil, err
	}
	if len(r.body) == 0 {
		return make([]byte, e.Len), nil
	}
	if int64(len(r.body)) != e.Len {
		return nil, fmt.Errorf("%w: %d bytes instead of %d", wire.ErrFrame, len(r.body), e.Len)
	}
	return r.body, nil
}

// send makes the secondary's bytes those of p. They are put on the link only while the mode that
// claimed the range lasts, so that no frame of a later one is before them.
func (q *quiet) send(e lockstep.Extent, p []byte) error {
	h := wire.Header{Kind: wire.KindWrite, Flags: wire.FlagResync, Epoch: q.epoch, Volume: q.v.key, Offset: uint64(e.Off), Length: uint64(e.Len)}
	if allZero(p) {
		h.Kind, p = wire.KindZero, nil
	}
	q.v.mu.Lock()
	if q.v.gen != q.gen {
		q.v.mu.Unlock()
		return fmt.Errorf("%w: the link or the mode changed", errVoid)
	}
	answer := q.link.call(h, p)
	q.v.mu.Unlock()
	select {
	case r := <-answer:
		return q.void(r.err)
	case <-q.ctx.Done():
		return q.void(q.ctx.Err())
	}
}

// verifyRange compares a range. What differs is marked, kept, reported and made equal to the primary's
// bytes, and compared again, under one claim.
func (r *verifyRun) verifyRange(v *Volume, e lockstep.Extent) error {
	q, err := v.quieten(r.ctx, e)
	if err != nil {
		return err
	}
	defer q.release()
	differ, err := q.compare()
	if err != nil {
		return r.named(v, err)
	}
	if !slices.Contains(differ, 1) {
		return nil
	}
	for i, d := range differ {
		if d == 0 {
			continue
		}
		off := e.Off + int64(i)*lockstep.ChunkBytes
		if err := r.settle(q, lockstep.Extent{Off: off, Len: min(lockstep.ChunkBytes, e.End()-off)}); err != nil {
			return r.named(v, err)
		}
	}
	if differ, err = q.compare(); err != nil {
		return r.named(v, err)
	}
	if slices.Contains(differ, 1) {
		return fmt.Errorf("volume %s, [%d,+%d): the sides differ still after the primary's bytes were sent: a disk or a memory does not keep what is written to it", v.id, e.Off, e.Len)
	}
	r.repaired(v)
	return nil
}

// named names the volume and makes a failure of its maps its own.
func (r *verifyRun) named(v *Volume, err error) error {
	return v.noteFailure(fmt.Errorf("volume %s: %w", v.id, err))
}

// settle makes one chunk equal. The marks come first and are durable: whatever happens now, the next
// synchronization, or the repair of a restarted process, compares it again. The dirty bit stays until
// the next in-sync commit.
func (r *verifyRun) settle(q *quiet, e lockstep.Extent) error {
	theirs, err := q.theirs(e)
	if err != nil {
		return err
	}
	own, err := q.read(e)
	if err != nil {
		return err
	}
	if own == nil {
		own = make([]byte, e.Len)
	}
	exts := differingSectors(own, theirs, e.Off)
	if len(exts) == 0 {
		r.g.log.Warn("a chunk was found different, and is equal when it is read", "volume", q.v.id, "offset", e.Off, "length", e.Len)
		return nil
	}
	if err := q.v.disk.MarkIntent(e.Off, e.Len); err != nil {
		return err
	}
	if err := q.v.disk.AddDirty([]lockstep.Extent{e}); err != nil {
		return err
	}
	kept, err := r.g.host.pool.KeepFound(q.v.id, e.Off, time.Now(), own, theirs)
	if err != nil {
		r.g.log.Error("what both sides had is not kept", "volume", q.v.id, "offset", e.Off, "err", err)
	}
	r.found(q.v, exts, kept)
	return q.send(e, own)
}

// sectorBytes is the unit in which a difference is reported.
const sectorBytes = 512

// differingSectors lists the sectors in which two images of a range that begins at off differ.
func differingSectors(a, b []byte, off int64) []lockstep.Extent {
	var exts []lockstep.Extent
	for i := 0; i < len(a); i += sectorBytes {
		end := min(i+sectorBytes, len(a))
		if bytes.Equal(a[i:end], b[i:end]) {
			continue
		}
		if n := len(exts); n > 0 && exts[n-1].End() == off+int64(i) {
			exts[n-1].Len += int64(end - i)
		} else {
			exts = append(exts, lockstep.Extent{Off: off + int64(i), Len: int64(end - i)})
		}
	}
	return exts
}

package replica

import (
	"context"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// ReadAt implements block.Device. What was read is given out only if, after it was read, the mode
// is still the same, every write that overlapped is acknowledged, and, two-sided, the lease holds.
// What such a write may have torn, by being applied at the same time, is read again: a block is as
// it was before a write, or as after.
func (v *Volume) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), v.Size()); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	whole := lockstep.Extent{Off: off, Len: int64(len(p))}
	for {
		if err := v.admitRead(ctx, whole); err != nil {
			return err
		}
		if ok, err := v.readWhole(ctx, p, whole); ok || err != nil {
			return err
		}
	}
}

// readWhole reads, and again what was torn, and reports whether all of it may be given out. Called with
// mu held, which it gives up while it reads and waits.
func (v *Volume) readWhole(ctx context.Context, p []byte, whole lockstep.Extent) (bool, error) {
	gen := v.gen
	for todo := []lockstep.Extent{whole}; len(todo) > 0; {
		var torn []lockstep.Extent
		for _, ext := range todo {
			parts, err := v.readDisk(p[ext.Off-whole.Off:][:ext.Len], ext)
			if err != nil {
				v.mu.Unlock()
				err = v.broken(err)
				v.mu.Lock()
				return false, err
			}
			torn = append(torn, parts...)
		}
		for _, ext := range todo {
			if ok, err := v.settleRead(ctx, ext, gen); !ok || err != nil {
				return false, err
			}
		}
		todo = torn
	}
	return true, nil
}

// read is a read of the disk under way, with the parts of it that a write may have torn.
type read struct {
	ext  lockstep.Extent
	torn []lockstep.Extent
}

// readDisk reads, and tells which parts were written at the same time. Called with mu held, which it
// gives up meanwhile.
func (v *Volume) readDisk(p []byte, ext lockstep.Extent) (torn []lockstep.Extent, err error) {
	r := &read{ext: ext}
	for _, o := range v.ops {
		if o.submitted && !o.local {
			r.tear(o.ext)
		}
	}
	v.reads = append(v.reads, r)
	v.mu.Unlock()
	err = v.disk.ReadAt(p, ext.Off)
	v.mu.Lock()
	i := slices.Index(v.reads, r)
	v.reads = slices.Delete(v.reads, i, i+1)
	return r.torn, err
}

// tear notes that a write to e is submitted now. Called with mu held.
func (v *Volume) tear(e lockstep.Extent) {
	for _, r := range v.reads {
		r.tear(e)
	}
}

func (r *read) tear(e lockstep.Extent) {
	if !r.ext.Overlaps(e) {
		return
	}
	from, to := max(r.ext.Off, e.Off), min(r.ext.End(), e.End())
	r.torn = append(r.torn, lockstep.Extent{Off: from, Len: to - from})
}

// admitRead waits until the mode takes requests to the range.
func (v *Volume) admitRead(ctx context.Context, ext lockstep.Extent) error {
	for {
		if err := v.refusal(); err != nil {
			return err
		}
		var until <-chan struct{} = v.changed
		if v.mode != protocol.ModeHeld {
			if until = v.unrepairedIn(ext); until == nil {
				return nil
			}
		}
		if err := v.wait(ctx, until); err != nil {
			return err
		}
	}
}

// settleRead reports whether what was read since gen may be given out. Called with mu held.
func (v *Volume) settleRead(ctx context.Context, ext lockstep.Extent, gen uint64) (bool, error) {
	var deps []<-chan struct{}
	for _, o := range v.ops {
		if o.kind != opChunk && o.submitted && o.ext.Overlaps(ext) {
			deps = append(deps, o.leaving()) // asked for now: later the op may stand for another write
		}
	}
	for _, left := range deps {
		if err := v.wait(ctx, left); err != nil {
			return false, err
		}
	}
	for v.gen == gen {
		if v.lease == nil {
			return true, nil
		}
		ok, renewed := v.lease.valid(v.epoch)
		if ok {
			return true, nil
		}
		changed := v.changed
		v.mu.Unlock()
		select {
		case <-changed:
		case <-renewed:
		case <-ctx.Done():
		}
		v.mu.Lock()
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	return false, v.failed
}

// Flush implements block.Device: fdatasync here and, two-sided, at the secondary, both begun at
// once. An answer of another link or mode does not count: then it is done again.
func (v *Volume) Flush(ctx context.Context) error {
	for {
		v.mu.Lock()
		if err := v.admitRead(ctx, lockstep.Extent{}); err != nil { // what is not yet repaired was never acknowledged in this life
			v.mu.Unlock()
			return err
		}
		gen, mode, l, epoch, changed := v.gen, v.mode, v.link, v.epoch, v.changed
		v.mu.Unlock()

		var remote <-chan reply
		twoSided := mode == protocol.ModeTwoSided || mode == protocol.ModeCopyTwoSided
		if twoSided {
			remote = l.call(wire.Header{Kind: wire.KindFlush, Epoch: epoch, Volume: v.key}, nil)
		}
		if err := v.disk.Sync(); err != nil {
			return v.broken(err)
		}
		if !twoSided {
			return nil
		}
		select {
		case r := <-remote:
			if r.err == nil {
				v.mu.Lock()
				same := v.gen == gen
				v.mu.Unlock()
				if same {
					return nil
				}
				continue
			}
		case <-changed:
			continue
		}
		// The link is gone, or the secondary's disk: another link or a trip follows.
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Extents implements block.Device.
func (v *Volume) Extents(ctx context.Context, off, length int64) ([]block.ExtentState, error) {
	if err := block.CheckRange(off, length, v.Size()); err != nil {
		return nil, err
	}
	ext := lockstep.Extent{Off: off, Len: length}
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		if err := v.admitRead(ctx, ext); err != nil {
			return nil, err
		}
		gen := v.gen
		v.mu.Unlock()
		exts, err := v.disk.Extents(off, length)
		v.mu.Lock()
		if err != nil {
			return nil, err
		}
		ok, err := v.settleRead(ctx, ext, gen)
		if ok || err != nil {
			return exts, err
		}
	}
}

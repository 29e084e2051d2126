package disk

import (
	"sync"
	"sync/atomic"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/bitmap"
)

// dirtyMap is the dirty map of a volume in memory. A bit is in bits only when the page with it has
// been written to the metadata file.
type dirtyMap struct {
	bits  *bitmap.Atomic
	count atomic.Int64 // bits set
	// hasIntent: every difference that the write-intent log stands for is in bits. In the modes after that, each
	// write sets its bits itself.
	hasIntent atomic.Bool

	// mu guards slots and buf and orders the writes of pages: an older image must not overwrite a
	// newer one. It is therefore held over the write of a page, and over the sync of a durable
	// change, during which no slot is free to take another image.
	mu    sync.Mutex
	slots []slotState
	buf   [pageBytes]byte
}

func (d *dirtyMap) init(chunks int) { d.bits = bitmap.NewAtomic(chunks) }

func (d *dirtyMap) grow(chunks, pages int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bits.Grow(chunks)
	for len(d.slots) < pages {
		d.slots = append(d.slots, freshSlot)
	}
}

func chunkRange(off, length int64) (lo, hi int) {
	return int(off / lockstep.ChunkBytes), int(ceil(off+length, lockstep.ChunkBytes))
}

// MarkDirty makes the chunks of the range dirty. The bits have been written to the metadata file
// when it returns, so that they survive the process; they are not synced. Chunks that are dirty
// already cost one load each 64, no lock, no allocation.
func (v *Volume) MarkDirty(off, length int64) error {
	if err := v.check(off, length); err != nil {
		return err
	}
	if length == 0 {
		return nil
	}
	lo, hi := chunkRange(off, length)
	if v.dirty.bits.AllSet(lo, hi) {
		return nil
	}
	v.dirty.mu.Lock()
	defer v.dirty.mu.Unlock()
	return v.setDirty(lo, hi)
}

// IsDirty reports whether all chunks of the range are in the dirty map already: MarkDirty would do nothing.
func (v *Volume) IsDirty(off, length int64) bool {
	if v.check(off, length) != nil || length == 0 {
		return false
	}
	return v.dirty.bits.AllSet(chunkRange(off, length))
}

// setDirty writes the pages with the chunks [lo, hi) set. Called with dirty.mu held.
func (v *Volume) setDirty(lo, hi int) error {
	d := &v.dirty
	for lo < hi {
		page := lo / bitsPerPage
		end := min(hi, (page+1)*bitsPerPage)
		if !d.bits.AllSet(lo, end) {
			if err := v.writeDirty(page, lo-page*bitsPerPage, end-page*bitsPerPage); err != nil {
				return err
			}
			for c := lo; c < end; c++ {
				if d.bits.Set(c) {
					d.count.Add(1)
				}
			}
		}
		lo = end
	}
	return nil
}

// writeDirty writes the page with the bits it has and its bits [lo, hi). Called with dirty.mu held.
func (v *Volume) writeDirty(page, lo, hi int) error {
	d := &v.dirty
	var words [wordsPerPage]uint64
	d.bits.Words(page*bitsPerPage, words[:])
	for ; lo < hi; lo++ {
		words[lo/64] |= 1 << (lo % 64)
	}
	putWords(d.buf[:], words[:])
	s := &d.slots[page]
	if _, err := v.meta.WriteAt(d.buf[:], s.next(d.buf[:], v.id, dirtyPage(page))); err != nil {
		return v.fail("write of dirty map", err)
	}
	s.ahead = true
	return nil
}

// syncDirty makes all images written so far durable. Called with dirty.mu held.
func (v *Volume) syncDirty() error {
	d := &v.dirty
	ahead := false
	for i := range d.slots {
		ahead = ahead || d.slots[i].ahead
	}
	if !ahead {
		return nil
	}
	if err := v.meta.Fdatasync(); err != nil {
		return v.fail("fdatasync of dirty map", err)
	}
	for i := range d.slots {
		if d.slots[i].ahead {
			d.slots[i].synced()
		}
	}
	return nil
}

// MarkAllDirty makes every chunk dirty, durably.
func (v *Volume) MarkAllDirty() error {
	return v.AddDirty([]lockstep.Extent{{Off: 0, Len: v.size.Load()}})
}

// AddDirty makes the chunks that exts touch dirty, durably.
func (v *Volume) AddDirty(exts []lockstep.Extent) error {
	if err := v.usable(); err != nil {
		return err
	}
	for _, e := range exts {
		if err := v.check(e.Off, e.Len); err != nil {
			return err
		}
	}
	v.dirty.mu.Lock()
	defer v.dirty.mu.Unlock()
	for _, e := range exts {
		if e.Len == 0 {
			continue
		}
		if lo, hi := chunkRange(e.Off, e.Len); !v.dirty.bits.AllSet(lo, hi) {
			if err := v.setDirty(lo, hi); err != nil {
				return err
			}
		}
	}
	return v.syncDirty()
}

// DirtyFromIntent makes every chunk in a doubtful region dirty, durably. In a new life that restores what
// MarkDirty wrote without a sync and a reboot may have lost.
func (v *Volume) DirtyFromIntent() error {
	if err := v.AddDirty(v.Doubtful()); err != nil {
		return err
	}
	v.dirty.hasIntent.Store(true)
	return nil
}

// Dirty returns a copy of the dirty map, one bit per chunk.
func (v *Volume) Dirty() *bitmap.Bitmap { return v.dirty.bits.Snapshot() }

// DirtyBytes is how many bytes the dirty chunks cover; the last chunk counts whole.
func (v *Volume) DirtyBytes() int64 { return v.dirty.count.Load() * lockstep.ChunkBytes }

// SyncMeta makes everything that MarkDirty wrote so far durable.
func (v *Volume) SyncMeta() error {
	if err := v.usable(); err != nil {
		return err
	}
	v.dirty.mu.Lock()
	defer v.dirty.mu.Unlock()
	return v.syncDirty()
}

// ClearDirty empties the dirty map, durably. What a MarkDirty does meanwhile may be kept or not.
func (v *Volume) ClearDirty() error {
	if err := v.usable(); err != nil {
		return err
	}
	d := &v.dirty
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hasIntent.Store(false)
	var had []int
	var words [wordsPerPage]uint64
	for page := range d.slots {
		d.bits.Words(page*bitsPerPage, words[:])
		if words != [wordsPerPage]uint64{} || d.slots[page].ahead {
			had = append(had, page)
		}
	}
	// First out of memory: a MarkDirty from now on waits for the lock and then sets its bit anew.
	d.bits.ClearAll()
	d.count.Store(0)
	for _, page := range had {
		if err := v.writeDirty(page, 0, 0); err != nil {
			return err
		}
	}
	return v.syncDirty()
}

// ClearMaps empties the dirty map and the write-intent log, durably, whatever was marked since a
// snapshot; no write may be under way.
func (v *Volume) ClearMaps() error {
	if err := v.ClearDirty(); err != nil {
		return err
	}
	return v.clearAllIntent()
}

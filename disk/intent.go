package disk

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/bitmap"
)

// markGroup is how many regions a cold mark sets at least (aligned): 16 MiB. A cold mark costs a
// sync of the metadata, so random writes pay once per group; a stream pays once per two groups.
const markGroup = 4

// streams is how many sequential streams the look-ahead can tell apart.
const streams = 8

// intentLog is the write-intent log of a volume in memory. A bit is in want when it shall be, in
// hot when it is also durable; hot is a subset of want except within ClearIntent, under the lock.
type intentLog struct {
	hot     *bitmap.Atomic
	touched generations   // per region: generation of the last MarkIntent
	gen     atomic.Uint32 // current generation; grows at each snapshot
	count   atomic.Int64  // bits in want

	commit  sharedRun // writes the changed pages; its mu guards all below
	want    *bitmap.Bitmap
	slots   []slotState
	changed map[int]struct{} // pages of want to be written by the next commit
	batch   [][2]int         // ranges to become hot with the next commit
	ends    [streams]int     // where the last cold marks ended, a ring
	endAt   int
}

// generations is a growable table of atomic counters; its segments never move.
type generations struct {
	segs atomic.Pointer[[]*[genSegment]atomic.Uint32]
}

const genSegment = 256

func (g *generations) grow(n int) {
	var segs []*[genSegment]atomic.Uint32
	if old := g.segs.Load(); old != nil {
		segs = append(segs, *old...)
	}
	for len(segs)*genSegment < n {
		segs = append(segs, new([genSegment]atomic.Uint32))
	}
	g.segs.Store(&segs)
}

func (g *generations) at(i int) *atomic.Uint32 {
	return &(*g.segs.Load())[i/genSegment][i%genSegment]
}

func (w *intentLog) init(regions int) {
	w.commit.init()
	w.hot = bitmap.NewAtomic(regions)
	w.want = bitmap.New(regions)
	w.touched.grow(regions)
	w.gen.Store(1)
	w.changed = map[int]struct{}{}
	for i := range w.ends {
		w.ends[i] = -1
	}
}

func (w *intentLog) grow(regions, pages int) {
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	w.want.Grow(regions)
	w.hot.Grow(regions)
	w.touched.grow(regions)
	for len(w.slots) < pages {
		w.slots = append(w.slots, freshSlot)
	}
}

// touch notes that region r was marked in the current generation. When it returns, a snapshot that
// has not yet taken the current generation will find the region touched in a later one than any
// snapshot taken before.
func (w *intentLog) touch(r int) {
	t := w.touched.at(r)
	for {
		g := w.gen.Load()
		old := t.Load()
		if old < g && !t.CompareAndSwap(old, g) { // never back: a later mark may rely on what it stored
			continue
		}
		if w.gen.Load() == g {
			return
		}
	}
}

// MarkIntent marks the regions of the range and returns when the marks are durable; it must be
// called before the bytes are written or sent. When they are marked already it takes no lock, does
// no I/O and allocates nothing. Else it marks the aligned groups of 4 regions that the range
// touches, and one more if they continue a sequential stream; concurrent callers share one sync.
func (v *Volume) MarkIntent(off, length int64) error {
	if err := v.check(off, length); err != nil {
		return err
	}
	if length == 0 {
		return nil
	}
	w := &v.intent
	first, last := int(off/lockstep.RegionBytes), int((off+length-1)/lockstep.RegionBytes)
	hot := true
	for r := first; r <= last; r++ {
		w.touch(r) // before the look at hot: ClearIntent does these in the other order
		hot = hot && w.hot.Get(r)
	}
	for !hot {
		if err := v.markCold(first, last); err != nil {
			return err
		}
		hot = w.hot.AllSet(first, last+1) // a clear may have come in between
	}
	return nil
}

func (v *Volume) markCold(first, last int) error {
	w := &v.intent
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	regions := w.want.Len()
	lo, hi := first-first%markGroup, (last/markGroup+1)*markGroup
	if w.continues(lo) {
		hi += markGroup
	}
	hi = min(hi, regions)
	w.remember(lo, hi)
	for r := lo; r < hi; r++ {
		if w.want.Set(r) {
			w.count.Add(1)
			w.changed[r/bitsPerPage] = struct{}{}
		}
	}
	w.batch = append(w.batch, [2]int{lo, hi})
	return w.commit.doLocked(w.commit.begun+1, v.commitIntent)
}

// continues reports whether an earlier cold mark ended where this one begins.
func (w *intentLog) continues(lo int) bool {
	for _, end := range w.ends {
		if end == lo {
			return true
		}
	}
	return false
}

// remember keeps the end of a cold mark, in place of the one that it continues, else of the oldest.
func (w *intentLog) remember(lo, hi int) {
	for i, end := range w.ends {
		if end == lo {
			w.ends[i] = hi
			return
		}
	}
	w.ends[w.endAt] = hi
	w.endAt = (w.endAt + 1) % streams
}

// commitIntent writes the changed pages of the log and makes them durable. Runs never overlap.
func (v *Volume) commitIntent() error {
	w := &v.intent
	w.commit.mu.Lock()
	// A region of the batch may have been cleared since it was marked; that it is marked again while
	// this commit runs must not make it durable with an image that lacks it.
	var batch []int
	for _, b := range w.batch {
		for r := b[0]; r < b[1]; r++ {
			if w.want.Get(r) {
				batch = append(batch, r)
			}
		}
	}
	w.batch = nil
	pages := slices.Sorted(maps.Keys(w.changed))
	bufs := make([][pageBytes]byte, len(pages))
	offs := make([]int64, 0, len(pages))
	var words [wordsPerPage]uint64
	for k, i := range pages {
		buf := bufs[k][:]
		w.want.Words(i*bitsPerPage, words[:])
		putWords(buf, words[:])
		offs = append(offs, w.slots[i].next(buf, v.id, intentPage(i)))
	}
	clear(w.changed)
	w.commit.mu.Unlock()

	if len(pages) > 0 {
		if err := v.usable(); err != nil {
			return err
		}
		for k, off := range offs {
			if _, err := v.meta.WriteAt(bufs[k][:], off); err != nil {
				return v.fail("write of intent log", err)
			}
		}
		if err := v.meta.Fdatasync(); err != nil {
			return v.fail("fdatasync of intent log", err)
		}
	}

	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	for _, i := range pages {
		w.slots[i].synced()
	}
	for _, r := range batch {
		if w.want.Get(r) {
			w.hot.Set(r)
		}
	}
	return nil
}

// regionExtents turns runs of regions into byte ranges that end with the volume.
func regionExtents(b *bitmap.Bitmap, size int64) []lockstep.Extent {
	return unitExtents(b, lockstep.RegionBytes, size)
}

func unitExtents(b *bitmap.Bitmap, unit, size int64) []lockstep.Extent {
	var out []lockstep.Extent
	for lo, hi := range b.Ranges() {
		off := int64(lo) * unit
		out = append(out, lockstep.Extent{Off: off, Len: min(int64(hi)*unit, size) - off})
	}
	return out
}

// Intent returns the marked ranges, merged and ascending, those that are just being marked too.
func (v *Volume) Intent() []lockstep.Extent {
	w := &v.intent
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	return regionExtents(w.want, v.size.Load())
}

// IntentBytes is how many bytes the marked regions cover; the last region counts whole.
func (v *Volume) IntentBytes() int64 { return v.intent.count.Load() * lockstep.RegionBytes }

// IntentMarked reports whether every region of the range is marked, durably.
func (v *Volume) IntentMarked(off, length int64) bool {
	return v.intent.hot.AllSet(int(off/lockstep.RegionBytes), int((off+length-1)/lockstep.RegionBytes)+1)
}

// OldestIntent lists up to n regions whose marks are durable, each as a range, those first in which
// MarkIntent was not called for longest.
func (v *Volume) OldestIntent(n int) []lockstep.Extent {
	w := &v.intent
	w.commit.mu.Lock()
	var marked []int
	for lo, hi := range w.hot.Snapshot().Ranges() {
		for r := lo; r < hi; r++ {
			marked = append(marked, r)
		}
	}
	w.commit.mu.Unlock()
	touched := make(map[int]uint32, len(marked))
	for _, r := range marked {
		touched[r] = w.touched.at(r).Load()
	}
	slices.SortFunc(marked, func(a, b int) int { return cmp.Or(cmp.Compare(touched[a], touched[b]), cmp.Compare(a, b)) })
	size := v.size.Load()
	exts := make([]lockstep.Extent, 0, min(n, len(marked)))
	for _, r := range marked[:min(n, len(marked))] {
		off := int64(r) * lockstep.RegionBytes
		exts = append(exts, lockstep.Extent{Off: off, Len: min(lockstep.RegionBytes, size-off)})
	}
	return exts
}

// IntentSnapshot returns the ranges whose marks are durable, and a number for ClearIntent. The
// order that makes clearing safe is the caller's: take a snapshot, wait for all writes whose
// MarkIntent began before it, sync both sides, clear with the snapshot's number. A MarkIntent that
// begins after the snapshot protects its regions from that clear.
func (v *Volume) IntentSnapshot() (exts []lockstep.Extent, gen uint64) {
	w := &v.intent
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	g := w.gen.Add(1) - 1
	return regionExtents(w.hot.Snapshot(), v.size.Load()), uint64(g)
}

// ClearIntent removes the marks of the regions that lie wholly in exts and in which MarkIntent has
// not been called since IntentSnapshot gave gen. It is durable when it returns.
func (v *Volume) ClearIntent(exts []lockstep.Extent, gen uint64) error {
	for _, e := range exts {
		if err := v.check(e.Off, e.Len); err != nil {
			return err
		}
	}
	w := &v.intent
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	size := v.size.Load()
	for _, e := range exts {
		lo, hi := int(ceil(e.Off, lockstep.RegionBytes)), int(e.End()/lockstep.RegionBytes)
		if e.End() == size {
			hi = int(regionsOf(size))
		}
		for r := lo; r < hi; r++ {
			if w.want.Get(r) && w.hot.Get(r) {
				w.clear(r, gen)
			}
		}
	}
	return w.commit.doLocked(w.commit.begun+1, v.commitIntent)
}

// clear takes the mark of r away unless it has been touched after gen. The mark leaves hot before
// touched is looked at: a MarkIntent that still saw it hot has touched it before, and is seen here.
// No page is built in between, for the lock is held.
func (w *intentLog) clear(r int, gen uint64) {
	w.hot.Clear(r)
	if uint64(w.touched.at(r).Load()) > gen {
		w.hot.Set(r)
		return
	}
	w.forget(r)
}

func (w *intentLog) forget(r int) {
	w.hot.Clear(r)
	if w.want.Clear(r) {
		w.count.Add(-1)
		w.changed[r/bitsPerPage] = struct{}{}
	}
}

// clearAllIntent empties the log whatever was touched; durable.
func (v *Volume) clearAllIntent() error {
	w := &v.intent
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	for r := w.want.NextSet(0); r >= 0; r = w.want.NextSet(r) {
		w.forget(r)
	}
	return w.commit.doLocked(w.commit.begun+1, v.commitIntent)
}

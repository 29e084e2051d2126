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

// maxAhead bounds how many regions are marked ahead of a stream: 512 MiB. Each mark doubles the last:
// a mark waits behind whatever the disk is busy with, and a stream of 1 GiB/s shall not catch up with it.
const maxAhead = 128

// stream is where the marks end that were made for a sequential stream, and how many regions of them
// were ahead of it: end<<16 | ahead. 0 is none.
type stream uint64

func newStream(end, ahead int) stream { return stream(end)<<16 | stream(ahead) }
func (s stream) end() int             { return int(s >> 16) }
func (s stream) ahead() int           { return int(s & 0xffff) }
func (s stream) next() int            { return min(max(2*s.ahead(), markGroup), maxAhead) }

// intentLog is the write-intent log of a volume in memory. A bit is in want when it shall be, in
// hot when it is also durable; hot is a subset of want except within ClearIntent, under the lock.
type intentLog struct {
	hot     *bitmap.Atomic
	touched generations   // per region: generation of the last MarkIntent
	gen     atomic.Uint32 // current generation; grows at each snapshot
	count   atomic.Int64  // bits in want

	commit sharedRun // writes the changed pages; its mu guards all below
	want   *bitmap.Bitmap
	// confirmed is, per region, the snapshot after which both sides synced all that had been written to it;
	// 0: none in this life. If it was not touched later, its mark is only kept for the next write.
	confirmed []uint32
	slots     []slotState
	changed   map[int]struct{}       // pages of want to be written by the next commit
	batch     [][2]int               // ranges to become hot with the next commit
	streams   [streams]atomic.Uint64 // of type stream, a ring; written under mu
	oldest    int                    // the next of them to be given up
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
	w.confirmed = make([]uint32, regions)
	w.gen.Store(1)
	w.changed = map[int]struct{}{}
}

func (w *intentLog) grow(regions, pages int) {
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	w.want.Grow(regions)
	w.hot.Grow(regions)
	w.touched.grow(regions)
	w.confirmed = append(w.confirmed, make([]uint32, max(0, regions-len(w.confirmed)))...)
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

// TryMarkIntent is MarkIntent where it has nothing to wait for, and reports whether it was so.
func (v *Volume) TryMarkIntent(off, length int64) bool {
	if v.check(off, length) != nil {
		return false
	}
	w := &v.intent
	first, last := int(off/lockstep.RegionBytes), int((off+length-1)/lockstep.RegionBytes)
	for r := first; r <= last; r++ {
		w.touch(r) // before the look at hot, as in MarkIntent
		if !w.hot.Get(r) {
			return false
		}
	}
	return true
}

func (v *Volume) markCold(first, last int) error {
	w := &v.intent
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	lo, hi := first-first%markGroup, (last/markGroup+1)*markGroup
	ahead, at := 0, w.streamTo(lo)
	if at >= 0 {
		ahead = v.aheadFits(stream(w.streams[at].Load()).next())
	} else {
		at = w.oldest
		w.oldest = (w.oldest + 1) % streams
	}
	return v.mark(lo, hi, hi+ahead, at, ahead)
}

// mark marks the regions from lo to end, of which those from hi on are ahead of any write, for the
// stream at index at, durably. Called with commit.mu held.
func (v *Volume) mark(lo, hi, end, at, ahead int) error {
	w := &v.intent
	end = min(end, w.want.Len())
	w.streams[at].Store(uint64(newStream(end, ahead)))
	for r := lo; r < end; r++ {
		if r >= hi {
			w.touch(r) // it is not idle: it is about to be written
		}
		if w.want.Set(r) {
			w.count.Add(1)
			w.changed[r/bitsPerPage] = struct{}{}
		}
	}
	w.batch = append(w.batch, [2]int{lo, end})
	return w.commit.doLocked(w.commit.begun+1, v.commitIntent)
}

// streamTo is the index of the stream whose marks end at region r, or -1.
func (w *intentLog) streamTo(r int) int {
	for i := range w.streams {
		if s := stream(w.streams[i].Load()); s != 0 && s.end() == r {
			return i
		}
	}
	return -1
}

// aheadFits is want, or 0 if so many marks more would come near the limit of the log.
func (v *Volume) aheadFits(want int) int {
	limit := v.MaxIntentBytes()
	if v.size.Load() > limit && v.IntentBytes()+int64(want)*lockstep.RegionBytes > limit/8*7 {
		return 0
	}
	return want
}

// AheadDue reports whether a write to the range, whose marks are there, has used up half of what is
// marked ahead of its stream. It does no I/O and takes no lock.
func (v *Volume) AheadDue(off, length int64) bool { return v.dueStream(off, length) >= 0 }

func (v *Volume) dueStream(off, length int64) int {
	w := &v.intent
	r := int((off + length - 1) / lockstep.RegionBytes)
	for i := range w.streams {
		s := stream(w.streams[i].Load())
		if ahead := s.ahead(); ahead > 0 && r < s.end() && r >= s.end()-ahead/2 && int64(s.end())*lockstep.RegionBytes < v.size.Load() {
			return i
		}
	}
	return -1
}

// MarkAhead marks what follows the marks of that stream, so that its writes find theirs. It is durable
// when it returns. Nothing relies on it: a failure is met again by the next MarkIntent.
func (v *Volume) MarkAhead(off, length int64) error {
	w := &v.intent
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	at := v.dueStream(off, length)
	if at < 0 {
		return nil
	}
	s := stream(w.streams[at].Load())
	ahead := v.aheadFits(s.next())
	if ahead == 0 {
		w.streams[at].Store(uint64(newStream(s.end(), 0))) // a cold mark goes on with it
		return nil
	}
	return v.mark(s.end(), s.end(), s.end()+ahead, at, ahead)
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

// Doubtful returns the ranges in which the other side may differ and that the dirty map does not name: Intent
// without what ClearIntent confirmed and nobody wrote to since; nothing after a DirtyFromIntent, until the dirty
// map is cleared. Of an earlier life nothing is confirmed.
func (v *Volume) Doubtful() []lockstep.Extent {
	if v.dirty.hasIntent.Load() {
		return nil
	}
	w := &v.intent
	w.commit.mu.Lock()
	defer w.commit.mu.Unlock()
	b := bitmap.New(w.want.Len())
	for lo, hi := range w.want.Ranges() {
		for r := lo; r < hi; r++ {
			if c := w.confirmed[r]; c == 0 || w.touched.at(r).Load() > c {
				b.Set(r)
			}
		}
	}
	return regionExtents(b, v.size.Load())
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

// ClearIntent confirms the regions that lie wholly in exts and in which MarkIntent has not been called since
// IntentSnapshot gave gen: both sides have them, durably. Those in which it was not called for keep snapshots
// before that one either lose their mark. It is durable when it returns.
func (v *Volume) ClearIntent(exts []lockstep.Extent, gen, keep uint64) error {
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
				w.clear(r, gen, keep)
			}
		}
	}
	return w.commit.doLocked(w.commit.begun+1, v.commitIntent)
}

// clear takes the mark of r away unless it has been touched after gen-keep. Touched after gen, it stays doubtful.
// The mark leaves hot before touched is looked at: a MarkIntent that still saw it hot has touched it before, and
// is seen here. No page is built in between, for the lock is held.
func (w *intentLog) clear(r int, gen, keep uint64) {
	w.hot.Clear(r)
	if uint64(w.touched.at(r).Load()) <= gen-min(keep, gen) {
		w.forget(r)
		return
	}
	w.hot.Set(r)
	w.confirmed[r] = uint32(gen)
}

func (w *intentLog) forget(r int) {
	w.hot.Clear(r)
	w.confirmed[r] = 0
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

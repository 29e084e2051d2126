package disk

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

func TestMarkIntentGroupsAndLookAhead(t *testing.T) {
	m := vfs.NewMem()
	v := create(t, openMem(t, m), "v", 1024*mib)
	ops := countOps(m)
	must(t, v.MarkIntent(17*mib, 4096))
	if got, want := v.Intent(), exts(ext(16*mib, 16*mib)); !slices.Equal(got, want) {
		t.Fatalf("cold mark: %v", got)
	}
	must(t, v.MarkIntent(31*mib, mib))
	if ops["meta:fdatasync"] != 1 {
		t.Fatalf("%d syncs for one group", ops["meta:fdatasync"])
	}
	must(t, v.MarkIntent(32*mib, mib)) // continues: two groups
	if got, want := v.Intent(), exts(ext(16*mib, 48*mib)); !slices.Equal(got, want) {
		t.Fatalf("continued mark: %v", got)
	}
	must(t, v.MarkIntent(500*mib, mib)) // elsewhere: one group
	if v.IntentBytes() != 64*mib {
		t.Fatalf("%d marked", v.IntentBytes())
	}
	must(t, v.MarkIntent(64*mib, mib)) // the first stream goes on: twice as far ahead
	if v.IntentBytes() != 112*mib || ops["meta:fdatasync"] != 4 {
		t.Fatalf("%d marked after %d syncs", v.IntentBytes(), ops["meta:fdatasync"])
	}
	must(t, v.MarkIntent(0, 0))
	must(t, v.MarkIntent(1024*mib-1, 1))
	if got := v.Intent(); got[len(got)-1].End() != 1024*mib {
		t.Fatalf("last extent %v", got[len(got)-1])
	}
}

// TestMarkAhead: marks are due when a stream has used up half of those ahead of it, double each time, and
// stay within the bound.
func TestMarkAhead(t *testing.T) {
	m := vfs.NewMem()
	p, err := OpenPool("pool", Options{Logger: quiet(), FS: m, MaxIntentBytes: 512 * mib})
	must(t, err)
	v := create(t, p, "v", 1024*mib)
	must(t, v.MarkIntent(0, mib))
	if v.AheadDue(0, mib) {
		t.Fatal("one write is no stream")
	}
	must(t, v.MarkIntent(16*mib, mib)) // two groups, one of them ahead
	ops := countOps(m)
	for _, c := range []struct {
		at  int64
		due bool
		end int64 // of the marks afterwards
	}{
		{16 * mib, false, 48 * mib},
		{39 * mib, false, 48 * mib},
		{40 * mib, true, 80 * mib},
		{60 * mib, false, 80 * mib},
		{64 * mib, true, 144 * mib},
		{112 * mib, true, 272 * mib},
		{208 * mib, true, 272 * mib},
	} {
		must(t, v.MarkIntent(c.at, mib))
		if got := v.AheadDue(c.at, mib); got != c.due {
			t.Fatalf("at %d MiB: due %v", c.at/mib, got)
		}
		must(t, v.MarkAhead(c.at, mib))
		if got := v.Intent(); len(got) != 1 || got[0].End() != c.end {
			t.Fatalf("at %d MiB: marked %v, want up to %d MiB", c.at/mib, got, c.end/mib)
		}
	}
	if ops["meta:fdatasync"] != 3 {
		t.Fatalf("%d syncs", ops["meta:fdatasync"])
	}
	must(t, v.MarkIntent(272*mib, mib)) // cold: a stream anew
	if v.IntentBytes() != 304*mib {
		t.Fatalf("%d marked", v.IntentBytes())
	}
}

func TestClearIntentKeepsTouched(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 256*mib)
	must(t, v.MarkIntent(0, 32*mib))
	snap, gen := v.IntentSnapshot()
	if !slices.Equal(snap, exts(ext(0, 32*mib))) {
		t.Fatalf("snapshot %v", snap)
	}
	must(t, v.MarkIntent(5*mib, 1)) // hot, yet it must protect its region
	must(t, v.ClearIntent(snap, gen, 0))
	want := exts(ext(4*mib, 4*mib))
	if got := v.Intent(); !slices.Equal(got, want) || v.IntentBytes() != 4*mib {
		t.Fatalf("after the first clear: %v", got)
	}
	v = open(t, reopen(t, p, m), "v")
	if got := v.Intent(); !slices.Equal(got, want) {
		t.Fatalf("after a restart: %v", got)
	}
	snap, gen = v.IntentSnapshot()
	must(t, v.ClearIntent(exts(ext(4*mib, mib)), gen, 0)) // covers no region wholly
	if len(v.Intent()) != 1 {
		t.Fatal("a region was cleared for a part of it")
	}
	must(t, v.ClearIntent(snap, gen, 0))
	if v.IntentBytes() != 0 {
		t.Fatalf("left: %v", v.Intent())
	}
	ops := countOps(m)
	must(t, v.MarkIntent(5*mib, 1))
	if ops["meta:fdatasync"] != 1 {
		t.Fatal("a cleared region was marked without a sync")
	}
}

// TestDoubtful: what both sides were told to sync, and nobody wrote to since, needs no synchronization though
// its mark is kept; a new life knows nothing of that. Once the dirty map has it, later marks bring their own bits.
func TestDoubtful(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 64*mib)
	doubtful := func(when string, want ...lockstep.Extent) {
		t.Helper()
		if got := v.Doubtful(); !slices.Equal(got, exts(want...)) {
			t.Fatalf("%s: %v", when, got)
		}
	}
	must(t, v.MarkIntent(0, 32*mib))
	doubtful("marked", ext(0, 32*mib))
	snap, gen := v.IntentSnapshot()
	must(t, v.MarkIntent(5*mib, 1))
	must(t, v.ClearIntent(snap, gen, 3))
	if got := v.Intent(); !slices.Equal(got, exts(ext(0, 32*mib))) {
		t.Fatalf("kept: %v", got)
	}
	doubtful("written after the snapshot", ext(4*mib, 4*mib))
	must(t, v.MarkIntent(13*mib, 1))
	doubtful("written after the sync", ext(4*mib, 4*mib), ext(12*mib, 4*mib))

	must(t, v.DirtyFromIntent())
	dirty := func(chunk int64) bool { return v.Dirty().Get(int(chunk)) }
	if v.DirtyBytes() != 8*mib || !dirty(64) || !dirty(127) || !dirty(192) || !dirty(255) {
		t.Fatalf("%d bytes are dirty", v.DirtyBytes())
	}
	doubtful("in the dirty map")
	must(t, v.MarkIntent(17*mib, 1))
	must(t, v.DirtyFromIntent())
	if v.DirtyBytes() != 8*mib {
		t.Fatalf("out of sync: %d bytes are dirty", v.DirtyBytes())
	}
	must(t, v.ClearDirty())
	doubtful("in sync", ext(4*mib, 4*mib), ext(12*mib, 8*mib))

	for range 4 {
		snap, gen = v.IntentSnapshot()
		must(t, v.ClearIntent(snap, gen, 3))
	}
	doubtful("idle")
	must(t, v.MarkIntent(0, 1)) // its neighbours, too, up to 16 MiB
	doubtful("marked anew", ext(0, 16*mib))

	snap, gen = v.IntentSnapshot()
	must(t, v.ClearIntent(snap, gen, 3))
	doubtful("both sides synced")
	v = open(t, reopen(t, p, m), "v")
	doubtful("a new life", ext(0, 4*mib)) // its neighbours, never written, have lost theirs
}

// TestClearIntentSecondSnapshot: a clear with a later snapshot's number may take what a clear with
// an earlier one must keep.
func TestClearIntentSecondSnapshot(t *testing.T) {
	v := create(t, openMem(t, vfs.NewMem()), "v", 64*mib)
	must(t, v.MarkIntent(0, 1))
	_, g1 := v.IntentSnapshot()
	must(t, v.MarkIntent(0, 1))
	s2, g2 := v.IntentSnapshot()
	must(t, v.ClearIntent(s2, g1, 0))
	if v.IntentBytes() != 4*mib { // the three untouched regions of the group went
		t.Fatalf("%d bytes marked", v.IntentBytes())
	}
	must(t, v.ClearIntent(s2, g2, 0))
	if v.IntentBytes() != 0 {
		t.Fatalf("%d bytes marked", v.IntentBytes())
	}
}

// TestMarkAndClearRace runs marks against clears. After each MarkIntent, and as long as no snapshot
// has been taken since, the metadata file on the disk has to have the mark.
func TestMarkAndClearRace(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 64*mib)
	var inFlight sync.RWMutex // writers hold it shared, a snapshot waits for those before it
	stop := time.After(300 * time.Millisecond)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				off := int64((i*7+w)%16) * lockstep.RegionBytes
				inFlight.RLock()
				if err := v.MarkIntent(off, 1); err != nil {
					t.Error(err)
				}
				crashed, err := OpenPool("/pool", Options{FS: m.CrashClone(newRand(uint64(i)), 0), Logger: quiet()})
				if err != nil {
					t.Error(err)
					inFlight.RUnlock()
					return
				}
				c, err := crashed.Open("v")
				if err != nil {
					t.Error(err)
				} else if !covered(c.Intent(), ext(off, 1)) {
					t.Errorf("the mark at %d MiB is not on the disk", off/mib)
				}
				inFlight.RUnlock()
				_ = crashed.Close()
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				close(done)
				return
			default:
			}
			snap, gen := v.IntentSnapshot()
			inFlight.Lock()   // all writes whose MarkIntent began before the snapshot are over
			inFlight.Unlock() //nolint:staticcheck // an empty critical section is the wait
			if err := v.ClearIntent(snap, gen, 0); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}

// TestClearedMarkIsNotHotEarly: a mark cleared while a commit that names its region waits to begin,
// and set again while that commit runs, is not in the image that the commit writes. Until the next
// one has ended nobody may take it for durable.
func TestClearedMarkIsNotHotEarly(t *testing.T) {
	m := vfs.NewMem()
	v := create(t, openMem(t, m), "v", 64*mib)
	must(t, v.MarkIntent(0, 1)) // regions 0 to 3
	_, gen := v.IntentSnapshot()
	must(t, v.ClearIntent(exts(ext(4*mib, 4*mib)), gen, 0))

	begun, goOn := make(chan struct{}), make(chan struct{})
	m.OnOp(func(o vfs.Op) error {
		if o == "meta:fdatasync" {
			begun <- struct{}{}
			<-goOn
		}
		return nil
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	beside := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				t.Error(err)
			}
		})
	}
	eventually := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			v.intent.commit.mu.Lock()
			ok := f()
			v.intent.commit.mu.Unlock()
			if ok {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	w := &v.intent
	beside(func() error { return v.MarkIntent(48*mib, 1) })
	<-begun // a commit runs; the next one gets both of these
	beside(func() error { return v.MarkIntent(4*mib, 1) })
	eventually("region 1 is not marked", func() bool { return w.want.Get(1) })
	beside(func() error { return v.ClearIntent(exts(ext(0, 4*mib)), gen, 0) })
	eventually("region 0 is not cleared", func() bool { return !w.want.Get(0) })
	goOn <- struct{}{}
	<-begun // the commit that clears region 0
	beside(func() error { return v.MarkIntent(0, 1) })
	eventually("region 0 is not marked again", func() bool { return w.want.Get(0) })
	goOn <- struct{}{}
	<-begun // the commit that marks it again, which is not durable yet
	if v.IntentMarked(0, 1) {
		crashed := open(t, openMem(t, m.CrashClone(newRand(1), 0)), "v")
		t.Errorf("region 0 counts as marked durably; after a power loss the disk has %v", crashed.Intent())
	}
	goOn <- struct{}{}
	wg.Wait()
	m.OnOp(nil)
	crashed := open(t, openMem(t, m.CrashClone(newRand(1), 0)), "v")
	if !covered(crashed.Intent(), ext(0, 8*mib)) || !v.IntentMarked(0, 8*mib) {
		t.Errorf("in the end the disk has %v", crashed.Intent())
	}
}

func covered(have []lockstep.Extent, e lockstep.Extent) bool {
	for _, h := range have {
		if h.Off <= e.Off && h.End() >= e.End() {
			return true
		}
	}
	return false
}

func TestMarkIntentGroupCommit(t *testing.T) {
	m := vfs.NewMem()
	v := create(t, openMem(t, m), "v", 4096*mib)
	var mu sync.Mutex
	syncs := 0
	release := make(chan struct{})
	m.OnOp(func(o vfs.Op) error {
		if o == "meta:fdatasync" {
			mu.Lock()
			syncs++
			first := syncs == 1
			mu.Unlock()
			if first {
				<-release
			}
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() { must(t, v.MarkIntent(int64(i)*128*mib, 1)) })
	}
	for deadline := time.Now().Add(10 * time.Second); ; { // until the other 31 have asked for the next commit
		v.intent.commit.mu.Lock()
		n := v.intent.want.Count()
		v.intent.commit.mu.Unlock()
		if n == 32*markGroup {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d regions marked", n)
		}
		time.Sleep(time.Millisecond)
	}
	close(release)
	wg.Wait()
	if syncs > 2 {
		t.Fatalf("%d syncs for 32 concurrent marks", syncs)
	}
}

func TestDirtyMap(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 5*lockstep.GiB) // three pages
	ops := countOps(m)
	must(t, v.MarkDirty(2*lockstep.GiB-1, 2))
	must(t, v.MarkDirty(0, 0))
	n := ops["meta:write"]
	must(t, v.MarkDirty(2*lockstep.GiB-1, 2))
	if ops["meta:write"] != n || ops["meta:fdatasync"] != 0 {
		t.Fatalf("writes %d then %d, syncs %d", n, ops["meta:write"], ops["meta:fdatasync"])
	}
	if d := v.Dirty(); d.Count() != 2 || !d.Get(32767) || !d.Get(32768) || v.DirtyBytes() != 2*lockstep.ChunkBytes {
		t.Fatalf("dirty %d", d.Count())
	}
	must(t, v.AddDirty(exts(ext(100, 1), ext(3*lockstep.GiB, mib))))
	must(t, v.AddDirty(nil))
	m.OnOp(nil)
	v = open(t, reopen(t, p, m), "v")
	if v.DirtyBytes() != 3*lockstep.ChunkBytes+mib {
		t.Fatalf("after a restart: %d", v.DirtyBytes())
	}
	must(t, v.MarkIntent(4*lockstep.GiB, 1))
	must(t, v.DirtyFromIntent())
	if v.DirtyBytes() != 3*lockstep.ChunkBytes+mib+16*mib {
		t.Fatalf("with the marked regions: %d", v.DirtyBytes())
	}
	must(t, v.ClearDirty())
	if v.DirtyBytes() != 0 || !v.Dirty().Empty() || v.IntentBytes() == 0 {
		t.Fatalf("after the clear: %d dirty, %d marked", v.DirtyBytes(), v.IntentBytes())
	}
	must(t, v.MarkAllDirty())
	if !v.Dirty().AllSet(0, v.Dirty().Len()) {
		t.Fatal("not all dirty")
	}
	must(t, v.ClearMaps())
	crashed := open(t, openMem(t, m.CrashClone(newRand(7), 0)), "v")
	if crashed.DirtyBytes() != 0 || crashed.IntentBytes() != 0 {
		t.Fatalf("a clear was not durable: %d dirty, %d marked", crashed.DirtyBytes(), crashed.IntentBytes())
	}
	if err := v.AddDirty(exts(ext(5*lockstep.GiB, 1))); !errors.Is(err, lockstep.ErrOutOfRange) {
		t.Fatalf("out of range: %v", err)
	}
}

// TestDamagedPages overwrites slots of pages: one bad slot costs nothing that was durable, two bad
// slots mark everything that the page covers, bad headers stop the volume.
func TestDamagedPages(t *testing.T) {
	size := 5 * lockstep.GiB
	for name, c := range map[string]struct {
		page         pageNo
		slots        []int
		intent       bool // all marked
		chunks       int  // dirty chunks
		damaged      int
		unrecognized bool
	}{
		"one dirty slot":   {page: dirtyPage(1), slots: []int{0}, chunks: -1},
		"other dirty slot": {page: dirtyPage(1), slots: []int{1}, chunks: -1},
		"dirty page":       {page: dirtyPage(1), slots: []int{0, 1}, chunks: bitsPerPage + 1, damaged: 1},
		"last dirty page":  {page: dirtyPage(2), slots: []int{0, 1}, chunks: 5*16384 - 2*bitsPerPage + 2, damaged: 1},
		"intent page":      {page: intentPage(0), slots: []int{0, 1}, intent: true, chunks: 2, damaged: 1},
		"one header":       {page: 0, slots: []int{1}, chunks: 2},
		"headers":          {page: 0, slots: []int{0, 1}, unrecognized: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := vfs.NewMem()
			p := openMem(t, m)
			v := create(t, p, "v", size)
			must(t, v.AddDirty(exts(ext(0, 1), ext(3*lockstep.GiB, 1))))
			must(t, v.MarkIntent(0, 1))
			must(t, p.Close())
			f, err := m.OpenFile("x", "/pool/v.meta", 0)
			must(t, err)
			for _, s := range c.slots {
				_, err := f.WriteAt(fill(0xa5, 100), c.page.offset(s)+1000)
				must(t, err)
			}
			p = openMem(t, m)
			if v, err = p.Open("v"); c.unrecognized {
				if !errors.Is(err, lockstep.ErrCorrupt) {
					t.Fatalf("both headers bad: %v", err)
				}
				must(t, p.RebuildMeta("v"))
				if v = open(t, p, "v"); v.DirtyBytes() != size || v.IntentBytes() != size {
					t.Fatalf("rebuilt: %d dirty, %d marked", v.DirtyBytes(), v.IntentBytes())
				}
				return
			}
			must(t, err)
			check := func(v *Volume) {
				t.Helper()
				n := v.Dirty().Count()
				if c.chunks >= 0 && n != c.chunks || c.chunks < 0 && n != 1 && n != 2 {
					t.Fatalf("%d chunks dirty, want %d", n, c.chunks)
				}
				if all := v.IntentBytes() == size; all != c.intent || len(v.Intent()) != 1 {
					t.Fatalf("marked: %v", v.Intent())
				}
			}
			check(v)
			if v.DamagedPages() != c.damaged {
				t.Fatalf("%d pages reported", v.DamagedPages())
			}
			p = reopen(t, p, m)
			v = open(t, p, "v")
			check(v)
			if v.DamagedPages() != 0 {
				t.Fatal("the damage was not repaired")
			}
		})
	}
}

// TestMisdirectedPage copies a whole page over another one's slots: it must not be believed.
func TestMisdirectedPage(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	create(t, p, "v", 5*lockstep.GiB)
	create(t, p, "w", 5*lockstep.GiB)
	must(t, p.Close())
	f, err := m.OpenFile("x", "/pool/v.meta", 0)
	must(t, err)
	g, err := m.OpenFile("x", "/pool/w.meta", 0)
	must(t, err)
	buf := make([]byte, pageBytes)
	for slot := range 2 {
		_, err = f.ReadAt(buf, dirtyPage(0).offset(0))
		must(t, err)
		_, err = f.WriteAt(buf, dirtyPage(1).offset(slot)) // a page under another number
		must(t, err)
		_, err = g.ReadAt(buf, dirtyPage(2).offset(0))
		must(t, err)
		_, err = f.WriteAt(buf, dirtyPage(2).offset(slot)) // another volume's page
		must(t, err)
	}
	v := open(t, openMem(t, m), "v")
	if v.DamagedPages() != 2 || v.Dirty().Count() != 5*16384-bitsPerPage {
		t.Fatalf("%d pages damaged, %d chunks dirty", v.DamagedPages(), v.Dirty().Count())
	}
}

package replica

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// TestSynchronizationCopiesEveryChunk: chunks that go along with their neighbours, zeroes between data, data
// between zeroes, what is equal already, and what only the secondary has, over more ranges than are compared
// before comparing is given up.
func TestSynchronizationCopiesEveryChunk(t *testing.T) {
	p := newPair(t)
	a, b := p.a.Volume("va"), p.b.Volume("vb")
	// By chunk: a letter each for the primary and the secondary, 0 is zeroes.
	patterns := []struct{ a, b string }{
		{"xxxxxxxxxxxxxxxx", "yyyyyyyyyyyyyyyy"},
		{"x0x00xxx0000xxxx", "yyyyyyyyyyyyyyyy"},
		{"0xxx0x0x0x000000", "y0y0yyyy0y0yyy0y"},
		{"xxxxxxxxxxxxxxxx", "xxyxxxyyxxxxxxxy"},
		{"0000000000000000", "yyyyyyyyyyyyyyyy"},
	}
	const ranges = testSize / compareBytes
	put := func(v *Volume, chunk int64, c byte) {
		if c == '0' {
			return
		}
		if err := v.disk.WriteAt(bytes.Repeat([]byte{c}, int(lockstep.ChunkBytes)), chunk*lockstep.ChunkBytes); err != nil {
			t.Fatal(err)
		}
	}
	for r := range int64(ranges) {
		// A long row of the first, so that comparing is given up, and then all of them.
		which := patterns[0]
		if r > 2*streakRanges {
			which = patterns[r%int64(len(patterns))]
		}
		for i := range int64(len(which.a)) {
			put(a, r*16+i, which.a[i])
			put(b, r*16+i, which.b[i])
		}
	}
	p.sync(t)
	have, want := make([]byte, compareBytes), make([]byte, compareBytes)
	for off := int64(0); off < testSize; off += compareBytes {
		if err := errors.Join(a.disk.ReadAt(want, off), b.disk.ReadAt(have, off)); err != nil {
			t.Fatal(err)
		}
		for i := int64(0); i < compareBytes; i += lockstep.ChunkBytes {
			if !bytes.Equal(have[i:i+lockstep.ChunkBytes], want[i:i+lockstep.ChunkBytes]) {
				t.Fatalf("chunk at %d begins with %q and ends with %q, not %q", off+i, have[i], have[i+lockstep.ChunkBytes-1], want[i])
			}
		}
	}
}

// TestComparingIsGivenUpWhereItDoesNotPay: after some ranges without an equal chunk, for some ranges.
func TestComparingIsGivenUpWhereItDoesNotPay(t *testing.T) {
	all, some := []byte{1, 1, 1}, []byte{1, 0, 1}
	c := &comparing{}
	worth := func(want bool, when string) {
		t.Helper()
		if got := c.worth(); got != want {
			t.Fatalf("%s: worth comparing: %v", when, got)
		}
	}
	for range streakRanges - 1 {
		worth(true, "before the streak")
		c.saw(all)
	}
	c.saw(some)
	c.saw(all)
	worth(true, "after an equal chunk")
	for range streakRanges - 1 {
		c.saw(all)
	}
	for range skipRanges {
		worth(false, "after the streak")
	}
	worth(true, "to try again")
	c.saw(all)
	worth(false, "still nothing equal")
	if !(*comparing)(nil).worth() {
		t.Fatal("a repair always compares")
	}
}

// TestCopyIsFlushedOnItsWay: while a synchronization runs, a background flush reaches both sides.
func TestCopyIsFlushedOnItsWay(t *testing.T) {
	for _, mode := range []protocol.Mode{protocol.ModeCopying, protocol.ModeCopyTwoSided} {
		b := newBed(t)
		f := b.link(1)
		b.v.setMode(mode, 1, f.l, valid(1, time.Minute), "")
		before, done := b.d.Syncs(), make(chan error, 1)
		go func() { done <- b.v.backgroundFlush() }()
		h := f.next()
		if h.Kind != wire.KindFlush {
			t.Fatalf("%s: frame of kind %d", mode, h.Kind)
		}
		b.waits(done)
		f.l.mu.Lock()
		answer := f.l.calls[h.Seq]
		f.l.mu.Unlock()
		answer <- reply{}
		if err := b.ended(done); err != nil || b.d.Syncs() == before {
			t.Fatalf("%s: %v, %d syncs here", mode, err, b.d.Syncs()-before)
		}
	}
}

// TestMarksAreKeptWhileIdle: the mark of a region goes after it was idle for so many background flushes,
// and not before; a write in between makes it stay for as many again.
func TestMarksAreKeptWhileIdle(t *testing.T) {
	const keep = 3
	p := newPairWith(t, func(c *Config) { c.KeepMarks, c.FlushEvery = keep, time.Hour })
	p.sync(t)
	v := p.a.Volume("va")
	write := func() {
		t.Helper()
		if err := v.WriteAt(t.Context(), page(1), 0, false); err != nil {
			t.Fatal(err)
		}
	}
	round := func(want bool, when string) {
		t.Helper()
		if err := v.backgroundFlush(); err != nil {
			t.Fatal(err)
		}
		if got := v.disk.IntentMarked(0, 4096); got != want {
			t.Fatalf("%s: marked %v", when, got)
		}
	}
	write()
	for range keep {
		round(true, "idle for less than that")
	}
	write()
	for range keep {
		round(true, "written in between")
	}
	round(false, "idle for long enough")
}

// TestFlushOfAnotherModeConfirmsNothing: when the mode changes while both sides flush, nothing is confirmed, also
// where the secondary's answer has come: it may be of a life that no record names.
func TestFlushOfAnotherModeConfirmsNothing(t *testing.T) {
	for range 20 { // the answer and the change are there at once, and either may be looked at first
		b := newBed(t)
		b.v.keepMarks = 30
		f := b.link(1)
		b.twoSided(f, 1)
		if err := b.d.MarkIntent(0, 4096); err != nil {
			t.Fatal(err)
		}
		b.fs.OnOp(func(op vfs.Op) error {
			if op != "raw:fdatasync" {
				return nil
			}
			h := f.next()
			f.l.mu.Lock()
			f.l.calls[h.Seq] <- reply{}
			delete(f.l.calls, h.Seq)
			f.l.mu.Unlock()
			b.v.setMode(protocol.ModeHeld, 1, f.l, nil, "")
			b.fs.OnOp(nil)
			return nil
		})
		if err := b.v.backgroundFlush(); err != nil {
			t.Fatal(err)
		}
		if got := b.d.Doubtful(); len(got) == 0 {
			t.Fatal("confirmed")
		}
	}
}

// TestOnlyWhatIsDoubtfulBecomesDirty: of the regions whose marks are kept for the next write, a pause makes
// only that one dirty which was written since the last flush of both sides; what is written one-sided makes
// chunks dirty, and no more when the copying begins. The sides are equal afterwards.
func TestOnlyWhatIsDoubtfulBecomesDirty(t *testing.T) {
	p := newPairWith(t, func(c *Config) { c.KeepMarks, c.FlushEvery = 30, time.Hour })
	p.sync(t)
	v := p.a.Volume("va")
	write := func(off int64) {
		t.Helper()
		if err := v.WriteAt(t.Context(), page(1), off, false); err != nil {
			t.Fatal(err)
		}
	}
	for off := int64(0); off < testSize; off += lockstep.RegionBytes {
		write(off)
	}
	if err := v.backgroundFlush(); err != nil {
		t.Fatal(err)
	}
	write(3*lockstep.RegionBytes + 4096)
	if got := v.disk.IntentBytes(); got != testSize {
		t.Fatalf("%d bytes are marked", got)
	}
	if err := p.st.change(protocol.Record.Pause); err != nil {
		t.Fatal(err)
	}
	p.until(t, "one-sided", func() bool {
		view, _ := p.a.View("g")
		return view.Mode == protocol.ModeOneSided && !view.Record.InSync && view.Record.State == protocol.StateNormal
	})
	dirty := func(want int64, when string) {
		t.Helper()
		if got := v.disk.DirtyBytes(); got != want {
			t.Fatalf("%s: %d bytes are dirty, want %d", when, got, want)
		}
	}
	dirty(lockstep.RegionBytes, "after the pause")
	write(7 * lockstep.RegionBytes)
	write(9*lockstep.RegionBytes + 4*lockstep.ChunkBytes)
	dirty(lockstep.RegionBytes+2*lockstep.ChunkBytes, "after two writes")
	p.st.mu.Lock()
	p.st.stuck = true // the copying does not end
	p.st.mu.Unlock()
	if err := p.st.change(protocol.Record.Sync); err != nil {
		t.Fatal(err)
	}
	p.until(t, "copying", func() bool {
		view, _ := p.a.View("g")
		return view.Mode == protocol.ModeCopyTwoSided
	})
	dirty(lockstep.RegionBytes+2*lockstep.ChunkBytes, "while copying")
	p.st.mu.Lock()
	p.st.stuck = false
	p.st.mu.Unlock()
	if err := p.st.Advance(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	p.until(t, "in sync", func() bool {
		view, _ := p.a.View("g")
		return view.Mode == protocol.ModeTwoSided && view.Record.InSync
	})
	p.equal(t)
	if got := v.disk.Doubtful(); len(got) != 3 {
		t.Fatalf("doubtful after the in-sync commit, before a flush: %v", got)
	}
}

// TestIdleRounds: with a log that fills up, marks go sooner, unless all of the volume fits.
func TestIdleRounds(t *testing.T) {
	b := newBed(t)
	b.v.keepMarks = 32
	for _, c := range []struct {
		limit, marked int64
		want          uint64
	}{
		{testSize, testSize, 32}, {60 << 20, 16 << 20, 32}, {60 << 20, 48 << 20, 4}, {60 << 20, testSize, 0},
	} {
		b.v.intentLimit = c.limit
		if err := b.d.MarkIntent(0, c.marked); err != nil {
			t.Fatal(err)
		}
		if c.marked = b.d.IntentBytes(); b.v.idleRounds() != c.want {
			t.Errorf("limit %d MiB, %d marked: %d rounds, want %d", c.limit>>20, c.marked>>20, b.v.idleRounds(), c.want)
		}
		if err := b.d.ClearMaps(); err != nil {
			t.Fatal(err)
		}
	}
}

package disk

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// TestWritesAreCutIntoPieces: the page cache keeps folios as large as the writes that made them.
func TestWritesAreCutIntoPieces(t *testing.T) {
	m := vfs.NewMem()
	v := create(t, openMem(t, m), "v", 4*mib)
	for _, c := range []struct {
		off, length int64
		writes      int
	}{{0, 4096, 1}, {0, pieceBytes, 1}, {0, 64 * kib, 4}, {pieceBytes - 512, 1024, 2}, {512, mib, 65}} {
		ops := countOps(m)
		must(t, v.WriteAt(fill(3, c.length), c.off))
		if ops["raw:write"] != c.writes {
			t.Errorf("[%d,+%d): %d writes, want %d", c.off, c.length, ops["raw:write"], c.writes)
		}
		expect(t, v, c.off, c.length, 3)
	}
}

func TestReadWriteZeroExtents(t *testing.T) {
	for _, fsName := range []string{"mem", "mem without punch", "os"} {
		t.Run(fsName, func(t *testing.T) {
			o, dir := Options{Logger: quiet()}, t.TempDir()
			if fsName != "os" {
				m := vfs.NewMem()
				m.SetPunch(fsName == "mem")
				o.FS, dir = m, "/pool"
			}
			p, err := OpenPool(dir, o)
			must(t, err)
			defer func() { must(t, p.Close()) }()
			v := create(t, p, "v", 4*mib)
			must(t, v.WriteAt(fill(1, mib), mib))
			expect(t, v, 0, mib, 0)
			expect(t, v, mib, mib, 1)
			must(t, v.Zero(mib+100, 200*kib, false))
			expect(t, v, mib, 100, 1)
			expect(t, v, mib+100, 200*kib, 0)
			expect(t, v, mib+100+200*kib, 512, 1)
			got, err := v.Extents(0, 4*mib)
			must(t, err)
			if fsName == "mem without punch" {
				want := []block.ExtentState{{Len: mib, Hole: true, Zero: true}, {Len: mib}, {Len: 2 * mib, Hole: true, Zero: true}}
				if !slices.Equal(got, want) {
					t.Fatalf("extents %v", got)
				}
			}
			checkExtents(t, got, 4*mib)
			off := int64(0)
			for _, e := range got { // a hole, and what has data in front of it, in it or behind it
				if v.IsHole(off, e.Len) != e.Hole || v.IsHole(off, 1) != e.Hole {
					t.Errorf("[%d,+%d) is a hole: %v", off, e.Len, !e.Hole)
				}
				if off > 0 && (v.IsHole(off-1, 2) || v.IsHole(0, off+1)) {
					t.Errorf("a hole with data in it, around %d", off)
				}
				off += e.Len
			}
			if v.IsHole(0, 0) || v.IsHole(4*mib-1, 2) || v.IsHole(-1, 1) {
				t.Error("nothing, or what is not there, is a hole")
			}
			must(t, v.Zero(3*mib, 70*kib, true))
			must(t, v.Sync())
			got, err = v.Extents(3*mib, mib)
			must(t, err)
			if len(got) == 0 || got[0].Hole || got[0].Len < 70*kib {
				t.Fatalf("zeroes that must not be a hole: %v", got)
			}
			expect(t, v, 3*mib, mib, 0)
			for _, r := range [][2]int64{{-1, 1}, {4 * mib, 1}, {4*mib - 1, 2}, {1 << 62, 1 << 62}} {
				if err := v.Zero(r[0], r[1], false); !errors.Is(err, lockstep.ErrOutOfRange) {
					t.Errorf("zero of %v: %v", r, err)
				}
			}
			if err := v.WriteAt(fill(1, 2), 4*mib-1); !errors.Is(err, lockstep.ErrOutOfRange) {
				t.Errorf("write over the end: %v", err)
			}
			must(t, v.WriteAt(nil, 4*mib))
		})
	}
}

func checkExtents(t *testing.T, got []block.ExtentState, length int64) {
	t.Helper()
	var sum int64
	for i, e := range got {
		if e.Len <= 0 || e.Hole != e.Zero || i > 0 && got[i-1].Hole == e.Hole {
			t.Fatalf("extents %v", got)
		}
		sum += e.Len
	}
	if sum != length {
		t.Fatalf("extents cover %d of %d", sum, length)
	}
}

// TestFailureIsPermanent breaks one operation after the other and expects each volume to stay
// failed, over a restart too.
func TestFailureIsPermanent(t *testing.T) {
	for op, do := range map[vfs.Op]func(v *Volume) error{
		"raw:read":       func(v *Volume) error { return v.ReadAt(make([]byte, 512), 0) },
		"raw:write":      func(v *Volume) error { return v.WriteAt(make([]byte, 512), 0) },
		"raw:punch":      func(v *Volume) error { return v.Zero(0, mib, false) },
		"raw:fdatasync":  func(v *Volume) error { return v.Sync() },
		"raw:seekdata":   func(v *Volume) error { _, err := v.Extents(0, mib); return err },
		"meta:write":     func(v *Volume) error { return v.MarkIntent(0, 1) },
		"meta:fdatasync": func(v *Volume) error { return v.MarkIntent(0, 1) },
		"undo:fdatasync": func(v *Volume) error { return v.Preserve(exts(ext(0, 1))) },
	} {
		t.Run(string(op), func(t *testing.T) {
			m := vfs.NewMem()
			p := openMem(t, m)
			v := create(t, p, "v", 8*mib)
			must(t, v.SetPoint(2, 1))
			failOp(m, op, errIO)
			err := do(v)
			if !errors.Is(err, lockstep.ErrVolumeFailed) || !errors.Is(err, errIO) {
				t.Fatalf("%v", err)
			}
			m.OnOp(nil)
			for i, err := range []error{
				do(v), v.Sync(), v.WriteAt(make([]byte, 512), 0), v.ReadAt(make([]byte, 512), 0),
				v.MarkIntent(0, 1), v.MarkDirty(0, 1), v.SyncMeta(), v.ClearMaps(), v.Failed(),
			} {
				if !errors.Is(err, lockstep.ErrVolumeFailed) {
					t.Errorf("call %d after the failure: %v", i, err)
				}
			}
			v = open(t, reopen(t, p, m), "v")
			if !errors.Is(v.Failed(), lockstep.ErrVolumeFailed) || !errors.Is(v.Sync(), lockstep.ErrVolumeFailed) {
				t.Fatalf("a restart forgot the failure: %v", v.Failed())
			}
		})
	}
}

func TestNoSpaceIsNotPermanent(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 8*mib)
	m.SetTotal(0)
	if err := v.WriteAt(fill(1, 8192), 0); !errors.Is(err, lockstep.ErrNoSpace) {
		t.Fatalf("write to a full pool: %v", err)
	}
	if err := v.Zero(0, mib, true); !errors.Is(err, lockstep.ErrNoSpace) {
		t.Fatalf("zeroes in a full pool: %v", err)
	}
	must(t, v.Failed())
	// Marks need no space: their blocks were written when the volume was made.
	must(t, v.MarkIntent(0, mib))
	must(t, v.MarkDirty(0, mib))
	m.SetTotal(1 << 30)
	must(t, v.WriteAt(fill(1, 8192), 0))
	must(t, v.Sync())
}

func TestGrow(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 8*mib)
	must(t, v.MarkDirty(0, 8*mib))
	must(t, v.MarkIntent(0, 8*mib))
	big := 300 * lockstep.GiB // three stripes
	must(t, v.Grow(big))
	must(t, v.Grow(big))
	must(t, v.Grow(mib))
	if v.Size() != big {
		t.Fatalf("size %d", v.Size())
	}
	must(t, v.MarkIntent(big-1, 1))
	must(t, v.MarkDirty(big-1, 1))
	must(t, v.WriteAt(fill(5, 512), big-512))
	v = open(t, reopen(t, p, m), "v")
	if v.Size() != big || v.DirtyBytes() != 8*mib+lockstep.ChunkBytes || v.DamagedPages() != 0 {
		t.Fatalf("after a restart: size %d, dirty %d, damaged %d", v.Size(), v.DirtyBytes(), v.DamagedPages())
	}
	want := exts(ext(0, 8*mib), ext(big-16*mib, 16*mib))
	if got := v.Intent(); !slices.Equal(got, want) {
		t.Fatalf("intent %v, want %v", got, want)
	}
	expect(t, v, big-512, 512, 5)
}

// TestRawFileLongerOrShorter: a file that somebody made longer is taken over, one that was cut is
// refused.
func TestRawFileLongerOrShorter(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	create(t, p, "v", 8*mib)
	must(t, p.Close())
	f, err := m.OpenFile("x", "/pool/v.raw", 0)
	must(t, err)
	must(t, f.Truncate(12*mib))
	p = openMem(t, m)
	if v := open(t, p, "v"); v.Size() != 12*mib {
		t.Fatalf("size %d", v.Size())
	}
	must(t, p.Close())
	must(t, f.Truncate(11*mib))
	if _, err := openMem(t, m).Open("v"); !errors.Is(err, lockstep.ErrCorrupt) {
		t.Fatalf("open of a cut file: %v", err)
	}
}

// TestSyncSharing: callers that come while a sync runs wait for the next one and share it.
func TestSyncSharing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r sharedRun
		r.init()
		var runs atomic.Int64
		slow := func() error {
			runs.Add(1)
			time.Sleep(time.Second)
			return nil
		}
		var wg sync.WaitGroup
		begin := time.Now()
		wg.Go(func() { must(t, r.do(slow)) })
		time.Sleep(time.Millisecond)
		for range 10 {
			wg.Go(func() {
				must(t, r.do(slow))
				if d := time.Since(begin); d != 2*time.Second {
					t.Errorf("returned after %v: relied on the sync that began before the call", d)
				}
			})
		}
		wg.Wait()
		if runs.Load() != 2 {
			t.Fatalf("%d runs for 11 callers", runs.Load())
		}
		boom := errors.New("boom")
		if err := r.do(func() error { return boom }); !errors.Is(err, boom) {
			t.Fatal(err)
		}
		if err := r.do(slow); !errors.Is(err, boom) {
			t.Fatalf("a later run hid the failure: %v", err)
		}
	})
}

func TestSyncsCounts(t *testing.T) {
	v := create(t, openMem(t, vfs.NewMem()), "v", mib)
	before := v.Syncs()
	must(t, v.Sync())
	must(t, v.Sync())
	if v.Syncs() != before+2 {
		t.Fatalf("%d syncs", v.Syncs()-before)
	}
}

// A file that was cut is no file with holes: a comparison that took it for one would call lost data
// equal to zeroes.
func TestExtentsOfACutFile(t *testing.T) {
	dir := t.TempDir()
	p, err := OpenPool(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	v, err := p.Create("cut", 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	if states, err := v.Extents(0, 8<<20); err != nil || len(states) != 1 || !states[0].Hole {
		t.Fatalf("whole and empty: %+v, %v", states, err)
	}
	if err := os.Truncate(filepath.Join(dir, "cut.raw"), 4<<20); err != nil {
		t.Fatal(err)
	}
	if states, err := v.Extents(0, 4<<20); err != nil || len(states) != 1 {
		t.Errorf("the part that is there: %+v, %v", states, err)
	}
	if states, err := v.Extents(6<<20, 1<<20); !errors.Is(err, lockstep.ErrVolumeFailed) {
		t.Errorf("the part that is gone: %+v, %v", states, err)
	}
}

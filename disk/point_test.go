package disk

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/test/need"
)

// overwrite preserves and then writes, as a secondary does while copying.
func overwrite(t testing.TB, v *Volume, off, n int64, b byte) {
	t.Helper()
	must(t, v.Preserve(exts(ext(off, n))))
	must(t, v.WriteAt(fill(b, n), off))
}

func TestRollback(t *testing.T) {
	for _, kind := range []string{"undo", "undo without punch", "reflink", "reflink copied to a plain file system"} {
		t.Run(kind, func(t *testing.T) {
			m := vfs.NewMem()
			reflink := kind[0] == 'r'
			m.SetReflink(reflink)
			m.SetPunch(kind != "undo without punch")
			p := openMem(t, m)
			size := 4*mib + 512 // the last chunk is short
			v := create(t, p, "v", size)
			must(t, v.WriteAt(fill(1, mib), mib))
			must(t, v.WriteAt(fill(2, 512), 4*mib))
			must(t, v.Sync())
			must(t, v.SetPoint(5, 4))
			if e, ok := v.Point(); !ok || e != 5 {
				t.Fatalf("point %d %v", e, ok)
			}
			overwrite(t, v, mib+10, 300*kib, 9)
			overwrite(t, v, 0, 64*kib, 9) // a hole before
			overwrite(t, v, 4*mib, 512, 9)
			must(t, v.Preserve(exts(ext(2*mib-64*kib, 128*kib))))
			must(t, v.Zero(2*mib-64*kib, 128*kib, false))
			must(t, v.Grow(5*mib))
			overwrite(t, v, 4*mib, mib, 9)
			if reflink != (v.PointBytes() == undoHead) {
				t.Fatalf("%d bytes of undo", v.PointBytes())
			}
			v = open(t, reopen(t, p, m), "v")
			overwrite(t, v, 3*mib, 64*kib, 9) // the undo file goes on after a restart
			m.SetReflink(kind == "reflink")
			got, err := v.Rollback()
			must(t, err)
			want := exts(ext(0, 64*kib), ext(mib, 320*kib), ext(2*mib-64*kib, 128*kib), ext(3*mib, 64*kib), ext(4*mib, mib))
			if reflink {
				want = exts(ext(0, 5*mib))
			}
			if !slices.Equal(got, want) {
				t.Fatalf("touched %v, want %v", got, want)
			}
			expect(t, v, 0, mib, 0)
			expect(t, v, mib, mib, 1)
			expect(t, v, 2*mib, 2*mib, 0)
			expect(t, v, 4*mib, 512, 2)
			expect(t, v, 4*mib+512, mib-512, 0)
			var sum int64
			for _, e := range want {
				sum += e.Len
			}
			if v.DirtyBytes() != sum {
				t.Fatalf("%d dirty, %d touched", v.DirtyBytes(), sum)
			}
			if _, ok := v.Point(); ok {
				t.Fatal("the point is still there")
			}
			if _, err := v.Rollback(); !errors.Is(err, lockstep.ErrNotFound) {
				t.Fatalf("rollback without a point: %v", err)
			}
			names, err := m.ReadDir("x", "/pool")
			must(t, err)
			if want := []string{"groups", "lock", "node.json", "v.meta", "v.raw"}; !slices.Equal(names, want) {
				t.Fatalf("files left: %v", names)
			}
		})
	}
}

func TestSetPointKeepsNewer(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		m := vfs.NewMem()
		m.SetReflink(reflink)
		p := openMem(t, m)
		v := create(t, p, "v", mib)
		must(t, v.WriteAt(fill(1, mib), 0))
		must(t, v.Sync())
		must(t, v.SetPoint(5, 4))
		overwrite(t, v, 0, mib, 2)
		must(t, v.SetPoint(6, 4)) // no in-sync commit since: the point of 5 is the consistent image
		if e, _ := v.Point(); e != 5 {
			t.Fatalf("epoch %d, want the older point kept", e)
		}
		must(t, v.SetPoint(8, 7)) // in sync at 7: replaced
		v = open(t, reopen(t, p, m), "v")
		if e, ok := v.Point(); !ok || e != 8 {
			t.Fatalf("epoch %d, want 8", e)
		}
		overwrite(t, v, 0, mib, 3)
		_, err := v.Rollback()
		must(t, err)
		expect(t, v, 0, mib, 2)
		must(t, v.SetPoint(9, 8))
		must(t, v.DropPoint())
		must(t, v.DropPoint())
		if _, ok := v.Point(); ok {
			t.Fatal("dropped, yet there")
		}
	}
}

func TestPreserveCostsAndSharing(t *testing.T) {
	m := vfs.NewMem()
	v := create(t, openMem(t, m), "v", 64*mib)
	must(t, v.Preserve(exts(ext(0, mib)))) // no point: nothing to do
	must(t, v.SetPoint(2, 1))
	must(t, v.WriteAt(fill(1, 4*mib), 0))
	ops := countOps(m)
	must(t, v.Preserve(exts(ext(0, 2*mib), ext(mib, 2*mib), ext(8*mib, 8*mib))))
	if ops["undo:fdatasync"] != 1 {
		t.Fatalf("%d syncs for one call", ops["undo:fdatasync"])
	}
	want := undoHead + 3*16*(lockstep.ChunkBytes+recordHead) + recordHead + recordHead // data, one hole record, the seal
	if got := v.PointBytes(); got != want {
		t.Fatalf("undo file of %d bytes, want %d", got, want)
	}
	clear(ops)
	must(t, v.Preserve(exts(ext(0, 3*mib), ext(10*mib, mib))))
	if len(ops) != 0 {
		t.Fatalf("preserved chunks cost %v", ops)
	}
	m.OnOp(nil)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { must(t, v.Preserve(exts(ext(16*mib+int64(i)*100*kib, 300*kib)))) })
	}
	wg.Wait()
	must(t, v.WriteAt(fill(7, 1000*kib), 16*mib))
	_, err := v.Rollback()
	must(t, err)
	expect(t, v, 16*mib, 2*mib, 0)
	expect(t, v, 0, 4*mib, 1)
}

func TestPreserveNoSpace(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 64*mib)
	must(t, v.WriteAt(fill(1, 8*mib), 0))
	must(t, v.Sync())
	must(t, v.SetPoint(2, 1))
	overwrite(t, v, 0, mib, 2)
	total, free, err := p.Space()
	must(t, err)
	m.SetTotal(total - free + 2*mib + mib/2)
	if err := v.Preserve(exts(ext(mib, 6*mib))); !errors.Is(err, lockstep.ErrNoSpace) {
		t.Fatalf("preserve on a full pool: %v", err)
	}
	must(t, v.Failed())
	if _, free, _ := p.Space(); free < 2*mib {
		t.Fatalf("the failed attempt keeps the space: %d free", free)
	}
	m.SetTotal(total)
	overwrite(t, v, mib, 6*mib, 3)
	v = open(t, reopen(t, p, m), "v")
	_, err = v.Rollback()
	must(t, err)
	expect(t, v, 0, 8*mib, 1)
}

// TestDamagedUndo flips a byte in the middle of an undo file: the point must be refused, not rolled
// back in part, and must go only when told so.
func TestDamagedUndo(t *testing.T) {
	for name, off := range map[string]int64{
		"header": 20, "first record": undoHead + 8, "data": undoHead + recordHead + 100,
		"last data": undoHead + 15*(lockstep.ChunkBytes+recordHead) + recordHead + 5,
		"last head": undoHead + 15*(lockstep.ChunkBytes+recordHead) + 20,
	} {
		t.Run(name, func(t *testing.T) {
			m := vfs.NewMem()
			p := openMem(t, m)
			v := create(t, p, "v", 8*mib)
			must(t, v.WriteAt(fill(1, 4*mib), 0))
			must(t, v.Sync())
			must(t, v.SetPoint(2, 1))
			overwrite(t, v, 0, mib, 2)
			must(t, p.Close())
			f, err := m.OpenFile("x", "/pool/v.undo", 0)
			must(t, err)
			b := make([]byte, 1)
			_, err = f.ReadAt(b, off)
			must(t, err)
			_, err = f.WriteAt([]byte{b[0] ^ 0x40}, off)
			must(t, err)
			v = open(t, openMem(t, m), "v")
			if _, err := v.Rollback(); !errors.Is(err, lockstep.ErrCorrupt) {
				t.Fatalf("rollback: %v", err)
			}
			expect(t, v, 0, mib, 2) // nothing was written
			if name == "header" {
				if _, ok := v.Point(); ok {
					t.Fatal("a point that cannot be read is offered")
				}
				if err := v.Preserve(exts(ext(0, 1))); !errors.Is(err, lockstep.ErrCorrupt) {
					t.Fatalf("preserve: %v", err)
				}
				if err := v.SetPoint(3, 2); !errors.Is(err, lockstep.ErrCorrupt) {
					t.Fatalf("set: %v", err)
				}
			}
			must(t, v.DropPoint())
			must(t, v.SetPoint(3, 2))
		})
	}
}

func TestMissingClone(t *testing.T) {
	m := vfs.NewMem()
	m.SetReflink(true)
	p := openMem(t, m)
	v := create(t, p, "v", mib)
	must(t, v.SetPoint(2, 1))
	must(t, p.Close())
	must(t, m.Remove("x", "/pool/v.point"))
	v = open(t, openMem(t, m), "v")
	if _, err := v.Rollback(); !errors.Is(err, lockstep.ErrCorrupt) {
		t.Fatalf("rollback without the clone: %v", err)
	}
}

// TestReflinkReal uses FICLONE where the file system of the tests, or an XFS image that this test
// may mount, has it.
func TestReflinkReal(t *testing.T) {
	dir := reflinkDir(t)
	p, err := OpenPool(filepath.Join(dir, "pool"), Options{Logger: quiet()})
	must(t, err)
	defer func() { must(t, p.Close()) }()
	v := create(t, p, "v", 64*mib)
	must(t, v.WriteAt(fill(1, mib), mib))
	must(t, v.Sync())
	must(t, v.SetPoint(2, 1))
	if v.PointBytes() != undoHead {
		t.Fatalf("no clone was made: %d bytes", v.PointBytes())
	}
	overwrite(t, v, 0, 4*mib, 9)
	must(t, v.Grow(65*mib))
	overwrite(t, v, 64*mib, mib, 9)
	_, err = v.Rollback()
	must(t, err)
	expect(t, v, 0, mib, 0)
	expect(t, v, mib, mib, 1)
	expect(t, v, 2*mib, 63*mib, 0)
}

func reflinkDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if canClone(t, dir) {
		return dir
	}
	need.Programs(t, "mkfs.xfs") // no FICLONE on this file system: one is made that has it
	need.Root(t, "mounting an XFS image")
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	must(t, os.WriteFile(img, nil, 0o600))
	must(t, os.Truncate(img, 512*mib))
	must(t, os.Mkdir(mnt, 0o700))
	if out, err := exec.CommandContext(t.Context(), "mkfs.xfs", "-q", "-m", "reflink=1", img).CombinedOutput(); err != nil {
		need.Missing(t, "mkfs.xfs: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", img, mnt).CombinedOutput(); err != nil {
		need.Missing(t, "mount of an XFS image: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", mnt).Run() })
	if !canClone(t, mnt) {
		need.Missing(t, "the XFS image has no FICLONE")
	}
	return mnt
}

func canClone(t *testing.T, dir string) bool {
	t.Helper()
	a, err := vfs.OS.OpenFile("t", filepath.Join(dir, "a"), vfs.Create)
	must(t, err)
	b, err := vfs.OS.OpenFile("t", filepath.Join(dir, "b"), vfs.Create)
	must(t, err)
	defer func() { must(t, errors.Join(a.Close(), b.Close())) }()
	_, err = a.WriteAt(fill(1, 8192), 0)
	must(t, err)
	return b.CloneFrom(a) == nil
}

// TestPointOfAnUnfinishedGrow: a Grow that found no room for its maps leaves the raw file longer than
// the volume. A recovery point that was set then can be used.
func TestPointOfAnUnfinishedGrow(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		m := vfs.NewMem()
		m.SetReflink(reflink)
		v := create(t, openMem(t, m), "v", 8*mib)
		must(t, v.WriteAt(fill(1, mib), 7*mib))
		failOp(m, "meta:write", syscall.ENOSPC)
		if err := v.Grow(3 * lockstep.GiB); !errors.Is(err, lockstep.ErrNoSpace) || v.Size() != 8*mib {
			t.Fatalf("grown to %d: %v", v.Size(), err)
		}
		m.OnOp(nil)
		must(t, v.Sync())
		must(t, v.SetPoint(5, 2))
		must(t, v.Preserve(exts(ext(7*mib, mib))))
		must(t, v.WriteAt(fill(2, mib), 7*mib))
		if _, err := v.Rollback(); err != nil {
			t.Fatalf("reflink %v: %v", reflink, err)
		}
		expect(t, v, 7*mib, mib, 1)
		must(t, v.Grow(3*lockstep.GiB))
		expect(t, v, 8*mib, mib, 0)
	}
}

// TestOpenAfterAnUnfinishedGrow: a pool without room for the larger maps opens the volume all the same,
// with the size that it had.
func TestOpenAfterAnUnfinishedGrow(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 8*mib)
	must(t, v.MarkIntent(0, 1))
	failOp(m, "meta:write", syscall.ENOSPC)
	if err := v.Grow(3 * lockstep.GiB); !errors.Is(err, lockstep.ErrNoSpace) {
		t.Fatal(err)
	}
	p = reopen(t, p, m)
	v = open(t, p, "v")
	if v.Size() != 8*mib || v.IntentBytes() != 8*mib {
		t.Fatalf("%d bytes, %d marked", v.Size(), v.IntentBytes())
	}
	m.OnOp(nil)
	must(t, v.Grow(3*lockstep.GiB))
	v = open(t, reopen(t, p, m), "v")
	if v.Size() != 3*lockstep.GiB || v.IntentBytes() != 8*mib {
		t.Fatalf("grown: %d bytes, %d marked", v.Size(), v.IntentBytes())
	}
}

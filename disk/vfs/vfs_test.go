package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// TestConformance runs one script on the real file system and on the double, so that what the
// crash tests show on the double means something.
func TestConformance(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (FS, string){
		"os": func(t *testing.T) (FS, string) { return OS, t.TempDir() },
		"mem": func(*testing.T) (FS, string) {
			m := NewMem()
			if err := m.MkdirAll("t", "/d"); err != nil {
				panic(err)
			}
			return m, "/d"
		},
	} {
		t.Run(name, func(t *testing.T) {
			fsys, dir := open(t)
			conform(t, fsys, dir)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func conform(t *testing.T, fsys FS, dir string) {
	path := filepath.Join(dir, "a")
	if _, err := fsys.OpenFile("t", path, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("open of a missing file: %v", err)
	}
	f, err := fsys.OpenFile("t", path, Create|Exclusive)
	must(t, err)
	if _, err := fsys.OpenFile("t", path, Create|Exclusive); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("exclusive open of an existing file: %v", err)
	}
	must(t, f.Truncate(1<<20))
	if _, err := f.SeekData(0); !errors.Is(err, io.EOF) {
		t.Fatalf("seek data in a hole: %v", err)
	}
	if at, err := f.SeekHole(0); err != nil || at != 0 {
		t.Fatalf("seek hole in a hole: %d %v", at, err)
	}
	data := bytes.Repeat([]byte{7}, 64<<10)
	_, err = f.WriteAt(data, 128<<10)
	must(t, err)
	must(t, f.Fdatasync())
	if at, err := f.SeekData(0); err != nil || at != 128<<10 {
		t.Fatalf("seek data: %d %v", at, err)
	}
	if at, err := f.SeekHole(130 << 10); err != nil || at != 192<<10 {
		t.Fatalf("seek hole: %d %v", at, err)
	}
	must(t, f.PunchHole(130<<10, 8<<10))
	got := make([]byte, 64<<10)
	if n, err := f.ReadAt(got, 128<<10); n != len(got) || err != nil {
		t.Fatalf("read: %d %v", n, err)
	}
	clear(data[2<<10 : 10<<10])
	if !bytes.Equal(got, data) {
		t.Fatal("contents after a punch differ")
	}
	if n, err := f.ReadAt(got, 1<<20-10); n != 10 || !errors.Is(err, io.EOF) {
		t.Fatalf("read over the end: %d %v", n, err)
	}
	if _, err := f.SeekHole(1 << 20); !errors.Is(err, io.EOF) {
		t.Fatalf("seek hole at the end: %v", err)
	}
	must(t, f.Lock())
	g, err := fsys.OpenFile("t", path, 0)
	must(t, err)
	if err := g.Lock(); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v", err)
	}
	must(t, f.Close())
	must(t, g.Lock())
	if err := g.CloneFrom(g); err != nil && !errors.Is(err, ErrUnsupported) {
		t.Logf("clone onto itself: %v", err)
	}
	must(t, g.Close())
	if err := f.Fdatasync(); !errors.Is(err, fs.ErrClosed) {
		t.Fatalf("sync of a closed file: %v", err)
	}
	must(t, fsys.Rename("t", path, filepath.Join(dir, "b")))
	must(t, fsys.MkdirAll("t", filepath.Join(dir, "c")))
	must(t, fsys.SyncDir("t", dir))
	if names, err := fsys.ReadDir("t", dir); err != nil || !slices.Equal(names, []string{"b", "c"}) {
		t.Fatalf("names %v, %v", names, err)
	}
	must(t, fsys.Remove("t", filepath.Join(dir, "b")))
	if err := fsys.Remove("t", filepath.Join(dir, "b")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("remove of a missing file: %v", err)
	}
	if total, free, err := fsys.Space(dir); err != nil || free <= 0 || free > total {
		t.Fatalf("space %d %d %v", total, free, err)
	}
	if id, err := fsys.MountID(dir); err != nil || id == "" {
		t.Fatalf("mount id %q %v", id, err)
	}
}

func memFileOf(t *testing.T, m *Mem, name string, flags int) File {
	t.Helper()
	f, err := m.OpenFile("t", name, flags)
	must(t, err)
	return f
}

// TestCrashKeepsSynced: with nothing kept, exactly what was synced remains; with all kept and no
// tearing, everything may.
func TestCrashKeepsSynced(t *testing.T) {
	m := NewMem()
	f := memFileOf(t, m, "/a", Create)
	_, err := f.WriteAt(bytes.Repeat([]byte{1}, 8192), 0)
	must(t, err)
	must(t, f.Fdatasync())
	rng := rand.New(rand.NewPCG(1, 1))
	if _, err := m.CrashClone(rng, 0).OpenFile("t", "/a", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the entry was never synced, yet: %v", err)
	}
	must(t, m.SyncDir("t", "/"))
	_, err = f.WriteAt(bytes.Repeat([]byte{2}, 8192), 4096)
	must(t, err)
	read := func(m *Mem) []byte {
		f := memFileOf(t, m, "/a", 0)
		size, err := f.Size()
		must(t, err)
		b := make([]byte, size)
		_, err = f.ReadAt(b, 0)
		must(t, err)
		return b
	}
	if got := read(m.CrashClone(rng, 0)); !bytes.Equal(got, bytes.Repeat([]byte{1}, 8192)) {
		t.Fatalf("%d bytes, or other contents than those synced", len(got))
	}
	torn, whole := false, false
	for range 200 {
		got := read(m.CrashClone(rng, 0.9))
		if len(got) < 8192 {
			t.Fatalf("synced size lost: %d", len(got))
		}
		n := bytes.Count(got[4096:8192], []byte{2})
		if n%512 != 0 {
			t.Fatalf("torn inside a sector: %d bytes", n)
		}
		torn, whole = torn || n > 0 && n < 4096, whole || n == 4096
	}
	if !torn || !whole {
		t.Fatalf("torn %v, whole %v: both must happen", torn, whole)
	}
	// A failed sync drops what it should have written; a later one cannot bring it back.
	m.OnOp(func(op Op) error {
		if op == "t:fdatasync" {
			return syscall.EIO
		}
		return nil
	})
	if err := f.Fdatasync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("injected error: %v", err)
	}
	m.OnOp(nil)
	must(t, f.Fdatasync())
	if got := read(m.CrashClone(rng, 1)); bytes.IndexByte(got, 2) >= 0 {
		t.Fatal("a later sync brought back what a failed one had lost")
	}
}

// TestCrashRename: after a rename over a file, a crash shows the old or the new one, never neither.
func TestCrashRename(t *testing.T) {
	m := NewMem()
	put := func(name string, b byte) {
		f := memFileOf(t, m, name, Create)
		_, err := f.WriteAt([]byte{b}, 0)
		must(t, err)
		must(t, f.Fdatasync())
		must(t, f.Close())
	}
	put("/a", 1)
	must(t, m.SyncDir("t", "/"))
	put("/b", 2)
	must(t, m.Rename("t", "/b", "/a"))
	rng := rand.New(rand.NewPCG(2, 2))
	seen := map[byte]bool{}
	for range 100 {
		f := memFileOf(t, m.CrashClone(rng, 0.6), "/a", 0)
		b := make([]byte, 1)
		_, err := f.ReadAt(b, 0)
		must(t, err)
		seen[b[0]] = true
	}
	if len(seen) != 2 || seen[0] {
		t.Fatalf("contents seen: %v", seen)
	}
}

func TestMemSpace(t *testing.T) {
	m := NewMem()
	m.SetTotal(16 << 10)
	f := memFileOf(t, m, "/a", Create)
	n, err := f.WriteAt(make([]byte, 20<<10), 0)
	if n != 16<<10 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("wrote %d, %v", n, err)
	}
	must(t, f.PunchHole(0, 8<<10))
	if _, free, _ := m.Space("/"); free != 8<<10 {
		t.Fatalf("%d free after a punch", free)
	}
	must(t, f.Close())
	must(t, m.Remove("t", "/a"))
	if _, free, _ := m.Space("/"); free != 16<<10 {
		t.Fatalf("%d free after the remove", free)
	}
}

package vfs_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// TestReadCached: what is in the page cache is read, what is not is refused, whole or in part.
func TestReadCached(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := vfs.OS.OpenFile("raw", path, vfs.Create)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	want := bytes.Repeat([]byte("lockstep"), 64<<10/8)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Fdatasync(); err != nil {
		t.Fatal(err)
	}
	c, ok := f.(vfs.CachedReader)
	if !ok {
		t.Fatal("a file of the operating system is no CachedReader")
	}
	got := make([]byte, len(want))
	if c.ReadCached(got, int64(len(want))-1) {
		t.Error("a read beyond the end was whole")
	}
	if c.ReadCached(got, 0) && !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.EXT4_SUPER_MAGIC || fs.Type == unix.XFS_SUPER_MAGIC { // others may keep it
		if c.ReadCached(got, 0) {
			t.Error("what is on the disk alone was read without waiting")
		}
	}
}

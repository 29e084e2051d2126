package faults

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lockstep-dr/lockstep/test/need"
)

// badDisk is a file system that passes everything through to a directory until it is told to fail: as a
// disk does, with EIO, or as one that is full.
type badDisk struct {
	fault atomic.Pointer[diskFault]
	hits  atomic.Int64 // calls that failed
}

// diskFault fails calls for which hits is true. op is read, write, sync or meta (a change of names
// or sizes); path is below the mount.
type diskFault struct {
	errno syscall.Errno
	hits  func(op, path string) bool
}

// mountBadDisk mounts one; it ends with the test.
func mountBadDisk(t *testing.T, at, backing string) *badDisk {
	t.Helper()
	need.Root(t, "mounting a file system that fails")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		need.Missing(t, "mount a file system that fails: %v", err)
	}
	for _, dir := range []string{at, backing} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d := &badDisk{}
	root := &fs.LoopbackRoot{Path: backing}
	node := &badNode{&fs.LoopbackNode{RootData: root}, d}
	root.RootNode = node
	server, err := fs.Mount(at, node, &fs.Options{MountOptions: fuse.MountOptions{DirectMount: true, FsName: "bad-disk", Name: "lockstep-test"}})
	if err != nil {
		need.Missing(t, "mount a file system that fails: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return d
}

// fail makes calls fail from now on; nil: none any more.
func (d *badDisk) fail(f *diskFault) { d.fault.Store(f) }

func (d *badDisk) check(op, path string) syscall.Errno {
	if f := d.fault.Load(); f != nil && f.hits(op, path) {
		d.hits.Add(1)
		return f.errno
	}
	return 0
}

type badNode struct {
	*fs.LoopbackNode
	disk *badDisk
}

// WrapChild makes every file and directory one of ours.
func (n *badNode) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &badNode{ops.(*fs.LoopbackNode), n.disk}
}

func (n *badNode) path() string { return n.Path(n.Root()) }

func (n *badNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	fh, _, errno := n.LoopbackNode.Open(ctx, flags)
	return n.wrap(fh), fuse.FOPEN_DIRECT_IO, errno
}

func (n *badNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	path := strings.TrimPrefix(n.path()+"/"+name, "/")
	if errno := n.disk.check("meta", path); errno != 0 {
		return nil, nil, 0, errno
	}
	inode, fh, _, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if f, ok := fh.(*fs.LoopbackFile); ok {
		fh = &badFile{LoopbackFile: f, disk: n.disk, path: path}
	}
	return inode, fh, fuse.FOPEN_DIRECT_IO, errno
}

func (n *badNode) wrap(fh fs.FileHandle) fs.FileHandle {
	if f, ok := fh.(*fs.LoopbackFile); ok {
		return &badFile{LoopbackFile: f, disk: n.disk, path: n.path()}
	}
	return fh
}

func (n *badNode) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if errno := n.disk.check("meta", newName); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Rename(ctx, name, to, newName, flags)
}

// badFile reads and writes the page cache of no kernel: every call comes here.
type badFile struct {
	*fs.LoopbackFile
	disk *badDisk
	path string
}

func (f *badFile) PassthroughFd() (int, bool) { return 0, false }

func (f *badFile) Read(ctx context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if errno := f.disk.check("read", f.path); errno != 0 {
		return nil, errno
	}
	return f.LoopbackFile.Read(ctx, buf, off)
}

func (f *badFile) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if errno := f.disk.check("write", f.path); errno != 0 {
		return 0, errno
	}
	return f.LoopbackFile.Write(ctx, data, off)
}

func (f *badFile) Writev(ctx context.Context, data [][]byte, off int64) (uint32, syscall.Errno) {
	if errno := f.disk.check("write", f.path); errno != 0 {
		return 0, errno
	}
	return f.LoopbackFile.Writev(ctx, data, off)
}

func (f *badFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	if errno := f.disk.check("sync", f.path); errno != 0 {
		return errno
	}
	return f.LoopbackFile.Fsync(ctx, flags)
}

func (f *badFile) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	if errno := f.disk.check("write", f.path); errno != 0 {
		return errno
	}
	return f.LoopbackFile.Allocate(ctx, off, size, mode)
}

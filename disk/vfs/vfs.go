// Package vfs is the seam between the disk engine and the file system: exactly the operations that
// the engine needs, each saying what is durable after it. OS is the real thing; Mem is a file
// system in memory that can be asked for the state of the disk after a power loss and that fails
// operations on request. The package never retries and never hides an error.
//
// Every call carries or inherits a label (an Op) that says what the engine is doing, so that a
// test can break "the rename of node.json" and not all renames. OS ignores labels.
package vfs

import "errors"

// Op labels one kind of operation on one kind of file, as in "meta:fdatasync". File operations
// are "<label given at open>:<operation>"; directory operations take their label from the call.
type Op string

// ErrLocked says that another open file description holds the lock.
var ErrLocked = errors.New("locked by another process")

// ErrUnsupported says that the file system cannot do it (punch holes, clone files); it is
// errors.ErrUnsupported.
var ErrUnsupported = errors.ErrUnsupported

// Flags of OpenFile. Files are always opened for reading and writing.
const (
	Create    = 1 << iota // create the file if it is missing; the entry needs SyncDir to be durable
	Exclusive             // with Create: fs.ErrExist if it is there
	Truncate              // cut to zero bytes
)

// FS is a file system. Names are paths; errors match those of io/fs and syscall.
type FS interface {
	// OpenFile opens label's file for reading and writing.
	OpenFile(label, path string, flags int) (File, error)
	// Rename replaces newpath by oldpath atomically, in one directory; durable after SyncDir.
	Rename(label, oldpath, newpath string) error
	// Remove removes a file; durable after SyncDir.
	Remove(label, path string) error
	// MkdirAll makes a directory and its parents; durable after SyncDir of the parent.
	MkdirAll(label, path string) error
	// ReadDir lists the names in a directory, sorted.
	ReadDir(label, path string) ([]string, error)
	// SyncDir makes the entries of the directory durable.
	SyncDir(label, path string) error
	// Space gives the bytes of the file system that holds path, in total and free for use.
	Space(path string) (total, free int64, err error)
	// MountID identifies the mount that holds path; it is new after every mount.
	MountID(path string) (string, error)
}

// CachedReader is a File that can tell what is in memory.
type CachedReader interface {
	// ReadCached fills p from off if that needs no I/O, and reports whether it did.
	ReadCached(p []byte, off int64) bool
}

// File is an open regular file. All methods may be called concurrently. Nothing that WriteAt,
// Truncate or PunchHole did is durable before Fdatasync returned without an error.
type File interface {
	// ReadAt fills p from off; fewer bytes come with io.EOF.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes p at off, extending the file if needed.
	WriteAt(p []byte, off int64) (int, error)
	// Fdatasync makes contents and size durable. After an error the file's unsynced contents are
	// lost for good: a later success proves nothing.
	Fdatasync() error
	// Truncate sets the size; new bytes are a hole.
	Truncate(size int64) error
	// Size is the size in bytes.
	Size() (int64, error)
	// PunchHole makes the range a hole without changing the size, zeroing partial blocks.
	// ErrUnsupported if the file system cannot.
	PunchHole(off, length int64) error
	// SeekData is the first offset at or after off that may hold data; io.EOF if there is none.
	SeekData(off int64) (int64, error)
	// SeekHole is the first offset at or after off that is in a hole or the end of the file;
	// io.EOF if off is at or behind the end.
	SeekHole(off int64) (int64, error)
	// CloneFrom makes this file share all of src's contents. ErrUnsupported if the file system
	// cannot.
	CloneFrom(src File) error
	// Lock takes an exclusive lock without waiting; it ends with Close. ErrLocked.
	Lock() error
	// Close closes the file; it makes nothing durable.
	Close() error
}

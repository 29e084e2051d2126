package vfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// OS is the operating system's file system.
var OS FS = osFS{}

type osFS struct{}

type osFile struct {
	f   *os.File
	raw syscall.RawConn
}

func (osFS) OpenFile(_, path string, flags int) (File, error) {
	how := os.O_RDWR
	if flags&Create != 0 {
		how |= os.O_CREATE
	}
	if flags&Exclusive != 0 {
		how |= os.O_EXCL
	}
	if flags&Truncate != 0 {
		how |= os.O_TRUNC
	}
	f, err := os.OpenFile(path, how, 0o640)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &osFile{f: f, raw: raw}, nil
}

func (osFS) Rename(_, oldpath, newpath string) error { return os.Rename(oldpath, newpath) }
func (osFS) Remove(_, path string) error             { return os.Remove(path) }
func (osFS) MkdirAll(_, path string) error           { return os.MkdirAll(path, 0o750) }

func (osFS) ReadDir(_, path string) ([]string, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

func (osFS) SyncDir(_, path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) Space(path string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Blocks) * st.Frsize, int64(st.Bavail) * st.Frsize, nil
}

// statxMntIDUnique is STATX_MNT_ID_UNIQUE of linux/stat.h (Linux 6.8): an id that is not used
// again in the life of a kernel, unlike the older one.
const statxMntIDUnique = 0x4000

func (osFS) MountID(path string) (string, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_SYNC_AS_STAT, unix.STATX_MNT_ID|statxMntIDUnique, &st)
	if err != nil {
		return "", &os.PathError{Op: "statx", Path: path, Err: err}
	}
	kind := "m"
	if st.Mask&statxMntIDUnique != 0 {
		kind = "u"
	} else if st.Mask&unix.STATX_MNT_ID == 0 {
		return "", fmt.Errorf("statx %s: mount id: %w", path, ErrUnsupported)
	}
	return fmt.Sprintf("%s%d-%d:%d", kind, st.Mnt_id, st.Dev_major, st.Dev_minor), nil
}

func (o *osFile) ReadAt(p []byte, off int64) (int, error)  { return o.f.ReadAt(p, off) }
func (o *osFile) WriteAt(p []byte, off int64) (int, error) { return o.f.WriteAt(p, off) }
func (o *osFile) Truncate(size int64) error                { return o.f.Truncate(size) }
func (o *osFile) Close() error                             { return o.f.Close() }

// control runs f on the descriptor, which stays open meanwhile, repeating it when interrupted.
func (o *osFile) control(op string, f func(fd int) error) error {
	rc, err := o.f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = rc.Control(func(fd uintptr) {
		for {
			if inner = f(int(fd)); !errors.Is(inner, syscall.EINTR) {
				return
			}
		}
	})
	if err != nil { // the only reason: the file was closed
		return &os.PathError{Op: op, Path: o.f.Name(), Err: fmt.Errorf("%w (%w)", os.ErrClosed, err)}
	}
	if inner != nil {
		return &os.PathError{Op: op, Path: o.f.Name(), Err: inner}
	}
	return nil
}

func (o *osFile) Fdatasync() error { return o.control("fdatasync", unix.Fdatasync) }

func (o *osFile) Size() (int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (o *osFile) PunchHole(off, length int64) error {
	if length == 0 {
		return nil
	}
	err := o.control("punch hole", func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	})
	return unsupported(err)
}

// unsupported makes the errors by which file systems refuse an operation match ErrUnsupported.
func unsupported(err error) error {
	for _, no := range []error{syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.ENOTTY, syscall.EXDEV, syscall.EINVAL} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w (%w)", ErrUnsupported, err)
		}
	}
	return err
}

func (o *osFile) seek(op string, off int64, whence int) (int64, error) {
	var at int64
	err := o.control(op, func(fd int) (err error) {
		at, err = unix.Seek(fd, off, whence)
		return err
	})
	if errors.Is(err, syscall.ENXIO) {
		return 0, io.EOF
	}
	return at, err
}

func (o *osFile) SeekData(off int64) (int64, error) { return o.seek("seek data", off, unix.SEEK_DATA) }

func (o *osFile) SeekHole(off int64) (int64, error) { return o.seek("seek hole", off, unix.SEEK_HOLE) }

func (o *osFile) CloneFrom(src File) error {
	s, ok := src.(*osFile)
	if !ok {
		return fmt.Errorf("clone from another file system: %w", ErrUnsupported)
	}
	err := o.control("clone", func(fd int) error {
		return s.control("clone", func(from int) error { return unix.IoctlFileClone(fd, from) })
	})
	return unsupported(err)
}

func (o *osFile) Lock() error {
	err := o.control("lock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}

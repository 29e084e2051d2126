package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// ErrClosed says that the volume or its pool has been closed, or the volume removed.
var ErrClosed = errors.New("volume is closed")

// ErrInUse says that another process, or another Pool of this one, has the pool open.
var ErrInUse = errors.New("pool is in use by another process")

// failure is the permanent error of a volume; it matches lockstep.ErrVolumeFailed and its cause.
type failure struct{ err error }

// usable returns the error that every call on a failed or closed volume gets.
func (v *Volume) usable() error {
	if f := v.failed.Load(); f != nil {
		return f.err
	}
	return nil
}

// Failed is the permanent failure of the volume, or nil. It matches lockstep.ErrVolumeFailed.
func (v *Volume) Failed() error {
	if f := v.failed.Load(); f != nil && !errors.Is(f.err, ErrClosed) {
		return f.err
	}
	return nil
}

// fail makes err the permanent failure of the volume unless it has one, and returns the one it
// has. A marker file keeps the failure over a restart of the process: pages that a failed sync
// dropped read back as if they were fine.
func (v *Volume) fail(doing string, err error) error {
	if f := v.failed.Load(); f != nil {
		return f.err
	}
	if errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("%s of %s: %w", doing, v.id, ErrClosed)
	}
	f := &failure{err: fmt.Errorf("%s of %s: %w: %w", doing, v.id, lockstep.ErrVolumeFailed, err)}
	if !v.failed.CompareAndSwap(nil, f) {
		return v.failed.Load().err
	}
	v.log.Error("volume failed", "doing", doing, "err", err)
	if err := v.pool.writeFailed(v.id, f.err.Error()); err != nil {
		v.log.Error("the failure could not be recorded; a restart would forget it", "err", err)
	}
	return f.err
}

// noSpace reports whether err says that the file system is full.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// wrapSpace makes a full file system match lockstep.ErrNoSpace.
func wrapSpace(err error) error {
	if noSpace(err) {
		return fmt.Errorf("%w: %w", lockstep.ErrNoSpace, err)
	}
	return err
}

func (p *Pool) writeFailed(id lockstep.VolumeID, text string) error {
	return p.replace("failed", p.path(id, extFailed), []byte(text+"\n"))
}

// readFailed returns the recorded failure of a volume, "" if there is none.
func (p *Pool) readFailed(id lockstep.VolumeID) (string, error) {
	data, err := p.readAll("failed", p.path(id, extFailed), 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(data), err
}

// ignoreMissing turns the absence of a file into success.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func isUnsupported(err error) bool { return errors.Is(err, vfs.ErrUnsupported) }

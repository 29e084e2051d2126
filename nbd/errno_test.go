package nbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/lockstep-dr/lockstep"
)

func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err         error
		read, write Errno
	}{
		{nil, 0, 0},
		{lockstep.ErrDemoted, ESHUTDOWN, ESHUTDOWN},
		{lockstep.ErrNotPrimary, ESHUTDOWN, ESHUTDOWN},
		{lockstep.ErrNoSpace, ENOSPC, ENOSPC},
		{syscall.EDQUOT, ENOSPC, ENOSPC},
		{lockstep.ErrOutOfRange, EINVAL, ENOSPC},
		{lockstep.ErrReadOnly, EPERM, EPERM},
		{lockstep.ErrVolumeFailed, EIO, EIO},
		{lockstep.ErrCorrupt, EIO, EIO},
		{context.Canceled, ESHUTDOWN, ESHUTDOWN},
		{context.DeadlineExceeded, ESHUTDOWN, ESHUTDOWN},
		{syscall.EIO, EIO, EIO},
		{errors.New("surprise"), EIO, EIO},
	} {
		for _, err := range []error{c.err, wrap(c.err)} {
			if got := errnoOf(CmdRead, err); got != c.read {
				t.Errorf("read: %v becomes %v, want %v", err, got, c.read)
			}
			if got := errnoOf(CmdWrite, err); got != c.write {
				t.Errorf("write: %v becomes %v, want %v", err, got, c.write)
			}
		}
	}
	if got := errnoOf(CmdTrim, lockstep.ErrOutOfRange); got != EINVAL {
		t.Errorf("trim beyond the end becomes %v", got)
	}
	if got := errnoOf(CmdWriteZeroes, lockstep.ErrOutOfRange); got != ENOSPC {
		t.Errorf("zero beyond the end becomes %v", got)
	}
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("volume v: %w", err)
}

func TestErrnoMatchesSystem(t *testing.T) {
	for e, sys := range map[Errno]syscall.Errno{
		EPERM: syscall.EPERM, EIO: syscall.EIO, ENOMEM: syscall.ENOMEM, EINVAL: syscall.EINVAL, ENOSPC: syscall.ENOSPC,
		EOVERFLOW: syscall.EOVERFLOW, ENOTSUP: syscall.ENOTSUP, ESHUTDOWN: syscall.ESHUTDOWN,
	} {
		if !errors.Is(wrap(e), sys) || errors.Is(e, syscall.EAGAIN) {
			t.Errorf("%v does not match %v alone", e, sys)
		}
	}
}

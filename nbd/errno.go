package nbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/lockstep-dr/lockstep"
)

// errnoOf translates what a device said about a command of type cmd. This file is the only place
// where errors of the project become errors of the protocol.
func errnoOf(cmd uint16, err error) Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, lockstep.ErrDemoted), errors.Is(err, lockstep.ErrNotPrimary):
		return ESHUTDOWN
	case errors.Is(err, lockstep.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ENOSPC
	case errors.Is(err, lockstep.ErrOutOfRange):
		// NBD spec, "Error values": ENOSPC for writes beyond the end, EINVAL for reads and trims.
		if cmd == CmdWrite || cmd == CmdWriteZeroes {
			return ENOSPC
		}
		return EINVAL
	case errors.Is(err, lockstep.ErrReadOnly):
		return EPERM
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		// Only the end of the connection or of the server ends a request's context. The outcome is
		// unknown, and a client that still listens should leave, which is what ESHUTDOWN asks for.
		return ESHUTDOWN
	default:
		return EIO
	}
}

// optionErrorOf translates what Exports.Open said into the type of an option's error reply.
func optionErrorOf(err error) uint32 {
	switch {
	case errors.Is(err, lockstep.ErrNotFound):
		return RepErrUnknown
	case errors.Is(err, lockstep.ErrDemoted), errors.Is(err, errServerClosed):
		return RepErrShutdown
	default:
		return RepErrPolicy
	}
}

func (e Errno) String() string {
	switch e {
	case EPERM:
		return "EPERM"
	case EIO:
		return "EIO"
	case ENOMEM:
		return "ENOMEM"
	case EINVAL:
		return "EINVAL"
	case ENOSPC:
		return "ENOSPC"
	case EOVERFLOW:
		return "EOVERFLOW"
	case ENOTSUP:
		return "ENOTSUP"
	case ESHUTDOWN:
		return "ESHUTDOWN"
	default:
		return fmt.Sprintf("errno %d", uint32(e))
	}
}

// Error makes Errno an error for clients.
func (e Errno) Error() string { return e.String() }

// Is matches the number of the operating system that has the same meaning.
func (e Errno) Is(target error) bool {
	var sys syscall.Errno
	switch e {
	case EPERM:
		sys = syscall.EPERM
	case EIO:
		sys = syscall.EIO
	case ENOMEM:
		sys = syscall.ENOMEM
	case EINVAL:
		sys = syscall.EINVAL
	case ENOSPC:
		sys = syscall.ENOSPC
	case EOVERFLOW:
		sys = syscall.EOVERFLOW
	case ENOTSUP:
		sys = syscall.ENOTSUP
	case ESHUTDOWN:
		sys = syscall.ESHUTDOWN
	default:
		return false
	}
	return target == error(sys)
}

// Package block states the contract of a block device: what the NBD server serves, what the
// engine implements, and what decorators (throttle, fault, crash) wrap. blocktest/ is the
// conformance suite that every implementation passes.
package block

import (
	"context"

	"github.com/lockstep-dr/lockstep"
)

// ZeroFlags qualify a Zero request.
type ZeroFlags struct {
	NoHole bool // write zeroes instead of punching a hole (NBD_CMD_FLAG_NO_HOLE)
	FUA    bool // durable when the call returns
}

// ExtentState describes a range as NBD's base:allocation does.
type ExtentState struct {
	Len  int64 // bytes, > 0
	Hole bool  // not allocated
	Zero bool  // reads as zeroes
}

// Device is a fixed-size array of bytes with a volatile write cache. Calls may run concurrently;
// for overlapping concurrent writes the result is one of them, whole. All offsets and lengths are
// bytes. A request beyond Size is ErrOutOfRange and changes nothing. A call may block for long
// (held during a trip); it returns early only when ctx ends, and then the outcome is unknown.
type Device interface {
	// Size is the usable size in bytes; it only grows.
	Size() int64
	// ReadAt fills p from off. p is owned by the caller again when the call returns.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes p at off. With fua it is durable when the call returns, else after the next
	// Flush that begins after it returned.
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) error
	// Flush makes every write that returned before this call durable.
	Flush(ctx context.Context) error
	// Trim makes the range read as zeroes, giving the space back where possible.
	Trim(ctx context.Context, off, length int64, fua bool) error
	// Zero makes the range read as zeroes.
	Zero(ctx context.Context, off, length int64, flags ZeroFlags) error
	// Extents describes [off, off+length) in order, without gaps, merging equal neighbours.
	Extents(ctx context.Context, off, length int64) ([]ExtentState, error)
}

// CheckRange returns ErrOutOfRange unless [off, off+length) lies within size; it does not overflow.
func CheckRange(off, length, size int64) error {
	if off < 0 || length < 0 || off > size || length > size-off {
		return lockstep.ErrOutOfRange
	}
	return nil
}

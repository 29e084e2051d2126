package wire

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/lockstep-dr/lockstep"
)

// The other node's disk errors are not this node's: they must never match lockstep.ErrVolumeFailed
// or lockstep.ErrNoSpace, which fail the local volume.
var (
	ErrPeerIO      = errors.New("volume failed at the other node")
	ErrPeerNoSpace = errors.New("no space at the other node")
)

var statuses = []struct {
	status Status
	err    error // what a node has that answers so
	peer   error // what it is for the one that asked; nil: the same
}{
	{StatusStaleEpoch, lockstep.ErrStaleEpoch, nil},
	{StatusUnannounced, lockstep.ErrUnannouncedEpoch, nil},
	{StatusStaleSession, lockstep.ErrStaleSession, nil},
	{StatusNotSecondary, lockstep.ErrNotPrimary, nil},
	{StatusOutOfRange, lockstep.ErrOutOfRange, nil},
	{StatusNoSpace, lockstep.ErrNoSpace, ErrPeerNoSpace},
	{StatusIO, lockstep.ErrVolumeFailed, ErrPeerIO},
	{StatusUnknown, lockstep.ErrNotFound, nil},
}

// StatusOf translates an error into the status that an answer carries; what it does not know is
// StatusIO, which trips the group rather than guessing.
func StatusOf(err error) Status {
	if err == nil {
		return StatusOK
	}
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	return StatusIO
}

// Err is what the status of an answer means to the one that asked; nil for StatusOK.
func (s Status) Err() error {
	if s == StatusOK {
		return nil
	}
	for _, t := range statuses {
		if t.status == s {
			return cmp.Or(t.peer, t.err)
		}
	}
	return fmt.Errorf("status %d: %w", s, ErrPeerIO)
}

package wire

import (
	"errors"
	"fmt"

	"github.com/lockstep-dr/lockstep"
)

var statuses = []struct {
	status Status
	err    error
}{
	{StatusStaleEpoch, lockstep.ErrStaleEpoch},
	{StatusUnannounced, lockstep.ErrUnannouncedEpoch},
	{StatusStaleSession, lockstep.ErrStaleSession},
	{StatusNotSecondary, lockstep.ErrNotPrimary},
	{StatusOutOfRange, lockstep.ErrOutOfRange},
	{StatusNoSpace, lockstep.ErrNoSpace},
	{StatusIO, lockstep.ErrVolumeFailed},
	{StatusUnknown, lockstep.ErrNotFound},
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

// Err translates it back; nil for StatusOK.
func (s Status) Err() error {
	if s == StatusOK {
		return nil
	}
	for _, t := range statuses {
		if t.status == s {
			return t.err
		}
	}
	return fmt.Errorf("status %d: %w", s, lockstep.ErrVolumeFailed)
}

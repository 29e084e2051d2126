package lockstep

import "errors"

// Sentinels for decisions. They are matched with errors.Is and translated at three borders only:
// nbd/errno.go, wire/reject.go and api/fault.go.
var (
	// ErrStaleEpoch: the sender's epoch is older than the highest the receiver has persisted.
	ErrStaleEpoch = errors.New("stale epoch")
	// ErrUnannouncedEpoch: a frame carries an epoch that was never announced to the receiver.
	ErrUnannouncedEpoch = errors.New("epoch was not announced")
	// ErrStaleSession: a newer connection of the same node has been answered since.
	ErrStaleSession = errors.New("stale session")
	// ErrNotPrimary: this node may not serve the volume; another one may.
	ErrNotPrimary = errors.New("not the primary")
	// ErrDemoted: the node lost the primary role while the request waited; it was never applied.
	ErrDemoted = errors.New("demoted while the request was held")
	// ErrVolumeFailed: the local copy had an I/O error; the failure is permanent.
	ErrVolumeFailed = errors.New("volume failed")
	// ErrNoSpace: the pool has no room for the write; nothing acknowledged was lost.
	ErrNoSpace = errors.New("no space left in the pool")
	// ErrOutOfRange: the request goes beyond the announced size of the volume.
	ErrOutOfRange = errors.New("out of range")
	// ErrReadOnly: the device refuses writes.
	ErrReadOnly = errors.New("read-only")
	// ErrCorrupt: a checksum or a magic number is wrong; the bytes are never applied.
	ErrCorrupt = errors.New("corrupt data")
	// ErrNotFound and ErrExists speak of a volume, file or key.
	ErrNotFound = errors.New("not found")
	// ErrExists: a thing of that name is there already.
	ErrExists = errors.New("already exists")
	// ErrConflict: a compare-and-swap lost; read again and decide anew.
	ErrConflict = errors.New("conflict")
	// ErrStoreUnavailable: the store did not answer; the outcome of a write is unknown.
	ErrStoreUnavailable = errors.New("store unavailable")
)

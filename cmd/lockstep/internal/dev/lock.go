package dev

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fileLock is an advisory lock of the open file description: it goes with the process that holds
// it, however that ends, and is not inherited by what it starts.
type fileLock struct{ f *os.File }

var errLocked = errors.New("locked")

// lockFile takes the lock; if another holds it, it waits or, without wait, returns errLocked.
func lockFile(path string, wait bool) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock %s: %w", path, err)
	}
	command := unix.F_OFD_SETLK
	if wait {
		command = unix.F_OFD_SETLKW
	}
	for {
		err = unix.FcntlFlock(f.Fd(), command, &unix.Flock_t{Type: unix.F_WRLCK})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("take lock %s: %w", path, err)
	}
	return &fileLock{f}, nil
}

func (l *fileLock) release() { _ = l.f.Close() } // closing is what lets go of it

// lockHeld asks whether somebody holds the lock, without taking it.
func lockHeld(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open lock %s: %w", path, err)
	}
	defer f.Close()
	query := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &query); err != nil {
		return false, fmt.Errorf("ask for lock %s: %w", path, err)
	}
	return query.Type != unix.F_UNLCK, nil
}

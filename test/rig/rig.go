// Package rig is what tests with real processes share: processes that can be killed, frozen and
// started again and never outlive the test, an etcd member, an application whose writes depend on each
// other, and the calls that take a group from one documented status to the next. It injects no
// fault of the network or of a disk, and judges nothing but images.
package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Patience bounds waits that have no tighter bound of their own.
const Patience = 60 * time.Second

// GiB is the size of a rig's volumes, in bytes: the smallest there is.
const GiB = 1 << 30

// ErrNotYet is what a poll's check gives when there is nothing better to say.
var ErrNotYet = errors.New("not yet")

// Poll calls check until it gives nil, and fails the test with its last error otherwise.
func Poll(ctx context.Context, t testing.TB, within time.Duration, what string, check func() error) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(began) > within || ctx.Err() != nil {
			t.Fatalf("not within %s: %s: %v", within, what, err)
		}
		<-tick.C
	}
}

// TempDir makes a directory for this run below /tmp, where paths are short, as those of Unix sockets
// have to be. It first removes what runs that were killed have left: the name holds the process.
func TempDir(prefix string) (string, error) {
	old, err := filepath.Glob("/tmp/" + prefix + "[0-9]*-*")
	if err != nil {
		return "", err
	}
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		n, err := strconv.Atoi(pid)
		if err != nil || !errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			continue
		}
		if err := errors.Join(unmountBelow(dir), os.RemoveAll(dir)); err != nil {
			return "", fmt.Errorf("remove what an earlier run has left: %w", err)
		}
	}
	return os.MkdirTemp("/tmp", prefix+strconv.Itoa(os.Getpid())+"-")
}

// unmountBelow takes away what a run that was killed has mounted in its directory.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			errs = append(errs, unix.Unmount(f[1], unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

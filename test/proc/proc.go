// Package proc starts processes of tests so that none outlives its test, and looks at what they did.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
)

// Start starts a command from a thread that ends with this process only: a parent-death signal is
// sent when the thread that forked ends, not the process.
func Start(cmd *exec.Cmd) error { return OnLastingThread(cmd.Start) }

// OnLastingThread runs a function on that thread.
var OnLastingThread = func() func(func() error) error {
	type job struct {
		do  func() error
		err chan error
	}
	jobs := make(chan job)
	go func() {
		runtime.LockOSThread()
		for j := range jobs {
			j.err <- j.do()
		}
	}()
	return func(do func() error) error {
		j := job{do, make(chan error, 1)}
		jobs <- j
		return <-j.err
	}
}()

// Watchdog starts a shell that waits for the end of this process, which closes its standard input,
// and then ends every process whose command line names a path below root, and takes away the mounts
// there. It is for processes that others start; stop ends it at once.
func Watchdog(root string) (stop func() error, err error) {
	script := `cat >/dev/null
for p in /proc/[0-9]*; do
	if [ "${p#/proc/}" != $$ ] && { tr '\0' ' ' <"$p/cmdline" | grep -qF "$1/"; } 2>/dev/null; then kill -KILL "${p#/proc/}" 2>/dev/null; fi
done
grep -F " $1/" /proc/mounts | while read -r _ dir _; do umount -l "$dir"; done
:`
	cmd := exec.Command("sh", "-c", script, "watchdog", root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	return func() error {
		_ = in.Close()
		return cmd.Wait()
	}, nil
}

// Binary is the lockstep under test: LOCKSTEP_BIN, or one that is built into dir.
func Binary(dir string) (string, error) {
	if bin := os.Getenv("LOCKSTEP_BIN"); bin != "" {
		return bin, nil
	}
	bin := filepath.Join(dir, "lockstep")
	build := exec.Command("go", "build", "-tags", "invariants", "-o", bin, "../../cmd/lockstep")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lockstep: %w\n%s", err, out)
	}
	return bin, nil
}

// Stopped gives an error while a thread of a process has not been stopped, which SIGSTOP does to each
// when it is scheduled.
func Stopped(pid int) error {
	states, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(states) == 0 {
		return fmt.Errorf("process %d has no threads: %w", pid, err)
	}
	for _, path := range states {
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, after, _ := bytes.Cut(raw, []byte(") ")) // the state follows the name in parentheses
		if !bytes.HasPrefix(after, []byte("T")) {
			return errors.New("a thread goes on")
		}
	}
	return nil
}

var badLog = regexp.MustCompile(`(?s)(WARNING: DATA RACE|panic: |fatal error: ).{0,999}.{0,999}.{0,999}`)

// CheckLog gives an error with what a process said that panicked or raced, whatever else went well. A
// process that never ran has no log.
func CheckLog(path string) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if bad := badLog.Find(raw); bad != nil {
		err = fmt.Errorf("%s:\n%s", path, bad)
	}
	return err
}

// Tail is the end of a file, for a failed test's output.
func Tail(path string, size int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > size {
		_, _ = f.Seek(-size, io.SeekEnd) // without it there is more to read, that is all
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

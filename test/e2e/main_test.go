package e2e

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

var (
	roundsFlag = flag.Int("rounds", 20, "rounds of losing a zone under load")
	keepFlag   = flag.Bool("keep", false, "keep the directories of the deployments")
)

// lockstepBin is the lockstep under test; root holds the deployments and is unique to this run.
var lockstepBin, root string

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	// Short, because a Unix socket's path has 107 bytes at most.
	if root, err = os.MkdirTemp("/tmp", "ls-e2e-"); err != nil {
		return 1, err
	}
	if lockstepBin = os.Getenv("LOCKSTEP_BIN"); lockstepBin == "" {
		lockstepBin = filepath.Join(root, "lockstep")
		build := exec.Command("go", "build", "-o", lockstepBin, "../../cmd/lockstep")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build lockstep: %w\n%s", err, out)
		}
	}
	stop, err := watchdog()
	if err != nil {
		return 1, err
	}
	done, probed := make(chan struct{}), make(chan error, 1)
	go func() { probed <- stalls.run(root, done) }()
	code = m.Run()
	close(done)
	if err := <-probed; err != nil {
		return 1, fmt.Errorf("probe the disk: %w", err)
	}
	if *keepFlag {
		fmt.Fprintln(os.Stderr, "kept:", root)
		return code, nil
	}
	return code, errors.Join(stop(), os.RemoveAll(root))
}

// watchdog is a shell that waits for the end of this process, which closes its standard input,
// and then ends every process whose command line names our directory, and the mounts in it.
func watchdog() (stop func() error, err error) {
	script := `cat >/dev/null
for p in /proc/[0-9]*; do
	if [ "${p#/proc/}" != $$ ] && tr '\0' ' ' <"$p/cmdline" 2>/dev/null | grep -qF "$1/"; then kill -KILL "${p#/proc/}" 2>/dev/null; fi
done
grep -F " $1/" /proc/mounts | while read -r _ dir _; do umount -l "$dir"; done
:`
	cmd := exec.Command("sh", "-c", script, "e2e-watchdog", root)
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

// starter starts commands from one thread that never ends: a parent-death signal is sent when the
// thread that forked ends, not the process.
var starter = func() func(*exec.Cmd) error {
	type job struct {
		cmd *exec.Cmd
		err chan error
	}
	jobs := make(chan job)
	go func() {
		runtime.LockOSThread()
		for j := range jobs {
			j.err <- j.cmd.Start()
		}
	}()
	return func(cmd *exec.Cmd) error {
		j := job{cmd, make(chan error, 1)}
		jobs <- j
		return <-j.err
	}
}()

// tail is the end of a file, for a failed test's output.
func tail(path string, size int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > size {
		_, _ = f.Seek(-size, io.SeekEnd)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

package rig

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Process is one that a test started, may kill, freeze and start again. It does not outlive the
// test, nor the test's process: the kernel ends it with the thread that started it.
type Process struct {
	Name string
	Log  string // path; all lives append to it

	t      testing.TB
	args   []string
	on     func(func() error) error
	cmd    *exec.Cmd
	exited chan struct{}
	frozen bool
}

// NewProcess describes a process; Start starts it. on runs a function on the thread that is to be
// its parent, which must not end before the test does; nil: any such thread.
func NewProcess(t testing.TB, name, log string, on func(func() error) error, args ...string) *Process {
	if on == nil {
		on = onLastingThread
	}
	p := &Process{Name: name, Log: log, t: t, args: args, on: on}
	t.Cleanup(p.end)
	return p
}

// SetArgs replaces the command line from the next start on.
func (p *Process) SetArgs(args ...string) { p.args = args }

// Start starts it and returns without waiting for what it does.
func (p *Process) Start() {
	p.t.Helper()
	out, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close() // the process has its own descriptor
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	// SIGKILL: a frozen process takes no other.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.on(cmd.Start); err != nil {
		p.t.Fatalf("start %s: %v", p.Name, err)
	}
	exited := make(chan struct{})
	p.cmd, p.exited, p.frozen = cmd, exited, false
	go func() { // ends with the process, which end makes sure of
		_ = cmd.Wait()
		close(exited)
	}()
}

// Running reports whether it was started and has not ended; a frozen one runs.
func (p *Process) Running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Frozen reports whether Freeze stopped it.
func (p *Process) Frozen() bool { return p.frozen && p.Running() }

// Kill is SIGKILL; it returns when the process is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.exited
}

// Stop is SIGTERM; the process has 30 s to end well.
func (p *Process) Stop() {
	p.t.Helper()
	p.Thaw()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		p.t.Errorf("%s did not stop within 30 s of SIGTERM:\n%s", p.Name, Tail(p.Log, 4000))
		p.Kill()
	}
}

// Freeze is SIGSTOP, until Thaw. It returns when every thread has stopped, which each does when it
// is scheduled.
func (p *Process) Freeze() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		p.t.Fatalf("freeze %s: %v", p.Name, err)
	}
	p.frozen = true
	Poll(p.t.Context(), p.t, Patience, p.Name+" has stopped", func() error { return stopped(p.cmd.Process.Pid) })
}

// Thaw lets a frozen process go on.
func (p *Process) Thaw() {
	if p.Running() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // it may have ended meanwhile
	}
	p.frozen = false
}

// stopped gives an error while a thread of a process has not been stopped.
func stopped(pid int) error {
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
			return ErrNotYet
		}
	}
	return nil
}

var badLog = regexp.MustCompile(`(?s)(WARNING: DATA RACE|panic: |fatal error: ).{0,999}.{0,999}.{0,999}`)

var requestLine = regexp.MustCompile(`(?m)^.* msg=request .*\n`)

// end is the cleanup. A process that panicked or raced fails the test, whatever else went well.
func (p *Process) end() {
	if p.Running() {
		p.Kill()
	}
	if raw, err := os.ReadFile(p.Log); err == nil {
		if bad := badLog.Find(raw); bad != nil {
			p.t.Errorf("log of %s:\n%s", p.Name, bad)
		}
	}
	if p.t.Failed() {
		// Each call of the API is a line, and there are thousands.
		text := requestLine.ReplaceAllString(Tail(p.Log, 400_000), "")
		p.t.Logf("---- end of the log of %s\n%s", p.Name, text[max(0, len(text)-5000):])
	}
}

// onLastingThread runs functions on a thread that ends with this process only: a parent-death signal
// is sent when the thread that forked ends.
var onLastingThread = func() func(func() error) error {
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

package rig

import (
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/test/proc"
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
		on = proc.OnLastingThread
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
		p.t.Errorf("%s did not stop within 30 s of SIGTERM:\n%s", p.Name, proc.Tail(p.Log, 4000))
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
	Poll(p.t.Context(), p.t, Patience, p.Name+" has stopped", func() error { return proc.Stopped(p.cmd.Process.Pid) })
}

// Thaw lets a frozen process go on.
func (p *Process) Thaw() {
	if p.Running() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // it may have ended meanwhile
	}
	p.frozen = false
}

var requestLine = regexp.MustCompile(`(?m)^.* msg=request .*\n`)

// end is the cleanup. A process that panicked or raced fails the test, whatever else went well.
func (p *Process) end() {
	if p.Running() {
		p.Kill()
	}
	if err := proc.CheckLog(p.Log); err != nil {
		p.t.Error(err)
	}
	if p.t.Failed() {
		// Each call of the API is a line, and there are thousands.
		text := requestLine.ReplaceAllString(proc.Tail(p.Log, 400_000), "")
		p.t.Logf("---- end of the log of %s\n%s", p.Name, text[max(0, len(text)-5000):])
	}
}

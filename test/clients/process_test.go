package clients

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/test/proc"
)

// process is one that a test started, may kill and start again; it does not outlive the test.
type process struct {
	t      *testing.T
	log    string
	args   []string
	env    []string // besides the environment
	cmd    *exec.Cmd
	exited chan struct{}
	began  time.Time // of the last start
}

// newProcess describes a process; start starts it. Its output is appended to log.
func newProcess(t *testing.T, log string, args ...string) *process {
	p := &process{t: t, log: log, args: args}
	t.Cleanup(p.end)
	return p
}

func (p *process) start() {
	p.t.Helper()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close() // the process has its own descriptor
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), p.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := proc.Start(cmd); err != nil {
		p.t.Fatal(err)
	}
	exited := make(chan struct{})
	p.cmd, p.exited, p.began = cmd, exited, time.Now()
	go func() { // ends with the process, which end makes sure of
		_ = cmd.Wait()
		close(exited)
	}()
}

// running reports whether it was started and has not ended.
func (p *process) running() bool {
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

// kill is SIGKILL; it returns when the process is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.exited
}

// freeze is SIGSTOP, until thaw; the end of the test thaws, too. It waits until every thread has
// stopped, which each does when it is scheduled.
func (p *process) freeze() {
	p.t.Helper()
	ok(p.t, p.cmd.Process.Signal(syscall.SIGSTOP))
	eventually(p.t, patience, "the process has stopped", func() error { return proc.Stopped(p.cmd.Process.Pid) })
}

func (p *process) thaw() {
	p.t.Helper()
	ok(p.t, p.cmd.Process.Signal(syscall.SIGCONT))
}

// stopGrace is how long a process may take to stop after SIGTERM.
const stopGrace = 30 * time.Second

// stop is SIGTERM; a process that does not obey, or that fails on its way out, fails the test.
func (p *process) stop() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // a test that failed may have left it stopped
	select {
	case <-p.exited:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			p.t.Errorf("%s ended with code %d at SIGTERM", p.args, code)
		}
	case <-time.After(stopGrace):
		p.t.Errorf("%s did not stop within %s of SIGTERM", p.args, stopGrace)
		p.kill()
	}
}

// end stops it at the end of the test and looks through its log.
func (p *process) end() {
	if p.running() {
		p.stop()
	}
	if err := proc.CheckLog(p.log); err != nil {
		p.t.Error(err)
	}
	if p.t.Failed() {
		p.t.Logf("---- end of %s\n%s", p.log, proc.Tail(p.log, 4000))
	}
}

package dev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running member, held by a handle that cannot come to mean another process.
type process struct {
	pid int
	fd  int // pidfd
}

func (p *process) close() { _ = unix.Close(p.fd) } // only our handle; nothing can be lost

// args is the command line of a member after the binary's name. It holds the absolute path of the
// member's configuration, and so identifies the process.
func (l Layout) args(m Member) []string {
	if m.IsNode() {
		return []string{"node", "--config", l.Config(m)}
	}
	return []string{"controller", "--config", l.Config(m)}
}

// find returns the running process of m, or nil if it does not run. The pid file alone proves
// nothing: the number may belong to somebody else by now. So the handle is taken first, and then
// the command line behind it must be the member's own.
func (l Layout) find(m Member) (*process, error) {
	data, err := os.ReadFile(l.PIDFile(m))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the pid of %s: %w", m, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return nil, nil // torn by a crash while it was written: nothing can be signalled by it
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d of %s: %w", pid, m, err)
	}
	p := &process{pid, fd}
	if words := p.words(); len(words) == 0 || !slices.Equal(words[1:], l.args(m)) {
		p.close()
		return nil, nil
	}
	return p, nil
}

// words is the command line of the process; nil if it has ended or has none. The kernel lets a parent go on a moment
// before it has written the line of its child, so that an empty one is looked at again.
func (p *process) words() []string {
	for deadline := time.Now().Add(time.Second); ; {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
		if p.ended(0) || err != nil { // a zombie has an empty command line
			return nil
		}
		if len(cmdline) > 0 {
			return strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
		}
		if p.ended(time.Millisecond) || time.Now().After(deadline) { // a thread of the kernel never has one
			return nil
		}
	}
}

// ended waits up to d for the end of the process.
func (p *process) ended(d time.Duration) bool {
	deadline := time.Now().Add(d)
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(time.Until(deadline), 0)/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0
	}
}

// wait waits for the end of the process, or of ctx.
func (p *process) wait(ctx context.Context) error {
	for !p.ended(100 * time.Millisecond) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (p *process) signal(s syscall.Signal) error {
	err := unix.PidfdSendSignal(p.fd, s, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has just ended
	}
	return err
}

// spawn starts a member in a process group and a session of its own, so that neither a key at the
// terminal nor the end of the caller reaches it. The caller must wait for the command or leave it
// to init.
func (l Layout) spawn(m Member) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this binary: %w", err)
	}
	log, err := os.OpenFile(l.Log(m), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", m, err)
	}
	defer log.Close() // the child has its own
	cmd := exec.Command(self, l.args(m)...)
	cmd.Dir = l.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = environment()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", m, err)
	}
	if err := writeFile(l.PIDFile(m), fmt.Appendf(nil, "%d\n", cmd.Process.Pid)); err != nil {
		_ = cmd.Process.Kill() // without a pid file nobody could stop it later
		_ = cmd.Wait()
		return nil, err
	}
	return cmd, nil
}

// environment is ours without LOCKSTEP_*: those would go before the members' own files.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "LOCKSTEP_") })
}

// End stops members: with SIGTERM, which is answered by a clean stop, or with SIGKILL, as a host
// that loses its power would stop. It returns when all of them have ended, and tells those that
// ran. grace bounds a clean stop; a process that takes longer is killed, which is an error.
func (l Layout) End(ctx context.Context, members []Member, sig syscall.Signal, grace time.Duration) (ran []Member, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, grace, fmt.Errorf("did not end within %s", grace))
	defer cancel()
	type running struct {
		m Member
		p *process
	}
	var all []running
	var errs []error
	for _, m := range members {
		p, err := l.find(m)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if p == nil {
			continue
		}
		defer p.close()
		if err := p.signal(sig); err != nil {
			errs = append(errs, fmt.Errorf("signal %s: %w", m, err))
			continue
		}
		all = append(all, running{m, p})
	}
	for _, r := range all {
		if err := r.p.wait(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s (pid %d): %w; killed", r.m, r.p.pid, err))
			if err := r.p.signal(syscall.SIGKILL); err != nil {
				errs = append(errs, fmt.Errorf("kill %s: %w", r.m, err))
				continue
			}
			if !r.p.ended(10 * time.Second) {
				errs = append(errs, fmt.Errorf("%s (pid %d) cannot be killed", r.m, r.p.pid))
				continue
			}
		}
		ran = append(ran, r.m)
		if err := os.Remove(l.PIDFile(r.m)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the pid file of %s: %w", r.m, err))
		}
	}
	return ran, errors.Join(errs...)
}

// forget removes the pid files of members that do not run. The caller holds change.lock.
func (l Layout) forget(members []Member) error {
	var errs []error
	for _, m := range members {
		p, err := l.find(m)
		switch {
		case err != nil:
			errs = append(errs, err)
		case p != nil:
			p.close()
		default:
			if err := os.Remove(l.PIDFile(m)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove the pid file of %s: %w", m, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Launch starts those of members that do not run, detached: they outlive the caller, and the
// supervisor of the directory stops them at its end. It is refused without a supervisor.
func (l Layout) Launch(members []Member) (started []Member, err error) {
	change, err := lockFile(l.path("change.lock"), true)
	if err != nil {
		return nil, err
	}
	defer change.release()
	if running, err := lockHeld(l.path("dev.lock")); err != nil {
		return nil, err
	} else if !running {
		return nil, fmt.Errorf("%w: no `lockstep dev` runs on %s", ErrRefused, l.Dir)
	}
	for _, m := range members {
		p, err := l.find(m)
		if err != nil {
			return started, err
		}
		if p != nil {
			p.close()
			continue
		}
		cmd, err := l.spawn(m)
		if err != nil {
			return started, err
		}
		go func() { _ = cmd.Wait() }() // if it ends before we do: a zombie would stay otherwise
		started = append(started, m)
	}
	return started, nil
}

// PID is the process id of a running member, 0 if it does not run.
func (l Layout) PID(m Member) (int, error) {
	p, err := l.find(m)
	if err != nil || p == nil {
		return 0, err
	}
	p.close()
	return p.pid, nil
}

// Signal sends a signal to a member; ran is false if it does not run.
func (l Layout) Signal(m Member, sig syscall.Signal) (ran bool, err error) {
	p, err := l.find(m)
	if err != nil || p == nil {
		return false, err
	}
	defer p.close()
	if err := p.signal(sig); err != nil {
		return true, fmt.Errorf("signal %s: %w", m, err)
	}
	return true, nil
}

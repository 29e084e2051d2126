package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Bounds of a start and a stop.
const (
	readyTimeout = 90 * time.Second
	stopGrace    = 20 * time.Second
	pollEvery    = 100 * time.Millisecond
)

// Probe asks the deployment how it is; the command line provides it with its API client.
type Probe interface {
	// Login logs in as the administrator and tells the credentials with the project's id.
	Login(ctx context.Context, c Credentials) (Credentials, error)
	// Alive tells which nodes are alive, by id.
	Alive(ctx context.Context, cloudsFile string) (map[string]bool, error)
}

// Supervisor is one run of `lockstep dev`.
type Supervisor struct {
	layout Layout
	probe  Probe
	out    io.Writer

	mu   sync.Mutex // guards out and over
	over bool       // the members are being stopped: their ends are expected

	change *fileLock // taken by stop

	waits sync.WaitGroup // one for each child, until it was waited for
	died  chan Member    // capacity: one for each child ever started here
}

// Run starts the deployment, prints a line that starts with "ready", and stops it when ctx ends.
// A member that dies in between is reported and left alone: it may have been killed on purpose.
func Run(ctx context.Context, l Layout, o Options, probe Probe, out io.Writer) (err error) {
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return fmt.Errorf("make the directory: %w", err)
	}
	lock, err := lockFile(l.path("dev.lock"), false)
	if errors.Is(err, errLocked) {
		return fmt.Errorf("%w: another `lockstep dev` runs on %s", ErrRefused, l.Dir)
	}
	if err != nil {
		return err
	}
	s := &Supervisor{layout: l, probe: probe, out: out}
	defer func() {
		lock.release()
		if s.change != nil {
			s.change.release() // only now: who waits for it must find that no supervisor runs
		}
	}()
	spec, err := l.settle(o)
	if err != nil {
		return err
	}
	members := append([]Member{Controller}, spec.Members("")...)
	s.died = make(chan Member, len(members))
	leftover, err := l.End(ctx, members, syscall.SIGTERM, stopGrace)
	if err != nil {
		return fmt.Errorf("stop what an earlier run left: %w", err)
	}
	if len(leftover) > 0 {
		s.printf("stopped what an earlier run left: %v", leftover)
	}
	if err := l.prepare(spec); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop(context.WithoutCancel(ctx), spec)) }()
	if err := s.start(ctx, spec); err != nil {
		return err
	}
	<-ctx.Done()
	s.printf("stopping")
	return nil
}

func (s *Supervisor) printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

// start brings the controller up, then the nodes, and waits for all of them.
func (s *Supervisor) start(ctx context.Context, spec Spec) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready after %s; see the logs in %s", readyTimeout, s.layout.Dir))
	defer cancel()
	began := time.Now()
	if err := s.child(Controller); err != nil {
		return err
	}
	password, err := s.layout.password()
	if err != nil {
		return err
	}
	credentials := Credentials{
		AuthURL: "http://" + spec.Listen + "/identity/v3", Username: "admin", Password: password,
		ProjectName: "admin", Domain: "Default",
	}
	err = s.poll(ctx, "the API", func(ctx context.Context) error {
		var err error
		credentials, err = s.probe.Login(ctx, credentials)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.layout.writeCredentials(spec, credentials); err != nil {
		return err
	}
	if err := s.layout.prepareNodes(spec); err != nil {
		return err
	}
	nodes := spec.Members("")
	for _, m := range nodes {
		if err := s.child(m); err != nil {
			return err
		}
	}
	err = s.poll(ctx, "the nodes", func(ctx context.Context) error {
		alive, err := s.probe.Alive(ctx, s.layout.CloudsFile())
		if err != nil {
			return err
		}
		for _, m := range nodes {
			if !alive[m.NodeID()] {
				return fmt.Errorf("%s is not alive yet", m)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.printf("ready api=http://%s zones=%v nodes=%d dir=%s after %s; source %s",
		spec.Listen, spec.AZs, len(nodes), s.layout.Dir, time.Since(began).Round(time.Millisecond), s.layout.OpenRC())
	return nil
}

// poll asks until try succeeds, a member dies, or ctx ends; then the last error says why.
func (s *Supervisor) poll(ctx context.Context, what string, try func(context.Context) error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		tried := make(chan struct{})
		var err error
		go func() {
			defer close(tried)
			err = try(attempt)
		}()
		select {
		case <-tried:
			cancel()
		case m := <-s.died:
			cancel()
			<-tried
			return fmt.Errorf("wait for %s: %s ended: %s; see %s", what, m, lastLine(s.layout.Log(m)), s.layout.Log(m))
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (%w)", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// lastLine is the last line of a log, where a process says why it ends.
func lastLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "its log cannot be read"
	}
	text := strings.TrimSpace(string(data))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// child starts a member and a goroutine that reports its end.
func (s *Supervisor) child(m Member) error {
	cmd, err := s.layout.spawn(m)
	if err != nil {
		return err
	}
	s.printf("started %s, pid %d", m, cmd.Process.Pid)
	s.waits.Go(func() { s.reap(m, cmd) })
	return nil
}

func (s *Supervisor) reap(m Member, cmd *exec.Cmd) {
	_ = cmd.Wait() // how it ended stands in ProcessState
	s.died <- m
	s.mu.Lock()
	expected := s.over
	s.mu.Unlock()
	if expected {
		return
	}
	target := "controller"
	if m.IsNode() {
		target = fmt.Sprintf("%s --node %d", m.AZ, m.N)
	}
	s.printf("ended %s, pid %d: %s; it is not restarted: lockstep dev start %s --dir %s",
		m, cmd.Process.Pid, cmd.ProcessState, target, s.layout.Dir)
}

// stop ends every member, those that were started by hand in between included: the nodes first,
// so that they can still say goodbye to the store.
func (s *Supervisor) stop(ctx context.Context, spec Spec) error {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	change, err := lockFile(s.layout.path("change.lock"), true)
	if err != nil {
		return err
	}
	s.change = change
	_, nodesErr := s.layout.End(ctx, spec.Members(""), syscall.SIGTERM, stopGrace)
	_, controllerErr := s.layout.End(ctx, []Member{Controller}, syscall.SIGTERM, stopGrace)
	s.waits.Wait()
	// Members that had ended by themselves left their pid files; under the lock none is started now.
	forgetErr := s.layout.forget(append([]Member{Controller}, spec.Members("")...))
	if err := errors.Join(nodesErr, controllerErr, forgetErr); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	s.printf("stopped")
	return nil
}

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// storeEnv makes this program the store of a deployment, in that directory, so that what it takes can be
// told from what the controller takes.
const storeEnv = "LOCKSTEP_BENCH_STORE"

// serveStore is the program in that role; it ends with a signal.
func serveStore(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	member, err := etcdstore.StartEmbedded(etcdstore.EmbedConfig{Dir: dir, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	fmt.Println(member.Endpoints()[0])
	select {
	case err = <-member.Err():
	case <-ctx.Done():
	}
	return errors.Join(err, member.Close())
}

// storeProcess is a running store.
type storeProcess struct {
	dir   string
	url   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// startStore starts one on a directory, which may hold data.
func startStore(ctx context.Context, dir string) (*storeProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the child has its own
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), storeEnv+"="+dir)
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s := &storeProcess{dir: dir, cmd: cmd, ended: make(chan struct{})}
	if err := runBound(cmd, s.ended, out, func(line string) bool { s.url = line; return true }); err != nil {
		return nil, fmt.Errorf("start the store: %w; see %s.log", err, dir)
	}
	return s, ctx.Err()
}

// runBound starts a process that ends with this one, and returns when a line of its output satisfies ready.
func runBound(cmd *exec.Cmd, ended chan struct{}, out io.Reader, ready func(line string) bool) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	said := make(chan error, 1)
	go func() {
		// The signal at the parent's death is sent when the thread that forked ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			said <- err
			close(ended)
			return
		}
		defer close(ended)
		told := false
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if !told && ready(strings.TrimSpace(lines.Text())) {
				told = true
				said <- nil
			}
		}
		if err := cmd.Wait(); !told {
			said <- errors.Join(errors.New("it ended before it was ready"), err)
		}
	}()
	return <-said
}

func (s *storeProcess) pid() int { return s.cmd.Process.Pid }

// stop ends the process and waits for it.
func (s *storeProcess) stop() error { return endBound(s.cmd, s.ended) }

func endBound(cmd *exec.Cmd, ended <-chan struct{}) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-time.After(time.Minute):
		return errors.Join(fmt.Errorf("%s did not stop within a minute", cmd.Path), cmd.Process.Kill())
	}
}

// remove ends it and deletes what it stored.
func (s *storeProcess) remove() error { return errors.Join(s.stop(), os.RemoveAll(s.dir)) }

package dev

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Child is a `lockstep dev` that a command of this binary runs as its child, for itself alone. It
// ends with the command, however that ends.
type Child struct {
	Layout Layout
	cmd    *exec.Cmd
	ended  chan struct{}
	err    error // after ended
}

// StartChild starts `lockstep dev` on dir and waits for its ready line. say gets every line of it.
func StartChild(ctx context.Context, dir string, o Options, say func(line string)) (*Child, error) {
	self := o.Binary
	if self == "" {
		var err error
		if self, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find this binary: %w", err)
		}
	}
	layout, err := Open(dir)
	if err != nil {
		return nil, err
	}
	args := []string{"dev", "--dir", layout.Dir, "--listen", "127.0.0.1:0"}
	for _, az := range o.AZs {
		args = append(args, "--az", az)
	}
	if o.NodesPerAZ > 0 {
		args = append(args, "--nodes-per-az", strconv.Itoa(o.NodesPerAZ))
	}
	for _, url := range o.Etcd {
		args = append(args, "--etcd-endpoint", url)
	}
	c := &Child{Layout: layout, cmd: exec.Command(self, args...), ended: make(chan struct{})}
	// A process group of its own: a key at the terminal reaches the command alone, which then stops
	// the deployment in order.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	log, err := os.Create(filepath.Join(layout.Dir, "dev.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	c.cmd.Stderr = log
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started, ready := make(chan error, 1), make(chan struct{})
	go c.run(started, out, ready, say)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the deployment: %w", err)
	}
	select {
	case <-ready:
		return c, nil
	case <-c.ended:
		return nil, fmt.Errorf("the deployment ended before it was ready: %w; see %s", c.err, layout.Dir)
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("wait for the deployment: %w", context.Cause(ctx)), c.Stop())
	}
}

// run starts the process, passes its output on and waits for it; it ends with it.
func (c *Child) run(started chan<- error, out io.Reader, ready chan<- struct{}, say func(string)) {
	// The signal at the parent's death is sent when the thread that forked ends, so this one stays.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := c.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	defer close(c.ended)
	lines := bufio.NewScanner(out)
	told := false
	for lines.Scan() {
		say(lines.Text())
		if !told && strings.HasPrefix(lines.Text(), "ready") {
			told = true
			close(ready)
		}
	}
	c.err = c.cmd.Wait()
	if c.err == nil {
		c.err = errors.New("exit status 0")
	}
}

// Stop ends the deployment and waits for it.
func (c *Child) Stop() error {
	select {
	case <-c.ended:
		return nil
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the deployment: %w", err)
	}
	select {
	case <-c.ended:
	case <-time.After(time.Minute):
		return errors.Join(errors.New("the deployment did not stop within a minute"), c.cmd.Process.Kill())
	}
	if c.cmd.ProcessState.ExitCode() != 0 {
		return fmt.Errorf("the deployment's end: %w", c.err)
	}
	return nil
}

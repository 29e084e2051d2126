package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// deployment is a `lockstep dev` of our own, as a child process.
type deployment struct {
	layout dev.Layout
	cmd    *exec.Cmd
	ended  chan struct{}
	err    error // after ended
}

// deploy starts `lockstep dev` on dir with two zones and waits for its ready line.
func deploy(ctx context.Context, dir string, zones [2]string, say func(string)) (*deployment, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this binary: %w", err)
	}
	layout, err := dev.Open(dir)
	if err != nil {
		return nil, err
	}
	d := &deployment{layout: layout, ended: make(chan struct{})}
	d.cmd = exec.Command(self, "dev", "--dir", layout.Dir, "--listen", "127.0.0.1:0", "--az", zones[0], "--az", zones[1])
	// A process group of its own: a key at the terminal reaches the demonstration alone, which
	// then stops the deployment in order.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log, err := os.Create(filepath.Join(layout.Dir, "dev.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	d.cmd.Stderr = log
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the deployment: %w", err)
	}
	ready := make(chan struct{})
	go d.read(out, ready, say)
	select {
	case <-ready:
		return d, nil
	case <-d.ended:
		return nil, fmt.Errorf("the deployment ended before it was ready: %w; see %s", d.err, layout.Dir)
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("wait for the deployment: %w", context.Cause(ctx)), d.stop())
	}
}

// read passes the output on and waits for the process; it ends with it.
func (d *deployment) read(out io.Reader, ready chan<- struct{}, say func(string)) {
	defer close(d.ended)
	lines := bufio.NewScanner(out)
	told := false
	for lines.Scan() {
		say(lines.Text())
		if !told && strings.HasPrefix(lines.Text(), "ready") {
			told = true
			close(ready)
		}
	}
	d.err = d.cmd.Wait()
	if d.err == nil {
		d.err = errors.New("exit status 0")
	}
}

// stop ends the deployment and waits for it.
func (d *deployment) stop() error {
	select {
	case <-d.ended:
		return nil
	default:
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the deployment: %w", err)
	}
	select {
	case <-d.ended:
	case <-time.After(time.Minute):
		return errors.Join(errors.New("the deployment did not stop within a minute"), d.cmd.Process.Kill())
	}
	if d.cmd.ProcessState.ExitCode() != 0 {
		return fmt.Errorf("the deployment's end: %w", d.err)
	}
	return nil
}

// waitFor asks every 20 ms until see says yes, fails, or ctx ends.
func waitFor(ctx context.Context, what string, see func(context.Context) (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := see(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// disks are the two NBD connections of an application.
type disks [disksCount]*nbdclient.Client

func (d disks) devices() (out [disksCount]block.Device) {
	for i, c := range d {
		out[i] = c
	}
	return out
}

func (d disks) close() error {
	var errs []error
	for _, c := range d {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

func (d disks) flush(ctx context.Context) error {
	for i, c := range d {
		if err := c.Flush(ctx); err != nil {
			return fmt.Errorf("flush disk %d: %w", i, err)
		}
	}
	return nil
}

// openSoon is open for disks that a new primary is about to serve: it tries until they are, which
// is when the old primary's lease has run out at the latest.
func openSoon(ctx context.Context, c *client.Client, volumes [disksCount]string) (d disks, err error) {
	err = waitFor(ctx, "the disks are served", func(ctx context.Context) (bool, error) {
		var refusal *nbdclient.OptionError
		var openErr error
		d, openErr = open(ctx, c, volumes)
		if errors.As(openErr, &refusal) {
			return false, nil
		}
		return openErr == nil, openErr
	})
	return d, err
}

// open connects to both volumes where the API says they are.
func open(ctx context.Context, c *client.Client, volumes [disksCount]string) (d disks, err error) {
	for i, id := range volumes {
		uri, err := c.ConnectionURI(ctx, id)
		if err != nil {
			return disks{}, errors.Join(fmt.Errorf("ask where volume %s is: %w", id, err), d.close())
		}
		if d[i], err = nbdclient.Dial(ctx, uri); err != nil {
			d[i] = nil
			return disks{}, errors.Join(fmt.Errorf("connect to %s: %w", uri, err), d.close())
		}
	}
	return d, nil
}

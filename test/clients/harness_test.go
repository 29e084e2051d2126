package clients

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
	"github.com/lockstep-dr/lockstep/test/proc"
)

// patience bounds waits that have no tighter bound of their own.
const patience = 60 * time.Second

// pollEvery is denser than any client's, so that a status that is there for a moment is seen.
const pollEvery = 10 * time.Millisecond

var dirs atomic.Int32

// newDir is a directory of its own, gone at the end of the run.
func newDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(root, "d"+strconv.Itoa(int(dirs.Add(1))))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// deployment is one `lockstep dev` with the zones az1 and az2, a node in each.
type deployment struct {
	t    *testing.T
	ctx  context.Context // ends with the test
	dir  string
	proc *process
	env  map[string]string // of its openrc
}

// deploy starts a deployment and stops it at the end of the test.
func deploy(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{t: t, ctx: t.Context(), dir: newDir(t)}
	t.Cleanup(func() { // after the end of the process, which stops them
		for _, m := range []string{"controller", "az1/node-1", "az2/node-1"} {
			log := filepath.Join(d.dir, m+".log")
			if err := proc.CheckLog(log); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Logf("---- end of %s\n%s", log, proc.Tail(log, 4000))
			}
		}
	})
	d.proc = newProcess(t, filepath.Join(d.dir, "dev.log"), lockstepBin, "dev", "--dir", d.dir, "--listen", "127.0.0.1:0")
	d.proc.start()
	eventually(t, patience, "lockstep dev is ready", func() error {
		if !d.proc.running() {
			t.Fatal("lockstep dev ended")
		}
		out, err := os.ReadFile(d.proc.log)
		if err == nil && !regexp.MustCompile(`(?m)^ready`).Match(out) {
			err = errors.New("no line that begins with ready")
		}
		return err
	})
	d.env = readOpenRC(t, filepath.Join(d.dir, "openrc"))
	return d
}

var exportLine = regexp.MustCompile(`^export (OS_[A-Z_]+)='([^']*)'$`)

// readOpenRC takes the values out of an openrc as a shell would.
func readOpenRC(t *testing.T, path string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		m := exportLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%s has a line %q", path, line)
		}
		env[m[1]] = m[2]
	}
	return env
}

// environ is the environment of a command: this process's without anything of OpenStack's, and with
// what is given.
func environ(set map[string]string) []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "OS_") })
	for k, v := range set {
		env = append(env, k+"="+v)
	}
	return env
}

func must[T any](t *testing.T) func(v T, err error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until check gives nil, and fails the test with its last error otherwise.
func eventually(t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(began) > within || t.Context().Err() != nil {
			t.Fatalf("not within %s: %s: %v", within, what, err)
		}
		<-tick.C
	}
}

// gone is the target of a wait for a deletion; look answers it for a 404.
const gone = "404"

// settle polls as the clients do: look must give a pending status until it gives the target, and
// anything else fails the test at once. It returns what was seen, each change once.
func settle(t *testing.T, what string, pending []string, target string, look func() (string, error)) []string {
	t.Helper()
	var seen []string
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < patience; <-tick.C {
		status, err := look()
		if err != nil {
			t.Fatalf("%s: %v after %v", what, err, seen)
		}
		if len(seen) == 0 || seen[len(seen)-1] != status {
			seen = append(seen, status)
		}
		if status == target {
			if took := time.Since(began); took > 500*time.Millisecond {
				t.Logf("%s took %s: %q", what, took.Round(10*time.Millisecond), seen)
			}
			return seen
		}
		if !slices.Contains(pending, status) {
			t.Fatalf("%s: unexpected status %q on the way to %q; documented are %q; seen %q", what, status, target, pending, seen)
		}
	}
	t.Fatalf("%s: not %q within %s; seen %q", what, target, patience, seen)
	return nil
}

// write and read are a guest's, over NBD.
func (d *deployment) write(uri string, data []byte, off int64) {
	d.t.Helper()
	onDisk(d.t, uri, func(ctx context.Context, c *nbdclient.Client) error {
		const piece = 1 << 20
		for n := 0; n < len(data); n += piece {
			if err := c.WriteAt(ctx, data[n:min(n+piece, len(data))], off+int64(n), false); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *deployment) read(uri string, n int, off int64) []byte {
	d.t.Helper()
	data := make([]byte, n)
	onDisk(d.t, uri, func(ctx context.Context, c *nbdclient.Client) error { return c.ReadAt(ctx, data, off) })
	return data
}

// onDisk opens a disk, uses it and closes it.
func onDisk(t *testing.T, uri string, use func(context.Context, *nbdclient.Client) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := nbdclient.Dial(ctx, uri)
	if err != nil {
		t.Fatalf("open %s: %v", uri, err)
	}
	if err := errors.Join(use(ctx, c), c.Close()); err != nil {
		t.Fatalf("use %s: %v", uri, err)
	}
}

// command runs the lockstep binary to its end and gives exit code, standard output and error.
func command(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, lockstepBin, args...)
	cmd.Env = env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("lockstep %s did not end within %s:\n%s", strings.Join(args, " "), patience, &errs)
	}
	return exitCode(t, err), out.String(), errs.String()
}

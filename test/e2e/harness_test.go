package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/test/proc"
)

var errNotYet = errors.New("not yet")

const gib = 1 << 30

// patience bounds waits that have no tighter bound of their own.
const patience = 60 * time.Second

// deployment is one `lockstep dev` with two zones, az1 and az2.
type deployment struct {
	t      *testing.T
	ctx    context.Context // ends with the test
	dir    string
	nodes  int // in each zone
	bin    string
	c      *client.Client
	dev    *exec.Cmd
	out    *os.File
	exited chan struct{} // closed when dev has ended
	mounts []string      // taken away at the end
}

var deployments atomic.Int32

// deploy starts a deployment and stops it at the end of the test.
func deploy(t *testing.T, nodesPerAZ int) *deployment {
	t.Helper()
	return deployBinary(t, nodesPerAZ, lockstepBin)
}

func deployBinary(t *testing.T, nodesPerAZ int, bin string) *deployment {
	t.Helper()
	d := &deployment{
		t: t, ctx: t.Context(), dir: filepath.Join(root, "d"+strconv.Itoa(int(deployments.Add(1)))),
		nodes: nodesPerAZ, bin: bin,
	}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.end)
	d.up()
	return d
}

// up starts `lockstep dev`, waits until it is ready, and logs in.
func (d *deployment) up() {
	d.t.Helper()
	var err error
	if d.out, err = os.OpenFile(filepath.Join(d.dir, "dev.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600); err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(d.bin, "dev", "--dir", d.dir, "--listen", "127.0.0.1:0", "--nodes-per-az", strconv.Itoa(d.nodes))
	cmd.Stdout, cmd.Stderr = d.out, d.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := proc.Start(cmd); err != nil {
		d.t.Fatal(err)
	}
	exited := make(chan struct{})
	d.dev, d.exited = cmd, exited
	go func() { // ends with the process, which end makes sure of
		_ = cmd.Wait()
		close(exited)
	}()
	d.eventually(patience, "lockstep dev is ready", func() error {
		select {
		case <-exited:
			d.t.Fatalf("lockstep dev ended:\n%s", proc.Tail(d.out.Name(), 4096))
		default:
		}
		out, err := os.ReadFile(d.out.Name())
		if err == nil && !regexp.MustCompile(`(?m)^ready`).Match(out) {
			err = errors.New("no line that begins with ready")
		}
		return err
	})
	d.c, err = client.Dial(d.ctx, client.Options{Cloud: "lockstep", CloudsFile: filepath.Join(d.dir, "clouds.yaml")})
	if err != nil {
		d.t.Fatal(err)
	}
}

// down stops `lockstep dev` cleanly; that it ends in time is part of what is tested.
func (d *deployment) down() {
	d.t.Helper()
	if err := d.dev.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Error(err)
	}
	select {
	case <-d.exited:
	case <-time.After(30 * time.Second):
		d.t.Errorf("lockstep dev did not stop within 30 s of SIGTERM")
		d.dump()
		_ = d.dev.Process.Kill()
		<-d.exited
	}
	if state := d.dev.ProcessState; !state.Success() {
		d.t.Errorf("lockstep dev: %s\n%s", state, proc.Tail(d.out.Name(), 1000))
	}
}

// end is the cleanup: everything stopped, logs looked through, and shown if the test failed.
func (d *deployment) end() {
	for _, m := range append(d.members(""), "controller") {
		if pid := d.findPID(m); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	if d.dev != nil {
		select {
		case <-d.exited:
		default:
			d.down()
		}
		_ = d.out.Close()
	}
	for _, m := range append(d.members(""), "controller") {
		if pid := d.findPID(m); pid != 0 { // left by a dev that was killed
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := proc.CheckLog(d.path(m, ".log")); err != nil {
			d.t.Error(err)
		}
	}
	for _, m := range d.mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			d.t.Errorf("unmount %s: %v", m, err)
		}
	}
	if d.t.Failed() {
		d.dump()
		return
	}
	if !*keepFlag {
		if err := os.RemoveAll(d.dir); err != nil {
			d.t.Error(err)
		}
	}
}

func (d *deployment) dump() {
	for _, m := range append([]string{"controller"}, d.members("")...) {
		d.t.Logf("---- end of the log of %s\n%s", m, proc.Tail(d.path(m, ".log"), 5000))
	}
	d.t.Logf("---- lockstep dev\n%s", proc.Tail(filepath.Join(d.dir, "dev.log"), 2000))
}

// members lists node names such as az1/node-1, of one zone or, for "", of all.
func (d *deployment) members(az string) []string {
	var list []string
	for _, z := range []string{"az1", "az2"} {
		for n := 1; n <= d.nodes && (az == "" || az == z); n++ {
			list = append(list, node(z, n))
		}
	}
	return list
}

func node(az string, n int) string { return az + "/node-" + strconv.Itoa(n) }

// path is a member's file.
func (d *deployment) path(member, ext string) string { return filepath.Join(d.dir, member+ext) }

// findPID gives the pid of a running member, 0 if it does not run. The pid file alone would not do.
func (d *deployment) findPID(member string) int {
	raw, err := os.ReadFile(d.path(member, ".pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 1 {
		return 0
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(cmdline, []byte(d.path(member, ".yaml"))) {
		return 0
	}
	return pid
}

// signal sends a signal to members. It waits for what SIGSTOP does, which comes into force in each
// thread when that is scheduled, and for nothing else.
func (d *deployment) signal(sig syscall.Signal, members ...string) {
	d.t.Helper()
	for _, m := range members {
		pid := d.findPID(m)
		if pid == 0 {
			d.t.Fatalf("%s does not run", m)
		}
		if err := syscall.Kill(pid, sig); err != nil {
			d.t.Fatalf("signal %s: %v", m, err)
		}
		if sig == syscall.SIGSTOP {
			d.eventually(patience, m+" has stopped", func() error { return proc.Stopped(pid) })
		}
	}
}

// kill ends members with SIGKILL, all of them at once, and waits until they are gone.
func (d *deployment) kill(members ...string) {
	d.t.Helper()
	var fds []int
	for _, m := range members {
		pid := d.findPID(m)
		if pid == 0 {
			d.t.Fatalf("%s does not run", m)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			d.t.Fatal(err)
		}
		defer unix.Close(fd)
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			d.t.Fatal(err)
		}
	}
	for _, fd := range fds {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(p, 10000)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n != 1 {
				d.t.Fatalf("a killed process does not end: %v", err)
			}
			break
		}
	}
}

// cli runs the lockstep binary and gives its standard output.
func (d *deployment) cli(args ...string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.bin, args...)
	cmd.Env = append(os.Environ(), "OS_CLIENT_CONFIG_FILE="+filepath.Join(d.dir, "clouds.yaml"), "OS_CLOUD=lockstep")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		d.t.Fatalf("lockstep %s: %v\n%s%s", strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}

// start starts members that were ended, without waiting until they are alive.
func (d *deployment) start(members ...string) {
	d.t.Helper()
	for _, m := range members {
		if m == "controller" {
			d.cli("dev", "start", "controller", "--dir", d.dir)
			continue
		}
		az, n, _ := strings.Cut(m, "/node-")
		d.cli("dev", "start", az, "--node", n, "--dir", d.dir)
	}
}

// stop ends members cleanly.
func (d *deployment) stop(members ...string) {
	d.t.Helper()
	for _, m := range members {
		az, n, _ := strings.Cut(m, "/node-")
		d.cli("dev", "stop", az, "--node", n, "--dir", d.dir)
	}
}

// untilAlive waits until the store believes in the members again.
func (d *deployment) untilAlive(members ...string) {
	d.t.Helper()
	d.eventually(patience, fmt.Sprintf("%v are alive", members), func() error {
		nodes, err := d.c.Nodes(d.ctx)
		if err != nil {
			return err
		}
		alive := map[string]bool{}
		for _, n := range nodes {
			alive[strings.Replace(n.ID, "-node-", "/node-", 1)] = n.Alive
		}
		for _, m := range members {
			if !alive[m] {
				return fmt.Errorf("%s is not alive", m)
			}
		}
		return nil
	})
}

// reconfigure stops nodes, sets keys of their configuration, and starts them again.
func (d *deployment) reconfigure(keys map[string]map[string]string) {
	d.t.Helper()
	var members []string
	for m, set := range keys {
		members = append(members, m)
		d.stop(m)
		f, err := os.Open(d.path(m, ".yaml"))
		if err != nil {
			d.t.Fatal(err)
		}
		var lines []string
		for s := bufio.NewScanner(f); s.Scan(); {
			key, _, _ := strings.Cut(s.Text(), ":")
			if _, replaced := set[key]; !replaced {
				lines = append(lines, s.Text())
			}
		}
		_ = f.Close()
		for key, value := range set {
			lines = append(lines, key+": "+value)
		}
		if err := os.WriteFile(d.path(m, ".yaml"), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	d.start(members...)
	d.untilAlive(members...)
}

// eventually polls until check gives nil, and fails the test with its last error otherwise.
func (d *deployment) eventually(within time.Duration, what string, check func() error) {
	d.t.Helper()
	poll(d.ctx, d.t, within, what, check)
}

func poll(ctx context.Context, t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if stalls.over(began, within) || ctx.Err() != nil {
			t.Fatalf("not within %s (the disk stalled for %s): %s: %v", within, stalls.slack(began)/probeEcho, what, err)
		}
		<-tick.C
	}
}

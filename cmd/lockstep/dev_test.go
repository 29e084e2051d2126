package main

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// running lists the processes whose command line names dir.
func running(t *testing.T, dir string) (found []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), dir+"/") { // else it has just ended
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// TestDevWithoutReader closes the reading end of the deployment's output once it is ready, as
// `| head` does: it goes on, and at SIGTERM it stops everything and succeeds, although a second
// signal comes while it does.
func TestDevWithoutReader(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole deployment; run without -short")
	}
	dir := filepath.Join(t.TempDir(), "d")
	cmd := exec.Command(os.Args[0], "dev", "--dir", dir, "--listen", "127.0.0.1:0")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { // whatever went wrong, the next supervisor of the directory would do the same
		_ = cmd.Process.Kill()
		_, _, _ = cli(t, "dev", "kill", "controller", "--dir", dir)
		_, _, _ = cli(t, "dev", "kill", "az1", "--dir", dir)
		_, _, _ = cli(t, "dev", "kill", "az2", "--dir", dir)
	})
	ready := false
	for lines := bufio.NewScanner(r); !ready && lines.Scan(); {
		ready = strings.HasPrefix(lines.Text(), "ready")
	}
	if err := r.Close(); err != nil || !ready {
		t.Fatalf("ready: %v, %v; %s", ready, err, errOut.String())
	}
	if got := running(t, dir); len(got) != 3 {
		t.Fatalf("not a controller and two nodes: %q", got)
	}
	// A member's end is reported: to nobody, and that is no reason to end.
	if code, _, e := cli(t, "dev", "kill", "az2", "--dir", dir); code != exitOK {
		t.Fatalf("kill: %d %s", code, e)
	}
	select {
	case err := <-ended:
		t.Fatalf("it ended: %v; left are %q", err, running(t, dir))
	case <-time.After(300 * time.Millisecond):
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("it ended with %v: %s", err, errOut.String())
		}
	case <-time.After(time.Minute):
		t.Fatal("it did not stop")
	}
	if left := running(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestDevOnATakenPort: the reason is told, which only the controller knew, and nothing is left behind.
func TestDevOnATakenPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir := filepath.Join(t.TempDir(), "d")
	var errOut bytes.Buffer
	cmd := exec.Command(os.Args[0], "dev", "--dir", dir, "--listen", ln.Addr().String())
	cmd.Stderr = &errOut
	err = cmd.Run()
	if cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(errOut.String(), "address already in use") {
		t.Errorf("it ended with %v and says %q", err, errOut.String())
	}
	if pids, err := filepath.Glob(filepath.Join(dir, "*.pid")); err != nil || len(pids) > 0 {
		t.Errorf("pid files: %v, %v", pids, err)
	}
	if left := running(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

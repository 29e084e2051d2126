package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary stand in for lockstep: spawned with a member's command line, it is
// a daemon that writes its start to its log and ends at SIGTERM; the controller also makes the
// file that tells where the store is.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[2] == "--config" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		fmt.Println("up", os.Args[1])
		if os.Args[1] == "controller" {
			dir := filepath.Join(filepath.Dir(os.Args[3]), "etcd")
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "client-url"), []byte("http://127.0.0.1:1\n"), 0o600)); err != nil {
				panic(err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Minute): // should the test die
		}
		return
	}
	os.Exit(m.Run())
}

// fakeProbe says that a node is alive when its process runs.
type fakeProbe struct{ l Layout }

func (f fakeProbe) Login(_ context.Context, c Credentials) (Credentials, error) {
	if _, err := os.Stat(filepath.Join(f.l.Dir, "etcd", "client-url")); err != nil {
		return c, err
	}
	c.ProjectID = "p'1"
	return c, nil
}

func (f fakeProbe) Alive(context.Context, string) (map[string]bool, error) {
	alive := map[string]bool{}
	spec, err := f.l.Spec()
	if err != nil {
		return nil, err
	}
	for _, m := range spec.Members("") {
		pid, err := f.l.PID(m)
		if err != nil {
			return nil, err
		}
		alive[m.NodeID()] = pid != 0
	}
	return alive, nil
}

// lines collects the supervisor's output and lets tests wait for a line.
type lines struct {
	mu   sync.Mutex
	all  []string
	more chan struct{} // capacity 1: something was added
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.all = append(l.all, strings.Split(strings.TrimSpace(string(p)), "\n")...)
	l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *lines) wait(t *testing.T, prefix string) string {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		for _, line := range l.all {
			if strings.HasPrefix(line, prefix) {
				l.mu.Unlock()
				return line
			}
		}
		l.mu.Unlock()
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("no line %q in %q", prefix, l.all)
		}
	}
}

// up runs a supervisor; down stops it and returns its error.
func up(t *testing.T, l Layout, o Options) (out *lines, down func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out = &lines{more: make(chan struct{}, 1)}
	done := make(chan error, 1)
	go func() { done <- Run(ctx, l, o, fakeProbe{l}, out) }()
	var once sync.Once
	var err error
	down = func() error {
		once.Do(func() {
			cancel()
			select {
			case err = <-done:
			case <-time.After(30 * time.Second):
				err = errors.New("the supervisor does not stop")
			}
		})
		return err
	}
	t.Cleanup(func() { _ = down() })
	return out, down
}

func open(t *testing.T, dir string) Layout {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func pids(t *testing.T, l Layout, members []Member) (all []int) {
	t.Helper()
	for _, m := range members {
		pid, err := l.PID(m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, pid)
	}
	return all
}

// TestLife walks through a deployment's life: start, a second supervisor, kill, report, start by
// hand, stop of everything, and a second start with the same data.
func TestLife(t *testing.T) {
	l := open(t, t.TempDir())
	out, down := up(t, l, Options{Listen: "127.0.0.1:0", AZs: []string{"north", "south.2"}, NodesPerAZ: 2})
	out.wait(t, "ready")
	spec, err := l.Spec()
	if err != nil {
		t.Fatal(err)
	}
	all := append([]Member{Controller}, spec.Members("")...)
	for i, pid := range pids(t, l, all) {
		if pid == 0 {
			t.Fatalf("%s does not run", all[i])
		}
	}
	if err := Run(t.Context(), l, Options{}, fakeProbe{l}, io.Discard); !errors.Is(err, ErrRefused) {
		t.Fatalf("a second supervisor: %v", err)
	}
	rc, err := os.ReadFile(l.OpenRC())
	if err != nil || !strings.Contains(string(rc), `export OS_PROJECT_ID='p'\''1'`) || strings.Contains(string(rc), "OS_DOMAIN") || strings.Contains(string(rc), "OS_CLOUD") {
		t.Fatalf("openrc: %v\n%s", err, rc)
	}
	for _, f := range []string{l.OpenRC(), l.CloudsFile(), l.passwordFile()} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}

	south := spec.Members("south.2")
	if ran, err := l.End(t.Context(), south, syscall.SIGKILL, 10*time.Second); err != nil || len(ran) != 2 {
		t.Fatalf("kill: %v, %v", ran, err)
	}
	out.wait(t, "ended south.2/node-1")
	out.wait(t, "ended south.2/node-2")
	if got := pids(t, l, south); got[0] != 0 || got[1] != 0 {
		t.Fatalf("killed nodes run: %v", got)
	}
	if started, err := l.Launch(south[:1]); err != nil || len(started) != 1 {
		t.Fatalf("start by hand: %v, %v", started, err)
	}
	if started, err := l.Launch(south[:1]); err != nil || len(started) != 0 {
		t.Fatalf("start of what runs: %v, %v", started, err)
	}
	if err := down(); err != nil {
		t.Fatal(err)
	}
	for i, pid := range pids(t, l, all) {
		if pid != 0 {
			t.Errorf("%s still runs", all[i])
		}
	}
	if _, err := l.Launch(south); !errors.Is(err, ErrRefused) {
		t.Errorf("start without a supervisor: %v", err)
	}

	password, err := l.password()
	if err != nil {
		t.Fatal(err)
	}
	out, down = up(t, l, Options{Listen: "127.0.0.1:0"})
	out.wait(t, "ready")
	again, err := l.Spec()
	if err != nil || again.Listen != spec.Listen || fmt.Sprint(again.AZs) != fmt.Sprint(spec.AZs) || again.NodesPerAZ != 2 {
		t.Errorf("second start: %+v, first %+v, %v", again, spec, err)
	}
	if p, err := l.password(); err != nil || p != password {
		t.Errorf("the password changed: %v", err)
	}
	if err := down(); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), l, Options{Region: "other"}, fakeProbe{l}, io.Discard); !errors.Is(err, ErrRefused) {
		t.Errorf("another region: %v", err)
	}
}

// TestWords: a process that was just started shows its command line, or a member would be taken for one that has ended,
// and be started twice. Without a second look some 3 of 10 show none.
func TestWords(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		cmd := exec.Command(self, "node", "--config", "none")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		p := &process{cmd.Process.Pid, fd}
		words := p.words()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if len(words) != 4 || words[3] != "none" {
			t.Fatalf("start %d: command line %q", i, words)
		}
		if after := p.words(); after != nil {
			t.Fatalf("it has ended, with command line %q", after)
		}
		p.close()
	}
}

// TestForeignPID: a pid file that names somebody else's process, a dead one, or nonsense is not a
// reason to signal anything.
func TestForeignPID(t *testing.T) {
	l := open(t, t.TempDir())
	for _, content := range []string{fmt.Sprint(os.Getpid()), "1", "0", "-1", "999999999", "x", ""} {
		if err := os.WriteFile(l.PIDFile(Controller), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		// SIGTERM to ourselves would end the test.
		ran, err := l.End(t.Context(), []Member{Controller}, syscall.SIGTERM, time.Second)
		if len(ran) != 0 || err != nil && !strings.Contains(err.Error(), "open process") {
			t.Errorf("pid file %q: ended %v, %v", content, ran, err)
		}
	}
}

// TestLeftover: members that outlived a supervisor which was killed are stopped by the next one.
func TestLeftover(t *testing.T) {
	l := open(t, t.TempDir())
	out, down := up(t, l, Options{Listen: "127.0.0.1:0"})
	out.wait(t, "ready")
	if err := down(); err != nil {
		t.Fatal(err)
	}
	node := Member{"az1", 1}
	cmd, err := l.spawn(node)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // ends with the process, which the next supervisor stops
	out, down = up(t, l, Options{})
	out.wait(t, "stopped what an earlier run left: [az1/node-1]")
	out.wait(t, "ready")
	if err := down(); err != nil {
		t.Fatal(err)
	}
}

func TestSocketPath(t *testing.T) {
	m := Member{"az1", 1}
	short := open(t, t.TempDir())
	if got, err := short.Socket(m); err != nil || got != filepath.Join(short.Dir, "az1", "node-1.sock") {
		t.Errorf("short: %s, %v", got, err)
	}
	tmp, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	t.Setenv("TMPDIR", tmp)
	deep := filepath.Join(tmp, strings.Repeat("d", 100))
	if err := os.MkdirAll(filepath.Join(deep, "az1"), 0o700); err != nil {
		t.Fatal(err)
	}
	long := open(t, deep)
	got, err := long.Socket(m)
	if err != nil || len(got) > sunPathMax {
		t.Fatalf("long: %s, %v", got, err)
	}
	if err := os.WriteFile(got, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(deep, "az1", "node-1.sock")); err != nil {
		t.Errorf("the short path does not lead to the directory: %v", err)
	}
	if again, err := long.Socket(m); err != nil || again != got {
		t.Errorf("again: %s, %v", again, err)
	}
	link := filepath.Dir(filepath.Dir(got))
	if err := errors.Join(os.Remove(link), os.Symlink("/elsewhere", link)); err != nil {
		t.Fatal(err)
	}
	if _, err := long.Socket(m); err == nil {
		t.Error("a link that leads elsewhere was taken")
	}
	if _, err := long.Socket(Member{strings.Repeat("z", 63), 1}); err == nil {
		t.Error("a path that cannot be shortened enough was taken")
	}
}

func TestZoneNames(t *testing.T) {
	for _, az := range []string{"", ".", "..", "a/b", "etcd", "-x", strings.Repeat("z", 64), "a b"} {
		if err := (Spec{AZs: []string{az}, NodesPerAZ: 1}).check(); err == nil {
			t.Errorf("zone %q was taken", az)
		}
	}
	if err := (Spec{AZs: []string{"az1", "eu-west-0a", "az2.dc2"}, NodesPerAZ: 1}).check(); err != nil {
		t.Error(err)
	}
	if err := (Spec{AZs: []string{"az1", "az1"}, NodesPerAZ: 1}).check(); err == nil {
		t.Error("a zone twice was taken")
	}
}

func TestConfigureAndRawFile(t *testing.T) {
	l := Layout{t.TempDir()}
	m := Member{"az1", 1}
	if err := os.MkdirAll(filepath.Join(l.Pool(m), "volumes"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(l.Config(m), l.nodeConfig(m, "/s", []string{"http://e"})); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time replaces what the first one set
		if err := l.Configure(m, map[string]any{"replicate": "127.0.0.1:7", "advertise": "127.0.0.1:8"}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(l.Config(m))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`replicate: "127.0.0.1:7"`, `advertise: "127.0.0.1:8"`, `nbd_socket: "/s"`} {
		if strings.Count(string(data), want+"\n") != 1 {
			t.Errorf("not exactly one line %s in\n%s", want, data)
		}
	}
	if strings.Contains(string(data), "127.0.0.1:0") {
		t.Errorf("the old value is still there:\n%s", data)
	}

	want := filepath.Join(l.Pool(m), "volumes", "v1.raw")
	for path, size := range map[string]int{want: 5, filepath.Join(l.Pool(m), "v1.meta"): 3, filepath.Join(l.Pool(m), "v2.raw"): 5} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := l.RawFile(m, "v1", 5); err != nil || have != want {
		t.Errorf("%q, %v; want %q", have, err, want)
	}
	if have, err := l.RawFile(m, "v3", 5); err == nil {
		t.Errorf("%q for a volume that is not there", have)
	}
}

// An etcd of somebody else's is what the controller and every node are told, and it stays the
// directory's.
func TestStoreOfSomebodyElse(t *testing.T) {
	l := Layout{t.TempDir()}
	etcd := []string{"http://127.0.0.1:1", "http://127.0.0.1:2"}
	spec, err := l.settle(Options{Etcd: etcd})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.prepare(spec), l.prepareNodes(spec)); err != nil {
		t.Fatal(err)
	}
	for _, m := range []Member{Controller, {"az1", 1}, {"az2", 1}} {
		data, err := os.ReadFile(l.Config(m))
		if err != nil {
			t.Fatal(err)
		}
		if want := `etcd_endpoints: ["http://127.0.0.1:1","http://127.0.0.1:2"]`; !strings.Contains(string(data), want) || strings.Contains(string(data), "etcd_dir") {
			t.Errorf("%s: no %s in\n%s", m, want, data)
		}
	}
	if again, err := l.settle(Options{}); err != nil || len(again.Etcd) != 2 {
		t.Errorf("the second start: %v, %v", again.Etcd, err)
	}
	if _, err := l.settle(Options{Etcd: etcd[:1]}); !errors.Is(err, ErrRefused) {
		t.Errorf("another store: %v", err)
	}
}

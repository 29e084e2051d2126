package torture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// The store has three members, each a process of its own on a site of its own: the two zones and a
// witness. They are told apart from other members by their zone.
const (
	storeZone    = "store"
	storeMembers = 3
	storeQuorum  = 2
)

func isStore(m dev.Member) bool { return m.AZ == storeZone }

// storeOf is the store's member on the site of a zone.
func storeOf(az string) dev.Member {
	for i, z := range zones {
		if z == az {
			return dev.Member{AZ: storeZone, N: i + 1}
		}
	}
	panic("no such zone: " + az)
}

// MemberConfig is one member of the store; see etcdstore.EmbedConfig.
type MemberConfig struct {
	Dir, Name, Client, Peer, Cluster string
}

// RunMember is the process of a member of the store, until ctx ends.
func RunMember(ctx context.Context, c MemberConfig, log *slog.Logger) error {
	e, err := etcdstore.StartEmbedded(etcdstore.EmbedConfig{
		Dir: c.Dir, Name: c.Name, ListenClient: c.Client, ListenPeer: c.Peer, InitialCluster: c.Cluster, Logger: log,
	})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return e.Close()
	case err := <-e.Err():
		return errors.Join(err, e.Close())
	}
}

// memberProcess is a member of the store as a child process, which ends with this one.
type memberProcess struct {
	client string // host:port
	args   []string
	log    string
	cmd    *exec.Cmd
	ended  chan struct{}
}

// makeStore describes the members; nothing is started.
func makeStore(dir string) (list []*memberProcess, err error) {
	var cluster []string
	var peers [storeMembers]string
	for i := range peers {
		if peers[i], err = dev.FreePort("127.0.0.1"); err != nil {
			return nil, err
		}
		cluster = append(cluster, fmt.Sprintf("s%d=http://%s", i+1, peers[i]))
	}
	for i, peer := range peers {
		p := &memberProcess{log: filepath.Join(dir, fmt.Sprintf("store-%d.log", i+1))}
		if p.client, err = dev.FreePort("127.0.0.1"); err != nil {
			return nil, err
		}
		p.args = []string{
			"torture", "member", "--dir", filepath.Join(dir, fmt.Sprintf("store-%d", i+1)), "--name", fmt.Sprintf("s%d", i+1),
			"--client", p.client, "--peer", peer, "--cluster", strings.Join(cluster, ","),
		}
		list = append(list, p)
	}
	return list, nil
}

// start starts the process. It does not wait until the member serves, which takes a quorum.
func (p *memberProcess) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own
	p.cmd, p.ended = exec.Command(self, p.args...), make(chan struct{})
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func(cmd *exec.Cmd, ended chan struct{}) {
		// The signal at the parent's death is sent when the thread that forked ends, so this one stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended stands in its log
		}
	}(p.cmd, p.ended)
	return <-started
}

func (p *memberProcess) running() bool {
	if p.ended == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// signal sends a signal, and waits for the end if it is one that ends.
func (p *memberProcess) signal(s syscall.Signal) error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if s != syscall.SIGKILL && s != syscall.SIGTERM {
		return nil
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(20 * time.Second):
		return errors.Join(fmt.Errorf("process %d of the store did not end within 20 s of %s", p.cmd.Process.Pid, s), p.cmd.Process.Kill())
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// system is something that serves a disk over NBD.
type system struct {
	name       string
	title      string
	replicated bool
	start      func(ctx context.Context, s *site) (*served, error)
}

func (s system) Name() string { return s.name }

// served is a system that runs.
type served struct {
	uri  string
	pids []int // whose CPU time counts
	stop func() error
}

var systems = []system{
	{"lockstep", "Lockstep, replicated", true, startLockstep},
	{"quorum", "QEMU quorum: both sides write and flush", true, startQuorum},
	{"mirror", "QEMU blockdev-mirror, write-blocking: flushes one side", true, startMirror},
	{"qemu-nbd", "qemu-nbd, not replicated", false, startQemuNBD},
	{"nbdkit", "nbdkit file, not replicated", false, startNBDKit},
}

// site is the place where systems keep their files: the peers take turns with the same two.
type site struct {
	o        options
	dir      string
	lockstep *deployment // of the load; nil before its first turn
	disk     disk
	filled   map[string]bool // systems whose disk was written once
}

func (s *site) size() int64             { return s.o.sizeGiB << 30 }
func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// fill writes zeroes to every block of a file.
func fill(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	zeroes := make([]byte, 1<<20)
	for off := int64(0); off < size && err == nil; off += int64(len(zeroes)) {
		_, err = f.WriteAt(zeroes, off)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// peerFiles makes sure that the peers' files are there, sparse.
func (s *site) peerFiles(names ...string) error {
	for _, n := range names {
		f, err := os.OpenFile(s.path(n), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(s.size()), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// group is processes that run and stop together.
type group struct{ cmds []*exec.Cmd }

func (g *group) start(s *site, log string, name string, args ...string) error {
	f, err := os.Create(s.path(log))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	g.cmds = append(g.cmds, cmd)
	return nil
}

func (g *group) pids() []int {
	out := make([]int, len(g.cmds))
	for i, c := range g.cmds {
		out[i] = c.Process.Pid
	}
	return out
}

func (g *group) stop() error {
	for _, c := range g.cmds {
		_ = c.Process.Signal(syscall.SIGTERM) // it may have ended
	}
	for _, c := range g.cmds {
		kill := time.AfterFunc(20*time.Second, func() { _ = c.Process.Kill() })
		_ = c.Wait() // how it ends does not matter
		kill.Stop()
	}
	return nil
}

// listening waits until something accepts connections.
func listening(ctx context.Context, network, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := net.Dial(network, addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing answers at %s: %w", addr, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// serve gives the system of g, whose clients connect to sock.
func (s *site) serve(ctx context.Context, g *group, sock string) (*served, error) {
	if err := listening(ctx, "unix", s.path(sock)); err != nil {
		return nil, errors.Join(err, g.stop())
	}
	return &served{uri: "nbd+unix:///?socket=" + s.path(sock), pids: g.pids(), stop: g.stop}, nil
}

func startQemuNBD(ctx context.Context, s *site) (*served, error) {
	if err := s.peerFiles("a.raw"); err != nil {
		return nil, err
	}
	g := &group{}
	if err := g.start(s, "qemu-nbd.log", "qemu-nbd", "-t", "-e", "8", "-f", "raw", "--cache=writeback", "--aio=threads", "-k", s.path("a.sock"), s.path("a.raw")); err != nil {
		return nil, err
	}
	return s.serve(ctx, g, "a.sock")
}

func startNBDKit(ctx context.Context, s *site) (*served, error) {
	if err := s.peerFiles("a.raw"); err != nil {
		return nil, err
	}
	_ = os.Remove(s.path("k.sock")) // of the last round
	g := &group{}
	if err := g.start(s, "nbdkit.log", "nbdkit", "-f", "-U", s.path("k.sock"), "file", s.path("a.raw")); err != nil {
		return nil, err
	}
	return s.serve(ctx, g, "k.sock")
}

const peerPort = "10811"

// secondary starts the far side of QEMU's replications.
func (g *group) secondary(ctx context.Context, s *site) error {
	err := g.start(s, "secondary.log", "qemu-nbd", "-t", "-e", "8", "-f", "raw", "--cache=writeback", "--aio=threads", "-b", "127.0.0.1", "-p", peerPort, s.path("b.raw"))
	if err == nil {
		err = listening(ctx, "tcp", "127.0.0.1:"+peerPort)
	}
	return err
}

// both are the options of a storage daemon with the near file, as node pri, and the far one, as sec.
func (s *site) both() []string {
	return []string{
		"--blockdev", "driver=file,node-name=lfile,aio=threads,filename=" + s.path("a.raw"),
		"--blockdev", "driver=raw,node-name=pri,file=lfile",
		"--blockdev", "driver=nbd,node-name=sec,server.type=inet,server.host=127.0.0.1,export=,server.port=" + peerPort,
		"--nbd-server", "addr.type=unix,max-connections=0,addr.path=" + s.path("q.sock"),
	}
}

func startQuorum(ctx context.Context, s *site) (*served, error) {
	if err := s.peerFiles("a.raw", "b.raw"); err != nil {
		return nil, err
	}
	g := &group{}
	err := g.secondary(ctx, s)
	if err == nil {
		err = g.start(s, "quorum.log", "qemu-storage-daemon", append(s.both(),
			"--blockdev", "driver=quorum,node-name=q0,vote-threshold=2,read-pattern=fifo,children.0=pri,children.1=sec",
			"--export", "type=nbd,id=e0,node-name=q0,name=,writable=on")...)
	}
	if err != nil {
		return nil, errors.Join(err, g.stop())
	}
	return s.serve(ctx, g, "q.sock")
}

package nbdclient_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/block/blocktest"
	"github.com/lockstep-dr/lockstep/nbd"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
	"github.com/lockstep-dr/lockstep/test/need"
)

// exports serves devices by name.
type exports map[string]nbd.Export

func (e exports) List(context.Context) []string { return nil }

func (e exports) Open(_ context.Context, name string) (nbd.Export, error) {
	if x, ok := e[name]; ok {
		return x, nil
	}
	return nbd.Export{}, fmt.Errorf("volume %s: %w", name, lockstep.ErrNotFound)
}

// serve runs a server for the test and returns the URI prefix up to the export name and its suffix.
func serve(t *testing.T, network string, e exports) func(name string) string {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "nbd.sock")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := &nbd.Server{Exports: e}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(ctx, ln); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return func(name string) string {
		if network == "unix" {
			return "nbd+unix:///" + name + "?socket=" + address
		}
		return "nbd://" + ln.Addr().String() + "/" + name
	}
}

func dial(t *testing.T, uri string) *nbdclient.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := nbdclient.Dial(ctx, uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// The device contract must hold over the wire.
func TestClientAndServerConform(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			blocktest.Run(t, func(t *testing.T) block.Device {
				uri := serve(t, network, exports{"v": {Device: block.NewMemory(5<<20 + 513)}})
				return dial(t, uri("v"))
			})
		})
	}
}

// The client against another server.
func TestAgainstNbdkit(t *testing.T) {
	need.Programs(t, "nbdkit")
	blocktest.Run(t, func(t *testing.T) block.Device {
		socket := filepath.Join(t.TempDir(), "kit.sock")
		cmd := exec.Command("nbdkit", "-f", "-U", socket, "memory", "8M")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if nc, err := net.Dial("unix", socket); err == nil {
				_ = nc.Close()
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("nbdkit did not start")
			}
		}
		return dial(t, "nbd+unix:///?socket="+socket)
	})
}

func TestLargeRequestsAreSplit(t *testing.T) {
	uri := serve(t, "unix", exports{"v": {Device: block.NewMemory(80 << 20)}})
	c := dial(t, uri("v"))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	want := bytes.Repeat([]byte("lockstep"), 70<<17)
	if err := c.WriteAt(ctx, want, 12345, true); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := c.ReadAt(ctx, got, 12345); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("70 MiB came back changed")
	}
}

func TestErrors(t *testing.T) {
	fault := block.NewFault(block.NewMemory(1 << 20))
	uri := serve(t, "unix", exports{
		"v":  {Device: fault},
		"ro": {Device: block.NewMemory(1 << 20), ReadOnly: true},
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()

	if _, err := nbdclient.Dial(ctx, uri("nobody")); !errors.Is(err, lockstep.ErrNotFound) {
		t.Fatalf("unknown export: %v", err)
	}
	if _, err := nbdclient.Dial(ctx, "http://127.0.0.1/"); err == nil {
		t.Fatal("an http URI was accepted")
	}
	ro := dial(t, uri("ro"))
	if err := ro.WriteAt(ctx, []byte{1}, 0, false); !ro.ReadOnly() || !errors.Is(err, syscall.EPERM) || !errors.Is(err, nbd.EPERM) {
		t.Fatalf("write to a read-only export: %v", err)
	}
	c := dial(t, uri("v"))
	remove := fault.Inject(block.FaultRule{Ops: block.OpWrite, Err: fmt.Errorf("pool p1: %w", lockstep.ErrNoSpace)})
	err := c.WriteAt(ctx, []byte{1}, 0, false)
	var e *nbdclient.Error
	if !errors.As(err, &e) || e.Errno != nbd.ENOSPC || e.Text != "pool p1: no space left in the pool" {
		t.Fatalf("write without space: %v", err)
	}
	remove()
	if err := c.WriteAt(ctx, []byte{1}, 0, false); err != nil {
		t.Fatalf("write after an error: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(ctx); !errors.Is(err, nbdclient.ErrClosed) {
		t.Fatalf("flush after close: %v", err)
	}
}

// A call that is given up leaves its buffer alone and the connection usable.
func TestGivingUpACall(t *testing.T) {
	fault := block.NewFault(block.NewMemory(1 << 20))
	uri := serve(t, "unix", exports{"v": {Device: fault}})
	c := dial(t, uri("v"))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.WriteAt(ctx, bytes.Repeat([]byte{9}, 4096), 0, false); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	remove := fault.Inject(block.FaultRule{Ops: block.OpRead, Hold: hold})
	short, cancelShort := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancelShort()
	p := make([]byte, 4096)
	if err := c.ReadAt(short, p, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("held read: %v", err)
	}
	remove()
	close(hold)
	q := make([]byte, 4096)
	if err := c.ReadAt(ctx, q, 0); err != nil || q[0] != 9 {
		t.Fatalf("read after one was given up: %v, %d", err, q[0])
	}
	if !bytes.Equal(p, make([]byte, 4096)) {
		t.Fatal("the buffer of a call that was given up was written to")
	}
}

func TestLossOfTheServer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(nc, "SSH-2.0-OpenSSH_9.2\r\n........")
		_ = nc.Close()
	}()
	if _, err := nbdclient.DialAddr(ctx, "tcp", ln.Addr().String(), "x"); err == nil {
		t.Fatal("a server of another protocol was accepted")
	}

	hold := make(chan struct{})
	defer close(hold)
	fault := block.NewFault(block.NewMemory(1 << 20))
	fault.Inject(block.FaultRule{Ops: block.OpFlush, Hold: hold})
	gone := make(chan struct{})
	uri := serve(t, "unix", exports{"v": {Device: fault, Closed: gone}})
	c := dial(t, uri("v"))
	result := make(chan error, 1)
	go func() { result <- c.Flush(ctx) }()
	time.Sleep(50 * time.Millisecond)
	_ = c.Close()
	select {
	case err := <-result:
		if !errors.Is(err, nbdclient.ErrClosed) {
			t.Fatalf("call in flight at close: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("a call in flight outlived its connection")
	}
}

package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
)

// heldServer serves a device whose writes to the first MiB wait for hold.
func heldServer(t *testing.T, network string, limits Limits, export Export) (*testServer, *block.Fault, chan struct{}) {
	dev := block.NewFault(block.NewMemory(testSize))
	hold := make(chan struct{})
	dev.Inject(block.FaultRule{Ops: block.OpWrite, Range: lockstep.Extent{Off: 0, Len: 1 << 20}, Hold: hold})
	export.Device = dev
	return newTestServer(t, &Server{Exports: testExports{"v": export}, Limits: limits}, network), dev, hold
}

// A held request keeps neither later ones nor other connections waiting.
func TestHeldRequestBlocksNothing(t *testing.T) {
	s, _, hold := heldServer(t, "unix", Limits{}, Export{})
	c := s.connect(t)
	c.optGo("v")
	var held []uint64
	for range 20 {
		held = append(held, c.send(CmdWrite, 0, 0, 4096, make([]byte, 4096)))
	}
	for range 100 {
		c.expect(0, CmdWrite, 0, 2<<20, 4096, make([]byte, 4096))
		c.expectData(2<<20, make([]byte, 10))
	}
	d := s.connect(t)
	d.optGo("v")
	d.expect(0, CmdFlush, 0, 0, 0, nil)
	close(hold)
	got := map[uint64]bool{}
	for range held {
		r := c.recv(0)
		got[r.cookie] = r.errno == 0
	}
	for _, cookie := range held {
		if !got[cookie] {
			t.Fatalf("request %d was not answered", cookie)
		}
	}
}

// The bounds by count and by bytes hold back reading, and a client that leaves at the bound is noticed.
func TestInFlightBounds(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for name, limits := range map[string]Limits{
			"requests": {Requests: 8},
			"bytes":    {Bytes: 32 << 10, RequestBytes: 32 << 10},
		} {
			t.Run(network+" "+name, func(t *testing.T) {
				s, dev, _ := heldServer(t, network, limits, Export{})
				c := s.connect(t)
				c.optGo("v")
				for range 12 {
					c.send(CmdWrite, 0, 0, 4096, make([]byte, 4096))
				}
				eventually(t, "eight writes at the device", func() bool { return dev.Calls(block.OpWrite) == 8 })
				time.Sleep(50 * time.Millisecond)
				if n := dev.Calls(block.OpWrite); n != 8 {
					t.Fatalf("%d writes at the device", n)
				}
				_ = c.nc.Close()
				eventually(t, "the held connection is gone", func() bool { return s.Connections() == 0 })
			})
		}
	}
}

// A request larger than what is left waits; one alone is always admitted.
func TestRoomComesBack(t *testing.T) {
	s, dev, hold := heldServer(t, "unix", Limits{Bytes: 1 << 20, RequestBytes: 1 << 20}, Export{})
	c := s.connect(t)
	c.optGo("v")
	c.send(CmdWrite, 0, 0, 4096, make([]byte, 4096))
	sent := make(chan struct{})
	go func() { // more than the socket takes while the server does not read
		defer close(sent)
		c.send(CmdWrite, 0, 2<<20, 1<<20, bytes.Repeat([]byte{5}, 1<<20))
	}()
	time.Sleep(50 * time.Millisecond)
	if n := dev.Calls(block.OpWrite); n != 1 {
		t.Fatalf("%d writes at the device", n)
	}
	close(hold)
	<-sent
	c.recv(0)
	c.recv(0)
	c.expectData(2<<20, bytes.Repeat([]byte{5}, 1<<20))
}

// The loss of the client ends the context of its held requests, and nothing is left of it.
func TestLossOfTheClient(t *testing.T) {
	before := runtime.NumGoroutine()
	s, dev, _ := heldServer(t, "tcp", Limits{}, Export{})
	for range 20 {
		c := s.connect(t)
		c.optGo("v")
		calls := dev.Calls(block.OpWrite)
		c.send(CmdWrite, 0, 0, 4096, make([]byte, 4096))
		eventually(t, "the write is held", func() bool { return dev.Calls(block.OpWrite) > calls })
		_ = c.nc.Close()
	}
	eventually(t, "all are gone", func() bool { return s.Connections() == 0 })
	s.cancel()
	eventually(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= before+1 })
}

// DISC waits for what is in flight.
func TestDisconnectFinishesRequests(t *testing.T) {
	s, dev, hold := heldServer(t, "unix", Limits{}, Export{})
	c := s.connect(t)
	c.optGo("v")
	c.send(CmdWrite, 0, 0, 3, []byte("abc"))
	c.send(CmdDisc, 0, 0, 0, nil)
	eventually(t, "the write is held", func() bool { return dev.Calls(block.OpWrite) == 1 })
	time.Sleep(20 * time.Millisecond)
	if s.Connections() != 1 {
		t.Fatal("the connection did not wait")
	}
	close(hold)
	if r := c.recv(0); r.errno != 0 {
		t.Fatalf("reply %v", r)
	}
	c.expectClosed()

	// A client that does not wait for the replies: the write happens all the same.
	hold = make(chan struct{})
	remove := dev.Inject(block.FaultRule{Ops: block.OpWrite, Hold: hold})
	defer remove()
	c = s.connect(t)
	c.optGo("v")
	c.send(CmdWrite, 0, 2<<20, 3, []byte("xyz"))
	c.send(CmdDisc, 0, 0, 0, nil)
	_ = c.nc.Close()
	eventually(t, "the write is held", func() bool { return dev.Calls(block.OpWrite) == 2 })
	close(hold)
	eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
	p := make([]byte, 3)
	if err := dev.ReadAt(context.Background(), p, 2<<20); err != nil || string(p) != "xyz" {
		t.Fatalf("read %q, %v", p, err)
	}
}

// A request that stays held after DISC is given up in the end.
func TestDisconnectDoesNotWaitForEver(t *testing.T) {
	s, _, _ := heldServer(t, "unix", Limits{DrainTimeout: 50 * time.Millisecond}, Export{})
	c := s.connect(t)
	c.optGo("v")
	c.send(CmdWrite, 0, 0, 3, []byte("abc"))
	c.send(CmdDisc, 0, 0, 0, nil)
	eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
}

// demotedDevice holds writes until it is demoted and then answers all with ErrDemoted.
type demotedDevice struct {
	*block.Memory
	demoted chan struct{}
}

func (d demotedDevice) WriteAt(ctx context.Context, _ []byte, _ int64, _ bool) error {
	select {
	case <-d.demoted:
		return fmt.Errorf("volume v: %w", lockstep.ErrDemoted)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// When the export is closed, requests in flight get the device's answer and the connection ends.
func TestExportClosed(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			dev := demotedDevice{block.NewMemory(testSize), make(chan struct{})}
			released := make(chan struct{})
			s := newTestServer(t, &Server{Exports: testExports{
				"v": {Device: dev, Closed: dev.demoted, Release: func() { close(released) }},
				"w": {Device: newVolume()},
			}}, network)
			other := s.connect(t)
			other.optGo("w")
			c := s.connect(t)
			c.optStructured()
			c.optGo("v")
			want := map[uint64]bool{}
			for range 10 {
				want[c.send(CmdWrite, 0, 0, 4096, make([]byte, 4096))] = true
			}
			c.expectData(0, []byte{0}) // all were read
			close(dev.demoted)
			for range 10 {
				r := c.recv(0)
				if r.errno != ESHUTDOWN || !want[r.cookie] {
					t.Fatalf("reply %v", r)
				}
				delete(want, r.cookie)
			}
			c.expectClosed()
			select {
			case <-released:
			case <-time.After(testTimeout):
				t.Fatal("the export was not released")
			}
			other.expect(0, CmdFlush, 0, 0, 0, nil)
		})
	}
}

// While requests are held, later ones of a closed export are refused without reaching the device.
func TestRequestsAfterClosed(t *testing.T) {
	closed := make(chan struct{})
	s, dev, hold := heldServer(t, "unix", Limits{}, Export{Closed: closed})
	c := s.connect(t)
	c.optGo("v")
	first := c.send(CmdWrite, 0, 0, 1, []byte{1})
	eventually(t, "the write is held", func() bool { return dev.Calls(block.OpWrite) == 1 })
	close(closed)
	eventually(t, "new requests are refused", func() bool {
		return c.do(CmdRead, 0, 0, 1, nil).errno == ESHUTDOWN
	})
	c.expect(ESHUTDOWN, CmdWrite, 0, 4<<20, 1, []byte{1})
	if n := dev.Calls(block.OpWrite); n != 1 {
		t.Fatalf("%d writes at the device", n)
	}
	close(hold)
	if r := c.recv(0); r.cookie != first || r.errno != 0 {
		t.Fatalf("reply %v", r)
	}
	c.expectClosed()
}

func TestShutdown(t *testing.T) {
	s, dev, hold := heldServer(t, "unix", Limits{}, Export{})
	idle, negotiating, busy := s.connect(t), s.connect(t), s.connect(t)
	idle.optGo("v")
	busy.optGo("v")
	busy.send(CmdWrite, 0, 0, 1, []byte{1})
	eventually(t, "the write is held", func() bool { return dev.Calls(block.OpWrite) == 1 })
	result := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		result <- s.Shutdown(ctx)
	}()
	idle.expectClosed()
	negotiating.expectClosed()
	if _, err := net.Dial("unix", s.address); err == nil {
		t.Fatal("the listener is still open")
	}
	select {
	case err := <-result:
		t.Fatalf("shutdown did not wait: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	close(hold)
	if r := busy.recv(0); r.errno != 0 {
		t.Fatalf("reply %v", r)
	}
	busy.expectClosed()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if err := <-s.served; err != nil {
		t.Fatalf("serve: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(context.Background(), ln); !errors.Is(err, errServerClosed) {
		t.Fatalf("serve after shutdown: %v", err)
	}
}

// When its time is over, Shutdown drops what is still held.
func TestShutdownInTime(t *testing.T) {
	s, dev, _ := heldServer(t, "unix", Limits{}, Export{})
	c := s.connect(t)
	c.optGo("v")
	c.send(CmdWrite, 0, 0, 1, []byte{1})
	eventually(t, "the write is held", func() bool { return dev.Calls(block.OpWrite) == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("shutdown: %v", err)
	}
	if err := <-s.served; err != nil {
		t.Fatalf("serve: %v", err)
	}
}

// A client that sends and never reads is held at the bound, and harms nobody.
func TestClientThatDoesNotRead(t *testing.T) {
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: block.NewMemory(testSize)}}, Limits: Limits{Bytes: 4 << 20, RequestBytes: 1 << 20}}, "unix")
	lazy, good := s.connect(t), s.connect(t)
	lazy.optGo("v")
	good.optGo("v")
	if err := lazy.nc.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	frame := bytes.Join([][]byte{u32(MagicRequest), u16(0), u16(CmdRead), u64(1), u64(0), u32(1 << 20)}, nil)
	var err error
	for range 1_000_000 {
		if _, err = lazy.nc.Write(frame); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the server took a million reads of a client that takes no reply: %v", err)
	}
	good.expect(0, CmdWrite, 0, 0, 3, []byte("abc"))
	_ = lazy.nc.Close()
	eventually(t, "the lazy client is gone", func() bool { return s.Connections() == 1 })
}

func TestPrometheusMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewPrometheusMetrics(reg)
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: newVolume()}}, Metrics: m}, "unix")
	c := s.connect(t)
	c.optGo("v")
	c.expect(0, CmdWrite, 0, 0, 3, []byte("abc"))
	c.expect(0, CmdWrite, 0, 0, 2, []byte("ab"))
	c.expect(ENOSPC, CmdWrite, 0, 1<<20, 2, []byte("ab"))
	c.expect(EINVAL, 99, 0, 0, 0, nil)
	value := func(name, op string) float64 {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != "lockstep_nbd_"+name {
				continue
			}
			for _, x := range f.GetMetric() {
				labels := map[string]string{}
				for _, l := range x.GetLabel() {
					labels[l.GetName()] = l.GetValue()
				}
				if labels["volume"] == "v" && labels["op"] == op {
					return x.GetCounter().GetValue() + x.GetGauge().GetValue() + float64(x.GetHistogram().GetSampleCount())
				}
			}
		}
		return -1
	}
	for _, w := range []struct {
		name, op string
		want     float64
	}{
		{"requests_total", "write", 3},
		{"bytes_total", "write", 5},
		{"errors_total", "write", 1},
		{"errors_total", "unknown", 1},
		{"request_seconds", "write", 3},
		{"inflight_requests", "", 0},
		{"connections", "", 1},
		{"requests_total", "read", 0},
	} {
		if got := value(w.name, w.op); got != w.want {
			t.Errorf("%s of %s is %v, want %v", w.name, w.op, got, w.want)
		}
	}
	_ = c.nc.Close()
	eventually(t, "the connection is gone", func() bool { return value("connections", "") == 0 })
	m.Forget("v")
	if got := value("requests_total", "write"); got != -1 {
		t.Errorf("a forgotten volume still has %v requests", got)
	}
}

package nbd

import (
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
)

// CACHE reads what is allocated, and nothing of holes.
func TestCacheSkipsHoles(t *testing.T) {
	dev := &countingDevice{Memory: block.NewMemory(4 << 30)}
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: dev}}}, "unix")
	c := s.connect(t)
	c.optGo("v")
	const k = 64 << 10
	for _, off := range []uint64{0, 5*k + 1, 3 << 30} {
		c.expect(0, CmdWrite, 0, off, 1, []byte{1})
	}
	c.expect(0, CmdWrite, 0, 1<<20-k, 2*k, make([]byte, 2*k)) // over the border of two steps
	for _, w := range []struct {
		off, length uint64
		want        int64
	}{
		{0, 1<<32 - 1, 5 * k},
		{1, 6*k - 2, 2*k - 2},
		{1<<20 - 10, 20, 20},
		{2 << 20, 1 << 30, 0},
	} {
		before := dev.read.Load()
		c.expect(0, CmdCache, 0, w.off, uint32(w.length), nil)
		if n := dev.read.Load() - before; n != w.want {
			t.Errorf("caching [%d,+%d) read %d bytes, want %d", w.off, w.length, n, w.want)
		}
	}
}

// cacheServer serves a device whose first 32 MiB are allocated.
func cacheServer(t *testing.T, limits Limits, export Export) (*testServer, *block.Fault) {
	dev := block.NewFault(block.NewMemory(testSize))
	export.Device = dev
	s := newTestServer(t, &Server{Exports: testExports{"v": export}, Limits: limits}, "unix")
	c := s.connect(t)
	c.optGo("v")
	c.expect(0, CmdWrite, 0, 0, lockstep.MaxRequestBytes, make([]byte, lockstep.MaxRequestBytes))
	_ = c.nc.Close()
	eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
	return s, dev
}

// However many CACHE requests there are, one step is under way for an export, and others are served.
func TestCacheGivesWay(t *testing.T) {
	s, dev := cacheServer(t, Limits{}, Export{})
	hold := make(chan struct{})
	dev.Inject(block.FaultRule{Ops: block.OpRead, Hold: hold})
	clients := []*client{s.connect(t), s.connect(t), s.connect(t)}
	for _, c := range clients {
		c.optGo("v")
		for range 30 {
			c.send(CmdCache, 0, 0, 2<<20, nil)
		}
	}
	eventually(t, "the first step reads", func() bool { return dev.Calls(block.OpRead) == 1 })
	other := s.connect(t)
	other.optGo("v")
	for range 10 {
		other.expect(0, CmdWrite, 0, 40<<20, 1<<20, make([]byte, 1<<20))
	}
	if n := dev.Calls(block.OpRead); n != 1 {
		t.Fatalf("%d reads at the device", n)
	}
	eventually(t, "one step's memory is taken", func() bool {
		s.budget.mu.Lock()
		defer s.budget.mu.Unlock()
		return s.budget.used == cacheStepBytes
	})
	close(hold)
	for _, c := range clients {
		for range 30 {
			if r := c.recv(0); r.errno != 0 {
				t.Fatalf("reply %v", r)
			}
		}
	}
}

// A connection has one CACHE under way, so one with many has no more turns than one with few.
func TestCacheIsFairBetweenConnections(t *testing.T) {
	s, dev := cacheServer(t, Limits{}, Export{})
	dev.Inject(block.FaultRule{Ops: block.OpRead, Delay: 2 * time.Millisecond})
	many, one := s.connect(t), s.connect(t)
	many.optGo("v")
	one.optGo("v")
	for range 100 {
		many.send(CmdCache, 0, 0, 16<<20, nil)
	}
	before := dev.Calls(block.OpRead)
	one.expect(0, CmdCache, 0, 0, 8<<20, nil)
	if n := dev.Calls(block.OpRead) - before; n > 24 {
		t.Fatalf("%d steps until one of 8 was done", n)
	}
	_ = many.nc.Close()
	eventually(t, "one has left", func() bool { return s.Connections() == 1 })
}

// A CACHE is given up when its connection ends, in whichever way.
func TestCacheEndsWithTheConnection(t *testing.T) {
	closed := make(chan struct{})
	for _, w := range []struct {
		how string
		end func(c *client)
	}{
		{"lost", func(c *client) { _ = c.nc.Close() }},
		{"disconnected", func(c *client) { c.send(CmdDisc, 0, 0, 0, nil) }},
		{"export closed", func(*client) { close(closed) }},
	} {
		t.Run(w.how, func(t *testing.T) {
			s, dev := cacheServer(t, Limits{}, Export{Closed: closed})
			dev.Inject(block.FaultRule{Ops: block.OpRead, Delay: 30 * time.Millisecond})
			c := s.connect(t)
			c.optGo("v")
			for range 40 {
				c.send(CmdCache, 0, 0, 32<<20, nil)
			}
			eventually(t, "it reads", func() bool { return dev.Calls(block.OpRead) >= 2 })
			w.end(c)
			before := dev.Calls(block.OpRead)
			eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
			if n := dev.Calls(block.OpRead) - before; n > 4 {
				t.Fatalf("%d reads after the end", n)
			}
		})
	}
}

package nbd

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

func newClaim(s *share) (*claim, chan struct{}) {
	ready := make(chan struct{}, 1)
	return &claim{share: s, ready: ready}, ready
}

func granted(ready chan struct{}) bool {
	select {
	case <-ready:
		return true
	default:
		return false
	}
}

// An export holds no more than is left free, and one that holds nothing gets all of that.
func TestBudgetLeavesRoomForOthers(t *testing.T) {
	b := &budget{size: 100}
	var greedy, other, third share
	for range 5 {
		if c, _ := newClaim(&greedy); !b.take(c, 10) {
			t.Fatalf("refused with %d of %d held", greedy.held, b.size)
		}
	}
	if c, _ := newClaim(&greedy); b.take(c, 10) {
		t.Fatal("one export holds more than half")
	}
	if c, _ := newClaim(&other); !b.take(c, 25) {
		t.Fatal("the other export was refused")
	}
	if c, _ := newClaim(&third); !b.take(c, 25) {
		t.Fatal("the third export was refused what is free")
	}
	if c, _ := newClaim(&third); b.take(c, 1) {
		t.Fatal("more is held than there is")
	}
}

// Within an export the order is that of arrival, between exports whoever fits goes first.
func TestBudgetOrder(t *testing.T) {
	b := &budget{size: 100}
	var e, f share
	first, _ := newClaim(&e)
	if !b.take(first, 50) {
		t.Fatal("refused")
	}
	large, largeReady := newClaim(&e)
	small, smallReady := newClaim(&e)
	if b.take(large, 30) || b.take(small, 1) {
		t.Fatal("a claim overtook an earlier one of its export, or more is held than is left free")
	}
	if other, _ := newClaim(&f); !b.take(other, 20) {
		t.Fatal("the other export waits for the first")
	}
	b.release(&e, 12) // 38 and 20 held, 42 free: the small one would fit
	if granted(largeReady) || granted(smallReady) {
		t.Fatal("granted too early, or out of order")
	}
	b.release(&e, 18) // 20 and 20 held, 60 free
	if !granted(largeReady) {
		t.Fatal("the first in the queue was not granted")
	}
	if !b.take(large, 30) {
		t.Fatal("a granted claim was refused")
	}
	if e.held != 50 && e.held != 51 || granted(smallReady) != (e.held == 51) {
		t.Fatalf("%d held", e.held)
	}
}

// A claim that is given up makes way for the next, and gives back what it was granted.
func TestBudgetCancel(t *testing.T) {
	b := &budget{size: 100}
	var e share
	first, _ := newClaim(&e)
	if !b.take(first, 40) {
		t.Fatal("refused")
	}
	large, _ := newClaim(&e)
	small, smallReady := newClaim(&e)
	if b.take(large, 90) || b.take(small, 10) {
		t.Fatal("granted what does not fit, or out of order")
	}
	b.cancel(large)
	if !granted(smallReady) {
		t.Fatal("the next was not granted")
	}
	b.cancel(small)
	b.cancel(small) // holds nothing any more
	b.release(&e, 40)
	if b.used != 0 || e.held != 0 || e.waiting != 0 || len(b.queue) != 0 {
		t.Fatalf("%d used, %d held, %d waiting", b.used, e.held, e.waiting)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.wait(ctx, &e, 101); !errors.Is(err, context.Canceled) || e.waiting != 0 {
		t.Fatalf("wait: %v, %d waiting", err, e.waiting)
	}
}

// countingDevice counts the bytes of reads.
type countingDevice struct {
	*block.Memory
	read atomic.Int64
}

func (d *countingDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.read.Add(int64(len(p)))
	return d.Memory.ReadAt(ctx, p, off)
}

// Clients that ask for much and take no reply make the server hold no more than its budget, do not
// keep others from being served, and leave nothing behind.
func TestMemoryOfAllConnectionsIsBounded(t *testing.T) {
	const connections, request, memory = 40, 1 << 20, 26 << 20 // of which 10 MiB are the connections' own
	dev, other := &countingDevice{Memory: block.NewMemory(testSize)}, block.NewMemory(testSize)
	s := newTestServer(t, &Server{
		Exports: testExports{"v": {Device: dev}, "w": {Device: other}},
		Limits:  Limits{Connections: connections, Memory: memory, RequestBytes: request},
	}, "unix")
	if size := s.Limits.withDefaults().Memory; size != memory {
		t.Fatalf("the budget is %d", size)
	}
	var lazy []*client
	for range 20 {
		c := s.connect(t)
		c.optGo("v")
		for range 4 {
			c.send(CmdRead, 0, 0, request, nil)
		}
		lazy = append(lazy, c)
	}
	used := func() int64 {
		s.budget.mu.Lock()
		defer s.budget.mu.Unlock()
		return s.budget.used
	}
	eventually(t, "half of the budget is used", func() bool { return used() == 8<<20 })
	// Another export has the other half, the same one what is the connection's own.
	good, same := s.connect(t), s.connect(t)
	good.optGo("w")
	same.optGo("v")
	for range 3 {
		good.expect(0, CmdWrite, 0, 0, request, make([]byte, request))
		same.expect(0, CmdWrite, 0, 0, 256<<10, make([]byte, 256<<10))
		same.expectData(0, make([]byte, 256<<10))
	}
	if n := dev.read.Load() - 3*256<<10; n > 9<<20 {
		t.Fatalf("%d bytes were read for clients that take none", n)
	}
	for _, c := range lazy {
		_ = c.nc.Close()
	}
	eventually(t, "the lazy clients are gone", func() bool { return s.Connections() == 2 })
	same.expect(0, CmdRead, 0, 0, request, nil)
	eventually(t, "all was given back", func() bool { return used() == 0 })
}

// Small requests beyond the connection's own bytes go on while the export's part of the budget is
// used up: own bytes that come back serve a request that waits for the budget.
func TestOwnBytesServeWhoWaitsForTheBudget(t *testing.T) {
	s := newTestServer(t, &Server{
		Exports: testExports{"v": {Device: block.NewMemory(testSize)}},
		Limits:  Limits{Connections: 2, RequestBytes: 1 << 20, Memory: 1}, // the least: one request
	}, "unix")
	lazy, good := s.connect(t), s.connect(t)
	lazy.optGo("v")
	good.optGo("v")
	lazy.send(CmdRead, 0, 0, 1<<20, nil)
	eventually(t, "the budget is used up", func() bool {
		s.budget.mu.Lock()
		defer s.budget.mu.Unlock()
		return s.budget.used == s.budget.size
	})
	const count = 50
	var sent sync.WaitGroup
	sent.Go(func() {
		for range count {
			good.send(CmdRead, 0, 0, 64<<10, nil)
		}
	})
	for range count {
		good.recv(64 << 10)
	}
	sent.Wait()
	// A large one waits until the other client takes its reply.
	good.send(CmdRead, 0, 0, 1<<20, nil)
	time.Sleep(20 * time.Millisecond)
	lazy.recv(1 << 20)
	good.recv(1 << 20)
}

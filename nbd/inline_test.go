package nbd

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
)

// batched makes a device a block.Batcher that refuses every third request, as one does that would have to
// wait, and ends its writes within Run and from elsewhere in turn.
type batched struct{ block.Device }

func (d batched) NewBatch() block.Batch { return &testBatch{dev: d.Device} }

type testBatch struct {
	dev   block.Device
	n     int
	begun []func() block.Flusher
}

func (b *testBatch) takes(length int) bool {
	b.n++
	return b.n%3 != 0 && length > 0
}

func (b *testBatch) Write(p []byte, off int64, c block.Completion) bool {
	if !b.takes(len(p)) {
		return false
	}
	b.begun = append(b.begun, func() block.Flusher { return c.Done(b.dev.WriteAt(context.Background(), p, off, false)) })
	return true
}

func (b *testBatch) Read(p []byte, off int64) bool {
	return b.takes(len(p)) && b.dev.ReadAt(context.Background(), p, off) == nil
}

func (b *testBatch) Run() {
	for i, write := range b.begun {
		if i%2 == 0 {
			go func() { write().Flush() }()
		} else {
			write().Flush()
		}
	}
	b.begun = b.begun[:0]
}

// batchedServer serves a batched device whose first MiB holds its writes until hold is closed.
func batchedServer(t *testing.T, limits Limits) (s *testServer, hold chan struct{}) {
	dev := block.NewFault(block.NewMemory(testSize))
	hold = make(chan struct{})
	dev.Inject(block.FaultRule{Ops: block.OpWrite, Range: lockstep.Extent{Off: 0, Len: 1 << 20}, Hold: hold})
	return newTestServer(t, &Server{Exports: testExports{"v": {Device: asyncOnly{dev}}}, Limits: limits}, "unix"), hold
}

// asyncOnly is batched, but takes every write and ends none within Run.
type asyncOnly struct{ block.Device }

func (d asyncOnly) NewBatch() block.Batch { return &asyncBatch{testBatch{dev: d.Device}} }

type asyncBatch struct{ testBatch }

func (b *asyncBatch) Write(p []byte, off int64, c block.Completion) bool {
	b.n = 0
	return b.testBatch.Write(p, off, c)
}

func (b *asyncBatch) Run() {
	for _, write := range b.begun {
		go func() { write().Flush() }()
	}
	b.begun = b.begun[:0]
}

// A write of a batch that does not end keeps neither later requests nor the answers of others waiting.
func TestBatchedWriteThatIsHeld(t *testing.T) {
	s, hold := batchedServer(t, Limits{})
	c := s.connect(t)
	c.optGo("v")
	held := map[uint64]bool{}
	for range 20 {
		held[c.send(CmdWrite, 0, 0, 4096, make([]byte, 4096))] = true
	}
	for i := range 100 {
		data := bytes.Repeat([]byte{byte(i)}, 4096)
		c.expect(0, CmdWrite, 0, 2<<20, 4096, data)
		c.expectData(2<<20, data)
	}
	c.expect(0, CmdFlush, 0, 0, 0, nil)
	close(hold)
	for len(held) > 0 {
		r := c.recv(0)
		if !held[r.cookie] || r.errno != 0 {
			t.Fatalf("reply to %d, errno %d", r.cookie, r.errno)
		}
		delete(held, r.cookie)
	}
}

// What a batch has begun may hold the room that the next request of the same packet waits for: the batch
// is carried out before the reader waits.
func TestBatchEndsBeforeTheReaderWaits(t *testing.T) {
	for name, limits := range map[string]Limits{"slots": {Requests: 2}, "bytes": {Bytes: 64 << 10}} {
		t.Run(name, func(t *testing.T) {
			s, hold := batchedServer(t, limits)
			close(hold)
			c := s.connect(t)
			c.optGo("v")
			var packet []byte
			const count = 32
			for i := range count {
				packet = append(packet, requestBytes(0, CmdWrite, uint64(i)*4096, 4096, make([]byte, 4096))...)
			}
			c.write(packet)
			for range count {
				if r := c.recv(0); r.errno != 0 {
					t.Fatalf("errno %d", r.errno)
				}
			}
			// And before it waits for data that has not come: the answer is owed to who sends no more.
			c.write(requestBytes(0, CmdWrite, 0, 4096, make([]byte, 4096)), requestBytes(0, CmdWrite, 8192, 4096, make([]byte, 100)))
			if r := c.recv(0); r.errno != 0 {
				t.Fatalf("errno %d", r.errno)
			}
			c.write(make([]byte, 3996))
			if r := c.recv(0); r.errno != 0 {
				t.Fatalf("errno %d", r.errno)
			}
		})
	}
}

// The end of a connection waits for the writes of its batches: their memory is theirs.
func TestConnectionEndsAfterBatchedWrites(t *testing.T) {
	s, hold := batchedServer(t, Limits{DrainTimeout: 50 * time.Millisecond})
	c := s.connect(t)
	c.optGo("v")
	c.send(CmdWrite, 0, 0, 4096, make([]byte, 4096))
	c.expect(0, CmdWrite, 0, 2<<20, 4096, make([]byte, 4096)) // the first one is begun
	c.send(CmdDisc, 0, 0, 0, nil)
	_ = c.nc.Close()
	time.Sleep(4 * 50 * time.Millisecond)
	if n := s.Connections(); n != 1 {
		t.Fatalf("%d connections while a write is under way", n)
	}
	close(hold)
	eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
}

// What a batch has begun is carried out when broken framing behind it ends the connection.
func TestBatchBeforeBrokenFraming(t *testing.T) {
	mem := block.NewMemory(testSize)
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: asyncOnly{mem}}}}, "unix")
	c := s.connect(t)
	c.optGo("v")
	c.write(append(requestBytes(0, CmdWrite, 0, 4096, bytes.Repeat([]byte{7}, 4096)), make([]byte, RequestBytes)...))
	eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
	got := make([]byte, 4096)
	if err := mem.ReadAt(context.Background(), got, 0); err != nil || got[4095] != 7 {
		t.Fatalf("the write was not carried out: %v", err)
	}
}

// A client that takes no replies is dropped, and what it made the server hold is free, also where the
// replies were first tried without waiting.
func TestStalledReplyOfABatch(t *testing.T) {
	dev := batched{block.NewMemory(testSize)}
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: dev}}, Limits: Limits{StallTimeout: testStall}}, "unix")
	c := s.connect(t)
	c.optGo("v")
	c.expect(0, CmdWrite, 0, 0, 4096, make([]byte, 4096))
	go func() { // it blocks when the server has stopped reading
		for range 2000 {
			if _, err := c.nc.Write(requestBytes(0, CmdRead, 0, 32<<10, nil)); err != nil {
				return
			}
		}
	}()
	eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
	if s.budget.used != 0 {
		t.Fatalf("%d bytes are still held", s.budget.used)
	}
}

// A client that reads slowly gets every byte, in order, of replies that went out in parts.
func TestSlowReplyOfABatch(t *testing.T) {
	mem := block.NewMemory(testSize)
	const size, count = 48 << 10, 100
	want := bytes.Repeat([]byte("lockstep"), size/8)
	if err := mem.WriteAt(context.Background(), want, 0, false); err != nil {
		t.Fatal(err)
	}
	// With few slots, one that is not given back is missed.
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: batched{mem}}}, Limits: Limits{Requests: 8}}, "unix")
	c := s.connect(t)
	c.optGo("v")
	for range count {
		c.send(CmdRead, 0, 0, size, nil)
	}
	time.Sleep(100 * time.Millisecond) // the socket is full
	for range count {
		if r := c.recv(size); r.errno != 0 || !bytes.Equal(r.data, want) {
			t.Fatalf("errno %d, %d bytes, or other bytes", r.errno, len(r.data))
		}
	}
}

package nbd

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

const testStall = 200 * time.Millisecond

func stallServer(t *testing.T, network string) (*testServer, *block.Fault, chan struct{}) {
	return heldServer(t, network, Limits{StallTimeout: testStall, RequestBytes: 16 << 20}, Export{})
}

var networks = []string{"unix", "tcp"}

// A client that takes no replies is dropped, and what it made the server hold is free again.
func TestStalledReplyEndsTheConnection(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			s, _, _ := stallServer(t, network)
			c := s.connect(t)
			c.optGo("v")
			c.expect(0, CmdWrite, 0, 2<<20, 3, []byte("abc"))
			start := time.Now()
			for range 4 {
				c.send(CmdRead, 0, 0, 16<<20, nil)
			}
			eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
			if took := time.Since(start); took < testStall {
				t.Fatalf("dropped after %v", took)
			}
			if s.budget.used != 0 {
				t.Fatalf("%d bytes are still held", s.budget.used)
			}
		})
	}
}

// A client that takes its reply slowly is not dropped, though it needs much longer than the limit.
func TestSlowReplyIsProgress(t *testing.T) {
	s, _, _ := stallServer(t, "unix")
	for _, count := range []uint32{1, 2} { // one piece, and several
		c := s.connect(t)
		c.optGo("v")
		for range count {
			c.send(CmdRead, 0, 0, 8<<20, nil)
		}
		got, total := 0, int(count)*(SimpleReplyBytes+8<<20)
		start := time.Now()
		for got < total {
			got += len(c.read(min(total-got, 512<<10)))
			time.Sleep(testStall / 4)
		}
		if took := time.Since(start); took < 3*testStall {
			t.Fatalf("it took only %v", took)
		}
		c.expect(0, CmdFlush, 0, 0, 0, nil)
	}
}

// A client that announces data and does not send it is dropped, whether the data is wanted or not.
func TestStalledPayloadEndsTheConnection(t *testing.T) {
	for _, network := range networks {
		for name, off := range map[string]uint64{"taken": 2 << 20, "skipped": testSize} {
			t.Run(network+" "+name, func(t *testing.T) {
				s, _, _ := stallServer(t, network)
				c := s.connect(t)
				c.optGo("v")
				start := time.Now()
				c.write(u32(MagicRequest), u16(0), u16(CmdWrite), u64(1), u64(off), u32(1<<20), make([]byte, 4096))
				eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
				if took := time.Since(start); took < testStall {
					t.Fatalf("dropped after %v", took)
				}
				if s.budget.used != 0 {
					t.Fatalf("%d bytes are still held", s.budget.used)
				}
			})
		}
	}
}

// Data that comes slowly is progress, and an idle client may take its time afterwards.
func TestSlowPayloadIsProgress(t *testing.T) {
	s, _, _ := stallServer(t, "tcp")
	c := s.connect(t)
	c.optGo("v")
	data := bytes.Repeat([]byte{7}, 16<<10)
	for _, off := range []uint64{2 << 20, testSize} { // taken, and skipped
		c.write(u32(MagicRequest), u16(0), u16(CmdWrite), u64(9), u64(off), u32(uint32(len(data))))
		for i := range 8 {
			time.Sleep(testStall / 4)
			c.write(data[i*2<<10 : (i+1)*2<<10])
		}
		if r := c.recv(0); r.cookie != 9 || (r.errno == 0) != (off != testSize) {
			t.Fatalf("reply %v", r)
		}
	}
	c.expectData(2<<20, data)
	time.Sleep(3 * testStall)
	c.expectData(2<<20, data)
	if n := s.Connections(); n != 1 {
		t.Fatalf("%d connections", n)
	}
}

// The device may take as long as it likes.
func TestHeldRequestIsNoStall(t *testing.T) {
	s, _, hold := stallServer(t, "unix")
	c := s.connect(t)
	c.optGo("v")
	cookie := c.send(CmdWrite, 0, 0, 1<<20, make([]byte, 1<<20))
	time.Sleep(5 * testStall)
	close(hold)
	if r := c.recv(0); r.cookie != cookie || r.errno != 0 {
		t.Fatalf("reply %v", r)
	}
}

// A closing export ends the reader in good order also where a client does not send a request's data:
// what is in flight is answered, and not given up as it is when a client stalls.
func TestExportClosedDuringPayload(t *testing.T) {
	const drain = time.Second
	closed := make(chan struct{})
	s, dev, hold := heldServer(t, "unix", Limits{DrainTimeout: drain}, Export{Closed: closed})
	c := s.connect(t)
	c.optGo("v")
	held := c.send(CmdWrite, 0, 0, 1, []byte{1})
	eventually(t, "the write is held", func() bool { return dev.Calls(block.OpWrite) == 1 })
	c.write(u32(MagicRequest), u16(0), u16(CmdWrite), u64(99), u64(0), u32(1<<20), make([]byte, 100))
	close(closed)
	time.Sleep(drain * 3 / 2)
	close(hold)
	if r := c.recv(0); r.cookie != held || r.errno != 0 {
		t.Fatalf("reply %v", r)
	}
	c.expectClosed()
}

// A deadline for data does not undo the one that ends the reader.
func TestReadDeadlineAfterTheLast(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	tr := &transmission{conn: &conn{nc: ours}}
	tr.stopRead.Store(true)
	if err := tr.setReadDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > testTimeout/2 {
		t.Fatalf("read: %v after %v", err, time.Since(start))
	}
}

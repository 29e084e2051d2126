package replica

import (
	"bufio"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/internal/nowait"
	"github.com/lockstep-dr/lockstep/wire"
)

// tcpLink is a link over a real socket, with a small buffer, and its other end.
func tcpLink(t *testing.T) (*link, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	if tcp, ok := near.(*net.TCPConn); !ok || tcp.SetWriteBuffer(16<<10) != nil {
		t.Fatal("no small buffer")
	}
	if err := other.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	l := newBed(t).link(1).l
	l.conn, l.nowait = near, nowait.New(near)
	t.Cleanup(l.close)
	return l, other
}

// TestPushGoesOnWhereItStopped: what a full socket does not take at once follows, whole and in order.
func TestPushGoesOnWhereItStopped(t *testing.T) {
	l, other := tcpLink(t)
	const frames = 64
	for i := range frames {
		body := make([]byte, 200_000)
		for j := range body {
			body[j] = byte(i + j)
		}
		l.enqueue(wire.Header{Kind: wire.KindWrite, Seq: uint64(i + 1), Length: uint64(len(body))}, body)
	}
	began := time.Now()
	l.push()
	if took := time.Since(began); took > 5*time.Second {
		t.Fatalf("push took %v with nobody reading", took)
	}
	r := bufio.NewReader(other)
	var scratch [wire.HeaderSize]byte
	for i := range frames {
		h, err := wire.ReadHeader(r, &scratch)
		if err != nil || h.Seq != uint64(i+1) {
			t.Fatalf("frame %d: number %d, %v", i, h.Seq, err)
		}
		if err := wire.ReadBody(r, &h, make([]byte, h.BodyLen)); err != nil { // and its checksum
			t.Fatalf("frame %d: %v", i, err)
		}
	}
}

// TestPushLeavesNothingBehind: a frame that is queued while somebody writes is that one's to send.
func TestPushLeavesNothingBehind(t *testing.T) {
	l, other := tcpLink(t)
	r := bufio.NewReader(other)
	var scratch [wire.HeaderSize]byte
	const senders = 4
	for round := range 2000 {
		var wg sync.WaitGroup
		for range senders {
			wg.Go(func() {
				l.enqueue(wire.Header{Kind: wire.KindFlush, Seq: l.nextSeq()}, nil)
				l.push()
			})
		}
		for i := range senders {
			if _, err := wire.ReadHeader(r, &scratch); err != nil {
				t.Fatalf("round %d: %d of %d frames came: %v", round, i, senders, err)
			}
		}
		wg.Wait()
	}
}

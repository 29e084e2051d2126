package replica

import (
	"context"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/wire"
)

// exhausted is a listener that has no descriptor for the next connections.
type exhausted struct {
	net.Listener
	left atomic.Int32
}

func (l *exhausted) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// Goal: a node that has no descriptor left for an incoming link goes on, and takes links again when it
// has some: its end would take every volume that it serves along.
func TestServeOutlivesAWantOfDescriptors(t *testing.T) {
	p := newPair(t)
	p.sync(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &exhausted{Listener: inner}
	ln.left.Store(3)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- p.b.Serve(ctx, ln) }()
	conn, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	hello := wire.Hello{Cluster: "another", To: "b", Purpose: wire.PurposeHeartbeat}
	if err := wire.WriteJSON(conn, wire.Header{Kind: wire.KindHello}, hello); err != nil {
		t.Fatal(err)
	}
	var answer wire.HelloReply
	if _, err := wire.ReadJSON(conn, wire.KindHelloReply, &answer); err != nil {
		select {
		case why := <-served:
			t.Fatalf("no answer (%v): the listener was given up: %v", err, why)
		default:
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

package cable

import (
	"io"
	"net"
	"testing"
	"time"
)

// serve is the address of a listener that ends with the test, each of whose connections is handled.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	return ln.Addr().String()
}

// echo answers every byte with itself.
func echo(t *testing.T) string {
	t.Helper()
	return serve(t, func(c net.Conn) { _, _ = io.Copy(c, c); _ = c.Close() })
}

func dial(t *testing.T, c *Cable) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", c.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// answers asks with one byte and reports whether it comes back within a time.
func answers(t *testing.T, conn net.Conn, within time.Duration) bool {
	t.Helper()
	if _, err := conn.Write([]byte{1}); err != nil {
		return false
	}
	return arrives(t, conn, within)
}

func arrives(t *testing.T, conn net.Conn, within time.Duration) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err == nil
}

func TestACutHoldsBytesAndAJoinLetsThemGo(t *testing.T) {
	for name, cut := range map[string][2]bool{"both ways": {true, true}, "there": {true, false}, "back": {false, true}} {
		t.Run(name, func(t *testing.T) {
			c, err := New(echo(t))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conn := dial(t, c)
			if !answers(t, conn, 10*time.Second) {
				t.Fatal("no answer through a whole cable")
			}
			c.Cut(cut[0], cut[1])
			if answers(t, conn, 100*time.Millisecond) {
				t.Fatal("an answer through a cut cable")
			}
			late := dial(t, c)
			if answers(t, late, 100*time.Millisecond) {
				t.Fatal("an answer on a connection made during the cut")
			}
			c.Join()
			if !arrives(t, conn, 10*time.Second) || !arrives(t, late, 10*time.Second) {
				t.Fatal("what was held did not arrive")
			}
		})
	}
}

func TestAResetEndsConnectionsAndTakesNewOnes(t *testing.T) {
	c, err := New(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := dial(t, c)
	if !answers(t, conn, 10*time.Second) {
		t.Fatal("no answer")
	}
	c.Reset()
	if answers(t, conn, 10*time.Second) {
		t.Fatal("an answer after the reset")
	}
	if !answers(t, dial(t, c), 10*time.Second) {
		t.Fatal("no answer on a new connection")
	}
}

// What was sent before a delay, and during it on the same connection, arrives after what later
// connections send, and after its sender is gone.
func TestADelayHoldsOldConnectionsOnly(t *testing.T) {
	got := make(chan byte, 8)
	c, err := New(serve(t, func(conn net.Conn) {
		for b := make([]byte, 1); ; {
			if _, err := conn.Read(b); err != nil {
				return
			}
			got <- b[0]
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	next := func(want byte) {
		t.Helper()
		select {
		case have := <-got:
			if have != want {
				t.Fatalf("%d arrived instead of %d", have, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%d did not arrive", want)
		}
	}
	send := func(conn net.Conn, b byte) {
		t.Helper()
		if _, err := conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	old := dial(t, c)
	send(old, 1)
	next(1)
	c.Delay()
	send(old, 2)
	_ = old.Close()
	later := dial(t, c)
	send(later, 3)
	next(3)
	select {
	case b := <-got:
		t.Fatalf("%d arrived in spite of the delay", b)
	case <-time.After(100 * time.Millisecond):
	}
	c.Deliver()
	next(2)
	send(later, 4)
	next(4)
}

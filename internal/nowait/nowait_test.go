package nowait_test

import (
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/lockstep-dr/lockstep/internal/nowait"
)

func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestWriteDoesNotWait fills a socket whose other end reads nothing, and hands the rest to the connection.
func TestWriteDoesNotWait(t *testing.T) {
	a, b := pair(t)
	w := nowait.New(a)
	if w == nil {
		t.Fatal("no writer for a TCP connection")
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	n, stuck := 0, false
	for n < len(want) && !stuck {
		m, err := w.Write(want[n:min(len(want), n+1<<19)], nil, want[min(len(want), n+1<<19):min(len(want), n+1<<20)])
		if err != nil {
			t.Fatal(err)
		}
		n += m
		stuck = m == 0
	}
	if !stuck {
		t.Fatalf("%d bytes went to who does not read", n)
	}
	go func() {
		_, _ = a.Write(want[n:])
		a.Close()
	}()
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
	}
}

func TestClosed(t *testing.T) {
	a, _ := pair(t)
	w := nowait.New(a)
	a.Close()
	if n, err := w.Write([]byte("x")); err == nil {
		t.Fatalf("%d bytes written to a closed connection", n)
	}
	if c, _ := net.Pipe(); nowait.New(c) != nil {
		t.Fatal("a pipe has no socket")
	}
}

func TestWriteDoesNotAllocate(t *testing.T) {
	a, b := pair(t)
	go func() { _, _ = io.Copy(io.Discard, b) }()
	w := nowait.New(a)
	p := make([]byte, 16)
	if n := testing.AllocsPerRun(100, func() { _, _ = w.Write(p) }); n > 0 {
		t.Fatalf("%v allocations for a write", n)
	}
}

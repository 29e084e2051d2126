package peertls_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/internal/ca"
	"github.com/lockstep-dr/lockstep/internal/peertls"
)

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportCPU adds what both ends used since began: on a busy machine that varies less than time.
func reportCPU(b *testing.B, began time.Duration) {
	b.Helper()
	b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
}

// ends connects two nodes over the loopback, with TLS if they have certificates.
func ends(b *testing.B, n1, n2 *peertls.Keeper) (near, far net.Conn) {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		b.Fatal(err)
	}
	if n1 == nil {
		return near, far
	}
	served := make(chan error, 1)
	rawFar := far
	go func() {
		var err error
		far, _, err = n2.Server(b.Context(), rawFar)
		served <- err
	}()
	near, err = n1.Client(b.Context(), near, "n2")
	if serr := <-served; err != nil || serr != nil {
		b.Fatal(err, serr)
	}
	return near, far
}

// keepers gives two nodes their certificates, or none.
func keepers(b *testing.B, secure bool) (n1, n2 *peertls.Keeper) {
	b.Helper()
	if !secure {
		return nil, nil
	}
	s := newSite(b)
	one, err := peertls.Open(s.issue(ca.KindNode, "n1", time.Now()), "n1", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	two, err := peertls.Open(s.issue(ca.KindNode, "n2", time.Now()), "n2", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	return one, two
}

// BenchmarkStream is what bytes cost from one end to the other, in writes of that size.
func BenchmarkStream(b *testing.B) {
	for _, secure := range []bool{false, true} {
		for _, size := range []int{4192, 256 << 10} {
			b.Run(fmt.Sprintf("tls=%t/%d", secure, size), func(b *testing.B) {
				n1, n2 := keepers(b, secure)
				near, far := ends(b, n1, n2)
				defer far.Close()
				done := make(chan error, 1)
				go func() {
					_, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{far}, make([]byte, 64<<10))
					done <- err
				}()
				buf := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				began := cpu(b)
				for b.Loop() {
					_, err := near.Write(buf)
					if err != nil {
						b.Fatal(err)
					}
				}
				_ = near.Close()
				<-done
				reportCPU(b, began)
			})
		}
	}
}

// BenchmarkRoundTrip is a frame of a 4 KiB write one way and its answer the other.
func BenchmarkRoundTrip(b *testing.B) {
	for _, secure := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%t", secure), func(b *testing.B) {
			n1, n2 := keepers(b, secure)
			near, far := ends(b, n1, n2)
			defer near.Close()
			defer far.Close()
			go func() {
				buf := make([]byte, 4192)
				for {
					if _, err := io.ReadFull(far, buf); err != nil {
						return
					}
					if _, err := far.Write(buf[:96]); err != nil {
						return
					}
				}
			}()
			buf := make([]byte, 4192)
			b.ReportAllocs()
			began := cpu(b)
			for b.Loop() {
				if _, err := near.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(near, buf[:96]); err != nil {
					b.Fatal(err)
				}
			}
			reportCPU(b, began)
		})
	}
}

// BenchmarkHandshake is what a new link costs, both ends and the connection.
func BenchmarkHandshake(b *testing.B) {
	n1, n2 := keepers(b, true)
	began := cpu(b)
	for b.Loop() {
		near, far := ends(b, n1, n2)
		_ = near.Close()
		_ = far.Close()
	}
	reportCPU(b, began)
}

package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

// nullDevice takes time but no memory, so that what is measured is the server.
type nullDevice struct {
	*block.Memory
	latency time.Duration
}

func (d nullDevice) WriteAt(context.Context, []byte, int64, bool) error {
	if d.latency > 0 {
		time.Sleep(d.latency)
	}
	return nil
}

func (d nullDevice) ReadAt(context.Context, []byte, int64) error { return nil }

// BenchmarkWrite and BenchmarkRead keep depth requests in flight over a Unix socket. The client
// allocates nothing, so allocs/op are those of the server; the aim is zero.
func BenchmarkWrite(b *testing.B) {
	for _, c := range []struct {
		name    string
		depth   int
		latency time.Duration
	}{
		{"qd1", 1, 0}, {"qd32", 32, 0}, {"qd32_100us", 32, 100 * time.Microsecond},
	} {
		b.Run(c.name, func(b *testing.B) {
			benchmark(b, nullDevice{block.NewMemory(1 << 30), c.latency}, CmdWrite, 4096, c.depth)
		})
	}
	b.Run("1M_qd8", func(b *testing.B) {
		benchmark(b, nullDevice{block.NewMemory(1 << 30), 0}, CmdWrite, 1<<20, 8)
	})
}

func BenchmarkRead(b *testing.B) {
	b.Run("qd1", func(b *testing.B) { benchmark(b, nullDevice{block.NewMemory(1 << 30), 0}, CmdRead, 4096, 1) })
	b.Run("qd32", func(b *testing.B) { benchmark(b, nullDevice{block.NewMemory(1 << 30), 0}, CmdRead, 4096, 32) })
	b.Run("1M_qd8", func(b *testing.B) { benchmark(b, nullDevice{block.NewMemory(1 << 30), 0}, CmdRead, 1<<20, 8) })
}

func benchmark(b *testing.B, dev block.Device, cmd uint16, size, depth int) {
	srv := newTestServer(b, &Server{Exports: testExports{"v": {Device: dev}}}, "unix")
	c := srv.connect(b)
	c.optGo("v")
	frame := make([]byte, RequestBytes, RequestBytes+size)
	binary.BigEndian.PutUint32(frame, MagicRequest)
	binary.BigEndian.PutUint16(frame[6:], cmd)
	binary.BigEndian.PutUint32(frame[24:], uint32(size))
	reply := make([]byte, SimpleReplyBytes)
	if cmd == CmdWrite {
		frame = frame[:RequestBytes+size]
	} else {
		reply = make([]byte, SimpleReplyBytes+size)
	}
	w := bufio.NewWriterSize(c.nc, 128<<10)
	r := bufio.NewReaderSize(c.nc, 128<<10)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	sent, received := 0, 0
	for b.Loop() {
		for sent-received < depth {
			if _, err := w.Write(frame); err != nil {
				b.Fatal(err)
			}
			sent++
		}
		if r.Buffered() < len(reply) {
			if err := w.Flush(); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := io.ReadFull(r, reply); err != nil {
			b.Fatal(err)
		}
		received++
	}
}

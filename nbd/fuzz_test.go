package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

// script is a connection whose client says what it has to say, reads everything and leaves.
type script struct {
	in     *bytes.Reader
	mu     sync.Mutex // guards out, closed
	out    bytes.Buffer
	closed bool
}

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	return s.in.Read(p)
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	return s.out.Write(p)
}

func (s *script) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (*script) LocalAddr() net.Addr              { return nil }
func (*script) RemoteAddr() net.Addr             { return nil }
func (*script) SetDeadline(time.Time) error      { return nil }
func (*script) SetReadDeadline(time.Time) error  { return nil }
func (*script) SetWriteDeadline(time.Time) error { return nil }

// strictDevice fails the test on calls that the server must not let through.
type strictDevice struct {
	*block.Memory
	t *testing.T
}

func (d strictDevice) check(off, length int64) {
	if block.CheckRange(off, length, d.Size()) != nil {
		d.t.Errorf("the device was asked for [%d,+%d) of %d", off, length, d.Size())
	}
}

func (d strictDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.check(off, int64(len(p)))
	return d.Memory.ReadAt(ctx, p, off)
}

func (d strictDevice) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	d.check(off, int64(len(p)))
	return d.Memory.WriteAt(ctx, p, off, fua)
}

func (d strictDevice) Trim(ctx context.Context, off, length int64, fua bool) error {
	d.check(off, length)
	return d.Memory.Trim(ctx, off, length, fua)
}

func (d strictDevice) Zero(ctx context.Context, off, length int64, flags block.ZeroFlags) error {
	d.check(off, length)
	return d.Memory.Zero(ctx, off, length, flags)
}

func (d strictDevice) Extents(ctx context.Context, off, length int64) ([]block.ExtentState, error) {
	d.check(off, length)
	return d.Memory.Extents(ctx, off, length)
}

// fuzzExports counts what is open.
type fuzzExports struct {
	t    *testing.T
	open atomic.Int64
}

func (*fuzzExports) List(context.Context) []string { return []string{"v", "w"} }

func (e *fuzzExports) Open(_ context.Context, name string) (Export, error) {
	if name != "v" && name != "w" {
		return Export{}, fmt.Errorf("no volume %q", name)
	}
	e.open.Add(1)
	return Export{
		Device:   batched{strictDevice{block.NewMemory(256 << 10), e.t}},
		ReadOnly: name == "w",
		Release:  func() { e.open.Add(-1) },
	}, nil
}

// play serves one scripted connection and returns what the server sent.
func play(t *testing.T, input []byte) []byte {
	e := &fuzzExports{t: t}
	srv := &Server{Exports: e}
	srv.prepare()
	conn := &script{in: bytes.NewReader(input)}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	done := make(chan struct{})
	go func() {
		defer close(done)
		newConn(context.Background(), srv, conn, Limits{}.withDefaults()).serve()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the connection did not end")
	}
	runtime.ReadMemStats(&after)
	// What a connection costs, what its input may make it hold, and what it answered.
	if limit := uint64(16<<20 + 512*len(input) + 8*conn.out.Len()); after.TotalAlloc-before.TotalAlloc > limit {
		t.Errorf("%d bytes of input made the server allocate %d bytes", len(input), after.TotalAlloc-before.TotalAlloc)
	}
	if n := e.open.Load(); n != 0 {
		t.Errorf("%d exports are still open", n)
	}
	return conn.out.Bytes()
}

func optionBytes(opt uint32, data []byte) []byte {
	return bytes.Join([][]byte{u64(MagicOption), u32(opt), u32(uint32(len(data))), data}, nil)
}

func requestBytes(flags, cmd uint16, off uint64, length uint32, data []byte) []byte {
	return bytes.Join([][]byte{u32(MagicRequest), u16(flags), u16(cmd), u64(1), u64(off), u32(length), data}, nil)
}

// FuzzNegotiation feeds a whole connection from the client flags on.
func FuzzNegotiation(f *testing.F) {
	start := u32(3)
	for _, options := range [][][]byte{
		{optionBytes(OptList, nil), optionBytes(OptAbort, nil)},
		{optionBytes(OptStructuredReply, nil), optionBytes(OptSetMetaContext, metaData("v", ContextBaseAllocation)), optionBytes(OptGo, goData("v", InfoBlockSize, InfoName))},
		{optionBytes(OptStructuredReply, nil), optionBytes(OptListMetaContext, metaData("v")), optionBytes(OptListMetaContext, metaData("w", "base:"))},
		{optionBytes(OptInfo, goData("v", 0, 1, 2, 3, 4)), optionBytes(OptInfo, goData("x")), optionBytes(OptExportName, []byte("w"))},
		{optionBytes(OptStartTLS, nil), optionBytes(OptGo, append(u32(0xffffffff), 'v', 0, 0))},
		{optionBytes(OptSetMetaContext, append(str32("v"), u32(0xffffffff)...)), optionBytes(77, make([]byte, 300))},
		{optionBytes(OptExportName, []byte("v")), requestBytes(0, CmdRead, 0, 4096, nil), requestBytes(0, CmdDisc, 0, 0, nil)},
		{append(append(u64(MagicOption), u32(OptInfo)...), u32(0xfffffff0)...)},
	} {
		f.Add(append(bytes.Clone(start), bytes.Join(options, nil)...))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		out := play(t, input)
		if len(out) < GreetingBytes || binary.BigEndian.Uint64(out) != MagicInit {
			t.Fatalf("no greeting: %x", out)
		}
	})
}

// FuzzTransmission feeds requests after a good negotiation; the first byte chooses its variant. With
// structured replies every answer can be parsed, and is.
func FuzzTransmission(f *testing.F) {
	data := bytes.Repeat([]byte{0x5A}, 4096)
	for variant := range byte(4) {
		for _, requests := range [][][]byte{
			{requestBytes(CmdFlagFUA, CmdWrite, 1, 4096, data), requestBytes(0, CmdRead, 0, 8192, nil), requestBytes(0, CmdFlush, 0, 0, nil), requestBytes(0, CmdDisc, 0, 0, nil)},
			{requestBytes(0, CmdTrim, 0, 256<<10, nil), requestBytes(CmdFlagNoHole, CmdWriteZeroes, 65536, 65537, nil), requestBytes(CmdFlagReqOne, CmdBlockStatus, 0, 256<<10, nil), requestBytes(0, CmdBlockStatus, 5, 1<<17, nil)},
			{requestBytes(CmdFlagDF, CmdRead, 1, 3, nil), requestBytes(0, CmdCache, 0, 0xffffffff, nil), requestBytes(0, CmdRead, 1<<63, 1, nil), requestBytes(0, 99, 0, 0, nil)},
			{requestBytes(0, CmdWrite, 256<<10, 16, data[:16]), requestBytes(1<<15, CmdWrite, 0, 16, data[:16]), requestBytes(0, CmdWrite, 0, 0xffffffff, data)},
			{requestBytes(0, CmdRead, 0, 0, nil), requestBytes(0, CmdWrite, 0, 4096, data[:100])},
		} {
			f.Add(append([]byte{variant}, bytes.Join(requests, nil)...))
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) == 0 {
			return
		}
		structured, name := input[0]&1 != 0, map[bool]string{false: "v", true: "w"}[input[0]&2 != 0]
		prefix := u32(ClientFlagNoZeroes | ClientFlagFixedNewstyle)
		handshake := GreetingBytes
		if structured {
			prefix = append(prefix, optionBytes(OptStructuredReply, nil)...)
			prefix = append(prefix, optionBytes(OptSetMetaContext, metaData(name, ContextBaseAllocation))...)
			handshake += OptionReplyBytes + OptionReplyBytes + 4 + len(ContextBaseAllocation) + OptionReplyBytes
		}
		prefix = append(prefix, optionBytes(OptExportName, []byte(name))...)
		handshake += 8 + 2
		out := play(t, append(prefix, input[1:]...))
		if len(out) < handshake {
			t.Fatalf("handshake of %d bytes", len(out))
		}
		if structured {
			parseReplies(t, out[handshake:])
		}
	})
}

// parseReplies checks the framing of replies of which only structured ones carry data.
func parseReplies(t *testing.T, out []byte) {
	r := bytes.NewReader(out)
	for {
		var h [StructuredReplyBytes]byte
		if _, err := io.ReadFull(r, h[:SimpleReplyBytes]); err == io.EOF {
			return
		} else if err != nil {
			t.Fatalf("reply cut short: %v", err)
		}
		switch binary.BigEndian.Uint32(h[:]) {
		case MagicSimpleReply:
			if errno := binary.BigEndian.Uint32(h[4:]); errno != 0 {
				t.Fatalf("error %d without its text", errno)
			}
		case MagicStructuredReply:
			if _, err := io.ReadFull(r, h[SimpleReplyBytes:]); err != nil {
				t.Fatalf("chunk header cut short: %v", err)
			}
			n := int64(binary.BigEndian.Uint32(h[16:]))
			if n > int64(r.Len()) {
				t.Fatalf("chunk of %d bytes, %d are left", n, r.Len())
			}
			if _, err := r.Seek(n, io.SeekCurrent); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("reply %x", h)
		}
	}
}

package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
)

// testTimeout bounds every exchange of a test.
const testTimeout = 20 * time.Second

// testExports serves devices by name; other names are not found, or refused by refusals.
type testExports map[string]Export

var refusals = map[string]error{
	"dr":      errors.New("volume dr is the DR disk of group g; its primary is in az1; it opens after a failover"),
	"demoted": fmt.Errorf("volume demoted: %w", lockstep.ErrDemoted),
}

func (e testExports) List(context.Context) []string {
	var names []string
	for name := range e {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (e testExports) Open(_ context.Context, name string) (Export, error) {
	if x, ok := e[name]; ok {
		return x, nil
	}
	if err := refusals[name]; err != nil {
		return Export{}, err
	}
	return Export{}, fmt.Errorf("volume %q: %w", name, lockstep.ErrNotFound)
}

// testServer is a server on a loopback or Unix socket for the time of a test.
type testServer struct {
	*Server
	network, address string
	cancel           context.CancelFunc
	served           chan error // capacity 1: what Serve returned
}

func newTestServer(tb testing.TB, s *Server, network string) *testServer {
	tb.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(tb.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &testServer{Server: s, network: network, address: ln.Addr().String(), cancel: cancel, served: make(chan error, 1)}
	var wg sync.WaitGroup
	wg.Go(func() { t.served <- s.Serve(ctx, ln) })
	tb.Cleanup(func() {
		cancel()
		wg.Wait() // hangs, and fails by the test's timeout, when a connection leaks
		select {
		case err := <-t.served:
			if err != nil {
				tb.Errorf("serve: %v", err)
			}
		default: // the test took it
		}
		if n := s.Connections(); n != 0 {
			tb.Errorf("%d connections are left", n)
		}
	})
	return t
}

// client is a hand-written client that can also misbehave.
type client struct {
	testing.TB
	nc         net.Conn
	cookie     uint64
	structured bool
	size       uint64
	flags      uint16
}

// dial connects and reads nothing.
func (s *testServer) dial(tb testing.TB) *client {
	tb.Helper()
	nc, err := net.Dial(s.network, s.address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = nc.Close() })
	if _, ok := tb.(*testing.B); !ok {
		if err := nc.SetDeadline(time.Now().Add(testTimeout)); err != nil {
			tb.Fatal(err)
		}
	}
	return &client{TB: tb, nc: nc}
}

// connect does the greeting.
func (s *testServer) connect(tb testing.TB) *client {
	tb.Helper()
	c := s.dial(tb)
	c.greet(ClientFlagFixedNewstyle | ClientFlagNoZeroes)
	return c
}

func (c *client) greet(flags uint32) {
	c.Helper()
	g := c.read(GreetingBytes)
	if binary.BigEndian.Uint64(g) != MagicInit || binary.BigEndian.Uint64(g[8:]) != MagicOption {
		c.Fatalf("greeting %x", g)
	}
	if f := binary.BigEndian.Uint16(g[16:]); f != FlagFixedNewstyle|FlagNoZeroes {
		c.Fatalf("handshake flags %#x", f)
	}
	c.write(u32(flags))
}

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func str32(s string) []byte { return append(u32(uint32(len(s))), s...) }

func (c *client) read(n int) []byte {
	c.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.nc, b); err != nil {
		c.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

func (c *client) write(parts ...[]byte) {
	c.Helper()
	if _, err := c.nc.Write(slices.Concat(parts...)); err != nil {
		c.Fatalf("write: %v", err)
	}
}

// expectClosed checks that the server closes the connection without sending anything else.
func (c *client) expectClosed() {
	c.Helper()
	rest, err := io.ReadAll(c.nc)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		c.Fatal("the server keeps the connection open")
	}
	if len(rest) != 0 {
		c.Fatalf("the server sent %x before it closed", rest)
	}
}

type optReply struct {
	typ  uint32
	data []byte
}

// option sends an option and returns its replies, the final one last.
func (c *client) option(opt uint32, data []byte) []optReply {
	c.Helper()
	c.write(u64(MagicOption), u32(opt), u32(uint32(len(data))), data)
	return c.optionReplies(opt)
}

func (c *client) optionReplies(opt uint32) (list []optReply) {
	c.Helper()
	for {
		h := c.read(OptionReplyBytes)
		if binary.BigEndian.Uint64(h) != MagicOptionReply || binary.BigEndian.Uint32(h[8:]) != opt {
			c.Fatalf("reply header %x to option %d", h, opt)
		}
		r := optReply{binary.BigEndian.Uint32(h[12:]), c.read(int(binary.BigEndian.Uint32(h[16:])))}
		list = append(list, r)
		if r.typ == RepAck || r.typ&RepErrFlag != 0 {
			return list
		}
	}
}

// expectFinal sends an option and checks the type of its only reply.
func (c *client) expectFinal(opt uint32, data []byte, typ uint32) optReply {
	c.Helper()
	list := c.option(opt, data)
	if len(list) != 1 || list[0].typ != typ {
		c.Fatalf("replies to option %d: %v, want one of type %#x", opt, list, typ)
	}
	return list[0]
}

func goData(name string, infos ...uint16) []byte {
	b := append(str32(name), u16(uint16(len(infos)))...)
	for _, i := range infos {
		b = append(b, u16(i)...)
	}
	return b
}

// optGo enters transmission.
func (c *client) optGo(name string) {
	c.Helper()
	list := c.option(OptGo, goData(name))
	if len(list) != 2 || list[0].typ != RepInfo || list[1].typ != RepAck {
		c.Fatalf("replies to GO: %v", list)
	}
	c.size, c.flags = binary.BigEndian.Uint64(list[0].data[2:]), binary.BigEndian.Uint16(list[0].data[10:])
}

func (c *client) optStructured() {
	c.Helper()
	c.expectFinal(OptStructuredReply, nil, RepAck)
	c.structured = true
}

func (c *client) setMeta(name string, queries ...string) []optReply {
	c.Helper()
	return c.option(OptSetMetaContext, metaData(name, queries...))
}

func metaData(name string, queries ...string) []byte {
	b := append(str32(name), u32(uint32(len(queries)))...)
	for _, q := range queries {
		b = append(b, str32(q)...)
	}
	return b
}

// send sends a request and returns its cookie.
func (c *client) send(cmd, flags uint16, off uint64, length uint32, data []byte) uint64 {
	c.Helper()
	c.cookie++
	c.write(u32(MagicRequest), u16(flags), u16(cmd), u64(c.cookie), u64(off), u32(length), data)
	return c.cookie
}

// reply is one reply, simple or of one chunk.
type reply struct {
	cookie uint64
	errno  Errno
	typ    uint16 // of the chunk
	data   []byte // read data, the chunk's payload, or the text of an error
}

// recv reads one reply; dataLen is what a simple reply without error brings.
func (c *client) recv(dataLen int) reply {
	c.Helper()
	h := c.read(SimpleReplyBytes)
	r := reply{cookie: binary.BigEndian.Uint64(h[8:])}
	switch binary.BigEndian.Uint32(h) {
	case MagicSimpleReply:
		r.errno = Errno(binary.BigEndian.Uint32(h[4:]))
		if r.errno == 0 {
			r.data = c.read(dataLen)
		}
		return r
	case MagicStructuredReply:
		if !c.structured {
			c.Fatal("structured reply without negotiation")
		}
		if f := binary.BigEndian.Uint16(h[4:]); f != ReplyFlagDone {
			c.Fatalf("chunk flags %#x", f)
		}
		r.typ = binary.BigEndian.Uint16(h[6:])
		r.data = c.read(int(binary.BigEndian.Uint32(c.read(4))))
		if r.typ&ReplyTypeErrorFlag != 0 {
			r.errno = Errno(binary.BigEndian.Uint32(r.data))
			if n := int(binary.BigEndian.Uint16(r.data[4:])); n != len(r.data)-6 {
				c.Fatalf("error chunk with a text of %d bytes in %d", n, len(r.data))
			}
			r.data = r.data[6:]
		}
		return r
	default:
		c.Fatalf("reply %x", h)
		return r
	}
}

// do sends a request and returns its reply.
func (c *client) do(cmd, flags uint16, off uint64, length uint32, data []byte) reply {
	c.Helper()
	cookie := c.send(cmd, flags, off, length, data)
	dataLen := 0
	if cmd == CmdRead {
		dataLen = int(length)
	}
	r := c.recv(dataLen)
	if r.cookie != cookie {
		c.Fatalf("reply to %d, want %d", r.cookie, cookie)
	}
	return r
}

func (c *client) expect(errno Errno, cmd, flags uint16, off uint64, length uint32, data []byte) reply {
	c.Helper()
	r := c.do(cmd, flags, off, length, data)
	if r.errno != errno {
		c.Fatalf("command %d flags %#x [%d,+%d): %v (%s), want %v", cmd, flags, off, length, r.errno, r.data, errno)
	}
	return r
}

// expectData reads and compares.
func (c *client) expectData(off uint64, want []byte) {
	c.Helper()
	r := c.expect(0, CmdRead, 0, off, uint32(len(want)), nil)
	got := r.data
	if c.structured {
		if r.typ != ReplyTypeOffsetData || binary.BigEndian.Uint64(r.data) != off {
			c.Fatalf("chunk of type %d", r.typ)
		}
		got = r.data[8:]
	}
	if !bytes.Equal(got, want) {
		c.Fatalf("data at %d is %x..., want %x...", off, got[:min(8, len(got))], want[:min(8, len(want))])
	}
}

// eventually waits until f holds.
func eventually(tb testing.TB, what string, f func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(testTimeout); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("not reached: %s", what)
		}
	}
}

// countingExports serves the same memory under every name and reports opening and releasing.
type countingExports struct {
	opened, released chan string // with room for all
}

func (*countingExports) List(context.Context) []string { return nil }

func (e *countingExports) Open(_ context.Context, name string) (Export, error) {
	e.opened <- name
	return Export{Device: newVolume(), Release: func() { e.released <- name }}, nil
}

// Package nbdclient is a small client of the NBD protocol: one connection, concurrent pipelined
// requests, structured replies, base:allocation. Its Client is a block.Device, so that whatever is
// written against the device contract can run over the wire. It never reconnects: after the loss of
// its connection every call fails, and what became of the writes in flight is unknown.
package nbdclient

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/nbd"
)

// maxInFlight bounds the requests a Client sends without having their replies.
const maxInFlight = 128

// ErrClosed is the error of calls after Close.
var ErrClosed = errors.New("nbd client closed")

// Error is a refusal by the server. It matches its number, nbd.ENOSPC for example, and the
// syscall.Errno of the same meaning through errors.Is.
type Error struct {
	Op    string
	Errno nbd.Errno
	Text  string // the server's explanation, may be empty
}

func (e *Error) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("nbd %s: %s", e.Op, e.Errno)
	}
	return fmt.Sprintf("nbd %s: %s: %s", e.Op, e.Errno, e.Text)
}

// Unwrap gives the error number.
func (e *Error) Unwrap() error { return e.Errno }

// OptionError is the server's refusal to open an export.
type OptionError struct {
	Option uint32
	Reply  uint32 // nbd.RepErrUnknown and so on
	Text   string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("server refused NBD option %d with reply %#x: %s", e.Option, e.Reply, e.Text)
}

// Is matches lockstep.ErrNotFound for an export the server does not know, and lockstep.ErrDemoted
// for one that it is giving up.
func (e *OptionError) Is(target error) bool {
	return e.Reply == nbd.RepErrUnknown && target == lockstep.ErrNotFound ||
		e.Reply == nbd.RepErrShutdown && target == lockstep.ErrDemoted
}

// Client is one connection to one export. Its methods may be called concurrently.
type Client struct {
	nc         net.Conn
	r          *bufio.Reader
	size       int64
	flags      uint16
	maxPayload int
	contextID  uint32 // of base:allocation; zero: not offered
	structured bool

	slots   chan struct{} // capacity maxInFlight: a token for each request in flight
	sending chan struct{} // capacity 1: held while a request is written
	head    [nbd.RequestBytes]byte
	done    chan struct{} // closed when the receiver has ended

	mu     sync.Mutex // guards the fields below
	cookie uint64
	calls  map[uint64]*call
	err    error // why the connection is of no use any more
}

var _ block.Device = (*Client)(nil)

// call is a request that waits for its reply.
type call struct {
	op      string
	off     int64
	length  int64  // of the data a reply must bring
	p       []byte // where that data goes; nil once the caller has left (guarded by Client.mu)
	taken   bool   // the receiver is filling p (guarded by Client.mu)
	filled  int64
	extents []block.ExtentState
	fault   error
	done    chan struct{}
}

// Dial connects to an NBD URI: nbd://host[:port]/export or nbd+unix:///export?socket=path.
func Dial(ctx context.Context, uri string) (*Client, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("parse NBD URI: %w", err)
	}
	export := u.Path
	if len(export) > 0 && export[0] == '/' {
		export = export[1:]
	}
	switch u.Scheme {
	case "nbd":
		port := u.Port()
		if port == "" {
			port = "10809"
		}
		return DialAddr(ctx, "tcp", net.JoinHostPort(u.Hostname(), port), export)
	case "nbd+unix":
		return DialAddr(ctx, "unix", u.Query().Get("socket"), export)
	default:
		return nil, fmt.Errorf("NBD URI %q: scheme is neither nbd nor nbd+unix", uri)
	}
}

// DialAddr connects to a server at a "tcp" or "unix" address and opens export. ctx bounds connecting
// and negotiation only.
func DialAddr(ctx context.Context, network, address, export string) (*Client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connect to NBD server: %w", err)
	}
	c := &Client{
		nc: nc, r: bufio.NewReaderSize(nc, 64<<10), maxPayload: lockstep.MaxRequestBytes,
		slots: make(chan struct{}, maxInFlight), sending: make(chan struct{}, 1),
		done: make(chan struct{}), calls: make(map[uint64]*call),
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	err = c.negotiate(export)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		_ = nc.Close() // the negotiation's error says more
		return nil, fmt.Errorf("open NBD export %q: %w", export, err)
	}
	go c.receive()
	return c, nil
}

// Size is the size of the export in bytes when it was opened.
func (c *Client) Size() int64 { return c.size }

// ReadOnly reports whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.flags&nbd.TransReadOnly != 0 }

// ReadAt fills p from off, in several requests if p is longer than the server takes at once.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := c.check(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), c.maxPayload)
		if _, err := c.do(ctx, "read", nbd.CmdRead, 0, off, int64(n), nil, p[:n]); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt writes p at off. With fua it is durable when the call returns. A p longer than the server
// takes at once becomes several writes, which are not one for a concurrent overlapping one.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := c.check(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), c.maxPayload)
		if _, err := c.do(ctx, "write", nbd.CmdWrite, fuaFlag(fua), off, int64(n), p[:n], nil); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Flush makes every write that returned before this call durable.
func (c *Client) Flush(ctx context.Context) error {
	_, err := c.do(ctx, "flush", nbd.CmdFlush, 0, 0, 0, nil, nil)
	return err
}

// Trim gives the range back; on a Lockstep server it reads as zeroes afterwards.
func (c *Client) Trim(ctx context.Context, off, length int64, fua bool) error {
	return c.eachRange(off, length, func(off, n int64) (int64, error) {
		_, err := c.do(ctx, "trim", nbd.CmdTrim, fuaFlag(fua), off, n, nil, nil)
		return n, err
	})
}

// Zero makes the range read as zeroes.
func (c *Client) Zero(ctx context.Context, off, length int64, flags block.ZeroFlags) error {
	f := fuaFlag(flags.FUA)
	if flags.NoHole {
		f |= nbd.CmdFlagNoHole
	}
	return c.eachRange(off, length, func(off, n int64) (int64, error) {
		_, err := c.do(ctx, "zero", nbd.CmdWriteZeroes, f, off, n, nil, nil)
		return n, err
	})
}

// Extents describes the range as base:allocation does.
func (c *Client) Extents(ctx context.Context, off, length int64) (list []block.ExtentState, err error) {
	if c.contextID == 0 {
		return nil, &Error{Op: "block status", Errno: nbd.EINVAL, Text: "the server does not offer base:allocation"}
	}
	err = c.eachRange(off, length, func(off, n int64) (int64, error) {
		done, err := c.do(ctx, "block status", nbd.CmdBlockStatus, 0, off, n, nil, nil)
		if err != nil {
			return 0, err
		}
		covered := int64(0)
		for _, e := range done.extents {
			e.Len = min(e.Len, n-covered) // the last one may go beyond what was asked
			list = block.AppendExtent(list, e)
			covered += e.Len
		}
		if covered == 0 {
			return 0, errors.New("nbd block status: reply covers nothing")
		}
		return covered, nil
	})
	return list, err
}

// eachRange calls f for pieces whose length the protocol can say; f tells how much it did.
func (c *Client) eachRange(off, length int64, f func(off, n int64) (int64, error)) error {
	if err := c.check(off, length); err != nil {
		return err
	}
	for length > 0 {
		n, err := f(off, min(length, 1<<31))
		if err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

func (c *Client) check(off, length int64) error {
	if err := block.CheckRange(off, length, c.size); err != nil {
		return fmt.Errorf("nbd request [%d,+%d) of %d bytes: %w", off, length, c.size, err)
	}
	return nil
}

func fuaFlag(fua bool) uint16 {
	if fua {
		return nbd.CmdFlagFUA
	}
	return 0
}

// Close says goodbye to the server and closes the connection. Calls in flight fail with ErrClosed.
func (c *Client) Close() error {
	select {
	case c.sending <- struct{}{}:
		_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second)) // nor may it hold up the close
		c.putHead(nbd.CmdDisc, 0, 0, 0, 0)
		_, _ = c.nc.Write(c.head[:]) // a server that is gone needs no goodbye
		<-c.sending
	default: // a blocked sender: no goodbye without waiting for it
	}
	c.fail(ErrClosed)
	<-c.done
	return nil
}

// fail makes the connection useless for the reason err; the receiver fails the calls.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	_ = c.nc.Close() // the receiver sees it
}

func (c *Client) putHead(cmd, flags uint16, cookie uint64, off, length int64) {
	binary.BigEndian.PutUint32(c.head[0:], nbd.MagicRequest)
	binary.BigEndian.PutUint16(c.head[4:], flags)
	binary.BigEndian.PutUint16(c.head[6:], cmd)
	binary.BigEndian.PutUint64(c.head[8:], cookie)
	binary.BigEndian.PutUint64(c.head[16:], uint64(off))
	binary.BigEndian.PutUint32(c.head[24:], uint32(length))
}

// do sends a request and waits for its reply or the end of ctx, when the outcome is unknown. out is
// not touched after it returns.
func (c *Client) do(ctx context.Context, op string, cmd, flags uint16, off, length int64, in, out []byte) (*call, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("nbd %s: %w", op, ctx.Err())
	}
	k := &call{op: op, off: off, length: int64(len(out)), p: out, done: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		<-c.slots
		return nil, fmt.Errorf("nbd %s: %w", op, err)
	}
	c.cookie++
	cookie := c.cookie
	c.calls[cookie] = k // the receiver gives the slot back when it takes the call out
	c.mu.Unlock()

	c.send(ctx, cmd, flags, cookie, off, length, in)
	select {
	case <-k.done:
		return k, k.fault
	case <-ctx.Done():
	}
	c.mu.Lock()
	taken := k.taken
	k.p = nil // the receiver skips data that nobody waits for
	c.mu.Unlock()
	if taken {
		c.fail(ctx.Err()) // the buffer is being filled: only the end of the connection is sure to end that
		<-k.done
	}
	return nil, fmt.Errorf("nbd %s: %w", op, ctx.Err())
}

// send writes a request; when it cannot, the connection fails and with it the call.
func (c *Client) send(ctx context.Context, cmd, flags uint16, cookie uint64, off, length int64, data []byte) {
	select {
	case c.sending <- struct{}{}:
	case <-ctx.Done():
		c.forget(cookie) // nothing was sent
		return
	}
	defer func() { <-c.sending }()
	if ctx.Err() != nil {
		c.forget(cookie)
		return
	}
	if ctx.Done() != nil {
		// Half a request cannot be taken back.
		stop := context.AfterFunc(ctx, func() { c.fail(ctx.Err()) })
		defer stop()
	}
	c.putHead(cmd, flags, cookie, off, length)
	var err error
	if len(data) == 0 {
		_, err = c.nc.Write(c.head[:])
	} else {
		parts := net.Buffers{c.head[:], data}
		_, err = parts.WriteTo(c.nc)
	}
	if err != nil {
		c.fail(fmt.Errorf("send to NBD server: %w", err))
	}
}

// forget takes a call out that was never sent.
func (c *Client) forget(cookie uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.calls[cookie]; ok {
		delete(c.calls, cookie)
		<-c.slots
	}
}

// receive reads replies until the connection ends, then fails all calls. DialAddr starts it, Close
// waits for it.
func (c *Client) receive() {
	defer close(c.done)
	err := c.replies()
	if errors.Is(err, io.EOF) {
		err = errors.New("server closed the connection")
	}
	c.fail(fmt.Errorf("nbd connection lost: %w", err))
	c.mu.Lock()
	defer c.mu.Unlock()
	for cookie, k := range c.calls {
		k.fault = fmt.Errorf("nbd %s: %w", k.op, c.err)
		delete(c.calls, cookie)
		<-c.slots
		close(k.done)
	}
}

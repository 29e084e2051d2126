package nbd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// readBufferBytes is the size of a connection's read buffer; 64 KiB measured better than 32 and 256.
const readBufferBytes = 64 << 10

// conn is one client from accept to close. Its fields are set before serve and not changed, but for
// those that say so.
type conn struct {
	srv    *Server
	nc     net.Conn
	limits Limits
	log    *slog.Logger
	r      *bufio.Reader

	// ctx is that of every device call of the connection; it ends when the client is lost.
	ctx    context.Context
	cancel context.CancelFunc

	accepted    time.Time
	negotiating bool // guarded by Server.mu

	stopOnce sync.Once
	stopping chan struct{} // closed by stop
}

func newConn(ctx context.Context, s *Server, nc net.Conn, limits Limits) *conn {
	if tcp, ok := nc.(*net.TCPConn); ok {
		// A reply must not wait for the acknowledgement of the one before. An error here means the
		// connection is gone, which the first read reports.
		_ = tcp.SetNoDelay(true)
	}
	c := &conn{
		srv: s, nc: nc, limits: limits,
		log:      s.logger().With("remote", remoteName(nc)),
		r:        bufio.NewReaderSize(nc, readBufferBytes),
		accepted: time.Now(),
		stopping: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

// remoteName names the peer for the log; clients of a Unix socket have no address.
func remoteName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	if a := nc.LocalAddr(); a != nil {
		return a.Network()
	}
	return "unknown"
}

// stop asks the connection to end in good order.
func (c *conn) stop() { c.stopOnce.Do(func() { close(c.stopping) }) }

// drop ends the connection now: device calls see their context end, reads and writes fail.
func (c *conn) drop() {
	c.cancel()
	_ = c.nc.Close() // the reader and the writer report it
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer c.drop()
	// The end of the server's context must also end reads and writes.
	defer context.AfterFunc(c.ctx, c.drop)()

	sel, err := c.handshake()
	c.srv.endHandshake(c)
	if err != nil || sel == nil {
		c.logEnd("handshake", err)
		return
	}
	c.log = c.log.With("volume", sel.name)
	c.log.Debug("client connected", "structured", sel.structured, "read_only", sel.export.ReadOnly)
	err = newTransmission(c, sel).run()
	c.leave(sel)
	c.logEnd("transmission", err)
	if err == nil {
		c.linger()
	}
}

// handshake negotiates within the time limit. Neither an export nor an error means that the client
// left in good order.
func (c *conn) handshake() (*selection, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.limits.HandshakeTimeout)
	defer cancel()
	// Closing the connection, at the deadline or at a stop, is what ends a blocked read or write.
	defer context.AfterFunc(ctx, func() { _ = c.nc.Close() })()
	done := make(chan struct{})
	var watch sync.WaitGroup
	defer watch.Wait()
	defer close(done)
	watch.Go(func() {
		select {
		case <-c.stopping:
			cancel()
		case <-done:
		}
	})
	sel, err := newNegotiation(ctx, c).run()
	if ctx.Err() != nil {
		c.leave(sel)
		return nil, errors.Join(errHandshakeEnded, err)
	}
	return sel, err
}

var errHandshakeEnded = errors.New("handshake did not end in time")

// logEnd says why a connection ended: loudly only for what a client should not do.
func (c *conn) logEnd(phase string, err error) {
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		c.log.Debug("client disconnected", "phase", phase, "reason", err)
	default:
		c.log.Warn("connection closed", "phase", phase, "error", err)
	}
}

// linger closes our side and waits shortly for the client to close its own. A socket closed with
// unread data in it is reset, and the reset would overtake the last replies.
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if c.nc.SetReadDeadline(time.Now().Add(lingerTimeout)) == nil {
		_, _ = io.Copy(io.Discard, c.nc) // bounded by the deadline
	}
}

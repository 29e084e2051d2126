// Package nbd serves block devices over the Network Block Device protocol: fixed newstyle
// negotiation, simple and structured replies, base:allocation. It speaks to a device through
// block.Device alone; it never touches files, never replicates, and never decides who is primary.
//
// One connection is read by one worker at a time (leader and followers): the leader reads a request
// with its data, passes the reader's role on, calls the device and queues the reply; whoever finds
// nobody writing writes all queued replies in one go. So a call that blocks in the device keeps
// neither further requests nor the end of the connection from being seen.
//
//	socket -> negotiate.go -> transmission.go (read, bound, dispatch) -> command.go -> block.Device
//	socket <- output.go (queued replies, one writev per batch)        <-
//
// Everything a client can make the server hold is bounded by Limits: the time and size of the
// handshake, connections, requests and bytes in flight, of a connection and of all (budget.go).
// Beyond a bound the next request is not read. A client that keeps its requests' memory by taking no
// replies, or by not sending the data it announced, is dropped in time. A device may take as long as
// it likes.
package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/internal/listen"
)

// Exports resolves export names. Implementations must be safe for concurrent use.
type Exports interface {
	// List names the exports a client may open.
	List(ctx context.Context) []string
	// Open opens an export for one connection. The text of its error is sent to the client: with
	// type ERR_UNKNOWN for lockstep.ErrNotFound, ERR_SHUTDOWN for lockstep.ErrDemoted, otherwise
	// ERR_POLICY. ctx ends with the handshake, whose time is bounded.
	Open(ctx context.Context, name string) (Export, error)
}

// Export is one opened volume.
type Export struct {
	Device      block.Device
	ReadOnly    bool   // writes are refused with EPERM
	Description string // for display, optional
	// Closed is closed when the export must be dropped; nil means never. Requests that were passed
	// to the device are answered with what it says, later ones with ESHUTDOWN, and the connection
	// is closed once none is left.
	Closed <-chan struct{}
	// Release, if not nil, is called once when the connection no longer uses the device: no call of
	// it is running then.
	Release func()
}

// Limits bound what clients can make the server hold. A zero field means its default.
type Limits struct {
	Connections      int           // that have an export open, at once; default 1024. Further ones are refused by name
	PerExport        int           // of those for one export; default 128
	Handshakes       int           // connections in negotiation, at once; default 256. See addConn
	Requests         int           // in flight per connection; default 128
	Bytes            int64         // of request data in flight per connection; default 64 MiB, at least RequestBytes
	Memory           int64         // bytes of request data in flight of all connections; default 1 GiB, at least MinMemory
	RequestBytes     int           // of one READ or WRITE; default and most lockstep.MaxRequestBytes
	HandshakeTimeout time.Duration // from accept to transmission; default 10 s
	StallTimeout     time.Duration // without progress of a reply or of a request's data ends the connection, at most 2.5 times that; default 60 s
	DrainTimeout     time.Duration // for requests in flight when a connection ends in good order; default 10 s
	Options          int           // per handshake; default 4096
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.Connections, defaultConnections)
	orDefault(&l.PerExport, 128)
	orDefault(&l.Handshakes, 256)
	orDefault(&l.Requests, 128)
	orDefault(&l.Bytes, 64<<20)
	orDefault(&l.RequestBytes, lockstep.MaxRequestBytes)
	orDefault(&l.HandshakeTimeout, 10*time.Second)
	orDefault(&l.StallTimeout, 60*time.Second)
	orDefault(&l.DrainTimeout, 10*time.Second)
	orDefault(&l.Options, 4096)
	l.RequestBytes = min(l.RequestBytes, lockstep.MaxRequestBytes)
	l.Bytes = max(l.Bytes, int64(l.RequestBytes))
	orDefault(&l.Memory, 1<<30)
	l.Memory = max(l.Memory, l.MinMemory())
	return l
}

// MinMemory is the least that Memory can be: what is set aside for each connection, and one request.
func (l Limits) MinMemory() int64 {
	orDefault(&l.Connections, defaultConnections)
	orDefault(&l.RequestBytes, lockstep.MaxRequestBytes)
	return int64(l.Connections)*ownBytes + bufferBytes(min(l.RequestBytes, lockstep.MaxRequestBytes))
}

const defaultConnections = 1024

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// errServerClosed refuses what comes after Shutdown began.
var errServerClosed = errors.New("the server is shutting down")

// lingerTimeout bounds the wait for a client to close its side after ours was closed, so that the
// last replies are not lost to a reset.
const lingerTimeout = 300 * time.Millisecond

// Server serves Exports on any number of listeners. Its exported fields are not to be changed after
// the first Serve.
type Server struct {
	Exports Exports
	Logger  *slog.Logger // nil discards
	Limits  Limits
	Metrics Metrics // nil counts nothing

	// mu guards the fields below.
	mu         sync.Mutex
	listeners  map[net.Listener]struct{}
	conns      map[*conn]struct{}
	closed     bool
	handshakes int               // connections in negotiation
	opened     int               // connections that have an export open
	exports    map[string]*share // those exports
	budget     *budget           // set by the first Serve and not changed
	idle       chan struct{}     // not nil while Shutdown waits; closed when conns is empty
}

// Serve accepts connections from ln until ctx ends or Shutdown is called, and closes ln. It returns
// after the last of its connections has ended: nil in those two cases, else the listener's error.
// The end of ctx drops the connections at once; calls of devices see their context end.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	if !s.addListener(ln) {
		return errors.Join(fmt.Errorf("serve %s: %w", ln.Addr(), errServerClosed), ln.Close())
	}
	defer s.removeListener(ln)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()

	log := s.logger()
	limits := s.Limits.withDefaults()
	for {
		nc, err := listen.Accept(ctx, ln, log)
		if err != nil {
			if s.isClosed() {
				// Shutdown decides how long the connections have; it ends them all.
				wg.Wait()
				return nil
			}
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		}
		c := s.addConn(ctx, nc, limits)
		if c == nil {
			_ = nc.Close() // nothing was promised to this client
			continue
		}
		wg.Go(func() {
			defer s.removeConn(c)
			c.serve()
		})
	}
}

// Shutdown stops accepting, lets requests in flight finish, answers later ones with ESHUTDOWN, and
// closes every connection. When ctx ends first it drops the connections, ends the contexts of their
// device calls and returns ctx's error without waiting for those calls; Serve does wait.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for ln := range s.listeners {
		_ = ln.Close() // Accept reports it
	}
	for c := range s.conns {
		c.stop()
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
		if len(s.conns) == 0 {
			close(s.idle)
		}
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.drop()
	}
	return fmt.Errorf("shut down the NBD server: %w", ctx.Err())
}

// Connections is the number of connections at this moment, those in negotiation included.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *Server) logger() *slog.Logger {
	if s.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Logger
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Server) addListener(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.prepare()
	s.listeners[ln] = struct{}{}
	return true
}

// prepare makes what the first Serve needs. It is called with mu held.
func (s *Server) prepare() {
	if s.listeners != nil {
		return
	}
	s.listeners = make(map[net.Listener]struct{})
	s.conns = make(map[*conn]struct{})
	s.exports = make(map[string]*share)
	limits := s.Limits.withDefaults()
	s.budget = &budget{size: limits.Memory - int64(limits.Connections)*ownBytes}
}

func (s *Server) removeListener(ln net.Listener) {
	_ = ln.Close() // it may be closed already
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
}

// addConn returns nil when the server is closing or too many connections are in negotiation.
//
// Those count for themselves, so that clients that only connect take no place of those that use an
// export. A negotiation takes milliseconds as a rule. Where the limit is reached, the one that has
// lasted longest makes room if it has lasted a tenth of its time; else there is a rush, of clients
// that all come back at once for example, and it serves them best to let those finish that have begun.
func (s *Server) addConn(ctx context.Context, nc net.Conn, limits Limits) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if s.handshakes >= limits.Handshakes && !s.dropHandshake(limits.HandshakeTimeout/10) {
		s.logger().Warn("connection refused: too many are in negotiation", "remote", remoteName(nc), "limit", limits.Handshakes)
		return nil
	}
	c := newConn(ctx, s, nc, limits)
	c.negotiating = true
	s.handshakes++
	s.conns[c] = struct{}{}
	return c
}

// dropHandshake drops the connection that has been in negotiation for longest, if that is longer than
// least. It is called with mu held.
func (s *Server) dropHandshake(least time.Duration) bool {
	var oldest *conn
	for c := range s.conns {
		if c.negotiating && (oldest == nil || c.accepted.Before(oldest.accepted)) {
			oldest = c
		}
	}
	if oldest == nil || time.Since(oldest.accepted) < least {
		return false
	}
	oldest.negotiating = false
	s.handshakes--
	oldest.log.Warn("connection dropped: too many are in negotiation, and this one for longest")
	oldest.drop()
	return true
}

// endHandshake notes that c is no longer in negotiation.
func (s *Server) endHandshake(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.negotiating {
		c.negotiating = false
		s.handshakes--
	}
}

func (s *Server) removeConn(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.idle != nil && len(s.conns) == 0 {
		close(s.idle)
	}
}

// enter notes that a connection has opened an export, unless too many have; leave must follow.
func (s *Server) enter(name string, limits Limits) (*share, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.exports[name]
	switch {
	case s.opened >= limits.Connections:
		return nil, fmt.Errorf("the server has %d connections and allows no more", s.opened)
	case e != nil && e.conns >= limits.PerExport:
		return nil, fmt.Errorf("export %q has %d connections and is allowed no more", name, e.conns)
	}
	if e == nil {
		e = &share{caching: make(chan struct{}, 1)}
		s.exports[name] = e
	}
	e.conns++
	s.opened++
	return e, nil
}

// leave notes that a connection no longer uses an export. None of its requests holds memory then.
func (s *Server) leave(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.exports[name]
	s.opened--
	if e.conns--; e.conns == 0 {
		delete(s.exports, name)
	}
}

package etcdstore

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// silentAfter is how long a request waits for an answer, and its connection says nothing at all, before
// the member counts as silent. It is below DefaultRequestTimeout, so that a request that runs into that
// counts, and above what a slow disk of a member takes.
const silentAfter = 2 * time.Second

// silence closes connections on which a request got no answer in time, and nothing else came either: a
// member that is slow with one request is about to answer others there. A process that is frozen keeps
// its connections, since its kernel still takes what is sent, and gRPC's pings notice it after 13 s only:
// meanwhile a request in turn would fail at it, and a watch there would say nothing. After the close,
// requests go to the members with which a handshake succeeds, and watches go on there after what they
// delivered last. What became of a transaction that was under way is as unknown as after its timeout.
type silence struct {
	log *slog.Logger

	mu    sync.Mutex                       // guards conns
	conns map[string]map[*watchedConn]bool // by remote address
}

func newSilence(log *slog.Logger) *silence {
	return &silence{log: log, conns: map[string]map[*watchedConn]bool{}}
}

// credentials are c, with silence knowing the connections that they were shaken on. What the dialer gives
// must stay a TCP connection: gRPC sets the time-out of the kernel on it.
func (s *silence) credentials(c credentials.TransportCredentials) credentials.TransportCredentials {
	return &watching{c, s}
}

type watching struct {
	credentials.TransportCredentials
	s *silence
}

func (w *watching) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return conn, info, err
	}
	return w.s.watch(conn), info, nil
}

func (w *watching) Clone() credentials.TransportCredentials {
	return &watching{w.TransportCredentials.Clone(), w.s}
}

// watchedConn is known to silence until it is closed.
type watchedConn struct {
	net.Conn
	s     *silence
	heard atomic.Int64 // when the last bytes came, as ns since began
}

// began makes times of heard monotonic.
var began = time.Now()

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(int64(time.Since(began)))
	}
	return n, err
}

func (c *watchedConn) silent() bool {
	return time.Since(began)-time.Duration(c.heard.Load()) >= silentAfter
}

func (s *silence) watch(conn net.Conn) net.Conn {
	c := &watchedConn{Conn: conn, s: s}
	c.heard.Store(int64(time.Since(began)))
	s.mu.Lock()
	defer s.mu.Unlock()
	addr := conn.RemoteAddr().String()
	if s.conns[addr] == nil {
		s.conns[addr] = map[*watchedConn]bool{}
	}
	s.conns[addr][c] = true
	return c
}

func (c *watchedConn) Close() error {
	addr := c.RemoteAddr().String()
	c.s.mu.Lock()
	delete(c.s.conns[addr], c)
	if len(c.s.conns[addr]) == 0 {
		delete(c.s.conns, addr)
	}
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// unary sees every attempt of a request, and with which member.
func (s *silence) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	asked := time.Now()
	var member peer.Peer
	err := invoke(ctx, method, req, reply, cc, append(opts, grpc.Peer(&member))...)
	if status.Code(err) == codes.DeadlineExceeded && ctx.Err() != nil && time.Since(asked) >= silentAfter && member.Addr != nil {
		s.leave(member.Addr.String())
	}
	return err
}

func (s *silence) leave(addr string) {
	s.mu.Lock()
	var list []*watchedConn
	for c := range s.conns[addr] {
		if c.silent() {
			list = append(list, c)
		}
	}
	s.mu.Unlock()
	if len(list) > 0 {
		s.log.Warn("a member of the store does not answer; its connection is given up", "address", addr)
	}
	for _, c := range list {
		_ = c.Close() // gRPC sees it and connects anew
	}
}

package etcdstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// cause remembers why the last connection failed. The client of etcd tries again for as long as a
// request waits, and what it then tells is the request's timeout alone: of a certificate that is
// refused, or a port where nobody listens, people would never learn.
type cause struct {
	err atomic.Pointer[error] // nil: the last thing that happened was an answer
}

func (c *cause) note(err error) {
	// What this side ended itself says nothing about the other.
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed) {
		return
	}
	c.err.Store(&err)
}

// clear is called for each answer, so it writes only if there is something to forget.
func (c *cause) clear() {
	if c.err.Load() != nil {
		c.err.Store(nil)
	}
}

// last is nil if the last connection attempt went well.
func (c *cause) last() error {
	if err := c.err.Load(); err != nil {
		return *err
	}
	return nil
}

// credentials are those of gRPC for cfg, nil for none, which tell c how handshakes end, and what
// ends a connection afterwards: a server refuses a client's certificate only then.
func (c *cause) credentials(cfg *tls.Config) credentials.TransportCredentials {
	if cfg == nil {
		return &noting{insecure.NewCredentials(), c}
	}
	return &noting{credentials.NewTLS(cfg), c}
}

type noting struct {
	credentials.TransportCredentials
	c *cause
}

func (n *noting) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := n.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		n.c.note(fmt.Errorf("%s handshake: %w", n.Info().SecurityProtocol, err))
		return conn, info, err
	}
	return &notingConn{conn, n.c}, info, nil
}

func (n *noting) Clone() credentials.TransportCredentials {
	return &noting{n.TransportCredentials.Clone(), n.c}
}

type notingConn struct {
	net.Conn
	c *cause
}

func (n *notingConn) Read(p []byte) (int, error) {
	size, err := n.Conn.Read(p)
	if size > 0 {
		n.c.clear()
	}
	n.c.note(err)
	return size, err
}

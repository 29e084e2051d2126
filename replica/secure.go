package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/internal/peertls"
	"github.com/lockstep-dr/lockstep/wire"
)

// refusalEvery is how often refused links are spoken of at most: each is tried again at once. All are counted.
const refusalEvery = 10 * time.Second

// refusals counts the links that were refused for want of a known node at the other end.
type refusals struct {
	mu    sync.Mutex // guards what follows
	count map[peertls.Reason]uint64
	said  map[bool]*rate.Sometimes // of those dialed, of those accepted
}

// connect dials a node and, if this one has a certificate, sees that it is that node, within a time.
func (h *Host) connect(ctx context.Context, peer lockstep.NodeID, within time.Duration) (net.Conn, error) {
	addr, ok := h.cfg.Resolve(peer)
	if !ok {
		return nil, fmt.Errorf("node %s has not registered an address", peer)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := h.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to node %s: %w", peer, err)
	}
	if h.cfg.TLS == nil {
		return conn, nil
	}
	secure, err := h.cfg.TLS.Client(ctx, conn, peer)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("TLS with node %s at %s: %w", peer, addr, h.noteRefusal(err, "to", peer))
	}
	return secure, nil
}

// accepted finds out who has dialed, if this node has a certificate. The connection's deadline bounds it. A
// node that speaks without TLS is told so in its own words.
func (h *Host) accepted(ctx context.Context, conn net.Conn) (net.Conn, lockstep.NodeID, error) {
	if h.cfg.TLS == nil {
		return conn, "", nil
	}
	secure, from, err := h.cfg.TLS.Server(ctx, conn)
	if err == nil {
		return secure, from, nil
	}
	err = h.noteRefusal(err, "from", conn.RemoteAddr())
	var r *peertls.Refusal
	if errors.As(err, &r) && r.Reason == peertls.ReasonMixed {
		err = errors.Join(err, h.answerPlain(conn))
	}
	return nil, "", err
}

// answerPlain tells a node that has begun without TLS what is wanted, and lets it read that: what is unread at
// the close of a connection would take the answer away from it.
func (h *Host) answerPlain(conn net.Conn) error {
	text := fmt.Sprintf("node %s takes links over TLS only: set tls_ca, tls_cert and tls_key at both nodes or at none", h.cfg.Node)
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if err := wire.WriteJSON(conn, wire.Header{Kind: wire.KindHelloReply}, wire.HelloReply{Error: text, Node: h.cfg.Node}); err != nil {
		return err
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // it may be gone already
	}
	_, _ = io.CopyN(io.Discard, conn, wire.MaxControlBody)
	return nil
}

// misunderstood is for what came instead of a hello.
func (h *Host) misunderstood(err error, conn net.Conn) error {
	if !errors.Is(err, wire.ErrTLS) {
		return err
	}
	return h.noteRefusal(&peertls.Refusal{Reason: peertls.ReasonMixed, Err: err}, "from", conn.RemoteAddr())
}

// impostor is the error of a hello in another node's name than its certificate's.
func (h *Host) impostor(named, proven lockstep.NodeID) error {
	return &peertls.Refusal{Reason: peertls.ReasonIdentity, Err: fmt.Errorf("the hello is of node %s, the certificate of node %s", named, proven)}
}

// noteRefusal counts a refusal and speaks of it, and gives the error back. Other errors it lets pass.
func (h *Host) noteRefusal(err error, direction string, other any) error {
	var r *peertls.Refusal
	if !errors.As(err, &r) {
		return err
	}
	n := &h.refusals
	n.mu.Lock()
	if n.count == nil {
		n.count = map[peertls.Reason]uint64{}
		n.said = map[bool]*rate.Sometimes{true: {Interval: refusalEvery}, false: {Interval: refusalEvery}}
	}
	n.count[r.Reason]++
	say := n.said[direction == "to"]
	n.mu.Unlock()
	say.Do(func() { h.log.Warn("replication link refused", direction, other, "reason", r.Reason, "err", err) })
	return err
}

// Refusals counts, since the start, the links that were refused before a frame of a group was looked at.
func (h *Host) Refusals() map[peertls.Reason]uint64 {
	h.refusals.mu.Lock()
	defer h.refusals.mu.Unlock()
	all := map[peertls.Reason]uint64{}
	for _, r := range peertls.Reasons {
		all[r] = h.refusals.count[r]
	}
	return all
}

package replica

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"hash/fnv"
	"net"
	"slices"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// beat is the heartbeat to one peer node: it asks for the leases of all groups of which this node
// is primary there, and its answers show that the peer is alive.
type beat struct {
	peer  lockstep.NodeID
	heard time.Duration // guarded by Host.mu: the clock at the last answer
}

// heartbeatTo starts the heartbeat to a node, once.
func (h *Host) heartbeatTo(peer lockstep.NodeID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.beats[peer] != nil {
		return
	}
	b := &beat{peer: peer}
	h.beats[peer] = b
	h.tasks.Go(func() { h.beatLoop(b) })
}

func (h *Host) lastHeard(peer lockstep.NodeID) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.beats[peer]; b != nil {
		return b.heard
	}
	return 0
}

func (h *Host) beatLoop(b *beat) {
	for h.ctx.Err() == nil {
		if err := h.beatConn(b); err != nil && h.ctx.Err() == nil {
			h.log.Debug("heartbeat", "node", b.peer, "err", err)
		}
		select {
		case <-time.After(h.cfg.Heartbeat):
		case <-h.ctx.Done():
		}
	}
}

// beatConn sends heartbeats on one connection until it fails.
func (h *Host) beatConn(b *beat) error {
	conn, err := h.connect(h.ctx, b.peer, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(h.ctx, func() { _ = conn.Close() })()
	session := lockstep.Session{Start: h.cfg.Start, Conn: h.conns.Add(1)}
	if _, err := h.hello(conn, wire.Hello{To: b.peer, Purpose: wire.PurposeHeartbeat, Session: session}); err != nil {
		return err
	}
	br := bufio.NewReader(conn)
	var known uint64 // digest of the list the peer has
	for {
		list, leases := h.leaseList(b.peer)
		digest := digestOf(list)
		msg := wire.Heartbeat{Digest: digest}
		if digest != known {
			msg.Groups, msg.Full = list, true
		}
		asked := h.now()
		if err := conn.SetDeadline(time.Now().Add(h.cfg.TripAfter)); err != nil {
			return err
		}
		if err := wire.WriteJSON(conn, wire.Header{Kind: wire.KindHeartbeat, Session: session}, msg); err != nil {
			return err
		}
		var answer wire.HeartbeatReply
		if _, err := wire.ReadJSON(br, wire.KindHeartbeatReply, &answer); err != nil {
			return err
		}
		h.mu.Lock()
		b.heard = h.now()
		h.mu.Unlock()
		known = digest
		if answer.NeedList {
			known = 0
			continue
		}
		for _, raw := range answer.Newer {
			h.passOn(raw)
		}
		// The two nodes may be configured differently: the shorter time counts.
		ttl := min(h.cfg.LeaseTTL, time.Duration(answer.TTLMs)*time.Millisecond)
		for i, ge := range list {
			if !slices.Contains(answer.Uncovered, ge.Group) {
				leases[i].grant(ge.Epoch, asked+ttl)
			}
		}
		select {
		case <-time.After(h.cfg.Heartbeat):
		case <-h.ctx.Done():
			return h.ctx.Err()
		}
	}
}

// newerThan is the persisted record, if its epoch is newer: a primary that only reads learns of it by
// no other way while the store is away.
func (g *Group) newerThan(e lockstep.Epoch) json.RawMessage {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	r := g.view.Saved.Record
	g.mu.Unlock()
	if r.Epoch <= e {
		return nil
	}
	raw, err := json.Marshal(r)
	if err != nil {
		g.log.Error("encode record", "err", err)
		return nil
	}
	return raw
}

// passOn gives a record that a peer sent to its group.
func (h *Host) passOn(raw json.RawMessage) {
	var r protocol.Record
	if err := json.Unmarshal(raw, &r); err != nil {
		h.log.Warn("a peer passed on a record that cannot be read", "err", err)
		return
	}
	if g := h.group(r.Group); g != nil {
		g.post(protocol.RecordRead{Record: r})
	}
}

// leaseList names the groups whose reads need that node's lease, with where to put it.
func (h *Host) leaseList(peer lockstep.NodeID) ([]wire.GroupEpoch, []*lease) {
	var list []wire.GroupEpoch
	leases := map[lockstep.GroupID]*lease{}
	for _, g := range h.groupList() {
		g.mu.Lock()
		r := g.view.Record
		needed := r.State == protocol.StateNormal && r.InSync || r.State == protocol.StateCopying
		if le := g.leases[peer]; le != nil && g.view.Role == protocol.RolePrimary && needed {
			list = append(list, wire.GroupEpoch{Group: g.id, Epoch: r.Epoch})
			leases[g.id] = le
		}
		g.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b wire.GroupEpoch) int {
		if a.Group < b.Group {
			return -1
		}
		return 1
	})
	order := make([]*lease, len(list))
	for i, ge := range list {
		order[i] = leases[ge.Group]
	}
	return list, order
}

func digestOf(list []wire.GroupEpoch) uint64 {
	f := fnv.New64a()
	var n [8]byte
	for _, ge := range list {
		_, _ = f.Write([]byte(ge.Group)) // a hash never fails
		binary.BigEndian.PutUint64(n[:], uint64(ge.Epoch))
		_, _ = f.Write(n[:])
	}
	return f.Sum64() | 1 // never 0: that is "no list"
}

// serveHeartbeats answers one node's heartbeats: a lease for every group whose persisted epoch is
// the one asked for, and of which this node is the secondary.
func (h *Host) serveHeartbeats(conn net.Conn, hello wire.Hello) error {
	answer := wire.HelloReply{Node: h.cfg.Node, BootID: h.cfg.BootID, Instance: h.cfg.Instance, Features: wire.Features, Session: hello.Session}
	if err := wire.WriteJSON(conn, wire.Header{Kind: wire.KindHelloReply, Session: hello.Session}, answer); err != nil {
		return err
	}
	br := bufio.NewReader(conn)
	var digest uint64
	var list []wire.GroupEpoch
	for {
		if err := conn.SetDeadline(time.Now().Add(2 * h.cfg.TripAfter)); err != nil {
			return err
		}
		var msg wire.Heartbeat
		head, err := wire.ReadJSON(br, wire.KindHeartbeat, &msg)
		if err != nil {
			return err
		}
		answer := wire.HeartbeatReply{TTLMs: h.cfg.LeaseTTL.Milliseconds()}
		if msg.Full {
			digest, list = msg.Digest, msg.Groups
		}
		if msg.Digest != digest {
			answer.NeedList = true
		} else {
			for _, ge := range list {
				g := h.group(ge.Group)
				if g != nil && g.in.grant(ge.Epoch) {
					continue
				}
				answer.Uncovered = append(answer.Uncovered, ge.Group)
				if raw := g.newerThan(ge.Epoch); raw != nil && len(answer.Newer) < wire.MaxNewer {
					answer.Newer = append(answer.Newer, raw)
				}
			}
		}
		if err := wire.WriteJSON(conn, wire.Header{Kind: wire.KindHeartbeatReply, Session: head.Session}, answer); err != nil {
			return err
		}
	}
}

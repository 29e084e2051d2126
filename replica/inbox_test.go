package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// stranger is a connection to host b, made by the test in the place of node a.
type stranger struct {
	t    *testing.T
	conn net.Conn
	s    lockstep.Session
	seq  uint64
}

func dial(t *testing.T, p *pair, s lockstep.Session, epoch lockstep.Epoch) (*stranger, wire.HelloReply) {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr["b"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	hello := wire.Hello{Cluster: "c", From: "a", To: "b", Purpose: wire.PurposeGroup, Group: "g", Session: s, Epoch: epoch, BootID: "boot-a", Features: wire.Features}
	if err := wire.WriteJSON(conn, wire.Header{Kind: wire.KindHello}, hello); err != nil {
		t.Fatal(err)
	}
	var answer wire.HelloReply
	if _, err := wire.ReadJSON(conn, wire.KindHelloReply, &answer); err != nil {
		t.Fatal(err)
	}
	return &stranger{t: t, conn: conn, s: s}, answer
}

func (s *stranger) send(h wire.Header, body []byte) {
	s.t.Helper()
	s.seq++
	h.Group, h.Session, h.Seq = wire.Key("g"), s.s, s.seq
	if h.Volume == 0 {
		h.Volume = wire.Key("pair")
	}
	if err := wire.WriteFrame(s.conn, h, body); err != nil {
		s.t.Fatal(err)
	}
}

// ask sends and gives the answer's status; ok is false if the connection was closed instead.
func (s *stranger) ask(h wire.Header, body []byte) (status wire.Status, answer []byte, ok bool) {
	s.t.Helper()
	s.send(h, body)
	var scratch [wire.HeaderSize]byte
	a, err := wire.ReadHeader(s.conn, &scratch)
	if err != nil {
		return 0, nil, false
	}
	answer, err = wire.ReadSmallBody(s.conn, &a)
	if err != nil || a.Seq != s.seq {
		s.t.Fatalf("answer %+v, %v", a, err)
	}
	return a.Status, answer, true
}

func (s *stranger) closed() {
	s.t.Helper()
	if n, err := s.conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) || err == nil {
		s.t.Fatalf("the connection is not closed: %d, %v", n, err)
	}
}

func (s *stranger) announce(r protocol.Record) wire.AnnounceReply {
	s.t.Helper()
	raw, err := json.Marshal(r)
	if err != nil {
		s.t.Fatal(err)
	}
	body, err := json.Marshal(wire.Announce{Record: raw})
	if err != nil {
		s.t.Fatal(err)
	}
	_, answer, ok := s.ask(wire.Header{Kind: wire.KindAnnounce, Epoch: r.Epoch}, body)
	var a wire.AnnounceReply
	if !ok || json.Unmarshal(answer, &a) != nil {
		s.t.Fatal("no answer to an announcement")
	}
	return a
}

func (s *stranger) write(e lockstep.Epoch, fill byte) (wire.Status, bool) {
	s.t.Helper()
	status, _, ok := s.ask(wire.Header{Kind: wire.KindWrite, Epoch: e, Length: 512}, bytes.Repeat([]byte{fill}, 512))
	return status, ok
}

// holds reads a byte of b's file behind its back.
func (p *pair) holds(t *testing.T) byte {
	t.Helper()
	buf := make([]byte, 1)
	if err := p.b.Volume("vb").disk.ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	return buf[0]
}

// alone is a pair in sync whose node a has been stopped: the test speaks in its place.
func alone(t testing.TB) (*pair, lockstep.Session, protocol.Record) {
	p := newPair(t)
	p.sync(t)
	r := p.st.get()
	p.st.mu.Lock()
	p.st.hosts = p.st.hosts[1:]
	p.st.mu.Unlock()
	if err := p.a.Close(); err != nil {
		t.Fatal(err)
	}
	return p, lockstep.Session{Start: 100, Conn: 1}, r
}

// Goal: data is applied only at exactly the epoch that was announced on the connection, never at
// one that the node has fenced, and never beyond the volume.
func TestFramesAndEpochs(t *testing.T) {
	p, s, r := alone(t)
	c, hello := dial(t, p, s, r.Epoch)
	if hello.Error != "" || hello.Epoch != r.Epoch || hello.Record != nil {
		t.Fatalf("hello: %+v", hello)
	}
	if st, _ := c.write(r.Epoch, 1); st != wire.StatusUnannounced {
		t.Errorf("before any announcement: status %d", st)
	}
	old := r.Clone()
	old.Epoch--
	if a := c.announce(old); a.OK || a.Record == nil {
		t.Errorf("an older epoch was taken: %+v", a)
	}
	if a := c.announce(r); !a.OK {
		t.Fatalf("announcement: %+v", a)
	}
	if st, _ := c.write(r.Epoch-1, 1); st != wire.StatusStaleEpoch {
		t.Errorf("older epoch: status %d", st)
	}
	if st, _ := c.write(r.Epoch+1, 1); st != wire.StatusUnannounced {
		t.Errorf("newer epoch: status %d", st)
	}
	for _, h := range []wire.Header{
		{Kind: wire.KindZero, Offset: testSize, Length: 1},
		{Kind: wire.KindZero, Offset: 1 << 63, Length: 1},
		{Kind: wire.KindZero, Offset: 512, Length: 1 << 63},
		{Kind: wire.KindCompare, Length: compareBytes + 512},
		{Kind: wire.KindRead, Length: compareBytes + 1},
		{Kind: wire.KindCompare, Length: 1 << 40},
	} {
		h.Epoch = r.Epoch
		if st, _, ok := c.ask(h, nil); !ok || st == wire.StatusOK {
			t.Errorf("%+v: status %d, %v", h, st, ok)
		}
	}
	if st, _, _ := c.ask(wire.Header{Kind: wire.KindFlush, Epoch: r.Epoch, Volume: 7}, nil); st != wire.StatusUnknown {
		t.Errorf("a volume nobody knows: status %d", st)
	}
	if p.holds(t) != 0 {
		t.Fatal("a refused frame was applied")
	}
	if st, _ := c.write(r.Epoch, 1); st != wire.StatusOK || p.holds(t) != 1 {
		t.Fatalf("the right epoch: status %d", st)
	}
	p.b.group("g").in.fence(r.Epoch + 1)
	if st, _ := c.write(r.Epoch, 2); st != wire.StatusStaleEpoch || p.holds(t) != 1 {
		t.Errorf("after the fence: status %d", st)
	}
	if p.b.group("g").in.grant(r.Epoch) {
		t.Error("a lease of a fenced epoch")
	}
}

// Goal: a newer session closes the older one and drains it before its hello is answered; an older
// session is refused for ever.
func TestSessions(t *testing.T) {
	p, s, r := alone(t)
	first, _ := dial(t, p, s, r.Epoch)
	if a := first.announce(r); !a.OK {
		t.Fatalf("%+v", a)
	}
	in, out := make(chan struct{}), make(chan struct{})
	p.fs[1].OnOp(func(op vfs.Op) error {
		if op == "raw:write" {
			close(in)
			<-out
		}
		return nil
	})
	first.send(wire.Header{Kind: wire.KindWrite, Epoch: r.Epoch, Length: 512}, bytes.Repeat([]byte{9}, 512))
	<-in
	answered := make(chan *stranger, 1)
	go func() {
		second, hello := dial(t, p, lockstep.Session{Start: 100, Conn: 2}, r.Epoch)
		if hello.Error != "" {
			t.Errorf("hello: %s", hello.Error)
		}
		answered <- second
	}()
	select {
	case <-answered:
		t.Error("the newer hello was answered while a frame of the older session was being applied")
	case <-time.After(100 * time.Millisecond):
	}
	close(out)
	p.fs[1].OnOp(nil)
	second := <-answered
	if p.holds(t) != 9 {
		t.Error("the frame was neither finished nor refused before the hello")
	}
	first.closed()
	if _, hello := dial(t, p, s, r.Epoch); hello.Error == "" {
		t.Error("an older session was taken")
	}
	if _, hello := dial(t, p, second.s, r.Epoch); hello.Error == "" {
		t.Error("the same session was taken twice")
	}
	if st, ok := second.write(r.Epoch, 3); !ok || st != wire.StatusUnannounced {
		t.Errorf("what was announced on an older session counts: %d, %v", st, ok)
	}
}

// Goal: a frame that is not whole, or not of this connection, closes it and applies nothing.
func TestBadFramesCloseTheLink(t *testing.T) {
	p, s, r := alone(t)
	data := bytes.Repeat([]byte{7}, 512)
	good := wire.Header{Kind: wire.KindWrite, Group: wire.Key("g"), Epoch: r.Epoch, Volume: wire.Key("pair"), Seq: 50, Length: 512}
	encode := func(h wire.Header, body []byte, crc uint32) []byte {
		h.BodyLen, h.BodyCRC = uint32(len(body)), crc
		p := make([]byte, wire.HeaderSize, wire.HeaderSize+len(body))
		h.Put(p)
		return append(p, body...)
	}
	for name, raw := range map[string]func(h wire.Header) []byte{
		"body checksum":   func(h wire.Header) []byte { return encode(h, data, wire.Checksum(data)^1) },
		"header bit":      func(h wire.Header) []byte { b := encode(h, data, wire.Checksum(data)); b[57] ^= 4; return b },
		"length and body": func(h wire.Header) []byte { h.Length = 1024; return encode(h, data, wire.Checksum(data)) },
		"other session":   func(h wire.Header) []byte { h.Session.Conn++; return encode(h, data, wire.Checksum(data)) },
		"other group":     func(h wire.Header) []byte { h.Group++; return encode(h, data, wire.Checksum(data)) },
		"an answer":       func(h wire.Header) []byte { h.Kind = wire.KindAck; return encode(h, nil, wire.Checksum(nil)) },
		"huge body": func(h wire.Header) []byte {
			h.BodyLen = 1 << 31
			p := make([]byte, wire.HeaderSize)
			h.Put(p)
			return p
		},
		"bad extents": func(h wire.Header) []byte {
			h.Kind = wire.KindAnnounce
			return encode(h, []byte("{"), wire.Checksum([]byte("{")))
		},
	} {
		s.Conn++
		c, _ := dial(t, p, s, r.Epoch)
		if a := c.announce(r); !a.OK {
			t.Fatalf("%+v", a)
		}
		h := good
		h.Session = s
		if _, err := c.conn.Write(raw(h)); err != nil {
			t.Fatal(err)
		}
		var scratch [wire.HeaderSize]byte
		if a, err := wire.ReadHeader(c.conn, &scratch); err == nil {
			t.Errorf("%s: answered with %+v", name, a)
		}
		if p.holds(t) != 0 {
			t.Fatalf("%s: applied", name)
		}
	}
}

// Goal: whatever a node has persisted is fenced, in every role.
func TestPersistedIsFenced(t *testing.T) {
	p := newPair(t)
	p.sync(t)
	r := p.st.get()
	for _, h := range []*Host{p.a, p.b} {
		in := &h.group("g").in
		in.gate.RLock()
		fenced := in.fenced
		in.gate.RUnlock()
		if fenced != r.Epoch {
			t.Errorf("node %s has persisted %d and fenced %d", h.cfg.Node, r.Epoch, fenced)
		}
	}
}

// Goal: the secondary's shorter lease time is the one that counts.
func TestShorterLeaseCounts(t *testing.T) {
	p := newPairWith(t, func(c *Config) {
		if c.Node == "a" {
			c.LeaseTTL = time.Minute
		}
	})
	p.sync(t)
	g := p.a.group("g")
	var le *lease
	p.until(t, "a lease", func() bool {
		g.mu.Lock()
		le = g.leases["b"]
		g.mu.Unlock()
		return le != nil && le.until.Load() != 0
	})
	if left := time.Duration(le.until.Load()) - bootTime(); left > p.b.cfg.LeaseTTL {
		t.Fatalf("the primary reads for another %s, the secondary waits %s", left, p.b.cfg.LeaseTTL)
	}
}

// Goal: one write that the secondary refused trips the group, though the store was away when it was
// refused and no other write follows.
func TestRefusedWriteTripsWhenTheStoreIsBack(t *testing.T) {
	p := newPair(t)
	p.sync(t)
	p.st.mu.Lock()
	p.st.down = true
	p.st.mu.Unlock()
	p.fs[1].OnOp(func(op vfs.Op) error {
		if op == "raw:write" {
			return syscall.ENOSPC
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- p.a.Volume("va").WriteAt(context.Background(), make([]byte, 512), 0, false) }()
	p.until(t, "the trip is asked for", func() bool {
		p.st.mu.Lock()
		defer p.st.mu.Unlock()
		return p.st.tries > 2
	})
	p.st.mu.Lock()
	p.st.down = false
	p.st.mu.Unlock()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the write waits for ever")
	}
	if r := p.st.get(); r.InSync || r.Cause != protocol.CauseSecondaryDisk {
		t.Errorf("%s, cause %q", r.Describe(), r.Cause)
	}
}

// Goal: a recovery point that a volume kept from its stay in another group, whose epochs were higher,
// is none in this one: not even where the in-sync commit never reached the secondary, and a forced
// failover follows.
func TestPointOfAnEarlierGroupIsNoImage(t *testing.T) {
	p := newPair(t)
	d := p.b.Volume("vb").disk
	page := func(fill byte) []byte { return bytes.Repeat([]byte{fill}, 4096) }
	if err := errors.Join(d.WriteAt(page(9), 0), d.Sync(), d.SetPoint(50, 40)); err != nil {
		t.Fatal(err)
	}
	m := protocol.Member{Pair: "pair", SizeBytes: testSize, Replicas: [2]protocol.Replica{{Volume: "va", Node: "a", AZ: "a"}, {Volume: "vb", Node: "b", AZ: "b"}}}
	copying, err := protocol.NewGroup("g", "p", "a", "b", []protocol.Member{m}).Sync()
	if err == nil {
		err = p.b.OnRecord(copying, false, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, _ := dial(t, p, lockstep.Session{Start: 1, Conn: 1}, copying.Epoch)
	if a := c.announce(copying); !a.OK {
		t.Fatalf("announcement: %+v", a)
	}
	if st, _, _ := c.ask(wire.Header{Kind: wire.KindWrite, Epoch: copying.Epoch, Volume: wire.Key(m.Pair), Length: 4096}, page(1)); st != wire.StatusOK {
		t.Fatalf("status %d", st)
	}
	r := copying.Clone() // in sync was committed at the next epoch, and left again
	r.Epoch, r.State, r.InSyncEpoch, r.Fenced, r.Members[0].InSyncEpoch = copying.Epoch+3, protocol.StateNormal, copying.Epoch+1, true, copying.Epoch+1
	forced, err := r.ForceFailover(r.Epoch, nil)
	if err == nil {
		err = p.b.OnRecord(forced, false, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.until(t, "b is ready", func() bool {
		v, _ := p.b.View("g")
		return v.Adopted && v.Record.Epoch == forced.Epoch
	})
	if got := p.holds(t); got != 1 {
		t.Errorf("the image of the forced failover has %d, the last write in sync was 1", got)
	}
}

// Goal: a divergence image that was deleted while its node was away goes when the node is back, also if
// its pair has left the group meanwhile: a later group may have a forced failover at that epoch.
func TestDiscardedImageOfAVolumeThatLeft(t *testing.T) {
	p, _, r := alone(t)
	v := p.b.Volume("vb")
	if err := errors.Join(v.disk.KeepImage(7), v.disk.KeepImage(8)); err != nil {
		t.Fatal(err)
	}
	left := r.DiscardImage(7)
	left.Epoch, left.InSync, left.Members, left.Untold = r.Epoch+3, false, nil, []lockstep.NodeID{"b"}
	if err := p.b.OnRecord(left, false, false); err != nil {
		t.Fatal(err)
	}
	p.until(t, "image 7 is gone", func() bool { return slices.Equal(v.Images(), []lockstep.Epoch{8}) })
}

// Goal: a fence that waits for a slow disk does not silence the node: heartbeats are for all groups, and
// those whose disks are quick must not trip.
func TestHeartbeatsAreAnsweredDuringAFence(t *testing.T) {
	p := newPair(t)
	p.sync(t)
	in := &p.b.group("g").in
	in.gate.RLock() // a frame that is being applied
	fenced := make(chan struct{})
	go func() {
		defer close(fenced)
		in.fence(p.st.get().Epoch)
	}()
	p.until(t, "the fence waits", func() bool {
		if in.gate.TryRLock() {
			in.gate.RUnlock()
			return false
		}
		return true
	})
	defer func() {
		in.gate.RUnlock()
		<-fenced
	}()
	before, epoch := p.a.lastHeard("b"), p.st.get().Epoch
	p.until(t, "heartbeats are answered, or missed for long", func() bool {
		return p.a.lastHeard("b") > before+200*time.Millisecond || p.st.get().Epoch != epoch
	})
	if r := p.st.get(); r.Epoch != epoch {
		t.Fatalf("no heartbeat was answered while a fence waited: %s", r.Describe())
	}
	if in.grant(p.st.get().Epoch) {
		t.Fatal("a lease was granted past a fence that is under way")
	}
}

// Goal: a primary that connects anew is answered, although the announcement that it made on the connection
// before is not: it may wait for a disk, or for the store. Each try would hold a descriptor as well.
func TestANewSessionDoesNotWaitForAnAnnouncement(t *testing.T) {
	p, s, r := alone(t)
	if err := p.b.OnRecordGone("g"); err != nil { // b answers no announcement
		t.Fatal(err)
	}
	first, hello := dial(t, p, s, r.Epoch)
	if hello.Error != "" {
		t.Fatal(hello.Error)
	}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(wire.Announce{Record: raw})
	if err != nil {
		t.Fatal(err)
	}
	first.send(wire.Header{Kind: wire.KindAnnounce, Epoch: r.Epoch}, body)
	in := &p.b.group("g").in
	p.until(t, "the announcement waits", func() bool {
		in.mu.Lock()
		defer in.mu.Unlock()
		return len(in.waiting) > 0
	})
	s.Conn++
	if _, hello := dial(t, p, s, r.Epoch); hello.Error != "" {
		t.Fatal(hello.Error)
	}
	first.closed()
}

package replica

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/internal/nowait"
	"github.com/lockstep-dr/lockstep/internal/peertls"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// slowFactor is how much longer, in units of the trip time, an answer may take that stands for an
// fdatasync or a scan: a busy disk is not a dead one.
const slowFactor = 4

// errLinkDown ends every call of a link that died.
var errLinkDown = errors.New("replication link is down")

// callBit marks sequence numbers of calls (flush, compare, …) apart from those of writes.
const callBit = uint64(1) << 63

// reply is the answer to a call.
type reply struct {
	header wire.Header
	body   []byte
	err    error
}

// link is one session with the secondary node of a group, dialed by the primary. Frames are copied
// into a buffer that whoever is first writes out, so that a batch goes in one system call.
type link struct {
	group    *Group
	peer     lockstep.NodeID
	session  lockstep.Session
	boot     lockstep.BootID
	instance string
	conn     net.Conn
	nowait   *nowait.Writer // who writes uses it; nil: conn is no socket
	seq      atomic.Uint64

	mu      sync.Mutex // guards what follows; not held across I/O
	out     []byte
	spare   []byte
	writing bool
	dead    bool
	calls   map[uint64]chan reply
	sent    map[uint64]time.Duration // when each unanswered frame was queued
	down    chan struct{}            // closed with dead
}

// life is what the secondary is: another boot, or another directory, has not what was sent to this one.
type life struct {
	boot     lockstep.BootID
	instance string
}

func (l *link) life() life { return life{l.boot, l.instance} }

func (l *link) nextSeq() uint64 { return l.seq.Add(1) }

// enqueue copies a frame into the out buffer; it does no I/O.
func (l *link) enqueue(h wire.Header, body []byte) { l.enqueueAt(l.group.host.now(), h, body) }

// enqueueAt is enqueue for who has just looked at the clock.
func (l *link) enqueueAt(now time.Duration, h wire.Header, body []byte) {
	h.Group, h.Session = l.group.key, l.session
	h.BodyLen, h.BodyCRC = uint32(len(body)), wire.Checksum(body)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return
	}
	n := len(l.out)
	l.out = slices.Grow(l.out, wire.HeaderSize+len(body))[:n+wire.HeaderSize]
	h.Put(l.out[n:])
	l.out = append(l.out, body...)
	if h.Kind != wire.KindWrite && h.Kind != wire.KindZero || h.Flags&wire.FlagFUA != 0 {
		now += slowFactor * l.group.host.cfg.TripAfter
	}
	l.sent[h.Seq] = now
}

// flush writes the buffer out, unless somebody does already: then that one takes it along.
func (l *link) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.writing {
		l.writing = true
		l.write(nil)
	}
}

// write writes rest and then the buffer until it is empty. Called with mu held, and writing set by the
// caller; it gives mu up meanwhile.
func (l *link) write(rest []byte) {
	for {
		if len(rest) == 0 {
			if len(l.out) == 0 || l.dead {
				l.writing = false
				return
			}
			rest = l.take()
		}
		l.mu.Unlock()
		_, err := l.conn.Write(rest)
		if err != nil {
			l.close()
		}
		l.mu.Lock()
		l.giveBack(rest)
		rest = nil
	}
}

// take takes the buffer out. Called with mu held.
func (l *link) take() []byte {
	buf := l.out
	l.out, l.spare = l.spare[:0], nil
	return buf
}

// maxSpareBytes holds what a synchronization has under way at once.
const maxSpareBytes = (resyncDepth + 2) * compareBytes

// giveBack keeps a buffer that was written. Called with mu held.
func (l *link) giveBack(buf []byte) {
	if cap(buf) > maxSpareBytes || cap(buf) <= cap(l.spare) || cap(buf) > 1<<20 && len(buf) < cap(buf)/16 {
		return // too large for always, or for what there is to send now
	}
	l.spare = buf[:0]
}

// push is flush for callers that may not block: what the socket does not take at once is written by
// somebody else.
func (l *link) push() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing || len(l.out) == 0 || l.dead {
		return
	}
	l.writing = true
	if l.nowait == nil {
		go l.writeRest(nil)
		return
	}
	buf := l.take()
	l.mu.Unlock()
	n, err := l.nowait.Write(buf)
	if err != nil {
		l.close()
	}
	l.mu.Lock()
	switch {
	case err != nil:
		l.writing = false
	case n < len(buf):
		go l.writeRest(buf[n:])
	case len(l.out) > 0: // more came, whose sender has left it to us
		l.giveBack(buf)
		go l.writeRest(nil)
	default:
		l.giveBack(buf)
		l.writing = false
	}
}

func (l *link) writeRest(rest []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write(rest)
}

// kick is flush by somebody else: for callers that may not block.
func (l *link) kick() { go l.flush() }

// call sends a request and gives the channel on which its answer, or the link's end, arrives.
func (l *link) call(h wire.Header, body []byte) <-chan reply {
	ch := make(chan reply, 1)
	h.Seq = l.nextSeq() | callBit
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		ch <- reply{err: errLinkDown}
		return ch
	}
	l.calls[h.Seq] = ch
	l.mu.Unlock()
	l.enqueue(h, body)
	l.push()
	return ch
}

// ask is call and wait.
func (l *link) ask(ctx context.Context, h wire.Header, body []byte) (reply, error) {
	select {
	case r := <-l.call(h, body):
		return r, r.err
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
}

// close ends the session; every call is answered with errLinkDown.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return
	}
	l.dead = true
	l.out = nil
	close(l.down)
	_ = l.conn.Close()
	for seq, ch := range l.calls {
		ch <- reply{err: errLinkDown}
		delete(l.calls, seq)
	}
	clear(l.sent)
}

// oldest is when the oldest unanswered frame was queued, slow ones dated later; 0: none.
func (l *link) oldest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var first time.Duration
	for _, t := range l.sent {
		if first == 0 || t < first {
			first = t
		}
	}
	return first
}

// stuck reports whether the other side has been silent for so much longer than a trip takes that
// the connection is of no use any more. TCP would go on for a quarter of an hour: meanwhile nobody
// would dial again, and whoever writes the buffer out would wait.
func (l *link) stuck() bool {
	first := l.oldest()
	return first != 0 && l.group.host.now()-first > l.group.host.cfg.TripAfter*3/2
}

// read takes the answers in until the link ends.
func (l *link) read() error {
	br := bufio.NewReaderSize(l.conn, 64<<10)
	var scratch [wire.HeaderSize]byte
	var told []*Volume // that have answers for clients since the last look for more
	defer func() { answerAll(told) }()
	for {
		if br.Buffered() < wire.HeaderSize {
			told = answerAll(told)
		}
		h, err := wire.ReadHeader(br, &scratch)
		if err != nil {
			return err
		}
		if h.Session != l.session {
			return fmt.Errorf("%w: answer of session %s on session %s", wire.ErrFrame, h.Session, l.session)
		}
		var body []byte
		if h.BodyLen > 0 {
			body, err = wire.ReadSmallBody(br, &h)
			if err != nil {
				return err
			}
		}
		l.mu.Lock()
		delete(l.sent, h.Seq)
		ch := l.calls[h.Seq]
		delete(l.calls, h.Seq)
		l.mu.Unlock()
		if ch != nil {
			ch <- reply{header: h, body: body, err: h.Status.Err()}
			if err := l.refused(h); err != nil {
				return err
			}
			continue
		}
		if h.Kind != wire.KindAck {
			return fmt.Errorf("%w: kind %d as an answer", wire.ErrFrame, h.Kind)
		}
		if h.Status != wire.StatusOK {
			if err := l.refused(h); err != nil {
				return err
			}
			continue
		}
		if v := l.group.volumeByKey(h.Volume); v != nil {
			v.acknowledged(l, h.Epoch, h.Seq)
			if !slices.Contains(told, v) {
				told = append(told, v)
			}
		}
	}
}

// answerAll sends the answers of volumes to their clients and empties the list.
func answerAll(told []*Volume) []*Volume {
	for i, v := range told {
		v.answer()
		told[i] = nil
	}
	return told[:0]
}

// refused decides what a negative answer means for the link: a newer epoch or session is learned
// by a new hello; an error of the secondary's disk is told to the group.
func (l *link) refused(h wire.Header) error {
	switch h.Status {
	case wire.StatusOK:
		return nil
	case wire.StatusStaleEpoch, wire.StatusUnannounced:
		if h.Epoch < l.group.epochNow() {
			return nil // a frame of the epoch before; it is sent again under the new one
		}
		return h.Status.Err()
	case wire.StatusStaleSession, wire.StatusNotSecondary:
		return h.Status.Err()
	case wire.StatusOutOfRange:
		l.group.log.Error("the secondary refused a range", "volume", h.Volume, "offset", h.Offset, "length", h.Length)
		return nil
	case wire.StatusNoSpace, wire.StatusIO, wire.StatusUnknown:
		l.group.post(protocol.PeerFailed{Peer: l.peer, Reason: fmt.Sprintf("secondary node %s: %v", l.peer, h.Status.Err())})
		return nil
	}
	return h.Status.Err()
}

// dialer keeps one link to one secondary node of a group, for as long as the group wants it.
type dialer struct {
	group *Group
	peer  lockstep.NodeID
	stop  context.CancelFunc
	done  chan struct{}

	mu   sync.Mutex
	link *link // guarded by mu; nil: none
	err  string
}

func (d *dialer) current() *link {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.link
}

func (d *dialer) lastError() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

func (d *dialer) run(ctx context.Context) {
	defer close(d.done)
	backoff := 50 * time.Millisecond
	for ctx.Err() == nil {
		l, err := d.dial(ctx)
		if err == nil {
			backoff = 50 * time.Millisecond
			d.mu.Lock()
			d.link, d.err = l, ""
			d.mu.Unlock()
			d.group.post(protocol.PeerUp{Peer: d.peer, Session: l.session, BootID: l.boot, Instance: l.instance})
			stop := context.AfterFunc(ctx, l.close)
			err = l.read()
			stop()
			l.close()
			d.group.post(protocol.PeerDown{Peer: d.peer, Session: l.session})
		}
		d.mu.Lock()
		d.link = nil
		if err != nil {
			d.err = err.Error()
		}
		d.mu.Unlock()
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
		}
		backoff = min(2*backoff, time.Second)
	}
}

// dial connects and exchanges hellos. A refusal that carries a newer record is passed on.
func (d *dialer) dial(ctx context.Context) (*link, error) {
	g, h := d.group, d.group.host
	conn, err := h.connect(ctx, d.peer, 2*time.Second)
	if err != nil {
		return nil, err
	}
	session := lockstep.Session{Start: h.cfg.Start, Conn: h.conns.Add(1)}
	l := &link{
		group: g, peer: d.peer, session: session, conn: conn,
		nowait: nowait.New(conn),
		calls:  map[uint64]chan reply{}, sent: map[uint64]time.Duration{}, down: make(chan struct{}),
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // whoever stops this waits for it
	answer, err := h.hello(conn, wire.Hello{To: d.peer, Purpose: wire.PurposeGroup, Group: g.id, Session: session, Epoch: g.epochNow()})
	if answer.Record != nil {
		g.passOn(answer.Record)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	l.boot, l.instance = answer.BootID, answer.Instance
	return l, nil
}

// hello performs the dialing side of the handshake within 3 s.
func (h *Host) hello(conn net.Conn, hello wire.Hello) (wire.HelloReply, error) {
	var answer wire.HelloReply
	hello.Cluster, hello.From, hello.BootID, hello.Instance = h.cfg.Cluster, h.cfg.Node, h.cfg.BootID, h.cfg.Instance
	hello.Features, hello.Software = wire.Features, h.cfg.Software
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return answer, err
	}
	if err := wire.WriteJSON(conn, wire.Header{Kind: wire.KindHello}, hello); err != nil {
		return answer, fmt.Errorf("hello to node %s: %w", hello.To, err)
	}
	if _, err := wire.ReadJSON(conn, wire.KindHelloReply, &answer); err != nil {
		return answer, fmt.Errorf("hello from node %s: %w", hello.To, h.noteRefusal(peertls.Rejected(err), "to", hello.To))
	}
	if answer.Error != "" {
		return answer, fmt.Errorf("node %s refused the link: %s", hello.To, answer.Error)
	}
	if answer.Node != hello.To {
		return answer, fmt.Errorf("node %s answered where %s was expected", answer.Node, hello.To)
	}
	for _, f := range wire.Features {
		if !slices.Contains(answer.Features, f) {
			return answer, fmt.Errorf("node %s does not speak %q: it runs an older version", hello.To, f)
		}
	}
	return answer, conn.SetDeadline(time.Time{})
}

package whole

import (
	"context"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// network carries byte streams between hosts, as TCP does over lines that may be cut in one direction
// or both. What was written before a cut is not lost: it arrives after it, even if the sender has closed
// the connection meanwhile, unless its host lost power.
type network struct {
	dice *dice
	// latency is the usual time of a chunk on the way; one in spikeOneIn is lost and sent again, which
	// takes up to spike.
	latency, spike time.Duration
	spikeOneIn     int
	carriers       sync.WaitGroup

	mu        sync.Mutex // guards what follows
	listeners map[string]*listener
	cut       map[way]bool
	slow      map[way]time.Duration
	flip      map[way]bool   // the next chunk arrives with a changed byte
	power     map[string]int // how often a host was switched on or off; odd: it is on
	streams   []*stream
	changed   chan struct{} // closed and renewed when a way opens or a host's power changes
	over      bool
}

// way is a direction between two hosts.
type way struct{ from, to string }

func newNetwork(d *dice) *network {
	return &network{
		dice: d, latency: d.between(50*time.Microsecond, 2*time.Millisecond), spike: d.between(20*time.Millisecond, 400*time.Millisecond), spikeOneIn: 20 + d.below(200),
		listeners: map[string]*listener{}, cut: map[way]bool{}, slow: map[way]time.Duration{}, flip: map[way]bool{}, power: map[string]int{}, changed: make(chan struct{}),
	}
}

// change alters the network's state and lets everybody who waits look again.
func (n *network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *network) setCut(w way, cut bool)            { n.change(func() { n.cut[w] = cut }) }
func (n *network) setSlow(w way, more time.Duration) { n.change(func() { n.slow[w] = more }) }
func (n *network) setFlip(w way)                     { n.change(func() { n.flip[w] = true }) }

func (n *network) heal() {
	n.change(func() {
		clear(n.cut)
		clear(n.slow)
		clear(n.flip)
	})
}

// switchPower turns a host on or off. What it had on the way is gone then, and its peers hear nothing.
func (n *network) switchPower(host string) {
	var lost []*stream
	n.change(func() {
		n.power[host]++
		n.streams = slices.DeleteFunc(n.streams, func(s *stream) bool { return s.over() })
		for _, s := range n.streams {
			if s.dir.from == host {
				lost = append(lost, s)
			}
		}
	})
	for _, s := range lost {
		s.mu.Lock()
		s.sent, s.silent = nil, true
		s.mu.Unlock()
	}
}

// reset breaks the connections between two hosts: a part of what is under way still arrives.
func (n *network) reset(a, b string) {
	for _, s := range n.list() {
		if s.dir == (way{a, b}) || s.dir == (way{b, a}) {
			s.mu.Lock()
			s.here = append(s.here, s.sent[:n.dice.below(len(s.sent)+1)]...)
			s.sent = nil
			s.mu.Unlock()
			s.end(syscall.ECONNRESET)
		}
	}
}

func (n *network) list() []*stream {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.streams)
}

// close ends everything.
func (n *network) close() {
	n.change(func() { n.over = true })
	for _, s := range n.list() {
		s.end(net.ErrClosed)
	}
	n.carriers.Wait()
}

// open says whether a way carries now, and what to wait for if not.
func (n *network) open(w way) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.over || !n.cut[w] && n.power[w.to]%2 == 1, n.changed
}

// delay is how long the next chunk takes.
func (n *network) delay(w way) time.Duration {
	n.mu.Lock()
	more := n.slow[w]
	n.mu.Unlock()
	d := n.dice.between(n.latency/2, n.latency*2) + more
	if n.dice.below(n.spikeOneIn) == 0 {
		d += n.dice.between(0, n.spike)
	}
	return d
}

// stream is one direction of a connection.
type stream struct {
	n     *network
	dir   way
	toOn  int // power[dir.to] when the connection was made
	other *stream
	ended chan struct{} // closed with err

	mu     sync.Mutex // guards what follows
	wakes  *sync.Cond
	sent   []byte // written, not there yet
	here   []byte // arrived, not read
	fin    bool   // the writer has closed
	closed bool   // the reader has closed
	silent bool   // the writer's host lost power: nothing more comes, not even an end
	err    error  // io.EOF: all was read; else it broke
	rd, wd time.Time
}

const (
	streamWindow = 256 << 10
	chunkBytes   = 64 << 10
)

// newStream is called with n.mu held.
func (n *network) newStream(dir way) *stream {
	s := &stream{n: n, dir: dir, toOn: n.power[dir.to], ended: make(chan struct{})}
	s.wakes = sync.NewCond(&s.mu)
	n.streams = append(n.streams, s)
	return s
}

func (s *stream) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

func (s *stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.ended)
	}
	s.wakes.Broadcast()
}

// carry brings what is written to the other end, until the stream ends.
func (s *stream) carry() {
	for {
		s.mu.Lock()
		for len(s.sent) == 0 && !s.fin && s.err == nil {
			s.wakes.Wait()
		}
		size := min(len(s.sent), chunkBytes)
		s.mu.Unlock()
		if !s.arrive(size) {
			return
		}
	}
}

// arrive takes the time of a chunk on the way and delivers it; size 0 is the end of the stream. false: the
// stream has ended.
func (s *stream) arrive(size int) bool {
	time.Sleep(s.n.delay(s.dir))
	for {
		ok, changed := s.n.open(s.dir)
		if ok || s.over() {
			break
		}
		select {
		case <-changed:
		case <-s.ended:
		}
	}
	s.n.mu.Lock()
	stranger := s.n.power[s.dir.to] != s.toOn
	flip := s.n.flip[s.dir] && size > 0
	if flip {
		delete(s.n.flip, s.dir)
	}
	s.n.mu.Unlock()
	s.mu.Lock()
	if s.err != nil || s.silent {
		s.mu.Unlock()
		return false
	}
	if stranger || s.closed && size > 0 { // nobody there knows this connection
		s.mu.Unlock()
		s.end(syscall.ECONNRESET)
		s.other.end(syscall.ECONNRESET)
		return false
	}
	if size == 0 {
		s.mu.Unlock()
		s.end(io.EOF)
		return false
	}
	size = min(size, len(s.sent)) // a reset may have taken it
	chunk := slices.Clone(s.sent[:size])
	s.sent = s.sent[size:]
	if flip && size > 0 {
		chunk[s.n.dice.below(size)] ^= 1 << s.n.dice.below(8)
	}
	s.here = append(s.here, chunk...)
	s.wakes.Broadcast()
	s.mu.Unlock()
	return true
}

// conn is one end of a connection. It belongs to a process, whose gate holds it up.
type conn struct {
	in, out *stream
	p       *proc
}

func expired(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (c *conn) Read(b []byte) (int, error) {
	c.p.gate.pass()
	s := c.in
	s.mu.Lock()
	for len(s.here) == 0 && s.err == nil && !s.closed && !expired(s.rd) {
		s.wakes.Wait()
	}
	n, err := 0, error(nil)
	switch {
	case s.closed:
		err = net.ErrClosed
	case expired(s.rd):
		err = os.ErrDeadlineExceeded
	case len(s.here) > 0:
		n = copy(b, s.here)
		s.here = s.here[n:]
	default:
		err = s.err
	}
	s.mu.Unlock()
	c.p.gate.pass()
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	c.p.gate.pass()
	s := c.out
	s.mu.Lock()
	defer s.mu.Unlock()
	for done := 0; ; {
		switch {
		case s.fin:
			return done, net.ErrClosed
		case s.err != nil:
			return done, syscall.EPIPE
		case expired(s.wd):
			return done, os.ErrDeadlineExceeded
		case done == len(b):
			return done, nil
		}
		if room := streamWindow - len(s.sent); room > 0 && !s.silent {
			part := b[done:min(len(b), done+room)]
			s.sent = append(s.sent, part...)
			done += len(part)
			s.wakes.Broadcast()
			continue
		}
		s.wakes.Wait()
	}
}

// Close sends what is written, and then the end.
func (c *conn) Close() error {
	c.in.mu.Lock()
	c.in.closed = true
	c.in.wakes.Broadcast()
	c.in.mu.Unlock()
	c.out.mu.Lock()
	c.out.fin = true
	c.out.wakes.Broadcast()
	c.out.mu.Unlock()
	return nil
}

type addr string

func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

func (c *conn) LocalAddr() net.Addr  { return addr(c.out.dir.from) }
func (c *conn) RemoteAddr() net.Addr { return addr(c.out.dir.to) }

func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error { c.in.deadline(&c.in.rd, t); return nil }

func (c *conn) SetWriteDeadline(t time.Time) error { c.out.deadline(&c.out.wd, t); return nil }

func (s *stream) deadline(field *time.Time, t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*field = t
	s.wakes.Broadcast()
	if left := time.Until(t); !t.IsZero() && left > 0 {
		time.AfterFunc(left, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.wakes.Broadcast()
		})
	}
}

// listener accepts connections for a process.
type listener struct {
	n      *network
	p      *proc
	addr   string
	queue  chan *conn
	closed chan struct{}
	once   sync.Once
}

func (n *network) listen(p *proc, at string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[at] != nil {
		return nil, syscall.EADDRINUSE
	}
	l := &listener{n: n, p: p, addr: at, queue: make(chan *conn, 128), closed: make(chan struct{})}
	n.listeners[at] = l
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		l.p.gate.pass()
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.n.mu.Lock()
		delete(l.n.listeners, l.addr)
		l.n.mu.Unlock()
		for {
			select {
			case c := <-l.queue:
				_ = c.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return addr(l.addr) }

// dial connects a process to a listener; the address is that of its host.
func (n *network) dial(ctx context.Context, p *proc, to string) (net.Conn, error) {
	p.gate.pass()
	there, back := way{string(p.h.id), to}, way{to, string(p.h.id)}
	for _, w := range []way{there, back} {
		select {
		case <-time.After(n.delay(w)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		for {
			ok, changed := n.open(w)
			if ok {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	p.gate.pass()
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[to]
	if l == nil || n.over || p.dead.Load() {
		return nil, syscall.ECONNREFUSED
	}
	out, in := n.newStream(there), n.newStream(back)
	out.other, in.other = in, out
	mine, theirs := &conn{in: in, out: out, p: p}, &conn{in: out, out: in, p: l.p}
	select {
	case l.queue <- theirs:
	default:
		return nil, syscall.ECONNREFUSED
	}
	n.carriers.Go(out.carry)
	n.carriers.Go(in.carry)
	p.own(mine)
	l.p.own(theirs)
	return mine, nil
}

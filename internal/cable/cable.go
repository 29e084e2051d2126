// Package cable is a network link that can be cut, one way or both, slowed down and reset, without
// root: a TCP proxy between two processes of one machine.
package cable

import (
	"net"
	"sync"
	"time"
)

// Cable is a TCP proxy between a listener of its own and one target. While a direction is cut, bytes
// in it wait, as in a network that drops packets; nothing is lost from a connection that lives on.
// New connections are taken all the same, and get nowhere. It is safe for concurrent use.
type Cable struct {
	target string
	ln     net.Listener

	mu     sync.Mutex // guards what follows
	cut    [2]bool    // to the target, from the target
	rate   int        // bytes per second to the target, 0: no limit
	change chan struct{}
	conns  map[net.Conn]bool
	made   uint64 // connections so far
	late   uint64 // what the first so many of them send to the target waits
	closed bool
	wg     sync.WaitGroup
}

const (
	toTarget = iota
	fromTarget
)

// New listens on a free port of 127.0.0.1 and forwards to target, which need not be there yet.
func New(target string) (*Cable, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Cable{target: target, ln: ln, change: make(chan struct{}), conns: map[net.Conn]bool{}}
	c.wg.Go(c.accept)
	return c, nil
}

// Addr is where it listens.
func (c *Cable) Addr() string { return c.ln.Addr().String() }

// Cut cuts or joins the two directions, seen from who dials.
func (c *Cable) Cut(toCut, fromCut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = [2]bool{toCut, fromCut}
	close(c.change)
	c.change = make(chan struct{})
}

// Sever cuts both directions.
func (c *Cable) Sever() { c.Cut(true, true) }

// Join ends a cut.
func (c *Cable) Join() { c.Cut(false, false) }

// Delay holds back what the connections that are open now send to the target, while later ones are
// not affected: bytes that a network delivers long after they were sent, to a target that has heard
// newer ones. They go on with Deliver, even if who sent them is gone.
func (c *Cable) Delay() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = c.made
}

// Deliver ends a Delay.
func (c *Cable) Deliver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = 0
	close(c.change)
	c.change = make(chan struct{})
}

// Limit bounds the bytes per second to the target; 0: no limit.
func (c *Cable) Limit(rate int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rate = rate
}

// Reset closes every connection that is open.
func (c *Cable) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.conns {
		_ = conn.Close()
	}
}

// Close ends it and all its connections.
func (c *Cable) Close() {
	c.mu.Lock()
	c.closed = true
	close(c.change)
	c.change = make(chan struct{})
	c.mu.Unlock()
	_ = c.ln.Close()
	c.Reset()
	c.wg.Wait()
}

func (c *Cable) keep(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.conns[conn] = true
	return true
}

func (c *Cable) forget(conn net.Conn) {
	c.mu.Lock()
	delete(c.conns, conn)
	c.mu.Unlock()
	_ = conn.Close()
}

func (c *Cable) accept() {
	for {
		in, err := c.ln.Accept()
		if err != nil {
			return
		}
		c.wg.Go(func() { c.serve(in) })
	}
}

func (c *Cable) serve(in net.Conn) {
	defer c.forget(in)
	if !c.keep(in) {
		return
	}
	out, err := net.DialTimeout("tcp", c.target, time.Second)
	if err != nil {
		return
	}
	defer c.forget(out)
	if !c.keep(out) {
		return
	}
	c.mu.Lock()
	c.made++
	number := c.made
	c.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() { c.copy(in, out, fromTarget, number) })
	c.copy(out, in, toTarget, number)
	back.Wait()
}

// copy forwards until either end closes; then both are closed.
func (c *Cable) copy(to, from net.Conn, direction int, number uint64) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !c.pass(direction, number, n) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// pass waits until n bytes of a connection may go on; false: the proxy is closed.
func (c *Cable) pass(direction int, number uint64, n int) bool {
	for {
		c.mu.Lock()
		closed, change, rate := c.closed, c.change, c.rate
		cut := c.cut[direction] || direction == toTarget && number <= c.late
		c.mu.Unlock()
		switch {
		case closed:
			return false
		case cut:
			<-change
			continue
		case direction == toTarget && rate > 0:
			<-time.After(time.Duration(n) * time.Second / time.Duration(rate)) // this is the limit, no wait for a condition
		}
		return true
	}
}

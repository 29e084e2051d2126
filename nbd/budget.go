package nbd

import (
	"context"
	"slices"
	"sync"
)

// ownBytes is what the requests of one connection may hold without asking the server's budget, which
// sets so much aside for every connection that it allows. Usual traffic of small requests lives on
// it and so takes no lock that connections share; and a connection always gets on with requests of
// up to this size, whatever others hold.
const ownBytes = 256 << 10

// budget bounds the memory of request data of a whole server, beyond each connection's ownBytes.
//
// A request takes all it needs before it begins and waits for nothing of the budget afterwards, so
// requests that hold some of it never wait for one another. What they do wait for is the device and
// the client. The client has Limits.StallTimeout. A device may hold requests without limit, and
// clients may be many: so an export may never hold more than is left free. However many connections
// it has, half of the budget is left for others; with k greedy exports, 1/(k+1) of it.
//
// Within an export the order is that of arrival, so that a large request is not starved by small
// ones. Between exports whoever fits goes first: otherwise one that waits for a held export would
// make all wait.
type budget struct {
	size int64

	// mu guards the fields below, and those of shares and claims that say so.
	mu    sync.Mutex
	used  int64
	queue []*claim // in order of arrival
	scan  uint64   // numbers the passes over queue
}

// share is what the connections of one export have in common.
type share struct {
	conns   int    // guarded by Server.mu
	held    int64  // guarded by budget.mu
	waiting int    // claims in the queue; guarded by budget.mu
	blocked uint64 // the last pass that left a claim of this export waiting; guarded by budget.mu

	caching chan struct{} // capacity 1: full while a step of a CACHE is under way
}

// claim is one request's place in the queue.
type claim struct {
	share *share
	ready chan<- struct{} // capacity 1: gets a token when bytes were granted
	// Guarded by budget.mu. A claim is queued, or granted and not yet taken, or neither.
	bytes           int64
	queued, granted bool
}

// take takes n bytes for c's export, or queues c. A claim that was granted meanwhile is taken by
// calling take again, with the same n.
func (b *budget) take(c *claim, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case c.queued:
		return false
	case c.granted:
		c.granted = false
		return true
	case c.share.waiting == 0 && b.fits(c.share, n):
		b.hold(c.share, n)
		return true
	}
	c.bytes, c.queued = n, true
	c.share.waiting++
	b.queue = append(b.queue, c)
	return false
}

// wait is take for a goroutine that has nothing else to look at.
func (b *budget) wait(ctx context.Context, s *share, n int64) error {
	ready := make(chan struct{}, 1)
	c := &claim{share: s, ready: ready}
	if b.take(c, n) {
		return nil
	}
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		b.cancel(c)
		return ctx.Err()
	}
}

// cancel takes c out of the queue, or gives back what it was granted.
func (b *budget) cancel(c *claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case c.queued:
		b.queue = slices.DeleteFunc(b.queue, func(q *claim) bool { return q == c })
		c.share.waiting--
	case c.granted:
		b.hold(c.share, -c.bytes)
	}
	c.queued, c.granted = false, false
	b.grant()
}

// release gives n bytes back.
func (b *budget) release(s *share, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hold(s, -n)
	b.grant()
}

// fits is the rule that an export may not hold more than is left free. Nothing can be held beyond
// size, and an export that holds nothing gets all that is free. It is called with mu held.
func (b *budget) fits(s *share, n int64) bool { return s.held+n <= b.size-b.used }

// hold is called with mu held.
func (b *budget) hold(s *share, n int64) {
	s.held += n
	b.used += n
}

// grant gives what is free to those that wait. It is called with mu held.
func (b *budget) grant() {
	b.scan++
	b.queue = slices.DeleteFunc(b.queue, func(c *claim) bool {
		if c.share.blocked == b.scan || !b.fits(c.share, c.bytes) {
			c.share.blocked = b.scan
			return false
		}
		b.hold(c.share, c.bytes)
		c.share.waiting--
		c.queued, c.granted = false, true
		select {
		case c.ready <- struct{}{}:
		default: // a token is there already
		}
		return true
	})
}

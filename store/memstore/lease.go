package memstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep/store"
)

// renewals is how often a lease is renewed within its TTL.
const renewals = 4

// Grant implements store.Store. The lease is renewed by the store's clock.
func (c *Client) Grant(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	if ttl <= 0 {
		return nil, fmt.Errorf("grant lease of %v: %w", ttl, store.ErrInvalid)
	}
	if err := c.enter(ctx, "grant lease"); err != nil {
		return nil, err
	}
	defer c.srv.mu.Unlock()
	s := c.srv
	s.lastLease++
	l := &lease{c: c, id: s.lastLease, ttl: ttl, lost: make(chan struct{})}
	sl := &serverLease{ttl: ttl, keys: map[string]struct{}{}}
	s.leases[l.id] = sl
	s.extend(l.id, sl)
	l.renewed(sl)
	l.ctx, l.cancel = context.WithCancel(ctx)
	l.schedule()
	// The lease's end by its context needs a goroutine of its own: renewals run by the clock only.
	c.wg.Go(func() {
		select {
		case <-l.ctx.Done():
		case <-c.ctx.Done():
		case <-l.lost:
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		l.end()
	})
	return l, nil
}

// lease is the holder's side.
type lease struct {
	c      *Client
	id     store.LeaseID
	ttl    time.Duration
	ctx    context.Context // ends with the caller's or at Revoke
	cancel context.CancelFunc
	lost   chan struct{}
	once   sync.Once

	// Guarded by the server's mu.
	until time.Time // by the holder's own reckoning
	stop  func()
	over  bool
}

// ID implements store.Lease.
func (l *lease) ID() store.LeaseID { return l.id }

// Lost implements store.Lease.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Revoke implements store.Lease.
func (l *lease) Revoke(ctx context.Context) error {
	s := l.c.srv
	s.mu.Lock()
	l.end()
	s.mu.Unlock()
	if err := l.c.enter(ctx, fmt.Sprintf("revoke lease %x", int64(l.id))); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.expire(l.id)
	return nil
}

// end gives the lease up, with the server's mu held.
func (l *lease) end() {
	l.over = true
	if l.stop != nil {
		l.stop()
	}
	l.once.Do(func() { close(l.lost) })
	l.cancel()
}

// renewed notes until when the holder may count on the lease: a little less than the server keeps
// it, so that a holder that is cut off knows of its loss before anybody else can profit by it.
func (l *lease) renewed(sl *serverLease) {
	l.until = sl.expires.Add(-l.ttl / (2 * renewals))
}

// schedule sets the next renewal, with the server's mu held.
func (l *lease) schedule() {
	wait := max(0, min(l.ttl/renewals, l.until.Sub(l.c.srv.clock.Now())))
	l.stop = l.c.srv.clock.AfterFunc(wait, l.renew)
}

func (l *lease) renew() {
	s := l.c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.over {
		return
	}
	sl := s.leases[l.id]
	switch {
	case l.ctx.Err() != nil:
		l.end()
		return
	case l.c.reachable() && sl == nil:
		l.end()
		return
	case l.c.reachable():
		s.extend(l.id, sl)
		l.renewed(sl)
	case !s.clock.Now().Before(l.until):
		l.end()
		return
	}
	l.schedule()
}

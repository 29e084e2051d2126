// Package lease is about rights that expire: Leader elects one of several controllers, Presence
// announces that a node or controller is alive. Both rest on a lease of the store, which is
// renewed for as long as its holder runs and takes the holder's key along when it is not.
//
// A lease alone protects nothing: a holder that was paused may go on for a moment after somebody
// else has taken over. What a leader writes is protected by its Fence, a comparison in each of its
// transactions that no longer holds once the leadership has passed on. So a deposed leader may
// think, but not commit.
//
// The package never decides who should lead, and never ends the work of a leader by force: it
// cancels the context and waits.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// ErrLost is the cause of a leader's context that ended because the leadership was lost.
var ErrLost = errors.New("leadership lost")

const (
	// revokeTimeout bounds the giving back of a lease at the end; if it is not answered, the lease
	// runs out by itself.
	revokeTimeout = 2 * time.Second

	firstPause   = 50 * time.Millisecond
	longestPause = 2 * time.Second
)

// Candidate is the value of an election's key: who leads.
type Candidate struct {
	ID    string    `json:"id"`
	Lease int64     `json:"lease"`
	Nonce uint64    `json:"nonce"` // tells two terms of one candidate apart
	Since time.Time `json:"since"` // by the candidate's clock, for people only
}

// Fence proves a leadership: the election's key at the revision at which it was won.
type Fence struct {
	Key    string
	ModRev int64
}

// Cmp is what a leader adds to the comparisons of each of its transactions.
func (f Fence) Cmp() store.Cmp { return store.Cmp{Key: f.Key, ModRev: f.ModRev} }

// Check asks the store whether the leadership still stands; if not, the error matches ErrLost.
func (f Fence) Check(ctx context.Context, s store.Store) error {
	ok, _, err := s.Txn(ctx, []store.Cmp{f.Cmp()}, nil)
	if err == nil && !ok {
		err = ErrLost
	}
	if err != nil {
		return fmt.Errorf("check leadership of %s: %w", f.Key, err)
	}
	return nil
}

// Leader runs a function while this process leads.
type Leader struct {
	// Logger gets the beginning and end of each term; slog.Default() if nil.
	Logger *slog.Logger
}

// Run is Leader.Run with the default logger.
func Run(ctx context.Context, s store.Store, key, id string, ttl time.Duration, lead func(ctx context.Context, fence Fence)) error {
	return Leader{}.Run(ctx, s, key, id, ttl, lead)
}

// Run campaigns at key under the name id and calls lead whenever it has won. To lead is the
// lifetime of that call: its context ends, with a cause that matches ErrLost, as soon as the lease
// is or may be lost or the key was changed by somebody else, and with ctx's cause when ctx ends.
// lead must return soon after; Run waits for it, holding the lease if there still is one. When it
// has returned the lease is given back, so that another candidate takes over at once; else one
// does about ttl after the leader's last renewal. A lead that returns by itself gives way: Run
// campaigns again after a pause of up to ttl.
//
// Run waits out an unavailable store, and returns only when ctx has ended, with ctx's cause.
func (l Leader) Run(ctx context.Context, s store.Store, key, id string, ttl time.Duration, lead func(ctx context.Context, fence Fence)) error {
	log := l.Logger
	if log == nil {
		log = slog.Default()
	}
	c := &campaign{s: s, key: key, id: id, ttl: ttl, lead: lead, log: log.With("election", key, "candidate", id)}
	failed := 0
	for ctx.Err() == nil {
		pause := time.Duration(0)
		led, err := c.round(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if failed == 0 {
				c.log.Warn("cannot campaign", "error", err)
			}
			pause = backoff(failed)
			failed++
		case led:
			failed = 0
			pause = ttl/2 + rand.N(ttl/2+1)
		default:
			failed = 0
		}
		sleep(ctx, pause)
	}
	return context.Cause(ctx)
}

// Current tells who leads; lockstep.ErrNotFound if nobody does.
func Current(ctx context.Context, s store.Store, key string) (Candidate, Fence, error) {
	c, rev, err := store.GetT[Candidate](ctx, s, key)
	if err != nil {
		return Candidate{}, Fence{}, err
	}
	return c, Fence{Key: key, ModRev: rev}, nil
}

type campaign struct {
	s       store.Store
	key, id string
	ttl     time.Duration
	lead    func(context.Context, Fence)
	log     *slog.Logger
}

// round waits until the key is free, tries to take it and leads if that succeeded. led: lead was
// called and returned by itself.
func (c *campaign) round(ctx context.Context) (led bool, err error) {
	kvs, rev, err := c.s.List(ctx, c.key)
	if err != nil {
		return false, err
	}
	for _, kv := range kvs {
		if kv.Key == c.key {
			return false, c.waitGone(ctx, rev)
		}
	}
	// The lease outlives ctx until lead has returned: stepping down in order is part of leading.
	lctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	le, err := c.s.Grant(lctx, c.ttl)
	if err != nil {
		return false, err
	}
	defer c.revoke(ctx, le)
	me := Candidate{ID: c.id, Lease: int64(le.ID()), Nonce: rand.Uint64(), Since: time.Now().UTC()}
	_, err = store.NewTx().PutLeased(c.key, me, 0, le.ID()).Commit(ctx, c.s)
	if err != nil && !errors.Is(err, lockstep.ErrStoreUnavailable) {
		if errors.Is(err, lockstep.ErrConflict) || errors.Is(err, store.ErrLeaseGone) {
			return false, nil // somebody was faster, or this process was paused for long
		}
		return false, err
	}
	// Whether the key is ours is read, not assumed: after an error the write may have happened.
	now, fence, err := Current(ctx, c.s, c.key)
	switch {
	case errors.Is(err, lockstep.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case now.Nonce != me.Nonce || now.ID != me.ID:
		return false, nil
	}
	return c.term(ctx, le, fence), nil
}

// waitGone waits until the key is deleted, as seen by a watch from rev.
func (c *campaign) waitGone(ctx context.Context, rev int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for events := range c.s.Watch(ctx, c.key, rev) {
		for _, ev := range events {
			if ev.Key == c.key && ev.Deleted {
				return nil
			}
		}
	}
	// Compacted, closed or ended: the caller looks again, not too soon.
	sleep(ctx, backoff(0))
	return nil
}

// term is one leadership.
func (c *campaign) term(ctx context.Context, le store.Lease, fence Fence) (led bool) {
	tctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		end(c.guard(tctx, le, fence))
	}()
	c.log.Info("leading", "revision", fence.ModRev)
	c.lead(tctx, fence)
	led = tctx.Err() == nil
	why := context.Cause(tctx)
	end(nil)
	<-watched
	c.log.Info("no longer leading", "revision", fence.ModRev, "reason", why)
	return led
}

// guard returns when the leadership is over, and why; nil when ctx ended.
func (c *campaign) guard(ctx context.Context, le store.Lease, fence Fence) error {
	lost := func(why string) error { return fmt.Errorf("%w: %s", ErrLost, why) }
	rev := fence.ModRev
	for {
		wctx, cancel := context.WithCancel(ctx)
		ch := c.s.Watch(wctx, c.key, rev)
		for open := true; open; {
			select {
			case <-ctx.Done():
				cancel()
				return nil
			case <-le.Lost():
				cancel()
				return lost("lease ran out")
			case events, ok := <-ch:
				open = ok
				for _, ev := range events {
					if ev.Key == c.key {
						cancel()
						return lost(fmt.Sprintf("key changed at revision %d", ev.ModRev))
					}
					rev = ev.ModRev
				}
			}
		}
		cancel()
		// The watch was closed: history is gone. Ask, and watch from now on.
		switch next, err := c.stands(ctx, fence); {
		case errors.Is(err, ErrLost):
			return lost("key changed")
		case err == nil:
			rev = next
		}
		pause := time.NewTimer(firstPause)
		select {
		case <-pause.C:
		case <-le.Lost():
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// stands reads whether the fence holds, and at which revision.
func (c *campaign) stands(ctx context.Context, fence Fence) (rev int64, err error) {
	ok, rev, err := c.s.Txn(ctx, []store.Cmp{fence.Cmp()}, nil)
	if err == nil && !ok {
		err = ErrLost
	}
	return rev, err
}

func (c *campaign) revoke(ctx context.Context, le store.Lease) {
	if err := revoke(ctx, le); err != nil {
		c.log.Warn("lease not given back, it runs out by itself", "error", err)
	}
}

// revoke gives a lease back, also when ctx has ended.
func revoke(ctx context.Context, le store.Lease) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeTimeout)
	defer cancel()
	return le.Revoke(ctx)
}

// backoff is a pause with jitter that doubles up to longestPause.
func backoff(attempt int) time.Duration {
	d := min(longestPause, firstPause<<min(attempt, 10))
	return d/2 + rand.N(d/2+1)
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

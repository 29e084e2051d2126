package whole

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

// storeLink is a process's way to the store: calls take time, fail in an outage, and sometimes succeed
// although their answer is lost. It implements store.Store.
type storeLink struct {
	w    *World
	c    *memstore.Client
	who  string
	gate *gate
	dead atomic.Bool

	mu      sync.Mutex // guards what follows
	out     bool       // an outage of this link
	stalled bool       // its process stands still
	writes  int        // transactions asked for
	crashAt int        // the transaction at which onCrash is called; 0: none
	onCrash func()
	readAt  time.Time // when the last read that was answered was begun
}

// lastRead is when the last read that was answered was begun.
func (l *storeLink) lastRead() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.readAt
}

func (l *storeLink) noteRead(began time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if (err == nil || errors.Is(err, lockstep.ErrNotFound)) && began.After(l.readAt) {
		l.readAt = began
	}
}

func newStoreLink(w *World, who string, g *gate) *storeLink {
	l := &storeLink{w: w, c: w.mem.NewClient(), who: who, gate: g}
	w.storeMu.Lock()
	defer w.storeMu.Unlock()
	w.links = append(w.links, l)
	l.out = w.storeOut[who] || w.storeOut[""]
	l.c.SetDown(l.out)
	return l
}

func (l *storeLink) set(f func()) {
	l.mu.Lock()
	f()
	down := l.out || l.stalled || l.dead.Load()
	l.mu.Unlock()
	l.c.SetDown(down)
}

func (l *storeLink) outage(on bool) { l.set(func() { l.out = on }) }
func (l *storeLink) stall(on bool)  { l.set(func() { l.stalled = on }) }

// cutOff is the death of the process.
func (l *storeLink) cutOff() {
	l.dead.Store(true)
	l.set(func() {})
}

func (l *storeLink) close() { _ = l.c.Close() }

// setOutage cuts one process off, or all ("").
func (w *World) setOutage(who string, on bool) {
	w.storeMu.Lock()
	w.storeOut[who] = on
	links := w.links
	w.storeMu.Unlock()
	for _, l := range links {
		w.storeMu.Lock()
		out := w.storeOut[l.who] || w.storeOut[""]
		w.storeMu.Unlock()
		if !l.dead.Load() {
			l.outage(out)
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// call brings a request to the store and its answer back.
func (l *storeLink) call(ctx context.Context, what string, changes bool, f func() error) error {
	l.gate.pass()
	wait(ctx, l.w.storeDice.between(200*time.Microsecond, 4*time.Millisecond))
	l.mu.Lock()
	out := l.out
	crash := false
	if changes && !out {
		l.writes++
		crash = l.writes == l.crashAt
	}
	onCrash := l.onCrash
	l.mu.Unlock()
	if ctx.Err() != nil {
		return store.ContextError(ctx, what)
	}
	gone := fmt.Errorf("%s: %w", what, lockstep.ErrStoreUnavailable)
	if out || l.dead.Load() {
		wait(ctx, l.w.storeDice.between(0, time.Second))
		if ctx.Err() != nil {
			return store.ContextError(ctx, what)
		}
		return gone
	}
	if crash && l.w.storeDice.chance(0.5) { // before it was committed
		onCrash()
		return gone
	}
	err := f()
	if crash {
		onCrash()
		return gone
	}
	wait(ctx, l.w.storeDice.between(200*time.Microsecond, 4*time.Millisecond))
	l.gate.pass()
	if l.dead.Load() || changes && err == nil && l.w.storeDice.chance(l.w.loseAnswers) {
		return gone
	}
	return err
}

// Get implements store.Store.
func (l *storeLink) Get(ctx context.Context, key string) (kv store.KV, err error) {
	defer func(began time.Time) { l.noteRead(began, err) }(time.Now())
	err = l.call(ctx, "get "+key, false, func() (err error) {
		kv, err = l.c.Get(ctx, key)
		return err
	})
	return kv, err
}

// List implements store.Store.
func (l *storeLink) List(ctx context.Context, prefix string) (kvs []store.KV, rev int64, err error) {
	defer func(began time.Time) { l.noteRead(began, err) }(time.Now())
	err = l.call(ctx, "list "+prefix, false, func() (err error) {
		kvs, rev, err = l.c.List(ctx, prefix)
		return err
	})
	return kvs, rev, err
}

// Txn implements store.Store.
func (l *storeLink) Txn(ctx context.Context, cmps []store.Cmp, ops []store.Op) (ok bool, rev int64, err error) {
	err = l.call(ctx, "transaction", true, func() (err error) {
		ok, rev, err = l.c.Txn(ctx, cmps, ops)
		return err
	})
	return ok, rev, err
}

// Watch implements store.Store; events come late.
func (l *storeLink) Watch(ctx context.Context, prefix string, fromRev int64) <-chan []store.Event {
	in, out := l.c.Watch(ctx, prefix, fromRev), make(chan []store.Event)
	go func() {
		defer close(out)
		for events := range in {
			d := l.w.storeDice.between(100*time.Microsecond, 10*time.Millisecond)
			if l.w.storeDice.below(100) == 0 {
				d = l.w.storeDice.between(0, 2*time.Second)
			}
			wait(ctx, d)
			l.gate.pass()
			select {
			case out <- events:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// Grant implements store.Store.
func (l *storeLink) Grant(ctx context.Context, ttl time.Duration) (le store.Lease, err error) {
	err = l.call(ctx, "grant lease", false, func() (err error) {
		le, err = l.c.Grant(ctx, ttl)
		return err
	})
	return le, err
}

// Close implements store.Store.
func (l *storeLink) Close() error { return nil }

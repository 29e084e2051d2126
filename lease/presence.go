package lease

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// ErrReplaced says that another process announced itself under the same name; it matches
// lockstep.ErrConflict.
var ErrReplaced = fmt.Errorf("%w: announced by another process", lockstep.ErrConflict)

// PresenceKey is where a thing of that kind announces itself.
func PresenceKey(kind, id string) string { return "alive/" + kind + "/" + id }

// Presence announces that a process is alive.
type Presence struct {
	// Logger gets losses and errors; slog.Default() if nil.
	Logger *slog.Logger
}

// Run keeps the record value under alive/<kind>/<id>, tied to a lease of ttl, until ctx ends; then
// the lease is given back, which removes the key. A lease or key that was lost is made anew, with
// a bounded back-off while the store does not answer. A key of an earlier life of the same thing
// is taken over at once.
//
// Run returns ctx's cause when ctx has ended. It returns earlier, with an error that matches
// ErrReplaced, if another process has written the key: the later one stands. value is encoded at
// the beginning, and must differ between two processes for that to be noticed (a start counter).
func (p Presence) Run(ctx context.Context, s store.Store, kind, id string, ttl time.Duration, value any) error {
	log := p.Logger
	if log == nil {
		log = slog.Default()
	}
	a := &announcement{s: s, key: PresenceKey(kind, id), ttl: ttl, value: store.Encode(value), log: log}
	failed := 0
	for ctx.Err() == nil {
		up, err := a.life(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, ErrReplaced) {
			return err
		}
		if up {
			failed = 0
			log.Warn("presence lost", "key", a.key, "error", err)
		} else if failed == 0 {
			log.Warn("cannot announce presence", "key", a.key, "error", err)
		}
		sleep(ctx, backoff(failed))
		failed++
	}
	return context.Cause(ctx)
}

type announcement struct {
	s     store.Store
	key   string
	ttl   time.Duration
	value []byte
	log   *slog.Logger
}

// life holds one lease with the key. up: the key was there.
func (a *announcement) life(ctx context.Context) (up bool, err error) {
	// Ended by revoke alone, so that the key does not go before this call does.
	lctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	le, err := a.s.Grant(lctx, a.ttl)
	if err != nil {
		return false, err
	}
	defer func() {
		if rerr := revoke(ctx, le); rerr != nil {
			a.log.Warn("lease not given back, it runs out by itself", "key", a.key, "error", rerr)
		}
	}()
	_, rev, err := a.s.Txn(ctx, nil, []store.Op{{Key: a.key, Value: a.value, Lease: le.ID()}})
	if err != nil {
		return false, err
	}
	return true, a.hold(ctx, le, rev)
}

// hold returns when the key at rev or its lease is gone, or ctx has ended.
func (a *announcement) hold(ctx context.Context, le store.Lease, rev int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Loss of the lease ends the watch too, and so every wait below.
	stop := make(chan struct{})
	defer func() { <-stop }()
	go func() {
		defer close(stop)
		select {
		case <-le.Lost():
			cancel()
		case <-ctx.Done():
		}
	}()
	defer cancel()
	for {
		for events := range a.s.Watch(ctx, a.key, rev) {
			for _, ev := range events {
				if err := a.judge(ev); err != nil {
					return err
				}
				rev = ev.ModRev
			}
		}
		if ctx.Err() != nil {
			return errors.New("lease ran out")
		}
		// History was compacted. To begin a new life would take the key away for a moment, and
		// somebody might act on that; so look, and watch on.
		sleep(ctx, backoff(0))
		kvs, now, err := a.s.List(ctx, a.key)
		if err != nil {
			continue // the watch from rev is closed again at once, which leads back here
		}
		state := store.Event{KV: store.KV{Key: a.key, ModRev: now}, Deleted: true}
		for _, kv := range kvs {
			if kv.Key == a.key {
				state = store.Event{KV: kv}
			}
		}
		if err := a.judge(state); err != nil {
			return err
		}
		rev = now
	}
}

// judge tells whether the key, by its last change, still is this announcement.
func (a *announcement) judge(ev store.Event) error {
	switch {
	case ev.Key != a.key:
		return nil
	case ev.Deleted:
		return fmt.Errorf("key deleted at revision %d", ev.ModRev)
	// Equal: an own write whose answer was lost may arrive late.
	case !bytes.Equal(ev.Value, a.value):
		return fmt.Errorf("%s at revision %d: %w", a.key, ev.ModRev, ErrReplaced)
	}
	return nil
}

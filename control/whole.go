package control

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep/store"
)

// whole is reading all of the store, which takes seconds and much memory where that is large: one does it at
// a time, and those who waited for it take what it found if that is new enough for them.
type whole struct {
	turn    chan struct{} // capacity 1: full while somebody reads
	waiting atomic.Int64  // for a turn
	took    atomic.Int64  // nanoseconds, the last time

	mu   sync.Mutex // guards the two below
	snap *snapshot  // what was read last; nil: nobody waited for it. It does not change any more
	from int64      // every change up to this revision is in it
}

// enter waits for the turn; false: ctx ended first.
func (w *whole) enter(ctx context.Context) bool {
	w.waiting.Add(1)
	defer w.waiting.Add(-1)
	select {
	case w.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// leave ends the turn. What was read is kept for as long as somebody waits.
func (w *whole) leave() {
	if w.waiting.Load() == 0 {
		w.mu.Lock()
		w.snap = nil
		w.mu.Unlock()
	}
	<-w.turn
}

// found is what somebody else read, if it holds every change up to rev; else nil.
func (w *whole) found(rev int64) *snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.snap == nil || w.from < rev {
		return nil
	}
	return w.snap
}

// load reads a snapshot from the store, one list per prefix, in which every change up to revision from is.
// The caller has the turn.
func (w *whole) load(ctx context.Context, c *Controller) (s *snapshot, from int64, err error) {
	began := time.Now()
	s, now := newSnapshot(), c.cfg.Now()
	for i, prefix := range followed {
		kvs, rev, err := c.cfg.Store.List(ctx, prefix)
		if err != nil {
			return nil, 0, err
		}
		if i == 0 || rev < from {
			from = rev
		}
		for _, kv := range kvs {
			if _, _, err := s.apply(kv.Key, kv.Value, false, now); err != nil {
				c.log.Error("a value in the store cannot be read", "key", kv.Key, "error", err)
			}
		}
	}
	w.took.Store(int64(time.Since(began)))
	return s, from, nil
}

// read calls fn with a snapshot at least as new as every change that was committed before read
// began, at the cost of one small request to the store. fn must not keep or change it, nor call
// the store.
func (c *Controller) read(ctx context.Context, fn func(*snapshot)) error {
	_, rev, err := c.cfg.Store.List(ctx, store.KeyCluster)
	if err != nil {
		return asRefusal(err)
	}
	if c.cache.readAt(ctx, rev, c.cacheWait(), fn) {
		return nil
	}
	late := c.peekCache(func(*snapshot) {}) // it follows, and was waited for
	w := &c.cache.whole
	if !w.enter(ctx) {
		return asRefusal(store.ContextError(ctx, "read the store"))
	}
	s := w.found(rev)
	within := time.Duration(0)
	if !late {
		within = c.cacheWait()
	}
	if s == nil && c.cache.readAt(ctx, rev, within, fn) { // it was read for the cache meanwhile
		w.leave()
		return nil
	}
	if s == nil {
		var from int64
		if s, from, err = w.load(ctx, c); err == nil {
			w.mu.Lock()
			w.snap, w.from = s, from
			w.mu.Unlock()
		}
	}
	w.leave()
	if err != nil {
		return asRefusal(err)
	}
	fn(s)
	return nil
}

// cacheWait is how long a read waits for the cache: where reading the store takes longer, as long as that.
func (c *Controller) cacheWait() time.Duration {
	return max(c.cfg.CacheWait, time.Duration(c.cache.whole.took.Load()))
}

// readAt calls fn with the cache's snapshot once that holds revision rev; false: it does not follow, or not
// in time.
func (k *cache) readAt(ctx context.Context, rev int64, within time.Duration, fn func(*snapshot)) bool {
	if !k.at(ctx, rev, within) {
		return false
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.snap == nil || k.rev < rev {
		return false
	}
	fn(k.snap)
	return true
}

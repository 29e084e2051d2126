package memstore

import (
	"context"
	"strings"

	"github.com/lockstep-dr/lockstep/store"
)

// watchQueue is how many batches wait for a slow reader of a watch; the rest stays in history.
const watchQueue = 16

// Watch implements store.Store.
func (c *Client) Watch(ctx context.Context, prefix string, fromRev int64) <-chan []store.Event {
	out := make(chan []store.Event, watchQueue)
	// Under the lock, so that Close either sees the watch or the watch sees Close.
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	if c.ctx.Err() != nil || ctx.Err() != nil {
		close(out)
		return out
	}
	c.wg.Go(func() {
		defer close(out)
		c.watch(ctx, prefix, fromRev, out)
	})
	return out
}

func (c *Client) watch(ctx context.Context, prefix string, rev int64, out chan<- []store.Event) {
	for {
		batch, upTo, changed, ok := c.next(prefix, rev)
		if !ok {
			return
		}
		rev = upTo
		if len(batch) > 0 {
			select {
			case out <- batch:
				continue
			case <-ctx.Done():
				return
			case <-c.ctx.Done():
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-c.ctx.Done():
			return
		}
	}
}

// next gives the events after rev, the revision up to which they reach, and a channel that is
// closed at the next change. ok is false when history after rev has been compacted away.
func (c *Client) next(prefix string, rev int64) (batch []store.Event, upTo int64, changed <-chan struct{}, ok bool) {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	s := c.srv
	if !c.reachable() {
		return nil, rev, s.changed, true
	}
	if rev < s.compacted {
		return nil, rev, nil, false
	}
	for _, ev := range s.history[s.after(rev):] {
		if strings.HasPrefix(ev.Key, prefix) {
			ev.KV = clone(ev.KV)
			batch = append(batch, ev)
		}
	}
	// A watch from a revision that is yet to come waits for it.
	return batch, max(rev, s.rev), s.changed, true
}

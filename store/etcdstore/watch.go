package etcdstore

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-dr/lockstep/store"
)

const (
	// watchQueue is how many batches wait for a slow reader of a watch.
	watchQueue = 16
	// slowReader is how long a reader may keep a full queue before the watch at etcd is ended: the
	// client library buffers without bound for an open watch. It is taken up again from the last
	// revision delivered once the reader goes on.
	slowReader = time.Second
	// rewatch is the pause before a watch is opened again after an error that the client library
	// does not mend itself, such as a member without a leader.
	rewatch = 250 * time.Millisecond
)

// Watch implements store.Store. A reader that falls behind for longer than etcd keeps history
// finds the channel closed.
func (s *Store) Watch(ctx context.Context, prefix string, fromRev int64) <-chan []store.Event {
	out := make(chan []store.Event, watchQueue)
	ok := s.start(func() {
		defer close(out)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.ctx, cancel)()
		w := watch{s: s, caller: ctx, prefix: prefix, next: fromRev + 1, out: out}
		for w.run() {
			select {
			case <-time.After(rewatch):
			case <-ctx.Done():
				return
			}
		}
	})
	if !ok {
		close(out)
	}
	return out
}

// watch is one caller's watch across any number of etcd's.
type watch struct {
	s      *Store
	caller context.Context
	prefix string
	next   int64 // first revision not yet delivered
	out    chan<- []store.Event
}

// run watches until etcd's watch ends; true: open another one.
func (w *watch) run() bool {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(w.caller))
	defer cancel()
	// Progress notices carry next forward on a quiet prefix; without them a watch that saw no
	// event for long would resume at a revision that is compacted away.
	wch := w.s.cli.Watch(ctx, w.s.prefix+w.prefix, clientv3.WithPrefix(), clientv3.WithRev(w.next), clientv3.WithProgressNotify())
	for resp := range wch {
		if resp.CompactRevision != 0 {
			return false
		}
		if err := resp.Err(); err != nil {
			w.s.log.Warn("watch interrupted", "prefix", w.prefix, "error", err)
			return w.caller.Err() == nil
		}
		if resp.IsProgressNotify() {
			w.next = max(w.next, resp.Header.Revision+1)
			continue
		}
		if len(resp.Events) == 0 {
			continue
		}
		batch := make([]store.Event, len(resp.Events))
		for i, ev := range resp.Events {
			batch[i] = store.Event{
				KV: store.KV{
					Key:    string(ev.Kv.Key[len(w.s.prefix):]),
					ModRev: ev.Kv.ModRevision, CreateRev: ev.Kv.CreateRevision,
				},
				Deleted: ev.Type == clientv3.EventTypeDelete,
			}
			if !batch[i].Deleted {
				batch[i].Value = ev.Kv.Value
			}
		}
		slow, ok := w.deliver(cancel, batch)
		if !ok {
			return false
		}
		w.next = batch[len(batch)-1].ModRev + 1
		if slow {
			return true
		}
	}
	return w.caller.Err() == nil
}

// deliver hands a batch to the reader. slow: the watch at etcd was ended meanwhile. ok is false
// when the caller's context ended first.
func (w *watch) deliver(end context.CancelFunc, batch []store.Event) (slow, ok bool) {
	select {
	case w.out <- batch:
		return false, true
	default:
	}
	t := time.NewTimer(slowReader)
	defer t.Stop()
	select {
	case w.out <- batch:
		return false, true
	case <-w.caller.Done():
		return false, false
	case <-t.C:
	}
	end()
	select {
	case w.out <- batch:
		return true, true
	case <-w.caller.Done():
		return true, false
	}
}

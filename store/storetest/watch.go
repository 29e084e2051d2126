package storetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/store"
)

// collect reads n events from a watch.
func collect(t *testing.T, ch <-chan []store.Event, n int) []store.Event {
	t.Helper()
	var all []store.Event
	timeout := time.After(patience)
	for len(all) < n {
		select {
		case batch, ok := <-ch:
			if !ok {
				t.Fatalf("watch closed after %d of %d events", len(all), n)
			}
			all = append(all, batch...)
		case <-timeout:
			t.Fatalf("%d of %d events within %v", len(all), n, patience)
		}
	}
	return all
}

// closed waits until the channel is closed, whatever it still delivers.
func closed[T any](t *testing.T, what string, ch <-chan T) {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case _, ok := <-ch:
			if !ok {
				return
			}
		case <-timeout:
			t.Fatalf("%s within %v", what, patience)
		}
	}
}

func show(events []store.Event) []string {
	var out []string
	for _, ev := range events {
		s := fmt.Sprintf("%s=%s", ev.Key, ev.Value)
		if ev.Deleted {
			s = "-" + ev.Key
			if ev.Value != nil {
				s += " with a value"
			}
		}
		out = append(out, s)
	}
	return out
}

func testWatchFromRevision(ctx context.Context, t *testing.T, s store.Store) {
	put(ctx, t, s, "w/a", "1")
	rev := put(ctx, t, s, "w/b", "2")
	third := put(ctx, t, s, "w/a", "3")
	gone := remove(ctx, t, s, "w/b")
	ch := s.Watch(ctx, "w/", rev)
	if ok, _, err := s.Txn(ctx, nil, []store.Op{{Key: "w/c", Value: []byte("4")}, {Key: "w/a", Delete: true}, {Key: "w/d", Value: []byte("5")}}); err != nil || !ok {
		t.Fatal(ok, err)
	}
	events := collect(t, ch, 5)
	if want := []string{"w/a=3", "-w/b", "w/c=4", "-w/a", "w/d=5"}; !slices.Equal(show(events), want) {
		t.Fatalf("watched %q, want %q", show(events), want)
	}
	if events[0].ModRev != third || events[1].ModRev != gone {
		t.Errorf("revisions %d and %d, want %d and %d", events[0].ModRev, events[1].ModRev, third, gone)
	}
	if events[2].ModRev != events[3].ModRev || events[3].ModRev != events[4].ModRev {
		t.Errorf("one transaction, revisions %d, %d, %d", events[2].ModRev, events[3].ModRev, events[4].ModRev)
	}
	// From the very beginning.
	if got := show(collect(t, s.Watch(ctx, "w/", 0), 7))[0]; got != "w/a=1" {
		t.Errorf("the first change ever was %s", got)
	}
}

func testWatchPrefix(ctx context.Context, t *testing.T, s store.Store) {
	_, rev, err := s.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	ch := s.Watch(ctx, "w/", rev)
	for _, k := range []string{"w", "v/a", "w0", "w/x", "x/w/", "w/y"} {
		put(ctx, t, s, k, "")
	}
	if got, want := show(collect(t, ch, 2)), []string{"w/x=", "w/y="}; !slices.Equal(got, want) {
		t.Fatalf("watched %q, want %q", got, want)
	}
}

// testWatchOrder: watches begun at arbitrary moments during concurrent writes, each at the
// revision of a list, must together with that list give every change once and in order.
func testWatchOrder(ctx context.Context, t *testing.T, s store.Store) {
	const writers, writes, watches = 4, 50, 5
	type run struct {
		kvs []store.KV
		rev int64
		ch  <-chan []store.Event
	}
	runs := make(chan run, watches)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range writes {
				_, _, err := s.Txn(ctx, nil, []store.Op{{Key: fmt.Sprintf("w/%d", w), Value: fmt.Append(nil, i)}})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		defer close(runs)
		for range watches {
			kvs, rev, err := s.List(ctx, "w/")
			if err != nil {
				t.Error(err)
				return
			}
			runs <- run{kvs: kvs, rev: rev, ch: s.Watch(ctx, "w/", rev)}
		}
	})
	wg.Wait()
	for r := range runs {
		at := map[string]int{}
		left := writers * writes
		for _, kv := range r.kvs {
			var n int
			if _, err := fmt.Sscan(string(kv.Value), &n); err != nil {
				t.Fatal(err)
			}
			at[kv.Key] = n + 1
			left -= n + 1
		}
		last := r.rev
		for _, ev := range collect(t, r.ch, left) {
			if want := fmt.Sprint(at[ev.Key]); string(ev.Value) != want {
				t.Fatalf("from %d: %s is %s, want %s", r.rev, ev.Key, ev.Value, want)
			}
			if ev.ModRev <= last {
				t.Fatalf("revision %d after %d", ev.ModRev, last)
			}
			at[ev.Key]++
			last = ev.ModRev
		}
	}
}

// testWatchSlow: a reader that stands still while much is written gets all of it afterwards.
func testWatchSlow(ctx context.Context, t *testing.T, s store.Store) {
	_, rev, err := s.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	ch := s.Watch(ctx, "w/", rev)
	// One write after the other, long enough for a watch that gives up on slow readers to do so.
	const n = 300
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for i := range n {
		put(ctx, t, s, "w/a", fmt.Sprint(i))
		<-pace.C
	}
	for i, ev := range collect(t, ch, n) {
		if string(ev.Value) != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, ev.Value)
		}
	}
}

func testWatchEnds(ctx context.Context, t *testing.T, s store.Store) {
	wctx, cancel := context.WithCancel(ctx)
	ch := s.Watch(wctx, "w/", 0)
	put(ctx, t, s, "w/a", "")
	collect(t, ch, 1)
	cancel()
	closed(t, "watch was not closed after its context", ch)
	closed(t, "watch with a dead context was not closed", s.Watch(wctx, "w/", 0))
}

func testWatchClosed(ctx context.Context, t *testing.T, s store.Store) {
	ch := s.Watch(ctx, "w/", 0)
	put(ctx, t, s, "w/a", "")
	collect(t, ch, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	closed(t, "watch was not closed with its store", ch)
	closed(t, "watch of a closed store was not closed", s.Watch(ctx, "w/", 0))
}

package control

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Goal: one worker per subject, no change lost while it works, and timers that do not multiply.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		q := newQueue()
		a, b := subject{kindGroup, "a"}, subject{kindGroup, "b"}
		q.add(a)
		q.add(a)
		q.add(b)
		for _, want := range []subject{a, b} {
			if got, ok := q.next(ctx); !ok || got != want {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
		q.add(a) // while it is worked on
		got := make(chan subject, 8)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				sub, ok := q.next(ctx)
				if !ok {
					return
				}
				got <- sub
			}
		}()
		synctest.Wait()
		if len(got) != 0 {
			t.Fatal("a subject was given to two workers")
		}
		q.done(a, 0)
		synctest.Wait()
		if len(got) != 1 || <-got != a {
			t.Fatal("the change during the work was lost")
		}
		for range 10 {
			q.done(a, time.Minute)
			q.done(b, time.Second)
		}
		q.mu.Lock()
		timers := len(q.later)
		q.mu.Unlock()
		if timers != 2 {
			t.Fatalf("%d timers for two subjects", timers)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(got) != 1 || <-got != b {
			t.Fatal("b did not come after a second")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(got) != 1 || <-got != a {
			t.Fatal("a did not come after a minute")
		}
		cancel()
		<-done
	})
}

// Goal: what was there when a leader began waits for what changes, is worked on once, and is not lost where it
// changes meanwhile or is worked on.
func TestQueueLast(t *testing.T) {
	q := newQueue()
	sub := func(i int) subject { return subject{kindGroup, string(rune('a' + i))} }
	for i := range 4 {
		q.addLast(sub(i))
		q.addLast(sub(i))
	}
	q.add(sub(9))
	q.add(sub(2)) // it waits no longer
	var order []subject
	for range 5 {
		got, ok := q.next(t.Context())
		if !ok {
			t.Fatal("no subject")
		}
		order = append(order, got)
	}
	if want := []subject{sub(9), sub(2), sub(0), sub(1), sub(3)}; !slices.Equal(order, want) {
		t.Fatalf("the order was %v, want %v", order, want)
	}
	q.addLast(sub(0)) // while it is worked on
	for _, s := range order {
		q.done(s, 0)
	}
	if got, _ := q.next(t.Context()); got != sub(0) {
		t.Fatalf("%v came, want %v once more", got, sub(0))
	}
	q.done(sub(0), 0)
	q.addLast(sub(0))
	for i := 0; ; i++ { // with other work at all times
		q.add(sub(1))
		got, _ := q.next(t.Context())
		q.done(got, 0)
		if got == sub(0) {
			break
		}
		if i > 2*lastEvery {
			t.Fatal("what waits last is never worked on")
		}
	}
	if got, _ := q.next(t.Context()); got != sub(1) {
		t.Fatalf("%v came, want %v", got, sub(1))
	}
	q.done(sub(1), 0)
	q.mu.Lock()
	defer q.mu.Unlock()
	if left := len(q.waiting) + len(q.last) + len(q.idle) + len(q.queued) + len(q.working) + len(q.again); left != 0 {
		t.Fatalf("%d things are left in the queue", left)
	}
}

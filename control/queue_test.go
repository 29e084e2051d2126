package control

import (
	"context"
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

package identity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-dr/lockstep/api/rest"
)

// TestFailedLoginsTogether: however many logins come at once, no more than the bound are checked before they are
// refused, and none that is right is refused for others that are under way.
func TestFailedLoginsTogether(t *testing.T) {
	_, s, _, c := setup(t)
	together := func(n int, l login) map[int]int {
		var wg sync.WaitGroup
		answers := make(chan int, n)
		for range n {
			wg.Go(func() {
				status := 201
				var e *rest.Error
				if _, _, err := s.login(t.Context(), l); errors.As(err, &e) {
					status = e.Status
				} else if err != nil {
					t.Error(err)
				}
				answers <- status
			})
		}
		wg.Wait()
		close(answers)
		got := map[int]int{}
		for status := range answers {
			got[status]++
		}
		return got
	}
	right, wrong := byPassword("admin", secret, ""), byPassword("admin", "no", "")
	right.remote, wrong.remote = "a", "a"
	if got := together(maxUserFailures+2, right); got[201] != maxUserFailures+2 {
		t.Errorf("right logins together: %v", got)
	}
	if got := together(2*maxUserFailures, wrong); got[401] != maxUserFailures || got[429] != maxUserFailures {
		t.Errorf("wrong logins together: %v", got)
	}
	c.advance(failureWindow)
	for range maxUserFailures - 1 {
		if _, _, err := s.login(t.Context(), wrong); err == nil {
			t.Fatal("a wrong password was taken")
		}
	}
	if got := together(3, right); got[201] != 3 {
		t.Errorf("right logins together after almost too many failures: %v", got)
	}
	if got := together(1, wrong); got[401] != 1 { // they forgot the failures
		t.Errorf("a wrong login: %v", got)
	}
	if got := together(1, right); got[201] != 1 {
		t.Errorf("a right login: %v", got)
	}
	for k, n := range s.limit.counts {
		if n.open != 0 {
			t.Errorf("%v: %d attempts are still under way", k, n.open)
		}
	}
}

// TestThrottleWaits: an attempt that would be one too many if all failed waits for those under way, and is
// refused or admitted by how they end. One that is cut off stops waiting.
func TestThrottleWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(time.Now)
		open := make([]*attempt, maxUserFailures)
		for i := range open {
			a, err := th.begin(t.Context(), "u", "r")
			if err != nil {
				t.Fatal(err)
			}
			open[i] = a
		}
		type result struct {
			a   *attempt
			err error
		}
		next := func(ctx context.Context) chan result {
			done := make(chan result, 1)
			go func() {
				a, err := th.begin(ctx, "u", "r")
				done <- result{a, err}
			}()
			synctest.Wait()
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		cut := next(ctx)
		cancel()
		if r := <-cut; !errors.Is(r.err, context.Canceled) {
			t.Errorf("a wait that was cut off: %v", r.err)
		}
		waits := next(t.Context())
		select {
		case r := <-waits:
			t.Fatalf("one attempt too many was not held: %v", r)
		default:
		}
		open[0].dropped() // tells nothing: there is a place again
		r := <-waits
		if r.err != nil {
			t.Fatal(r.err)
		}
		waits = next(t.Context())
		r.a.failed()
		for _, a := range open[1:] {
			a.failed()
		}
		var e *rest.Error
		if r := <-waits; !errors.As(r.err, &e) || e.Status != 429 {
			t.Errorf("after all others failed: %v", r.err)
		}
		if a, err := th.begin(t.Context(), "u", "elsewhere"); err != nil {
			t.Errorf("from another address: %v", err)
		} else {
			a.passed()
		}
		time.Sleep(failureWindow)
		if a, err := th.begin(t.Context(), "u", "r"); err != nil {
			t.Errorf("after the window: %v", err)
		} else {
			a.passed()
		}
	})
}

// TestThrottleBounds: all users of one address together have a bound, and what is remembered has one.
func TestThrottleBounds(t *testing.T) {
	c := &clock{t: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	th := newThrottle(c.now)
	fail := func(user, remote string) error {
		a, err := th.begin(t.Context(), user, remote)
		if err == nil {
			a.failed()
		}
		return err
	}
	for i := range maxRemoteFailures {
		if err := fail(fmt.Sprint(i), "r"); err != nil {
			t.Fatalf("failure %d: %v", i, err)
		}
	}
	var e *rest.Error
	if err := fail("new", "r"); !errors.As(err, &e) || e.Status != 429 || e.Header.Get("Retry-After") != "301" {
		t.Errorf("beyond the bound of an address: %v", err)
	}
	if err := fail("new", "other"); err != nil {
		t.Errorf("another address: %v", err)
	}
	held, err := th.begin(t.Context(), "held", "held")
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxThrottled {
		if err := fail("u", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		if n := len(th.counts); n > maxThrottled+2 {
			t.Fatalf("%d counts are kept", n)
		}
	}
	if th.counts[attemptKey{"held", "held"}].open != 1 {
		t.Error("an attempt under way was forgotten")
	}
	held.passed()
}

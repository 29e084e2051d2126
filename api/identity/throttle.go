package identity

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep/api/rest"
)

// Bounds of failed logins within failureWindow. They are counted by each controller for itself, in
// memory. There is none for a user alone, whatever the address: it would let strangers lock users out.
const (
	failureWindow     = 5 * time.Minute
	maxUserFailures   = 10  // of one user from one address
	maxRemoteFailures = 300 // of all users from one address
	maxThrottled      = 20000
)

// throttle counts failed logins, and knows those under way: as many are under way at once as may fail, so
// the bounds hold however many come together. A login that succeeds is never counted.
type throttle struct {
	now func() time.Time

	mu     sync.Mutex // guards the rest; never held while a password is checked
	counts map[attemptKey]count
	ended  chan struct{} // closed, and made anew, when an attempt ends
}

// attemptKey is who is counted: a user from an address, or with no user all from the address.
type attemptKey struct{ user, remote string }

func (k attemptKey) bound() int {
	if k.user == "" {
		return maxRemoteFailures
	}
	return maxUserFailures
}

type count struct {
	failed int       // since then
	since  time.Time // of the first failure
	open   int       // attempts under way
}

// attempt is a login under way. Exactly one of its methods is called, once.
type attempt struct {
	t    *throttle
	keys [2]attemptKey
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, counts: map[attemptKey]count{}, ended: make(chan struct{})}
}

// begin admits a login, in one step with what counts it. It refuses with 429 after too many failures, and
// waits where the attempts under way could become too many if they failed. ctx ends the wait.
func (t *throttle) begin(ctx context.Context, user, remote string) (*attempt, error) {
	a := &attempt{t: t, keys: [2]attemptKey{{user, remote}, {"", remote}}}
	for {
		ended, err := a.try()
		if ended == nil {
			return a, err
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// try gives what to wait for before the next try; nil if the attempt was admitted or, with an error, refused.
func (a *attempt) try() (<-chan struct{}, error) {
	t, now := a.t, a.t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	full := false
	for _, k := range a.keys {
		c := t.at(k, now)
		if c.failed >= k.bound() {
			seconds := int(c.since.Add(failureWindow).Sub(now)/time.Second) + 1
			return nil, &rest.Error{
				Status:  http.StatusTooManyRequests,
				Message: fmt.Sprintf("too many failed logins; try again in %d s", seconds),
				Header:  http.Header{"Retry-After": {fmt.Sprint(seconds)}},
			}
		}
		full = full || c.failed+c.open >= k.bound()
	}
	if full {
		return t.ended, nil
	}
	t.makeRoom(now)
	for _, k := range a.keys {
		c := t.at(k, now)
		c.open++
		t.counts[k] = c
	}
	return nil, nil
}

// at is the count of a key, whose failures are forgotten after their time. t.mu is held.
func (t *throttle) at(k attemptKey, now time.Time) count {
	c := t.counts[k]
	if now.Sub(c.since) >= failureWindow {
		c.failed = 0
	}
	return c
}

// makeRoom bounds the memory: what has had its time goes first, then all that is not under way. t.mu is held.
func (t *throttle) makeRoom(now time.Time) {
	for _, all := range []bool{false, true} {
		if len(t.counts) < maxThrottled {
			return
		}
		for k, c := range t.counts {
			if c.open == 0 && (all || now.Sub(c.since) >= failureWindow) {
				delete(t.counts, k)
			}
		}
	}
}

// failed counts the attempt.
func (a *attempt) failed() {
	a.end(func(_ attemptKey, c *count, now time.Time) {
		if c.failed == 0 {
			c.since = now
		}
		c.failed++
	})
}

// passed forgets the failures of the user from there.
func (a *attempt) passed() {
	a.end(func(k attemptKey, c *count, _ time.Time) {
		if k.user != "" {
			c.failed = 0
		}
	})
}

// dropped is for an attempt that told nothing: the password was never compared.
func (a *attempt) dropped() { a.end(func(attemptKey, *count, time.Time) {}) }

func (a *attempt) end(change func(attemptKey, *count, time.Time)) {
	t, now := a.t, a.t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range a.keys {
		c := t.at(k, now)
		c.open--
		change(k, &c, now)
		if t.counts[k] = c; c.open == 0 && c.failed == 0 {
			delete(t.counts, k)
		}
	}
	close(t.ended)
	t.ended = make(chan struct{})
}

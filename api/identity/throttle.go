package identity

import (
	"fmt"
	"net"
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

// throttle counts failed logins. A login that succeeds is never counted.
type throttle struct {
	now func() time.Time

	mu    sync.Mutex
	fails map[[2]string]failures
}

type failures struct {
	n     int
	since time.Time
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, fails: map[[2]string]failures{}}
}

// remoteHost is the address a request came from, without its port.
func remoteHost(r *rest.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// admit refuses with 429 while there were too many failures; nothing is hashed for these.
func (t *throttle) admit(user, remote string) error {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, bound := range map[[2]string]int{{user, remote}: maxUserFailures, {"", remote}: maxRemoteFailures} {
		f := t.fails[k]
		if left := f.since.Add(failureWindow).Sub(now); f.n >= bound && left > 0 {
			seconds := int(left/time.Second) + 1
			return &rest.Error{
				Status:  http.StatusTooManyRequests,
				Message: fmt.Sprintf("too many failed logins; try again in %d s", seconds),
				Header:  http.Header{"Retry-After": {fmt.Sprint(seconds)}},
			}
		}
	}
	return nil
}

func (t *throttle) failed(user, remote string) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.fails) >= maxThrottled {
		for k, f := range t.fails {
			if now.Sub(f.since) >= failureWindow {
				delete(t.fails, k)
			}
		}
		if len(t.fails) >= maxThrottled {
			clear(t.fails)
		}
	}
	for _, k := range [][2]string{{user, remote}, {"", remote}} {
		f := t.fails[k]
		if now.Sub(f.since) >= failureWindow {
			f = failures{since: now}
		}
		f.n++
		t.fails[k] = f
	}
}

// passed forgets the failures of the user from there.
func (t *throttle) passed(user, remote string) {
	t.mu.Lock()
	delete(t.fails, [2]string{user, remote})
	t.mu.Unlock()
}

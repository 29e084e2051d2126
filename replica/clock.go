package replica

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-dr/lockstep"
)

// bootTime is CLOCK_BOOTTIME: unlike Go's monotonic clock it runs on in a suspended machine, so that a
// lease is not taken for valid after a sleep.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

// now is the node's clock, see Config.Clock.
func (h *Host) now() time.Duration { return h.cfg.Clock() }

// lease is the right of one group to read locally that one secondary node has granted. The
// primary counts from the moment it sent the request.
type lease struct {
	clock func() time.Duration
	until atomic.Int64 // the clock in ns up to which it holds
	epoch atomic.Uint64

	mu      sync.Mutex
	renewed chan struct{} // guarded by mu; closed at the next grant
}

func newLease(clock func() time.Duration) *lease {
	return &lease{clock: clock, renewed: make(chan struct{})}
}

// valid reports whether it holds at this instant for that epoch; if not, the channel is closed at
// the next grant.
func (l *lease) valid(epoch lockstep.Epoch) (bool, <-chan struct{}) {
	if l.holds(epoch) {
		return true, nil
	}
	l.mu.Lock()
	ch := l.renewed
	l.mu.Unlock()
	if l.holds(epoch) {
		return true, nil
	}
	return false, ch
}

func (l *lease) holds(epoch lockstep.Epoch) bool {
	return l.epoch.Load() == uint64(epoch) && int64(l.clock()) < l.until.Load()
}

// grant extends the lease: until is the sending time of the request plus the TTL.
func (l *lease) grant(epoch lockstep.Epoch, until time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch have := l.epoch.Load(); {
	case have > uint64(epoch):
		return // the answer to an older request
	case have < uint64(epoch):
		l.until.Store(0) // never an older epoch's time under a newer epoch
		l.epoch.Store(uint64(epoch))
	}
	if int64(until) > l.until.Load() {
		l.until.Store(int64(until))
	}
	close(l.renewed)
	l.renewed = make(chan struct{})
}

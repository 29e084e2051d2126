package memstore

import (
	"slices"
	"sync"
	"time"
)

// Clock is the time by which leases run out. Only differences of Now matter.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f, on any goroutine, once d has passed. stop keeps f from being called if it
	// has not begun.
	AfterFunc(d time.Duration, f func()) (stop func())
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

// ManualClock stands still until Advance is called. Its timers run on the goroutine that calls
// Advance, in the order of their times, so a simulation with one such clock is deterministic.
type ManualClock struct {
	mu     sync.Mutex // guards the fields below; not held while a timer's function runs
	now    time.Time
	timers []*manualTimer
}

type manualTimer struct {
	at time.Time
	f  func()
}

// NewManualClock returns a clock that shows start.
func NewManualClock(start time.Time) *ManualClock { return &ManualClock{now: start} }

// Now implements Clock.
func (c *ManualClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc implements Clock.
func (c *ManualClock) AfterFunc(d time.Duration, f func()) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &manualTimer{at: c.now.Add(d), f: f}
	c.timers = append(c.timers, t)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if i := slices.Index(c.timers, t); i >= 0 {
			c.timers = slices.Delete(c.timers, i, i+1)
		}
	}
}

// Advance moves the clock by d and runs what falls due, each thing at its own time; timers set
// meanwhile are run too if they fall due.
func (c *ManualClock) Advance(d time.Duration) {
	c.mu.Lock()
	end := c.now.Add(d)
	for {
		due := -1
		for i, t := range c.timers {
			// Strictly earlier, so that of two timers of one time the older one runs first.
			if !t.at.After(end) && (due < 0 || t.at.Before(c.timers[due].at)) {
				due = i
			}
		}
		if due < 0 {
			break
		}
		t := c.timers[due]
		c.timers = slices.Delete(c.timers, due, due+1)
		if t.at.After(c.now) {
			c.now = t.at
		}
		c.mu.Unlock()
		t.f()
		c.mu.Lock()
	}
	c.now = end
	c.mu.Unlock()
}

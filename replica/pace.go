package replica

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/lockstep-dr/lockstep"
)

const (
	// clientWithin is how long ago a client's write was for a synchronization to make room for the next.
	clientWithin = 50 * time.Millisecond
	// politeBytes is what a synchronization has under way at once while clients write: what waits behind
	// it, on the link and at the secondary's disk, waits for so much.
	politeBytes = 256 << 10
	// politePause bounds the pause after each of these, which is as long as it took.
	politePause = 100 * time.Millisecond
)

// pace holds a node's synchronizations to its limit, and makes them step back while clients write. What
// clients wait for, repairs and what is taken back, does not go through it.
type pace struct {
	limit *limit
	wrote atomic.Int64  // the clock at the last client's write that was sent
	turn  chan struct{} // capacity 1: whose range is under way while clients write
	now   func() time.Duration
}

func (p *pace) init(now func() time.Duration, bytesPerSecond int64) {
	p.limit, p.turn, p.now = newLimit(bytesPerSecond), make(chan struct{}, 1), now
}

// limit is a number of bytes per second that holds as soon as it is set, for those who wait already, too.
type limit struct {
	mu      sync.Mutex
	bytes   *rate.Limiter
	changed chan struct{} // closed and renewed by set
}

// newLimit makes a limit for ranges; see set.
func newLimit(bytesPerSecond int64) *limit {
	l := &limit{bytes: rate.NewLimiter(rate.Inf, compareBytes), changed: make(chan struct{})}
	l.set(bytesPerSecond)
	return l
}

// set sets bytes per second; 0: none.
func (l *limit) set(bytesPerSecond int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := rate.Inf
	if bytesPerSecond > 0 {
		r = rate.Limit(bytesPerSecond)
	}
	l.bytes.SetLimit(r)
	close(l.changed)
	l.changed = make(chan struct{})
}

// wait waits until n bytes, at most compareBytes, may go.
func (l *limit) wait(ctx context.Context, n int) error {
	for {
		l.mu.Lock()
		mine, changed := l.bytes.ReserveN(time.Now(), n), l.changed
		l.mu.Unlock()
		delay := mine.Delay()
		if delay == 0 {
			return ctx.Err()
		}
		due := time.NewTimer(delay)
		select {
		case <-due.C:
			return nil
		case <-changed:
			mine.Cancel()
		case <-ctx.Done():
			mine.Cancel()
		}
		due.Stop()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// polite tells whether clients write now.
func (p *pace) polite() bool {
	at := p.wrote.Load()
	return at != 0 && p.now()-time.Duration(at) < clientWithin
}

// take waits for the turn of one range and calls f; afterwards it pauses for as long as that took, at most
// politePause, so that clients have half of the time for themselves. Nothing may be claimed when it is called.
func (p *pace) take(ctx context.Context, f func() error) error {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.turn }()
	began := p.now()
	if err := f(); err != nil {
		return err
	}
	pause := time.NewTimer(min(p.now()-began, politePause))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
	return nil
}

// SetResyncLimit bounds what all synchronizations that this node is the primary of read and send in a
// second, together, from now on; 0: as fast as they can.
func (h *Host) SetResyncLimit(bytesPerSecond int64) { h.pace.limit.set(bytesPerSecond) }

// SetGroupResyncLimit is SetResyncLimit for one group, beside the node's. It may come before the group is
// known here, and is forgotten with the process.
func (h *Host) SetGroupResyncLimit(id lockstep.GroupID, bytesPerSecond int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if bytesPerSecond <= 0 {
		delete(h.limits, id)
	} else {
		h.limits[id] = bytesPerSecond
	}
	if g := h.groups[id]; g != nil {
		g.limit.set(bytesPerSecond)
	}
}

// meter counts what a group's synchronization gets done, by second, for people.
type meter struct {
	mu    sync.Mutex
	sec   int64            // the newest second counted
	bytes [meterSecs]int64 // by second, modulo
	began int64            // the first second of the stretch of work; 0: none
}

// meterSecs is how many seconds a rate is the mean of, and the one that is not over.
const meterSecs = 11

// add counts n bytes done at now.
func (m *meter) add(now time.Duration, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turn(now)
	if m.began == 0 {
		m.began = m.sec
	}
	m.bytes[m.sec%meterSecs] += n
}

// turn forgets the seconds that are too old. Called with mu held.
func (m *meter) turn(now time.Duration) {
	sec := int64(now / time.Second)
	if sec-m.sec >= meterSecs {
		m.bytes, m.began = [meterSecs]int64{}, 0
	} else {
		for s := m.sec + 1; s <= sec; s++ {
			m.bytes[s%meterSecs] = 0
		}
	}
	m.sec = max(m.sec, sec)
}

// rate is the mean of the last seconds that are over, bytes per second; 0 in the first one.
func (m *meter) rate(now time.Duration) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turn(now)
	secs := min(m.sec-m.began, meterSecs-1)
	if m.began == 0 || secs <= 0 {
		return 0
	}
	var sum int64
	for s := m.sec - secs; s < m.sec; s++ {
		sum += m.bytes[s%meterSecs]
	}
	return sum / secs
}

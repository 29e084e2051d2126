package e2e

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A bound in these tests is about Lockstep, not about the machine. A machine whose disk answers no
// fdatasync for two seconds stalls the store for as long: leases run out, requests are held until
// they are renewed, and all that is right. So a probe asks the disk all the time, and bounds count
// what Lockstep took beyond that.

const (
	probeEvery = 100 * time.Millisecond
	probeQuick = 100 * time.Millisecond // an fdatasync that takes less is no stall
	probeEcho  = 4                      // a stall's time, and what follows from it: a lease run out, renewed, a role taken up
)

// stalls are the times in which the disk under the deployments did not answer.
var stalls stallMeter

type stallMeter struct {
	mu      sync.Mutex
	asked   time.Time // zero while no probe is under way
	entries []stall
}

type stall struct {
	ended time.Time
	took  time.Duration
}

// run probes the disk under dir until done is closed.
func (m *stallMeter) run(dir string, done <-chan struct{}) error {
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		return err
	}
	defer f.Close()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-tick.C:
		}
		began := time.Now()
		m.set(began)
		if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		m.answered(began, time.Now())
	}
}

func (m *stallMeter) set(asked time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = asked
}

func (m *stallMeter) answered(asked, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = time.Time{}
	if took := now.Sub(asked); took > probeQuick {
		m.entries = append(m.entries, stall{now, took})
	}
}

// slack is what a bound on something that began then is moved by.
func (m *stallMeter) slack(began time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	var sum time.Duration
	for _, s := range m.entries {
		if s.ended.After(began) {
			sum += s.took
		}
	}
	if !m.asked.IsZero() {
		if took := time.Since(m.asked); took > probeQuick {
			sum += took
		}
	}
	return probeEcho * sum
}

// over reports whether something that began then has taken longer than a bound.
func (m *stallMeter) over(began time.Time, bound time.Duration) bool {
	return time.Since(began) > bound+m.slack(began)
}

func TestABoundIsMovedByStallsOfTheDiskAlone(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	var m stallMeter
	m.answered(ago(20*time.Second), ago(15*time.Second)) // before
	if !m.over(ago(10*time.Second), 9*time.Second) || m.over(ago(10*time.Second), 11*time.Second) {
		t.Error("a stall before, or none, moves a bound")
	}
	m.answered(ago(8*time.Second), ago(7*time.Second))
	m.answered(ago(time.Second), ago(time.Second-probeQuick/2)) // quick enough
	if got := m.slack(ago(10 * time.Second)); got != probeEcho*time.Second {
		t.Errorf("a stall of 1 s moves a bound by %s", got)
	}
	m.set(ago(time.Second)) // not answered yet
	if got := m.slack(ago(2 * time.Second)); got < probeEcho*time.Second {
		t.Errorf("a stall that goes on, of 1 s, moves a bound by %s", got)
	}
}

package whole

import (
	"math/rand/v2"
	"sync"
	"time"
)

// dice is a seeded source of chance. Each concern has its own, so that a change of one leaves the
// others' decisions as they were.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func newDice(seed uint64, concern uint64) *dice {
	return &dice{rng: rand.New(rand.NewPCG(seed, concern*0x9e3779b97f4a7c15+1))}
}

// below is a number in [0, n).
func (d *dice) below(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(n)
}

// chance is true with probability p.
func (d *dice) chance(p float64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.Float64() < p
}

// between is a duration in [lo, hi].
func (d *dice) between(lo, hi time.Duration) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return lo + time.Duration(d.rng.Int64N(int64(hi-lo)+1))
}

func pick[T any](d *dice, list []T) T { return list[d.below(len(list))] }

// gate holds up whoever passes while it is shut: a process that stands still.
type gate struct {
	mu   sync.Mutex
	shut chan struct{} // nil: open; closed when it opens
}

func (g *gate) pass() {
	for {
		g.mu.Lock()
		ch := g.shut
		g.mu.Unlock()
		if ch == nil {
			return
		}
		<-ch
	}
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case shut && g.shut == nil:
		g.shut = make(chan struct{})
	case !shut && g.shut != nil:
		close(g.shut)
		g.shut = nil
	}
}

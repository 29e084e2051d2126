package sim

import (
	"slices"

	"github.com/lockstep-dr/lockstep"
)

// client is an application: it follows the primary by trying. A chain's next write is issued only
// after the last one was acknowledged, so the order of its writes is known to the world.
type client struct {
	w       *world
	name    string
	az      lockstep.AZ
	readers bool
	stays   bool // in its site, whatever it hears
	think   int64
	on      bool
	open    *request
	ops     uint64
	idle    bool
}

// busyBlock: no two requests to one block are open at a time, so that "later" means something.
func (w *world) busyBlock(pair, block int) bool {
	return slices.ContainsFunc(w.apps, func(c *client) bool {
		return c.open != nil && !c.open.read && c.open.pair == pair && c.open.block == block
	})
}

// startClients starts chains and readers that follow the primary, and in each site one writer and
// one reader that never leave it.
func (w *world) startClients(chains, readers int, think int64) {
	for i := range chains + readers {
		w.startClient(&client{az: az1, readers: i >= chains, think: think})
	}
	for i := range 4 {
		az := az1
		if i%2 == 1 {
			az = az2
		}
		w.startClient(&client{az: az, readers: i >= 2, think: think, stays: true})
	}
}

func (w *world) startClient(c *client) {
	c.w, c.name, c.on = w, string(rune('a'+len(w.apps))), true
	w.apps = append(w.apps, c)
	w.after(w.between(0, 100), c.next)
}

func (w *world) stopClients() {
	for _, c := range w.apps {
		c.on = false
	}
}

func (w *world) clientsIdle() bool {
	return !slices.ContainsFunc(w.apps, func(c *client) bool { return !c.idle })
}

func (w *world) resumeClients() {
	for _, c := range w.apps {
		c.on = true
		if c.idle {
			c.idle = false
			w.after(w.between(0, c.think), c.next)
		}
	}
}

func (c *client) next() {
	w := c.w
	if !c.on {
		c.idle = true
		return
	}
	pair, block := w.rng.IntN(w.pairs), w.rng.IntN(blocksPerVolume)
	if !c.readers && w.busyBlock(pair, block) {
		w.after(1+w.between(0, c.think), c.next)
		return
	}
	c.ops++
	var atStart []wid
	top := w.truth.last
	r := &request{pair: pair, block: block, read: c.readers}
	if c.readers {
		atStart = slices.Clone(w.truth.may[pair][block])
	} else {
		r.id = w.truth.issue(pair, block)
	}
	n := w.volOf(pair, c.az).n
	if w.opt.Story && !c.readers {
		w.say("client %s: issues w%d to %s, pair %d block %d", c.name, r.id, n.id, pair, block)
	}
	c.open = r
	r.done = func(o outcome, value wid) {
		if o == acked && r.read {
			w.stats.Reads++
			c.checkRead(r, n, value, atStart, top)
		}
		c.open = nil
		if !r.read && !r.submitted {
			w.truth.withdraw(r.pair, r.block, r.id)
		}
		if o != acked && !c.stays && w.chance(50) {
			c.az = other(c.az)
		}
		d := c.think
		if o != acked {
			d += 100
		}
		w.after(w.between(1, 1+d), c.next)
	}
	w.after(w.between(0, 3), func() {
		p := n.proc
		if p == nil {
			r.finish(reset, 0)
			return
		}
		p.do(func() {
			if !r.over {
				p.submit(r)
			}
		})
	})
	// A server that waits too long is switched off; the other site's server may start. Reads are
	// given up sooner, so that a reader is not stuck behind a write that waits.
	patience := w.between(4000, 9000)
	if r.read {
		patience = w.between(50, 2000)
	}
	w.after(patience, func() { r.finish(reset, 0) })
}

// checkRead: never older than the last acknowledged write before the read began, and nothing that
// was not issued; what was read is settled, so that no failover may take it back.
func (c *client) checkRead(r *request, n *node, value wid, atStart []wid, top wid) {
	t := &c.w.truth
	now := t.may[r.pair][r.block]
	if t.inGrace(c.w, n.az) && slices.Contains(t.grace.may[r.pair][r.block], value) {
		return
	}
	if !slices.Contains(atStart, value) && value <= top && !slices.Contains(now, value) {
		c.w.fail("client %s read w%d from %s, pair %d block %d; it may be %v", c.name, value, n.id, r.pair, r.block, now)
		return
	}
	t.settled(r.pair, r.block, value)
}

// probe makes every block's volume answer one write and one read at the primary, soon.
func (w *world) probe(ms int64) bool {
	left := 0
	var asked []*request
	for pair := range w.pairs {
		for _, read := range []bool{false, true} {
			left++
			r := &request{pair: pair, block: w.rng.IntN(blocksPerVolume), read: read}
			if !read {
				r.id = w.truth.issue(pair, r.block)
			}
			r.done = func(o outcome, value wid) {
				if o != acked {
					return
				}
				left--
				if read {
					w.truth.settled(r.pair, r.block, value)
				}
			}
			asked = append(asked, r)
			if p := w.volOf(pair, w.store.rec.Primary).n.proc; p != nil {
				p.do(func() { p.submit(r) })
			}
		}
	}
	ok := w.run(ms, func() bool { return left == 0 })
	for _, r := range asked {
		r.over = true
	}
	return ok
}

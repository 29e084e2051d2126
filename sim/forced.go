package sim

import (
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// Forced failovers: the roll-back of a secondary to its recovery point, block by block, so that it can
// be cut off anywhere; the divergence image; and what clients may see afterwards.

// rollBack goes back to the recovery point where there is one that counts. The point is dropped last.
func (p *process) rollBack(s protocol.RollBack, done func(error)) {
	var back []*vol
	p.eachVol(s.Pairs, func(pv *pvol) {
		if pv.v.point != nil && pv.v.point.epoch > s.InSyncEpoch && !p.w.opt.Break.NoRollBack {
			back = append(back, pv.v)
		} else {
			pv.v.point = nil
		}
	})
	if s.InSyncEpoch == 0 && len(back) == 0 { // volumes that join bring no point from an earlier pair
		p.after(0, func() { done(nil) })
		return
	}
	var block func(i int)
	block = func(i int) {
		if i < len(back)*blocksPerVolume {
			v, b := back[i/blocksPerVolume], i%blocksPerVolume
			p.disk(1+p.w.latency(), func() {
				if !v.failed && v.cache[b] != v.point.content[b] {
					v.write(b, v.point.content[b])
				}
			}, func() { block(i + 1) })
			return
		}
		p.flushAll(func(err error) {
			if err != nil {
				done(err)
				return
			}
			p.disk(1+p.w.latency(), func() {
				for _, v := range back {
					for b := range blocksPerVolume {
						v.setDirtyDurably(b)
					}
					v.point = nil
					p.w.say("%s: %s is rolled back", p.n.id, v.id)
				}
			}, func() {
				p.w.stats.RollBacks += len(back)
				done(nil)
			})
		})
	}
	block(0)
}

// keepImage keeps what the volumes hold before a reprotect overwrites it.
func (p *process) keepImage(s protocol.KeepImage, done func(error)) {
	p.disk(1+p.w.latency(), func() {
		if p.w.opt.Break.NoKeep {
			return
		}
		p.eachVol(s.Pairs, func(pv *pvol) {
			if _, ok := pv.v.images[s.Epoch]; ok {
				return
			}
			if pv.v.images == nil {
				pv.v.images = map[lockstep.Epoch]image{}
			}
			pv.v.images[s.Epoch] = pv.v.cache
			p.w.stats.Kept++
			p.w.say("%s: keeps divergence image %d of %s", p.n.id, s.Epoch, pv.v.id)
		})
	}, func() { done(nil) })
}

// overwritten is called before a frame is applied: what a side that lost had must be kept by then.
func (w *world) overwritten(v *vol, rec protocol.Record) {
	if rec.Forced == nil || rec.Forced.Waived {
		return
	}
	if _, ok := v.images[rec.Forced.Epoch]; !ok {
		w.fail("%s overwrites %s before what it had at forced failover %d is kept", v.n.id, v.id, rec.Forced.Epoch)
	}
}

// grace is the time after the commit of a forced failover under the policy strict in which the side
// that lost may still hold a lease of the store, and the other side waits. What it serves meanwhile
// is given up, as was said.
type grace struct {
	az    lockstep.AZ
	until int64
	may   [][blocksPerVolume][]wid // by pair and block: what its reads may give
}

func (t *truth) inGrace(w *world, az lockstep.AZ) bool {
	return t.grace.az == az && w.now <= t.grace.until
}

// forcedOver: by force, the other side is primary with its last consistent image. Whatever was
// acknowledged while the sides were in sync must be in it; what came later is lost, and said to be.
// Requests that are open may still be carried out.
func (t *truth) forcedOver(w *world, old, now protocol.Record) {
	if old.State != protocol.StateFailovering || old.Forced == nil || !now.FailedOver {
		return
	}
	w.stats.Forced++
	if !now.Fenced {
		w.stats.ForcedStrict++
		t.grace = grace{az: old.Primary, until: w.now + leaseTTLMs}
		t.grace.may = slices.Clone(t.may) // its lists are replaced, never changed
	}
	for pair := range t.may {
		s := w.volOf(pair, now.Primary)
		whole := s.n.bootID() == now.BootIDs[s.n.id] // else consistent as of a flush only
		switch {
		case whole && !t.haveOut:
			w.fail("forced failover although nobody knows what %s may hold", s.id)
		case whole:
			w.within(pair, s, &s.cache, &t.atOut[pair], "the image that a forced failover serves")
		}
		for b := range t.may[pair] {
			kept := []wid{s.cache[b]}
			for _, c := range w.apps {
				if r := c.open; r != nil && !r.read && r.pair == pair && r.block == b && r.id != s.cache[b] {
					kept = append(kept, r.id)
				}
			}
			for _, id := range t.may[pair][b] {
				if id > s.cache[b] && !slices.Contains(kept, id) {
					w.stats.WritesGivenUp++
				}
			}
			t.may[pair][b] = kept
		}
	}
}

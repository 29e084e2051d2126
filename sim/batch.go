package sim

import (
	"errors"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

var errOutdated = errors.New("a newer record came")

// batch is the one list of durable steps under way; a newer one waits for the step that runs.
type batch struct {
	protocol.Batch
	epoch    lockstep.Epoch
	next     int
	drained  bool
	outdated bool
	after    *batch
}

func (p *process) startBatch(a protocol.Batch) {
	b := &batch{Batch: a, epoch: p.core.Record().Epoch}
	if p.batch != nil {
		p.batch.after = b
		return
	}
	p.batch = b
	p.batchStep()
}

func (p *process) batchStep() {
	b := p.batch
	switch {
	case b.after != nil:
		p.batch = b.after
		p.batchStep()
	case b.next == len(b.Steps):
		p.endBatch(nil)
	case b.outdated:
		p.endBatch(errOutdated)
	default:
		s := b.Steps[b.next]
		b.next++
		p.durable(s, func(err error) {
			if err != nil && b.after == nil {
				p.endBatch(err)
				return
			}
			p.batchStep()
		})
	}
}

func (p *process) endBatch(err error) {
	b := p.batch
	p.batch = nil
	p.step(protocol.BatchDone{Token: b.Token, Drained: b.drained, Err: err})
}

// durable does one step of a batch.
func (p *process) durable(s protocol.Durable, done func(error)) {
	w := p.w
	ok := func() { done(nil) }
	switch s := s.(type) {
	case protocol.Quiesce:
		p.quiesce(s, w.now+s.WithinMs, done)
	case protocol.Fence:
		if w.opt.Break.NoFence {
			p.after(0, ok)
			return
		}
		p.fence = max(p.fence, s.Epoch)
		p.whenApplied(func(a *applying) bool { return a.epoch < s.Epoch }, func() { p.after(0, ok) })
	case protocol.Flush:
		if w.opt.Break.NoFlush {
			p.after(1, ok)
			return
		}
		p.flushAll(done)
	case protocol.Save:
		p.disk(1+w.latency(), func() {
			if p.n.file.saved.Record.Epoch > s.Saved.Record.Epoch {
				w.fail("%s: the persisted epoch goes back from %d to %d", p.n.id, p.n.file.saved.Record.Epoch, s.Saved.Record.Epoch)
			}
			p.n.file.saved = s.Saved
		}, func() {
			w.say("%s: persisted epoch %d as %s, mark %d", p.n.id, s.Saved.Record.Epoch, s.Saved.Role, s.Saved.Mark)
			p.fence = max(p.fence, s.Saved.Record.Epoch)
			p.step(protocol.SavedNow(s))
			done(nil)
		})
	case protocol.LeaseWait:
		if w.opt.Break.NoLeaseWait {
			p.after(0, ok)
			return
		}
		granted := p.lastGrant
		if s.Store && !w.opt.Break.NoStoreWait {
			granted = w.now
		}
		p.after(granted+leaseTTLMs+leaseDriftMs-w.now, ok)
	case protocol.MarkAllDirty:
		p.after(w.latency(), func() {
			p.eachVol(s.Pairs, func(pv *pvol) {
				for b := range blocksPerVolume {
					pv.v.setDirtyDurably(b)
					pv.sent[b] = false
				}
			})
			done(nil)
		})
	case protocol.DirtyFromIntent:
		d := int64(0) // what is dirty already costs nothing
		p.eachVol(nil, func(pv *pvol) {
			if pv.wouldDirty() {
				d = w.latency()
			}
		})
		p.after(d, func() {
			if !w.opt.Break.NoDirtyFromIntent {
				p.eachVol(nil, func(pv *pvol) { pv.dirtyFromIntent() })
			}
			done(nil)
		})
	case protocol.ClearDirty:
		p.after(w.latency(), func() {
			p.eachVol(nil, func(pv *pvol) { pv.clearDirty() })
			done(nil)
		})
	case protocol.ClearMaps:
		p.after(w.latency(), func() {
			p.eachVol(nil, func(pv *pvol) {
				pv.clearDirty()
				pv.v.intent = [regionsPerVolume]bool{}
			})
			done(nil)
		})
	case protocol.SetPoint:
		p.after(w.latency(), func() {
			p.eachVol(s.Pairs, func(pv *pvol) { pv.v.setPoint(s) })
			done(nil)
		})
	case protocol.DropPoint:
		d := int64(0)
		if s.Pairs == nil { // else there is none: a simulated group is its volumes' first
			d = w.latency()
		}
		p.after(d, func() {
			p.eachVol(s.Pairs, func(pv *pvol) { pv.v.point = nil })
			done(nil)
		})
	case protocol.RollBack:
		p.rollBack(s, done)
	case protocol.KeepImage:
		p.keepImage(s, done)
	default:
		panic("sim: a step of a batch that the shell does not know")
	}
}

// eachVol visits this node's volumes of the named pairs; none named means all.
func (p *process) eachVol(pairs []lockstep.PairID, fn func(*pvol)) {
	for _, pv := range p.vols {
		id := p.w.store.rec.Members[pv.v.pair].Pair
		if pairs == nil || slices.Contains(pairs, id) {
			fn(pv)
		}
	}
}

func (v *vol) setPoint(s protocol.SetPoint) {
	if v.point != nil && v.point.epoch > s.InSyncEpoch {
		return
	}
	if v.w.opt.Break.NoPoint {
		return
	}
	v.point = &point{epoch: s.Epoch, content: v.cache, flushOnly: v.n.bootID() != v.w.store.rec.BootIDs[v.n.id]}
	v.w.say("%s: recovery point of %s at epoch %d", v.n.id, v.id, s.Epoch)
}

// quiesce waits until no local I/O is submitted, and with Remote, for a while, until every write
// is on both sides.
func (p *process) quiesce(s protocol.Quiesce, until int64, done func(error)) {
	local, remote := false, false
	for _, pv := range p.vols {
		for _, f := range pv.fly {
			local = local || !f.local && !f.chunk
			remote = remote || f.needRemote && !f.remote
		}
		local = local || pv.submitted > 0
	}
	if local || s.Remote && remote && p.w.now < until {
		p.after(5, func() { p.quiesce(s, until, done) })
		return
	}
	p.batch.drained = s.Remote && !remote
	p.after(0, func() { done(nil) })
}

// flushAll is fdatasync of all volumes; one that failed fails for good.
func (p *process) flushAll(done func(error)) {
	w := p.w
	left := len(p.vols)
	var bad error
	d := 1 + w.latency()
	if w.faults && w.chance(3) {
		d += w.between(0, 1500)
	}
	for _, pv := range p.vols {
		v := pv.v
		content, ver, dirty := v.snapshot()
		p.disk(d, func() {
			if !v.failed {
				v.settle(content, ver, dirty)
			}
		}, func() {
			if v.failed {
				p.volumeFailed(v)
				bad = errVolume
			}
			if left--; left == 0 {
				done(bad)
			}
		})
	}
}

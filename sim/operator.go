package sim

import (
	"errors"
	"maps"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// What operators say and choose: continue, accept-lost, the strict policy, and changes of members
// and sizes, of which only the epoch is simulated.

// operatorOps are the names that operations knows beside those of users.
var operatorOps = [...]string{"continue", "node-off", "node-off", "accept-lost", "strict", "members", "sizes"}

func (w *world) operatorOperation(name string) *operation {
	o := &operation{name: name}
	var do func(protocol.Record) (protocol.Record, error)
	switch name {
	case "continue":
		do = protocol.Record.Continue
	case "node-off":
		which := w.rng.IntN(8)
		do = func(r protocol.Record) (protocol.Record, error) {
			nodes := r.PrimaryNodes()
			id := nodes[which%len(nodes)]
			// Off is the host: it comes back under another boot id, and so not without the store [F2]. A
			// process that is dead could start again and go on with a secondary that heard of nothing.
			if n := w.node(id); (n.proc != nil || n.boot == n.ranAs) && !w.opt.Break.OffUntrue {
				return r, errors.New("an operator says so of what is off only")
			}
			return r.ConfirmOff(id)
		}
	case "accept-lost":
		which := w.rng.IntN(8)
		do = func(r protocol.Record) (protocol.Record, error) {
			nodes := r.SecondaryNodes()
			return r.AcceptLost(nodes[which%len(nodes)])
		}
	case "strict":
		do = func(r protocol.Record) (protocol.Record, error) { return r.SetStrict(!r.Strict) }
	case "members":
		do = func(r protocol.Record) (protocol.Record, error) { return r.SetMembers(r.Clone().Members) }
	case "sizes":
		do = func(r protocol.Record) (protocol.Record, error) {
			return r.SetSizes(map[lockstep.PairID]int64{r.Members[0].Pair: r.Members[0].SizeBytes})
		}
	default:
		panic("sim: no operation " + name)
	}
	o.do = func(v view) (protocol.Record, []lockstep.NodeID, error) {
		next, err := do(v.rec)
		return next, nil, err
	}
	return o
}

// advance is protocol.Advance as controllers and primary nodes use it.
func (w *world) advance(v view, patience bool) (protocol.Record, []lockstep.NodeID, bool) {
	answers := v.answers
	if w.opt.Break.FenceAssumed && v.rec.State == protocol.StateTripping && v.rec.ContinueAt == v.rec.Epoch {
		answers = maps.Clone(answers)
		for _, id := range v.rec.SecondaryNodes() {
			answers[id] = protocol.Answer{Group: v.rec.Group, Node: id, Epoch: v.rec.Epoch, Step: protocol.StepFenced}
		}
	}
	if w.opt.Break.ForcedUnfenced && v.rec.State == protocol.StateFailovering && v.rec.Forced != nil {
		answers = maps.Clone(answers)
		for _, id := range v.rec.PrimaryNodes() {
			answers[id] = protocol.Answer{Group: v.rec.Group, Node: id, Epoch: v.rec.Epoch, Step: protocol.StepHeld}
		}
	}
	return protocol.Advance(v.rec, answers, patience)
}

// renewStoreLease keeps the right to serve one-sided under the strict policy: it counts from when a
// read of the record was asked for that still showed the epoch [F16].
func (p *process) renewStoreLease() {
	rec := p.core.Record()
	role, _, _ := p.core.Status()
	if p.leasing || !rec.Strict || rec.InSync || role != protocol.RolePrimary || p.w.now-p.leaseAsked < leaseTTLMs/4 {
		return
	}
	asked := p.w.now
	p.leasing, p.leaseAsked = true, asked
	var v view
	p.w.store.call(p.n, func() { v = p.w.store.read() }, p.after, func(ok bool) {
		p.leasing = false
		if !ok {
			return
		}
		if v.rec.Epoch != p.core.Record().Epoch {
			p.step(protocol.RecordRead{Record: v.rec, FromStore: true})
			return
		}
		p.storeLease = readLease{until: asked + leaseTTLMs, epoch: v.rec.Epoch}
		for _, pv := range p.vols {
			for _, f := range append([]*flight(nil), pv.fly...) {
				pv.complete(f)
			}
			pv.pump()
		}
	})
}

// mayServeAlone: the policy allows an answer that rests on this side alone, at this instant.
func (pv *pvol) mayServeAlone() bool {
	if !pv.strict || pv.p.w.opt.Break.StrictIgnored {
		return true
	}
	l := pv.p.storeLease
	ok := l.epoch == pv.epoch && l.until > pv.p.w.now
	if !ok {
		pv.p.w.stats.StrictWaits++
	}
	return ok
}

// servedAlone is an acknowledgement or a read that rested on one side alone. Where the record says
// strict, the store must have had that very epoch not longer ago than the lease lasts.
func (t *truth) servedAlone(w *world, pv *pvol, what string) {
	if !t.strict[pv.epoch] {
		return
	}
	w.stats.StrictServed++
	if left, ok := t.leftAt[pv.epoch]; ok && w.now > left+leaseTTLMs {
		w.fail("%s %s at the strict epoch %d, which the record left %d ms ago", pv.v.n.id, what, pv.epoch, w.now-left)
	}
}

// epochs notes when the record left an epoch, and which epochs are under the strict policy.
func (t *truth) epochs(w *world, old, now protocol.Record) {
	if now.Epoch == old.Epoch {
		return
	}
	t.leftAt[old.Epoch] = w.now
	t.strict[now.Epoch] = now.Strict && !now.InSync
}

// acceptedLoss widens what may be seen by what a primary lost that restarted its host and keeps its
// own image because an operator gave its secondary up.
func (t *truth) acceptedLoss(w *world, old, now protocol.Record) {
	if old.State == protocol.StateCopying || maps.Equal(old.BootIDs, now.BootIDs) {
		return
	}
	for pair := range t.may {
		p, s := w.volOf(pair, old.Primary), w.volOf(pair, old.Secondary)
		renewed := old.BootIDs[p.n.id] != now.BootIDs[p.n.id]
		if !renewed || old.Lost[s.n.id] == 0 || old.Lost[s.n.id] != old.InSyncEpoch {
			continue
		}
		if t.widen(w, pair, p) {
			w.stats.AcceptedLosses++
		}
	}
}

package sim

import (
	"maps"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

type answerRow struct {
	answer protocol.Answer
	rev    int64
}

// vstore is the group's part of the store: one record, one answer per node. What it does is atomic
// and linearizable; getting there and back is not reliable.
type vstore struct {
	w         *world
	rec       protocol.Record
	rev       int64 // of the record alone
	writes    int64 // of everything
	answers   map[lockstep.NodeID]answerRow
	downUntil int64
}

// view is what one linearizable read returned.
type view struct {
	rec     protocol.Record
	rev     int64
	answers map[lockstep.NodeID]protocol.Answer
	revs    map[lockstep.NodeID]int64
}

func (s *vstore) read() view {
	v := view{rec: s.rec, rev: s.rev, answers: map[lockstep.NodeID]protocol.Answer{}, revs: map[lockstep.NodeID]int64{}}
	for id, row := range s.answers {
		v.answers[id], v.revs[id] = row.answer, row.rev
	}
	return v
}

// cas replaces the record if neither it nor any of the used answers changed since the view.
func (s *vstore) cas(v view, next protocol.Record, used []lockstep.NodeID, who string) bool {
	if s.rev != v.rev {
		s.w.say("%s: compare-and-swap to epoch %d lost", who, next.Epoch)
		return false
	}
	for _, id := range used {
		if s.answers[id].rev != v.revs[id] {
			s.w.say("%s: an answer of %s changed meanwhile", who, id)
			return false
		}
	}
	old := s.rec
	s.rec = next.Clone()
	s.rev++
	s.w.committed(old, s.rec, who)
	for _, n := range s.w.nodes {
		s.watchEvent(n)
	}
	return true
}

// watchEvent brings the present record to a node, late, or not at all.
func (s *vstore) watchEvent(n *node) {
	p := n.proc
	if p == nil || !p.watching || s.w.chance(5) {
		return
	}
	rec, d := s.rec, s.w.latency()
	if s.w.chance(5) {
		d += s.w.between(0, 3000)
	}
	p.after(d, func() {
		if s.reachable(n) {
			p.step(protocol.RecordRead{Record: rec, FromStore: true})
		}
	})
}

func (s *vstore) reachable(n *node) bool {
	return s.w.now >= s.downUntil && (n == nil || s.w.now >= n.storeCutUntil)
}

// call does op at the store and then done, which learns whether an answer came. An op whose answer
// is lost was done all the same. n is nil for a controller; resume runs done in the caller's context.
func (s *vstore) call(n *node, op func(), resume func(d int64, fn func()), done func(ok bool)) {
	w := s.w
	w.after(w.latency(), func() {
		if !s.reachable(n) || w.faults && w.chance(1) {
			resume(400, func() { done(false) })
			return
		}
		op()
		if w.faults && w.chance(3) {
			resume(400, func() { done(false) })
			return
		}
		d := w.latency()
		resume(d, func() { done(s.reachable(n)) })
	})
}

// committed keeps the books of the checkers and the story when the record changed.
func (w *world) committed(old, now protocol.Record, who string) {
	if w.opt.Story {
		w.say("STORE by %s: %s (primary %s, cause %q) -> %s (primary %s, cause %q, fenced %v) boots %v",
			who, old.Describe(), old.Primary, old.Cause, now.Describe(), now.Primary, now.Cause, now.Fenced, sortedBoots(now))
	}
	st := &w.stats
	switch {
	case old.State == now.State && !maps.Equal(old.BootIDs, now.BootIDs):
		st.Renewals++
	case now.State == protocol.StateTripping && old.State == protocol.StateFailovering:
		st.BackOuts++
	case now.State == protocol.StateTripping && old.State != now.State:
		st.Trips++
	case old.State == protocol.StateTripping && now.InSync && now.State == protocol.StateNormal:
		st.WaysBack++
	case now.State == protocol.StateCopying:
		st.Syncs++
	case old.State == protocol.StateCopying && now.InSync:
		st.InSyncs++
	case old.State == protocol.StateCopying && now.State == protocol.StateNormal:
		st.Aborts++
	case now.FailedOver && !old.FailedOver:
		st.Failovers++
	case old.State == protocol.StateReversing && now.Primary != old.Primary:
		st.Reverses++
	}
	if old.State == protocol.StateTripping && !now.InSync && old.ContinueAt == old.Epoch {
		st.Continued++
	}
	if now.Epoch != old.Epoch && len(old.Off) > 0 {
		st.SaidOff++
	}
	w.truth.epochs(w, old, now)
	w.truth.acceptedLoss(w, old, now)
	w.truth.forcedOver(w, old, now)
	w.truth.recordChanged(old, now)
	if now.Epoch < old.Epoch {
		w.fail("the record's epoch went back from %d to %d", old.Epoch, now.Epoch)
	}
}

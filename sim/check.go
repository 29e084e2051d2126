package sim

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// truth is what clients were promised, kept apart from everything the code under test knows.
//
// For each block it holds the contents that may be seen, in the order of issue: the last
// acknowledged write (or one that a read returned), then what was issued later and not acknowledged.
type truth struct {
	may     [][blocksPerVolume][]wid
	atOut   [][blocksPerVolume][]wid // as of the moment the record left in sync
	haveOut bool
	last    wid
	ackedIn map[lockstep.Epoch]lockstep.AZ
	ackTop  map[lockstep.AZ]lockstep.Epoch
	leftAt  map[lockstep.Epoch]int64 // when the record left an epoch
	strict  map[lockstep.Epoch]bool  // epochs out of sync under the strict policy
	grace   grace
}

func (t *truth) init(pairs int) {
	t.may = make([][blocksPerVolume][]wid, pairs)
	for i := range t.may {
		for b := range t.may[i] {
			t.may[i][b] = []wid{0}
		}
	}
	t.ackedIn = map[lockstep.Epoch]lockstep.AZ{}
	t.ackTop = map[lockstep.AZ]lockstep.Epoch{}
	t.leftAt, t.strict = map[lockstep.Epoch]int64{}, map[lockstep.Epoch]bool{}
}

func (t *truth) issue(pair, block int) wid {
	t.last++
	t.may[pair][block] = append(t.may[pair][block], t.last)
	return t.last
}

// withdraw takes back a write that was given up before anything was done with it.
func (t *truth) withdraw(pair, block int, id wid) {
	t.may[pair][block] = slices.DeleteFunc(slices.Clone(t.may[pair][block]), func(o wid) bool { return o == id })
}

// settled: id was acknowledged or read; nothing older may be seen again.
func (t *truth) settled(pair, block int, id wid) {
	m := t.may[pair][block]
	if i := slices.Index(m, id); i > 0 {
		t.may[pair][block] = slices.Clone(m[i:])
	}
}

// ackedAt is an acknowledgement by a node's volume; it counts from this moment, heard or not.
func (t *truth) ackedAt(w *world, pv *pvol, id wid) {
	w.stats.Acks++
	az := pv.v.n.az
	epoch := pv.epoch
	if was, ok := t.ackedIn[epoch]; ok && was != az {
		w.fail("both sides acknowledge writes in epoch %d", epoch)
	}
	t.ackedIn[epoch] = az
	// A two-sided acknowledgement may be handed out late: the write was on both sides in time.
	alone := pv.mode == protocol.ModeOneSided || pv.mode == protocol.ModePlain
	if alone && t.ackTop[other(az)] > epoch {
		w.fail("%s acknowledges in epoch %d though %s has acknowledged in epoch %d", pv.v.n.id, epoch, other(az), t.ackTop[other(az)])
	}
	t.ackTop[az] = max(t.ackTop[az], epoch)
	if alone {
		t.servedAlone(w, pv, "acknowledges")
	}
	for b := range t.may[pv.v.pair] {
		if slices.Contains(t.may[pv.v.pair][b], id) {
			if alone && t.inGrace(w, az) {
				t.grace.may[pv.v.pair][b] = append(slices.Clone(t.grace.may[pv.v.pair][b]), id)
				return
			}
			t.settled(pv.v.pair, b, id)
			if w.opt.Story {
				w.say("%s: acknowledges w%d (%s block %d) in mode %s", pv.v.n.id, id, pv.v.id, b, pv.mode)
			}
			return
		}
	}
	w.fail("%s acknowledges w%d of %s after a later write was", pv.v.n.id, id, pv.v.id)
}

// recordChanged notes the moment from which a secondary's image may fall behind.
func (t *truth) recordChanged(old, now protocol.Record) {
	// An old primary that confirmed nothing may have written on alone, unacknowledged.
	confirmed := !now.FailedOver || now.Fenced
	if old.InSync && !now.InSync && confirmed {
		t.haveOut = true
		t.atOut = make([][blocksPerVolume][]wid, len(t.may))
		for i := range t.may {
			for b := range t.may[i] {
				t.atOut[i][b] = slices.Clone(t.may[i][b])
			}
		}
	}
	if now.InSync || !confirmed || now.Forced != nil && now.State != protocol.StateFailovering {
		t.haveOut = false
	}
}

// hostLost widens what may be seen by what a reboot may legitimately lose: a group that is not in
// sync is one disk with a volatile cache; one in sync loses only where both hosts rebooted.
func (t *truth) hostLost(w *world, n *node) {
	r := &w.store.rec
	for pair := range t.may {
		p, s := w.volOf(pair, r.Primary), w.volOf(pair, r.Secondary)
		if p.n != n && s.n != n {
			continue
		}
		lossy := p.n.bootID() != r.BootIDs[p.n.id] && s.n.bootID() != r.BootIDs[s.n.id]
		if !r.InSync && p.n == n {
			// A node that has not heard that the group left in sync has all its writes on the other side.
			lossy = lossy || p.n.file.saved.Record.Epoch > r.InSyncEpoch
		}
		if lossy && t.widen(w, pair, p) {
			w.stats.LossyReboots++
		}
	}
}

// widen lets what the primary's copy has now be seen, where it is older than what was promised.
func (t *truth) widen(w *world, pair int, p *vol) bool {
	lost := false
	for b, id := range p.cache {
		if m := t.may[pair][b]; !slices.Contains(m, id) {
			lost = true
			w.say("  unflushed data of %s block %d is lost with good reason: w%d is back", p.id, b, id)
			t.may[pair][b] = append([]wid{id}, m...)
			slices.Sort(t.may[pair][b])
		}
	}
	return lost
}

// check runs after every event.
func (w *world) check() {
	if w.failed != "" {
		return
	}
	r := &w.store.rec
	t := &w.truth
	for pair := range t.may {
		p, s := w.volOf(pair, r.Primary), w.volOf(pair, r.Secondary)
		w.checkPrimary(r, pair, p)
		switch {
		case s.failed:
		case r.InSync && s.n.bootID() == r.BootIDs[s.n.id]:
			w.within(pair, s, &s.cache, &t.may[pair], "the secondary's image, to which a failover is allowed,")
		case !r.InSync && t.haveOut && r.InSyncEpoch > 0:
			w.checkPoint(r, pair, s)
		}
	}
}

func (w *world) checkPrimary(r *protocol.Record, pair int, p *vol) {
	if p.failed {
		return
	}
	may := &w.truth.may[pair]
	if r.InSync && p.n.bootID() == r.BootIDs[p.n.id] {
		w.within(pair, p, &p.cache, may, "the primary's image, in sync,")
		return
	}
	proc := p.n.proc
	if proc == nil {
		return
	}
	pv := proc.pvol(pair)
	if pv.epoch != r.Epoch || pv.mode == protocol.ModeHeld || pv.mode == protocol.ModeRefused {
		return
	}
	w.within(pair, p, &p.cache, may, "the primary's image, served,")
}

// checkPoint: out of sync, the secondary still has one consistent image.
func (w *world) checkPoint(r *protocol.Record, pair int, s *vol) {
	img := &s.cache
	if s.point != nil && s.point.epoch > r.InSyncEpoch {
		if s.point.flushOnly {
			return
		}
		img = &s.point.content
	} else if s.n.bootID() != r.BootIDs[s.n.id] {
		return // flush-consistent only
	}
	w.within(pair, s, img, &w.truth.atOut[pair], "the secondary's last consistent image")
}

func (w *world) within(pair int, v *vol, img *image, may *[blocksPerVolume][]wid, what string) {
	for b, id := range img {
		m := may[b]
		if m[len(m)-1] == id || m[0] == id || slices.Contains(m, id) {
			continue
		}
		w.fail("%s has w%d in block %d of %s (pair %d); it may be %v", what, id, b, v.id, pair, m)
		return
	}
}

// checkIdentical: in sync, with nothing under way, both sides are equal.
func (w *world) checkIdentical() {
	for pair := range w.truth.may {
		a, b := w.volOf(pair, az1), w.volOf(pair, az2)
		if a.cache != b.cache {
			w.fail("in sync and quiet, yet pair %d differs: %v and %v", pair, a.cache, b.cache)
		}
	}
}

func sortedBoots(r protocol.Record) string {
	var lines []string
	for id, boot := range r.BootIDs {
		lines = append(lines, fmt.Sprintf("%s:%s", id, boot))
	}
	sort.Strings(lines)
	return strings.Join(lines, " ")
}

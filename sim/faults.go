package sim

import (
	"fmt"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// plan is how rough a run is; the seed decides.
type plan struct {
	gapMs        int64 // mean time between faults
	volumeFaults bool
	reboots      int // weight
}

// injectFaults goes on while w.faults is set.
func (w *world) injectFaults(pl plan) {
	w.after(w.between(pl.gapMs/4, pl.gapMs*2), func() { w.injectFaults(pl) })
	if !w.faults {
		return
	}
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	m := w.nodes[w.rng.IntN(len(w.nodes))]
	k := w.rng.IntN(20 + pl.reboots)
	switch w.opt.Focus {
	case FocusFailover:
		k = 14
		if w.chance(50) { // the node stands alone
			d := w.between(200, 3000)
			w.say("%s is alone for %d ms", n.id, d)
			n.storeCutUntil = w.now + d
			for _, o := range w.nodes {
				w.cutFor(n.id, o.id, d)
				w.cutFor(o.id, n.id, d)
			}
			return
		}
	case FocusRestart:
		w.restartTwice()
		return
	case FocusPause:
		k = [...]int{0, 5, 5}[w.rng.IntN(3)]
	case FocusOperator:
		// One of: process, cut between nodes, store away for one node, host.
		k = [...]int{0, 5, 5, 14, 14, 25}[w.rng.IntN(6)]
	case FocusForced:
		// One of: process, cut between nodes, store away for one node, host, a site that is lost.
		k = [...]int{0, 5, 5, 14, 18, 25}[w.rng.IntN(6)]
	case FocusNone:
	}
	switch {
	case k < 3:
		n.restartAfter(w.between(50, 4000))
	case k < 5:
		d := w.between(100, 5000)
		w.say("%s stands still for %d ms", n.id, d)
		n.pausedUntil = w.now + d
	case k < 10:
		w.cutSome(n, m, w.between(100, 9000))
	case k < 12:
		if n.proc != nil {
			for _, c := range n.proc.dialed() {
				if !n.proc.dead {
					c.closeDial("broken")
				}
			}
		}
	case k < 14:
		d := w.between(200, 6000)
		w.say("the store is away for %d ms", d)
		w.store.downUntil = w.now + d
	case k < 16:
		d := w.between(200, 9000)
		w.say("%s is cut from the store for %d ms", n.id, d)
		n.storeCutUntil = w.now + d
	case k < 18:
		w.ctls[w.rng.IntN(len(w.ctls))].stop(w.between(200, 8000))
	case k < 19:
		w.rebootSite(w.chance(30))
	case k < 20:
		if pl.volumeFaults && w.chance(30) {
			v := n.vols[w.rng.IntN(len(n.vols))]
			w.say("%s: volume %s fails for good", n.id, v.id)
			v.failed, w.anyVolumeFailed = true, true
		}
	default:
		n.rebootAfter(w.between(100, 6000))
	}
}

// restartTwice: a link breaks, soon the process of its primary node dies, and again when it may be repairing.
func (w *world) restartTwice() {
	n := w.nodes[0]
	for _, m := range w.nodes[1:] {
		w.cutFor(n.id, m.id, w.between(100, 1500))
	}
	w.after(w.between(5, 150), func() { n.restartAfter(w.between(5, 300)) })
	w.after(w.between(300, 3000), func() { n.restartAfter(w.between(5, 300)) })
}

func (n *node) restartAfter(ms int64) {
	n.kill()
	n.w.after(ms, n.startProcess)
}

func (n *node) rebootAfter(ms int64) {
	n.crash()
	n.w.after(ms, n.startProcess)
}

// rebootSite is the loss of power of one site, or of both.
func (w *world) rebootSite(both bool) {
	az := az1
	if w.chance(50) {
		az = az2
	}
	for _, n := range w.nodes {
		if both || n.az == az {
			n.rebootAfter(w.between(100, 5000))
		}
	}
}

// cutOff cuts a site from the store and from the other site.
func (w *world) cutOff(az lockstep.AZ, ms int64) {
	w.say("%s is cut off for %d ms", az, ms)
	for _, n := range w.nodes {
		if n.az != az {
			continue
		}
		n.storeCutUntil = w.now + ms
		for _, m := range w.nodes {
			if m.az != az {
				w.cutFor(n.id, m.id, ms)
				w.cutFor(m.id, n.id, ms)
			}
		}
	}
}

func (w *world) cutSome(n, m *node, ms int64) {
	var how string
	switch {
	case n.az == m.az && w.chance(50): // the sites are apart
		for _, a := range w.nodes {
			for _, b := range w.nodes {
				if a.az != b.az {
					w.cutFor(a.id, b.id, ms)
				}
			}
		}
		how = "all links between the sites"
	case w.chance(50):
		for _, o := range w.nodes {
			w.cutFor(n.id, o.id, ms)
			w.cutFor(o.id, n.id, ms)
		}
		how = fmt.Sprintf("all links of %s", n.id)
	default:
		w.cutFor(n.id, m.id, ms)
		how = fmt.Sprintf("%s to %s, one way", n.id, m.id)
		if w.chance(50) {
			w.cutFor(m.id, n.id, ms)
			how = fmt.Sprintf("%s to %s, both ways", n.id, m.id)
		}
	}
	w.say("cut for %d ms: %s", ms, how)
}

// heal ends every fault, and brings everything up.
func (w *world) heal() {
	w.say("everything heals")
	w.faults, w.opsOn, w.wanted = false, false, nil
	clear(w.cuts)
	w.store.downUntil = 0
	for _, n := range w.nodes {
		n.storeCutUntil = 0
		n.pausedUntil = min(n.pausedUntil, w.now)
		n.startProcess()
	}
	for _, c := range w.ctls {
		c.up = true
		c.life++
	}
}

// atRest: a documented rest state, for which nobody has anything left to do.
func (w *world) atRest() bool {
	r := w.store.rec
	if w.anyVolumeFailed {
		return r.State == protocol.StateNormal || r.State == protocol.StateTripping
	}
	return r.State == protocol.StateNormal && (r.InSync || r.FailedOver || r.Intent == protocol.IntentPaused)
}

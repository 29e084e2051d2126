package sim

import (
	"fmt"
	"strings"

	"github.com/lockstep-dr/lockstep/protocol"
)

// healMs bounds the virtual time from the end of all faults to a rest state that serves.
const healMs = 90_000

// Run plays one seed to its end or to the first broken promise.
func Run(opt Options) Result {
	w := newWorld(opt)
	w.buildRandom()
	w.play()
	return Result{
		Seed: opt.Seed, Failure: w.failed, At: w.now, Events: w.seq, Story: w.story, Hash: w.hash, Stats: w.stats,
	}
}

// buildRandom makes a cluster of 2 to 4 nodes and a group of 1 to 3 pairs spread over them.
func (w *world) buildRandom() {
	np, ns := 1+w.rng.IntN(2), 1+w.rng.IntN(2)
	count := max(np, ns, 1+w.rng.IntN(3))
	slow := int64(120)
	if w.opt.Focus != FocusNone { // few blocks and busy clients: more meetings
		np, ns, count, slow = 1, 1, 1, 15
	}
	if w.opt.Focus == FocusOperator {
		np, ns, count, slow = 2, 1+w.rng.IntN(2), 2+w.rng.IntN(2), 40
	}
	if w.opt.Focus == FocusForced {
		slow = 40
		if w.chance(50) { // a cut goes through several volumes
			np, ns, count = 1+w.rng.IntN(2), 1+w.rng.IntN(2), 2+w.rng.IntN(2)
		}
	}
	pairs := make([][2]int, count)
	for i := range pairs {
		pairs[i] = [2]int{i % np, i % ns}
		if i >= np {
			pairs[i][0] = w.rng.IntN(np)
		}
		if i >= ns {
			pairs[i][1] = w.rng.IntN(ns)
		}
	}
	w.lateness = w.between(3, 25)
	if w.opt.Focus == FocusForced {
		w.lateness = w.between(5, 60)
	}
	w.build(np, ns, pairs)
	w.startClients(1+w.rng.IntN(2), 1, w.between(10, slow))
}

func (w *world) play() {
	gap := int64(3000)
	if w.opt.Focus != FocusNone {
		gap = 800
	}
	pl := plan{gapMs: w.between(400, gap), volumeFaults: w.chance(8), reboots: int(w.between(1, 8))}
	w.want("sync", 60_000)
	if w.chance(85) {
		w.run(20_000, func() bool { return w.store.rec.InSync })
	}
	w.after(0, func() { w.injectFaults(pl) })
	w.after(0, w.randomOperations)
	for range 2 {
		if w.failed != "" {
			return
		}
		w.faults, w.opsOn = true, w.chance(85)
		w.run(w.between(6000, 25_000), nil)
		w.heal()
		w.settle()
	}
}

// settle checks what must hold once everything works: a rest state, service, identical sides.
func (w *world) settle() {
	if w.run(healMs, w.atRest) {
		w.stopClients()
		w.run(12_000, w.clientsIdle)
		served := w.anyVolumeFailed || w.serves()
		if w.failed == "" && !served {
			w.fail("liveness: at rest, yet not every request is answered (%s)", w.store.rec.Describe())
		}
		w.quiet()
		w.resumeClients()
	} else if w.failed == "" {
		w.fail("liveness: no rest state %d s after everything was healed: %s, cause %q, %s", healMs/1000, w.store.rec.Describe(), w.store.rec.Cause, w.store.rec.Reason)
	}
}

// serves: the nodes may need a while to act on the last record.
func (w *world) serves() bool {
	for range 6 {
		if w.probe(5000) || w.failed != "" {
			return true
		}
		w.run(healMs/6, w.atRest)
	}
	return false
}

// quiet waits until nothing is under way and compares the sides.
func (w *world) quiet() {
	w.run(3000, nil)
	if w.failed != "" || !w.store.rec.InSync || w.store.rec.State != protocol.StateNormal || w.anyVolumeFailed {
		return
	}
	for _, n := range w.nodes {
		if n.proc == nil || n.bootID() != w.store.rec.BootIDs[n.id] {
			return
		}
		for _, pv := range n.proc.vols {
			if len(pv.fly) > 0 || len(pv.queue) > 0 {
				return
			}
		}
	}
	w.checkIdentical()
}

// Report is the text of a failure: what broke, how to see it again, and how it came to it.
func (r Result) Report(lines int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d at %d ms: %s\nrepeat: go test ./sim -run TestSeeds -seed=%d -v\n", r.Seed, r.At, r.Failure, r.Seed)
	story := r.Story
	if len(story) > lines {
		story = story[len(story)-lines:]
	}
	for _, line := range story {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}

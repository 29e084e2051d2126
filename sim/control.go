package sim

import (
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// operation is something a user wants; controllers try until the record allows it or time is up.
type operation struct {
	name  string
	until int64
	do    func(v view) (protocol.Record, []lockstep.NodeID, error)
}

func (w *world) operations(name string) *operation {
	simple := func(do func(protocol.Record) (protocol.Record, error)) *operation {
		return &operation{name: name, do: func(v view) (protocol.Record, []lockstep.NodeID, error) {
			next, err := do(v.rec)
			return next, nil, err
		}}
	}
	switch name {
	case "sync":
		return simple(protocol.Record.Sync)
	case "pause":
		return simple(protocol.Record.Pause)
	case "failover":
		return simple(protocol.Record.Failover)
	case "reverse":
		return simple(protocol.Record.Reverse)
	case "undo":
		return simple(func(r protocol.Record) (protocol.Record, error) { return r.UndoReverse("it took too long") })
	case "force":
		return simple(func(r protocol.Record) (protocol.Record, error) {
			var told []lockstep.NodeID
			for _, id := range r.SecondaryNodes() {
				if w.node(id).bootID() != r.BootIDs[id] {
					told = append(told, id)
				}
			}
			return r.ForceFailover(r.Epoch, told)
		})
	case "back-out":
		return &operation{name: name, do: backOut}
	}
	return w.operatorOperation(name)
}

// backOut keeps in sync only where every node answered at this epoch under its recorded boot id.
func backOut(v view) (protocol.Record, []lockstep.NodeID, error) {
	intact := true
	var used []lockstep.NodeID
	for _, id := range v.rec.Nodes() {
		a, ok := v.answers[id]
		if !ok || a.Epoch != v.rec.Epoch || a.BootID != v.rec.BootIDs[id] {
			intact = false
			continue
		}
		used = append(used, id)
	}
	next, err := v.rec.BackOut(intact, "backed out on request")
	return next, used, err
}

// controller is unreliable: it stops at any point, and another goes on.
type controller struct {
	w     *world
	no    int
	up    bool
	life  int
	epoch lockstep.Epoch
	state protocol.State
	since int64
}

func (c *controller) name() string { return "controller " + string(rune('0'+c.no)) }

func (c *controller) stop(ms int64) {
	c.w.say("%s stops", c.name())
	c.up = false
	c.life++
	life := c.life
	c.w.after(ms, func() {
		if c.life == life {
			c.up = true
		}
	})
}

func (c *controller) loop() {
	c.w.after(c.w.between(200, 600), c.loop)
	if !c.up {
		return
	}
	life := c.life
	resume := func(d int64, fn func()) {
		c.w.after(d, func() {
			if c.life == life {
				fn()
			}
		})
	}
	s := &c.w.store
	var v view
	s.call(nil, func() { v = s.read() }, resume, func(ok bool) {
		if !ok {
			return
		}
		next, used, op, yes := c.decide(v)
		if !yes {
			return
		}
		s.call(nil, func() {
			if s.cas(v, next, used, c.name()) {
				c.since = c.w.now
				c.w.wanted = slices.DeleteFunc(c.w.wanted, func(o *operation) bool { return o == op })
			}
		}, resume, func(bool) {})
	})
}

// decide gives the record that should follow, the answers it rests on, and the user's operation, if
// it is one.
func (c *controller) decide(v view) (protocol.Record, []lockstep.NodeID, *operation, bool) {
	w := c.w
	if v.rec.Epoch != c.epoch || v.rec.State != c.state {
		c.epoch, c.state, c.since = v.rec.Epoch, v.rec.State, w.now
	}
	lasted := w.now - c.since
	// How long a strict old primary is asked before it is not waited for is a matter of configuration.
	patience := lasted > 6000 || v.rec.Forced != nil && lasted > 200
	if next, used, ok := w.advance(v, patience); ok {
		return next, used, nil, true
	}
	w.wanted = slices.DeleteFunc(w.wanted, func(o *operation) bool { return o.until < w.now })
	for _, o := range w.wanted {
		next, used, err := o.do(v)
		if err != nil {
			continue
		}
		w.say("%s: %s", c.name(), o.name)
		return next, used, o, true
	}
	r := v.rec
	if r.State == protocol.StateReversing && lasted > 9000 {
		next, err := r.UndoReverse("the switchover took too long")
		return next, nil, nil, err == nil
	}
	// After a fault the group synchronizes again by itself, with a pause between attempts.
	if r.State == protocol.StateNormal && !r.InSync && r.Intent == protocol.IntentRun && !r.FailedOver && lasted > 1500 {
		next, err := r.Sync()
		return next, nil, nil, err == nil
	}
	return r, nil, nil, false
}

// want asks for an operation for the next while.
func (w *world) want(name string, ms int64) {
	o := w.operations(name)
	o.until = w.now + ms
	w.wanted = append(w.wanted, o)
}

// randomOperations are what users do, now and then.
func (w *world) randomOperations() {
	gap := w.between(1500, 9000)
	if w.opt.Focus != FocusNone {
		gap = w.between(200, 1500)
	}
	w.after(gap, w.randomOperations)
	if !w.opsOn {
		return
	}
	r := w.store.rec
	name := [...]string{"pause", "failover", "failover", "reverse", "reverse", "sync", "back-out", "undo"}[w.rng.IntN(8)]
	switch {
	case r.State == protocol.StateNormal && (r.FailedOver || r.Intent == protocol.IntentPaused) && w.chance(75):
		name = "sync"
	case r.State == protocol.StateFailovering && w.chance(50):
		name = "back-out"
	}
	switch w.opt.Focus {
	case FocusFailover:
		name = [...]string{"sync", "failover", "failover then sync"}[w.rng.IntN(3)]
		if name == "failover then sync" {
			w.want("failover", 1500)
			name = "sync"
		}
	case FocusPause:
		name = [...]string{"sync", "pause"}[w.rng.IntN(2)]
	case FocusRestart:
		name = "sync"
	case FocusForced:
		name = [...]string{"pause", "sync", "force", "force", "strict", "failover"}[w.rng.IntN(6)]
		if !r.InSync && r.State != protocol.StateFailovering && w.chance(60) {
			name = [...]string{"force", "force", "sync"}[w.rng.IntN(3)]
			if name == "sync" && w.chance(70) { // in the middle of copying
				w.want("sync", 1500)
				name = "force"
			}
		}
		if !r.Strict && r.InSync && w.chance(30) {
			name = "strict"
		}
		if name == "force" && r.Strict && w.chance(50) { // the store is at the other side of the cut
			w.cutOff(r.Primary, w.between(300, 3000))
		}
		if r.State == protocol.StateFailovering && w.chance(60) {
			name = [...]string{"node-off", "node-off", "back-out"}[w.rng.IntN(3)]
		}
	case FocusOperator:
		if w.chance(60) {
			name = operatorOps[w.rng.IntN(len(operatorOps))]
		}
		if r.State == protocol.StateTripping && w.chance(70) {
			name = [...]string{"continue", "node-off"}[w.rng.IntN(2)]
		}
		if r.State == protocol.StateFailovering && w.chance(40) {
			name = "node-off"
		}
	case FocusNone:
		if !r.InSync && !r.FailedOver && w.chance(15) {
			name = "force"
		}
		if w.chance(8) || r.State == protocol.StateTripping && w.chance(20) {
			name = operatorOps[w.rng.IntN(len(operatorOps))]
		}
	}
	w.say("a user asks for %s", name)
	w.want(name, w.between(500, 5000))
}

package whole

import (
	"context"
	"errors"
	"time"

	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/protocol"
)

// act makes a call of an action and tells what came of it. A refusal is an answer; an internal error is not.
func (w *World) act(a control.Action, ext ...control.Extend) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	w.say("oper", "%s", a)
	err := w.call(ctx, func(ctx context.Context, ctl *control.Controller) error {
		return ctl.Act(ctx, caller, w.group, a, ext)
	})
	w.answered(string(a), err)
	return err
}

func (w *World) answered(what string, err error) {
	w.count("operator: " + what)
	if err == nil {
		w.say("oper", "%s: accepted", what)
		return
	}
	w.say("oper", "%s: %v", what, err)
	var e *control.Error
	if errors.As(err, &e) && e.Kind == control.KindInternal && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		w.fail("%s was answered with an internal error: %v", what, err)
	}
}

// operators do what operators do, and sometimes what they should not.
func (w *World) operators(until time.Time) {
	w.tasks.Go(func() {
		d := w.operatorDice
		for time.Now().Before(until) && !w.calm.Load() {
			w.lasts(d, true, 500*time.Millisecond, 12*time.Second)
			if w.calm.Load() {
				return
			}
			v, err := w.view()
			if err != nil {
				continue
			}
			switch {
			case d.chance(0.2):
				_ = w.act(pick(d, []control.Action{control.ActionFailover, control.ActionSync, control.ActionReverse, control.ActionStop, control.ActionReprotect}))
			case v.Status == "failovered":
				_ = w.act(control.ActionReprotect)
			case v.ReplicationStatus == "active-stopped":
				_ = w.act(control.ActionSync)
			case v.ReplicationStatus == "active" && v.FaultLevel == "2":
				_ = w.act(control.ActionFailover)
			case v.ReplicationStatus == "active":
				_ = w.act(pick(d, []control.Action{control.ActionFailover, control.ActionReverse, control.ActionReverse, control.ActionStop}))
			case w.now().State == protocol.StateTripping && d.chance(0.3):
				_ = w.state(control.StateContinue)
			}
		}
	})
}

func (w *World) state(s control.Statement) error {
	err := w.call(context.Background(), func(ctx context.Context, ctl *control.Controller) error {
		return ctl.Declare(ctx, caller, w.group, s, "", "simulated")
	})
	w.answered(string(s), err)
	return err
}

// converge is liveness: with everything healed, and an operator who follows the statuses, the group must
// serve and be in sync within that time.
func (w *World) converge(within time.Duration) bool {
	asked := time.Time{}
	ok := w.eventually(within, func() bool {
		v, err := w.view()
		if err != nil {
			return false
		}
		if v.Status == "available" && v.ReplicationStatus == "active" && v.FaultLevel == "0" {
			return true
		}
		if time.Since(asked) < 3*time.Second {
			return false
		}
		asked = time.Now()
		switch {
		case v.Status == "failovered":
			_ = w.act(control.ActionReprotect)
		case v.ReplicationStatus == "active-stopped", v.ReplicationStatus == "inactive" && w.now().Intent == protocol.IntentPaused:
			_ = w.act(control.ActionSync)
		}
		w.restartFull()
		return false
	})
	w.say("CHECK", "converged: %v, %s", ok, w.status())
	return ok
}

// restartFull starts processes again whose volumes failed for want of space, as the runbook says.
func (w *World) restartFull() {
	for _, ids := range w.vols {
		for _, id := range ids {
			h := w.home(id)
			p := h.running()
			if p == nil || w.wrecked()[h] != "" {
				continue
			}
			n := p.node.Load()
			if n == nil {
				continue
			}
			if err := n.VolumeFailed(id); err != nil {
				w.say(string(h.id), "volume failed: %v; its node is started again", err)
				h.kill()
				h.start()
			}
		}
	}
}

package whole

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
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

// answered tells what came of a call, and reports whether it was accepted.
func (w *World) answered(what string, err error) bool {
	if err == nil {
		w.count("operator: " + what)
		w.say("oper", "%s: accepted", what)
		return true
	}
	w.count("refused: " + what)
	w.say("oper", "%s: %v", what, err)
	var e *control.Error
	if errors.As(err, &e) && e.Kind == control.KindInternal && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		w.fail("%s was answered with an internal error: %v", what, err)
	}
	return false
}

// calls are what operators do; a run tells how often each was accepted.
var calls = []string{
	string(control.ActionFailover), string(control.ActionSync), string(control.ActionReverse), string(control.ActionStop),
	string(control.ActionReprotect), string(control.ActionExtend), "failover-preview", "forced failover", "delete a divergence image",
	"remove a pair", "add a pair", "policy", "verify", string(control.StateContinue), string(control.StateNodeOff), string(control.StateBackOut),
}

// operators do what operators do, and sometimes what they should not.
func (w *World) operators(until time.Time) {
	w.tasks.Go(func() {
		d := w.operatorDice
		for time.Now().Before(until) && !w.calm.Load() {
			most := 6 * time.Second
			if s := w.now().State; s == protocol.StateTripping || s == protocol.StateFailovering {
				most = time.Second // somebody waits
			}
			w.lasts(d, true, 300*time.Millisecond, most)
			if w.calm.Load() {
				return
			}
			if v, err := w.view(); err == nil {
				w.calling.Store(true)
				w.operate(d, v)
				w.calling.Store(false)
			}
		}
	})
}

func (w *World) operate(d *dice, v control.GroupView) {
	r := w.now()
	rests := r.State == protocol.StateNormal && !r.InSync
	_, whole := w.memberIn(r, len(w.pairs)-1)
	switch {
	case d.chance(0.15):
		_ = w.act(pick(d, []control.Action{control.ActionFailover, control.ActionSync, control.ActionReverse, control.ActionStop, control.ActionReprotect}))
	case d.chance(0.08):
		w.setStrict(!r.Strict)
	case d.chance(0.08):
		w.extend(d, r)
	case r.State == protocol.StateFailovering && d.chance(0.2):
		_ = w.state(control.StateBackOut, "")
	case r.State == protocol.StateFailovering:
		w.sayOff(r)
	case (rests || r.State == protocol.StateCopying) && !r.FailedOver && d.chance(0.35):
		w.forceFailover()
	case rests && (d.chance(0.25) || !whole && d.chance(0.5)):
		w.changeMembers(r)
	case v.Status == "failovered" && d.chance(0.15):
		w.deleteImage(d)
	case v.Status == "failovered":
		_ = w.act(control.ActionReprotect)
	case v.ReplicationStatus == "active-stopped":
		_ = w.act(control.ActionSync)
	case v.ReplicationStatus == "active" && v.FaultLevel == "2":
		_ = w.act(control.ActionFailover)
	case v.ReplicationStatus == "active" && d.chance(0.25):
		w.verify()
	case v.ReplicationStatus == "active":
		_ = w.act(pick(d, []control.Action{control.ActionFailover, control.ActionReverse, control.ActionReverse, control.ActionStop}))
	case r.State == protocol.StateTripping && d.chance(0.5):
		_ = w.state(control.StateContinue, "")
	}
}

// ask makes a call with the time that a user has.
func (w *World) ask(what string, f func(ctx context.Context, ctl *control.Controller) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	w.say("oper", "%s", what)
	return w.answered(what, w.call(ctx, f))
}

func (w *World) setStrict(strict bool) {
	w.ask("policy", func(ctx context.Context, ctl *control.Controller) error {
		return ctl.SetStrict(ctx, caller, w.group, strict)
	})
}

// extend grows a pair, or both, once.
func (w *World) extend(d *dice, r protocol.Record) {
	var ext []control.Extend
	for _, m := range r.Members {
		if d.chance(0.7) {
			ext = append(ext, control.Extend{Pair: m.Pair, SizeGiB: 2})
		}
	}
	_ = w.act(control.ActionExtend, ext...)
}

// changeMembers takes the last pair out of the group, or back in.
func (w *World) changeMembers(r protocol.Record) {
	last := len(w.pairs) - 1
	what, u := "remove a pair", control.GroupUpdate{Remove: w.pairs[last:]}
	if _, ok := w.memberIn(r, last); !ok {
		what, u = "add a pair", control.GroupUpdate{Add: w.pairs[last:]}
	}
	w.ask(what, func(ctx context.Context, ctl *control.Controller) error {
		_, err := ctl.UpdateGroup(ctx, caller, w.group, u)
		return err
	})
}

func (w *World) verify() {
	w.ask("verify", func(ctx context.Context, ctl *control.Controller) error {
		_, err := ctl.Verify(ctx, caller, w.group, 0)
		return err
	})
}

// checkVerified: a verification finds nothing where no disk lies, whatever writes and faults went on (no false
// alarm); a difference would break invariant 4.
func (w *World) checkVerified() {
	kv, err := w.mem.Get(context.Background(), store.KeyVerify(w.group))
	if err != nil {
		return
	}
	v, err := store.Decode[store.Verification](kv.Value)
	switch {
	case err != nil:
		w.fail("the verification cannot be read: %v", err)
	case v.Differences.Count > 0 && len(w.wrecked()) == 0:
		w.fail("a verification of epoch %d found %d differences: %v", v.Epoch, v.Differences.Count, v.Differences.First)
	case v.Proof != nil:
		w.mu.Lock()
		w.stats["checked: verification that found nothing"] = 1
		w.mu.Unlock()
	}
}

func (w *World) state(s control.Statement, node lockstep.NodeID) error {
	err := w.call(context.Background(), func(ctx context.Context, ctl *control.Controller) error {
		return ctl.Declare(ctx, caller, w.group, s, node, "simulated")
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
		case strings.HasPrefix(v.Status, "error"), v.ReplicationStatus == "active-stopped", v.ReplicationStatus == "inactive" && w.now().Intent == protocol.IntentPaused:
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

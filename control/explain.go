package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Explanation says what a group does and why, and what can be done about it now.
type Explanation struct {
	GroupView
	Condition string    // of the record: in sync, copying, …
	Since     time.Time // when the group came into it; zero: before its history begins
	Secondary lockstep.AZ
	// Behind is what the primary is known to have and the secondary lacks, in bytes, as last reported.
	Behind  int64
	Held    []string // who holds requests, and why
	Waiting []string // what has to happen before the condition changes by itself
	Options []Option
}

// Option is one call about a group, and what it would do now. It is found by the very code that
// decides the call, whose result is thrown away.
type Option struct {
	Action  string          // failover, …, verify, or a statement
	Node    lockstep.NodeID // that a statement names
	Allowed bool
	Effect  string // what it would do
	Refusal string // why it would be refused, in the words of that answer
}

// optionVerify names the option to compare both sides.
const optionVerify = "verify"

// Explain answers for one group. Statements are looked at for callers that may make them.
func (c *Controller) Explain(ctx context.Context, caller Caller, id lockstep.GroupID) (Explanation, error) {
	var e Explanation
	var r protocol.Record
	found := false
	err := c.read(ctx, func(s *snapshot) {
		g, ok := s.groups[id]
		if !ok || !caller.owns(g.Project) {
			return
		}
		r, found = s.records[id], true
		e.GroupView = c.viewGroup(s, g)
		f := inspect(r, s.sights[id], s.aliveSet(r), c.cfg.Now())
		e.Held = f.held
		e.Waiting = waiting(r, s.answers[id], s.sights[id], f)
		e.Behind = behind(r, s.sights[id])
	})
	if err == nil && !found {
		err = notFound("", "replication consistency group %s does not exist", id)
	}
	if err != nil {
		return e, asRefusal(err)
	}
	e.Condition, e.Secondary = condition(r), r.Secondary
	if e.Since, err = c.since(ctx, caller, r); err != nil {
		return e, err
	}
	e.Options, err = c.options(ctx, caller, id, e.Behind)
	return e, asRefusal(err)
}

// condition names a record's condition in a few words.
func condition(r protocol.Record) string {
	switch {
	case r.State != protocol.StateNormal:
		return string(r.State)
	case r.InSync:
		return "in sync"
	case r.FailedOver:
		return "failed over"
	case r.Intent == protocol.IntentPaused && r.Cause != protocol.CauseNew:
		return "paused"
	case r.InSyncEpoch == 0:
		return "never synchronized"
	}
	return "not in sync"
}

// since is the time of the oldest of the newest entries that share the record's condition.
func (c *Controller) since(ctx context.Context, caller Caller, r protocol.Record) (at time.Time, err error) {
	entries, err := c.History(ctx, caller, r.Group)
	if err != nil {
		return at, err
	}
	for _, h := range slices.Backward(entries) {
		if h.Condition == "" || h.Epoch > r.Epoch {
			continue
		}
		if h.Condition != condition(r) {
			break
		}
		at = h.At
	}
	return at, nil
}

// waiting says what a record in transition, or nodes that have not followed it, wait for.
func waiting(r protocol.Record, answers map[lockstep.NodeID]protocol.Answer, seen map[lockstep.NodeID]Sight, f faults) []string {
	var out []string
	each := func(nodes []lockstep.NodeID, step protocol.Step, what string) {
		for _, n := range nodes {
			a, ok := answers[n]
			switch {
			case !ok || a.Epoch != r.Epoch || a.Step != step:
				text := fmt.Sprintf("node %s has not answered that it %s", n, what)
				if slices.Contains(f.primaryGone, n) || slices.Contains(f.secondaryGone, n) {
					text += "; it is not alive"
				}
				out = append(out, text)
			case !a.Healthy && step != protocol.StepReversed:
				out = append(out, fmt.Sprintf("node %s answered that a volume failed: %s", n, a.Error))
			}
		}
	}
	switch r.State {
	case protocol.StateTripping:
		each(r.PrimaryNodes(), protocol.StepTripping, "holds its requests and has flushed")
	case protocol.StateCopying:
		each(r.PrimaryNodes(), protocol.StepTwoSided, "has sent everything and flushed both sides")
	case protocol.StateFailovering:
		each(r.SecondaryNodes(), protocol.StepReady, "has flushed and refuses the old primary")
	case protocol.StateReversing:
		each(r.PrimaryNodes(), protocol.StepReversed, "has drained, holds and has flushed both sides")
	case protocol.StateDeleted:
		each(r.Nodes(), protocol.StepTold, "knows of the end")
	case protocol.StateNormal:
		for _, n := range r.PrimaryNodes() {
			if s, ok := seen[n]; !slices.Contains(f.primaryGone, n) && (!ok || s.Epoch < r.Epoch) {
				out = append(out, fmt.Sprintf("primary node %s has not adopted epoch %d yet", n, r.Epoch))
			}
		}
		if !r.InSync && !r.FailedOver && r.Intent == protocol.IntentRun && len(r.Members) > 0 {
			out = append(out, "the next synchronization, which begins by itself when every node is alive")
		}
	}
	return out
}

// behind sums what primary nodes report to differ at the other side.
func behind(r protocol.Record, seen map[lockstep.NodeID]Sight) (n int64) {
	if r.InSync {
		return 0
	}
	for _, m := range r.Members {
		here := m.In(r.Primary)
		v := seen[here.Node].Volumes[here.Volume]
		n += max(v.DirtyBytes, v.ToSendBytes)
	}
	return n
}

// options rehearses every action and statement.
func (c *Controller) options(ctx context.Context, caller Caller, id lockstep.GroupID, behind int64) ([]Option, error) {
	caller.Operator = true // what the group would take; who may ask for it is said elsewhere, and a reader looks, too
	var out []Option
	try := func(o Option, build func(t *tx) (effect string, err error)) error {
		effect, err := build(c.newTx(ctx))
		var refused *Error
		switch err = asRefusal(err); {
		case err == nil:
			o.Allowed, o.Effect = true, effect
		case errors.As(err, &refused) && (refused.Kind == KindConflict || refused.Kind == KindBadRequest):
			o.Refusal = refused.Message
		default:
			return err
		}
		out = append(out, o)
		return nil
	}
	for _, a := range Actions {
		err := try(Option{Action: string(a)}, func(t *tx) (string, error) {
			if a == ActionExtend {
				return "both sides of the named pairs grow, the secondary first; then the new size is announced", c.rehearseExtend(t, caller, id)
			}
			from, err := t.begin(caller, id)
			if err != nil {
				return "", err
			}
			x, err := c.decide(t, caller, id, a)
			if err != nil {
				return "", err
			}
			return effect(a, from.r, x.r, behind), nil
		})
		if err != nil {
			return nil, err
		}
	}
	err := try(Option{Action: optionVerify}, func(t *tx) (string, error) {
		x, err := t.begin(caller, id)
		if err != nil {
			return "", err
		}
		w, err := x.verify("rehearsed", 0)
		if w.ID != "rehearsed" {
			return "answers the verification that is running", err
		}
		return "both sides are compared while they serve; what differs is repaired from the primary, and reported", err
	})
	if err == nil {
		err = try(Option{Action: optionForced}, func(t *tx) (string, error) { return t.rehearseForced(caller, id) })
	}
	if err != nil || !caller.Admin {
		return out, err
	}
	r, _, err := store.GetT[protocol.Record](ctx, c.cfg.Store, store.KeyRecord(id))
	if err != nil {
		return nil, err
	}
	for _, s := range Statements {
		for _, node := range subjects(s, r) {
			err := try(Option{Action: string(s), Node: node}, func(t *tx) (string, error) {
				x, err := t.begin(caller, id)
				if err != nil {
					return "", err
				}
				return stated[s], x.declare(s, node, "rehearsed")
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// subjects are the nodes that a statement may be about.
func subjects(s Statement, r protocol.Record) []lockstep.NodeID {
	switch s {
	case StateNodeOff, StateDirectory:
		return r.PrimaryNodes()
	case StateLostSecondary:
		return r.SecondaryNodes()
	case StateContinue, StateBackOut:
	}
	return []lockstep.NodeID{""}
}

func (c *Controller) rehearseExtend(t *tx, caller Caller, id lockstep.GroupID) error {
	x, err := t.begin(caller, id)
	if err != nil {
		return err
	}
	if _, err := verdict(ActionExtend, x.status); err != nil {
		return err
	}
	if len(x.r.Members) == 0 {
		return conflict("", "extend needs a pair in the group; it has none")
	}
	return x.checkExtend(nil)
}

// optionForced names the failover that loses writes among the options.
const optionForced = "forced-failover"

func (t *tx) rehearseForced(caller Caller, id lockstep.GroupID) (string, error) {
	x, err := t.begin(caller, id)
	if err != nil {
		return "", err
	}
	p, err := x.preview()
	switch {
	case err != nil:
		return "", err
	case !p.Allowed:
		return "", conflict("", "%s", strings.Join(p.Reasons, "; "))
	case !p.Forced:
		return "", conflict("", "an ordinary failover is possible, and loses nothing")
	}
	lost := "an unknown number of bytes"
	if n, ok := p.Bytes(); ok {
		lost = fmt.Sprintf("up to %d bytes", n)
	}
	return fmt.Sprintf("%s becomes the primary with its last consistent image; %s that only %s has are missing there: ask for the failover-preview, whose token it needs",
		p.To, lost, p.From), nil
}

// stated is what a statement does when it is taken.
var stated = map[Statement]string{
	StateContinue:      "the stop ends without the primary node that does not confirm, once its secondaries have fenced it; it is not in sync then",
	StateNodeOff:       "the stop or failover under way does not wait for this node; its host must be powered off",
	StateDirectory:     "what is in the node's present directory becomes the group's image, and is compared with the other side",
	StateBackOut:       "the failover ends with the roles as they were",
	StateLostSecondary: "the primary goes on with its own image after a restart of its host; unflushed writes may be missing",
}

// effect says what an action made of the record.
func effect(a Action, from, to protocol.Record, behind int64) string {
	switch a {
	case ActionFailover:
		return fmt.Sprintf("%s becomes the primary: its disks open, those in %s close; no acknowledged write is missing", from.Secondary, from.Primary)
	case ActionSync, ActionReprotect:
		if to.Epoch == from.Epoch {
			return "nothing: it " + already(from)
		}
		return fmt.Sprintf("what differs (%d bytes are known to) is copied from %s to %s; the disks in %s stay open, and a failover is refused until it is in sync",
			behind, from.Primary, from.Secondary, from.Primary)
	case ActionReverse:
		return fmt.Sprintf("the disks in %s are drained and close, those in %s open; replication goes on the other way, in sync", from.Primary, from.Secondary)
	case ActionStop:
		switch {
		case to.Epoch == from.Epoch && to.Intent == from.Intent:
			return "nothing: it does not replicate"
		case to.Epoch == from.Epoch:
			return "it does not replicate now, and does not begin to by itself"
		}
		return fmt.Sprintf("replication stops at one point for all disks; the disks in %s stay open, what is written is noted, and a failover is refused", from.Primary)
	case ActionExtend:
	}
	return ""
}

func already(r protocol.Record) string {
	switch {
	case len(r.Members) == 0:
		return "has no pairs"
	case r.State == protocol.StateCopying:
		return "is copying already"
	}
	return "is in sync or on the way there"
}

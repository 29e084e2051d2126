package control

import (
	"context"
	"fmt"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Statement is what an operator knows and no machine can find out. It is kept in the group's
// history, with who said it and why.
type Statement string

// Statements about a group. They need the admin role.
const (
	// StateContinue lets a trip end although a primary node does not confirm.
	StateContinue Statement = "continue"
	// StateNodeOff says that a primary node is powered off, for a trip or failover under way.
	StateNodeOff Statement = "confirm-node-off"
	// StateDirectory says that the present directory of a primary node, another one than the recorded
	// one, counts as the group's image.
	StateDirectory Statement = "accept-directory"
	// StateBackOut takes a failover back that does not end.
	StateBackOut Statement = "back-out"
	// StateLostSecondary says that a secondary node is gone for good: unflushed writes may be missing.
	StateLostSecondary Statement = "accept-lost-secondary"
)

// Statements lists every statement about a group.
var Statements = []Statement{StateContinue, StateNodeOff, StateDirectory, StateBackOut, StateLostSecondary}

// NamesNode reports whether the statement is about a node.
func (s Statement) NamesNode() bool { return s != StateContinue && s != StateBackOut }

// Declare takes an operator's statement; node is needed where it names one.
func (c *Controller) Declare(ctx context.Context, caller Caller, id lockstep.GroupID, s Statement, node lockstep.NodeID, reason string) error {
	if !caller.Admin {
		return &Error{Kind: KindForbidden, Message: "the statement " + string(s) + " needs the role admin"}
	}
	if reason == "" || len(reason) > maxTextBytes {
		return badRequest("", "reason must say why, in 1 to %d bytes", maxTextBytes)
	}
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		x, err := t.begin(caller, id)
		if err != nil {
			return err
		}
		return x.declare(s, node, reason)
	}))
}

// declare puts a statement into the transaction.
func (x *acting) declare(s Statement, node lockstep.NodeID, reason string) error {
	var next protocol.Record
	var err error
	what := "operator: " + string(s)
	switch s {
	case StateContinue:
		next, err = x.r.Continue()
	case StateNodeOff:
		next, err = x.r.ConfirmOff(node)
		what += " " + string(node)
		if err == nil && x.alive[node] {
			return conflict("", "node %s is alive: it is not off", node)
		}
	case StateDirectory:
		n, found, err2 := peek[store.Node](x.tx, store.KeyNode(node))
		switch {
		case err2 != nil:
			return err2
		case !found || !x.alive[node]:
			return conflict("", "node %s is not alive: start it with the directory that is to count", node)
		}
		next, err = x.r.AcceptDirectory(node, n.Instance)
		what += fmt.Sprintf(" %s (directory %s)", node, n.Instance)
	case StateBackOut:
		return x.backOut(reason)
	case StateLostSecondary:
		next, err = x.r.AcceptLost(node)
		what += " " + string(node)
		if err == nil && x.alive[node] {
			return conflict("", "node %s is alive: it is not lost", node)
		}
	default:
		return badRequest("", "there is no statement %q", s)
	}
	if err != nil {
		return err
	}
	x.put(store.KeyRecord(x.g.ID), next)
	x.event(next, what+" ("+reason+")", x.caller.who(), x.caller.RequestID)
	return nil
}

// backOut ends a failover that does not end by itself. In sync is kept if every secondary has
// answered under its recorded boot id [F17]; what is not known must end by way of tripping.
func (x *acting) backOut(reason string) error {
	intact := true
	for _, node := range x.r.SecondaryNodes() {
		a, found, err := get[protocol.Answer](x.tx, store.KeyAnswer(x.g.ID, node))
		if err != nil {
			return err
		}
		intact = intact && found && a.Epoch == x.r.Epoch && a.Step == protocol.StepReady && a.BootID == x.r.BootIDs[node]
	}
	next, err := x.r.BackOut(intact, "the failover was taken back by an operator: "+reason)
	if err != nil {
		return err
	}
	x.record(next)
	return nil
}

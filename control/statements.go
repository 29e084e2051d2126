package control

import (
	"context"

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
	// StateLostSecondary says that a secondary node is gone for good: unflushed writes may be missing.
	StateLostSecondary Statement = "accept-lost-secondary"
)

// Declare takes an operator's statement; node is needed by all but StateContinue.
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
		var next protocol.Record
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
		x.put(store.KeyRecord(id), next)
		x.event(next, what+" ("+reason+")", caller.who(), caller.RequestID)
		return nil
	}))
}

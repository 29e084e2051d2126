package control

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Act runs a group action. It answers when the transition is recorded; stop when it is effective,
// extend when both sides are grown. Which status takes which action is in ActionTable.
func (c *Controller) Act(ctx context.Context, caller Caller, id lockstep.GroupID, a Action, ext []Extend) error {
	if a == ActionExtend {
		return asRefusal(c.extendGroup(ctx, caller, id, ext))
	}
	if len(ext) > 0 {
		return badRequest("", "action %s takes no sizes", a)
	}
	err := c.update(ctx, nil, func(t *tx) error {
		_, err := c.decide(t, caller, id, a)
		return err
	})
	if err == nil && a == ActionStop {
		err = c.awaitStopped(ctx, id)
	}
	return asRefusal(err)
}

// decide reads the group, checks the table, and puts into the transaction what the action makes of
// it, or nothing.
func (c *Controller) decide(t *tx, caller Caller, id lockstep.GroupID, a Action) (*acting, error) {
	do, ok := map[Action]func(*acting) error{
		ActionFailover: c.failover, ActionSync: c.sync, ActionReprotect: c.sync, ActionReverse: c.reverse, ActionStop: c.stop,
	}[a]
	if !ok {
		return nil, badRequest("", "action %q is not known", a)
	}
	x, err := t.begin(caller, id)
	if err != nil {
		return nil, err
	}
	v, err := verdict(a, x.status)
	if err != nil || v == NoOp {
		return x, err
	}
	if a == ActionSync && x.status == StatusFailovered && !caller.Operator {
		return nil, &Error{Kind: KindForbidden, Message: "in status failovered a sync is a reprotect, which overwrites the old primary; it needs the role operator"}
	}
	return x, do(x)
}

// acting is one action on one group inside a transaction.
type acting struct {
	*tx
	caller Caller
	g      store.Group
	r      protocol.Record
	alive  map[lockstep.NodeID]bool
	status string
}

// begin reads a group of which something is to be changed.
func (t *tx) begin(caller Caller, id lockstep.GroupID) (*acting, error) {
	x, err := t.look(caller, id)
	if err != nil {
		return nil, err
	}
	return x, t.checkNotOlder(x.r)
}

// look reads a group and which of its nodes are alive.
func (t *tx) look(caller Caller, id lockstep.GroupID) (*acting, error) {
	g, r, err := seenGroup(t, caller, id)
	if err != nil {
		return nil, err
	}
	x := &acting{tx: t, caller: caller, g: g, r: r, status: recordStatus(g, r), alive: map[lockstep.NodeID]bool{}}
	for _, n := range r.Nodes() {
		if x.alive[n], err = t.alive(n); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// gone lists those of nodes that are not alive.
func (x *acting) gone(nodes []lockstep.NodeID) []lockstep.NodeID {
	var gone []lockstep.NodeID
	for _, n := range nodes {
		if !x.alive[n] {
			gone = append(gone, n)
		}
	}
	return gone
}

// shown is the group's status for a refusal.
func (x *acting) shown() string {
	rep, fault := replication(x.r, inspect(x.r, nil, x.alive, x.now))
	s := fmt.Sprintf("status %s, replication_status %s, fault_level %s", x.status, rep, fault)
	if x.r.Reason != "" {
		s += " (" + x.r.Reason + ")"
	}
	return s
}

// record puts a transition into the transaction.
func (x *acting) record(next protocol.Record) {
	x.put(store.KeyRecord(x.g.ID), next)
	x.history(next, describeStep(x.r, next), x.caller.who(), x.caller.RequestID)
	x.r = next
}

// changed puts the group into the transaction.
func (x *acting) changed() {
	x.g.UpdatedAt = ptr(x.now)
	x.put(store.KeyGroup(x.g.ID), x.g)
}

// cleared takes an error status of an earlier operation away.
func (x *acting) cleared() bool {
	had := x.g.Overlay != "" || x.g.Failure != nil
	x.g.Overlay, x.g.Failure = "", nil
	return had
}

func (x *acting) needAllNodes(what string) error {
	if gone := x.gone(x.r.Nodes()); len(gone) > 0 {
		return conflict(codePeerUnreachable, "%s needs the nodes of both AZs; node %s is not alive", what, joinIDs(gone))
	}
	return nil
}

// failover asks the secondaries to take over. It is refused when the record is not in sync, and
// when a secondary node is away: it could not end, and would stop a primary that may still serve.
func (c *Controller) failover(x *acting) error {
	if !x.r.InSync {
		return conflict("", "failover refused: the secondary is not in sync: %s; a forced failover loses writes, and failover-preview says which", x.shown())
	}
	if gone := x.gone(x.r.SecondaryNodes()); len(gone) > 0 {
		return conflict(codePeerUnreachable, "failover refused: secondary node %s is not alive: %s", joinIDs(gone), x.shown())
	}
	next, err := x.r.Failover()
	if err != nil {
		return err
	}
	for i := range next.Members {
		next.Members[i].ExtendBytes = 0 // a failover in between keeps the old size
	}
	// An extend gives up when it finds itself replaced.
	if op, found, err := get[store.Operation](x.tx, store.KeyOp(x.g.Op)); err != nil {
		return err
	} else if !found || op.Kind != opExtend {
		if err := x.takeOver(&x.g, x.r); err != nil {
			return err
		}
	}
	x.startMove(opFailover, next)
	return nil
}

// startMove records a failover or a switchover and the operation that watches it.
func (x *acting) startMove(kind string, next protocol.Record) {
	op := newOp(newID(), kind, "watch", x.tx, x.caller, x.g, 0, map[string]string{
		argEpoch: formatEpoch(next.Epoch), argTo: string(x.r.Secondary),
	})
	x.cleared()
	x.g.Op = op.ID
	x.createOp(op)
	x.record(next)
	x.changed()
}

// sync starts copying; on a failed-over group it is the reprotect. It is idempotent, and nothing is
// to be done in a group without pairs: clients end every update with it, one that empties it as well.
func (c *Controller) sync(x *acting) error {
	if len(x.r.Members) == 0 {
		return nil
	}
	what := "sync"
	if x.r.FailedOver {
		what = "reprotect"
	}
	if x.r.InSync || x.r.State == protocol.StateCopying {
		// Active, or on the way: only what a failed operation or a pause under way left is undone.
		if x.r.State == protocol.StateTripping && x.r.Intent == protocol.IntentPaused {
			next := x.r.Clone()
			next.Intent = protocol.IntentRun
			x.put(store.KeyRecord(x.g.ID), next)
			x.event(next, "pause taken back", x.caller.who(), x.caller.RequestID)
		}
		if x.cleared() {
			x.changed()
		}
		return nil
	}
	if err := x.needAllNodes(what); err != nil {
		return err
	}
	if x.r.FailedOver {
		if err := c.checkMembersStopped(x, x.r.Secondary); err != nil {
			return err
		}
	}
	if err := x.checkImagesKept(); err != nil {
		return err
	}
	next, err := x.r.Sync()
	if err != nil {
		return err
	}
	x.cleared()
	x.record(next)
	x.changed()
	return nil
}

// checkMembersStopped refuses while a server that runs, as far as is known, uses a disk of that AZ.
// The data is safe either way; but the server would meet errors, or data that is not what it left.
func (c *Controller) checkMembersStopped(x *acting, az lockstep.AZ) error {
	for _, m := range x.r.Members {
		v, found, err := peek[store.Volume](x.tx, store.KeyVolume(m.In(az).Volume))
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if err := c.checkStopped(x.ctx, "", "volume", v); err != nil {
			var e *Error
			if errors.As(err, &e) {
				return conflict(e.Code, "%s", e.Message)
			}
			return err
		}
	}
	return nil
}

// reverse starts the planned switchover.
func (c *Controller) reverse(x *acting) error {
	if !x.r.InSync || x.r.State != protocol.StateNormal {
		return conflict("", "reverse needs replication_status active; the group has %s", x.shown())
	}
	if err := x.needAllNodes("reverse"); err != nil {
		return err
	}
	if err := x.takeOver(&x.g, x.r); err != nil {
		return err
	}
	if err := c.checkMembersStopped(x, x.r.Primary); err != nil {
		return err
	}
	next, err := x.r.Reverse()
	if err != nil {
		return err
	}
	x.startMove(opReverse, next)
	return nil
}

// stop pauses. A group that does not replicate only keeps the wish, so that no automatic sync
// starts; one that is paused or failed over stays as it is.
func (c *Controller) stop(x *acting) error {
	if x.r.FailedOver {
		return nil
	}
	if gone := x.gone(x.r.PrimaryNodes()); x.r.InSync && len(gone) > 0 {
		return conflict("", "stop refused: primary node %s is not alive and cannot bring its writes to both sides: %s", joinIDs(gone), x.shown())
	}
	next, err := x.r.Pause()
	if err != nil {
		return err
	}
	switch {
	case next.Epoch != x.r.Epoch:
		x.record(next)
	case !reflect.DeepEqual(next, x.r):
		x.put(store.KeyRecord(x.g.ID), next)
		x.event(next, "paused", x.caller.who(), x.caller.RequestID)
	}
	return nil
}

// awaitStopped waits until a stop is effective: the record at rest and not in sync.
func (c *Controller) awaitStopped(ctx context.Context, id lockstep.GroupID) error {
	done, err := c.await(ctx, c.cfg.StopTimeout, func() (bool, error) {
		r, err := c.recordOf(ctx, id)
		if err != nil {
			return false, err
		}
		if r.InSync && r.State == protocol.StateNormal && r.Intent == protocol.IntentRun {
			return false, conflict("", "the group could not be stopped and replicates again: %s", r.Reason)
		}
		return !r.InSync, nil
	})
	if err == nil && !done {
		err = conflict(codeBusy, "the stop is recorded, but the primary nodes did not confirm it within %s; it goes on", c.cfg.StopTimeout)
	}
	return err
}

// recordOf reads the record of a group on which a call waits; the group may be gone meanwhile.
func (c *Controller) recordOf(ctx context.Context, id lockstep.GroupID) (protocol.Record, error) {
	r, _, err := store.GetT[protocol.Record](ctx, c.cfg.Store, store.KeyRecord(id))
	if errors.Is(err, lockstep.ErrNotFound) {
		return r, notFound("", "replication consistency group %s was deleted meanwhile", id)
	}
	return r, err
}

// await asks again and again until done, for at most limit.
func (c *Controller) await(ctx context.Context, limit time.Duration, ask func() (bool, error)) (bool, error) {
	deadline := time.Now().Add(limit)
	for pause := 5 * time.Millisecond; ; pause = min(pause*3/2, 100*time.Millisecond) {
		done, err := ask()
		if done || err != nil {
			return done, err
		}
		if time.Now().After(deadline) {
			return false, nil
		}
		if !sleep(ctx, pause) {
			return false, ctx.Err()
		}
	}
}

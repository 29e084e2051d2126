package control

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Kinds of operation. Each is a row of ops/ that the transaction of the call creates and the
// leader removes in the transaction that finishes it; every step in between is idempotent and
// compares the operation it belongs to, so that two leaders never do one step twice.
const (
	opSettle   = "settle"   // after a create or an update: wait for the nodes, show the status again
	opFailover = "failover" // watch a failover to its end
	opReverse  = "reverse"  // watch a switchover to its end
	opExtend   = "extend"   // grow both sides of pairs
)

// Arguments of operations.
const (
	argEpoch   = "epoch"   // that the call made
	argRestore = "restore" // settle: the overlay to show afterwards
	argMade    = "made"    // settle: set if it is of a create
	argTo      = "to"      // failover, reverse: the AZ that becomes primary
)

func (t *tx) createOp(op store.Operation) { t.create(store.KeyOp(op.ID), op) }

func newOp(id, kind, step string, t *tx, caller Caller, g store.Group, limit time.Duration, args map[string]string) store.Operation {
	return store.Operation{
		ID: id, Kind: kind, Step: step, Project: g.Project, Group: g.ID, Args: args,
		RequestID: caller.RequestID, User: caller.who(), StartedAt: t.now, Deadline: t.now.Add(limit),
	}
}

func (c *Controller) newSettle(id string, t *tx, caller Caller, g store.Group, epoch lockstep.Epoch, restore string) store.Operation {
	return newOp(id, opSettle, opSettle, t, caller, g, c.cfg.SettleTimeout, map[string]string{
		argEpoch: formatEpoch(epoch), argRestore: restore,
	})
}

func formatEpoch(e lockstep.Epoch) string { return strconv.FormatUint(uint64(e), 10) }

func parseEpoch(s string) lockstep.Epoch {
	e, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return lockstep.Epoch(e)
}

// job is an operation at one of its steps, with the group it changes, inside a transaction.
type job struct {
	*tx
	c     *Controller
	op    store.Operation
	g     store.Group
	r     protocol.Record
	after time.Duration // look again then, if nothing changes before
}

// mine reports whether the group still waits for this operation.
func (j *job) mine() bool { return j.g.Op == j.op.ID }

// step moves the operation on.
func (j *job) step(next string) {
	j.op.Step = next
	j.put(store.KeyOp(j.op.ID), j.op)
}

// finish removes the operation and frees the group.
func (j *job) finish() {
	j.delete(store.KeyOp(j.op.ID))
	if j.mine() {
		j.g.Op = ""
		if j.op.Args[argMade] == "" { // a group that was never updated has no such time
			j.g.UpdatedAt = ptr(j.now)
		}
		j.put(store.KeyGroup(j.g.ID), j.g)
	}
}

// overdue reports whether the operation's time is up.
func (j *job) overdue() bool { return !j.now.Before(j.op.Deadline) }

// runOp does the next step of an operation, and says when to look again.
func (d *driver) runOp(ctx context.Context, id string) (time.Duration, error) {
	var after time.Duration
	err := d.c.update(ctx, d.fence, func(t *tx) error {
		op, found, err := get[store.Operation](t, store.KeyOp(id))
		if err != nil || !found {
			return err
		}
		j := &job{tx: t, c: d.c, op: op, after: recheck}
		var grouped, recorded bool
		if j.g, grouped, err = get[store.Group](t, store.KeyGroup(op.Group)); err != nil {
			return err
		}
		if j.r, recorded, err = get[protocol.Record](t, store.KeyRecord(op.Group)); err != nil {
			return err
		}
		if !grouped || !recorded {
			t.delete(store.KeyOp(id))
			return nil
		}
		switch op.Kind {
		case opSettle:
			err = j.settle()
		case opFailover, opReverse:
			j.move()
		case opExtend:
			err = j.extend()
		default:
			err = fmt.Errorf("kind %q is not known", op.Kind)
		}
		after = j.after
		return err
	})
	return after, err
}

// settle ends a create or an update once every node that is alive has adopted what it changed, or
// the time is up: a node that is away adopts it when it comes back.
func (j *job) settle() error {
	if !j.overdue() {
		done, err := j.adopted(parseEpoch(j.op.Args[argEpoch]))
		if err != nil || !done {
			return err
		}
	}
	if j.mine() {
		j.g.Overlay = j.op.Args[argRestore]
	}
	j.finish()
	return nil
}

// adopted reports whether every primary node of the group that is alive has answered at that epoch
// or a later one. A secondary persists an epoch at rest only when a primary announces it.
func (j *job) adopted(epoch lockstep.Epoch) (bool, error) {
	if epoch == 0 {
		return true, nil
	}
	for _, n := range j.r.PrimaryNodes() {
		if _, alive, err := peek[store.Presence](j.tx, store.KeyAliveNode(n)); err != nil || !alive {
			if err != nil {
				return false, err
			}
			continue
		}
		a, found, err := peek[protocol.Answer](j.tx, store.KeyAnswer(j.r.Group, n))
		if err != nil {
			return false, err
		}
		if found && a.Epoch >= epoch {
			continue
		}
		o, found, err := peek[store.GroupObserved](j.tx, store.KeyObservedGroup(j.r.Group, n))
		if err != nil || !found || o.Epoch < epoch {
			return false, err
		}
	}
	return true, nil
}

// move ends a failover or a switchover whose record has come to rest.
func (j *job) move() {
	if !moved(j.op, j.r) {
		return
	}
	if j.mine() {
		endMove(j.op, &j.g, j.r)
		j.put(store.KeyGroup(j.g.ID), j.g)
	}
	j.finish()
}

// moved reports whether a failover or switchover is over, whatever its end. A secondary that does
// not answer never ends one.
func moved(op store.Operation, r protocol.Record) bool {
	switch r.State {
	case protocol.StateFailovering, protocol.StateReversing:
		return r.Epoch > parseEpoch(op.Args[argEpoch])
	case protocol.StateNormal, protocol.StateTripping, protocol.StateCopying, protocol.StateDeleted:
	}
	return true
}

// endMove writes the end of a failover or switchover into its group: an error status if the
// primary did not move.
func endMove(op store.Operation, g *store.Group, r protocol.Record) {
	g.Op, g.Overlay, g.Failure = "", "", nil
	if string(r.Primary) == op.Args[argTo] {
		return
	}
	g.Overlay = StatusErrorFailovered
	if op.Kind == opReverse {
		g.Overlay = StatusErrorReversing
	}
	g.Failure = ptr(codeInternal)
}

// takeOver frees a group of an operation that is over but that the leader has not cleared away
// yet; any other one is a conflict.
func (t *tx) takeOver(g *store.Group, r protocol.Record) error {
	if g.Op == "" {
		return nil
	}
	op, found, err := get[store.Operation](t, store.KeyOp(g.Op))
	if err != nil {
		return err
	}
	switch {
	case !found:
		g.Op = ""
	case (op.Kind == opFailover || op.Kind == opReverse) && moved(op, r):
		endMove(op, g, r)
		t.delete(store.KeyOp(op.ID))
	default:
		return conflict(codeBusy, "operation %s on the group is not finished, try again", op.Kind)
	}
	return nil
}

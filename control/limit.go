package control

import (
	"context"
	"fmt"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// checkLimit takes MiB/s, 0 for none.
func checkLimit(mib int64) error {
	if mib < 0 || mib > store.MaxResyncLimitMiB {
		return badRequest("", "mib is %d; it must be from 1 to %d MiB/s, or null for no limit", mib, store.MaxResyncLimitMiB)
	}
	return nil
}

// limit puts a limit into the transaction, or takes it away; it reports whether that changes anything.
func (t *tx) limit(caller Caller, key string, mib int64) (bool, error) {
	was, found, err := get[store.ResyncLimit](t, key)
	switch {
	case err != nil || was.MiB == mib:
		return false, err
	case mib > 0:
		t.put(key, store.ResyncLimit{MiB: mib, By: caller.who(), At: t.now})
	case found:
		t.delete(key)
	}
	return true, nil
}

// LimitGroup bounds the synchronizations of a group to MiB/s at each of its primary nodes, 0 for no limit. It
// holds at once, for one that runs, too.
func (c *Controller) LimitGroup(ctx context.Context, caller Caller, id lockstep.GroupID, mib int64) error {
	if err := checkLimit(mib); err != nil {
		return err
	}
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		x, err := t.look(caller, id)
		if err != nil {
			return err
		}
		if x.g.Overlay == StatusDeleting {
			return conflict("", "replication consistency group %s is being deleted", id)
		}
		changed, err := t.limit(caller, store.KeyGroupLimit(id), mib)
		if err == nil && changed {
			what := "limit of synchronizations: none"
			if mib > 0 {
				what = fmt.Sprintf("limit of synchronizations: %d MiB/s", mib)
			}
			x.event(x.r, what, caller.who(), caller.RequestID)
		}
		return err
	}))
}

// LimitNode bounds all synchronizations together of which a node is the primary to MiB/s; 0: what the node's own
// configuration says. It needs the role admin.
func (c *Controller) LimitNode(ctx context.Context, caller Caller, id lockstep.NodeID, mib int64) error {
	if !caller.Admin {
		return &Error{Kind: KindForbidden, Message: "the limit of a node needs the role admin"}
	}
	if err := checkLimit(mib); err != nil {
		return err
	}
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		if _, found, err := get[store.Node](t, store.KeyNode(id)); err != nil {
			return err
		} else if !found {
			return notFound("", "node %s does not exist", id)
		}
		_, err := t.limit(caller, store.KeyNodeLimit(id), mib)
		return err
	}))
}

// ResyncView is how a synchronization gets on.
type ResyncView struct {
	ToSendBytes, TotalBytes int64
	BytesPerSecond          int64 // of late, of all primary nodes; 0: not known yet
}

// SecondsLeft is how long it takes if it goes on like this; ok is false if that is not known.
func (v ResyncView) SecondsLeft() (s int64, ok bool) {
	if v.BytesPerSecond <= 0 {
		return 0, v.ToSendBytes == 0
	}
	return (v.ToSendBytes + v.BytesPerSecond - 1) / v.BytesPerSecond, true
}

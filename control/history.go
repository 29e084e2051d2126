package control

import (
	"context"
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// byController and byNodes stand for a user in a group's history.
const (
	byController = "controller"
	byNodes      = "nodes"
)

// historyMax bounds what History answers, the newest entries.
const historyMax = 1000

// A change that made an epoch is kept under that epoch, so it is written once whoever saw it; one
// that made none is kept after it, by time.
func keyHistoryEpoch(g lockstep.GroupID, e lockstep.Epoch) string {
	return fmt.Sprintf("%s%s/%020d", store.PrefixHistory, g, e)
}

func keyHistoryEvent(g lockstep.GroupID, e lockstep.Epoch, nanos int64) string {
	return fmt.Sprintf("%s/%020d", keyHistoryEpoch(g, e), nanos)
}

// historyEpochs bounds what is kept of a group that changes for years.
const historyEpochs = 5000

// history adds the entry of the epoch that this transaction makes, and drops the one that is too
// old by now.
func (t *tx) history(r protocol.Record, what, by, request string) {
	if r.Epoch > historyEpochs {
		t.delete(keyHistoryEpoch(r.Group, r.Epoch-historyEpochs))
	}
	t.touched[r.Group] = true
	t.put(keyHistoryEpoch(r.Group, r.Epoch), store.HistoryEntry{
		At: t.now, Group: r.Group, Epoch: r.Epoch, What: what, By: by, RequestID: request,
		Condition: condition(r),
	})
}

// event adds an entry for something that makes no epoch.
func (t *tx) event(r protocol.Record, what, by, request string) {
	t.touched[r.Group] = true
	t.put(keyHistoryEvent(r.Group, r.Epoch, t.now.UnixNano()), store.HistoryEntry{
		At: t.now, Group: r.Group, Epoch: r.Epoch, What: what, By: by, RequestID: request,
	})
}

// describeStep says what the step from one record to the next was.
func describeStep(from, to protocol.Record) string {
	var what string
	switch {
	case to.State == protocol.StateDeleted:
		what = "deleted"
	case to.State == protocol.StateCopying:
		what = fmt.Sprintf("copying from %s to %s", to.Primary, to.Secondary)
	case to.State == protocol.StateFailovering && to.Forced != nil:
		what = fmt.Sprintf("forced failover from %s to %s", to.Primary, to.Secondary)
	case to.State == protocol.StateFailovering:
		what = fmt.Sprintf("failover from %s to %s", to.Primary, to.Secondary)
	case to.State == protocol.StateReversing:
		what = fmt.Sprintf("switchover from %s to %s", to.Primary, to.Secondary)
	case to.State == protocol.StateTripping:
		what = fmt.Sprintf("stopping (%s)", to.Cause)
	case to.FailedOver && !from.FailedOver && to.Forced != nil:
		what = fmt.Sprintf("failed over by force: %s is primary", to.Primary)
	case to.FailedOver && !from.FailedOver:
		what = fmt.Sprintf("failed over: %s is primary", to.Primary)
	case from.State == protocol.StateReversing && to.Primary != from.Primary:
		what = fmt.Sprintf("switched over: %s is primary", to.Primary)
	case to.InSync && from.State == protocol.StateNormal:
		what = "in sync, changed"
	case to.InSync:
		what = "in sync"
	case from.State == protocol.StateNormal && !from.InSync:
		what = "changed"
	default:
		what = fmt.Sprintf("not in sync (%s)", to.Cause)
	}
	if to.Reason != "" {
		what += ": " + to.Reason
	}
	return what
}

// describeSeen says what a record is, for an epoch whose maker left no entry.
func describeSeen(r protocol.Record) string {
	switch {
	case r.State != protocol.StateNormal:
		return describeStep(protocol.Record{State: protocol.StateNormal}, r)
	case r.InSync:
		return describeStep(protocol.Record{State: protocol.StateTripping}, r)
	}
	return describeStep(protocol.Record{State: protocol.StateTripping, FailedOver: r.FailedOver}, r)
}

// note keeps an epoch that a node made in the history, once.
func (d *driver) note(ctx context.Context, r protocol.Record) error {
	d.mu.Lock()
	noted, known := d.noted[r.Group]
	d.mu.Unlock()
	if known && noted >= r.Epoch {
		return nil
	}
	err := d.c.update(ctx, d.fence, func(t *tx) error {
		_, found, err := get[store.HistoryEntry](t, keyHistoryEpoch(r.Group, r.Epoch))
		if err != nil || found {
			return err
		}
		t.history(r, describeSeen(r), byNodes, "")
		return nil
	})
	if err != nil {
		return fmt.Errorf("keep epoch %d in the history: %w", r.Epoch, err)
	}
	d.mu.Lock()
	d.noted[r.Group] = r.Epoch
	d.mu.Unlock()
	return nil
}

// History lists what happened to a group, oldest first, at most the newest thousand entries.
func (c *Controller) History(ctx context.Context, caller Caller, id lockstep.GroupID) ([]store.HistoryEntry, error) {
	if _, err := c.GetGroup(ctx, caller, id); err != nil {
		return nil, err
	}
	items, _, err := store.ListT[store.HistoryEntry](ctx, c.cfg.Store, store.PrefixHistory+string(id)+"/")
	if err != nil {
		return nil, asRefusal(fmt.Errorf("history of %s: %w", id, err))
	}
	if len(items) > historyMax {
		items = items[len(items)-historyMax:]
	}
	entries := make([]store.HistoryEntry, 0, len(items))
	for _, it := range items {
		entries = append(entries, it.Value)
	}
	slices.SortStableFunc(entries, func(a, b store.HistoryEntry) int {
		if a.Epoch != b.Epoch {
			return int(int64(a.Epoch) - int64(b.Epoch))
		}
		return a.At.Compare(b.At)
	})
	return entries, nil
}

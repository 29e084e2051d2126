package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// driver is one leadership of a controller: it looks at whatever changed and does the next step
// of it. It keeps nothing that another leader would need: only when it first saw a transition,
// and the back-off of automatic syncs.
type driver struct {
	c     *Controller
	fence []store.Cmp
	queue *queue

	mu     sync.Mutex // guards the maps below
	since  map[lockstep.GroupID]epochSeen
	resync map[lockstep.GroupID]*backoff
	noted  map[lockstep.GroupID]lockstep.Epoch // newest epoch in the history
}

// epochSeen is when this leader first saw a record at an epoch.
type epochSeen struct {
	epoch lockstep.Epoch
	at    time.Time
}

// driveWorkers bounds the subjects worked on at once; each waits for the store most of the time.
const driveWorkers = 16

// recheck is how soon a subject in transition is looked at again if nothing changes.
const recheck = time.Second

func newDriver(c *Controller, fence []store.Cmp) *driver {
	return &driver{
		c: c, fence: fence, queue: newQueue(),
		since:  map[lockstep.GroupID]epochSeen{},
		resync: map[lockstep.GroupID]*backoff{},
		noted:  map[lockstep.GroupID]lockstep.Epoch{},
	}
}

// run works until ctx ends, and waits for its workers.
func (d *driver) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.c.cache.listen(d.queue.add, d.queue.addLast)
	defer d.c.cache.listen(nil, nil)
	var wg sync.WaitGroup
	for range driveWorkers {
		wg.Go(func() {
			for {
				sub, ok := d.queue.next(ctx)
				if !ok {
					return
				}
				after, err := d.work(ctx, sub)
				if errors.Is(err, errFenced) {
					cancel()
				} else if err != nil && ctx.Err() == nil {
					d.c.log.Warn("driving", sub.kind, sub.id, "error", err)
					after = d.c.cfg.RetryStore
				}
				d.queue.done(sub, after)
			}
		})
	}
	wg.Wait()
}

func (d *driver) work(ctx context.Context, sub subject) (after time.Duration, err error) {
	switch sub.kind {
	case kindVolume:
		return 0, d.driveVolume(ctx, lockstep.VolumeID(sub.id))
	case kindPair:
		return 0, d.drivePair(ctx, lockstep.PairID(sub.id))
	case kindNode:
		d.touchNode(lockstep.NodeID(sub.id))
		return 0, nil
	case kindGroup:
		return d.driveGroup(ctx, lockstep.GroupID(sub.id))
	}
	return 0, nil
}

// touchNode looks again at every group of a node that came or went.
func (d *driver) touchNode(n lockstep.NodeID) {
	var groups []lockstep.GroupID
	d.c.peekCache(func(s *snapshot) {
		groups = slices.Collect(maps.Keys(s.nodesGroups[n]))
	})
	for _, g := range groups {
		d.queue.add(subject{kindGroup, string(g)})
	}
}

// driveGroup does what a group's record, answers and operations ask for now.
func (d *driver) driveGroup(ctx context.Context, id lockstep.GroupID) (time.Duration, error) {
	var (
		record   protocol.Record
		recorded bool
		group    store.Group
		grouped  bool
		ops      []string
		left     int // answers, reports, a verification
		older    bool
	)
	d.c.peekCache(func(s *snapshot) {
		record, recorded = s.records[id]
		group, grouped = s.groups[id]
		for _, sight := range s.sights[id] {
			older = older || recorded && sight.Epoch > record.Epoch
		}
		left = len(s.answers[id]) + len(s.sights[id]) + len(s.verified[id])
		if _, verified := s.verifies[id]; verified {
			left++
		}
		ops = slices.Sorted(maps.Keys(s.groupsOps[id]))
	})
	if !recorded {
		d.forget(id)
		if left > 0 {
			return 0, d.sweep(ctx, id)
		}
	}
	if older {
		// Nothing is decided by an older store; if the cache only lags, its next change comes back here.
		err := d.c.update(ctx, d.fence, func(t *tx) error {
			r, found, err := get[protocol.Record](t, store.KeyRecord(id))
			if err != nil || !found {
				return err
			}
			return t.checkNotOlder(r)
		})
		var refused *Error
		if errors.As(err, &refused) {
			d.c.log.Warn("group is left alone", "group", id, "reason", refused.Message)
			return 10 * recheck, nil
		} else if err != nil {
			return 0, err
		}
	}
	var after time.Duration
	soon := func(t time.Duration) {
		if t > 0 && (after == 0 || t < after) {
			after = t
		}
	}
	if grouped && group.Overlay == StatusDeleting {
		if err := d.removeGroup(ctx, id); err != nil {
			return 0, err
		}
	}
	if recorded {
		if err := d.note(ctx, record); err != nil {
			return 0, err
		}
		if len(record.Untold) > 0 {
			if err := d.told(ctx, id); err != nil {
				return 0, err
			}
		}
		switch record.State {
		case protocol.StateTripping, protocol.StateCopying, protocol.StateFailovering, protocol.StateReversing:
			lasted := d.lasted(id, record.Epoch)
			if err := d.advance(ctx, id, lasted); err != nil {
				return 0, err
			}
			soon(recheck)
		case protocol.StateDeleted:
			if err := d.bury(ctx, id); err != nil {
				return 0, err
			}
		case protocol.StateNormal:
			wait, err := d.autoSync(ctx, id, record)
			if err != nil {
				return 0, err
			}
			soon(wait)
		}
	}
	if recorded {
		if err := d.driveVerify(ctx, id); err != nil {
			return 0, fmt.Errorf("verification: %w", err)
		}
	}
	for _, op := range ops {
		wait, err := d.runOp(ctx, op)
		if err != nil {
			return 0, fmt.Errorf("operation %s: %w", op, err)
		}
		soon(wait)
	}
	return after, nil
}

func (d *driver) forget(id lockstep.GroupID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.since, id)
	delete(d.resync, id)
	delete(d.noted, id)
}

// lasted is for how long this leader has seen the record at that epoch.
func (d *driver) lasted(id lockstep.GroupID, epoch lockstep.Epoch) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.c.cfg.Now()
	if s := d.since[id]; s.epoch != epoch {
		d.since[id] = epochSeen{epoch, now}
		return 0
	}
	return now.Sub(d.since[id].at)
}

// advance ends a transition whose nodes have answered, by a transaction that compares the record
// and every answer it counted. A switchover that takes too long is given up: roles, in sync and
// boot ids stay, so that is always safe.
func (d *driver) advance(ctx context.Context, id lockstep.GroupID, lasted time.Duration) error {
	return d.c.update(ctx, d.fence, func(t *tx) error {
		r, found, err := get[protocol.Record](t, store.KeyRecord(id))
		if err != nil || !found {
			return err
		}
		kvs, err := t.list(store.PrefixAnswers + string(id) + "/")
		if err != nil {
			return err
		}
		answers := map[lockstep.NodeID]protocol.Answer{}
		at := map[lockstep.NodeID]store.KV{}
		for _, kv := range kvs {
			a, err := decode[protocol.Answer](kv)
			if err != nil {
				return err
			}
			if kv.Key == store.KeyAnswer(id, a.Node) {
				answers[a.Node], at[a.Node] = a, kv
			}
		}
		next, used, ok := protocol.Advance(r, answers, lasted > d.c.cfg.Patience)
		if !ok && r.State == protocol.StateReversing && lasted > d.c.cfg.ReverseTimeout {
			next, err = r.UndoReverse(fmt.Sprintf("the switchover was given up: the nodes did not finish it within %s", d.c.cfg.ReverseTimeout))
			if err != nil {
				return err
			}
			ok = true
		}
		if !ok {
			return nil
		}
		for _, n := range used {
			t.compare(at[n])
		}
		t.put(store.KeyRecord(id), next)
		t.history(next, describeStep(r, next), byController, "")
		if r.State == protocol.StateFailovering && r.Forced != nil {
			return t.endReceipt(r, next)
		}
		return nil
	})
}

// told takes those off a record's list of nodes that left it and that have persisted, by their own
// answer, the record as it is now.
func (d *driver) told(ctx context.Context, id lockstep.GroupID) error {
	return d.c.update(ctx, d.fence, func(t *tx) error {
		r, found, err := get[protocol.Record](t, store.KeyRecord(id))
		if err != nil || !found {
			return err
		}
		next := r
		for _, n := range r.Untold {
			a, found, err := get[protocol.Answer](t, store.KeyAnswer(id, n))
			if err != nil {
				return err
			}
			if found && a.Epoch == r.Epoch && a.Step == protocol.StepTold {
				next = next.Told(n)
			}
		}
		if len(next.Untold) < len(r.Untold) {
			t.put(store.KeyRecord(id), next)
		}
		return nil
	})
}

// buryAtOnce bounds the history entries that one transaction removes.
const buryAtOnce = 64

// bury removes a tombstone that every node of it has persisted, and the group's history with it.
// A node that is gone keeps it.
func (d *driver) bury(ctx context.Context, id lockstep.GroupID) error {
	for more := true; more; {
		more = false
		err := d.c.update(ctx, d.fence, func(t *tx) (err error) {
			more, err = t.bury(id)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// bury removes one tombstone, or only a part of its history if there is more of that.
func (t *tx) bury(id lockstep.GroupID) (more bool, err error) {
	r, found, err := get[protocol.Record](t, store.KeyRecord(id))
	if err != nil || !found || r.State != protocol.StateDeleted {
		return false, err
	}
	// The API's side goes first: a group without a record is seen by nobody.
	if _, grouped, err := get[store.Group](t, store.KeyGroup(id)); err != nil || grouped {
		return false, err
	}
	for _, n := range append(r.Nodes(), r.Untold...) {
		a, found, err := get[protocol.Answer](t, store.KeyAnswer(id, n))
		if err != nil || !found || a.Epoch != r.Epoch || a.Step != protocol.StepTold {
			return false, err
		}
	}
	history, err := t.list(store.PrefixHistory + string(id) + "/")
	if err != nil {
		return false, err
	}
	for _, kv := range history[:min(len(history), buryAtOnce)] {
		t.delete(kv.Key)
	}
	if len(history) > buryAtOnce {
		return true, nil
	}
	t.delete(store.KeyRecord(id))
	return false, t.deleteReports(id)
}

// sweep removes what nodes wrote about a group after its record was gone: a node that had left the
// group, or that answers a tombstone twice.
func (d *driver) sweep(ctx context.Context, id lockstep.GroupID) error {
	return d.c.update(ctx, d.fence, func(t *tx) error {
		if _, found, err := get[protocol.Record](t, store.KeyRecord(id)); err != nil || found {
			return err
		}
		return t.deleteReports(id)
	})
}

// deleteReports deletes the answers and reports of a group's nodes, its verification and its limit.
func (t *tx) deleteReports(id lockstep.GroupID) error {
	if _, found, err := get[store.ResyncLimit](t, store.KeyGroupLimit(id)); err != nil {
		return err
	} else if found {
		t.delete(store.KeyGroupLimit(id))
	}
	if _, found, err := get[store.Verification](t, store.KeyVerify(id)); err != nil {
		return err
	} else if found {
		t.delete(store.KeyVerify(id))
	}
	for _, prefix := range []string{store.PrefixAnswers, store.PrefixObservedGroup, store.PrefixObservedVerify} {
		kvs, err := t.list(prefix + string(id) + "/")
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			t.delete(kv.Key)
		}
	}
	return nil
}

// removeGroup takes a group that is being deleted from the API; its tombstone lives on.
func (d *driver) removeGroup(ctx context.Context, id lockstep.GroupID) error {
	return d.c.update(ctx, d.fence, func(t *tx) error {
		g, found, err := get[store.Group](t, store.KeyGroup(id))
		if err != nil || !found || g.Overlay != StatusDeleting {
			return err
		}
		t.delete(store.KeyGroup(id))
		return nil
	})
}

// driveVolume takes what the node reports into the volume's status, and ends deletions.
func (d *driver) driveVolume(ctx context.Context, id lockstep.VolumeID) error {
	pending := false
	var group lockstep.GroupID
	d.c.peekCache(func(s *snapshot) {
		group = s.volumes[id].Access.Group
		pending = s.volumePending(id)
	})
	if group != "" {
		d.queue.add(subject{kindGroup, string(group)}) // an extend may be waiting for the size
	}
	if !pending {
		return nil
	}
	return d.c.update(ctx, d.fence, func(t *tx) error {
		v, found, err := get[store.Volume](t, store.KeyVolume(id))
		if err != nil {
			return err
		}
		o, reported, err := get[store.VolumeObserved](t, store.KeyObservedVolume(id))
		if err != nil || !reported {
			return err
		}
		if !found {
			if o.State == observedAbsent {
				t.delete(store.KeyObservedVolume(id))
			}
			return nil
		}
		if gone(v, o) {
			t.delete(store.KeyVolume(id))
			t.delete(store.KeyObservedVolume(id))
			return nil
		}
		if next, changed := settleVolume(v, o); changed {
			if v.Status != StatusCreating { // one that was never updated has no such time
				next.UpdatedAt = ptr(t.now)
			}
			t.put(store.KeyVolume(id), next)
		}
		return nil
	})
}

// volumePending: the node's report is not in the volume's status yet.
func (s *snapshot) volumePending(id lockstep.VolumeID) bool {
	v, found := s.volumes[id]
	o, reported := s.observed[id]
	_, changed := settleVolume(v, o)
	return reported && (!found && o.State == observedAbsent || found && (changed || gone(v, o)))
}

// pairPending: its creation or deletion is to be ended.
func (s *snapshot) pairPending(id lockstep.PairID) bool {
	p := s.pairs[id]
	return p.Status == StatusCreating || p.Status == StatusDeleting
}

// drivePair ends the creation and the deletion of a pair; both were validated and applied to the
// volumes by the transaction that began them.
func (d *driver) drivePair(ctx context.Context, id lockstep.PairID) error {
	pending := false
	d.c.peekCache(func(s *snapshot) {
		pending = s.pairPending(id)
	})
	if !pending {
		return nil
	}
	return d.c.update(ctx, d.fence, func(t *tx) error {
		p, found, err := get[store.Pair](t, store.KeyPair(id))
		if err != nil || !found {
			return err
		}
		switch p.Status {
		case StatusCreating:
			p.Status = StatusAvailable
			t.put(store.KeyPair(id), p)
		case StatusDeleting:
			t.delete(store.KeyPair(id))
		}
		return nil
	})
}

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Recovered is what a recovery of the store made of one group.
type Recovered struct {
	Group       lockstep.GroupID
	Was, Epoch  lockstep.Epoch // in the store before, and now
	Primary     lockstep.AZ
	InSync      bool
	Unconfirmed []string // why it is not in sync, where it was
}

// Recovery is the outcome of RecoverStore.
type Recovery struct {
	Groups []Recovered
	// Unknown are groups that nodes have files of and the restored store does not know: their volumes
	// stay unserved.
	Unknown []lockstep.GroupID
}

// RecoverStore lifts every group above the highest epoch that its nodes report, after the store was
// restored from an older copy. Nodes of the zones in off are stated to be powered off and are not
// waited for; every other node must report. A group stays in sync only if all its nodes report the
// newest record, under the boot ids and directories that it names; else what was decided since is not
// known, and the primary goes on alone. Nothing is changed unless all needed reports are there.
func (c *Controller) RecoverStore(ctx context.Context, caller Caller, off []lockstep.AZ, reason string) (Recovery, error) {
	if !caller.Admin {
		return Recovery{}, &Error{Kind: KindForbidden, Message: "the recovery of the store needs the role admin"}
	}
	if reason == "" || len(reason) > maxTextBytes {
		return Recovery{}, badRequest("", "reason must say why, in 1 to %d bytes", maxTextBytes)
	}
	ask := store.Recovery{ID: newID(), By: caller.who(), Reason: reason, Off: off, At: c.stamp()}
	if _, err := store.Put(ctx, c.cfg.Store, store.KeyRecovery, ask, store.AnyRev); err != nil {
		return Recovery{}, asRefusal(err)
	}
	var records []store.Item[protocol.Record]
	var reports map[lockstep.GroupID]map[lockstep.NodeID]store.GroupObserved
	var missing error
	done, err := c.await(ctx, c.cfg.SettleTimeout, func() (bool, error) {
		var err error
		if records, _, err = store.ListT[protocol.Record](ctx, c.cfg.Store, store.PrefixRecords); err != nil {
			return false, err
		}
		if reports, err = c.reportsOf(ctx, ask.ID); err != nil {
			return false, err
		}
		missing, err = c.unreported(ctx, records, reports, off)
		return missing == nil, err
	})
	if err != nil {
		return Recovery{}, asRefusal(err)
	}
	if !done {
		return Recovery{}, missing
	}
	var out Recovery
	known := map[lockstep.GroupID]bool{}
	for _, it := range records {
		known[it.Value.Group] = true
		r, err := c.recoverGroup(ctx, caller, it.Value.Group, reports[it.Value.Group], reason)
		if err != nil {
			return out, asRefusal(fmt.Errorf("group %s: %w", it.Value.Group, err))
		}
		out.Groups = append(out.Groups, r)
	}
	for id := range reports {
		if !known[id] {
			out.Unknown = append(out.Unknown, id)
		}
	}
	slices.Sort(out.Unknown)
	return out, nil
}

// checkNotOlder refuses to decide anything by a record that is older than what a node of the group has
// persisted: the store was restored from an older copy, and what was acknowledged since is not in it.
func (t *tx) checkNotOlder(r protocol.Record) error {
	for _, node := range r.Nodes() {
		o, found, err := peek[store.GroupObserved](t, store.KeyObservedGroup(r.Group, node))
		if err != nil {
			return err
		}
		if !found || o.Epoch <= r.Epoch {
			continue
		}
		// It may report an epoch that was made after the record was read.
		key := store.KeyRecord(r.Group)
		switch kv, err := t.st.Get(t.ctx, key); {
		case err != nil && !errors.Is(err, lockstep.ErrNotFound):
			return fmt.Errorf("read %s: %w", key, err)
		case kv.ModRev != t.raw[key].ModRev:
			return fmt.Errorf("record of group %s: %w", r.Group, errTorn)
		}
		return conflict("", "%s", olderStore(node, o.Epoch, r.Epoch))
	}
	return nil
}

// olderStore says what is wrong if a node reports a newer epoch than the record's.
func olderStore(node lockstep.NodeID, has, record lockstep.Epoch) string {
	return fmt.Sprintf("node %s has persisted epoch %d, and the store's record is of epoch %d: the store was restored from an older copy, and nothing is decided by it until lockstep store recover", node, has, record)
}

// reportsOf reads what nodes have reported for that recovery.
func (c *Controller) reportsOf(ctx context.Context, recovery string) (map[lockstep.GroupID]map[lockstep.NodeID]store.GroupObserved, error) {
	items, _, err := store.ListT[store.GroupObserved](ctx, c.cfg.Store, store.PrefixObservedGroup)
	if err != nil {
		return nil, err
	}
	reports := map[lockstep.GroupID]map[lockstep.NodeID]store.GroupObserved{}
	for _, it := range items {
		if it.Value.Recovery == recovery {
			inner(reports, it.Value.Group)[it.Value.Node] = it.Value
		}
	}
	return reports, nil
}

// unreported says which node has still to report, or that one is alive in a zone that is said to be
// off; nil: all is there.
func (c *Controller) unreported(ctx context.Context, records []store.Item[protocol.Record], reports map[lockstep.GroupID]map[lockstep.NodeID]store.GroupObserved, off []lockstep.AZ) (missing, err error) {
	alive, _, err := c.cfg.Store.List(ctx, store.PrefixAliveNodes)
	if err != nil {
		return nil, err
	}
	here := map[string]bool{}
	for _, kv := range alive {
		here[kv.Key] = true
	}
	for _, it := range records {
		r := it.Value
		for _, node := range r.Nodes() {
			az := r.Primary
			if slices.Contains(r.SecondaryNodes(), node) {
				az = r.Secondary
			}
			_, reported := reports[r.Group][node]
			switch {
			case slices.Contains(off, az) && here[store.KeyAliveNode(node)]:
				return conflict("", "node %s is alive: its zone %s is not off", node, az), nil
			case !slices.Contains(off, az) && !reported:
				return conflict(codePeerUnreachable, "node %s has not reported what it has of group %s: start it, or state that zone %s is powered off", node, r.Group, az), nil
			}
		}
	}
	return nil, nil
}

// recoverGroup lifts one group.
func (c *Controller) recoverGroup(ctx context.Context, caller Caller, id lockstep.GroupID, reports map[lockstep.NodeID]store.GroupObserved, reason string) (Recovered, error) {
	var out Recovered
	err := c.update(ctx, nil, func(t *tx) error {
		r, found, err := get[protocol.Record](t, store.KeyRecord(id))
		if err != nil || !found {
			return errors.Join(err, lockstep.ErrNotFound)
		}
		out = Recovered{Group: id, Was: r.Epoch}
		saved, err := savedRecords(reports)
		if err != nil {
			return err
		}
		for _, node := range sortedKeys(saved) { // a transition may have ended since it reported
			a, found, err := get[protocol.Answer](t, store.KeyAnswer(id, node))
			if err != nil {
				return err
			}
			// An answer of an earlier life may be of a directory that is gone.
			same := a.Instance == reports[node].Instance && a.Start == reports[node].Start
			if found && same && a.Epoch > saved[node].Epoch {
				return conflict(codeBusy, "node %s has gone on to epoch %d since it reported: recover again", node, a.Epoch)
			}
		}
		newest, forked := newestOf(r, reports, saved)
		above := max(r.Epoch, newest.Epoch)
		for _, node := range newest.Nodes() { // one that is said to be off by now may have reported before
			o, _, err := get[store.GroupObserved](t, store.KeyObservedGroup(id, node))
			if err != nil {
				return err
			}
			above = max(above, o.Epoch)
		}
		out.Unconfirmed = unconfirmed(newest, reports, saved)
		// A pair that joined after the copy was made is not in the store any more.
		g, _, err := get[store.Group](t, store.KeyGroup(id))
		if err != nil {
			return err
		}
		newest.Members = slices.DeleteFunc(slices.Clone(newest.Members), func(m protocol.Member) bool { return !slices.Contains(g.Pairs, m.Pair) })
		next := newest.Recovered(above, len(out.Unconfirmed) == 0)
		if forked && !next.InSync {
			out.Unconfirmed = append(out.Unconfirmed, fmt.Sprintf("the restored store had gone on by itself (%s), and nodes have persisted that %s", r.Describe(), newest.Describe()))
		}
		out.Epoch, out.Primary, out.InSync = next.Epoch, next.Primary, next.InSync
		t.put(store.KeyRecord(id), next)
		t.history(next, "the store was recovered ("+reason+")", caller.who(), caller.RequestID)
		return nil
	})
	if err == nil {
		c.log.Warn("group recovered", "group", id, "epoch", out.Epoch, "was", out.Was, "in_sync", out.InSync)
	}
	return out, err
}

// savedRecords decodes what each node has persisted.
func savedRecords(reports map[lockstep.NodeID]store.GroupObserved) (map[lockstep.NodeID]protocol.Record, error) {
	saved := map[lockstep.NodeID]protocol.Record{}
	for node, o := range reports {
		var r protocol.Record
		if err := json.Unmarshal(o.Saved, &r); err != nil {
			return nil, fmt.Errorf("report of node %s: %w", node, err)
		}
		saved[node] = r
	}
	return saved, nil
}

// newestOf gives the newest of the store's record and what nodes have persisted. What a node has
// persisted has happened: where the store's record cannot follow from it (forked), the store has made
// epochs of its own since it was restored, and they do not count, whatever their number.
func newestOf(inStore protocol.Record, reports map[lockstep.NodeID]store.GroupObserved, saved map[lockstep.NodeID]protocol.Record) (newest protocol.Record, forked bool) {
	var persisted protocol.Record
	for _, node := range sortedKeys(saved) {
		r := saved[node]
		if r.Epoch > persisted.Epoch {
			persisted = r
		}
		// An older copy of a directory has persisted less than its node had: that proves nothing.
		recorded := inStore.Instances[node]
		forked = forked || (recorded == "" || recorded == reports[node].Instance) && inStore.Contradicts(r, node)
	}
	if forked || persisted.Epoch > inStore.Epoch {
		return persisted, forked
	}
	return inStore, false
}

// unconfirmed lists why a record cannot be known to be the newest there was, and in sync.
func unconfirmed(r protocol.Record, reports map[lockstep.NodeID]store.GroupObserved, saved map[lockstep.NodeID]protocol.Record) []string {
	var why []string
	for _, node := range r.Nodes() {
		o, ok := reports[node]
		role := "secondary"
		if slices.Contains(r.PrimaryNodes(), node) {
			role = "primary"
		}
		switch {
		case !ok:
			why = append(why, fmt.Sprintf("node %s has not reported", node))
		case o.Epoch != r.Epoch:
			why = append(why, fmt.Sprintf("node %s has epoch %d, not %d", node, o.Epoch, r.Epoch))
		case r.Contradicts(saved[node], node):
			why = append(why, fmt.Sprintf("node %s has another record of epoch %d", node, o.Epoch))
		case o.Role != role:
			why = append(why, fmt.Sprintf("node %s is %s, not %s", node, o.Role, role))
		case o.BootID != r.BootIDs[node] || o.Instance != r.Instances[node]:
			why = append(why, fmt.Sprintf("node %s was restarted with its host, or in another directory, since the last in-sync commit", node))
		}
	}
	return why
}

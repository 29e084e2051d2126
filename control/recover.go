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
		newest, above := r, r.Epoch
		for _, o := range reports {
			above = max(above, o.Epoch)
			var saved protocol.Record
			if err := json.Unmarshal(o.Saved, &saved); err != nil {
				return fmt.Errorf("report of node %s: %w", o.Node, err)
			}
			if saved.Epoch > newest.Epoch {
				newest = saved
			}
		}
		out.Unconfirmed = unconfirmed(newest, reports)
		// A pair that joined after the copy was made is not in the store any more.
		g, _, err := get[store.Group](t, store.KeyGroup(id))
		if err != nil {
			return err
		}
		newest.Members = slices.DeleteFunc(slices.Clone(newest.Members), func(m protocol.Member) bool { return !slices.Contains(g.Pairs, m.Pair) })
		next := newest.Recovered(above, len(out.Unconfirmed) == 0)
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

// unconfirmed lists why a record cannot be known to be the newest there was, and in sync.
func unconfirmed(r protocol.Record, reports map[lockstep.NodeID]store.GroupObserved) []string {
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
		case o.Role != role:
			why = append(why, fmt.Sprintf("node %s is %s, not %s", node, o.Role, role))
		case o.BootID != r.BootIDs[node] || o.Instance != r.Instances[node]:
			why = append(why, fmt.Sprintf("node %s was restarted with its host, or in another directory, since the last in-sync commit", node))
		}
	}
	return why
}

package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// records is the engine's access to the group records: by compare-and-swap only. Until the directory is
// checked the store is as good as away: an older copy must not answer, or renew a boot id.
type records struct {
	st      store.Store
	checked <-chan struct{}
}

func (r *records) ready() error {
	select {
	case <-r.checked:
		return nil
	default:
		return fmt.Errorf("the pool directory is not checked yet: %w", lockstep.ErrStoreUnavailable)
	}
}

const callTimeout = 3 * time.Second

// Propose reads the record, applies change and commits.
func (r *records) Propose(ctx context.Context, g lockstep.GroupID, change func(protocol.Record) (protocol.Record, error)) error {
	if err := r.ready(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	rec, rev, err := store.GetT[protocol.Record](ctx, r.st, store.KeyRecord(g))
	if err != nil {
		return err
	}
	next, err := change(rec)
	if err != nil {
		return err
	}
	next = rec.StampStop(next, time.Now().UnixMilli())
	_, err = store.Put(ctx, r.st, store.KeyRecord(g), next, rev)
	return err
}

// Read reads the record, linearizably.
func (r *records) Read(ctx context.Context, g lockstep.GroupID) (protocol.Record, error) {
	if err := r.ready(); err != nil {
		return protocol.Record{}, err
	}
	rec, _, err := store.GetT[protocol.Record](ctx, r.st, store.KeyRecord(g))
	return rec, err
}

// PutAnswer writes the node's answer, whatever stood there. It is given once: an older one that is carried
// out late must not replace it, nobody would give it again.
func (r *records) PutAnswer(ctx context.Context, a protocol.Answer) error {
	if err := r.ready(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return store.PutOwn(ctx, r.st, store.KeyAnswer(a.Group, a.Node), a)
}

// Advance commits what the answers allow; the transaction compares the record and every answer it
// counted. Ways back are left to controllers, which have the patience.
func (r *records) Advance(ctx context.Context, g lockstep.GroupID) error {
	if err := r.ready(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	rec, rev, err := store.GetT[protocol.Record](ctx, r.st, store.KeyRecord(g))
	if err != nil {
		return err
	}
	items, _, err := store.ListT[protocol.Answer](ctx, r.st, store.PrefixAnswers+string(g)+"/")
	if err != nil {
		return err
	}
	answers := map[lockstep.NodeID]protocol.Answer{}
	revs := map[lockstep.NodeID]int64{}
	for _, it := range items {
		answers[it.Value.Node], revs[it.Value.Node] = it.Value, it.ModRev
	}
	next, used, ok := protocol.Advance(rec, answers, false)
	if !ok {
		return nil
	}
	tx := store.NewTx().Put(store.KeyRecord(g), rec.StampStop(next, time.Now().UnixMilli()), rev)
	for _, node := range used {
		tx.Require(store.KeyAnswer(g, node), revs[node])
	}
	if _, err := tx.Commit(ctx, r.st); err != nil && !errors.Is(err, lockstep.ErrConflict) {
		return fmt.Errorf("advance group %s: %w", g, err)
	}
	return nil
}

// followRecords feeds every record this node takes part in to the engine.
func (n *Node) followRecords(ctx context.Context) error {
	select {
	case <-n.checked:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	synced := false
	seen := map[lockstep.GroupID]bool{}
	told := map[lockstep.GroupID]lockstep.Epoch{} // the newest of each
	return store.Follow(ctx, n.st, store.PrefixRecords, func(batch []store.Change[protocol.Record]) {
		for _, c := range batch {
			id := lockstep.GroupID(strings.TrimPrefix(c.Key, store.PrefixRecords))
			switch c.Kind {
			case store.ChangePut:
				seen[id] = true
				// The changes of a key come in their order: an older record after a newer one is from a
				// store that went back, also where its revision did not (a restore that bumps it).
				rewound := c.Rewound || c.Value.Epoch < told[id]
				told[id] = max(told[id], c.Value.Epoch)
				if err := n.host.OnRecord(c.Value, !synced, rewound); err != nil {
					n.log.Error("record", "group", id, "err", err)
				}
			case store.ChangeDeleted:
				delete(seen, id)
				n.gone(id)
			case store.ChangeBad:
				n.log.Error("record cannot be read", "group", id, "err", c.Err)
			case store.ChangeSynced:
				for _, known := range n.host.Groups() {
					if !seen[known] {
						n.gone(known)
					}
				}
				synced = true
			}
		}
	})
}

func (n *Node) gone(id lockstep.GroupID) {
	if err := n.host.OnRecordGone(id); err != nil {
		n.log.Error("group is gone", "group", id, "err", err)
	}
}

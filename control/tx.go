package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// tx collects one transaction: every value it read is compared when it commits, so what was
// validated is what is changed. It is built anew on every attempt.
type tx struct {
	ctx  context.Context
	st   store.Store
	now  time.Time
	cmps map[string]int64
	puts map[string]store.Op
	raw  map[string]store.KV // read in this attempt, so that reading twice gives one answer
	// touched are the groups of which something was written to the history: what they show changes.
	touched map[lockstep.GroupID]bool
}

// maxAttempts bounds the retries of one change; losing that often means the caller should retry.
const maxAttempts = 24

// update runs build and commits what it collected, again from the start if anything it read was
// changed meanwhile. A build without writes is a successful no-op. The outcome of a commit that
// met an unreachable store is unknown and is returned as such.
func (c *Controller) update(ctx context.Context, fence []store.Cmp, build func(*tx) error) error {
	for attempt := range maxAttempts {
		if attempt > 2 {
			pause := time.Duration(rand.Int64N(int64(attempt) * int64(2*time.Millisecond)))
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pause):
			}
		}
		t := c.newTx(ctx)
		if err := build(t); errors.Is(err, errTorn) && attempt < maxAttempts-1 {
			continue
		} else if err != nil {
			return err
		}
		if len(t.puts) == 0 {
			return nil
		}
		if err := t.stampGroups(); err != nil {
			return err
		}
		ok, err := t.commit(fence)
		if err != nil {
			return err
		}
		if ok {
			return nil
		}
		if err := fenceHolds(ctx, c.cfg.Store, fence); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: lost %d attempts", lockstep.ErrConflict, maxAttempts)
}

func (c *Controller) newTx(ctx context.Context) *tx {
	return &tx{
		ctx: ctx, st: c.cfg.Store, now: c.stamp(),
		cmps: map[string]int64{}, puts: map[string]store.Op{}, raw: map[string]store.KV{},
		touched: map[lockstep.GroupID]bool{},
	}
}

// stampGroups sets the time of the last update of every group that was touched, except of one that is
// made or removed by this transaction.
func (t *tx) stampGroups() error {
	for id := range t.touched {
		key := store.KeyGroup(id)
		g, found, err := get[store.Group](t, key)
		if err != nil {
			return err
		}
		if op, written := t.puts[key]; written {
			if op.Delete {
				continue
			}
			if g, err = store.Decode[store.Group](op.Value); err != nil {
				return fmt.Errorf("group %s as written: %w", id, err)
			}
		}
		if found {
			g.UpdatedAt = ptr(t.now)
			t.put(key, g)
		}
	}
	return nil
}

// errTorn: the values of one attempt contradict each other, because the reads are not of one
// revision. The next attempt reads again.
var errTorn = errors.New("the records contradict each other")

// errFenced: the leadership under which a change was prepared is over.
var errFenced = errors.New("no longer the leading controller")

func fenceHolds(ctx context.Context, st store.Store, fence []store.Cmp) error {
	for _, f := range fence {
		kv, err := st.Get(ctx, f.Key)
		if err != nil && !errors.Is(err, lockstep.ErrNotFound) {
			return err
		}
		if kv.ModRev != f.ModRev {
			return errFenced
		}
	}
	return nil
}

func (t *tx) commit(fence []store.Cmp) (bool, error) {
	cmps := slices.Clone(fence)
	for _, key := range slices.Sorted(maps.Keys(t.cmps)) {
		cmps = append(cmps, store.Cmp{Key: key, ModRev: t.cmps[key]})
	}
	ops := make([]store.Op, 0, len(t.puts))
	for _, key := range slices.Sorted(maps.Keys(t.puts)) {
		ops = append(ops, t.puts[key])
	}
	ok, _, err := t.st.Txn(t.ctx, cmps, ops)
	if err != nil {
		return false, fmt.Errorf("commit %s: %w", strings.Join(slices.Sorted(maps.Keys(t.puts)), ", "), err)
	}
	return ok, nil
}

func (t *tx) read(key string) (store.KV, error) {
	if kv, ok := t.raw[key]; ok {
		return kv, nil
	}
	kv, err := t.st.Get(t.ctx, key)
	if errors.Is(err, lockstep.ErrNotFound) {
		kv = store.KV{Key: key}
	} else if err != nil {
		return kv, fmt.Errorf("read %s: %w", key, err)
	}
	t.raw[key] = kv
	return kv, nil
}

// get reads a value and makes the transaction depend on it, absence included.
func get[T any](t *tx, key string) (v T, found bool, err error) {
	v, found, err = peek[T](t, key)
	if err == nil {
		t.cmps[key] = t.raw[key].ModRev
	}
	return v, found, err
}

// peek reads a value the transaction does not depend on.
func peek[T any](t *tx, key string) (v T, found bool, err error) {
	kv, err := t.read(key)
	if err != nil || kv.ModRev == 0 {
		return v, false, err
	}
	v, err = decode[T](kv)
	return v, err == nil, err
}

func decode[T any](kv store.KV) (v T, err error) {
	v, err = store.Decode[T](kv.Value)
	if err != nil {
		return v, fmt.Errorf("record %s: %w", kv.Key, err)
	}
	return v, nil
}

// list reads a prefix; the transaction depends on none of it until compare names a key.
func (t *tx) list(prefix string) ([]store.KV, error) {
	kvs, _, err := t.st.List(t.ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	for _, kv := range kvs {
		if _, seen := t.raw[kv.Key]; !seen {
			t.raw[kv.Key] = kv
		}
	}
	return kvs, nil
}

// compare makes the transaction depend on a key that list has read.
func (t *tx) compare(kv store.KV) { t.cmps[kv.Key] = kv.ModRev }

// put writes a value of the schema. A record that leaves in sync gets the time.
func (t *tx) put(key string, v any) {
	if next, ok := v.(protocol.Record); ok {
		if old, err := decode[protocol.Record](t.raw[key]); err == nil {
			v = old.StampStop(next, t.now.UnixMilli())
		}
	}
	t.puts[key] = store.Op{Key: key, Value: store.Encode(v)}
}

// create writes a value at a key that must not exist.
func (t *tx) create(key string, v any) {
	t.cmps[key] = 0
	t.put(key, v)
}

func (t *tx) delete(key string) { t.puts[key] = store.Op{Key: key, Delete: true} }

// alive reports whether the node's presence is in the store, and makes the transaction depend on
// it: presence keys change only when a node starts or is lost.
func (t *tx) alive(n lockstep.NodeID) (bool, error) {
	_, found, err := get[store.Presence](t, store.KeyAliveNode(n))
	return found, err
}

// missing lists the nodes that are not alive.
func (t *tx) missing(nodes []lockstep.NodeID) ([]lockstep.NodeID, error) {
	var gone []lockstep.NodeID
	for _, n := range nodes {
		ok, err := t.alive(n)
		if err != nil {
			return nil, err
		}
		if !ok {
			gone = append(gone, n)
		}
	}
	return gone, nil
}

package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/lockstep-dr/lockstep"
)

// Tx collects the comparisons and writes of one transaction. Its methods return the Tx itself, so
// that calls can be chained; the first mistake is kept and returned by Commit. It is used by one
// goroutine.
type Tx struct {
	cmps []Cmp
	ops  []Op
	err  error
}

// NewTx returns an empty transaction.
func NewTx() *Tx { return &Tx{} }

// Require lets the transaction hold only if the key's revision is modRev (0: absent). AnyRev
// requires nothing.
func (t *Tx) Require(key string, modRev int64) *Tx {
	if modRev == AnyRev {
		return t
	}
	return t.Cmp(Cmp{Key: key, ModRev: modRev})
}

// Cmp adds comparisons as they are, such as a leader's fence.
func (t *Tx) Cmp(cmps ...Cmp) *Tx {
	for _, c := range cmps {
		same := false
		for _, have := range t.cmps {
			same = same || have == c
		}
		if !same {
			t.cmps = append(t.cmps, c)
		}
	}
	return t
}

// Put writes the record v, as Encode does, and requires expectModRev of the key.
func (t *Tx) Put(key string, v any, expectModRev int64) *Tx {
	return t.PutLeased(key, v, expectModRev, 0)
}

// PutLeased is Put with a lease: the key is removed when the lease ends.
func (t *Tx) PutLeased(key string, v any, expectModRev int64, lease LeaseID) *Tx {
	b, err := encodeAny(v)
	if err != nil && t.err == nil {
		t.err = fmt.Errorf("put %s: %w", key, err)
	}
	t.ops = append(t.ops, Op{Key: key, Value: b, Lease: lease})
	return t.Require(key, expectModRev)
}

// Delete removes the key and requires expectModRev of it.
func (t *Tx) Delete(key string, expectModRev int64) *Tx {
	t.ops = append(t.ops, Op{Key: key, Delete: true})
	return t.Require(key, expectModRev)
}

// Commit applies all writes, durably, if all comparisons hold, and returns the store's revision
// after it. If one does not hold it is lockstep.ErrConflict and nothing was written. After
// lockstep.ErrStoreUnavailable or the end of ctx the outcome is unknown.
func (t *Tx) Commit(ctx context.Context, s Store) (rev int64, err error) {
	if t.err != nil {
		return 0, t.err
	}
	ok, rev, err := s.Txn(ctx, t.cmps, t.ops)
	if err != nil {
		return 0, err
	}
	if !ok {
		return rev, fmt.Errorf("transaction on %s: %w", t.describe(), lockstep.ErrConflict)
	}
	return rev, nil
}

// describe names what was compared, for the error's reader.
func (t *Tx) describe() string {
	const shown = 4
	var b strings.Builder
	for i, c := range t.cmps {
		if i == shown {
			fmt.Fprintf(&b, " and %d more", len(t.cmps)-shown)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s@%d", c.Key, c.ModRev)
	}
	return b.String()
}

package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// late is a store that does not answer a transaction in time, and carries it out when deliver is called:
// a member that was frozen, or a network that kept the bytes.
type late struct {
	store.Store
	armed   bool
	deliver func() error
}

func (l *late) Txn(ctx context.Context, cmps []store.Cmp, ops []store.Op) (bool, int64, error) {
	if !l.armed {
		return l.Store.Txn(ctx, cmps, ops)
	}
	l.armed = false
	l.deliver = func() error {
		_, _, err := l.Store.Txn(ctx, cmps, ops)
		return err
	}
	return false, 0, fmt.Errorf("transaction: %w: no answer in time", lockstep.ErrStoreUnavailable)
}

// Goal: of a record with one writer, a write whose outcome was unknown never replaces a later one.
func TestPutOwnIsNotReplacedByALateWrite(t *testing.T) {
	for name, before := range map[string]bool{"a new key": false, "a key that is there": true} {
		t.Run(name, func(t *testing.T) {
			s := &late{Store: open(t)}
			if before {
				if err := store.PutOwn(t.Context(), s, "answer", 1); err != nil {
					t.Fatal(err)
				}
			}
			s.armed = true
			if err := store.PutOwn(t.Context(), s, "answer", 2); !errors.Is(err, lockstep.ErrStoreUnavailable) {
				t.Fatalf("a write without an answer: %v", err)
			}
			if err := store.PutOwn(t.Context(), s, "answer", 3); err != nil {
				t.Fatal(err)
			}
			if err := s.deliver(); err != nil {
				t.Fatal(err)
			}
			if v, _, err := store.GetT[int](t.Context(), s, "answer"); err != nil || v != 3 {
				t.Fatalf("%d, %v after the late write, want 3", v, err)
			}
		})
	}
}

package storetest

import (
	"context"
	"fmt"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// Late is a store that does not answer the next transaction while Armed, and carries it out when Deliver is
// called: a member that was frozen, or a network that kept the bytes.
type Late struct {
	store.Store
	Armed   bool // one transaction; it is disarmed then
	Deliver func() error
}

// Txn implements store.Store.
func (l *Late) Txn(ctx context.Context, cmps []store.Cmp, ops []store.Op) (bool, int64, error) {
	if !l.Armed {
		return l.Store.Txn(ctx, cmps, ops)
	}
	l.Armed = false
	l.Deliver = func() error {
		_, _, err := l.Store.Txn(context.WithoutCancel(ctx), cmps, ops)
		return err
	}
	return false, 0, fmt.Errorf("transaction: %w: no answer in time", lockstep.ErrStoreUnavailable)
}

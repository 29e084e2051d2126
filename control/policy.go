package control

import (
	"context"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// SetStrict chooses how a primary serves without its secondary: strict, only under a lease from the
// store; else, the default, until it learns a newer epoch. Strict trades availability, when the
// store is away, for a forced failover that needs no word from the old primary.
func (c *Controller) SetStrict(ctx context.Context, caller Caller, id lockstep.GroupID, strict bool) error {
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		x, err := t.begin(caller, id)
		if err != nil {
			return err
		}
		if x.r.Strict == strict {
			return nil
		}
		next, err := x.r.SetStrict(strict)
		if err != nil {
			return err
		}
		what := "policy without a secondary: available"
		if strict {
			what = "policy without a secondary: strict"
		}
		x.put(store.KeyRecord(x.g.ID), next)
		x.history(next, what, x.caller.who(), x.caller.RequestID)
		return nil
	}))
}

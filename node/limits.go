package node

import (
	"context"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// followLimits has synchronizations keep to what limits/ says, from the moment it changes.
func (n *Node) followLimits(ctx context.Context) error {
	return store.Follow(ctx, n.st, store.PrefixLimits, func(batch []store.Change[store.ResyncLimit]) {
		for _, c := range batch {
			set := n.limitOf(c.Key)
			switch {
			case set == nil:
			case c.Kind == store.ChangePut:
				set(c.Value.MiB << 20)
			case c.Kind == store.ChangeDeleted:
				set(0)
			case c.Kind == store.ChangeBad:
				n.log.Error("limit of synchronizations cannot be read", "key", c.Key, "err", c.Err)
			}
		}
	})
}

// limitOf gives what a key bounds here, 0 being no limit of the store's; nil: nothing.
func (n *Node) limitOf(key string) func(bytesPerSecond int64) {
	if id, ok := strings.CutPrefix(key, store.PrefixGroupLimits); ok {
		return func(b int64) { n.host.SetGroupResyncLimit(lockstep.GroupID(id), b) }
	}
	if key != store.KeyNodeLimit(n.cfg.ID) {
		return nil
	}
	return func(b int64) {
		if b == 0 {
			b = n.cfg.ResyncLimitMiB << 20
		}
		n.host.SetResyncLimit(b)
	}
}

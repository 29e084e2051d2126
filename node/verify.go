package node

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/replica"
	"github.com/lockstep-dr/lockstep/store"
)

// verifies carries out what verify/<group> asks for, and reports it at observed/verify/<group>/<node>,
// from where it goes on after a restart.
type verifies struct {
	n    *Node
	wake chan struct{} // capacity 1

	mu   sync.Mutex
	want map[lockstep.GroupID]store.Verification // guarded by mu; what the store has

	from map[lockstep.GroupID]store.VerifyObserved // owned by run: what was reported last
}

func (v *verifies) init(n *Node) {
	v.n, v.wake = n, make(chan struct{}, 1)
	v.want, v.from = map[lockstep.GroupID]store.Verification{}, map[lockstep.GroupID]store.VerifyObserved{}
}

// follow keeps want.
func (v *verifies) follow(ctx context.Context) error {
	return store.Follow(ctx, v.n.st, store.PrefixVerify, func(batch []store.Change[store.Verification]) {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, c := range batch {
			id := lockstep.GroupID(strings.TrimPrefix(c.Key, store.PrefixVerify))
			switch c.Kind {
			case store.ChangePut:
				v.want[id] = c.Value
			case store.ChangeDeleted:
				delete(v.want, id)
			case store.ChangeBad:
				v.n.log.Error("verification cannot be read", "group", id, "err", c.Err)
			case store.ChangeSynced:
			}
		}
		select {
		case v.wake <- struct{}{}:
		default:
		}
	})
}

// lastProof is when the group was last proven equal; zero: never.
func (v *verifies) lastProof(id lockstep.GroupID) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p := v.want[id].Proof; p != nil {
		return p.At
	}
	return time.Time{}
}

// run begins, ends and reports, every second and whenever what is wanted changes.
func (v *verifies) run(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-v.wake:
		}
		running := map[lockstep.GroupID]store.Verification{}
		v.mu.Lock()
		for id, w := range v.want {
			if w.State == store.VerifyRunning {
				running[id] = w
			}
		}
		v.mu.Unlock()
		for _, id := range v.n.host.Groups() {
			if w, ok := running[id]; ok {
				v.drive(ctx, w)
			} else {
				v.n.host.StopVerify(id)
				delete(v.from, id)
			}
		}
	}
}

// drive lets one verification run, and reports it if there is news.
func (v *verifies) drive(ctx context.Context, w store.Verification) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	key := store.KeyObservedVerify(w.Group, v.n.cfg.ID)
	from, known := v.from[w.Group]
	if !known || from.ID != w.ID {
		var err error
		from, _, err = store.GetT[store.VerifyObserved](ctx, v.n.st, key)
		if err != nil && !errors.Is(err, lockstep.ErrNotFound) {
			v.n.log.Debug("report of the verification", "group", w.Group, "err", err)
			return // without it all would be compared again
		}
		if from.ID != w.ID {
			from = store.VerifyObserved{}
		}
	}
	v.n.host.Verify(w.Group, replica.VerifyRequest{ID: w.ID, RateBytes: w.RateMiB << 20, Epoch: w.Epoch, From: from})
	o, ok := v.n.host.ObserveVerify(w.Group)
	if !ok || o.ID != w.ID {
		return
	}
	v.from[w.Group] = from
	if string(store.Encode(o)) == string(store.Encode(from)) {
		return
	}
	sent := o
	if sent.State == store.VerifyRunning {
		sent.At = time.Now().UTC()
	}
	if err := store.PutOwn(ctx, v.n.st, key, sent); err != nil {
		v.n.log.Debug("report verification", "group", w.Group, "err", err)
		return
	}
	v.from[w.Group] = o
}

package control

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// mortal is a store as seen by a controller that dies at its n-th write: before it is applied, or
// right after, without learning the result.
type mortal struct {
	store.Store
	mu    sync.Mutex // guards left
	left  int
	after bool
	dead  chan struct{}
	once  sync.Once
}

func (m *mortal) Txn(ctx context.Context, cmps []store.Cmp, ops []store.Op) (bool, int64, error) {
	m.mu.Lock()
	m.left--
	left := m.left
	m.mu.Unlock()
	gone := fmt.Errorf("the controller died: %w", lockstep.ErrStoreUnavailable)
	if left < 0 || left == 0 && !m.after {
		m.once.Do(func() { close(m.dead) })
		return false, 0, gone
	}
	ok, rev, err := m.Store.Txn(ctx, cmps, ops)
	if left == 0 {
		m.once.Do(func() { close(m.dead) })
		return false, 0, gone
	}
	return ok, rev, err
}

// Goal: wherever a controller dies in an operation, the next one brings it to a documented end,
// and at no time does anybody see half of one.
// Method: the operation is run once for each write of the controller, which dies there.
func TestDeathAtEveryWrite(t *testing.T) {
	for _, op := range []struct {
		name   string
		synced bool
		call   func(ctx context.Context, s *site, c *Controller, g lockstep.GroupID, p []lockstep.PairID) error
		// ends lists the statuses and replication statuses that are right afterwards; "gone" for no group.
		ends   []string
		writes int // at least so many writes must have been died at
	}{
		{"group create", false, func(ctx context.Context, s *site, c *Controller, _ lockstep.GroupID, p []lockstep.PairID) error {
			_, err := c.CreateGroup(ctx, caller, GroupCreate{Pairs: p, Priority: "az1", Model: modelHypermetro})
			return err
		}, []string{"gone", "available/inactive"}, 3},
		{"group delete", false, func(ctx context.Context, s *site, c *Controller, g lockstep.GroupID, p []lockstep.PairID) error {
			if _, err := c.UpdateGroup(ctx, caller, g, GroupUpdate{Remove: p}); err != nil {
				return err
			}
			eventually(s.t, "updated or dead", func() bool {
				v, err := c.GetGroup(ctx, caller, g)
				return err != nil || v.Status == StatusAvailable || ctx.Err() != nil
			})
			return c.DeleteGroup(ctx, caller, g)
		}, []string{"available/inactive", "gone"}, 5},
		{"failover", true, func(ctx context.Context, s *site, c *Controller, g lockstep.GroupID, _ []lockstep.PairID) error {
			return c.Act(ctx, caller, g, ActionFailover, nil)
		}, []string{"available/active", "failovered/active-stopped"}, 4},
		{"reverse", true, func(ctx context.Context, s *site, c *Controller, g lockstep.GroupID, _ []lockstep.PairID) error {
			return c.Act(ctx, caller, g, ActionReverse, nil)
		}, []string{"available/active"}, 4},
		{"extend", true, func(ctx context.Context, s *site, c *Controller, g lockstep.GroupID, p []lockstep.PairID) error {
			return c.Act(ctx, caller, g, ActionExtend, []Extend{{p[0], 5}})
		}, []string{"available/active"}, 8},
		{"stop", true, func(ctx context.Context, s *site, c *Controller, g lockstep.GroupID, _ []lockstep.PairID) error {
			return c.Act(ctx, caller, g, ActionStop, nil)
		}, []string{"available/active", "available/active-stopped"}, 2},
		{"forced failover", true, func(ctx context.Context, s *site, c *Controller, g lockstep.GroupID, _ []lockstep.PairID) error {
			if err := c.Act(ctx, caller, g, ActionStop, nil); err != nil {
				return err
			}
			return forceNow(ctx, s, c, g)
		}, []string{"available/active", "available/active-stopped", "failovered/active-stopped"}, 6},
	} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, died after the write %v", op.name, after), func(t *testing.T) {
				died := 0
				for n := 1; n < 60; n++ {
					if !deathAt(t, n, after, op.name == "group create", op.synced, op.ends, op.call) {
						break
					}
					died++
				}
				if died < op.writes {
					t.Fatalf("died at %d writes only; the operation has at least %d", died, op.writes)
				}
			})
		}
	}
}

// deathAt runs one operation under a controller that dies at its n-th write; false: it had fewer.
func deathAt(t *testing.T, n int, after, ungrouped, synced bool, ends []string,
	call func(context.Context, *site, *Controller, lockstep.GroupID, []lockstep.PairID) error,
) bool {
	t.Helper()
	s := newSite(t, "a1", "b1")
	first, stop := s.controller()
	var g lockstep.GroupID
	var pairs []lockstep.PairID
	switch {
	case ungrouped:
		pairs = []lockstep.PairID{s.pair(first)}
	case synced:
		g, pairs = s.syncedGroup(first, 1)
	default:
		g, pairs = s.group(first, 1)
	}
	checkRest(t, s)
	stop()

	m := &mortal{Store: s.st, left: n, after: after, dead: make(chan struct{})}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	second, stopSecond := s.controller(func(c *Config) { c.Store = m })
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		select {
		case <-m.dead:
			cancel()
		case <-ctx.Done():
		}
	}()
	callErr := call(ctx, s, second, g, pairs)
	finished := make(chan bool, 1)
	go func() {
		deadline := time.Now().Add(5 * time.Second)
		for ctx.Err() == nil && time.Now().Before(deadline) {
			if inconsistency(s, true) == nil {
				finished <- true
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
		finished <- false
	}()
	alive := <-finished
	select {
	case <-m.dead:
		alive = false
	default:
	}
	cancel()
	<-watch
	stopSecond()
	if alive && callErr != nil {
		t.Fatalf("write %d: %v", n, callErr)
	}
	if err := inconsistency(s, false); err != nil {
		t.Fatalf("died at write %d: %v", n, err)
	}
	// The dead controller's leases run out.
	for _, id := range s.mem.Leases() {
		s.mem.ExpireLease(id)
	}
	third, stopThird := s.controller()
	checkRest(t, s)
	got := ""
	eventually(t, fmt.Sprintf("died at write %d: end of the operation", n), func() bool {
		got = endOf(s, third)
		for _, want := range ends {
			if got == want {
				return true
			}
		}
		return false
	})
	stopThird()
	s.stopNodes()
	return !alive
}

// endOf is the status of the one group there is.
func endOf(s *site, c *Controller) string {
	groups, err := c.ListGroups(s.ctx, caller)
	switch {
	case err != nil:
		return err.Error()
	case len(groups) == 0:
		return "gone"
	}
	return groups[0].Status + "/" + groups[0].ReplicationStatus
}

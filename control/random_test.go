package control

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: two controllers at once, under random calls and faults, never show anything inconsistent,
// never lose a step of a record, and come to rest when the faults end.
// Method: several users call either controller at random; one checker reads the whole store again
// and again, one watches the records. CONTROL_SEED repeats a run's choices.
func TestTwoControllersAtRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if env := os.Getenv("CONTROL_SEED"); env != "" {
		n, err := strconv.ParseUint(env, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("CONTROL_SEED=%d", seed)
	s := newSite(t, "a1", "a2", "b1", "b2")
	c1, _ := s.controller()
	c2, stop2 := s.controller()
	both := []*Controller{c1, c2}
	var pairs []lockstep.PairID
	for range 4 {
		pairs = append(pairs, s.pair(c1))
	}
	ctx, cancel := context.WithTimeout(s.ctx, 4*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	broken := make(chan error, 8)
	wg.Go(func() { broken <- watchRecords(ctx, s) })
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := inconsistency(s, false); err != nil {
				broken <- err
				return
			}
		}
	})
	for user := range 4 {
		rnd := rand.New(rand.NewPCG(seed, uint64(user)))
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := randomCall(ctx, both[rnd.IntN(2)], pairs, rnd); err != nil {
					broken <- err
					return
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(seed, 99))
	for ctx.Err() == nil {
		sleep(ctx, time.Duration(rnd.IntN(300))*time.Millisecond)
		switch rnd.IntN(5) {
		case 0:
			s.set(func() { s.cut = !s.cut })
		case 1:
			s.set(func() { s.slow = !s.slow })
		case 2:
			// The leader loses its lease: the other one takes over, or it campaigns again.
			if ids := s.mem.Leases(); len(ids) > 0 {
				s.mem.ExpireLease(ids[rnd.IntN(len(ids))])
			}
		default:
			s.set(func() { s.cut, s.slow = false, false })
		}
	}
	wg.Wait()
	close(broken)
	for err := range broken {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.set(func() { s.cut, s.slow = false, false })
	stop2()
	checkRest(t, s)
	// Whatever is left can be brought to an end by calls alone.
	groups := must[[]GroupView](t)(c1.ListGroups(s.ctx, caller))
	for _, g := range groups {
		eventually(t, "a group at rest", func() bool {
			r := s.record(g.ID)
			return r.State == protocol.StateNormal
		})
		s.act(c1, g.ID, ActionStop)
		must[GroupView](t)(c1.UpdateGroup(s.ctx, caller, g.ID, GroupUpdate{Remove: g.Pairs}))
		s.awaitGroup(c1, g.ID, StatusAvailable, ReplicationInactive)
		if err := c1.DeleteGroup(s.ctx, caller, g.ID); err != nil {
			t.Fatal(err)
		}
	}
	checkRest(t, s)
}

// randomCall makes one call. Refusals are right; anything internal is not.
func randomCall(ctx context.Context, c *Controller, pairs []lockstep.PairID, rnd *rand.Rand) error {
	var some []lockstep.PairID
	for _, i := range rnd.Perm(len(pairs))[:1+rnd.IntN(2)] {
		some = append(some, pairs[i])
	}
	groups, err := c.ListGroups(ctx, caller)
	if err == nil {
		if len(groups) == 0 || rnd.IntN(8) == 0 {
			p, perr := c.GetPair(ctx, caller, some[0])
			if perr == nil {
				_, err = c.CreateGroup(ctx, caller, GroupCreate{Pairs: some, Priority: p.Priority, Model: modelHypermetro})
			}
		} else {
			g := groups[rnd.IntN(len(groups))]
			switch n := rnd.IntN(12); n {
			case 0:
				_, err = c.UpdateGroup(ctx, caller, g.ID, GroupUpdate{Add: some})
			case 1:
				_, err = c.UpdateGroup(ctx, caller, g.ID, GroupUpdate{Remove: some})
			case 2:
				_, err = c.UpdateGroup(ctx, caller, g.ID, GroupUpdate{Name: ptr("n"), SetName: true})
			case 3:
				err = c.DeleteGroup(ctx, caller, g.ID)
			case 4:
				if len(g.Pairs) > 0 {
					p, perr := c.GetPair(ctx, caller, g.Pairs[0])
					if perr == nil && p.Meta.SizeGiB < 100 {
						err = c.Act(ctx, caller, g.ID, ActionExtend, []Extend{{g.Pairs[0], p.Meta.SizeGiB + 1}})
					}
				}
			case 5, 6, 7:
				err = c.Act(ctx, caller, g.ID, ActionSync, nil)
			case 8:
				err = c.Act(ctx, caller, g.ID, ActionStop, nil)
			case 9:
				err = c.Act(ctx, caller, g.ID, ActionFailover, nil)
			case 10:
				err = c.Act(ctx, caller, g.ID, ActionReverse, nil)
			case 11:
				err = c.Act(ctx, caller, g.ID, ActionReprotect, nil)
			}
		}
	}
	if err == nil || ctx.Err() != nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) || e.Kind == KindInternal {
		return err
	}
	return nil
}

// watchRecords checks that every change of a record is either one epoch on, or at the same epoch
// one that does not concern the data path.
func watchRecords(ctx context.Context, s *site) error {
	last := map[string]protocol.Record{}
	for batch := range s.st.Watch(ctx, store.PrefixRecords, 0) {
		for _, e := range batch {
			if e.Deleted {
				if was := last[e.Key]; was.State != protocol.StateDeleted {
					return errors.New("record " + e.Key + " was removed while it was " + was.Describe())
				}
				delete(last, e.Key)
				continue
			}
			r, err := store.Decode[protocol.Record](e.Value)
			if err != nil {
				return err
			}
			was, known := last[e.Key]
			switch {
			case !known && r.Epoch != 1:
				return errors.New("record " + e.Key + " began as " + r.Describe())
			case known && r.Epoch == was.Epoch && (r.State != was.State || r.InSync != was.InSync || r.Primary != was.Primary || len(r.Members) != len(was.Members)):
				return errors.New("record " + e.Key + " changed without an epoch: " + was.Describe() + ", then " + r.Describe())
			case known && r.Epoch != was.Epoch && r.Epoch != was.Epoch+1:
				return errors.New("record " + e.Key + " jumped: " + was.Describe() + ", then " + r.Describe())
			}
			last[e.Key] = r
		}
	}
	return nil
}

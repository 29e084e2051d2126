package control

import (
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: whatever changes what a group shows is an update of it, of its pairs and of their volumes:
// clients that ask for what has changed since then see it. A new thing has no such time.
func TestUpdatedAt(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	fresh := must[VolumeView](t)(c.GetVolume(s.ctx, caller, s.volume(c, "az1", 1)))
	if fresh.UpdatedAt != nil {
		t.Errorf("a new volume was updated at %v", fresh.UpdatedAt)
	}
	alone := s.pair(c)
	if p := must[PairView](t)(c.GetPair(s.ctx, caller, alone)); p.UpdatedAt != nil {
		t.Errorf("a new pair was updated at %v", p.UpdatedAt)
	}
	id, pairs := s.group(c, 1)
	eventually(t, "no operation", func() bool {
		kvs, _, err := s.st.List(s.ctx, store.PrefixOps)
		return err == nil && len(kvs) == 0
	})
	if g := must[GroupView](t)(c.GetGroup(s.ctx, caller, id)); g.UpdatedAt != nil {
		t.Errorf("a new group was updated at %v", g.UpdatedAt)
	}
	p := must[PairView](t)(c.GetPair(s.ctx, caller, pairs[0]))
	times := func() []*time.Time {
		list := []*time.Time{
			must[GroupView](t)(c.GetGroup(s.ctx, caller, id)).UpdatedAt,
			must[PairView](t)(c.GetPair(s.ctx, caller, pairs[0])).UpdatedAt,
		}
		for _, v := range p.Volumes {
			list = append(list, must[VolumeView](t)(c.GetVolume(s.ctx, caller, v)).UpdatedAt)
		}
		return list
	}
	others := func() [2]*time.Time {
		return [2]*time.Time{
			must[VolumeView](t)(c.GetVolume(s.ctx, caller, fresh.ID)).UpdatedAt,
			must[PairView](t)(c.GetPair(s.ctx, caller, alone)).UpdatedAt,
		}
	}
	wait := func(status, rep string) func() { return func() { s.awaitGroup(c, id, status, rep) } }
	act := func(a Action) func() { return func() { s.act(c, id, a) } }
	slow := func(slow bool) func() { return func() { s.set(func() { s.slow = slow }) } }
	for _, step := range []struct {
		name      string
		call, end func()
	}{
		{"sync", func() { slow(true)(); act(ActionSync)() }, wait(StatusAvailable, ReplicationCopying)},
		{"in sync", slow(false), wait(StatusAvailable, ReplicationActive)},
		{"extend", func() {
			if err := c.Act(s.ctx, caller, id, ActionExtend, []Extend{{pairs[0], 2}}); err != nil {
				t.Fatal(err)
			}
		}, wait(StatusAvailable, ReplicationActive)},
		{"switchover", act(ActionReverse), func() {
			eventually(t, "az2 is primary", func() bool {
				g := must[GroupView](t)(c.GetGroup(s.ctx, caller, id))
				return g.Priority == "az2" && g.Status == StatusAvailable
			})
		}},
		{"policy", func() {
			if err := c.SetStrict(s.ctx, caller, id, true); err != nil {
				t.Fatal(err)
			}
		}, func() {}},
		{"stop", act(ActionStop), wait(StatusAvailable, ReplicationStopped)},
		{"sync again", act(ActionSync), wait(StatusAvailable, ReplicationActive)},
		{"link fault", func() { s.set(func() { s.cut = true }) }, wait(StatusAvailable, ReplicationInactive)},
		{"stop when tripped", act(ActionStop), func() {
			eventually(t, "no fault", func() bool { return must[GroupView](t)(c.GetGroup(s.ctx, caller, id)).FaultLevel == FaultNone })
		}},
		{"link back, sync", func() { s.set(func() { s.cut = false }); act(ActionSync)() }, wait(StatusAvailable, ReplicationActive)},
		{"failover", act(ActionFailover), wait(StatusFailovered, ReplicationStopped)},
		{"reprotect", act(ActionReprotect), wait(StatusAvailable, ReplicationActive)},
	} {
		before, apart := times(), others()
		step.call()
		step.end()
		deadline := time.Now().Add(5 * time.Second)
		for i := 0; i < len(before); {
			now := times()[i]
			if now != nil && (before[i] == nil || now.After(*before[i])) {
				i++
				continue
			}
			if time.Now().After(deadline) { // what nodes did is noted a moment later
				t.Errorf("%s: thing %d (group, pair, volume, volume) was updated at %v, as before", step.name, i, now)
				i++
			}
			time.Sleep(time.Millisecond)
		}
		if others() != apart {
			t.Errorf("%s: something else was updated", step.name)
		}
	}
	// Out of the group and the pair, what it shows changes once more.
	s.act(c, id, ActionStop)
	before := times()
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: []lockstep.PairID{pairs[0]}}))
	for i, now := range times() {
		if now == nil || !now.After(*before[i]) {
			t.Errorf("leaving the group: thing %d was updated at %v", i, now)
		}
	}
}

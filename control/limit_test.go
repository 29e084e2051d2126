package control

import (
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: a limit is set, shown, changed and taken away; what is wrong changes nothing; a group takes its limit along.
func TestLimitGroup(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	g, _ := s.syncedGroup(c, 1)
	for _, mib := range []int64{-1, store.MaxResyncLimitMiB + 1} {
		refused(t, c.LimitGroup(s.ctx, caller, g, mib), KindBadRequest, "")
	}
	eve := Caller{Project: "eve", User: "eve", Admin: true}
	refused(t, c.LimitGroup(s.ctx, eve, g, 7), KindNotFound, "")
	limit := func() int64 { return must[GroupView](t)(c.GetGroup(s.ctx, caller, g)).ResyncLimitMiB }
	if got := limit(); got != 0 {
		t.Fatalf("a new group has a limit of %d", got)
	}
	for _, mib := range []int64{7, 7, 9, 0, 0, 7} {
		if err := c.LimitGroup(s.ctx, caller, g, mib); err != nil || limit() != mib {
			t.Fatalf("%d MiB/s: %v, shown %d", mib, err, limit())
		}
	}
	if h := historyOf(t, s, c, g); strings.Count(h, "limit of synchronizations: 7 MiB/s") != 2 || strings.Count(h, "limit of synchronizations: none") != 1 {
		t.Errorf("history:\n%s", h)
	}
	if v := must[GroupView](t)(c.GetGroup(s.ctx, caller, g)); v.Resync != nil {
		t.Errorf("in sync, and a synchronization runs: %+v", v.Resync)
	}
	if err := c.Act(s.ctx, caller, g, ActionStop, nil); err != nil {
		t.Fatal(err)
	}
	pairs := must[GroupView](t)(c.GetGroup(s.ctx, caller, g)).Pairs
	eventually(t, "it can be changed", func() bool {
		_, err := c.UpdateGroup(s.ctx, caller, g, GroupUpdate{Remove: pairs})
		return err == nil
	})
	eventually(t, "it can be deleted", func() bool { return c.DeleteGroup(s.ctx, caller, g) == nil })
	eventually(t, "nothing is left of its limit", func() bool {
		_, _, err := store.GetT[store.ResyncLimit](s.ctx, s.st, store.KeyGroupLimit(g))
		return errors.Is(err, lockstep.ErrNotFound)
	})
	refused(t, c.LimitGroup(s.ctx, caller, g, 7), KindNotFound, "")
}

// Goal: a node's limit needs the role admin and a node that exists, and is shown with it.
func TestLimitNode(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	plain, admin := caller, caller
	plain.Admin, admin.Admin = false, true
	refused(t, c.LimitNode(s.ctx, plain, "a1", 7), KindForbidden, "")
	refused(t, c.LimitNode(s.ctx, admin, "nobody", 7), KindNotFound, "")
	refused(t, c.LimitNode(s.ctx, admin, "a1", -1), KindBadRequest, "")
	for _, mib := range []int64{7, 0} {
		if err := c.LimitNode(s.ctx, admin, "a1", mib); err != nil {
			t.Fatal(err)
		}
		for _, n := range must[[]NodeView](t)(c.Nodes(s.ctx)) {
			if want := map[lockstep.NodeID]int64{"a1": mib}[n.ID]; n.ResyncLimitMiB != want {
				t.Errorf("node %s: %d, want %d", n.ID, n.ResyncLimitMiB, want)
			}
		}
	}
}

// Goal: the time that is left is rounded up, and not known without a rate.
func TestSecondsLeft(t *testing.T) {
	for _, row := range []struct {
		v    ResyncView
		want int64
		ok   bool
	}{
		{ResyncView{ToSendBytes: 101, BytesPerSecond: 10}, 11, true},
		{ResyncView{ToSendBytes: 100, BytesPerSecond: 10}, 10, true},
		{ResyncView{ToSendBytes: 1}, 0, false},
		{ResyncView{}, 0, true},
	} {
		if got, ok := row.v.SecondsLeft(); got != row.want || ok != row.ok {
			t.Errorf("%+v: %d %v", row.v, got, ok)
		}
	}
}

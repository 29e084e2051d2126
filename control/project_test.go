package control

import (
	"reflect"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: the things of another project do not exist for a caller, whatever the role: every call says
// so, lists leave them out, and nothing is changed.
func TestProjectsAreApart(t *testing.T) {
	s := newStill(t)
	ctx, c := s.ctx, s.c
	eve := Caller{Project: "p2", User: "eve", RequestID: "req-2", Admin: true}
	// What eve has: a volume in each AZ, and a third that is in a pair and a group of hers.
	for id, az := range map[lockstep.VolumeID]lockstep.AZ{"eve-1": "az1", "eve-2": "az2"} {
		s.put(store.KeyVolume(id), store.Volume{
			ID: id, Project: eve.Project, SizeBytes: lockstep.GiB, AZ: az, Node: lockstep.NodeID("ab"[az[2]-'1':][:1] + "1"),
			Status: StatusAvailable, Type: "SSD", Access: store.Access{Mode: store.AccessPlain},
		})
	}
	pairOf := func(v ...lockstep.VolumeID) func() error {
		return func() error {
			_, err := c.CreatePair(ctx, eve, PairCreate{Volumes: v, Priority: "az1", Model: modelHypermetro})
			return err
		}
	}
	p := must[PairView](t)(c.CreatePair(ctx, eve, PairCreate{Volumes: []lockstep.VolumeID{"eve-1", "eve-2"}, Priority: "az1", Model: modelHypermetro}))
	if _, err := store.Update(ctx, s.st, store.KeyPair(p.ID), func(p *store.Pair) error { p.Status = StatusAvailable; return nil }); err != nil {
		t.Fatal(err)
	}
	hers := must[GroupView](t)(c.CreateGroup(ctx, eve, GroupCreate{Pairs: []lockstep.PairID{p.ID}, Priority: "az1", Model: modelHypermetro}))
	if _, err := store.Update(ctx, s.st, store.KeyGroup(hers.ID), func(g *store.Group) error { g.Op, g.Overlay = "", ""; return nil }); err != nil {
		t.Fatal(err)
	}
	s.put(store.KeyVolume("eve-3"), store.Volume{
		ID: "eve-3", Project: eve.Project, SizeBytes: lockstep.GiB, AZ: "az2", Node: "b1",
		Status: StatusAvailable, Type: "SSD", Access: store.Access{Mode: store.AccessPlain},
	})

	act := func(a Action, e ...Extend) func() error {
		return func() error { return c.Act(ctx, eve, s.active, a, e) }
	}
	declare := func(st Statement) func() error {
		return func() error { return c.Declare(ctx, eve, s.active, st, "a1", "because") }
	}
	upd := func(g lockstep.GroupID, u GroupUpdate) func() error {
		return func() error { _, err := c.UpdateGroup(ctx, eve, g, u); return err }
	}
	for name, row := range map[string]struct {
		call func() error
		code string
	}{
		"show volume":    {func() error { _, err := c.GetVolume(ctx, eve, s.a); return err }, ""},
		"open volume":    {func() error { _, err := c.ConnectionURI(ctx, eve, s.a); return err }, ""},
		"extend volume":  {func() error { return c.ExtendVolume(ctx, eve, s.a, 2) }, ""},
		"delete volume":  {func() error { return c.DeleteVolume(ctx, eve, s.a) }, ""},
		"release volume": {func() error { return c.ReleaseVolume(ctx, eve, s.former) }, ""},
		"update volume": {func() error {
			_, err := c.UpdateVolume(ctx, eve, s.a, func(v *store.Volume) error { v.Name = ptr("mine"); return nil })
			return err
		}, ""},
		"pair of two foreign volumes":  {pairOf(s.a, s.b), codeProdMissing},
		"pair with a foreign DR disk":  {pairOf("eve-1", s.b), codeDRMissing},
		"pair with a foreign original": {pairOf(s.a, "eve-3"), codeProdMissing},
		"show pair":                    {func() error { _, err := c.GetPair(ctx, eve, s.alone); return err }, ""},
		"delete pair":                  {func() error { return c.DeletePair(ctx, eve, s.alone) }, ""},
		"group of a foreign pair": {func() error {
			_, err := c.CreateGroup(ctx, eve, GroupCreate{Pairs: []lockstep.PairID{s.alone}, Priority: "az1", Model: modelHypermetro})
			return err
		}, ""},
		"show group":             {func() error { _, err := c.GetGroup(ctx, eve, s.active); return err }, ""},
		"history":                {func() error { _, err := c.History(ctx, eve, s.active); return err }, ""},
		"rename group":           {upd(s.active, GroupUpdate{Name: ptr("mine"), SetName: true}), ""},
		"empty update":           {upd(s.active, GroupUpdate{}), ""},
		"add to a foreign group": {upd(s.fresh, GroupUpdate{Add: []lockstep.PairID{s.alone}}), ""},
		"take from a foreign group": {
			upd(s.fresh, GroupUpdate{Remove: []lockstep.PairID{s.inNew}}), "",
		},
		"add a foreign pair to her own": {upd(hers.ID, GroupUpdate{Add: []lockstep.PairID{s.alone}}), ""},
		"delete group":                  {func() error { return c.DeleteGroup(ctx, eve, s.empty) }, ""},
		"policy":                        {func() error { return c.SetStrict(ctx, eve, s.active, true) }, ""},
		"failover":                      {act(ActionFailover), ""},
		"sync":                          {act(ActionSync), ""},
		"reverse":                       {act(ActionReverse), ""},
		"stop":                          {act(ActionStop), ""},
		"reprotect":                     {act(ActionReprotect), ""},
		"extend":                        {act(ActionExtend, Extend{s.inActive, 2}), ""},
		"continue":                      {declare(StateContinue), ""},
		"node off":                      {declare(StateNodeOff), ""},
		"lost secondary":                {declare(StateLostSecondary), ""},
	} {
		before := s.dump()
		err := row.call()
		after := s.dump()
		t.Run(name, func(t *testing.T) { refused(t, err, KindNotFound, row.code) })
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%s: the store changed", name)
		}
	}
	// A foreign pair in the extend of her own group is no member of it.
	refused(t, c.Act(ctx, eve, hers.ID, ActionExtend, []Extend{{s.inActive, 2}}), KindBadRequest, "")
	if got := must[[]VolumeView](t)(c.ListVolumes(ctx, eve)); len(got) != 3 {
		t.Errorf("she sees %d volumes, want her 3", len(got))
	}
	if got := must[[]PairView](t)(c.ListPairs(ctx, eve)); len(got) != 1 {
		t.Errorf("she sees %d pairs, want her 1", len(got))
	}
	if got := must[[]GroupView](t)(c.ListGroups(ctx, eve)); len(got) != 1 {
		t.Errorf("she sees %d groups, want her 1", len(got))
	}
	// Her role counts for her own group: the statement is looked at and refused for what it says.
	refused(t, c.Declare(ctx, eve, hers.ID, StateContinue, "", "because"), KindConflict, "")
	eve.Admin = false
	refused(t, c.Declare(ctx, eve, hers.ID, StateContinue, "", "because"), KindForbidden, "")
}

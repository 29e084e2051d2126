package control

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// still is a store at rest with one thing in each interesting condition. Nothing runs, so that
// the whole store can be compared around a call.
type still struct {
	*site
	c                             *Controller
	a, b, big, sas, broken        lockstep.VolumeID // plain disks: az1, az2, 2 GiB in az2, SAS in az2, error
	making, attached, former      lockstep.VolumeID // creating, DR attached, refused former DR disk in az1
	prod, dr                      lockstep.VolumeID // of pair alone
	alone, inNew, inActive, inOld lockstep.PairID
	backward                      lockstep.PairID // production in az2
	fresh, active, old, empty     lockstep.GroupID
}

func newStill(t *testing.T) *still {
	s := &still{site: newSite(t, "a1", "b1")}
	c, stop := s.controller()
	s.c = c
	s.a, s.b, s.big = s.volume(c, "az1", 1), s.volume(c, "az2", 1), s.volume(c, "az2", 2)
	s.broken, s.attached, s.former = s.volume(c, "az1", 1), s.volume(c, "az2", 1), s.volume(c, "az1", 1)
	v := must[VolumeView](t)(c.CreateVolume(s.ctx, caller, VolumeCreate{SizeGiB: 1, AZ: "az2", Type: "sas"}))
	s.sas = v.ID
	eventually(t, "sas volume", func() bool {
		v, err := c.GetVolume(s.ctx, caller, s.sas)
		return err == nil && v.Status == StatusAvailable
	})
	s.alone = s.pair(c)
	p := must[PairView](t)(c.GetPair(s.ctx, caller, s.alone))
	s.prod, s.dr = p.Volumes[0], p.Volumes[1]
	s.backward = s.pair(c)
	var pairs []lockstep.PairID
	s.fresh, pairs = s.group(c, 1)
	s.inNew = pairs[0]
	s.active, pairs = s.syncedGroup(c, 1)
	s.inActive = pairs[0]
	s.old, pairs = s.syncedGroup(c, 1)
	s.inOld = pairs[0]
	s.act(c, s.old, ActionFailover)
	s.awaitGroup(c, s.old, StatusFailovered, ReplicationStopped)
	s.empty, pairs = s.group(c, 1)
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, s.empty, GroupUpdate{Remove: pairs}))
	s.awaitGroup(c, s.empty, StatusAvailable, ReplicationInactive)
	eventually(t, "no operation", func() bool {
		kvs, _, err := s.st.List(s.ctx, store.PrefixOps)
		return err == nil && len(kvs) == 0
	})
	stop()
	s.stopNodes()

	s.edit(s.broken, func(v *store.Volume) { v.Status = StatusError })
	s.edit(s.attached, func(v *store.Volume) {
		v.Status, v.Attachments = StatusInUse, []store.Attachment{{Server: "srv-1"}}
	})
	s.edit(s.former, func(v *store.Volume) { v.Access = store.Access{Mode: store.AccessRefused, Reason: "was a DR disk"} })
	s.making = "making"
	s.put(store.KeyVolume(s.making), store.Volume{
		ID: s.making, Project: caller.Project, SizeBytes: lockstep.GiB, AZ: "az1", Node: "a1",
		Status: StatusCreating, Type: "SSD", Access: store.Access{Mode: store.AccessPlain},
	})
	bp, _, err := store.GetT[store.Pair](s.ctx, s.st, store.KeyPair(s.backward))
	if err != nil {
		t.Fatal(err)
	}
	bp.Primary = "az2"
	s.put(store.KeyPair(s.backward), bp)
	s.c = New(s.testConfig()) // without Run: reads go to the store
	return s
}

func (s *still) edit(id lockstep.VolumeID, change func(*store.Volume)) {
	s.t.Helper()
	if _, err := store.Update(s.ctx, s.st, store.KeyVolume(id), func(v *store.Volume) error { change(v); return nil }); err != nil {
		s.t.Fatal(err)
	}
}

func (s *still) alive(n lockstep.NodeID, alive bool) {
	if alive {
		s.put(store.KeyAliveNode(n), store.Presence{Node: n})
		return
	}
	if err := store.Delete(s.ctx, s.st, store.KeyAliveNode(n), store.AnyRev); err != nil {
		s.t.Fatal(err)
	}
}

// Goal: every refusal has its kind and code, and changes nothing at all.
func TestRefusals(t *testing.T) {
	s := newStill(t)
	ctx, c := s.ctx, s.c
	long := ptr(strings.Repeat("é", 128)) // 256 bytes in 128 characters
	other := Caller{Project: "p2", User: "eve"}
	pairOf := func(v ...lockstep.VolumeID) error {
		_, err := c.CreatePair(ctx, caller, PairCreate{Volumes: v, Priority: "az1", Model: modelHypermetro})
		return err
	}
	groupOf := func(prio lockstep.AZ, p ...lockstep.PairID) error {
		_, err := c.CreateGroup(ctx, caller, GroupCreate{Pairs: p, Priority: prio, Model: modelHypermetro})
		return err
	}
	vol := func(v VolumeCreate) error { _, err := c.CreateVolume(ctx, caller, v); return err }
	upd := func(g lockstep.GroupID, u GroupUpdate) error { _, err := c.UpdateGroup(ctx, caller, g, u); return err }
	act := func(g lockstep.GroupID, a Action, e ...Extend) error { return c.Act(ctx, caller, g, a, e) }
	down := func(n lockstep.NodeID, call func() error) func() error {
		return func() error {
			s.alive(n, false)
			return call()
		}
	}
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprint(i)] = ""
	}
	rows := []struct {
		name string
		call func() error
		kind Kind
		code string
	}{
		{"volume of 0 GiB", func() error { return vol(VolumeCreate{SizeGiB: 0}) }, KindBadRequest, codeBadSize},
		{"volume of -1 GiB", func() error { return vol(VolumeCreate{SizeGiB: -1}) }, KindBadRequest, codeBadSize},
		{"volume too large", func() error { return vol(VolumeCreate{SizeGiB: 65537}) }, KindBadRequest, codeBadSize},
		{"volume overflowing", func() error { return vol(VolumeCreate{SizeGiB: math.MaxInt64}) }, KindBadRequest, codeBadSize},
		{"unknown AZ", func() error { return vol(VolumeCreate{SizeGiB: 1, AZ: "az9"}) }, KindBadRequest, ""},
		{"unknown type", func() error { return vol(VolumeCreate{SizeGiB: 1, Type: "tape"}) }, KindBadRequest, ""},
		{"name in bytes", func() error { return vol(VolumeCreate{SizeGiB: 1, Name: long}) }, KindBadRequest, ""},
		{"description in bytes", func() error { return vol(VolumeCreate{SizeGiB: 1, Description: long}) }, KindBadRequest, ""},
		{"too many metadata", func() error { return vol(VolumeCreate{SizeGiB: 1, Metadata: many}) }, KindBadRequest, ""},
		{"metadata value", func() error { return vol(VolumeCreate{SizeGiB: 1, Metadata: map[string]string{"k": *long}}) }, KindBadRequest, ""},
		{"metadata key", func() error { return vol(VolumeCreate{SizeGiB: 1, Metadata: map[string]string{*long: ""}}) }, KindBadRequest, ""},
		{"pinned to nowhere", func() error { return vol(VolumeCreate{SizeGiB: 1, Metadata: map[string]string{"node": "7"}}) }, KindBadRequest, ""},
		{"no alive node", down("a1", func() error { return vol(VolumeCreate{SizeGiB: 1, AZ: "az1"}) }), KindUnavailable, ""},

		{"get unknown volume", func() error { _, err := c.GetVolume(ctx, caller, "x"); return err }, KindNotFound, ""},
		{"get foreign volume", func() error { _, err := c.GetVolume(ctx, other, s.a); return err }, KindNotFound, ""},
		{"update foreign volume", func() error {
			_, err := c.UpdateVolume(ctx, other, s.a, func(*store.Volume) error { return nil })
			return err
		}, KindNotFound, ""},
		{"update refused by the caller", func() error {
			_, err := c.UpdateVolume(ctx, caller, s.a, func(*store.Volume) error { return conflict("", "no") })
			return err
		}, KindConflict, ""},
		{"update with a long name", func() error {
			_, err := c.UpdateVolume(ctx, caller, s.a, func(v *store.Volume) error { v.Name = long; return nil })
			return err
		}, KindBadRequest, ""},
		{"delete a disk in a pair", func() error { return c.DeleteVolume(ctx, caller, s.prod) }, KindBadRequest, ""},
		{"delete an attached disk", func() error { return c.DeleteVolume(ctx, caller, s.attached) }, KindBadRequest, ""},
		{"delete a disk being made", func() error { return c.DeleteVolume(ctx, caller, s.making) }, KindBadRequest, ""},
		{"delete a foreign disk", func() error { return c.DeleteVolume(ctx, other, s.a) }, KindNotFound, ""},
		{"extend a disk in a pair", func() error { return c.ExtendVolume(ctx, caller, s.dr, 9) }, KindBadRequest, ""},
		{"shrink", func() error { return c.ExtendVolume(ctx, caller, s.big, 1) }, KindBadRequest, codeNoShrink},
		{"extend to the same", func() error { return c.ExtendVolume(ctx, caller, s.a, 1) }, KindBadRequest, codeNoShrink},
		{"extend to below zero", func() error { return c.ExtendVolume(ctx, caller, s.a, math.MinInt64) }, KindBadRequest, codeNoShrink},
		{"extend too far", func() error { return c.ExtendVolume(ctx, caller, s.a, math.MaxInt64) }, KindBadRequest, codeTooLarge},
		{"extend a broken disk", func() error { return c.ExtendVolume(ctx, caller, s.broken, 2) }, KindBadRequest, ""},
		{"release a disk in a pair", func() error { return c.ReleaseVolume(ctx, caller, s.dr) }, KindBadRequest, ""},
		{"open a disk being made", func() error { _, err := c.ConnectionURI(ctx, caller, s.making); return err }, KindConflict, ""},
		{"open a foreign disk", func() error { _, err := c.ConnectionURI(ctx, other, s.a); return err }, KindNotFound, ""},

		{"pair of one", func() error { return pairOf(s.a) }, KindBadRequest, ""},
		{"pair of the same", func() error { return pairOf(s.a, s.a) }, KindBadRequest, ""},
		{"production disk missing", func() error { return pairOf("x", s.b) }, KindNotFound, codeProdMissing},
		{"DR disk missing", func() error { return pairOf(s.a, "x") }, KindNotFound, codeDRMissing},
		{"DR disk missing, named first", func() error { return pairOf("x", s.a) }, KindNotFound, codeDRMissing},
		{"one AZ", func() error { return pairOf(s.b, s.big) }, KindBadRequest, ""},
		{"sizes differ", func() error { return pairOf(s.a, s.big) }, KindBadRequest, codeSizesDiffer},
		{"types differ", func() error { return pairOf(s.a, s.sas) }, KindBadRequest, ""},
		{"production in a pair", func() error { return pairOf(s.prod, s.b) }, KindBadRequest, codeProdPaired},
		{"DR in a pair", func() error { return pairOf(s.a, s.dr) }, KindBadRequest, codeDRPaired},
		{"production being made", func() error { return pairOf(s.making, s.b) }, KindBadRequest, codeProdFilling},
		{"production broken", func() error { return pairOf(s.broken, s.b) }, KindBadRequest, ""},
		{"production unreleased", func() error { return pairOf(s.former, s.b) }, KindBadRequest, ""},
		{"DR attached", func() error { return pairOf(s.a, s.attached) }, KindBadRequest, codeDRAttached},
		{"priority elsewhere", func() error {
			_, err := c.CreatePair(ctx, caller, PairCreate{Volumes: []lockstep.VolumeID{s.a, s.b}, Priority: "az3", Model: modelHypermetro})
			return err
		}, KindBadRequest, ""},
		{"pair model", func() error {
			_, err := c.CreatePair(ctx, caller, PairCreate{Volumes: []lockstep.VolumeID{s.a, s.b}, Priority: "az1", Model: "async"})
			return err
		}, KindBadRequest, ""},
		{"pair name", func() error {
			_, err := c.CreatePair(ctx, caller, PairCreate{Name: long, Volumes: []lockstep.VolumeID{s.a, s.b}, Priority: "az1", Model: modelHypermetro})
			return err
		}, KindBadRequest, ""},
		{"get foreign pair", func() error { _, err := c.GetPair(ctx, other, s.alone); return err }, KindNotFound, ""},
		{"delete a pair in a group", func() error { return c.DeletePair(ctx, caller, s.inNew) }, KindConflict, ""},
		{"delete an unknown pair", func() error { return c.DeletePair(ctx, caller, "x") }, KindNotFound, ""},

		{"group of nothing", func() error { return groupOf("az1") }, KindBadRequest, ""},
		{"group with a pair twice", func() error { return groupOf("az1", s.alone, s.alone) }, KindBadRequest, ""},
		{"group with an unknown pair", func() error { return groupOf("az1", "x") }, KindNotFound, ""},
		{"group with a taken pair", func() error { return groupOf("az1", s.alone, s.inNew) }, KindBadRequest, ""},
		{"group of another priority", func() error { return groupOf("az2", s.alone) }, KindBadRequest, ""},
		{"group of two directions", func() error { return groupOf("az1", s.alone, s.backward) }, KindBadRequest, ""},
		{"group model", func() error {
			_, err := c.CreateGroup(ctx, caller, GroupCreate{Pairs: []lockstep.PairID{s.alone}, Priority: "az1", Model: ""})
			return err
		}, KindBadRequest, ""},
		{"too many pairs", func() error { return groupOf("az1", make([]lockstep.PairID, maxPairsChanged+1)...) }, KindBadRequest, ""},
		{"get foreign group", func() error { _, err := c.GetGroup(ctx, other, s.fresh); return err }, KindNotFound, ""},
		{"history of a foreign group", func() error { _, err := c.History(ctx, other, s.fresh); return err }, KindNotFound, ""},
		{"update an unknown group", func() error { return upd("x", GroupUpdate{}) }, KindNotFound, ""},
		{"members of an active group", func() error { return upd(s.active, GroupUpdate{Add: []lockstep.PairID{s.alone}}) }, KindConflict, ""},
		{"remove a stranger", func() error { return upd(s.fresh, GroupUpdate{Remove: []lockstep.PairID{s.alone}}) }, KindBadRequest, ""},
		{"add a taken pair", func() error { return upd(s.fresh, GroupUpdate{Add: []lockstep.PairID{s.inOld}}) }, KindBadRequest, ""},
		{"add a pair of the other direction", func() error { return upd(s.fresh, GroupUpdate{Add: []lockstep.PairID{s.backward}}) }, KindBadRequest, ""},
		{"add and remove one pair", func() error {
			return upd(s.fresh, GroupUpdate{Add: []lockstep.PairID{s.inNew}, Remove: []lockstep.PairID{s.inNew}})
		}, KindBadRequest, ""},
		{"update model", func() error { return upd(s.fresh, GroupUpdate{Model: ptr("async")}) }, KindBadRequest, ""},
		{"update name", func() error { return upd(s.fresh, GroupUpdate{Name: long, SetName: true}) }, KindBadRequest, ""},
		{"delete a group with pairs", func() error { return c.DeleteGroup(ctx, caller, s.fresh) }, KindConflict, ""},
		{"delete a failed-over group", func() error { return c.DeleteGroup(ctx, caller, s.old) }, KindConflict, ""},
		{"delete an unknown group", func() error { return c.DeleteGroup(ctx, caller, "x") }, KindNotFound, ""},

		{"unknown action", func() error { return act(s.fresh, "dance") }, KindBadRequest, ""},
		{"action on a foreign group", func() error { return c.Act(ctx, other, s.active, ActionFailover, nil) }, KindNotFound, ""},
		{"sizes for a sync", func() error { return act(s.fresh, ActionSync, Extend{s.inNew, 2}) }, KindBadRequest, ""},
		{"failover, never in sync", func() error { return act(s.fresh, ActionFailover) }, KindConflict, ""},
		{"failover, failed over", func() error { return act(s.old, ActionFailover) }, KindConflict, ""},
		{"failover, secondary gone", down("b1", func() error { return act(s.active, ActionFailover) }), KindConflict, codePeerUnreachable},
		{"reprotect, empty", func() error { return act(s.empty, ActionReprotect) }, KindConflict, ""},
		{"reverse, empty", func() error { return act(s.empty, ActionReverse) }, KindConflict, ""},
		{"sync, secondary gone", down("b1", func() error { return act(s.fresh, ActionSync) }), KindConflict, codePeerUnreachable},
		{"sync, primary gone", down("a1", func() error { return act(s.fresh, ActionSync) }), KindConflict, codePeerUnreachable},
		{"reverse, not active", func() error { return act(s.fresh, ActionReverse) }, KindConflict, ""},
		{"reverse, failed over", func() error { return act(s.old, ActionReverse) }, KindConflict, ""},
		{"reverse, secondary gone", down("b1", func() error { return act(s.active, ActionReverse) }), KindConflict, codePeerUnreachable},
		{"reprotect, available", func() error { return act(s.active, ActionReprotect) }, KindConflict, ""},
		{"reprotect, old AZ away", down("a1", func() error { return act(s.old, ActionReprotect) }), KindConflict, codePeerUnreachable},
		{"stop, primary gone", down("a1", func() error { return act(s.active, ActionStop) }), KindConflict, ""},
		{"extend nothing", func() error { return act(s.fresh, ActionExtend) }, KindBadRequest, ""},
		{"extend a stranger", func() error { return act(s.fresh, ActionExtend, Extend{s.alone, 2}) }, KindBadRequest, ""},
		{"extend twice", func() error { return act(s.fresh, ActionExtend, Extend{s.inNew, 2}, Extend{s.inNew, 3}) }, KindBadRequest, ""},
		{"extend to less", func() error { return act(s.fresh, ActionExtend, Extend{s.inNew, 0}) }, KindBadRequest, codeNoShrink},
		{"extend to overflow", func() error { return act(s.fresh, ActionExtend, Extend{s.inNew, math.MaxInt64}) }, KindBadRequest, codeTooLarge},
		{"extend, a side away", down("b1", func() error { return act(s.fresh, ActionExtend, Extend{s.inNew, 2}) }), KindConflict, codePeerUnreachable},
		{"extend, failed over", func() error { return act(s.old, ActionExtend, Extend{s.inOld, 2}) }, KindConflict, ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var before map[string]string
			call := row.call
			// A row that takes a node away does so in its call: compare all but the presences.
			strip := func(m map[string]string) map[string]string {
				for k := range m {
					if strings.HasPrefix(k, store.PrefixAliveNodes) {
						delete(m, k)
					}
				}
				return m
			}
			before = strip(s.dump())
			err := call()
			after := strip(s.dump())
			s.alive("a1", true)
			s.alive("b1", true)
			refused(t, err, row.kind, row.code)
			if !reflect.DeepEqual(before, after) {
				t.Fatalf("refused with %v, but the store changed", err)
			}
		})
	}
}

// Goal: calls that are documented as no-ops write nothing.
func TestNoOps(t *testing.T) {
	s := newStill(t)
	for name, call := range map[string]func() error{
		"stop, never synchronized": func() error { return s.c.Act(s.ctx, caller, s.fresh, ActionStop, nil) },
		"stop, failed over":        func() error { return s.c.Act(s.ctx, caller, s.old, ActionStop, nil) },
		"sync, empty":              func() error { return s.c.Act(s.ctx, caller, s.empty, ActionSync, nil) },
		"sync, active":             func() error { return s.c.Act(s.ctx, caller, s.active, ActionSync, nil) },
		"extend to what it has":    func() error { return s.c.Act(s.ctx, caller, s.fresh, ActionExtend, []Extend{{s.inNew, 1}}) },
		"release a plain disk":     func() error { return s.c.ReleaseVolume(s.ctx, caller, s.a) },
	} {
		before := s.dump()
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(before, s.dump()) {
			t.Errorf("%s: the store changed", name)
		}
	}
}

// Goal: without a store every call says so, and nothing panics.
func TestStoreDown(t *testing.T) {
	s := newStill(t)
	s.mem.SetDown(true)
	for name, call := range map[string]func() error{
		"list volumes": func() error { _, err := s.c.ListVolumes(s.ctx, caller); return err },
		"list pairs":   func() error { _, err := s.c.ListPairs(s.ctx, caller); return err },
		"list groups":  func() error { _, err := s.c.ListGroups(s.ctx, caller); return err },
		"nodes":        func() error { _, err := s.c.Nodes(s.ctx); return err },
		"zones":        func() error { _, err := s.c.Zones(s.ctx); return err },
		"create":       func() error { _, err := s.c.CreateVolume(s.ctx, caller, VolumeCreate{SizeGiB: 1}); return err },
		"failover":     func() error { return s.c.Act(s.ctx, caller, s.active, ActionFailover, nil) },
		"delete group": func() error { return s.c.DeleteGroup(s.ctx, caller, s.empty) },
	} {
		t.Run(name, func(t *testing.T) { refused(t, call(), KindUnavailable, "") })
	}
}

func TestAsRefusal(t *testing.T) {
	for _, row := range []struct {
		err  error
		kind Kind
	}{
		{conflict("1", "x"), KindConflict},
		{fmt.Errorf("wrapped: %w", notFound("", "x")), KindNotFound},
		{&protocol.RefusedError{Want: "sync", Have: "x"}, KindConflict},
		{fmt.Errorf("x: %w", lockstep.ErrConflict), KindConflict},
		{fmt.Errorf("x: %w", lockstep.ErrStoreUnavailable), KindUnavailable},
		{context.DeadlineExceeded, KindUnavailable},
		{errors.New("x"), KindInternal},
	} {
		var e *Error
		if !errors.As(asRefusal(row.err), &e) || e.Kind != row.kind {
			t.Errorf("%v became %v", row.err, e)
		}
	}
	// What lies below is for the log: addresses of the store are nobody's business outside.
	below := fmt.Errorf("dial 10.0.0.1:2379: %w", lockstep.ErrStoreUnavailable)
	if e := asRefusal(below); strings.Contains(e.Error(), "10.0.0.1") || !errors.Is(e, below) {
		t.Errorf("store away: %v", e)
	}
	if asRefusal(nil) != nil {
		t.Error("no error became one")
	}
}

// Goal: where servers are not known, an attached one counts as running, for a switchover and a
// reprotect as for a new pair: each is refused with its id until it is detached. The disks that are
// to be used then may be attached.
func TestAttachedCountsAsRunning(t *testing.T) {
	s := newStill(t)
	for _, row := range []struct {
		group    lockstep.GroupID
		action   Action
		az, free lockstep.AZ
	}{
		{s.active, ActionReverse, "az1", "az2"},
		{s.old, ActionReprotect, "az1", "az2"},
		{s.old, ActionSync, "az1", "az2"},
	} {
		record := s.record(row.group)
		attach := func(az lockstep.AZ, list ...store.Attachment) {
			s.edit(record.Members[0].In(az).Volume, func(v *store.Volume) { v.Attachments = list })
		}
		attach(row.free, store.Attachment{Server: "srv-there"})
		for _, at := range []store.Attachment{{Server: "srv-1"}, {Host: "host-1"}} {
			attach(row.az, at)
			before := s.dump()
			err := s.c.Act(s.ctx, caller, row.group, row.action, nil)
			refused(t, err, KindConflict, "")
			if !strings.Contains(err.Error(), at.Server+at.Host) {
				t.Errorf("%s: refused with %q, which does not name the server", row.action, err)
			}
			if !reflect.DeepEqual(before, s.dump()) {
				t.Errorf("%s: the store changed", row.action)
			}
		}
		attach(row.az)
		s.act(s.c, row.group, row.action)
		attach(row.free)
		s.put(store.KeyRecord(row.group), record)
		if _, err := store.Update(s.ctx, s.st, store.KeyGroup(row.group), func(g *store.Group) error { g.Op = ""; return nil }); err != nil {
			t.Fatal(err)
		}
	}
}

type servers map[string]bool

func (s servers) Running(_ context.Context, id string) (bool, error) { return s[id], nil }

// Goal: where servers are known, only running ones stand in the way.
func TestServersKnown(t *testing.T) {
	s := newStill(t)
	cfg := s.testConfig()
	known := servers{"srv-1": true}
	cfg.Servers = known
	c := New(cfg)
	req := PairCreate{Volumes: []lockstep.VolumeID{s.a, s.attached}, Priority: "az1", Model: modelHypermetro}
	_, err := c.CreatePair(s.ctx, caller, req)
	refused(t, err, KindBadRequest, codeDRAttached)
	prod := s.record(s.active).Members[0].In("az1").Volume
	s.edit(prod, func(v *store.Volume) { v.Attachments = []store.Attachment{{Server: "srv-1"}} })
	refused(t, c.Act(s.ctx, caller, s.active, ActionReverse, nil), KindConflict, "")
	known["srv-1"] = false
	must[PairView](t)(c.CreatePair(s.ctx, caller, req))
	s.act(c, s.active, ActionReverse)
}

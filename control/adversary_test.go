package control

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: a pair does not leave a group that was failed over by force before the side that lost has kept
// what it alone had, or a user gave that up: in another group it would be overwritten, and nobody asked. (R90)
func TestPairStaysUntilItsDivergenceImageIsMade(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id := s.pausedGroup(c, 1)
	pair := s.record(id).Members[0].Pair
	s.dirtyNow(id, 1<<16)
	s.kill("a1")
	admin := caller
	admin.Admin = true
	if err := c.ForceFailover(s.ctx, caller, id, s.preview(c, id).Token); err != nil {
		t.Fatal(err)
	}
	if err := c.Declare(s.ctx, admin, id, StateNodeOff, "a1", "burnt"); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	_, err := c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: []lockstep.PairID{pair}})
	refused(t, err, KindConflict, "")
	if r := s.record(id); r.Forced == nil || len(r.Members) != 1 {
		t.Fatalf("refused, and the record is %s with %d members", r.Describe(), len(r.Members))
	}
	if err := c.DeleteDivergenceImage(s.ctx, caller, id, s.record(id).Forced.Epoch); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: []lockstep.PairID{pair}}); err != nil {
		t.Fatalf("given up, and still: %v", err)
	}
}

// saved gives what a node reports for a recovery when it has persisted r.
func savedReport(t *testing.T, node lockstep.NodeID, r protocol.Record) store.GroupObserved {
	t.Helper()
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	role := protocol.RoleSecondary
	if slices.Contains(r.PrimaryNodes(), node) {
		role = protocol.RolePrimary
	}
	return store.GroupObserved{
		Group: r.Group, Node: node, Epoch: r.Epoch, Role: string(role), Saved: raw, BootID: r.BootIDs[node], Instance: r.Instances[node],
	}
}

// Goal: after a restore the store has gone on to make epochs of its own. What nodes have persisted is
// what happened: a recovery takes that, also where the store's number is the same or higher, and does
// not call in sync what was not. (R91)
func TestRecoveryBelievesWhatNodesPersisted(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	admin := caller
	admin.Admin = true
	backup := s.record(id)
	s.stopNodes()
	next := func(r protocol.Record, err error) protocol.Record {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	// Both nodes saw a trip and the synchronization after it, which did not end.
	copying := next(backup.Trip(backup.Epoch, protocol.CauseLink, "cut"))
	copying.Epoch, copying.State, copying.InSync = copying.Epoch+1, protocol.StateNormal, false
	copying = next(copying.Sync())
	// Both nodes saw a failover, and its new primary serves.
	over := next(backup.Failover())
	over.Epoch, over.State, over.InSync, over.FailedOver = over.Epoch+1, protocol.StateNormal, false, true
	over.Primary, over.Secondary = over.Secondary, over.Primary
	// The restored store's own epochs: the policy was changed a few times.
	fork := func(n int) protocol.Record {
		r := backup
		for i := range n {
			r = next(r.SetStrict(i%2 == 0))
		}
		return r
	}
	paused := fork(1)
	paused.Epoch, paused.InSync, paused.Intent = paused.Epoch+5, false, protocol.IntentPaused
	for _, row := range []struct {
		name    string
		store   protocol.Record
		nodes   protocol.Record
		inSync  bool
		primary lockstep.AZ
	}{
		{"the same number, in sync", fork(3), copying, false, "az1"},
		{"a higher number, in sync", fork(5), copying, false, "az1"},
		{"the same number, the other primary", fork(2), over, false, "az2"},
		{"a higher number, the other primary", fork(4), over, false, "az2"},
		{"a higher number, not in sync", paused, over, false, "az2"},
		{"the very same", fork(2), fork(2), true, "az1"},
	} {
		s.put(store.KeyRecord(id), row.store)
		reports := map[lockstep.NodeID]store.GroupObserved{
			"a1": savedReport(t, "a1", row.nodes), "b1": savedReport(t, "b1", row.nodes),
		}
		if row.nodes.Epoch > row.store.Epoch {
			t.Fatalf("%s: %d, %d", row.name, row.nodes.Epoch, row.store.Epoch)
		}
		got, err := c.recoverGroup(s.ctx, admin, id, reports, "test")
		if err != nil {
			t.Fatal(err)
		}
		r := s.record(id)
		if r.InSync != row.inSync || got.InSync != row.inSync || r.Primary != row.primary || r.Epoch <= row.store.Epoch || r.State != protocol.StateNormal {
			t.Errorf("%s: %s, primary %s", row.name, r.Describe(), r.Primary)
		}
		if row.inSync == (len(got.Unconfirmed) > 0) {
			t.Errorf("%s: unconfirmed %q", row.name, got.Unconfirmed)
		}
	}
	// A node that is off by now had shown a newer epoch before: the group is lifted above that, too.
	s.put(store.KeyRecord(id), backup)
	s.put(store.KeyObservedGroup(id, "b1"), store.GroupObserved{Group: id, Node: "b1", Epoch: backup.Epoch + 20})
	if _, err := c.recoverGroup(s.ctx, admin, id, map[lockstep.NodeID]store.GroupObserved{"a1": savedReport(t, "a1", backup)}, "test"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetStrict(s.ctx, caller, id, true); err != nil {
		t.Fatalf("after the recovery: %v", err)
	}
	// A failover that ended after the nodes had reported is no such thing.
	reports := map[lockstep.NodeID]store.GroupObserved{"a1": savedReport(t, "a1", backup), "b1": savedReport(t, "b1", backup)}
	s.put(store.KeyRecord(id), over)
	went := protocol.Answer{Group: id, Node: "b1", Epoch: over.Epoch - 1, Step: protocol.StepReady, Instance: backup.Instances["b1"], Start: 7}
	s.put(store.KeyAnswer(id, "b1"), went)
	o := reports["b1"]
	o.Start = went.Start
	reports["b1"] = o
	_, err := c.recoverGroup(s.ctx, admin, id, reports, "test")
	refused(t, asRefusal(err), KindConflict, codeBusy)
	if is := s.record(id); is.Epoch != over.Epoch || is.Primary != "az2" {
		t.Fatalf("%s, primary %s", is.Describe(), is.Primary)
	}
	// An older copy of a directory has persisted less than there was: it does not count against the store.
	s.put(store.KeyRecord(id), fork(3))
	before := s.record(id)
	o = savedReport(t, "b1", copying)
	o.Instance = "an older copy"
	if got, err := c.recoverGroup(s.ctx, admin, id, map[lockstep.NodeID]store.GroupObserved{"b1": o}, "test"); err != nil || got.InSync {
		t.Fatalf("%+v, %v", got, err)
	}
	if is := s.record(id); is.InSyncEpoch != before.InSyncEpoch {
		t.Fatalf("the last in-sync commit was at %d, and is at %d", before.InSyncEpoch, is.InSyncEpoch)
	}
	s.put(store.KeyRecord(id), over)
	// What an earlier life had answered, of a directory that is gone, is no reason to wait.
	o = savedReport(t, "b1", protocol.Record{Group: id})
	o.Instance, o.Start = "another", went.Start+1
	reports["b1"] = o
	if _, err := c.recoverGroup(s.ctx, admin, id, reports, "test"); err != nil {
		t.Fatal(err)
	}
}

// Goal: a store that was restored from an older copy decides nothing about a group of which a node has
// persisted a newer epoch: a failover by it would lose what was acknowledged since. (R92)
func TestOlderStoreDecidesNothing(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	admin := caller
	admin.Admin = true
	s.silence("a1")
	s.silence("b1")
	was := s.record(id)
	o, _, err := store.GetT[store.GroupObserved](s.ctx, s.st, store.KeyObservedGroup(id, "a1"))
	if err != nil {
		t.Fatal(err)
	}
	o.Epoch = was.Epoch + 2
	s.put(store.KeyObservedGroup(id, "a1"), o)
	for name, call := range map[string]func() error{
		"failover": func() error { return c.Act(s.ctx, caller, id, ActionFailover, nil) },
		"sync":     func() error { return c.Act(s.ctx, caller, id, ActionSync, nil) },
		"reverse":  func() error { return c.Act(s.ctx, caller, id, ActionReverse, nil) },
		"stop":     func() error { return c.Act(s.ctx, caller, id, ActionStop, nil) },
		"strict":   func() error { return c.SetStrict(s.ctx, caller, id, true) },
		"verify": func() error {
			_, err := c.Verify(s.ctx, caller, id, 0)
			return err
		},
		"continue": func() error { return c.Declare(s.ctx, admin, id, StateContinue, "", "so") },
	} {
		err := call()
		refused(t, err, KindConflict, "")
		if !strings.Contains(err.Error(), "store recover") {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, err := c.PreviewFailover(s.ctx, caller, id)
	if err != nil || p.Allowed || !strings.Contains(strings.Join(p.Reasons, ";"), "store recover") {
		t.Errorf("preview: %v, %v, %v", p.Allowed, p.Reasons, err)
	}
	if g := must[GroupView](t)(c.GetGroup(s.ctx, caller, id)); g.FaultLevel != FaultLink || g.ReplicationStatus != ReplicationError || g.Progress != nil || !strings.Contains(g.Reason, "store recover") {
		t.Errorf("shown as %s/%s/%s: %s", g.Status, g.ReplicationStatus, g.FaultLevel, g.Reason)
	}
	if is := s.record(id); is.Epoch != was.Epoch {
		t.Fatalf("the record went on to %s", is.Describe())
	}
}

// Goal: a secondary whose host restarts after the preview, even after the failover was asked for, may have
// lost what it had not flushed. Nobody was told, so the forced failover ends as it began; the next preview
// says it. (R95)
func TestSecondaryThatRestartsAfterThePreview(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id := s.pausedGroup(c, 1)
	p := s.preview(c, id)
	s.silence("b1")
	if err := c.ForceFailover(s.ctx, caller, id, p.Token); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusFailovering, ReplicationStopped)
	s.stop("b1")
	s.set(func() { s.boots["b1"], s.mute["b1"] = "another", false })
	s.start("b1")
	g := s.awaitGroup(c, id, StatusErrorFailovered, ReplicationStopped)
	if r := s.record(id); r.Primary != "az1" || r.FailedOver || r.Forced != nil || !strings.Contains(g.Reason, "since the preview") {
		t.Fatalf("%s: %q", r.Describe(), g.Reason)
	}
	p = s.preview(c, id)
	if !slices.Equal(p.Receipt.FlushOnly, []lockstep.NodeID{"b1"}) {
		t.Fatalf("%+v", p.Receipt)
	}
	if err := c.ForceFailover(s.ctx, caller, id, p.Token); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
}

// Goal: a pair that had left its group when the store was restored from a copy in which it had not can
// still be taken out. (R97)
func TestPairThatTheRecordDoesNotHaveCanLeave(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, pairs := s.group(c, 2)
	s.stopNodes()
	r := s.record(id)
	r.Epoch++
	r.Members = r.Members[:1]
	s.put(store.KeyRecord(id), r)
	gone := pairs[0]
	if r.Members[0].Pair == gone {
		gone = pairs[1]
	}
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: []lockstep.PairID{gone}}))
	if p := must[PairView](t)(c.GetPair(s.ctx, caller, gone)); p.Group != "" || p.Image {
		t.Fatalf("%+v", p.Pair)
	}
	if r := s.record(id); len(r.Members) != 1 || r.Members[0].Pair == gone {
		t.Fatalf("members %v", r.Members)
	}
}

// Goal: disks do not leave a group in the moments in which its new primary still waits for the leases of
// the old one: outside they would open at once, while the old one may still answer reads. (R98)
func TestDisksStayUntilTheNewPrimaryHasTakenOver(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, pairs := s.syncedGroup(c, 2)
	s.silence("a1")
	s.act(c, id, ActionFailover)
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	eventually(t, "b1 has taken over", func() bool {
		a, _, err := store.GetT[protocol.Answer](s.ctx, s.st, store.KeyAnswer(id, "b1"))
		return err == nil && a.Epoch == s.record(id).Epoch
	})
	if s.record(id).Fenced {
		t.Fatal("the old primary confirmed")
	}
	s.silence("b1")
	a, _, err := store.GetT[protocol.Answer](s.ctx, s.st, store.KeyAnswer(id, "b1"))
	if err != nil {
		t.Fatal(err)
	}
	waits := a
	waits.Epoch, waits.Step = a.Epoch-1, protocol.StepReady // as long as it waits
	s.put(store.KeyAnswer(id, "b1"), waits)
	remove := GroupUpdate{Remove: pairs[:1]}
	_, err = c.UpdateGroup(s.ctx, caller, id, remove)
	refused(t, err, KindConflict, codeBusy)
	// One that comes a moment too early is not refused.
	soon := time.AfterFunc(300*time.Millisecond, func() { s.put(store.KeyAnswer(id, "b1"), a) })
	defer soon.Stop()
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, remove))
	// One that never can is no reason for ever.
	later := New(func() Config {
		cfg := s.testConfig()
		cfg.Now = func() time.Time { return time.Now().Add(takeOverWithin + time.Minute) }
		return cfg
	}())
	eventually(t, "the other pair leaves", func() bool {
		_, err := later.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: pairs[1:]})
		return err == nil
	})
}

// Goal: an extend whose place a failover took is undone for pairs that have left the group meanwhile,
// and takes nothing from a later extend; a pair with two sizes joins no group. (R99)
func TestUndoneExtendLeavesOneSize(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, stop := s.controller()
	id, pairs := s.syncedGroup(c, 2)
	stop()
	g, _, err := store.GetT[store.Group](s.ctx, s.st, store.KeyGroup(id))
	if err != nil {
		t.Fatal(err)
	}
	r := s.record(id)
	args := map[string]string{}
	for _, m := range r.Members {
		args[argPair+string(m.Pair)] = fmt.Sprintf("%d %d", lockstep.GiB, 2*lockstep.GiB)
		v, _, err := store.GetT[store.Volume](s.ctx, s.st, store.KeyVolume(m.In("az2").Volume))
		if err != nil {
			t.Fatal(err)
		}
		v.SizeBytes = 2 * lockstep.GiB // the secondary was asked to grow
		s.put(store.KeyVolume(v.ID), v)
	}
	old := store.Operation{
		ID: "old", Kind: opExtend, Step: stepWaitSecondary, Group: id, Project: g.Project, Args: args,
		StartedAt: time.Now(), Deadline: time.Now().Add(time.Hour),
	}
	s.put(store.KeyOp("old"), old)
	// A failover came, went, and one pair left; the other one is extended anew.
	left := pairs[0]
	p, _, err := store.GetT[store.Pair](s.ctx, s.st, store.KeyPair(left))
	if err != nil {
		t.Fatal(err)
	}
	p.Group = ""
	s.put(store.KeyPair(left), p)
	_, _, err = c.newTx(s.ctx).joinablePair(caller, left)
	refused(t, err, KindConflict, codeSizesDiffer)
	r.Members = slices.DeleteFunc(r.Members, func(m protocol.Member) bool { return m.Pair == left })
	stays := r.Members[0]
	r.Members[0].ExtendBytes = 2 * lockstep.GiB
	s.put(store.KeyRecord(id), r)
	anew := old
	anew.ID, anew.Args = "zz", map[string]string{argPair + string(stays.Pair): args[argPair+string(stays.Pair)]}
	s.put(store.KeyOp("zz"), anew)
	g.Pairs, g.Op = []lockstep.PairID{stays.Pair}, "zz"
	s.put(store.KeyGroup(id), g)

	s.controller()
	size := func(v lockstep.VolumeID) int64 {
		vol, _, err := store.GetT[store.Volume](s.ctx, s.st, store.KeyVolume(v))
		if err != nil {
			t.Fatal(err)
		}
		return vol.SizeBytes
	}
	eventually(t, "both are over", func() bool {
		kvs, _, err := s.st.List(s.ctx, store.PrefixOps)
		return err == nil && len(kvs) == 0
	})
	for _, v := range p.Volumes {
		if n := size(v); n != lockstep.GiB {
			t.Errorf("volume %s of the pair that left wants %d bytes", v, n)
		}
	}
	for _, rep := range stays.Replicas {
		if n := size(rep.Volume); n != 2*lockstep.GiB {
			t.Errorf("volume %s of the pair that is extended anew wants %d bytes", rep.Volume, n)
		}
	}
	if m := s.record(id).Members[0]; m.SizeBytes != 2*lockstep.GiB || m.ExtendBytes != 0 {
		t.Errorf("announced %d, extending to %d", m.SizeBytes, m.ExtendBytes)
	}
}

// Goal: a trip that does not end, and holds requests, is shown as a fault of the production side, also
// where every node is alive and connected: a disk that hangs, say. (R100)
func TestATripThatHoldsIsShown(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	r, err := s.record(id).Trip(s.record(id).Epoch, protocol.CauseSecondaryDisk, "I/O error")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	held := func(since time.Duration) GroupStatus {
		o := store.GroupObserved{Group: id, Node: "a1", Epoch: r.Epoch, Peers: map[lockstep.NodeID]store.PeerObserved{"b1": {Connected: true}}, Why: "tripping"}
		return DeriveGroup(store.Group{ID: id}, r, map[lockstep.NodeID]Sight{"a1": {GroupObserved: o, HeldSince: now.Add(-since)}},
			map[lockstep.NodeID]bool{"a1": true, "b1": true}, now)
	}
	if st := held(time.Second); st.FaultLevel != FaultNone {
		t.Errorf("a trip as any other: %+v", st)
	}
	if st := held(time.Minute); st.ReplicationStatus != ReplicationActive || st.FaultLevel != FaultProduction || !strings.Contains(st.Reason, "holds requests") {
		t.Errorf("held for a minute: %+v", st)
	}
}

// Goal: a preview says of an ordinary failover what the failover does: it is taken where the record says
// in sync, also with a secondary that is said to have failed, and then taken back. (R102)
func TestPreviewAgreesWithTheFailover(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	v := s.record(id).Members[0].In("az2").Volume
	s.set(func() { s.fail[v] = "I/O error" })
	var p FailoverPreview
	eventually(t, "it is reported", func() bool {
		p = must[FailoverPreview](t)(c.PreviewFailover(s.ctx, caller, id))
		return strings.Contains(strings.Join(append(p.Reasons, p.Warnings...), ";"), "I/O error")
	})
	err := c.Act(s.ctx, caller, id, ActionFailover, nil)
	if p.Allowed != (err == nil) {
		t.Fatalf("preview: allowed %v (%v, %v); the failover: %v", p.Allowed, p.Reasons, p.Warnings, err)
	}
	s.awaitGroup(c, id, StatusErrorFailovered, ReplicationActive)
}

package protocol

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
)

// bench drives one Core by hand.
type bench struct {
	t   *testing.T
	c   *Core
	now int64
}

func newBench(t *testing.T, node lockstep.NodeID, az lockstep.AZ, boot lockstep.BootID, saved Saved) *bench {
	t.Helper()
	cfg := Config{Node: node, AZ: az, BootID: boot, Instance: "i" + string(node), Start: 1, TripAfterMs: 3000}
	return &bench{t: t, c: NewCore(cfg, saved, 0)}
}

func find[A Action](acts []Action) (A, bool) {
	for _, a := range acts {
		if x, ok := a.(A); ok {
			return x, true
		}
	}
	var none A
	return none, false
}

func must[A Action](b *bench, acts []Action) A {
	b.t.Helper()
	a, ok := find[A](acts)
	if !ok {
		b.t.Fatalf("want a %T in %#v", a, acts)
	}
	return a
}

func mustNot[A Action](b *bench, acts []Action) {
	b.t.Helper()
	if a, ok := find[A](acts); ok {
		b.t.Fatalf("unexpected %#v", a)
	}
}

// does carries a batch out and returns what follows; the steps it saves are reported as durable.
func (b *bench) does(batch Batch) []Action {
	var acts []Action
	for _, s := range batch.Steps {
		if s, ok := s.(Save); ok {
			acts = append(acts, b.c.Step(SavedNow(s))...)
		}
	}
	return append(acts, b.c.Step(BatchDone{Token: batch.Token})...)
}

func (b *bench) reads(r Record) []Action {
	return b.c.Step(RecordRead{Record: r, FromStore: true})
}

func (b *bench) tick(ms int64) []Action {
	b.now += ms
	return b.c.Step(Tick{NowMs: b.now})
}

// kinds lists a batch's steps by name, which is their order of durability.
func kinds(batch Batch) string {
	s := ""
	for _, d := range batch.Steps {
		switch d.(type) {
		case Quiesce:
			s += "quiesce "
		case Fence:
			s += "fence "
		case Flush:
			s += "flush "
		case Save:
			s += "save "
		case LeaseWait:
			s += "lease-wait "
		case MarkAllDirty:
			s += "all-dirty "
		case DirtyFromIntent:
			s += "dirty-from-intent "
		case ClearDirty:
			s += "clear-dirty "
		case ClearMaps:
			s += "clear-maps "
		case SetPoint:
			s += "set-point "
		case DropPoint:
			s += "drop-point "
		case RollBack:
			s += "roll-back "
		case KeepImage:
			s += "keep-image "
		}
	}
	return s
}

func savedAs(role Role, r Record, boot lockstep.BootID) Saved {
	return Saved{Format: SavedFormat, Record: r, Role: role, BootID: boot}
}

// before is a record of epoch 10 that may have come before next.
func before(next Record) Record {
	switch {
	case next.InSyncEpoch == 0:
		return rec(StateNormal, false, neverSynced)
	case next.FailedOver && next.Forced != nil:
		return rec(StateFailovering, false, underWay)
	case next.FailedOver:
		return rec(StateFailovering, true)
	}
	return rec(StateNormal, next.InSync || next.State == StateCopying)
}

func up(peer lockstep.NodeID, boot lockstep.BootID) PeerUp {
	return PeerUp{Peer: peer, Session: lockstep.Session{Start: 1, Conn: 1}, BootID: boot, Instance: "i" + string(peer)}
}

// TestBatchOrder: what must be durable before an epoch is persisted, in each role and state.
func TestBatchOrder(t *testing.T) {
	inSync := rec(StateNormal, true)
	at := func(r Record) Record { r.Epoch = 11; return r }
	for _, c := range []struct {
		name string
		node lockstep.NodeID
		az   lockstep.AZ
		role Role
		next Record
		want string
	}{
		{"tripping flushes before it persists [F3]", p1, "az1", RolePrimary, at(rec(StateTripping, true)), "quiesce flush save "},
		{"out of sync, properly left", p1, "az1", RolePrimary, at(rec(StateNormal, false, func(r *Record) { r.Fenced = true })), "flush dirty-from-intent save "},
		{"copying makes intent dirty", p1, "az1", RolePrimary, at(rec(StateCopying, false, func(r *Record) { r.Fenced = true })), "flush dirty-from-intent save "},
		{"first copying dirties all", p1, "az1", RolePrimary, at(rec(StateCopying, false, neverSynced, func(r *Record) { r.Fenced = true })), "flush all-dirty dirty-from-intent save "},
		{"in sync erases its mark before it serves [F4]", p1, "az1", RolePrimary, at(inSync), "save clear-dirty drop-point "},
		{"old primary at failovering", p1, "az1", RolePrimary, at(rec(StateFailovering, true)), "quiesce save "},
		{"reversing drains before it persists [F12]", p1, "az1", RolePrimary, at(rec(StateReversing, true)), "quiesce save "},
		{"demotion waits for submitted I/O", p1, "az1", RolePrimary, at(rec(StateNormal, false, failedOver)), "quiesce fence save "},
		{"secondary fences, persists, flushes, then is ready [F1]", s1, "az2", RoleSecondary, at(rec(StateFailovering, true)), "fence save flush drop-point save "},
		{"new primary waits for leases", s1, "az2", RoleSecondary, at(rec(StateNormal, false, failedOver)), "flush dirty-from-intent save lease-wait "},
		{"new primary waits for leases, copying at once", s1, "az2", RoleSecondary, at(rec(StateCopying, false, failedOver)), "flush dirty-from-intent save lease-wait "},
		{"new primary, all old ones confirmed", s1, "az2", RoleSecondary, at(rec(StateNormal, false, failedOver, func(r *Record) { r.Fenced = true })), "flush dirty-from-intent save "},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.node, c.az, lockstep.BootID("b"+c.node), savedAs(c.role, before(c.next), lockstep.BootID("b"+c.node)))
			batch := must[Batch](b, b.reads(c.next))
			if have := kinds(batch); have != c.want {
				t.Errorf("have %q, want %q", have, c.want)
			}
		})
	}
}

// Goal: a volume that joins as the truth of a new pair goes back first to the recovery point that an
// earlier pair left, once, whatever the first epoch is that its node sees. (R96)
func TestJoiningVolumeGoesBackToItsPoint(t *testing.T) {
	for state, want := range map[State]string{
		StateNormal: "flush roll-back dirty-from-intent save ", StateCopying: "flush roll-back all-dirty dirty-from-intent save ",
	} {
		r := rec(state, false, neverSynced, func(r *Record) { r.Fenced = true })
		b := newBench(t, p1, "az1", "bp1", Saved{})
		batch := must[Batch](b, b.reads(r))
		if have := kinds(batch); have != want {
			t.Errorf("have %q, want %q", have, want)
		}
		b.does(batch)
		r.Epoch++
		if have := kinds(must[Batch](b, b.reads(r))); strings.Contains(have, "roll-back") {
			t.Errorf("again: %q", have)
		}
	}
	r := rec(StateNormal, false, func(r *Record) { r.Members[0].InSyncEpoch = 0 })
	r.Epoch = 11
	was := rec(StateNormal, false)
	was.Members = was.Members[1:]
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, was, "bp1"))
	back := must[Batch](b, b.reads(r)).Steps[1].(RollBack) //nolint:forcetypeassert // a panic fails it as well
	if back.InSyncEpoch != 0 || !slices.Equal(back.Pairs, []lockstep.PairID{"a"}) {
		t.Errorf("%+v", back)
	}
}

func TestNothingIsAnsweredBeforeItsBatchIsDone(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	trip := rec(StateTripping, true)
	trip.Epoch = 11
	acts := b.reads(trip)
	mustNot[Reply](b, acts)
	if m := must[SetMode](b, acts); m.Mode != ModeHeld {
		t.Errorf("mode %s", m.Mode)
	}
	a := must[Reply](b, b.does(must[Batch](b, acts))).Answer
	if a.Step != StepTripping || a.Epoch != 11 || !a.Healthy || b.c.Saved().Mark != 11 {
		t.Errorf("%+v, saved %+v", a, b.c.Saved())
	}
}

func TestFailedFlushIsUnhealthy(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	trip := rec(StateTripping, true)
	trip.Epoch = 11
	batch := must[Batch](b, b.reads(trip))
	b.c.Step(VolumeFailed{Volume: "a-p", Reason: "I/O error"})
	if a := must[Reply](b, b.c.Step(BatchDone{Token: batch.Token, Err: errors.New("flush")})).Answer; a.Healthy || a.Step != StepTripping {
		t.Errorf("%+v", a)
	}
}

// TestOutdatedBatchAdoptsNothing: what a batch made durable says nothing about a record that came
// while it ran.
func TestOutdatedBatchAdoptsNothing(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	batch := must[Batch](b, b.tick(100)) // in sync, at rest: no store is needed
	out := rec(StateNormal, false)
	out.Epoch = 12
	b.c.Step(RecordRead{Record: out}) // from a peer only
	for _, a := range b.does(batch) {
		if m, ok := a.(SetMode); ok && m.Mode == ModeOneSided {
			t.Error("one-sided without a read of the store after the start")
		}
		if r, ok := a.(Reply); ok {
			t.Errorf("answered %+v", r.Answer)
		}
	}
}

func TestOneSidedNeedsALinearizableReadAfterStart(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, false), "bp1"))
	mustNot[Batch](b, b.tick(100))
	acts := b.does(must[Batch](b, b.reads(rec(StateNormal, false))))
	if m := must[SetMode](b, acts); m.Mode != ModeOneSided {
		t.Errorf("mode %s", m.Mode)
	}
}

// Goal: after a restart in sync a volume is served, two-sided, only once its secondary has said
// hello and has the epoch; what may differ is held back until the repair is done, also over a
// reconnect [F9].
func TestTwoSidedOnlyAfterHelloAndAnnouncementRepairedWhileItServes(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	mustNot[SetMode](b, b.does(must[Batch](b, b.reads(rec(StateNormal, true)))))
	serves := func(start uint64, unrepaired bool) []Action {
		t.Helper()
		hello := up(s1, "bs1")
		hello.Session.Start = start
		acts := b.c.Step(hello)
		mustNot[SetMode](b, acts)
		ann := must[Announce](b, acts)
		acts = b.c.Step(Announced{Peer: s1, Session: ann.Session, Epoch: 10, OK: true})
		if m := must[SetMode](b, acts); m.Mode != ModeTwoSided || m.Epoch != 10 || m.Session != ann.Session || m.Unrepaired != unrepaired {
			t.Errorf("%+v", m)
		}
		return acts
	}
	job := must[PeerJob](b, serves(1, true))
	if job.Job != JobRepair {
		t.Errorf("job %s", job.Job)
	}
	b.c.Step(PeerDown{Peer: s1, Session: job.Session})
	b.c.Step(JobDone{Token: job.Token, Peer: s1, Session: job.Session}) // too late: it does not count
	job = must[PeerJob](b, serves(2, true))
	mustNot[SetMode](b, b.c.Step(JobDone{Token: job.Token, Peer: s1, Session: job.Session}))
	b.c.Step(PeerDown{Peer: s1, Session: job.Session})
	mustNot[PeerJob](b, serves(3, false))
}

// Goal: a node that hears of the trip only when it is over begins nothing two-sided any more before its
// intent becomes dirty: what is written two-sided has no dirty bit.
func TestTripHeardOfLateHoldsFirst(t *testing.T) {
	for _, state := range []State{StateNormal, StateCopying} {
		b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
		b.does(must[Batch](b, b.reads(rec(StateNormal, true))))
		ann := must[Announce](b, b.c.Step(up(s1, "bs1")))
		must[SetMode](b, b.c.Step(Announced{Peer: s1, Session: ann.Session, Epoch: 10, OK: true}))
		out := rec(state, false)
		out.Epoch = 12
		acts := b.reads(out)
		isBatch := func(a Action) bool { _, ok := a.(Batch); return ok }
		isHold := func(a Action) bool { m, ok := a.(SetMode); return ok && m.Mode == ModeHeld }
		if hold, batch := slices.IndexFunc(acts, isHold), slices.IndexFunc(acts, isBatch); hold < 0 || batch < hold {
			t.Errorf("%s: hold %d, batch %d", state, hold, batch)
		}
	}
}

func TestUnrecordedSecondaryTrips(t *testing.T) {
	for name, ev := range map[string]PeerUp{"boot": up(s1, "other"), "directory": {Peer: s1, Session: lockstep.Session{Start: 1}, BootID: "bs1", Instance: "copy"}} {
		b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
		b.does(must[Batch](b, b.reads(rec(StateNormal, true))))
		acts := b.c.Step(ev)
		mustNot[Announce](b, acts)
		if p := must[Proposal](b, acts); p.Kind != ProposeTrip || p.Cause != CauseSecondaryBoot || p.At != 10 {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestSilenceTrips(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	b.does(must[Batch](b, b.reads(rec(StateNormal, true))))
	mustNot[Proposal](b, b.tick(2900))
	if p := must[Proposal](b, b.tick(200)); p.Kind != ProposeTrip || p.Cause != CauseLink {
		t.Errorf("%+v", p)
	}
	mustNot[Proposal](b, b.tick(500)) // paced
}

func TestRebootedPrimaryTakesBackFirst(t *testing.T) { // [F2]
	b := newBench(t, p1, "az1", "reborn", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	acts := b.reads(rec(StateNormal, true))
	mustNot[Batch](b, acts)
	job := must[PeerJob](b, b.c.Step(up(s1, "bs1")))
	if job.Job != JobTakeBack {
		t.Fatalf("job %s", job.Job)
	}
	batch := must[Batch](b, b.c.Step(JobDone{Token: job.Token, Peer: s1, Session: job.Session}))
	if kinds(batch) != "flush " {
		t.Errorf("batch %q", kinds(batch))
	}
	if p := must[Proposal](b, b.c.Step(BatchDone{Token: batch.Token})); p.Kind != ProposeRenewBoot || p.F5 {
		t.Errorf("%+v", p)
	}
}

func TestBothRebootedKeepsItsOwnImage(t *testing.T) { // [F5]
	b := newBench(t, p1, "az1", "reborn", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	b.reads(rec(StateNormal, true))
	acts := b.c.Step(up(s1, "reborn too"))
	mustNot[PeerJob](b, acts)
	if p := must[Proposal](b, b.c.Step(BatchDone{Token: must[Batch](b, acts).Token})); p.Kind != ProposeRenewBoot || !p.F5 {
		t.Errorf("%+v", p)
	}
}

// An empty or restored directory is no image to keep, and a rebooted secondary none to take back.
func TestStrangeDirectoryAndRebootedSecondaryWait(t *testing.T) {
	b := newBench(t, p1, "az1", "reborn", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	r := rec(StateNormal, true)
	r.Instances = map[lockstep.NodeID]string{p1: "another"}
	b.reads(r)
	acts := b.c.Step(up(s1, "reborn too"))
	mustNot[PeerJob](b, acts)
	mustNot[Batch](b, acts)
	if _, mode, why := b.c.Status(); mode != ModeHeld || !strings.Contains(why, "neither side") {
		t.Errorf("%s: %s", mode, why)
	}
}

// A secondary that was given up is no reason to serve a directory that may be empty.
func TestStrangeDirectoryAndLostSecondaryWait(t *testing.T) {
	r := rec(StateNormal, true)
	r.Instances = map[lockstep.NodeID]string{p1: "another"}
	r.Lost = map[lockstep.NodeID]lockstep.Epoch{s1: r.InSyncEpoch}
	b := newBench(t, p1, "az1", "reborn", Saved{})
	acts := b.reads(r)
	mustNot[Proposal](b, acts)
	mustNot[Batch](b, acts)
	if _, mode, why := b.c.Status(); mode != ModeHeld || !strings.Contains(why, "given up") {
		t.Errorf("%s, %q", mode, why)
	}
}

// Goal: out of sync the newest writes are on the primary's side alone. Another directory than the
// recorded one neither takes back from the secondary, which lacks them, nor counts by itself, for it
// may be an older copy: an operator says so, of that very directory, and then all of it is compared.
func TestStrangeDirectoryOutOfSyncWaitsForAnOperator(t *testing.T) {
	r := rec(StateNormal, false)
	r.Instances[p1] = "before the move"
	saved := savedAs(RolePrimary, r, "bp1")
	saved.Mark = 9 // left properly
	b := newBench(t, p1, "az1", "new host", saved)
	acts := append(b.reads(r), b.c.Step(up(s1, "bs1"))...)
	mustNot[PeerJob](b, acts)
	mustNot[Batch](b, acts)
	if _, mode, why := b.c.Status(); mode != ModeHeld || !strings.Contains(why, "accept-directory") {
		t.Errorf("%s, %q", mode, why)
	}
	if _, err := r.AcceptDirectory(s1, "is1x"); err == nil {
		t.Error("accepted for a secondary node")
	}
	if _, err := r.AcceptDirectory(p1, "before the move"); err == nil {
		t.Error("accepted the recorded directory")
	}
	other, err := r.AcceptDirectory(p1, "yet another")
	if err != nil {
		t.Fatal(err)
	}
	mustNot[Batch](b, b.reads(other))
	stated, err := r.AcceptDirectory(p1, "ip1")
	if err != nil {
		t.Fatal(err)
	}
	batch := must[Batch](b, append(b.tick(2000), b.reads(stated)...))
	if kinds(batch) != "flush all-dirty " {
		t.Errorf("batch %q", kinds(batch))
	}
	p := must[Proposal](b, b.does(batch))
	if p.Kind != ProposeRenewBoot {
		t.Fatalf("%+v", p)
	}
	next, err := stated.RenewBoot(p.At, p1, "new host", "ip1", p.F5)
	if err != nil || next.State != StateNormal || next.InSync || len(next.Accepted) != 0 {
		t.Fatalf("%+v, %v", next, err)
	}
	if m := must[SetMode](b, b.does(must[Batch](b, b.reads(next)))); m.Mode != ModeOneSided {
		t.Errorf("%+v", m)
	}
}

// Goal: while a member is not in the pool nothing is done that would leave it out: no new boot id, no
// confirmation, no service; a synchronization is aborted.
func TestMissingMemberHoldsThePrimary(t *testing.T) {
	for _, state := range []State{StateNormal, StateTripping, StateReversing} {
		b := newBench(t, p1, "az1", "reborn", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
		b.c.Step(VolumesMissing{Volumes: []lockstep.VolumeID{"a-p"}})
		next := rec(state, true)
		next.Epoch = 11
		acts := append(b.reads(next), b.c.Step(up(s1, "bs1"))...)
		mustNot[PeerJob](b, acts)
		mustNot[Batch](b, acts)
		mustNot[Reply](b, acts)
		if _, mode, why := b.c.Status(); mode != ModeHeld || !strings.Contains(why, "a-p") {
			t.Errorf("%s: %s, %q", state, mode, why)
		}
		if state == StateNormal {
			if job := must[PeerJob](b, b.c.Step(VolumesMissing{})); job.Job != JobTakeBack {
				t.Errorf("job %s", job.Job)
			}
		}
	}
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, false), "bp1"))
	copying := rec(StateCopying, false)
	copying.Epoch = 11
	b.c.Step(VolumesMissing{Volumes: []lockstep.VolumeID{"a-p"}})
	if p := must[Proposal](b, b.reads(copying)); p.Kind != ProposeAbortCopy {
		t.Errorf("%+v", p)
	}
}

// Goal: what a secondary flushed before it said ready needs nothing back if its host restarts between
// the failover's commit and its taking over: the other zone may be gone for good.
func TestNewPrimaryRebootsBeforeItTakesOver(t *testing.T) {
	failovering := rec(StateFailovering, true)
	failovering.Epoch = 11
	b := newBench(t, s1, "az2", "bs1", savedAs(RoleSecondary, rec(StateNormal, true), "bs1"))
	b.does(must[Batch](b, b.reads(failovering)))
	saved := b.c.Saved()
	over := rec(StateNormal, false, failedOver)
	over.Epoch, over.Cause = 12, CauseFailover
	b = newBench(t, s1, "az2", "reborn", saved)
	if have := kinds(must[Batch](b, b.reads(over))); have != "dirty-from-intent save lease-wait " {
		t.Errorf("batch %q", have)
	}
	back, err := failovering.BackOut(true, "the other one failed")
	if err != nil || saved.Mark > back.InSyncEpoch {
		t.Errorf("the mark %d outlives a way back to in sync at %d, %v", saved.Mark, back.InSyncEpoch, err)
	}
}

// Goal: a secondary that cannot do its part of a failover says so, whatever the reason, and the
// group goes back instead of holding a primary that may be well.
func TestFailoverThatCannotBePersistedIsUnhealthy(t *testing.T) {
	b := newBench(t, s1, "az2", "bs1", savedAs(RoleSecondary, rec(StateNormal, true), "bs1"))
	failovering := rec(StateFailovering, true)
	failovering.Epoch = 11
	batch := must[Batch](b, b.reads(failovering))
	a := must[Reply](b, b.c.Step(BatchDone{Token: batch.Token, Err: errors.New("no space left")})).Answer
	if a.Step != StepReady || a.Healthy || a.Error != "no space left" {
		t.Errorf("%+v", a)
	}
}

// Goal: a store that went back is noticed at the start and by a running node. Nothing is served then,
// whatever peers say and whatever the older copy goes on to decide, until the record was recovered
// above what is persisted here.
func TestStoreThatWentBack(t *testing.T) {
	older := rec(StateNormal, true)
	older.Epoch = 7
	for name, read := range map[string]RecordRead{
		"at the start": {Record: older, FromStore: true, AtStart: true}, "running": {Record: older, FromStore: true, Rewound: true},
	} {
		b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
		if read.Rewound {
			b.does(must[Batch](b, b.reads(rec(StateNormal, true))))
		}
		b.c.Step(read)
		held := func(what string) {
			t.Helper()
			if _, mode, why := b.c.Status(); mode != ModeHeld || !strings.Contains(why, "store recover") {
				t.Errorf("%s, %s: %s, %q", name, what, mode, why)
			}
		}
		held("an older record")
		mustNot[Announce](b, b.c.Step(up(s1, "bs1")))
		mustNot[Announce](b, b.c.Step(RecordRead{Record: rec(StateNormal, true)})) // from a peer
		held("a peer's record")
		other := rec(StateNormal, false)
		other.Epoch = 12
		mustNot[Batch](b, b.c.Step(RecordRead{Record: other, FromStore: true}))
		held("what the older copy decided since")
		recovered := rec(StateNormal, true).Recovered(12, true)
		if recovered.Epoch != 13 || !recovered.InSync || recovered.InSyncEpoch != 13 {
			t.Fatalf("%+v", recovered)
		}
		b.does(must[Batch](b, b.c.Step(RecordRead{Record: recovered, FromStore: true})))
		if b.c.Saved().Record.Epoch != 13 {
			t.Errorf("%s: persisted %d", name, b.c.Saved().Record.Epoch)
		}
	}
	if r := rec(StateNormal, true).Recovered(10, false); r.InSync || r.Cause != CauseStore || r.Fenced || r.Epoch != 11 {
		t.Errorf("unconfirmed: %+v", r)
	}
	for _, s := range []State{StateTripping, StateFailovering, StateReversing, StateCopying} {
		if r := rec(s, s != StateCopying).Recovered(10, true); r.InSync || r.State != StateNormal {
			t.Errorf("from %s: %s", s, r.Describe())
		}
	}
	if r := rec(StateDeleted, false).Recovered(20, true); r.State != StateDeleted || r.Epoch != 21 {
		t.Errorf("a tombstone: %+v", r)
	}
}

func TestProperlyLeftNeedsNoTakeBack(t *testing.T) { // [F3] [F4]
	saved := savedAs(RolePrimary, rec(StateNormal, false), "bp1")
	saved.Mark = 9 // newer than the in-sync epoch 5
	b := newBench(t, p1, "az1", "reborn", saved)
	if have := kinds(must[Batch](b, b.reads(rec(StateNormal, false)))); have != "dirty-from-intent save lease-wait " {
		t.Errorf("batch %q", have)
	}
	saved.Mark = 5 // not newer: void
	b = newBench(t, p1, "az1", "reborn", saved)
	mustNot[Batch](b, b.reads(rec(StateNormal, false)))
}

func TestRestartInCopyingAsksForAbort(t *testing.T) { // [F19]
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateCopying, false), "bp1"))
	acts := b.reads(rec(StateCopying, false))
	mustNot[Batch](b, acts)
	if p := must[Proposal](b, acts); p.Kind != ProposeAbortCopy {
		t.Errorf("%+v", p)
	}
}

func TestFailedVolumeEndsCopying(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, false), "bp1"))
	copying := rec(StateCopying, false)
	copying.Epoch = 11
	b.does(must[Batch](b, b.reads(copying)))
	if p := must[Proposal](b, b.c.Step(VolumeFailed{Volume: "a-p", Reason: "I/O error"})); p.Kind != ProposeAbortCopy || p.At != 11 {
		t.Errorf("%+v", p)
	}
}

func TestSecondaryAnnouncements(t *testing.T) {
	b := newBench(t, s1, "az2", "bs1", savedAs(RoleSecondary, rec(StateNormal, true), "bs1"))
	copying := rec(StateCopying, false)
	copying.Epoch = 11
	acts := b.c.Step(AnnounceIn{Record: copying, Conn: 1})
	mustNot[AnnounceOut](b, acts)
	batch := must[Batch](b, acts)
	if kinds(batch) != "fence flush set-point save " { // [F13]
		t.Errorf("batch %q", kinds(batch))
	}
	if out := must[AnnounceOut](b, b.does(batch)); !out.OK || out.Record.Epoch != 11 {
		t.Errorf("%+v", out)
	}
	again := newBench(t, s1, "az2", "bs1", Saved{})
	first := rec(StateCopying, false, neverSynced) // whatever point a volume brings is of another group
	batch = must[Batch](again, again.c.Step(AnnounceIn{Record: first, Conn: 1}))
	if kinds(batch) != "fence drop-point save " || len(batch.Steps[1].(DropPoint).Pairs) != len(first.Members) {
		t.Errorf("first copying: %#v", batch.Steps)
	}
	if out := must[AnnounceOut](b, b.c.Step(AnnounceIn{Record: rec(StateNormal, true), Conn: 2})); out.OK || out.Newer == nil || out.Newer.Epoch != 11 {
		t.Errorf("an older epoch: %+v", out)
	}
	swapped := rec(StateNormal, true, func(r *Record) { r.Primary, r.Secondary, r.Epoch = "az2", "az1", 12 })
	if out := must[AnnounceOut](b, b.c.Step(AnnounceIn{Record: swapped, Conn: 3})); out.OK {
		t.Errorf("a primary took an announcement: %+v", out)
	}
}

func TestOlderRecordsAndSessionsAreIgnored(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	older := rec(StateNormal, false)
	older.Epoch = 9
	b.reads(older)
	if b.c.Record().Epoch != 10 {
		t.Errorf("went back to %s", b.c.Record().Describe())
	}
}

func TestMissingRecordQuarantines(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, false), "bp1"))
	b.does(must[Batch](b, b.reads(rec(StateNormal, false))))
	if m := must[SetMode](b, b.c.Step(RecordMissing{})); m.Mode != ModeHeld {
		t.Errorf("mode %s", m.Mode)
	}
}

// TestCopyingBeginsOneSidedAtItsOwnEpoch: under the strict policy the lease counts for one epoch, so
// an attempt to synchronize with a secondary that is away must not leave the volumes at the one
// before. [F16]
func TestCopyingBeginsOneSidedAtItsOwnEpoch(t *testing.T) {
	r := rec(StateNormal, false)
	r.Strict = true
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, r, "bp1"))
	acts := b.reads(r)
	if m := must[SetMode](b, b.does(must[Batch](b, acts))); m.Mode != ModeOneSided || !m.Strict || m.Epoch != r.Epoch {
		t.Fatalf("%+v", m)
	}
	copying, err := r.Sync()
	if err != nil {
		t.Fatal(err)
	}
	acts = b.reads(copying)
	if m := must[SetMode](b, b.does(must[Batch](b, acts))); m.Mode != ModeOneSided || !m.Strict || m.Epoch != copying.Epoch {
		t.Errorf("%+v", m)
	}
}

// TestFailedVolumeThatCannotAdoptCopyingEndsIt: a node that an operator's continue left behind with
// a failed volume cannot flush, so it never adopts the copying that follows.
func TestFailedVolumeThatCannotAdoptCopyingEndsIt(t *testing.T) {
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	r := rec(StateCopying, false)
	r.Epoch++
	batch := must[Batch](b, b.reads(r))
	if !strings.HasPrefix(kinds(batch), "flush ") {
		t.Fatalf("no flush comes first: %s", kinds(batch))
	}
	b.c.Step(VolumeFailed{Volume: "v", Reason: "I/O error"})
	p := must[Proposal](b, b.c.Step(BatchDone{Token: batch.Token, Err: errors.New("I/O error")}))
	if p.Kind != ProposeAbortCopy || p.At != r.Epoch {
		t.Errorf("%+v", p)
	}
}

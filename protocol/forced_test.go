package protocol

import (
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
)

func fenced(r *Record)   { r.Fenced = true }
func lostOnce(r *Record) { r.Forced = &Forced{Epoch: 7} }
func strictly(r *Record) { r.Strict, r.StrictAt = true, 8 }
func underWay(r *Record) { r.Fenced, r.Forced = true, &Forced{Epoch: 10} }

// Goal: a forced failover is taken exactly where the secondary has a consistent image that lacks
// writes, and says why it is not taken elsewhere.
func TestForceFailover(t *testing.T) {
	for _, c := range []struct {
		name string
		rec  Record
		why  string // empty: taken
	}{
		{"tripped", rec(StateNormal, false, fenced), ""},
		{"paused", rec(StateNormal, false, fenced, paused), ""},
		{"copying", rec(StateCopying, false, fenced), ""},
		{"extending", rec(StateNormal, false, fenced, extending), ""},
		{"in sync", rec(StateNormal, true, fenced), "loses nothing"},
		{"tripping", rec(StateTripping, true, fenced), "loses nothing"},
		{"failovering in sync", rec(StateFailovering, true, fenced), "loses nothing"},
		{"reversing", rec(StateReversing, true, fenced), "loses nothing"},
		{"forced under way", rec(StateFailovering, false, underWay), "failovering"},
		{"failed over", rec(StateNormal, false, fenced, failedOver), "failed over from"},
		{"never synchronized", rec(StateNormal, false, fenced, neverSynced), "never synchronized"},
		{"first copying", rec(StateCopying, false, fenced, neverSynced), "never synchronized"},
		{"reprotect after a forced one", rec(StateCopying, false, fenced, lostOnce), "never failed over to"},
		{"reprotect of what did not confirm", rec(StateCopying, false), "no consistent cut"},
		{"deleted", rec(StateDeleted, false, fenced), "deleted"},
		{"empty", rec(StateNormal, false, fenced, empty), "no consistent image"},
		{"another epoch", rec(StateNormal, false, fenced, func(r *Record) { r.Epoch = 11 }), "asked for at epoch 10"},
	} {
		t.Run(c.name, func(t *testing.T) {
			was := c.rec.Clone()
			n, err := c.rec.ForceFailover(10, nil)
			if c.why != "" {
				if err == nil || !strings.Contains(err.Error(), c.why) {
					t.Fatalf("want a refusal with %q, have %v", c.why, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			expect(t, n.State == StateFailovering && !n.InSync && n.Epoch == 11 && n.Primary == was.Primary && n.Forced != nil && n.Forced.Epoch == 11 && n.Members[0].ExtendBytes == 0, n)
			expect(t, was.Members[0].ExtendBytes == c.rec.Members[0].ExtendBytes, c.rec)
		})
	}
	if err := func() error { _, err := rec(StateNormal, false, fenced, paused).Failover(); return err }(); err == nil {
		t.Error("an ordinary failover was taken out of sync")
	}
}

// Goal: a pair that joined after the last in-sync commit has no image: it is named, and no
// synchronization may overwrite the only copy of it.
func TestForcedNamesPairsWithoutImage(t *testing.T) {
	r := rec(StateNormal, false, fenced)
	r.Members[1].InSyncEpoch = 0
	n, err := r.ForceFailover(10, nil)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, !n.Members[0].NoImage && n.Members[1].NoImage, n)
	n.State, n.FailedOver = StateNormal, true
	if _, err := n.Sync(); err == nil || !strings.Contains(err.Error(), string(n.Members[1].Pair)) {
		t.Fatalf("a synchronization over the only copy was not refused: %v", err)
	}
	if n, err = n.SetMembers(n.Members[:1]); err != nil {
		t.Fatal(err)
	}
	if n, err = n.Sync(); err != nil || n.Forced == nil {
		t.Fatalf("without that pair it synchronizes, and the loss is not forgotten: %v, %v", n.Forced, err)
	}
}

func TestAdvanceForced(t *testing.T) {
	under := rec(StateFailovering, false, underWay)
	ready := []Answer{ans(s1, StepReady), ans(s2, StepReady)}
	held := []Answer{ans(p1, StepHeld), ans(p2, StepHeld)}
	off := func(nodes ...lockstep.NodeID) func(*Record) {
		return func(r *Record) {
			r.Off = map[lockstep.NodeID]lockstep.Epoch{}
			for _, n := range nodes {
				r.Off[n] = 10
			}
		}
	}
	changed := func(change ...func(*Record)) Record {
		r := under.Clone()
		for _, c := range change {
			c(&r)
		}
		return r
	}
	for _, c := range []struct {
		name     string
		rec      Record
		answers  answers
		patience bool
		end      string // "": waits; else over, fenced, back
	}{
		{"all confirm", under, with(append(ready, held...)...), false, "fenced"},
		{"one secondary is missing", under, with(append(held, ans(s1, StepReady))...), true, ""},
		{"one old primary does not confirm", under, with(append(ready, ans(p1, StepHeld))...), true, ""},
		{"one confirmed the epoch before", under, with(append(ready, ans(p1, StepHeld), ans(p2, StepHeld, old))...), true, ""},
		{"one is off by an operator's word", changed(off(p2)), with(append(ready, ans(p1, StepHeld))...), false, "fenced"},
		{"off at another epoch", changed(func(r *Record) { r.Off = map[lockstep.NodeID]lockstep.Epoch{p2: 9} }), with(append(ready, ans(p1, StepHeld))...), true, ""},
		{"all are off", changed(off(p1, p2)), with(ready...), false, "fenced"},
		{"strict, bound since it was chosen", changed(strictly), with(append(ready, ans(p1, StepAdopted, old), ans(p2, StepAdopted, old))...), true, "over"},
		{"strict, but patience first", changed(strictly), with(append(ready, ans(p1, StepAdopted, old), ans(p2, StepAdopted, old))...), false, ""},
		{"strict, but one may not know it", changed(strictly), with(append(ready, ans(p1, StepAdopted, old), ans(p2, StepAdopted, func(a *Answer) { a.Epoch = 7 }))...), true, ""},
		{"strict, one never answered", changed(strictly), with(append(ready, ans(p1, StepAdopted, old))...), true, ""},
		{"strict, of another group", changed(strictly), with(append(ready, ans(p1, StepAdopted, old), ans(p2, StepAdopted, old, foreign))...), true, ""},
		{"a rebooted secondary counts, if that was told", changed(func(r *Record) { r.Forced.FlushOnly = []lockstep.NodeID{s1} }), with(append(held, ans(s1, StepReady, reborn), ans(s2, StepReady))...), false, "fenced"},
		{"a secondary that rebooted since", changed(func(r *Record) { r.Forced.FlushOnly = []lockstep.NodeID{s2} }), with(append(held, ans(s1, StepReady, reborn), ans(s2, StepReady))...), false, "told"},
		{"a secondary that cannot", under, with(append(held, ans(s1, StepReady, sick), ans(s2, StepReady))...), false, "back"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, used, ok := Advance(c.rec, c.answers, c.patience)
			if ok != (c.end != "") {
				t.Fatalf("over is %v: %s", ok, n.Describe())
			}
			switch c.end {
			case "told":
				expect(t, n.State == StateNormal && !n.InSync && !n.FailedOver && n.Primary == "az1" && n.Forced == nil && strings.Contains(n.Reason, "restarted since the preview"), n)
			case "back":
				expect(t, n.State == StateNormal && !n.InSync && !n.FailedOver && n.Primary == "az1" && n.Forced == nil && strings.Contains(n.Reason, "I/O error"), n)
			case "fenced", "over":
				expect(t, n.State == StateNormal && !n.InSync && n.FailedOver && n.Primary == "az2" && n.Secondary == "az1" && n.Forced.Epoch == 10 && n.InSyncEpoch == 5, n)
				expect(t, n.Fenced == (c.end == "fenced"), n)
				for node := range c.answers {
					if !slices.Contains(used, node) {
						t.Errorf("the answer of %s was counted and is not compared: %v", node, used)
					}
				}
			}
		})
	}
}

// Goal: a forced failover that is taken back leaves the group as it was, and not in sync.
func TestForcedBackOut(t *testing.T) {
	for _, intact := range []bool{true, false} {
		r := rec(StateNormal, false, fenced, paused, func(r *Record) { r.Drained, r.Cause, r.StoppedAtMs = true, CausePause, 77 })
		n, err := r.ForceFailover(10, nil)
		if err != nil {
			t.Fatal(err)
		}
		n, err = n.BackOut(intact, "az2 died")
		if err != nil {
			t.Fatal(err)
		}
		expect(t, n.State == StateNormal && !n.InSync && n.Forced == nil && n.Drained && n.Intent == IntentPaused && n.InSyncEpoch == 5 && n.StoppedAtMs == 77 && n.Reason == "az2 died", n)
	}
}

// TestForcedBatches: what must be durable before a node answers, or serves, in a forced failover.
func TestForcedBatches(t *testing.T) {
	at := func(r Record) Record { r.Epoch = 11; return r }
	lost := func(r *Record) { failedOver(r); r.Forced = &Forced{Epoch: 9} }
	for _, c := range []struct {
		name string
		node lockstep.NodeID
		az   lockstep.AZ
		role Role
		next Record
		want string
	}{
		{"the old primary holds", p1, "az1", RolePrimary, at(rec(StateFailovering, false, underWay)), "quiesce save "},
		{"the secondary has its image before it is ready", s1, "az2", RoleSecondary, at(rec(StateFailovering, false, underWay)), "fence save flush roll-back save "},
		{"the new primary", s1, "az2", RoleSecondary, at(rec(StateNormal, false, fenced, lost)), "flush dirty-from-intent save "},
		{"the new primary waits for what the store gave", s1, "az2", RoleSecondary, at(rec(StateNormal, false, lost)), "flush dirty-from-intent save lease-wait "},
		{"the side that lost keeps what it has", p1, "az1", RolePrimary, at(rec(StateNormal, false, fenced, lost)), "quiesce fence save keep-image "},
		{"also after a restart", p1, "az1", RoleSecondary, at(rec(StateNormal, false, fenced, lost)), "quiesce fence save keep-image "},
		{"a user gave it up", p1, "az1", RolePrimary, at(rec(StateNormal, false, fenced, lost, func(r *Record) { r.Forced.Waived = true })), "quiesce fence save "},
	} {
		t.Run(c.name, func(t *testing.T) {
			was := before(c.next)
			if c.role == RolePrimary {
				was = rec(StateNormal, false, fenced)
			}
			b := newBench(t, c.node, c.az, lockstep.BootID("b"+c.node), savedAs(c.role, was, lockstep.BootID("b"+c.node)))
			batch := must[Batch](b, b.reads(c.next))
			if have := kinds(batch); have != c.want {
				t.Fatalf("have %q, want %q", have, c.want)
			}
			for _, s := range batch.Steps {
				switch s := s.(type) {
				case LeaseWait:
					if !s.Store {
						t.Error("a lease of the store is not waited for")
					}
				case RollBack:
					if s.InSyncEpoch != 5 || len(s.Pairs) != 2 {
						t.Errorf("rolls back to what is newer than %d, pairs %v", s.InSyncEpoch, s.Pairs)
					}
				case KeepImage:
					if s.Epoch != 9 || len(s.Pairs) != 2 {
						t.Errorf("keeps an image of epoch %d, pairs %v", s.Epoch, s.Pairs)
					}
				}
			}
		})
	}
}

// Goal: nothing is overwritten at the side that lost before what it had is kept.
func TestReprotectAfterForcedKeepsTheImageFirst(t *testing.T) {
	r := rec(StateCopying, false, fenced, failedOver, func(r *Record) { r.Epoch, r.FailedOver, r.Forced = 12, false, &Forced{Epoch: 9} })
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, false), "bp1"))
	batch := must[Batch](b, b.c.Step(AnnounceIn{Record: r, Conn: 1}))
	if have, want := kinds(batch), "quiesce fence keep-image flush set-point save "; have != want {
		t.Fatalf("have %q, want %q", have, want)
	}
	mustNot[AnnounceOut](b, b.c.Step(Tick{NowMs: 10}))
	if out := must[AnnounceOut](b, b.c.Step(BatchDone{Token: batch.Token, Err: lockstep.ErrNoSpace})); out.OK {
		t.Fatal("the announcement was confirmed although the image could not be kept")
	}
}

// Goal: an answer says ready only for the directory that was in sync, and a roll-back that fails
// ends the failover instead of holding it.
func TestForcedSecondaryThatCannot(t *testing.T) {
	under := rec(StateFailovering, false, underWay, func(r *Record) { r.Epoch = 11 })
	b := newBench(t, s1, "az2", "bs1", savedAs(RoleSecondary, rec(StateCopying, false), "bs1"))
	batch := must[Batch](b, b.reads(under))
	a := must[Reply](b, b.c.Step(BatchDone{Token: batch.Token, Err: lockstep.ErrCorrupt}))
	if a.Answer.Step != StepReady || a.Answer.Healthy || a.Answer.Error == "" {
		t.Fatalf("a roll-back failed, and the answer is %+v", a.Answer)
	}
	under.Instances[s1] = "another"
	b = newBench(t, s1, "az2", "bs1", savedAs(RoleSecondary, rec(StateCopying, false), "bs1"))
	if a := must[Reply](b, b.does(must[Batch](b, b.reads(under)))); a.Answer.Healthy {
		t.Fatal("a strange directory is ready")
	}
}

// Goal: the time at which replication stopped is that of the step that left in sync, whatever comes
// after, and gone with the next in-sync commit.
func TestStopTime(t *testing.T) {
	r := rec(StateNormal, true)
	n, _ := r.Pause()
	n = r.StampStop(n, 100)
	expect(t, n.StoppedAtMs == 100, n)
	out, _, ok := Advance(n, with(ans(p1, StepTripping, func(a *Answer) { a.Epoch = 11 }), ans(p2, StepTripping, func(a *Answer) { a.Epoch = 11 })), false)
	out = n.StampStop(out, 200)
	expect(t, ok && !out.InSync && out.StoppedAtMs == 100, out)
	cp, err := out.Sync()
	if err != nil {
		t.Fatal(err)
	}
	cp = out.StampStop(cp, 300)
	expect(t, cp.StoppedAtMs == 100, cp)
	cp.commitInSync()
	expect(t, cp.StoppedAtMs == 0 && cp.Forced == nil, cp)
}

func TestDiscardImage(t *testing.T) {
	r := rec(StateNormal, false, failedOver, lostOnce)
	n := r.DiscardImage(3).DiscardImage(7).DiscardImage(3)
	expect(t, slices.Equal(n.Discard, []lockstep.Epoch{3, 7}) && n.Forced.Waived && !r.Forced.Waived && n.Epoch == r.Epoch, n)
}

// Goal: an old primary that demotes straight into the copying epoch of a reprotect confirms its
// announcement only with a recovery point, also if that comes while it demotes. [F13] (R40)
func TestAnnouncementDuringDemotionSetsThePoint(t *testing.T) {
	copying := rec(StateCopying, false, fenced, failedOver, func(r *Record) { r.Epoch, r.FailedOver = 12, false })
	b := newBench(t, p1, "az1", "bp1", savedAs(RolePrimary, rec(StateNormal, true), "bp1"))
	demotes := must[Batch](b, b.reads(copying))
	mustNot[AnnounceOut](b, b.c.Step(AnnounceIn{Record: copying, Conn: 1}))
	acts := b.does(demotes)
	mustNot[AnnounceOut](b, acts)
	batch := must[Batch](b, acts)
	if have, want := kinds(batch), "fence flush set-point save "; have != want {
		t.Fatalf("have %q, want %q", have, want)
	}
	if out := must[AnnounceOut](b, b.does(batch)); !out.OK {
		t.Fatal("not confirmed at last")
	}
}

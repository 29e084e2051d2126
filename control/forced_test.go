package control

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// pausedGroup is a group of n pairs that was in sync and is paused.
func (s *site) pausedGroup(c *Controller, n int) lockstep.GroupID {
	s.t.Helper()
	id, _ := s.syncedGroup(c, n)
	s.act(c, id, ActionStop)
	s.awaitGroup(c, id, StatusAvailable, ReplicationStopped)
	return id
}

// preview waits for one that is taken: nodes report a little later than they answer.
func (s *site) preview(c *Controller, id lockstep.GroupID) FailoverPreview {
	s.t.Helper()
	var p FailoverPreview
	eventually(s.t, "a preview that allows", func() bool {
		var err error
		p, err = c.PreviewFailover(s.ctx, caller, id)
		return err == nil && p.Allowed
	})
	return p
}

func (s *site) dirtyNow(id lockstep.GroupID, bytes int64) {
	s.t.Helper()
	v := s.record(id).Members[0].In("az1").Volume
	s.set(func() { s.dirty[v] = bytes })
	eventually(s.t, "the loss is reported", func() bool {
		o, _, err := store.GetT[store.GroupObserved](s.ctx, s.st, store.KeyObservedGroup(id, "a1"))
		return err == nil && o.Volumes[v].DirtyBytes == bytes
	})
}

func (s *site) entries(c *Controller, id lockstep.GroupID) []store.HistoryEntry {
	s.t.Helper()
	return must[[]store.HistoryEntry](s.t)(c.History(s.ctx, caller, id))
}

// Goal: a forced failover does what its preview said, ends only with the old primary's word, leaves a
// receipt, keeps what the side that lost had before a reprotect may overwrite it, and the image goes
// by an explicit delete only.
func TestForcedFailover(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	before := time.Now().Add(-time.Second)
	id := s.pausedGroup(c, 2)
	s.dirtyNow(id, 3<<16)
	p := s.preview(c, id)
	sum, known := p.Bytes()
	if !p.Forced || sum != 3<<16 || !known || p.From != "az1" || p.To != "az2" || len(p.Receipt.Volumes) != 2 || len(p.Receipt.FlushOnly) != 0 {
		t.Fatalf("%+v", p)
	}
	if at := p.Receipt.PointAt; at.Before(before) || at.After(time.Now().Add(time.Second)) {
		t.Errorf("replication stopped at %v", at)
	}
	if err := c.ForceFailover(s.ctx, caller, id, p.Token); err != nil {
		t.Fatal(err)
	}
	g := s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	if e, err := c.Explain(s.ctx, caller, id); err != nil || e.Condition != "failed over" || e.Since.IsZero() {
		t.Errorf("explained as %q since %s, %v", e.Condition, e.Since, err)
	}
	r := s.record(id)
	if g.Priority != "az2" || r.Primary != "az2" || r.Forced == nil || !r.Fenced || r.InSync {
		t.Fatalf("%s: %+v", r.Describe(), r.Forced)
	}
	var receipts []*store.ForcedReceipt
	for _, e := range s.entries(c, id) {
		if e.Receipt != nil {
			receipts = append(receipts, e.Receipt)
		}
	}
	if len(receipts) != 2 || receipts[0].Final || receipts[0].Volumes[0].Bytes != 3<<16 || receipts[1].Volumes[0].Bytes != 3<<16 {
		t.Fatalf("receipts %+v", receipts)
	}
	refused(t, c.ForceFailover(s.ctx, caller, id, p.Token), KindConflict, "")

	var images []DivergenceImage
	eventually(t, "the image is kept", func() bool {
		images = must[[]DivergenceImage](t)(c.DivergenceImages(s.ctx, caller, id))
		return len(images) == 1 && len(images[0].Volumes) == 2
	})
	v := images[0].Volumes[0]
	if images[0].Epoch != r.Forced.Epoch || images[0].At.IsZero() || v.Node != "a1" || v.Export != string(v.Volume)+"@diverged-"+formatEpoch(r.Forced.Epoch) || !strings.Contains(v.URI, v.Export) {
		t.Fatalf("%+v", images)
	}
	s.act(c, id, ActionReprotect)
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
	if images = must[[]DivergenceImage](t)(c.DivergenceImages(s.ctx, caller, id)); len(images) != 1 {
		t.Fatal("the in-sync commit took the image away")
	}
	if s.record(id).Forced != nil {
		t.Error("in sync, and the forced failover still stands in the record")
	}
	s.act(c, id, ActionStop)
	_, err := c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: []lockstep.PairID{v.Pair}})
	refused(t, err, KindConflict, "")
	refused(t, c.DeleteDivergenceImage(s.ctx, caller, id, 999), KindNotFound, "")
	stranger := caller
	stranger.Project = "p2"
	refused(t, c.DeleteDivergenceImage(s.ctx, stranger, id, images[0].Epoch), KindNotFound, "")
	if err := c.DeleteDivergenceImage(s.ctx, caller, id, images[0].Epoch); err != nil {
		t.Fatal(err)
	}
	if images = must[[]DivergenceImage](t)(c.DivergenceImages(s.ctx, caller, id)); len(images) != 0 {
		t.Fatal("deleted, and still listed")
	}
	refused(t, c.DeleteDivergenceImage(s.ctx, caller, id, r.Forced.Epoch), KindNotFound, "")
	if _, err := c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: []lockstep.PairID{v.Pair}}); err != nil {
		t.Fatal(err)
	}
}

// Goal: every condition under which a forced failover is refused is said by the preview, and nothing
// is changed by asking for it anyway.
func TestForcedFailoverRefused(t *testing.T) {
	for _, tc := range []struct {
		name, why string
		make      func(s *site, c *Controller) lockstep.GroupID
	}{
		{"never synchronized", "never synchronized", func(s *site, c *Controller) lockstep.GroupID {
			id, _ := s.group(c, 1)
			return id
		}},
		{"failed over", "needs a group in status", func(s *site, c *Controller) lockstep.GroupID {
			id, _ := s.syncedGroup(c, 1)
			s.act(c, id, ActionFailover)
			s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
			return id
		}},
		{"no secondary node", "b1 is not alive", func(s *site, c *Controller) lockstep.GroupID {
			id := s.pausedGroup(c, 1)
			s.kill("b1")
			return id
		}},
		{"another directory", "another directory", func(s *site, c *Controller) lockstep.GroupID {
			id := s.pausedGroup(c, 1)
			n, _, err := store.GetT[store.Node](s.ctx, s.st, store.KeyNode("b1"))
			if err != nil {
				s.t.Fatal(err)
			}
			n.Instance = "another"
			s.put(store.KeyNode("b1"), n)
			return id
		}},
		{"a failed volume", "I/O error", func(s *site, c *Controller) lockstep.GroupID {
			id := s.pausedGroup(c, 1)
			v := s.record(id).Members[0].In("az2").Volume
			s.set(func() { s.fail[v] = "I/O error" })
			return id
		}},
		{"reprotect after a forced one", "never failed over to", func(s *site, c *Controller) lockstep.GroupID {
			id := s.pausedGroup(c, 1)
			if err := c.ForceFailover(s.ctx, caller, id, s.preview(c, id).Token); err != nil {
				s.t.Fatal(err)
			}
			s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
			s.set(func() { s.slow = true })
			eventually(s.t, "reprotect", func() bool { return c.Act(s.ctx, caller, id, ActionReprotect, nil) == nil })
			s.awaitGroup(c, id, StatusAvailable, ReplicationCopying)
			return id
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t, "a1", "b1")
			c, _ := s.controller()
			id := tc.make(s, c)
			var p FailoverPreview
			eventually(t, tc.why, func() bool {
				var err error
				p, err = c.PreviewFailover(s.ctx, caller, id)
				return err == nil && !p.Allowed && strings.Contains(strings.Join(p.Reasons, "; "), tc.why)
			})
			if p.Token != "" {
				t.Error("a refused failover has a token")
			}
			was := s.record(id)
			err := c.ForceFailover(s.ctx, caller, id, formatEpoch(was.Epoch)+"-1-00")
			refused(t, err, KindConflict, "")
			if is := s.record(id); is.Epoch != was.Epoch {
				t.Errorf("refused, and the record went from %s to %s", was.Describe(), is.Describe())
			}
		})
	}
	t.Run("in sync", func(t *testing.T) {
		s := newSite(t, "a1", "b1")
		c, _ := s.controller()
		id, _ := s.syncedGroup(c, 1)
		if p := s.preview(c, id); p.Forced || p.Token != "" || len(p.Receipt.Volumes) != 0 {
			t.Errorf("in sync: %+v", p)
		}
		refused(t, c.ForceFailover(s.ctx, caller, id, "1-1-00"), KindConflict, "")
	})
}

// Goal: a token counts for exactly what was previewed, and for a while.
func TestForcedFailoverToken(t *testing.T) {
	for _, tc := range []struct {
		name, why string
		change    func(s *site, c *Controller, id lockstep.GroupID, token string) string
		kind      Kind
	}{
		{"the epoch", "has changed since the preview", func(s *site, c *Controller, id lockstep.GroupID, token string) string {
			if err := c.SetStrict(s.ctx, caller, id, true); err != nil {
				s.t.Fatal(err)
			}
			return token
		}, KindConflict},
		{"the record within its epoch", "not what the preview said", func(s *site, _ *Controller, id lockstep.GroupID, token string) string {
			r := s.record(id)
			r.Reason = "something was found"
			s.put(store.KeyRecord(id), r)
			return token
		}, KindConflict},
		{"the loss", "not what the preview said", func(s *site, _ *Controller, id lockstep.GroupID, token string) string {
			s.dirtyNow(id, 2<<16)
			return token
		}, KindConflict},
		{"the image", "not what the preview said", func(s *site, _ *Controller, id lockstep.GroupID, token string) string {
			v := s.record(id).Members[0].In("az2").Volume
			s.set(func() { s.point[v] = uint64(s.record(id).Epoch) })
			eventually(s.t, "the point is reported", func() bool {
				o, _, err := store.GetT[store.GroupObserved](s.ctx, s.st, store.KeyObservedGroup(id, "b1"))
				return err == nil && o.Volumes[v].PointEpoch != 0
			})
			return token
		}, KindConflict},
		{"a secondary's boot", "not what the preview said", func(s *site, _ *Controller, id lockstep.GroupID, token string) string {
			s.stop("b1")
			s.set(func() { s.boots["b1"] = "another" })
			s.start("b1")
			return token
		}, KindConflict},
		{"another group's", "not what the preview said", func(s *site, c *Controller, id lockstep.GroupID, _ string) string {
			other := s.pausedGroup(c, 1)
			r := s.record(other)
			r.Epoch = s.record(id).Epoch
			s.put(store.KeyRecord(other), r)
			return s.preview(c, other).Token
		}, KindConflict},
		{"a made up one", "token must be", func(*site, *Controller, lockstep.GroupID, string) string { return "yes" }, KindBadRequest},
		{"none", "token must be", func(*site, *Controller, lockstep.GroupID, string) string { return "" }, KindBadRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t, "a1", "b1")
			c, _ := s.controller()
			id := s.pausedGroup(c, 1)
			s.dirtyNow(id, 1<<16)
			token := tc.change(s, c, id, s.preview(c, id).Token)
			was := s.record(id)
			err := c.ForceFailover(s.ctx, caller, id, token)
			refused(t, err, tc.kind, "")
			if !strings.Contains(err.Error(), tc.why) {
				t.Errorf("refused with %q, want %q", err, tc.why)
			}
			if is := s.record(id); is.Epoch != was.Epoch || is.State != was.State {
				t.Errorf("refused, and the record is %s", is.Describe())
			}
		})
	}
	t.Run("its age", func(t *testing.T) {
		s := newSite(t, "a1", "b1")
		c, _ := s.controller()
		id := s.pausedGroup(c, 1)
		token := s.preview(c, id).Token
		other := New(func() Config {
			cfg := s.testConfig()
			cfg.Now = func() time.Time { return time.Now().Add(previewValid + time.Minute) }
			return cfg
		}())
		err := other.ForceFailover(s.ctx, caller, id, token)
		refused(t, err, KindConflict, "")
		if !strings.Contains(err.Error(), "older than") {
			t.Error(err)
		}
		// Another controller takes it: it is held nowhere.
		if err := New(s.testConfig()).ForceFailover(s.ctx, caller, id, token); err != nil {
			t.Error(err)
		}
	})
}

// Goal: with the old primary dead the failover waits, and serves nobody, until an operator says that
// it is off; its back-out leaves the group as it was.
func TestForcedFailoverOfADeadPrimary(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id := s.pausedGroup(c, 1)
	s.dirtyNow(id, 1<<16)
	s.kill("a1")
	p := s.preview(c, id)
	if len(p.Waits) != 1 || p.Waits[0].Alive || !strings.Contains(strings.Join(p.Warnings, ";"), "confirm-node-off") || !p.Receipt.Volumes[0].Estimate {
		t.Fatalf("%+v", p)
	}
	admin := caller
	admin.Admin = true
	force := func() {
		t.Helper()
		if err := c.ForceFailover(s.ctx, caller, id, s.preview(c, id).Token); err != nil {
			t.Fatal(err)
		}
		eventually(t, "failovering", func() bool {
			g, err := c.GetGroup(s.ctx, caller, id)
			return err == nil && g.Status == StatusFailovering
		})
		time.Sleep(2 * s.testConfig().Patience)
		if r := s.record(id); r.State != protocol.StateFailovering {
			t.Fatalf("it did not wait: %s", r.Describe())
		}
	}
	force()
	if err := c.Declare(s.ctx, admin, id, StateBackOut, "", "the zone is coming back"); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusErrorFailovered, ReplicationStopped)
	if r := s.record(id); r.InSync || r.FailedOver || r.Forced != nil || r.Primary != "az1" {
		t.Fatalf("taken back: %s", r.Describe())
	}
	force()
	if err := c.Declare(s.ctx, admin, id, StateNodeOff, "a1", "burnt"); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	// Nothing is overwritten before what it alone had is kept; or a user gives it up.
	refused(t, c.Act(s.ctx, caller, id, ActionReprotect, nil), KindConflict, codePeerUnreachable)
	s.set(func() { s.crammed["a1"] = true })
	s.start("a1")
	eventually(t, "the returned node reports", func() bool {
		o, _, err := store.GetT[store.GroupObserved](s.ctx, s.st, store.KeyObservedGroup(id, "a1"))
		return err == nil && o.Epoch == s.record(id).Epoch
	})
	for _, a := range []Action{ActionReprotect, ActionSync} {
		err := c.Act(s.ctx, caller, id, a, nil)
		refused(t, err, KindConflict, "")
		if !strings.Contains(err.Error(), "has not kept") {
			t.Fatal(err)
		}
	}
	if err := c.DeleteDivergenceImage(s.ctx, caller, id, s.record(id).Forced.Epoch); err != nil {
		t.Fatal(err)
	}
	s.act(c, id, ActionReprotect)
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
}

// Goal: a secondary whose host was restarted is failed over to with a word about it, and in the receipt.
func TestForcedFailoverSaysFlushOnly(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id := s.pausedGroup(c, 1)
	s.stop("b1")
	s.set(func() { s.boots["b1"] = "another" })
	s.start("b1")
	p := s.preview(c, id)
	if !slices.Equal(p.Receipt.FlushOnly, []lockstep.NodeID{"b1"}) || !strings.Contains(strings.Join(p.Warnings, ";"), "flushed") {
		t.Fatalf("%+v", p)
	}
	if err := c.ForceFailover(s.ctx, caller, id, p.Token); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	for _, e := range s.entries(c, id) {
		if e.Receipt != nil && !slices.Equal(e.Receipt.FlushOnly, []lockstep.NodeID{"b1"}) {
			t.Errorf("receipt of epoch %d: %+v", e.Epoch, e.Receipt)
		}
	}
}

// Goal: a pair that joined after the group was in sync is named, not served, and can be taken out
// with its truth where its data is.
func TestForcedFailoverOfAPairWithoutImage(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id := s.pausedGroup(c, 1)
	late := s.pair(c)
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Add: []lockstep.PairID{late}}))
	eventually(t, "updated", func() bool {
		g, err := c.GetGroup(s.ctx, caller, id)
		return err == nil && g.Status == StatusAvailable
	})
	p := s.preview(c, id)
	i := slices.IndexFunc(p.Receipt.Volumes, func(v store.ForcedLoss) bool { return v.Pair == late })
	if i < 0 || p.Receipt.Volumes[i].Image != ImageNone || !strings.Contains(strings.Join(p.Warnings, ";"), string(late)) {
		t.Fatalf("%+v", p)
	}
	if err := c.ForceFailover(s.ctx, caller, id, p.Token); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	err := c.Act(s.ctx, caller, id, ActionReprotect, nil)
	refused(t, err, KindConflict, "")
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, id, GroupUpdate{Remove: []lockstep.PairID{late}}))
	if v := must[PairView](t)(c.GetPair(s.ctx, caller, late)); v.Priority != "az1" || v.Image {
		t.Fatalf("the pair's truth is in %s, image %v", v.Priority, v.Image)
	}
	eventually(t, "reprotect", func() bool { return c.Act(s.ctx, caller, id, ActionReprotect, nil) == nil })
	s.awaitGroup(c, id, StatusAvailable, ReplicationActive)
}

// Goal: under the strict policy the old primary's word is not needed where it is bound by the store.
func TestForcedFailoverStrict(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id := s.pausedGroup(c, 1)
	if err := c.SetStrict(s.ctx, caller, id, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a1 has persisted the policy", func() bool {
		a, _, err := store.GetT[protocol.Answer](s.ctx, s.st, store.KeyAnswer(id, "a1"))
		return err == nil && a.Epoch >= s.record(id).StrictAt
	})
	s.kill("a1")
	if err := c.ForceFailover(s.ctx, caller, id, s.preview(c, id).Token); err != nil {
		t.Fatal(err)
	}
	s.awaitGroup(c, id, StatusFailovered, ReplicationStopped)
	if s.record(id).Fenced {
		t.Error("nobody confirmed, and the record says that no lease is left")
	}
}

func forceNow(ctx context.Context, s *site, c *Controller, g lockstep.GroupID) error {
	for {
		p, err := c.PreviewFailover(ctx, caller, g)
		if err != nil {
			return err
		}
		if p.Allowed && p.Forced {
			err := c.ForceFailover(ctx, caller, g, p.Token)
			var e *Error
			if errors.As(err, &e) && strings.Contains(e.Message, "look at a new one") {
				continue
			}
			return err
		}
		if !sleep(ctx, 2*time.Millisecond) {
			return ctx.Err()
		}
	}
}

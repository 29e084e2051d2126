package control

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: a recovery of the store changes nothing while a node has not reported, or is alive in a zone
// that is said to be off; and it keeps a group in sync only if all its nodes confirm its record.
func TestRecoverStore(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, _ := s.controller()
	id, _ := s.syncedGroup(c, 1)
	admin := caller
	admin.Admin = true
	before := s.record(id)
	_, err := c.RecoverStore(s.ctx, caller, nil, "r")
	refused(t, err, KindForbidden, "")
	_, err = c.RecoverStore(s.ctx, admin, nil, "")
	refused(t, err, KindBadRequest, "")
	_, err = c.RecoverStore(s.ctx, admin, nil, "nobody reports")
	refused(t, err, KindConflict, codePeerUnreachable)
	_, err = c.RecoverStore(s.ctx, admin, []lockstep.AZ{"az1", "az2"}, "they are alive")
	refused(t, err, KindConflict, "")
	if r := s.record(id); r.Epoch != before.Epoch {
		t.Fatalf("a refused recovery made epoch %d of %d", r.Epoch, before.Epoch)
	}
	s.stopNodes()

	// What the nodes report, in the way they do.
	report := func(node lockstep.NodeID, change func(*store.GroupObserved)) store.GroupObserved {
		raw, err := json.Marshal(before)
		if err != nil {
			t.Fatal(err)
		}
		role := "primary"
		if node == "b1" {
			role = "secondary"
		}
		o := store.GroupObserved{
			Group: id, Node: node, Epoch: before.Epoch, Role: role, Saved: raw,
			BootID: before.BootIDs[node], Instance: before.Instances[node],
		}
		if change != nil {
			change(&o)
		}
		return o
	}
	newer := before.Clone()
	newer.Epoch, newer.Primary, newer.Secondary, newer.InSync, newer.FailedOver = before.Epoch+4, "az2", "az1", false, true
	raw, err := json.Marshal(newer)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name    string
		a, b    func(*store.GroupObserved)
		none    bool // b1 does not report
		inSync  bool
		epoch   lockstep.Epoch
		primary lockstep.AZ
		why     string
	}{
		{name: "all confirm", inSync: true, epoch: before.Epoch + 1, primary: "az1"},
		{name: "one is off", none: true, epoch: before.Epoch + 1, primary: "az1", why: "b1 has not reported"},
		{name: "another boot id", b: func(o *store.GroupObserved) { o.BootID = "other" }, epoch: before.Epoch + 1, primary: "az1", why: "restarted with its host"},
		{name: "another role", b: func(o *store.GroupObserved) { o.Role = "primary" }, epoch: before.Epoch + 1, primary: "az1", why: "is primary"},
		{name: "behind", b: func(o *store.GroupObserved) { o.Epoch-- }, epoch: before.Epoch + 1, primary: "az1", why: "has epoch"},
		{name: "a newer record", b: func(o *store.GroupObserved) { o.Epoch, o.Saved, o.Role = newer.Epoch, raw, "primary" }, epoch: newer.Epoch + 1, primary: "az2", why: "a1 has epoch"},
	} {
		s.put(store.KeyRecord(id), before)
		reports := map[lockstep.NodeID]store.GroupObserved{"a1": report("a1", row.a)}
		if !row.none {
			reports["b1"] = report("b1", row.b)
		}
		got, err := c.recoverGroup(s.ctx, admin, id, reports, "test")
		if err != nil {
			t.Fatal(err)
		}
		r := s.record(id)
		if got.InSync != row.inSync || r.InSync != row.inSync || r.Epoch != row.epoch || r.Primary != row.primary || r.State != protocol.StateNormal || r.RecoveredAt != r.Epoch {
			t.Errorf("%s: %+v, %s, primary %s", row.name, got, r.Describe(), r.Primary)
		}
		if why := strings.Join(got.Unconfirmed, "; "); !strings.Contains(why, row.why) || (row.why == "") != (why == "") {
			t.Errorf("%s: unconfirmed %q", row.name, why)
		}
	}
}

package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// VerificationView is a verification with how far it is. While it runs, Bytes and Differences are what
// the nodes have reported.
type VerificationView struct {
	store.Verification
	TotalBytes int64    // that are to be compared
	Waits      []string // node and why it does not go on at the moment
}

// Verify asks for the comparison of both sides of a group in sync, at rate MiB/s for each primary node
// (0: the node's default), and answers it; if one is running already, that one.
func (c *Controller) Verify(ctx context.Context, caller Caller, id lockstep.GroupID, rateMiB int64) (VerificationView, error) {
	if rateMiB < 0 || rateMiB > store.MaxVerifyRateMiB {
		return VerificationView{}, badRequest("", "rate_mib is %d; it must be from 1 to %d MiB/s", rateMiB, store.MaxVerifyRateMiB)
	}
	var w store.Verification
	var r protocol.Record
	opID := newID()
	err := c.update(ctx, nil, func(t *tx) error {
		x, err := t.begin(caller, id)
		if err != nil {
			return err
		}
		w, err = x.verify(opID, rateMiB)
		r = x.r
		return err
	})
	if err != nil {
		return VerificationView{}, asRefusal(err)
	}
	return viewVerification(w, r, nil), nil
}

// verify puts a new verification into the transaction, or gives the one that runs.
func (x *acting) verify(id string, rateMiB int64) (store.Verification, error) {
	last, _, err := get[store.Verification](x.tx, store.KeyVerify(x.g.ID))
	if err != nil || last.State == store.VerifyRunning {
		return last, err
	}
	if len(x.r.Members) == 0 {
		return last, conflict("", "verify needs a group with pairs: it has none")
	}
	if !x.r.InSync || x.r.State != protocol.StateNormal {
		return last, conflict("", "verify needs replication_status active; the group has %s: synchronize it first", x.shown())
	}
	if err := x.needAllNodes("verify"); err != nil {
		return last, err
	}
	w := store.Verification{
		ID: id, Group: x.g.ID, State: store.VerifyRunning, RateMiB: rateMiB, Epoch: x.r.Epoch, By: x.caller.who(),
		RequestID: x.caller.RequestID, StartedAt: x.now, Proof: last.Proof, Suspicion: last.Suspicion,
	}
	x.put(store.KeyVerify(x.g.ID), w)
	rate := "the nodes' rate"
	if rateMiB > 0 {
		rate = fmt.Sprintf("%d MiB/s", rateMiB)
	}
	x.event(x.r, "verification started, at "+rate, x.caller.who(), x.caller.RequestID)
	return w, nil
}

// CancelVerify ends the group's verification; it does nothing if none runs.
func (c *Controller) CancelVerify(ctx context.Context, caller Caller, id lockstep.GroupID) error {
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		x, err := t.look(caller, id)
		if err != nil {
			return err
		}
		w, _, err := get[store.Verification](t, store.KeyVerify(id))
		if err != nil || w.State != store.VerifyRunning {
			return err
		}
		reports, err := t.verifyReports(w)
		if err != nil {
			return err
		}
		t.endVerify(x.r, w, reports, store.VerifyCancelled, "by "+caller.who(), caller.who(), caller.RequestID)
		return nil
	}))
}

// driveVerify keeps what nodes report of a running verification in the history, and ends it when all
// have, when one cannot, or when the group is not in sync any more.
func (d *driver) driveVerify(ctx context.Context, id lockstep.GroupID) error {
	running := false
	d.c.peekCache(func(s *snapshot) { running = s.verifies[id].State == store.VerifyRunning })
	if !running {
		return nil
	}
	return d.c.update(ctx, d.fence, func(t *tx) error {
		w, found, err := get[store.Verification](t, store.KeyVerify(id))
		if err != nil || !found || w.State != store.VerifyRunning {
			return err
		}
		r, found, err := get[protocol.Record](t, store.KeyRecord(id))
		if err != nil || !found {
			return err
		}
		reports, err := t.verifyReports(w)
		if err != nil {
			return err
		}
		if news := unnoted(&w, reports); news != "" {
			t.put(store.KeyVerify(id), w)
			t.event(r, news, byNodes, w.RequestID)
			return nil // the change of the key brings the driver back
		}
		if state, why := outcome(r, reports); state != store.VerifyRunning {
			t.endVerify(r, w, reports, state, why, byController, w.RequestID)
		}
		return nil
	})
}

// verifyReports reads what the nodes reported of this verification; the transaction depends on it.
func (t *tx) verifyReports(w store.Verification) (map[lockstep.NodeID]store.VerifyObserved, error) {
	kvs, err := t.list(store.PrefixObservedVerify + string(w.Group) + "/")
	if err != nil {
		return nil, err
	}
	reports := map[lockstep.NodeID]store.VerifyObserved{}
	for _, kv := range kvs {
		o, err := decode[store.VerifyObserved](kv)
		if err != nil {
			return nil, err
		}
		if o.ID == w.ID && kv.Key == store.KeyObservedVerify(w.Group, o.Node) {
			t.compare(kv)
			reports[o.Node] = o
		}
	}
	return reports, nil
}

// outcome says how a verification stands. It is a proof only if every primary node has compared all it
// has in one and the same time in sync, which lasts: the transaction compares the record.
func outcome(r protocol.Record, reports map[lockstep.NodeID]store.VerifyObserved) (store.VerifyState, string) {
	if !r.InSync || r.State != protocol.StateNormal {
		why := "the group left in sync"
		if r.Reason != "" {
			why += ": " + r.Reason
		}
		return store.VerifyNotCompleted, why
	}
	done := true
	for _, n := range r.PrimaryNodes() {
		o, reported := reports[n]
		switch {
		case !reported || o.State == store.VerifyRunning:
			done = false
		case o.State != store.VerifyEqual:
			return store.VerifyNotCompleted, fmt.Sprintf("node %s: %s", n, o.Why)
		case o.InSyncEpoch != r.InSyncEpoch:
			return store.VerifyNotCompleted, fmt.Sprintf("the group changed after node %s had compared its part", n)
		}
	}
	if !done {
		return store.VerifyRunning, ""
	}
	return store.VerifyEqual, ""
}

// unnoted says what the reports have and the history does not, and takes it for noted.
func unnoted(w *store.Verification, reports map[lockstep.NodeID]store.VerifyObserved) string {
	var news []string
	for _, n := range sortedKeys(reports) {
		d := reports[n].Differences
		noted := w.Noted[n]
		if d.Count <= noted {
			continue
		}
		for _, x := range d.First[min(noted, len(d.First)):] {
			news = append(news, describeDifference(x))
		}
		if more := d.Count - max(noted, len(d.First)); more > 0 {
			news = append(news, fmt.Sprintf("%d more on node %s", more, n))
		}
		if w.Noted == nil {
			w.Noted = map[lockstep.NodeID]int{}
		}
		w.Noted[n] = d.Count
	}
	if len(news) == 0 {
		return ""
	}
	const most = 8 // in one line for people; the verification itself lists more
	if len(news) > most {
		news = append(news[:most], fmt.Sprintf("and %d more", len(news)-most))
	}
	return "verification found that the sides differ: " + strings.Join(news, "; ") + "; the primary's bytes count"
}

func describeDifference(d store.Difference) string {
	return fmt.Sprintf("volume %s, %d bytes at %d", d.Volume, d.Len, d.Off)
}

// sumUp adds up what the nodes compared and found.
func sumUp(reports map[lockstep.NodeID]store.VerifyObserved) (bytes int64, all store.VerifyDifferences, writes map[string]string) {
	writes = map[string]string{}
	for _, n := range sortedKeys(reports) {
		o := reports[n]
		bytes += o.Bytes
		all.Count += o.Differences.Count
		all.Bytes += o.Differences.Bytes
		all.First = append(all.First, o.Differences.First...)
		for link, number := range o.Writes {
			writes[link] = number
		}
	}
	all.First = all.First[:min(len(all.First), store.MaxDifferences)]
	return bytes, all, writes
}

// endVerify writes the end of a verification. Only one that ends equal is a proof.
func (t *tx) endVerify(r protocol.Record, w store.Verification, reports map[lockstep.NodeID]store.VerifyObserved, state store.VerifyState, why, by, request string) {
	w.State, w.Reason, w.EndedAt = state, why, ptr(t.now)
	var writes map[string]string
	w.Bytes, w.Differences, writes = sumUp(reports)
	took := t.now.Sub(w.StartedAt).Round(time.Second)
	what := fmt.Sprintf("verification not completed: %s", why)
	switch state {
	case store.VerifyEqual:
		w.Proof = &store.Proof{
			ID: w.ID, StartedAt: w.StartedAt, At: t.now, Epoch: r.Epoch, Writes: writes, Bytes: w.Bytes, Differences: w.Differences.Count,
		}
		w.Suspicion = ""
		what = fmt.Sprintf("verified: both sides are equal, %d bytes compared in %s", w.Bytes, took)
	case store.VerifyCancelled:
		what = "verification cancelled"
	case store.VerifyRunning, store.VerifyNotCompleted:
	}
	if n := w.Differences.Count; n > 0 {
		w.Suspicion = suspicion(w.Differences, t.now)
		what += fmt.Sprintf("; %s", found(w.Differences))
	}
	t.put(store.KeyVerify(w.Group), w)
	t.event(r, what, by, request)
}

// found says what a verification found.
func found(d store.VerifyDifferences) string {
	s := fmt.Sprintf("%d differences of %d bytes together were found", d.Count, d.Bytes)
	if d.Count == 1 {
		s = fmt.Sprintf("one difference of %d bytes was found", d.Bytes)
	}
	if slices.ContainsFunc(d.First, func(x store.Difference) bool { return !x.Repaired }) {
		return s + ", and not all of it is repaired"
	}
	return s + ", and repaired from the primary"
}

// suspicion is the warning about what was found: the cause is not known, and who had it before may have
// it again.
func suspicion(d store.VerifyDifferences, at time.Time) string {
	s := fmt.Sprintf("the verification of %s: %s", at.Format(time.RFC3339), found(d))
	if len(d.First) > 0 {
		s += ", the first in " + describeDifference(d.First[0])
	}
	return s
}

// viewVerification is a verification for answers.
func viewVerification(w store.Verification, r protocol.Record, seen map[lockstep.NodeID]store.VerifyObserved) VerificationView {
	v := VerificationView{Verification: w}
	for _, m := range r.Members {
		v.TotalBytes += m.SizeBytes
	}
	if w.State != store.VerifyRunning {
		return v
	}
	reports := map[lockstep.NodeID]store.VerifyObserved{}
	for n, o := range seen {
		if o.ID == w.ID {
			reports[n] = o
		}
	}
	v.Bytes, v.Differences, _ = sumUp(reports)
	for _, n := range sortedKeys(reports) {
		if reports[n].Why != "" {
			v.Waits = append(v.Waits, fmt.Sprintf("node %s %s", n, reports[n].Why))
		}
	}
	return v
}

// verification adds the group's verification, and what it warns of, to a view.
func (v *GroupView) verification(s *snapshot, r protocol.Record) {
	w, found := s.verifies[v.ID]
	if !found {
		return
	}
	view := viewVerification(w, r, s.verified[v.ID])
	v.Verification = &view
	switch {
	case w.State == store.VerifyRunning && view.Differences.Count > 0:
		v.Warnings = append(v.Warnings, suspicion(view.Differences, w.StartedAt))
	case w.Suspicion != "":
		v.Warnings = append(v.Warnings, w.Suspicion)
	}
}

func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

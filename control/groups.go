package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// maxPairsChanged bounds the pairs that one call takes into or out of a group: each is three
// records of one transaction, which the store limits. Larger groups grow by further updates.
const maxPairsChanged = 40

// CreateGroup makes a consistency group of pairs. It does not replicate until a sync.
func (c *Controller) CreateGroup(ctx context.Context, caller Caller, req GroupCreate) (GroupView, error) {
	if err := checkTexts(req.Name, req.Description); err != nil {
		return GroupView{}, err
	}
	if err := checkModel(req.Model); err != nil {
		return GroupView{}, err
	}
	if len(req.Pairs) == 0 {
		return GroupView{}, badRequest("", "replication_ids is empty; a group needs at least one pair")
	}
	if err := checkPairList("replication_ids", req.Pairs); err != nil {
		return GroupView{}, err
	}
	id, opID := lockstep.GroupID(newID()), newID()
	var group store.Group
	var record protocol.Record
	err := c.update(ctx, nil, func(t *tx) error {
		var secondary lockstep.AZ
		members := make([]protocol.Member, 0, len(req.Pairs))
		for i, pid := range req.Pairs {
			p, vols, err := t.joinablePair(caller, pid)
			if err != nil {
				return err
			}
			other := otherAZ(p)
			if i == 0 {
				secondary = other
			}
			if p.Primary != req.Priority {
				return badRequest("", "replication pair %s has priority_station %s; the group asks for %q", pid, p.Primary, req.Priority)
			}
			if other != secondary {
				return badRequest("", "replication pair %s has its DR disk in %s, the others have theirs in %s", pid, other, secondary)
			}
			members = append(members, memberOf(p, vols))
			t.join(id, p, vols)
		}
		group = store.Group{
			ID: id, Project: caller.Project, Name: req.Name, Description: req.Description,
			Pairs: slices.Clone(req.Pairs), Model: req.Model, Overlay: StatusCreating, Op: opID, CreatedAt: t.now,
		}
		record = protocol.NewGroup(id, caller.Project, req.Priority, secondary, members)
		t.create(store.KeyGroup(id), group)
		t.create(store.KeyRecord(id), record)
		op := c.newSettle(opID, t, caller, group, record.Epoch, "")
		op.Args[argMade] = "yes"
		t.createOp(op)
		t.history(record, "created", caller.who(), caller.RequestID)
		return nil
	})
	if err != nil {
		return GroupView{}, asRefusal(err)
	}
	return c.viewOf(group, record), nil
}

// checkPairList refuses pairs named twice and more than one transaction can take.
func checkPairList(field string, pairs []lockstep.PairID) error {
	if len(pairs) > maxPairsChanged {
		return badRequest("", "%s names %d pairs; at most %d can be taken in one request", field, len(pairs), maxPairsChanged)
	}
	seen := map[lockstep.PairID]bool{}
	for _, p := range pairs {
		if seen[p] {
			return badRequest("", "%s names replication pair %s twice", field, p)
		}
		seen[p] = true
	}
	return nil
}

func otherAZ(p store.Pair) lockstep.AZ {
	if p.AZs[0] == p.Primary {
		return p.AZs[1]
	}
	return p.AZs[0]
}

// joinablePair reads a pair that may become a member, and its volumes.
func (t *tx) joinablePair(caller Caller, id lockstep.PairID) (p store.Pair, vols [2]store.Volume, err error) {
	if p, err = seenPair(t, caller, id); err != nil {
		return p, vols, err
	}
	if p.Group != "" {
		return p, vols, badRequest("", "replication pair %s is already in consistency group %s", id, p.Group)
	}
	if p.Status != StatusAvailable {
		return p, vols, badRequest("", "replication pair %s must be available; it is %s", id, p.Status)
	}
	if vols, err = t.volumesOf(p); err != nil {
		return p, vols, err
	}
	if vols[0].SizeBytes != vols[1].SizeBytes {
		return p, vols, conflict(codeSizesDiffer, "the volumes of replication pair %s have %d and %d bytes: an extend of it is not undone yet, try again", id, vols[0].SizeBytes, vols[1].SizeBytes)
	}
	return p, vols, nil
}

func (t *tx) volumesOf(p store.Pair) (vols [2]store.Volume, err error) {
	for i, vid := range p.Volumes {
		v, found, err := get[store.Volume](t, store.KeyVolume(vid))
		if err != nil {
			return vols, err
		}
		if !found {
			return vols, fmt.Errorf("volume %s of pair %s: %w: %w", vid, p.ID, lockstep.ErrNotFound, errTorn)
		}
		vols[i] = v
	}
	return vols, nil
}

// join writes a pair and its volumes as members of a group.
func (t *tx) join(g lockstep.GroupID, p store.Pair, vols [2]store.Volume) {
	p.Group, p.UpdatedAt = g, ptr(t.now)
	t.put(store.KeyPair(p.ID), p)
	for _, v := range vols {
		v.Access, v.UpdatedAt = store.Access{Mode: store.AccessGroup, Group: g}, ptr(t.now)
		t.put(store.KeyVolume(v.ID), v)
	}
}

// leave writes a pair and its volumes as no longer members: it keeps the role it had.
func (t *tx) leave(p store.Pair, primary lockstep.AZ, image bool) error {
	vols, err := t.volumesOf(p)
	if err != nil {
		return err
	}
	p.Group, p.Primary, p.Image, p.UpdatedAt = "", primary, image, ptr(t.now)
	t.put(store.KeyPair(p.ID), p)
	for _, v := range vols {
		v.Access, v.UpdatedAt = serveInPair(p, v.ID), ptr(t.now)
		t.put(store.KeyVolume(v.ID), v)
	}
	return nil
}

// GetGroup answers one group.
func (c *Controller) GetGroup(ctx context.Context, caller Caller, id lockstep.GroupID) (GroupView, error) {
	var view GroupView
	found := false
	err := c.read(ctx, func(s *snapshot) {
		g, ok := s.groups[id]
		if !ok || !caller.owns(g.Project) {
			return
		}
		view, found = c.viewGroup(s, g), true
	})
	if err == nil && !found {
		err = notFound("", "replication consistency group %s does not exist", id)
	}
	return view, err
}

func (c *Controller) viewGroup(s *snapshot, g store.Group) GroupView {
	r := s.records[g.ID]
	v := c.groupView(g, r, DeriveGroup(g, r, s.sights[g.ID], s.aliveSet(r), c.cfg.Now()))
	for _, az := range []lockstep.AZ{r.Primary, r.Secondary} {
		if StoreDiesWith(s.cluster.StoreSites, az) {
			v.Warnings = append(v.Warnings, fmt.Sprintf("failover impossible if AZ %s is lost: the majority of the store's members is there", az))
		}
	}
	v.verification(s, r)
	v.Resync, v.ResyncLimitMiB = viewResync(r, s.sights[g.ID]), s.limits[g.ID].MiB
	return v
}

// viewOf is the view of a group that was just written, for answers that give no more than its
// status: every node of it counts as alive.
func (c *Controller) viewOf(g store.Group, r protocol.Record) GroupView {
	alive := map[lockstep.NodeID]bool{}
	for _, n := range r.Nodes() {
		alive[n] = true
	}
	return c.groupView(g, r, DeriveGroup(g, r, nil, alive, c.cfg.Now()))
}

func (c *Controller) groupView(g store.Group, r protocol.Record, st GroupStatus) GroupView {
	g.Pairs = slices.Clone(g.Pairs)
	return GroupView{
		Group: g, Priority: r.Primary, Status: st.Status, ReplicationStatus: st.ReplicationStatus,
		FaultLevel: st.FaultLevel, Failure: g.Failure, Epoch: r.Epoch, Strict: r.Strict, Reason: st.Reason, Progress: st.Progress,
	}
}

// seenGroup reads a group and its record.
func seenGroup(t *tx, caller Caller, id lockstep.GroupID) (g store.Group, r protocol.Record, err error) {
	g, found, err := get[store.Group](t, store.KeyGroup(id))
	if err != nil {
		return g, r, err
	}
	if !found || !caller.owns(g.Project) {
		return g, r, notFound("", "replication consistency group %s does not exist", id)
	}
	r, found, err = get[protocol.Record](t, store.KeyRecord(id))
	if err == nil && !found {
		err = fmt.Errorf("record of group %s: %w: %w", id, lockstep.ErrNotFound, errTorn)
	}
	return g, r, err
}

// UpdateGroup changes name, description and membership. A change of members needs a group that
// does not replicate, and a sync afterwards.
func (c *Controller) UpdateGroup(ctx context.Context, caller Caller, id lockstep.GroupID, u GroupUpdate) (GroupView, error) {
	if err := checkTexts(u.Name, u.Description); err != nil {
		return GroupView{}, err
	}
	if u.Model != nil {
		if err := checkModel(*u.Model); err != nil {
			return GroupView{}, err
		}
	}
	if err := checkPairList("add_replication_ids and remove_replication_ids", slices.Concat(u.Add, u.Remove)); err != nil {
		return GroupView{}, err
	}
	opID := newID()
	var view GroupView
	err := c.onceTakenOver(ctx, func(t *tx) error {
		g, r, err := seenGroup(t, caller, id)
		if err != nil {
			return err
		}
		if g.Overlay == StatusDeleting {
			return conflict("", "replication consistency group %s is being deleted", id)
		}
		if u.SetName || u.Name != nil {
			g.Name = u.Name
		}
		if u.SetDesc || u.Description != nil {
			g.Description = u.Description
		}
		if u.SetName || u.Name != nil || u.SetDesc || u.Description != nil {
			t.event(r, "name or description changed", caller.who(), caller.RequestID)
		}
		var epoch lockstep.Epoch // that the nodes are to adopt before it is done; 0: none
		if len(u.Add)+len(u.Remove) > 0 {
			if r, err = c.changeMembers(t, caller, &g, r, u); err != nil {
				return err
			}
			epoch = r.Epoch
		}
		// An operation under way keeps its place; this change is then complete as it is.
		if g.Op == "" {
			restore := g.Overlay
			if len(g.Pairs) == 0 {
				restore, g.Failure = "", nil
			}
			g.Overlay, g.Op = StatusUpdating, opID
			t.createOp(c.newSettle(opID, t, caller, g, epoch, restore))
		}
		g.UpdatedAt = ptr(t.now)
		t.put(store.KeyGroup(id), g)
		view = c.viewOf(g, r)
		view.Status = StatusUpdating
		return nil
	})
	if err != nil {
		return GroupView{}, asRefusal(err)
	}
	return view, nil
}

// changeMembers carries the membership part of an update into the transaction.
func (c *Controller) changeMembers(t *tx, caller Caller, g *store.Group, r protocol.Record, u GroupUpdate) (protocol.Record, error) {
	if err := t.checkNotOlder(r); err != nil {
		return r, err
	}
	if err := t.takeOver(g, r); err != nil {
		return r, err
	}
	if err := checkMembershipChange(*g, r); err != nil {
		return r, err
	}
	if err := t.checkTakenOver(*g, r); err != nil {
		return r, err
	}
	members := slices.Clone(r.Members)
	for _, pid := range u.Remove {
		i := slices.IndexFunc(members, func(m protocol.Member) bool { return m.Pair == pid })
		if i < 0 && !slices.Contains(g.Pairs, pid) {
			return r, badRequest("", "replication pair %s is not in consistency group %s", pid, g.ID)
		}
		p, err := seenPair(t, caller, pid)
		if err != nil {
			return r, err
		}
		if i < 0 { // it had left the group when the store was restored from a copy in which it had not
			if err := t.leave(p, r.Primary, false); err != nil {
				return r, err
			}
			g.Pairs = slices.DeleteFunc(slices.Clone(g.Pairs), func(x lockstep.PairID) bool { return x == pid })
			continue
		}
		if err := t.checkNoImages(r, members[i]); err != nil {
			return r, err
		}
		primary := r.Primary
		if members[i].NoImage { // only the other side has its data
			primary = r.Secondary
		}
		if err := t.leave(p, primary, members[i].InSyncEpoch > 0 && !members[i].NoImage); err != nil {
			return r, err
		}
		members = slices.Delete(members, i, i+1)
		g.Pairs = slices.DeleteFunc(slices.Clone(g.Pairs), func(x lockstep.PairID) bool { return x == pid })
	}
	for _, pid := range u.Add {
		p, vols, err := t.joinablePair(caller, pid)
		if err != nil {
			return r, err
		}
		if p.Primary != r.Primary || otherAZ(p) != r.Secondary {
			return r, badRequest("", "replication pair %s goes from %s to %s, the group from %s to %s; both must be equal",
				pid, p.Primary, otherAZ(p), r.Primary, r.Secondary)
		}
		members = append(members, memberOf(p, vols))
		g.Pairs = append(slices.Clone(g.Pairs), pid)
		t.join(g.ID, p, vols)
	}
	next, err := r.SetMembers(members)
	if err != nil {
		return r, err
	}
	t.put(store.KeyRecord(g.ID), next)
	t.history(next, fmt.Sprintf("members changed: %d added, %d removed", len(u.Add), len(u.Remove)), caller.who(), caller.RequestID)
	return next, nil
}

// checkMembershipChange: the group must be at rest and not replicating.
func checkMembershipChange(g store.Group, r protocol.Record) error {
	status := recordStatus(g, r)
	switch status {
	case StatusAvailable, StatusFailovered, StatusError, StatusErrorReversing, StatusErrorFailovered, StatusErrorDeleting:
	default:
		return conflict("", "a membership change needs status available, failovered or an error status; the group is %s", status)
	}
	if r.State != protocol.StateNormal || r.InSync {
		rep, _ := replication(r, faults{})
		return conflict("", "a membership change needs a group that does not replicate (replication_status active-stopped or inactive); it is %s: stop it first", rep)
	}
	return nil
}

// takeOverWithin bounds how long a new primary keeps the disks of its group from leaving. It is far more
// than any lease lasts; one that cannot take over must not stand in the way of removing a broken pair.
const takeOverWithin = time.Minute

// checkTakenOver refuses to let disks out of a group whose new primary is still waiting until what the
// old one may serve by has run out: outside the group they would open at once.
func (t *tx) checkTakenOver(g store.Group, r protocol.Record) error {
	if r.Fenced || g.UpdatedAt != nil && t.now.Sub(*g.UpdatedAt) > takeOverWithin {
		return nil
	}
	for _, n := range r.PrimaryNodes() {
		_, alive, err := peek[store.Presence](t, store.KeyAliveNode(n))
		if err != nil {
			return err
		}
		a, _, err := peek[protocol.Answer](t, store.KeyAnswer(r.Group, n))
		if err != nil {
			return err
		}
		if alive && (a.Epoch != r.Epoch || a.Step != protocol.StepAdopted) {
			return notTakenOverError{conflict(codeBusy, "node %s has not taken over as the primary yet, try again", n)}
		}
	}
	return nil
}

// notTakenOverError is a refusal that ends by itself, as a rule within two seconds of a failover.
type notTakenOverError struct{ error }

func (e notTakenOverError) Unwrap() error { return e.error }

// takeOverPatience is how long a call waits for that: a client that takes a group apart right after its
// failover, as Terraform does, does not try again.
const takeOverPatience = 4 * time.Second

// onceTakenOver is update, tried again while checkTakenOver refuses.
func (c *Controller) onceTakenOver(ctx context.Context, change func(*tx) error) error {
	for deadline := time.Now().Add(takeOverPatience); ; {
		err := c.update(ctx, nil, change)
		var not notTakenOverError
		if !errors.As(err, &not) || time.Now().After(deadline) || !sleep(ctx, 100*time.Millisecond) {
			return err
		}
	}
}

// DeleteGroup deletes a group without pairs. Its record stays as a tombstone, unseen at the API,
// until every node of it has been told.
func (c *Controller) DeleteGroup(ctx context.Context, caller Caller, id lockstep.GroupID) error {
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		g, r, err := seenGroup(t, caller, id)
		if err != nil {
			return err
		}
		if status := recordStatus(g, r); status != StatusAvailable && status != StatusError && status != StatusErrorDeleting {
			return conflict("", "replication consistency group %s must be available, error or error_deleting to be deleted; it is %s", id, status)
		}
		if len(g.Pairs) > 0 {
			return conflict("", "replication consistency group %s still has %d pairs: remove them first", id, len(g.Pairs))
		}
		if err := t.checkNotOlder(r); err != nil {
			return err
		}
		if err := t.takeOver(&g, r); err != nil {
			return err
		}
		next, err := r.Delete()
		if err != nil {
			return err
		}
		g.Overlay, g.UpdatedAt = StatusDeleting, ptr(t.now)
		t.put(store.KeyGroup(id), g)
		t.put(store.KeyRecord(id), next)
		t.history(next, "deleted", caller.who(), caller.RequestID)
		return nil
	}))
}

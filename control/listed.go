package control

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/tidwall/btree"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Walk says where a list begins, and how it runs.
type Walk struct {
	After  string // id of the thing before the first one; "": from the beginning
	Oldest bool   // the oldest first; else the newest
	// Group: only pairs of that group, for EachPair; "": all.
	Group lockstep.GroupID
	// Groups: only these, for EachGroup; nil: all.
	Groups []lockstep.GroupID
}

// listed orders the things of each project by the time they were made, then by id. A page then costs
// what is on it, and nothing of what is there besides, or belongs to others.
type listed map[lockstep.ProjectID]*btree.BTreeG[made]

// made is a place in that order.
type made struct {
	at time.Time
	id string
}

func (a made) before(b made) bool { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.id, b.id)) < 0 }

// drop and add are called with snapshots that change, so never by two at once.
func (l listed) drop(p lockstep.ProjectID, m made) {
	if tree := l[p]; tree != nil {
		tree.Delete(m)
		if tree.Len() == 0 {
			delete(l, p)
		}
	}
}

func (l listed) add(p lockstep.ProjectID, m made) {
	tree := l[p]
	if tree == nil {
		tree = btree.NewBTreeGOptions(made.before, btree.Options{NoLocks: true})
		l[p] = tree
	}
	tree.Set(m)
}

// walk calls fn with the ids of a project from w on, until fn says that it has enough. after is the place
// of w.After, if that is not empty.
func (l listed) walk(p lockstep.ProjectID, w Walk, after made, fn func(id string) bool) {
	tree := l[p]
	if tree == nil {
		return
	}
	each := func(m made) bool { return m.id == w.After || fn(m.id) }
	switch {
	case w.After == "" && w.Oldest:
		tree.Scan(each)
	case w.After == "":
		tree.Reverse(each)
	case w.Oldest:
		tree.Ascend(after, each)
	default:
		tree.Descend(after, each)
	}
}

// keep takes a change of one kind of thing in, and moves it in the order of its project.
func keep[K ~string, V any](l listed, things map[K]V, id K, value []byte, deleted bool, place func(V) (lockstep.ProjectID, time.Time)) error {
	if before, found := things[id]; found {
		p, at := place(before)
		l.drop(p, made{at, string(id)})
	}
	err := set(things, id, value, deleted)
	if after, found := things[id]; found {
		p, at := place(after)
		l.add(p, made{at, string(id)})
	}
	return err
}

func placeOfPair(p store.Pair) (lockstep.ProjectID, time.Time)     { return p.Project, p.CreatedAt }
func placeOfGroup(g store.Group) (lockstep.ProjectID, time.Time)   { return g.Project, g.CreatedAt }
func placeOfVolume(v store.Volume) (lockstep.ProjectID, time.Time) { return v.Project, v.CreatedAt }

// each calls fn with the things of the caller from w on, of only if that is not nil; known is false if w.After
// is none of the caller's.
func each[K ~string, V any](l listed, things map[K]V, caller Caller, w Walk, only []K, place func(V) (lockstep.ProjectID, time.Time), fn func(V) bool) (known bool) {
	var after made
	if w.After != "" {
		v, found := things[K(w.After)]
		p, at := place(v)
		if !found || !caller.owns(p) {
			return false
		}
		after = made{at, w.After}
	}
	if only != nil {
		some := listed{}
		for _, id := range only {
			if v, found := things[id]; found {
				p, at := place(v)
				some.add(p, made{at, string(id)})
			}
		}
		l = some
	}
	l.walk(caller.Project, w, after, func(id string) bool { return fn(things[K(id)]) })
	return true
}

// EachPair calls fn with those of the caller's pairs that keep admits (nil: all), in the order of their
// creation, until fn answers false. keep sees a pair without what its statuses need: replication status, fault
// level and progress. known is false, and fn was not called, if w.After is none of them. keep and fn must
// neither block nor call the Service.
func (c *Controller) EachPair(ctx context.Context, caller Caller, w Walk, keep, fn func(PairView) bool) (known bool, err error) {
	err = c.read(ctx, func(s *snapshot) {
		look := c.look(s)
		var only []lockstep.PairID
		if w.Group != "" {
			only = slices.AppendSeq([]lockstep.PairID{}, maps.Keys(s.groupsPairs[w.Group]))
		}
		known = each(s.pairsOf, s.pairs, caller, w, only, placeOfPair, func(p store.Pair) bool {
			view := look.plainPair(p)
			if keep != nil && !keep(view) {
				return true
			}
			look.addStatus(&view)
			return fn(view)
		})
	})
	return known, err
}

// EachGroup is EachPair for groups; keep sees no replication status, fault level, progress, reason, warnings
// and verification.
func (c *Controller) EachGroup(ctx context.Context, caller Caller, w Walk, keep, fn func(GroupView) bool) (known bool, err error) {
	err = c.read(ctx, func(s *snapshot) {
		known = each(s.groupsOf, s.groups, caller, w, w.Groups, placeOfGroup, func(g store.Group) bool {
			if keep != nil {
				r := s.records[g.ID]
				if !keep(GroupView{Group: g, Priority: r.Primary, Status: recordStatus(g, r), Failure: g.Failure, Epoch: r.Epoch, Strict: r.Strict}) {
					return true
				}
			}
			return fn(c.viewGroup(s, g))
		})
	})
	return known, err
}

// EachVolume is EachPair for volumes; keep sees no replication status.
func (c *Controller) EachVolume(ctx context.Context, caller Caller, w Walk, keep, fn func(VolumeView) bool) (known bool, err error) {
	err = c.read(ctx, func(s *snapshot) {
		look := c.look(s)
		known = each(s.volumesOf, s.volumes, caller, w, nil, placeOfVolume, func(v store.Volume) bool {
			view := look.plainVolume(v)
			if keep != nil && !keep(view) {
				return true
			}
			look.addVolumeStatus(&view)
			return fn(view)
		})
	})
	return known, err
}

// look is one look at a snapshot: what pairs of the same group share is found out once.
type look struct {
	s      *snapshot
	now    time.Time
	groups map[lockstep.GroupID]*groupLook
}

// groupLook is what the statuses of a group's pairs come from.
type groupLook struct {
	record  protocol.Record
	faults  faults
	members map[lockstep.PairID]protocol.Member
}

func (c *Controller) look(s *snapshot) *look {
	return &look{s: s, now: c.cfg.Now(), groups: map[lockstep.GroupID]*groupLook{}}
}

// group is nil for a group without a record.
func (l *look) group(id lockstep.GroupID) *groupLook {
	if g, ok := l.groups[id]; ok {
		return g
	}
	var g *groupLook
	if r, ok := l.s.records[id]; ok && id != "" {
		g = &groupLook{record: r, faults: inspect(r, l.s.sights[id], l.s.aliveSet(r), l.now), members: make(map[lockstep.PairID]protocol.Member, len(r.Members))}
		for _, m := range r.Members {
			g.members[m.Pair] = m
		}
	}
	l.groups[id] = g
	return g
}

// plainPair is a pair without what its statuses need.
func (l *look) plainPair(p store.Pair) PairView {
	view := PairView{Pair: p, Priority: p.Primary}
	if r, ok := l.s.records[p.Group]; ok && p.Group != "" {
		view.Priority = r.Primary
		view.UpdatedAt = later(p.UpdatedAt, l.s.groups[p.Group].UpdatedAt) // its statuses are the group's
	}
	return view
}

func (l *look) addStatus(view *PairView) {
	st := PairStatus{ReplicationStatus: ReplicationInactive, FaultLevel: FaultNone}
	if g := l.group(view.Group); g != nil {
		if m, ok := g.members[view.ID]; ok {
			st = memberStatus(m, g.record, g.faults, l.s.sights[view.Group])
		}
	}
	view.ReplicationStatus, view.FaultLevel, view.Progress = st.ReplicationStatus, st.FaultLevel, st.Progress
}

func (l *look) pair(p store.Pair) PairView {
	view := l.plainPair(p)
	l.addStatus(&view)
	return view
}

// plainVolume shares what the volume's record points to with the snapshot.
func (l *look) plainVolume(v store.Volume) VolumeView {
	view := VolumeView{Volume: v, ReplicationStatus: ReplicationDisabled}
	if p, ok := l.s.pairs[v.Pair]; ok && v.Pair != "" {
		view.UpdatedAt = later(v.UpdatedAt, l.plainPair(p).UpdatedAt)
	}
	return view
}

func (l *look) addVolumeStatus(view *VolumeView) {
	view.Metadata = maps.Clone(view.Metadata)
	view.Attachments = slices.Clone(view.Attachments)
	if p, ok := l.s.pairs[view.Pair]; ok && view.Pair != "" {
		view.ReplicationStatus = l.pair(p).ReplicationStatus
	}
}

func (l *look) volume(v store.Volume) VolumeView {
	view := l.plainVolume(v)
	l.addVolumeStatus(&view)
	return view
}

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

// each calls fn with the things of the caller from w on; known is false if w.After is none of them.
func each[K ~string, V any](l listed, things map[K]V, caller Caller, w Walk, place func(V) (lockstep.ProjectID, time.Time), fn func(V) bool) (known bool) {
	var after made
	if w.After != "" {
		v, found := things[K(w.After)]
		p, at := place(v)
		if !found || !caller.owns(p) {
			return false
		}
		after = made{at, w.After}
	}
	l.walk(caller.Project, w, after, func(id string) bool { return fn(things[K(id)]) })
	return true
}

// EachPair calls fn with the caller's pairs in the order of their creation, until fn answers false. known is
// false, and fn was not called, if w.After is none of them. fn must neither block nor call the Service.
func (c *Controller) EachPair(ctx context.Context, caller Caller, w Walk, fn func(PairView) bool) (known bool, err error) {
	err = c.read(ctx, func(s *snapshot) {
		look := c.look(s)
		known = each(s.pairsOf, s.pairs, caller, w, placeOfPair, func(p store.Pair) bool { return fn(look.pair(p)) })
	})
	return known, err
}

// EachGroup is EachPair for groups.
func (c *Controller) EachGroup(ctx context.Context, caller Caller, w Walk, fn func(GroupView) bool) (known bool, err error) {
	err = c.read(ctx, func(s *snapshot) {
		known = each(s.groupsOf, s.groups, caller, w, placeOfGroup, func(g store.Group) bool { return fn(c.viewGroup(s, g)) })
	})
	return known, err
}

// EachVolume is EachPair for volumes.
func (c *Controller) EachVolume(ctx context.Context, caller Caller, w Walk, fn func(VolumeView) bool) (known bool, err error) {
	err = c.read(ctx, func(s *snapshot) {
		look := c.look(s)
		known = each(s.volumesOf, s.volumes, caller, w, placeOfVolume, func(v store.Volume) bool { return fn(look.volume(v)) })
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

func (l *look) pair(p store.Pair) PairView {
	view := PairView{Pair: p, Priority: p.Primary}
	st := PairStatus{ReplicationStatus: ReplicationInactive, FaultLevel: FaultNone}
	if g := l.group(p.Group); g != nil {
		view.Priority = g.record.Primary
		view.UpdatedAt = later(p.UpdatedAt, l.s.groups[p.Group].UpdatedAt) // its statuses are the group's
		if m, ok := g.members[p.ID]; ok {
			st = memberStatus(m, g.record, g.faults, l.s.sights[p.Group])
		}
	}
	view.ReplicationStatus, view.FaultLevel, view.Progress = st.ReplicationStatus, st.FaultLevel, st.Progress
	return view
}

func (l *look) volume(v store.Volume) VolumeView {
	v.Metadata = maps.Clone(v.Metadata)
	v.Attachments = slices.Clone(v.Attachments)
	view := VolumeView{Volume: v, ReplicationStatus: ReplicationDisabled}
	if p, ok := l.s.pairs[v.Pair]; ok && v.Pair != "" {
		pair := l.pair(p)
		view.ReplicationStatus, view.UpdatedAt = pair.ReplicationStatus, later(v.UpdatedAt, pair.UpdatedAt)
	}
	return view
}

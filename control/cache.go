package control

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// snapshot is the decoded state of the store that answers and the driver look at. Mutations never
// rely on it: they read again and compare.
type snapshot struct {
	cluster   store.Cluster
	nodes     map[lockstep.NodeID]store.Node
	alive     map[lockstep.NodeID]store.Presence
	volumes   map[lockstep.VolumeID]store.Volume
	observed  map[lockstep.VolumeID]store.VolumeObserved
	pairs     map[lockstep.PairID]store.Pair
	groups    map[lockstep.GroupID]store.Group
	records   map[lockstep.GroupID]protocol.Record
	answers   map[lockstep.GroupID]map[lockstep.NodeID]protocol.Answer
	sights    map[lockstep.GroupID]map[lockstep.NodeID]Sight
	verifies  map[lockstep.GroupID]store.Verification
	verified  map[lockstep.GroupID]map[lockstep.NodeID]store.VerifyObserved
	limits    map[lockstep.GroupID]store.ResyncLimit
	onNodes   map[lockstep.NodeID]store.ResyncLimit
	ops       map[string]store.Operation
	groupsOps map[lockstep.GroupID]map[string]bool

	// Derived from the above, so that no answer and no step has to look through all of it.
	pairsOf, groupsOf, volumesOf listed
	loads                        map[lockstep.NodeID]nodeLoad
	nodesGroups                  map[lockstep.NodeID]map[lockstep.GroupID]bool // by record, untold nodes included
	groupsPairs                  map[lockstep.GroupID]map[lockstep.PairID]bool // by the pairs' own word
}

func newSnapshot() *snapshot {
	return &snapshot{
		nodes:     map[lockstep.NodeID]store.Node{},
		alive:     map[lockstep.NodeID]store.Presence{},
		volumes:   map[lockstep.VolumeID]store.Volume{},
		observed:  map[lockstep.VolumeID]store.VolumeObserved{},
		pairs:     map[lockstep.PairID]store.Pair{},
		groups:    map[lockstep.GroupID]store.Group{},
		records:   map[lockstep.GroupID]protocol.Record{},
		answers:   map[lockstep.GroupID]map[lockstep.NodeID]protocol.Answer{},
		sights:    map[lockstep.GroupID]map[lockstep.NodeID]Sight{},
		verifies:  map[lockstep.GroupID]store.Verification{},
		verified:  map[lockstep.GroupID]map[lockstep.NodeID]store.VerifyObserved{},
		limits:    map[lockstep.GroupID]store.ResyncLimit{},
		onNodes:   map[lockstep.NodeID]store.ResyncLimit{},
		ops:       map[string]store.Operation{},
		groupsOps: map[lockstep.GroupID]map[string]bool{},

		pairsOf: listed{}, groupsOf: listed{}, volumesOf: listed{},
		loads:       map[lockstep.NodeID]nodeLoad{},
		nodesGroups: map[lockstep.NodeID]map[lockstep.GroupID]bool{},
		groupsPairs: map[lockstep.GroupID]map[lockstep.PairID]bool{},
	}
}

// followed lists the prefixes a snapshot is made of.
var followed = []string{
	store.KeyCluster, store.PrefixNodes, store.PrefixAliveNodes, store.PrefixVolumes, store.PrefixObservedVol, store.PrefixPairs,
	// Reports before records: a report of a newer epoch than the record's would mean an older store.
	store.PrefixGroups, store.PrefixObservedGroup, store.PrefixRecords, store.PrefixAnswers, store.PrefixOps,
	store.PrefixVerify, store.PrefixObservedVerify, store.PrefixGroupLimits, store.PrefixNodeLimits,
}

// subject is what a changed key is about, for the driver.
type subject struct {
	kind string // group, pair, volume, node
	id   string
}

const (
	kindGroup  = "group"
	kindPair   = "pair"
	kindVolume = "volume"
	kindNode   = "node"
)

// apply takes one change in and says what it is about; ok is false for keys of no interest. A
// value that cannot be decoded counts as absent: err says so.
func (s *snapshot) apply(key string, value []byte, deleted bool, now time.Time) (sub subject, ok bool, err error) {
	for _, prefix := range followed {
		id, found := strings.CutPrefix(key, prefix)
		if !found {
			continue
		}
		switch prefix {
		case store.KeyCluster:
			m := map[string]store.Cluster{}
			err := set(m, id, value, deleted)
			s.cluster = m[id]
			return subject{}, false, err
		case store.PrefixNodes:
			return subject{kindNode, id}, true, set(s.nodes, lockstep.NodeID(id), value, deleted)
		case store.PrefixAliveNodes:
			return subject{kindNode, id}, true, set(s.alive, lockstep.NodeID(id), value, deleted)
		case store.PrefixVolumes:
			s.weigh(lockstep.VolumeID(id), -1)
			err := keep(s.volumesOf, s.volumes, lockstep.VolumeID(id), value, deleted, placeOfVolume)
			s.weigh(lockstep.VolumeID(id), 1)
			return subject{kindVolume, id}, true, err
		case store.PrefixObservedVol:
			s.weigh(lockstep.VolumeID(id), -1)
			err := set(s.observed, lockstep.VolumeID(id), value, deleted)
			s.weigh(lockstep.VolumeID(id), 1)
			return subject{kindVolume, id}, true, err
		case store.PrefixPairs:
			return subject{kindPair, id}, true, s.setPair(lockstep.PairID(id), value, deleted)
		case store.PrefixGroups:
			return subject{kindGroup, id}, true, keep(s.groupsOf, s.groups, lockstep.GroupID(id), value, deleted, placeOfGroup)
		case store.PrefixRecords:
			return subject{kindGroup, id}, true, s.setRecord(lockstep.GroupID(id), value, deleted)
		case store.PrefixAnswers:
			g, n, _ := strings.Cut(id, "/")
			err := set(inner(s.answers, lockstep.GroupID(g)), lockstep.NodeID(n), value, deleted)
			prune(s.answers, lockstep.GroupID(g))
			return subject{kindGroup, g}, true, err
		case store.PrefixObservedGroup:
			g, n, _ := strings.Cut(id, "/")
			err := s.setSight(lockstep.GroupID(g), lockstep.NodeID(n), value, deleted, now)
			prune(s.sights, lockstep.GroupID(g))
			return subject{kindGroup, g}, true, err
		case store.PrefixVerify:
			return subject{kindGroup, id}, true, set(s.verifies, lockstep.GroupID(id), value, deleted)
		case store.PrefixObservedVerify:
			g, n, _ := strings.Cut(id, "/")
			err := set(inner(s.verified, lockstep.GroupID(g)), lockstep.NodeID(n), value, deleted)
			prune(s.verified, lockstep.GroupID(g))
			return subject{kindGroup, g}, true, err
		case store.PrefixGroupLimits:
			return subject{}, false, set(s.limits, lockstep.GroupID(id), value, deleted)
		case store.PrefixNodeLimits:
			return subject{}, false, set(s.onNodes, lockstep.NodeID(id), value, deleted)
		case store.PrefixOps:
			return s.setOp(id, value, deleted)
		}
	}
	return subject{}, false, nil
}

func (s *snapshot) setPair(id lockstep.PairID, value []byte, deleted bool) error {
	before := s.pairs[id].Group
	delete(s.groupsPairs[before], id)
	prune(s.groupsPairs, before)
	err := keep(s.pairsOf, s.pairs, id, value, deleted, placeOfPair)
	if after := s.pairs[id].Group; after != "" {
		inner(s.groupsPairs, after)[id] = true
	}
	return err
}

func (s *snapshot) setRecord(id lockstep.GroupID, value []byte, deleted bool) error {
	for _, n := range toldNodes(s.records[id]) {
		delete(s.nodesGroups[n], id)
		prune(s.nodesGroups, n)
	}
	err := set(s.records, id, value, deleted)
	for _, n := range toldNodes(s.records[id]) {
		inner(s.nodesGroups, n)[id] = true
	}
	return err
}

// toldNodes are those that a record concerns: its own, and those that have left the group and do not know yet.
func toldNodes(r protocol.Record) []lockstep.NodeID { return append(r.Nodes(), r.Untold...) }

func (s *snapshot) setSight(g lockstep.GroupID, n lockstep.NodeID, value []byte, deleted bool, now time.Time) error {
	sights := inner(s.sights, g)
	before, had := sights[n]
	delete(sights, n)
	if deleted {
		return nil
	}
	observed, err := store.Decode[store.GroupObserved](value)
	if err != nil {
		return err
	}
	seen := Sight{GroupObserved: observed}
	if !seen.Serving {
		seen.HeldSince = now
		if had && !before.HeldSince.IsZero() {
			seen.HeldSince = before.HeldSince
		}
	}
	sights[n] = seen
	return nil
}

func (s *snapshot) setOp(id string, value []byte, deleted bool) (subject, bool, error) {
	before := s.ops[id]
	delete(s.groupsOps[before.Group], id)
	prune(s.groupsOps, before.Group)
	err := set(s.ops, id, value, deleted)
	op, found := s.ops[id]
	if !found {
		return subject{kindGroup, string(before.Group)}, true, err
	}
	inner(s.groupsOps, op.Group)[id] = true
	return subject{kindGroup, string(op.Group)}, true, err
}

func inner[K1, K2 comparable, V any](m map[K1]map[K2]V, k K1) map[K2]V {
	in, ok := m[k]
	if !ok {
		in = map[K2]V{}
		m[k] = in
	}
	return in
}

// prune drops an inner map that has become empty.
func prune[K1, K2 comparable, V any](m map[K1]map[K2]V, k K1) {
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

func set[K comparable, V any](m map[K]V, k K, value []byte, deleted bool) error {
	delete(m, k)
	if deleted {
		return nil
	}
	v, err := store.Decode[V](value)
	if err != nil {
		return err
	}
	m[k] = v
	return nil
}

// aliveSet is the presence of nodes as the status functions take it.
func (s *snapshot) aliveSet(r protocol.Record) map[lockstep.NodeID]bool {
	m := map[lockstep.NodeID]bool{}
	for _, n := range r.Nodes() {
		_, m[n] = s.alive[n]
	}
	return m
}

// cache is a snapshot kept up to date by one watch of the whole store.
type cache struct {
	mu      sync.RWMutex // guards all below; never held across a call of the store
	snap    *snapshot    // nil while not following
	rev     int64        // every change up to it is in snap
	moved   chan struct{}
	changed func(subject) // set while a driver listens; must not block
	listed  func(subject) // likewise, for what was there and did not change

	whole whole
}

func newCache() *cache {
	return &cache{moved: make(chan struct{}), whole: whole{turn: make(chan struct{}, 1)}}
}

// follow keeps the cache until ctx ends, listing anew whenever the watch breaks.
func (k *cache) follow(ctx context.Context, c *Controller) {
	defer k.drop()
	for ctx.Err() == nil {
		if err := k.followOnce(ctx, c); err != nil && ctx.Err() == nil {
			c.log.Warn("following the store", "error", err)
		}
		k.drop()
		if !sleep(ctx, c.cfg.RetryStore) {
			return
		}
	}
}

func (k *cache) followOnce(ctx context.Context, c *Controller) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !k.whole.enter(ctx) {
		return nil
	}
	snap, from, err := k.whole.load(ctx, c)
	if err != nil {
		k.whole.leave()
		return err
	}
	// The lists are of different revisions; the watch starts at the oldest, and what a list
	// already held is taken again in order, which ends in the same state.
	k.mu.Lock()
	k.snap, k.rev = snap, from
	k.bump()
	listed := k.listed
	k.mu.Unlock()
	k.whole.leave()                             // who waited for its turn finds this
	batches := c.cfg.Store.Watch(ctx, "", from) // before the work with all there is
	if listed != nil {
		snap.each(listed)
	}
	var looks sync.WaitGroup
	defer looks.Wait()
	defer cancel()
	looks.Go(func() {
		store.Rewinds(ctx, c.cfg.Store, func() int64 {
			k.mu.RLock()
			defer k.mu.RUnlock()
			return k.rev
		}, cancel)
	})
	for batch := range batches {
		k.take(batch, c)
	}
	return nil
}

func (k *cache) take(batch []store.Event, c *Controller) {
	if len(batch) == 0 {
		return
	}
	now := c.cfg.Now()
	subjects := map[subject]bool{}
	k.mu.Lock()
	for _, e := range batch {
		sub, ok, err := k.snap.apply(e.Key, e.Value, e.Deleted, now)
		if err != nil {
			c.log.Error("a value in the store cannot be read", "key", e.Key, "error", err)
		}
		if ok {
			subjects[sub] = true
		}
		k.rev = max(k.rev, e.ModRev)
	}
	k.bump()
	changed := k.changed
	k.mu.Unlock()
	if changed != nil {
		for sub := range subjects {
			changed(sub)
		}
	}
}

// bump wakes those who wait for a revision; k.mu is held.
func (k *cache) bump() {
	close(k.moved)
	k.moved = make(chan struct{})
}

func (k *cache) drop() {
	k.mu.Lock()
	k.snap = nil
	k.mu.Unlock()
}

// listen makes changed hear of every change, and listed of everything there is, now and whenever that is read
// anew; nil ends it.
func (k *cache) listen(changed, listed func(subject)) {
	k.mu.Lock()
	k.changed, k.listed = changed, listed
	snap := k.snap
	if snap != nil && listed != nil {
		snap.each(listed)
	}
	k.mu.Unlock()
}

// each names every subject the driver may have work with. Of volumes and pairs, which are most of what there is,
// these are few.
func (s *snapshot) each(fn func(subject)) {
	for v, volume := range s.volumes {
		if s.volumePending(v) {
			fn(subject{kindVolume, string(v)})
		}
		if g := volume.Access.Group; g != "" {
			fn(subject{kindGroup, string(g)})
		}
	}
	for p := range s.pairs {
		if s.pairPending(p) {
			fn(subject{kindPair, string(p)})
		}
	}
	for g := range s.groups {
		fn(subject{kindGroup, string(g)})
	}
	for g := range s.records {
		fn(subject{kindGroup, string(g)})
	}
	for g := range s.groupsOps {
		fn(subject{kindGroup, string(g)})
	}
	for g := range s.verifies {
		fn(subject{kindGroup, string(g)})
	}
}

// at waits until the cache holds revision rev; false: it does not follow, or not in time.
func (k *cache) at(ctx context.Context, rev int64, within time.Duration) bool {
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		k.mu.RLock()
		following, have, moved := k.snap != nil, k.rev, k.moved
		k.mu.RUnlock()
		if !following {
			return false
		}
		if have >= rev {
			return true
		}
		select {
		case <-moved:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// peekCache calls fn with the snapshot as it is; false: there is none.
func (c *Controller) peekCache(fn func(*snapshot)) bool {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	if c.cache.snap == nil {
		return false
	}
	fn(c.cache.snap)
	return true
}

// sleep waits d; false: ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

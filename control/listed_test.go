package control

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

// Goal: what a snapshot keeps beside the records themselves is what the records say, whatever changed in
// which order. Method: random changes of few keys; after each, everything derived is compared with what is
// found by looking through all of it.
func TestDerivedFollowsRecords(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 0))
	s := newSnapshot()
	pick := func(prefix string, n int) string { return fmt.Sprintf("%s%d", prefix, random.IntN(n)) }
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func() time.Time { return base.Add(time.Duration(random.IntN(5)) * time.Second) }
	change := func(key string, v any) {
		value := store.Encode(v)
		if random.IntN(20) == 0 {
			value = []byte("no record") // it counts as absent
		}
		_, _, err := s.apply(key, value, random.IntN(4) == 0, base)
		if err != nil && string(value) != "no record" {
			t.Fatal(err)
		}
	}
	for range 4000 {
		project := lockstep.ProjectID(pick("p", 3))
		node := lockstep.NodeID(pick("n", 3))
		switch random.IntN(5) {
		case 0:
			id := lockstep.PairID(pick("pair", 8))
			group := []lockstep.GroupID{"", lockstep.GroupID(pick("g", 3))}[random.IntN(2)]
			change(store.KeyPair(id), store.Pair{ID: id, Project: project, CreatedAt: at(), Group: group})
		case 1:
			id := lockstep.GroupID(pick("g", 8))
			change(store.KeyGroup(id), store.Group{ID: id, Project: project, CreatedAt: at()})
		case 2:
			id := lockstep.VolumeID(pick("v", 8))
			change(store.KeyVolume(id), store.Volume{ID: id, Project: project, CreatedAt: at(), Node: node, SizeBytes: int64(random.IntN(9))})
		case 3:
			id := lockstep.VolumeID(pick("v", 8))
			change(store.KeyObservedVolume(id), store.VolumeObserved{Volume: id, Node: node, State: []string{observedPresent, observedAbsent}[random.IntN(2)]})
		case 4:
			id := lockstep.GroupID(pick("g", 8))
			r := protocol.Record{Group: id, Primary: "az1", Secondary: "az2"}
			for i := range random.IntN(3) {
				r.Members = append(r.Members, protocol.Member{Pair: lockstep.PairID(fmt.Sprint(i)), Replicas: [2]protocol.Replica{
					{Node: node, AZ: "az1"}, {Node: lockstep.NodeID(pick("n", 3)), AZ: "az2"},
				}})
			}
			if random.IntN(2) == 0 {
				r.Untold = []lockstep.NodeID{lockstep.NodeID(pick("n", 3))}
			}
			change(store.KeyRecord(id), r)
		}
		checkDerived(t, s)
		if t.Failed() {
			return
		}
	}
}

func checkDerived(t *testing.T, s *snapshot) {
	t.Helper()
	checkListed(t, "pairs", s.pairsOf, s.pairs, placeOfPair)
	checkListed(t, "groups", s.groupsOf, s.groups, placeOfGroup)
	checkListed(t, "volumes", s.volumesOf, s.volumes, placeOfVolume)
	loads := map[lockstep.NodeID]nodeLoad{}
	for id, v := range s.volumes {
		l := loads[v.Node]
		l.allocated += v.SizeBytes
		l.count++
		if o, seen := s.observed[id]; !seen || o.State != observedPresent {
			l.promised += v.SizeBytes
		}
		loads[v.Node] = l
	}
	if !maps.Equal(loads, s.loads) {
		t.Errorf("loads are %v, want %v", s.loads, loads)
	}
	pairs := map[lockstep.GroupID]map[lockstep.PairID]bool{}
	for id, p := range s.pairs {
		if p.Group != "" {
			inner(pairs, p.Group)[id] = true
		}
	}
	if !reflect.DeepEqual(pairs, s.groupsPairs) {
		t.Errorf("pairs of groups are %v, want %v", s.groupsPairs, pairs)
	}
	groups := map[lockstep.NodeID]map[lockstep.GroupID]bool{}
	for id, r := range s.records {
		for _, n := range append(r.Nodes(), r.Untold...) {
			inner(groups, n)[id] = true
		}
	}
	if !reflect.DeepEqual(groups, s.nodesGroups) {
		t.Errorf("groups of nodes are %v, want %v", s.nodesGroups, groups)
	}
}

func checkListed[K ~string, V any](t *testing.T, what string, l listed, things map[K]V, place func(V) (lockstep.ProjectID, time.Time)) {
	t.Helper()
	want := map[lockstep.ProjectID][]made{}
	for id, v := range things {
		p, at := place(v)
		want[p] = append(want[p], made{at, string(id)})
	}
	if len(l) != len(want) {
		t.Errorf("%s of %d projects, want %d", what, len(l), len(want))
	}
	for p, order := range want {
		slices.SortFunc(order, func(a, b made) int {
			if a.before(b) {
				return -1
			}
			return 1
		})
		for _, oldest := range []bool{true, false} {
			for i := range len(order) + 1 { // from the beginning, and after each
				w, rest := Walk{Oldest: oldest}, slices.Clone(order)
				if !oldest {
					slices.Reverse(rest)
				}
				if i > 0 {
					w.After = rest[i-1].id
					rest = rest[i:]
				}
				var got, ids []string
				known := each(l, things, Caller{Project: p}, w, nil, place, func(V) bool { return true })
				l.walk(p, w, after(things, w, place), func(id string) bool {
					got = append(got, id)
					return true
				})
				for _, m := range rest {
					ids = append(ids, m.id)
				}
				if !known || !slices.Equal(got, ids) {
					t.Errorf("%s of %s, %+v: %v, want %v (known: %v)", what, p, w, got, ids, known)
				}
				if each(l, things, Caller{Project: "another"}, w, nil, place, func(V) bool { t.Error("what is another's is shown"); return false }) != (w.After == "") {
					t.Errorf("%s: the place of another's thing is known", what)
				}
			}
		}
	}
}

func after[K ~string, V any](things map[K]V, w Walk, place func(V) (lockstep.ProjectID, time.Time)) made {
	_, at := place(things[K(w.After)])
	return made{at, w.After}
}

// Goal: a list of the pairs of a group, or of some groups, has those of the caller only, and all of them; keep
// is asked first, and what it does not admit is not there.
func TestListsOfSome(t *testing.T) {
	s := newStill(t)
	groups := must[[]GroupView](t)(s.c.ListGroups(s.ctx, caller))
	pairs := must[[]PairView](t)(s.c.ListPairs(s.ctx, caller))
	for _, g := range groups {
		var want, got []lockstep.PairID
		for _, p := range pairs {
			if p.Group == g.ID {
				want = append(want, p.ID)
			}
		}
		some := func(who Caller, keep func(PairView) bool) (got []lockstep.PairID) {
			var views []PairView
			_, err := s.c.EachPair(s.ctx, who, Walk{Group: g.ID}, keep, func(p PairView) bool {
				views = append(views, p)
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range views {
				if full := must[PairView](t)(s.c.GetPair(s.ctx, who, p.ID)); !reflect.DeepEqual(p, full) {
					t.Errorf("in the list %+v, alone %+v", p, full)
				}
				got = append(got, p.ID)
			}
			return got
		}
		if got = some(caller, nil); !slices.Equal(got, want) {
			t.Errorf("pairs of %s: %v, want %v", g.ID, got, want)
		}
		if got = some(caller, func(p PairView) bool { return p.Group == "" }); got != nil {
			t.Errorf("pairs of %s that keep does not admit: %v", g.ID, got)
		}
		if got = some(Caller{Project: "another"}, nil); got != nil {
			t.Errorf("another project sees %v", got)
		}
		var only []GroupView
		_, err := s.c.EachGroup(s.ctx, caller, Walk{Groups: []lockstep.GroupID{g.ID, "missing"}}, func(v GroupView) bool {
			if v.Status != g.Status || v.Priority != g.Priority {
				t.Errorf("keep sees %+v of %+v", v, g)
			}
			return true
		}, func(v GroupView) bool {
			only = append(only, v)
			return true
		})
		if err != nil || len(only) != 1 || !reflect.DeepEqual(only[0], g) {
			t.Errorf("only %s: %+v, error %v", g.ID, only, err)
		}
	}
	_, err := s.c.EachGroup(s.ctx, caller, Walk{Groups: []lockstep.GroupID{}}, nil, func(GroupView) bool {
		t.Error("none was asked for")
		return true
	})
	if err != nil {
		t.Error(err)
	}
}

// slowStore is a store whose lists of volumes take a second, and are counted.
type slowStore struct {
	store.Store
	lists, running, most atomic.Int64
}

func (s *slowStore) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	if prefix == store.PrefixVolumes {
		s.lists.Add(1)
		if n := s.running.Add(1); n > s.most.Load() {
			s.most.Store(n)
		}
		defer s.running.Add(-1)
		defer time.Sleep(time.Second) // what it read is old by then
	}
	return s.Store.List(ctx, prefix)
}

// Watch tells changes late.
func (s *slowStore) Watch(ctx context.Context, prefix string, from int64) <-chan []store.Event {
	late := make(chan []store.Event)
	go func() {
		defer close(late)
		for batch := range s.Store.Watch(ctx, prefix, from) {
			time.Sleep(300 * time.Millisecond)
			late <- batch
		}
	}()
	return late
}

// Goal: requests that come while a controller has no cache share a read of the whole store, and none is
// answered from one that lacks a change made before it came. Method: on a store whose reads are slow, forty
// ask at once, and then one after each of some changes.
func TestRequestsShareAReadOfTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &slowStore{Store: memstore.NewMem()}
		c := New(Config{Store: st})
		put := func(i int) lockstep.VolumeID {
			id := lockstep.VolumeID(fmt.Sprintf("v%d", i))
			if _, err := store.Create(t.Context(), st, store.KeyVolume(id), store.Volume{ID: id, Project: "p1"}); err != nil {
				t.Fatal(err)
			}
			return id
		}
		me := Caller{Project: "p1"}
		var asked sync.WaitGroup
		for i := range 40 {
			id := put(i)
			asked.Go(func() {
				if _, err := c.GetVolume(t.Context(), me, id); err != nil {
					t.Errorf("%s, which was made before it was asked for: %v", id, err)
				}
			})
			if i < 5 { // these come while others read already
				time.Sleep(100 * time.Millisecond)
			}
		}
		asked.Wait()
		if n := st.lists.Load(); n > 3 {
			t.Errorf("the store was read %d times for 40 requests, want at most 3", n)
		}
		if n := st.most.Load(); n > 1 {
			t.Errorf("the store was read %d times at once", n)
		}
		if c.cache.whole.snap != nil {
			t.Error("what was read is kept although nobody waits for it")
		}
	})
}

// Goal: a request that comes while a controller starts waits for its cache instead of reading the store again.
func TestStartingControllerReadsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &slowStore{Store: memstore.NewMem()}
		c := New(Config{Store: st, CacheWait: 50 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { _ = c.Run(ctx) })
		time.Sleep(500 * time.Millisecond)
		if _, err := store.Create(ctx, st, store.KeyPair("p"), store.Pair{ID: "p", Project: "p1"}); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			run.Go(func() {
				seen := 0
				if _, err := c.EachPair(ctx, Caller{Project: "p1"}, Walk{}, nil, func(PairView) bool { seen++; return true }); err != nil || seen != 1 {
					t.Errorf("%d pairs, error %v; want the one that was made before", seen, err)
				}
			})
		}
		time.Sleep(5 * time.Second)
		if n := st.lists.Load(); n != 1 {
			t.Errorf("the store was read %d times, want once", n)
		}
		cancel()
		run.Wait()
	})
}

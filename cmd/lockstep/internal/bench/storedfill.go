package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// A store is filled with what controllers and nodes leave there when groups replicate and nothing happens.
const (
	pairsOfGroup  = 4
	pairsOfNode   = 500
	pairsOfFew    = 100 // of the project that owns few
	otherProjects = 50
	freeVolumes   = 300 // in each zone, in no pair
	txnOps        = 120 // the store takes 128
	fillers       = 8   // transactions at once
)

// filled is what a store was filled with.
type filled struct {
	many, few lockstep.ProjectID
	pairs     map[lockstep.ProjectID][]lockstep.PairID // oldest first
	groups    map[lockstep.ProjectID][]lockstep.GroupID
	volumes   map[lockstep.ProjectID][]lockstep.VolumeID // of pairs, the production ones
	free      [2][]lockstep.VolumeID                     // of many, by zone
	keys      int
}

// filler makes records and writes them in transactions.
type filler struct {
	*filled
	ctx     context.Context
	st      store.Store
	eg      *errgroup.Group
	random  *rand.Rand
	now     time.Time // of the next thing that is made
	pending *store.Tx
	ops     int
}

// fillStore writes so many pairs: half of them are one project's, a hundred another one's, the rest belongs
// to fifty others.
func fillStore(ctx context.Context, st store.Store, pairs int, many, few lockstep.ProjectID, seed uint64) (*filled, error) {
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(fillers)
	f := &filler{
		filled: &filled{
			many: many, few: few, pairs: map[lockstep.ProjectID][]lockstep.PairID{},
			groups: map[lockstep.ProjectID][]lockstep.GroupID{}, volumes: map[lockstep.ProjectID][]lockstep.VolumeID{},
		},
		ctx: ctx, st: st, eg: eg, random: rand.New(rand.NewPCG(seed, 0)), pending: store.NewTx(),
		now: time.Now().UTC().Add(-30 * 24 * time.Hour).Truncate(time.Second),
	}
	others := make([]lockstep.ProjectID, otherProjects)
	for i := range others {
		others[i] = lockstep.ProjectID(strings.ReplaceAll(f.id(), "-", ""))
	}
	nodes := max(1, pairs/pairsOfNode)
	for n := range nodes {
		for zone := range zones {
			f.node(zone, n)
		}
	}
	for made := 0; made < pairs && ctx.Err() == nil; made += pairsOfGroup {
		owner := others[made/pairsOfGroup%len(others)]
		switch {
		case made/pairsOfGroup%2 == 0:
			owner = many
		case len(f.pairs[few]) < min(pairsOfFew, pairs/4):
			owner = few
		}
		f.group(owner, min(pairsOfGroup, pairs-made), f.random.IntN(nodes))
	}
	for range freeVolumes {
		for zone := range zones {
			v := f.volume(many, zone, f.random.IntN(nodes))
			v.Access = store.Access{Mode: store.AccessPlain}
			f.put(store.KeyVolume(v.ID), v)
			f.seen(v)
			f.free[zone] = append(f.free[zone], v.ID)
		}
	}
	f.flush()
	return f.filled, eg.Wait()
}

func (f *filler) id() string {
	return fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", f.random.Uint32(), f.random.IntN(1<<16), f.random.IntN(1<<12), f.random.IntN(1<<12), f.random.Int64N(1<<48))
}

func (f *filler) put(key string, v any) {
	f.pending.Put(key, v, store.AnyRev)
	f.keys++
	if f.ops++; f.ops == txnOps {
		f.flush()
	}
}

// flush writes what is pending, at some time before the end.
func (f *filler) flush() {
	if f.ops == 0 {
		return
	}
	tx := f.pending
	f.pending, f.ops = store.NewTx(), 0
	f.eg.Go(func() error {
		_, err := tx.Commit(f.ctx, f.st)
		return err
	})
}

func nodeID(zone, n int) lockstep.NodeID {
	return lockstep.NodeID(fmt.Sprintf("%s-node-%d", zones[zone].AZ, n+1))
}

func bootID(zone, n int) lockstep.BootID {
	return lockstep.BootID(fmt.Sprintf("b00710d0-%04x-4000-8000-%012x/%016x", zone, n, n))
}

func instanceID(zone, n int) string { return fmt.Sprintf("1257a9ce-%04x-4000-8000-%012x", zone, n) }

func (f *filler) node(zone, n int) {
	id := nodeID(zone, n)
	f.put(store.KeyNode(id), store.Node{
		ID: id, AZ: lockstep.AZ(zones[zone].AZ), Replicate: fmt.Sprintf("10.%d.%d.%d:7777", zone, n/250, n%250),
		NBDSocket: "/run/lockstep/nbd.sock", NBDAddress: fmt.Sprintf("10.%d.%d.%d:10809", zone, n/250, n%250),
		Instance: instanceID(zone, n), Start: 3, BootID: bootID(zone, n), TotalBytes: 1 << 44, FreeBytes: 1 << 43,
		Version: "devel", UpdatedAt: f.now,
	})
	f.put(store.KeyAliveNode(id), store.Presence{Node: id, Start: 3, Since: f.now})
}

func (f *filler) volume(owner lockstep.ProjectID, zone, node int) store.Volume {
	id := lockstep.VolumeID(f.id())
	name := "disk-" + string(id[:8])
	return store.Volume{
		ID: id, Project: owner, User: "8e4f4a2c6f0b4d0f9d2a1b3c5d7e9f01", Name: &name, SizeBytes: 10 * lockstep.GiB, Type: "SSD",
		AZ: lockstep.AZ(zones[zone].AZ), Node: nodeID(zone, node), Status: control.StatusAvailable, CreatedAt: f.now, UpdatedAt: &f.now,
	}
}

// seen is the node's report of a volume.
func (f *filler) seen(v store.Volume) {
	f.put(store.KeyObservedVolume(v.ID), store.VolumeObserved{
		Volume: v.ID, Node: v.Node, State: "present", SizeBytes: v.SizeBytes, UpdatedAt: f.now,
	})
}

// group makes a group that replicates, with its pairs, what its nodes answered and reported, and its history.
func (f *filler) group(owner lockstep.ProjectID, pairs, node int) {
	f.now = f.now.Add(10 * time.Second)
	at := f.now
	g := store.Group{ID: lockstep.GroupID(f.id()), Project: owner, Model: "hypermetro", CreatedAt: at, UpdatedAt: &at}
	name := "group-" + string(g.ID[:8])
	g.Name = &name
	var members []protocol.Member
	sides := [2]map[lockstep.VolumeID]store.ReplicaObserved{{}, {}}
	for range pairs {
		p := store.Pair{
			ID: lockstep.PairID(f.id()), Project: owner, Primary: lockstep.AZ(zones[0].AZ), Model: "hypermetro", Group: g.ID,
			Status: control.StatusAvailable, Meta: store.PairMeta{SizeGiB: 10, Type: "SSD"}, CreatedAt: at, UpdatedAt: &at,
		}
		name := "pair-" + string(p.ID[:8])
		p.Name = &name
		m := protocol.Member{Pair: p.ID, SizeBytes: 10 * lockstep.GiB, InSyncEpoch: 3}
		for zone := range zones {
			v := f.volume(owner, zone, node)
			v.Pair, v.Access = p.ID, store.Access{Mode: store.AccessGroup, Group: g.ID}
			p.Volumes[zone], p.AZs[zone] = v.ID, v.AZ
			m.Replicas[zone] = protocol.Replica{Volume: v.ID, Node: v.Node, AZ: v.AZ}
			sides[zone][v.ID] = store.ReplicaObserved{}
			f.put(store.KeyVolume(v.ID), v)
			f.seen(v)
			if zone == 0 {
				f.volumes[owner] = append(f.volumes[owner], v.ID)
			}
		}
		members, g.Pairs = append(members, m), append(g.Pairs, p.ID)
		f.put(store.KeyPair(p.ID), p)
		f.pairs[owner] = append(f.pairs[owner], p.ID)
	}
	f.groups[owner] = append(f.groups[owner], g.ID)
	f.put(store.KeyGroup(g.ID), g)
	r := protocol.NewGroup(g.ID, owner, lockstep.AZ(zones[0].AZ), lockstep.AZ(zones[1].AZ), members)
	r.Epoch, r.InSync, r.Intent, r.Cause, r.Reason, r.InSyncEpoch = 3, true, protocol.IntentRun, protocol.CauseNone, "", 3
	r.BootIDs = map[lockstep.NodeID]lockstep.BootID{nodeID(0, node): bootID(0, node), nodeID(1, node): bootID(1, node)}
	r.Instances = map[lockstep.NodeID]string{nodeID(0, node): instanceID(0, node), nodeID(1, node): instanceID(1, node)}
	f.put(store.KeyRecord(g.ID), r)
	for zone, role := range []string{"primary", "secondary"} {
		id, peer := nodeID(zone, node), nodeID(1-zone, node)
		a := protocol.Answer{
			Group: g.ID, Node: id, Epoch: r.Epoch, Step: protocol.StepAdopted, BootID: bootID(zone, node),
			Instance: instanceID(zone, node), Start: 3, Healthy: true,
		}
		o := store.GroupObserved{
			Group: g.ID, Node: id, Start: 3, Epoch: r.Epoch, Role: role, Mode: "two-sided", Serving: true, Volumes: sides[zone], At: at,
			BootID: bootID(zone, node), Instance: instanceID(zone, node),
		}
		if zone == 0 {
			o.Peers = map[lockstep.NodeID]store.PeerObserved{peer: {Connected: true, BootID: bootID(1, node)}}
		} else {
			o.Mode, o.Serving = "refused", false
		}
		f.put(store.KeyAnswer(g.ID, id), a)
		f.put(store.KeyObservedGroup(g.ID, id), o)
	}
	for epoch, what := range []string{"created", "synchronization began", "in sync"} {
		f.put(fmt.Sprintf("%s%s/%020d", store.PrefixHistory, g.ID, epoch+1), store.HistoryEntry{
			At: at, Group: g.ID, Epoch: lockstep.Epoch(epoch + 1), What: what, By: "controller", Condition: "in sync",
		})
	}
}

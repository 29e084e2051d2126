package torture

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/internal/history"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// What a disk is used for, in bytes from its beginning. Registers stand far apart, so that they lie
// in different regions of the write-intent log and in different chunks of a synchronization.
const (
	sizeGiB        = 1
	chainsCount    = 16
	chainsSlots    = 64
	registersAt    = 16 << 20
	registerStride = 2<<20 + history.BlockBytes
	registersCount = 16
	bulkAt         = 64 << 20
	bulkBytes      = 64 << 20
	burstAt        = 192 << 20
	burstRange     = 128 << 20
)

// registerBlock is the block of a register, in units of history.BlockBytes.
func registerBlock(i int) int64 { return (registersAt + int64(i)*registerStride) / history.BlockBytes }

// disk is one replicated disk: a volume in each zone.
type disk struct {
	number int // in the recorder
	volume map[string]string
	node   map[string]dev.Member
}

// group is a consistency group under torture with its application.
type group struct {
	number int
	id     string
	disks  []*disk
	chains *history.Chains

	primary   atomic.Pointer[string]   // zone, by the API's last word
	lastWrite map[string]*atomic.Int64 // by zone: when a write was last acknowledged there, Unix ns
	idle      atomic.Bool              // the application leaves its disks alone

	mu   sync.Mutex // guards lost
	lost error      // what an opened image lacked
}

func (g *group) where() string { return *g.primary.Load() }

func (g *group) lose(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lost = errors.Join(g.lost, err)
}

// makeGroups makes volumes, pairs and groups by REST, and synchronizes them.
func (r *run) makeGroups(ctx context.Context) (groups []*group, err error) {
	for n := range r.o.Groups {
		g := &group{number: n, chains: history.NewChains(r.o.Seed, r.o.Disks, chainsCount, chainsSlots, 0), lastWrite: map[string]*atomic.Int64{}}
		for _, az := range zones {
			g.lastWrite[az] = &atomic.Int64{}
		}
		g.primary.Store(&zones[0])
		var pairs []string
		for i := range r.o.Disks {
			d := &disk{number: n*disksMax + i, volume: map[string]string{}, node: map[string]dev.Member{}}
			// Disks of a group stand on different nodes, and are not paired node by node.
			on := map[string]int{zones[0]: i % r.o.NodesPerAZ, zones[1]: (i + i/2 + n) % r.o.NodesPerAZ}
			for _, az := range zones {
				if d.volume[az], err = r.rig.makeVolume(ctx, az, on[az]+1); err != nil {
					return nil, err
				}
				d.node[az] = dev.Member{AZ: az, N: on[az] + 1}
			}
			p, err := r.rig.c.CreatePair(ctx, client.PairCreate{VolumeIDs: []string{d.volume[zones[0]], d.volume[zones[1]]}, PriorityStation: zones[0]})
			if err != nil {
				return nil, err
			}
			pairs = append(pairs, p.ID)
			g.disks = append(g.disks, d)
		}
		for _, id := range pairs {
			err := poll(ctx, time.Minute, "pair "+id+" is available", func(ctx context.Context) error {
				p, err := r.rig.c.Pair(ctx, id)
				return statusIs("available", p.Status, err)
			})
			if err != nil {
				return nil, err
			}
		}
		made, err := r.rig.c.CreateGroup(ctx, client.GroupCreate{PairIDs: pairs, PriorityStation: zones[0]})
		if err != nil {
			return nil, err
		}
		g.id = made.ID
		err = poll(ctx, time.Minute, "group "+g.id+" is available", func(ctx context.Context) error {
			have, err := r.rig.c.Group(ctx, g.id)
			return statusIs("available", have.Status, err)
		})
		if err != nil {
			return nil, err
		}
		if err := r.rig.c.Act(ctx, g.id, client.ActionSync); err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	for _, g := range groups {
		err := poll(ctx, time.Minute, fmt.Sprintf("group %d is active", g.number), func(ctx context.Context) error {
			have, err := r.rig.c.Group(ctx, g.id)
			return statusIs("active", have.ReplicationStatus, err)
		})
		if err != nil {
			return nil, err
		}
	}
	return groups, nil
}

func statusIs(want, have string, err error) error {
	if err == nil && have != want {
		err = errors.New("it is " + have)
	}
	return err
}

func (x *rig) makeVolume(ctx context.Context, az string, node int) (id string, err error) {
	v, err := x.c.CreateVolume(ctx, client.VolumeCreate{SizeGiB: sizeGiB, AvailabilityZone: az, Metadata: map[string]string{"node": strconv.Itoa(node)}})
	if err != nil {
		return "", err
	}
	return v.ID, poll(ctx, time.Minute, "volume "+v.ID+" is available", func(ctx context.Context) error {
		have, err := x.c.Volume(ctx, v.ID)
		return statusIs("available", have.Status, err)
	})
}

// dialTimeout bounds the opening of a disk: a stopped node takes connections and says nothing.
const dialTimeout = 2 * time.Second

// dial opens a disk in a zone.
func (x *rig) dial(ctx context.Context, d *disk, az string) (*nbdclient.Client, error) {
	socket, err := x.layout.Socket(d.node[az])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return nbdclient.DialAddr(ctx, "unix", socket, d.volume[az])
}

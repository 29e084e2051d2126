package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/lease"
	"github.com/lockstep-dr/lockstep/store"
)

// ServerStates tells whether a server runs; the compute side provides it.
type ServerStates interface {
	// Running reports whether the server may be reading or writing its disks.
	Running(ctx context.Context, server string) (bool, error)
}

// Config is what a Controller needs. Zero durations take the default.
type Config struct {
	Store     store.Store
	ID        string // of this controller; "": a random one
	ClusterID string // "": taken from the store, or a random one if this is the first controller
	Region    string
	Zones     []lockstep.AZ // known AZs, the default first; those of nodes are known as well
	// StoreSites is the zone or third site of each member of the store; nil: not known here.
	StoreSites []string
	Logger     *slog.Logger // nil: none
	Servers    ServerStates // nil: every attached server counts as running where that matters

	Now func() time.Time // nil: time.Now

	LeaderTTL      time.Duration // of the leader's lease in the store, default 5s
	Patience       time.Duration // of a transition before ways back are taken, default 5s
	SettleTimeout  time.Duration // wait for nodes to adopt what create and update changed, default 10s
	StopTimeout    time.Duration // wait of a stop for its effect, default 10s
	ExtendTimeout  time.Duration // of growing both sides, default 30s
	ReverseTimeout time.Duration // of a switchover before it is given up, default 30s
	ResyncMin      time.Duration // pause before an automatic sync, doubled at each, default 1s
	ResyncMax      time.Duration // default 60s
	ResyncReset    time.Duration // in sync for that long ends the back-off, default 2m
	CacheWait      time.Duration // wait of a read for the cache to catch up, default 250ms
	RetryStore     time.Duration // pause after an error of the store, default 500ms
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.LeaderTTL, 5*time.Second)
	def(&c.Patience, 5*time.Second)
	def(&c.SettleTimeout, 10*time.Second)
	def(&c.StopTimeout, 10*time.Second)
	def(&c.ExtendTimeout, 30*time.Second)
	def(&c.ReverseTimeout, 30*time.Second)
	def(&c.ResyncMin, time.Second)
	def(&c.ResyncMax, time.Minute)
	def(&c.ResyncReset, 2*time.Minute)
	def(&c.CacheWait, 250*time.Millisecond)
	def(&c.RetryStore, 500*time.Millisecond)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.ID == "" {
		c.ID = newID()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Controller implements Service on a store. Its calls may be made on any controller, whether it
// leads or not and whether Run was called or not; but only a leading one drives what they start.
type Controller struct {
	cfg   Config
	log   *slog.Logger
	cache *cache
}

var _ Service = (*Controller)(nil)

// New returns a controller; it does nothing until Run or a call of Service.
func New(cfg Config) *Controller {
	cfg = cfg.withDefaults()
	return &Controller{cfg: cfg, log: cfg.Logger, cache: newCache()}
}

// Run follows the store, campaigns for leadership and, while leading, drives every operation. It
// returns when ctx ends, with nil, or at once if this controller belongs to another cluster.
func (c *Controller) Run(ctx context.Context) error {
	for {
		_, err := c.ensureCluster(ctx)
		if err == nil {
			break
		}
		if !errors.Is(err, lockstep.ErrStoreUnavailable) {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		c.log.Warn("waiting for the store", "error", err)
		if !sleep(ctx, c.cfg.RetryStore) {
			return nil
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.cache.follow(ctx, c) })
	wg.Go(func() { c.announce(ctx) })

	// The only error is the end of ctx: an unavailable store is waited out.
	_ = lease.Leader{Logger: c.log}.Run(ctx, c.cfg.Store, store.KeyLeader, c.cfg.ID, c.cfg.LeaderTTL,
		func(ctx context.Context, fence lease.Fence) {
			newDriver(c, []store.Cmp{fence.Cmp()}).run(ctx)
		})
	return nil
}

// announce keeps this controller's presence in the store, for people. A process that took the
// same id keeps it.
func (c *Controller) announce(ctx context.Context) {
	presence := store.Presence{Node: lockstep.NodeID(c.cfg.ID), Start: uint64(c.cfg.Now().UnixNano()), Since: c.stamp()}
	err := lease.Presence{Logger: c.log}.Run(ctx, c.cfg.Store, "controller", c.cfg.ID, c.cfg.LeaderTTL, presence)
	if err != nil && ctx.Err() == nil {
		c.log.Error("another controller has this id", "controller", c.cfg.ID, "error", err)
	}
}

// ensureCluster makes the cluster's record if this is its first controller, and refuses to run
// with the id of another one.
func (c *Controller) ensureCluster(ctx context.Context) (store.Cluster, error) {
	var cluster store.Cluster
	err := c.update(ctx, nil, func(t *tx) error {
		have, found, err := get[store.Cluster](t, store.KeyCluster)
		if err != nil {
			return err
		}
		if found {
			if c.cfg.ClusterID != "" && have.ID != c.cfg.ClusterID {
				return fmt.Errorf("the store belongs to cluster %s, this controller to %s", have.ID, c.cfg.ClusterID)
			}
			if len(c.cfg.StoreSites) > 0 && !slices.Equal(have.StoreSites, c.cfg.StoreSites) {
				have.StoreSites = c.cfg.StoreSites
				t.put(store.KeyCluster, have)
			}
			cluster = have
			return nil
		}
		cluster = store.Cluster{ID: c.cfg.ClusterID, Region: c.cfg.Region, CreatedAt: t.now, StoreSites: c.cfg.StoreSites}
		if cluster.ID == "" {
			cluster.ID = newID()
		}
		t.create(store.KeyCluster, cluster)
		return nil
	})
	return cluster, err
}

// Zones lists the AZs: those configured, in that order, then those of nodes.
func (c *Controller) Zones(ctx context.Context) ([]Zone, error) {
	var zones []Zone
	err := c.read(ctx, func(s *snapshot) { zones = c.zones(s.nodes, s.alive) })
	return zones, err
}

func (c *Controller) zones(nodes map[lockstep.NodeID]store.Node, alive map[lockstep.NodeID]store.Presence) []Zone {
	up := map[lockstep.AZ]bool{}
	for id, n := range nodes {
		_, here := alive[id]
		up[n.AZ] = up[n.AZ] || here
	}
	var zones []Zone
	known := map[lockstep.AZ]bool{}
	for _, az := range append(slices.Clone(c.cfg.Zones), slices.Sorted(maps.Keys(up))...) {
		if !known[az] {
			known[az] = true
			zones = append(zones, Zone{Name: az, Available: up[az]})
		}
	}
	return zones
}

// Nodes lists the storage nodes, by id.
func (c *Controller) Nodes(ctx context.Context) ([]NodeView, error) {
	var nodes []NodeView
	err := c.read(ctx, func(s *snapshot) {
		for _, id := range slices.Sorted(maps.Keys(s.nodes)) {
			p, alive := s.alive[id]
			nodes = append(nodes, NodeView{Node: s.nodes[id], Alive: alive, Since: p.Since, ResyncLimitMiB: s.onNodes[id].MiB})
		}
	})
	return nodes, err
}

// volumeTypes are names only: every pool stores every type alike.
var volumeTypes = []VolumeType{
	{ID: "ssd", Name: "SSD", Description: "the default type", Default: true},
	{ID: "gpssd", Name: "GPSSD", Description: "a name, for clients that ask for it"},
	{ID: "essd", Name: "ESSD", Description: "a name, for clients that ask for it"},
	{ID: "sas", Name: "SAS", Description: "a name, for clients that ask for it"},
	{ID: "sata", Name: "SATA", Description: "a name, for clients that ask for it"},
}

// Types lists the kinds of volume. They are names: both volumes of a pair must have the same one,
// and nothing else depends on it.
func (c *Controller) Types() []VolumeType { return slices.Clone(volumeTypes) }

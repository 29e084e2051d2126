package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// growth is what many volumes, groups and records cost.
type growth struct {
	Volumes   int           `json:"volumes,omitempty"` // of each node
	Groups    int           `json:"groups,omitempty"`
	Protected float64       `json:"protect_s,omitempty"` // to make all of them, until all are in sync
	Spent     []spent       `json:"spent,omitempty"`
	Failover  *zoneFailover `json:"failover,omitempty"`
	Stored    []storedRun   `json:"stored,omitempty"`
}

const (
	growthWorkers = 16 // groups made at once
	growthActive  = 100
	growthEvery   = 500 * time.Millisecond // between the writes of an active disk
	growthSettle  = 5 * time.Second        // before something idle is measured
)

// growths makes many small groups on one pair of nodes and sees what they cost when idle, when some of them
// are written to, and how long a failover of all of them takes; then it starts controllers on large stores.
func growths(ctx context.Context, o options, r *report) error {
	ctx, cancel := context.WithTimeout(ctx, o.growthTime)
	defer cancel()
	r.Growth = &growth{}
	if o.volumes > 0 {
		if err := manyGroups(ctx, o, r.Growth); err != nil {
			return err
		}
		printSpent(r.Growth)
		printFailover(r.Growth.Failover)
	}
	if o.pairs != "" {
		if err := storedPairs(ctx, o, r.Growth); err != nil {
			return err
		}
		printStored(r.Growth.Stored)
	}
	return nil
}

func manyGroups(ctx context.Context, o options, g *growth) (err error) {
	s := &site{o: o, dir: o.dir}
	st, err := startStore(ctx, s.path("growth-store"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.remove()) }()
	d := &deployment{s: s, dir: s.path("growth"), etcd: []string{st.url}}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	metrics, err := d.serveMetrics(ctx)
	if err != nil {
		return err
	}
	spec, err := d.child.Layout.Spec()
	if err != nil {
		return err
	}
	metrics[dev.Controller] = spec.Listen
	err = untilEvery(ctx, pollMany, "the nodes are alive", func(ctx context.Context) (bool, error) {
		nodes, err := d.c.Nodes(ctx)
		alive := len(nodes) == len(zones)
		for _, n := range nodes {
			alive = alive && n.Alive && time.Since(n.Since.Time) < time.Minute
		}
		return alive, err
	})
	if err != nil {
		return err
	}
	began := time.Now()
	groups, err := d.protectMany(ctx, o.volumes, o.groups)
	if err != nil {
		return err
	}
	g.Volumes, g.Groups, g.Protected = o.volumes, o.groups, time.Since(began).Seconds()
	fmt.Printf("%d pairs in %d groups are in sync after %.0f s\n", o.volumes, o.groups, g.Protected)
	m := &meter{d: d, store: st, metrics: metrics}
	time.Sleep(growthSettle)
	idle, err := m.over(ctx, "idle", o.growthIdle)
	if err != nil {
		return err
	}
	g.Spent = append(g.Spent, idle)
	writers, err := d.startWriters(ctx, groups, min(growthActive, len(groups)))
	if err != nil {
		return err
	}
	defer writers.stop()
	time.Sleep(growthSettle)
	active, err := m.over(ctx, fmt.Sprintf("%d disks written to", len(writers.all)), o.growthIdle)
	if err != nil {
		return err
	}
	active.Writes = float64(writers.acked.Load()-writers.before) / active.Seconds
	g.Spent = append(g.Spent, active)
	g.Failover, err = d.failoverAll(ctx, m, groups, writers)
	return err
}

// manyDisks is a group of several disks.
type manyDisks struct {
	group string
	disks []disk
}

// protectMany makes so many pairs in so many groups and waits until all are in sync.
func (d *deployment) protectMany(ctx context.Context, volumes, groups int) ([]manyDisks, error) {
	all := make([]manyDisks, groups)
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(growthWorkers)
	var ready atomic.Int64
	for i := range all {
		eg.Go(func() (err error) {
			n := volumes / groups
			if i < volumes%groups {
				n++
			}
			if all[i], err = d.protectGroup(ctx, n); err != nil {
				return fmt.Errorf("group %d: %w", i, err)
			}
			if k := ready.Add(1); k%50 == 0 {
				fmt.Printf("%d groups are in sync\n", k)
			}
			return nil
		})
	}
	return all, eg.Wait()
}

func (d *deployment) protectGroup(ctx context.Context, n int) (g manyDisks, err error) {
	g.disks = make([]disk, n)
	var pairs []string
	for i := range g.disks {
		k := &g.disks[i]
		for zone, m := range zones {
			v, err := d.c.CreateVolume(ctx, client.VolumeCreate{SizeGiB: 1, AvailabilityZone: m.AZ})
			if err != nil {
				return g, fmt.Errorf("create volume: %w", err)
			}
			k.volume[zone] = v.ID
		}
	}
	for i := range g.disks {
		k := &g.disks[i]
		for _, id := range k.volume {
			err := untilEvery(ctx, pollMany, "volume is available", func(ctx context.Context) (bool, error) {
				v, err := d.c.Volume(ctx, id)
				return v.Status == "available", err
			})
			if err != nil {
				return g, err
			}
		}
		p, err := d.c.CreatePair(ctx, client.PairCreate{VolumeIDs: k.volume[:], PriorityStation: zones[0].AZ})
		if err != nil {
			return g, fmt.Errorf("create pair: %w", err)
		}
		k.pair, pairs = p.ID, append(pairs, p.ID)
	}
	for _, id := range pairs {
		err := untilEvery(ctx, pollMany, "pair is available", func(ctx context.Context) (bool, error) {
			p, err := d.c.Pair(ctx, id)
			return p.Status == "available", err
		})
		if err != nil {
			return g, err
		}
	}
	made, err := d.c.CreateGroup(ctx, client.GroupCreate{PairIDs: pairs, PriorityStation: zones[0].AZ})
	if err != nil {
		return g, fmt.Errorf("create group: %w", err)
	}
	g.group = made.ID
	for i := range g.disks {
		g.disks[i].group = made.ID
	}
	err = untilEvery(ctx, pollMany, "group is available", func(ctx context.Context) (bool, error) {
		g, err := d.c.Group(ctx, made.ID)
		return g.Status == "available", err
	})
	if err != nil {
		return g, err
	}
	if err := d.c.Act(ctx, made.ID, client.ActionSync); err != nil {
		return g, fmt.Errorf("synchronize: %w", err)
	}
	return g, untilEvery(ctx, pollMany, "group is active", func(ctx context.Context) (bool, error) {
		g, err := d.c.Group(ctx, made.ID)
		return g.Status == "available" && g.ReplicationStatus == "active", err
	})
}

// pollMany is the pause of a client that waits for one of many things.
const pollMany = 200 * time.Millisecond

// writer writes a number to the beginning of its disk, and to places after it, again and again.
type writer struct {
	disk  disk
	acked atomic.Uint64 // the last number that was acknowledged
}

// writers are the clients of some disks.
type writers struct {
	all    []*writer
	acked  atomic.Uint64 // writes of all
	before uint64        // of them, before they were measured
	cancel context.CancelFunc
	eg     *errgroup.Group
}

// stop ends the clients; those that lost their disk have ended before.
func (w *writers) stop() {
	w.cancel()
	_ = w.eg.Wait() // a zone that is killed takes their disks away
}

// startWriters writes to the first disk of each of the first n groups.
func (d *deployment) startWriters(ctx context.Context, groups []manyDisks, n int) (*writers, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &writers{cancel: cancel, eg: &errgroup.Group{}}
	for _, g := range groups[:n] {
		one := &writer{disk: g.disks[0]}
		uri, err := d.c.ConnectionURI(ctx, one.disk.volume[0])
		if err != nil {
			cancel()
			return nil, errors.Join(err, w.eg.Wait())
		}
		w.all = append(w.all, one)
		w.eg.Go(func() error { return one.run(ctx, uri, &w.acked) })
	}
	return w, nil
}

const writerSpan = 16 << 20 // bytes of a disk that its client writes to

func (w *writer) run(ctx context.Context, uri string, acked *atomic.Uint64) (err error) {
	c, err := nbdclient.Dial(ctx, uri)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // it was broken, or nothing is under way
	time.Sleep(rand.N(growthEvery))
	tick := time.NewTicker(growthEvery)
	defer tick.Stop()
	block := make([]byte, 4096)
	for n := uint64(1); ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		binary.BigEndian.PutUint64(block, n)
		off := 4096 * (1 + rand.Int64N(writerSpan/4096-1))
		for _, at := range []int64{off, 0} {
			if err := c.WriteAt(ctx, block, at, false); err != nil {
				return err
			}
			acked.Add(1)
		}
		w.acked.Store(n)
	}
}

func newTable(title string, head ...any) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(os.Stdout)
	t.SetTitle(title)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row(head))
	return t
}

// checkGrowth says what is wrong with the options of this part.
func (o options) checkGrowth() error {
	var errs []error
	if o.volumes < 0 || o.volumes > 0 && (o.groups < 1 || o.groups > o.volumes || (o.volumes+o.groups-1)/o.groups > 40) {
		errs = append(errs, errors.New("-volumes must be 0, or at least -groups and at most 40 for each of them"))
	}
	for _, size := range split(o.pairs) {
		if n, err := strconv.Atoi(size); err != nil || n < 1000 {
			errs = append(errs, fmt.Errorf("-pairs: %q is not a number of at least 1000", size))
		}
	}
	if o.growthIdle < time.Second || o.growthTime < time.Minute {
		errs = append(errs, errors.New("-growth-window must be at least 1s, -growth-time at least 1m"))
	}
	return errors.Join(errs...)
}

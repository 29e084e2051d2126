package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// zoneFailover is the failover of every group after the loss of a zone. Times are seconds.
type zoneFailover struct {
	Groups  int     `json:"groups"`
	Callers int     `json:"callers"`
	Noticed float64 `json:"noticed_s"` // from the loss until a group says so
	Called  spread  `json:"call_s"`    // how long a call took
	// From the loss, from the group's own call and from the first call until all disks of the group at
	// the other zone had acknowledged a write.
	FromLoss  spread `json:"from_loss_s"`
	FromCall  spread `json:"from_call_s"`
	FromFirst spread `json:"from_first_call_s"`
	Checked   int    `json:"checked_disks"` // whose last acknowledged write was looked for, and found
	// From the first call until the last group: processor seconds, operations of the store, and how long one
	// of its synced writes took, in milliseconds.
	CPU      map[string]float64 `json:"cpu_s"`
	Store    map[string]float64 `json:"store_operations"`
	SyncedMs float64            `json:"store_fsync_ms"`
}

// spread is how a figure is spread.
type spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func spreadOf(v []float64) spread {
	v = slices.Clone(v)
	slices.Sort(v)
	return spread{median(v), percentile(v, 0.99), percentile(v, 1)}
}

const (
	failoverCallers = 32
	tryDiskEvery    = 200 * time.Millisecond // more often would take much of the processor from what is measured
	failoverWait    = 5 * time.Minute
)

// failoverAll kills the primary zone's node, as the loss of its host would, and fails every group over as a
// script would: when the first one shows the fault, by so many calls at once.
func (d *deployment) failoverAll(ctx context.Context, m *meter, groups []manyDisks, w *writers) (*zoneFailover, error) {
	ctx, cancel := context.WithTimeout(ctx, failoverWait)
	defer cancel()
	lost := time.Now()
	if _, err := d.child.Layout.End(ctx, []dev.Member{zones[0]}, syscall.SIGKILL, 20*time.Second); err != nil {
		return nil, err
	}
	err := untilEvery(ctx, pollMany, "the fault is noticed", func(ctx context.Context) (bool, error) {
		g, err := d.c.Group(ctx, groups[0].group)
		return g.FaultLevel != nil && *g.FaultLevel == "2", err
	})
	if err != nil {
		return nil, err
	}
	f := &zoneFailover{Groups: len(groups), Callers: failoverCallers, Noticed: time.Since(lost).Seconds()}
	w.stop()
	before, err := m.still(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex // guards the slices
	var called, fromLoss, fromCall, fromFirst []float64
	first := time.Now()
	calls, waits := &errgroup.Group{}, &errgroup.Group{}
	calls.SetLimit(failoverCallers)
	for _, g := range groups {
		calls.Go(func() error {
			asked := time.Now()
			if err := d.c.Act(ctx, g.group, client.ActionFailover); err != nil {
				return fmt.Errorf("failover of group %s: %w", g.group, err)
			}
			took := time.Since(asked)
			waits.Go(func() error {
				if err := d.writable(ctx, g); err != nil {
					return err
				}
				now := time.Now()
				mu.Lock()
				defer mu.Unlock()
				called = append(called, took.Seconds())
				fromLoss = append(fromLoss, now.Sub(lost).Seconds())
				fromCall = append(fromCall, now.Sub(asked).Seconds())
				fromFirst = append(fromFirst, now.Sub(first).Seconds())
				return nil
			})
			return nil
		})
	}
	if err := errors.Join(calls.Wait(), waits.Wait()); err != nil {
		return nil, err
	}
	after, err := m.still(ctx)
	if err != nil {
		return nil, err
	}
	f.CPU, f.Store, f.SyncedMs = after.since(before)
	f.Called, f.FromLoss, f.FromCall, f.FromFirst = spreadOf(called), spreadOf(fromLoss), spreadOf(fromCall), spreadOf(fromFirst)
	for _, one := range w.all {
		if err := d.checkAcked(ctx, one); err != nil {
			return nil, err
		}
		f.Checked++
	}
	return f, nil
}

// writable waits until every disk of the group at the second zone has acknowledged a write.
func (d *deployment) writable(ctx context.Context, g manyDisks) error {
	for _, k := range g.disks {
		uri, err := d.c.ConnectionURI(ctx, k.volume[1])
		if err != nil {
			return err
		}
		err = untilEvery(ctx, tryDiskEvery, "disk "+k.volume[1]+" can be written to", func(ctx context.Context) (bool, error) {
			return tryWrite(ctx, uri), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tryWrite writes behind what the clients write to.
func tryWrite(ctx context.Context, uri string) bool {
	c, err := nbdclient.Dial(ctx, uri)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }() // the write was answered, or failed
	return c.WriteAt(ctx, make([]byte, 4096), writerSpan, false) == nil
}

// checkAcked finds the last write that was acknowledged before the loss, or a later one, at the second zone.
func (d *deployment) checkAcked(ctx context.Context, w *writer) (err error) {
	uri, err := d.c.ConnectionURI(ctx, w.disk.volume[1])
	if err != nil {
		return err
	}
	c, err := nbdclient.Dial(ctx, uri)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	block := make([]byte, 4096)
	if err := c.ReadAt(ctx, block, 0); err != nil {
		return err
	}
	if have, want := binary.BigEndian.Uint64(block), w.acked.Load(); want == 0 || have < want {
		return fmt.Errorf("disk %s has write %d of its client, and %d was acknowledged", w.disk.volume[1], have, want)
	}
	return nil
}

func printFailover(f *zoneFailover) {
	if f == nil {
		return
	}
	t := newTable(fmt.Sprintf("failover of %d groups after the loss of a zone, %d calls at once; noticed after %.1f s", f.Groups, f.Callers, f.Noticed),
		"seconds", "median", "99th percentile", "most")
	for _, row := range []struct {
		what string
		s    spread
	}{{"the call", f.Called}, {"own call to writable", f.FromCall}, {"first call to writable", f.FromFirst}, {"loss to writable", f.FromLoss}} {
		t.AppendRow(table.Row{row.what, fmt.Sprintf("%.2f", row.s.P50), fmt.Sprintf("%.2f", row.s.P99), fmt.Sprintf("%.2f", row.s.Max)})
	}
	fmt.Println()
	t.Render()
	for _, name := range slices.Sorted(maps.Keys(f.CPU)) {
		fmt.Printf("%s: %.1f s of processor time; ", name, f.CPU[name])
	}
	for _, what := range slices.Sorted(maps.Keys(f.Store)) {
		fmt.Printf("%.0f %s, ", f.Store[what], what)
	}
	fmt.Printf("a synced write of the store took %.1f ms\n", f.SyncedMs)
	fmt.Printf("the last acknowledged write of %d disks was looked for, and found\n", f.Checked)
}

// stillThere is what the processes that outlive the loss of a zone have used.
type stillThere struct {
	cpu, store    map[string]float64
	syncs, syncsS float64
}

func (m *meter) still(ctx context.Context) (x stillThere, err error) {
	x.cpu = map[string]float64{}
	for _, who := range []dev.Member{dev.Controller, zones[1]} {
		pid, err := m.d.child.Layout.PID(who)
		if err != nil || pid == 0 {
			return x, fmt.Errorf("%s does not run: %w", who, err)
		}
		if x.cpu[who.String()], err = cpuSeconds([]int{pid}); err != nil {
			return x, err
		}
	}
	if x.cpu["store"], err = cpuSeconds([]int{m.store.pid()}); err != nil {
		return x, err
	}
	if x.cpu["this program"], err = cpuSeconds([]int{os.Getpid()}); err != nil {
		return x, err
	}
	if x.store, err = storeCounters(ctx, m.store.url); err != nil {
		return x, err
	}
	const fsync = "etcd_disk_wal_fsync_duration_seconds"
	families, err := scrape(ctx, m.store.url+"/metrics")
	if err != nil {
		return x, err
	}
	if f := families[fsync]; f != nil && len(f.GetMetric()) == 1 {
		h := f.GetMetric()[0].GetHistogram()
		x.syncs, x.syncsS = float64(h.GetSampleCount()), h.GetSampleSum()
	}
	return x, nil
}

func (x stillThere) since(y stillThere) (cpu, ops map[string]float64, syncedMs float64) {
	less := func(a, b map[string]float64) map[string]float64 {
		out := map[string]float64{}
		for name := range a {
			out[name] = a[name] - b[name]
		}
		return out
	}
	if n := x.syncs - y.syncs; n > 0 {
		syncedMs = 1000 * (x.syncsS - y.syncsS) / n
	}
	return less(x.cpu, y.cpu), less(x.store, y.store), syncedMs
}

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	tryDiskEvery    = 50 * time.Millisecond
	failoverWait    = 5 * time.Minute
)

// failoverAll kills the primary zone's node, as the loss of its host would, and fails every group over as a
// script would: when the first one shows the fault, by so many calls at once.
func (d *deployment) failoverAll(ctx context.Context, groups []manyDisks, w *writers) (*zoneFailover, error) {
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
	fmt.Printf("the last acknowledged write of %d disks was looked for, and found\n", f.Checked)
}

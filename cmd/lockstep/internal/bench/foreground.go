package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// foreground is one job without and with a resynchronization beside it.
type foreground struct {
	Workload string  `json:"workload"`
	Round    int     `json:"round"`
	Alone    run     `json:"alone"`
	Beside   run     `json:"beside"`
	Resync   float64 `json:"resync_mib_per_s"` // meanwhile
}

// foregroundJobs are those that a database would notice, unless the command line chooses.
func foregroundJobs(o options) []workload {
	if o.workloads != "" {
		return chosen(workloads, o.workloads)
	}
	return chosen(workloads, "W1,W2,W5")
}

// foregrounds measures jobs while the disk is in sync, and again while all of it is sent to a secondary that was away.
func foregrounds(ctx context.Context, o options, r *report) (err error) {
	s := &site{o: o, dir: o.dir}
	d, k, err := newProtected(ctx, s, "foreground", o.sizeGiB)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	for round := 1; round <= o.rounds; round++ {
		for _, w := range foregroundJobs(o) {
			x, err := d.foreground(ctx, k, w)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", w.id, round, err)
			}
			x.Round = round
			r.Foreground = append(r.Foreground, x)
			fmt.Printf("%-26s alone %6.0f/s, p99 %6.0f us; during a resync %6.0f/s (%.2f), p99 %6.0f us (%.1f), resync %.0f MiB/s\n",
				w.title, x.Alone.IOPS, x.Alone.P99Us, x.Beside.IOPS, x.Beside.IOPS/x.Alone.IOPS, x.Beside.P99Us, x.Beside.P99Us/x.Alone.P99Us, x.Resync)
		}
	}
	printForeground(o, r.Foreground)
	return nil
}

func (d *deployment) foreground(ctx context.Context, k disk, w workload) (x foreground, err error) {
	size, during := d.s.size(), d.s.o.runtime
	measure := func() (run, error) {
		sv, err := d.served(ctx, k)
		if err != nil {
			return run{}, err
		}
		return fio(ctx, w, sv.uri, size, during, sv.pids)
	}
	x = foreground{Workload: w.id}
	if x.Alone, err = measure(); err != nil {
		return x, err
	}
	if err := d.stopNode(ctx, 1); err != nil {
		return x, err
	}
	uri, err := d.c.ConnectionURI(ctx, k.volume[0])
	if err != nil {
		return x, err
	}
	if err := fillThrough(ctx, uri, size); err != nil {
		return x, err
	}
	if err := d.startNode(ctx, 1); err != nil {
		return x, err
	}
	var before, after int64
	err = until(ctx, "copying", func(ctx context.Context) (bool, error) {
		before, err = d.toSend(ctx, k)
		return before > 0, err
	})
	if err != nil {
		return x, err
	}
	began := time.Now()
	if x.Beside, err = measure(); err != nil {
		return x, err
	}
	took := time.Since(began)
	if after, err = d.toSend(ctx, k); err != nil {
		return x, err
	}
	if after <= 0 {
		return x, fmt.Errorf("the resync of %d MiB ended within the job: take a larger -size or a shorter -runtime", before>>20)
	}
	x.Resync = float64((before-after)>>20) / took.Seconds()
	return x, d.inSync(ctx, k)
}

func printForeground(o options, all []foreground) {
	t := table.NewWriter()
	t.SetOutputMirror(os.Stdout)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.SetTitle("foreground during a resync, medians (goal: half of the speed)")
	t.AppendHeader(table.Row{"job", "alone, /s", "beside, /s", "ratio", "p99 alone, us", "p99 beside, us", "flush p99 alone, us", "beside, us", "resync, MiB/s"})
	for _, w := range foregroundJobs(o) {
		get := func(f func(foreground) float64) float64 {
			var v []float64
			for _, x := range all {
				if x.Workload == w.id {
					v = append(v, f(x))
				}
			}
			return median(v)
		}
		ratio := get(func(x foreground) float64 { return x.Beside.IOPS / x.Alone.IOPS })
		row := table.Row{w.title}
		for _, f := range []func(foreground) float64{
			func(x foreground) float64 { return x.Alone.IOPS }, func(x foreground) float64 { return x.Beside.IOPS }, nil,
			func(x foreground) float64 { return x.Alone.P99Us }, func(x foreground) float64 { return x.Beside.P99Us },
			func(x foreground) float64 { return x.Alone.SyncP99 }, func(x foreground) float64 { return x.Beside.SyncP99 },
			func(x foreground) float64 { return x.Resync },
		} {
			if f == nil {
				row = append(row, fmt.Sprintf("%.2f%s", ratio, verdict(ratio >= 0.5)))
				continue
			}
			row = append(row, fmt.Sprintf("%.0f", get(f)))
		}
		t.AppendRow(row)
	}
	fmt.Println()
	t.Render()
}

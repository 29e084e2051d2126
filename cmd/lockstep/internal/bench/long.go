package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// longRun is a load at a fixed rate for a long time.
type longRun struct {
	Rate    int      `json:"rate"` // requests per second, of all disks: two writes for each read, a flush after each 100
	Disks   int      `json:"disks"`
	Windows []window `json:"windows"`
}

// window is what was seen in one piece of the time.
type window struct {
	Seconds   float64         `json:"seconds"` // since the beginning, at the end of the window
	Requests  int             `json:"requests"`
	P50Us     float64         `json:"p50_us"` // of writes, from when one was due, waits for a free place in the queue included
	P99Us     float64         `json:"p99_us"`
	P999Us    float64         `json:"p99_9_us"`
	ReadP99   float64         `json:"read_p99_us"`
	FlushP99  float64         `json:"flush_p99_us"`
	Processes map[string]cost `json:"processes"`
}

const (
	longDisks  = 4
	longDepth  = 32 // requests in flight for each disk
	longBlocks = 1 << 30 / 4096
	flushEvery = 100
)

// longs keeps a fixed rate up and looks at what the processes hold, and how late requests end.
func longs(ctx context.Context, o options, r *report) (err error) {
	s := &site{o: o, dir: o.dir}
	d, err := newDeployment(ctx, s, "long")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	metrics, err := d.serveMetrics(ctx)
	if err != nil {
		return err
	}
	uris := map[string]string{} // by group
	for range longDisks {
		k, err := d.volumes(ctx, 1, nil)
		if err != nil {
			return err
		}
		if err := d.protect(ctx, &k); err != nil {
			return err
		}
		if uris[k.group], err = d.c.ConnectionURI(ctx, k.volume[0]); err != nil {
			return err
		}
		if err := fillThrough(ctx, uris[k.group], 1<<30); err != nil {
			return err
		}
	}
	eg, ctx := errgroup.WithContext(ctx)
	samples := make(chan sample, 1<<16)
	for group, uri := range uris {
		eg.Go(func() error { return offer(ctx, uri, float64(o.longRate)/longDisks, o.long, samples) })
		eg.Go(func() error { return d.poll(ctx, group, o.long) })
	}
	run := &longRun{Rate: o.longRate, Disks: longDisks}
	r.Long = run
	began := time.Now()
	done := make(chan struct{})
	eg.Go(func() error { return collect(ctx, d, metrics, began, o, run, samples, done) })
	eg.Go(func() error {
		select {
		case <-time.After(o.long):
		case <-ctx.Done():
		}
		close(done)
		return nil
	})
	if err := eg.Wait(); err != nil {
		return err
	}
	printLong(run)
	return plotLong(o, run)
}

// serveMetrics starts the nodes again with an address for their metrics.
func (d *deployment) serveMetrics(ctx context.Context) (map[dev.Member]string, error) {
	addrs := map[dev.Member]string{}
	for i, m := range zones {
		addr, err := dev.FreePort("127.0.0.1")
		if err != nil {
			return nil, err
		}
		if _, err := d.child.Layout.End(ctx, []dev.Member{m}, syscall.SIGTERM, 20*time.Second); err != nil {
			return nil, err
		}
		if err := d.child.Layout.Configure(m, map[string]any{"metrics": addr}); err != nil {
			return nil, err
		}
		if err := d.startNode(ctx, i); err != nil {
			return nil, err
		}
		addrs[m] = addr
	}
	return addrs, nil
}

type kind int

const (
	write kind = iota
	read
	flush
)

// sample is one request that ended.
type sample struct {
	kind kind
	us   float64
}

// offer asks for requests at a rate, whether earlier ones have ended or not.
func offer(ctx context.Context, uri string, rate float64, during time.Duration, samples chan<- sample) (err error) {
	c, err := nbdclient.Dial(ctx, uri)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	type request struct {
		kind kind
		due  time.Time
	}
	eg, ctx := errgroup.WithContext(ctx)
	due := make(chan request, 1<<16)
	for range longDepth {
		eg.Go(func() error {
			block := make([]byte, 4096)
			for q := range due {
				off := rand.Int64N(longBlocks) * int64(len(block))
				var err error
				switch q.kind {
				case write:
					block[rand.IntN(len(block))]++
					err = c.WriteAt(ctx, block, off, false)
				case read:
					err = c.ReadAt(ctx, block, off)
				case flush:
					err = c.Flush(ctx)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", uri, err)
				}
				samples <- sample{q.kind, float64(time.Since(q.due).Microseconds())}
			}
			return nil
		})
	}
	eg.Go(func() error {
		defer close(due)
		every := time.Duration(float64(time.Second) / rate)
		began := time.Now()
		for n := 0; ; n++ {
			next := began.Add(time.Duration(n) * every)
			if next.Sub(began) > during {
				return nil
			}
			time.Sleep(time.Until(next))
			q := request{kind: []kind{write, write, read}[n%3], due: time.Now()}
			if n%flushEvery == flushEvery-1 {
				q.kind = flush
			}
			select {
			case due <- q:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return eg.Wait()
}

// poll asks for a group again and again, as a dashboard does.
func (d *deployment) poll(ctx context.Context, group string, during time.Duration) error {
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(5 * time.Second) {
		if _, err := d.c.Group(ctx, group); err != nil {
			return err
		}
	}
	return nil
}

// collect makes windows of the samples until done.
func collect(ctx context.Context, d *deployment, metrics map[dev.Member]string, began time.Time, o options, run *longRun, samples <-chan sample, done <-chan struct{}) error {
	tick := time.NewTicker(o.longWindow)
	defer tick.Stop()
	var seen [flush + 1][]float64
	for {
		select {
		case s := <-samples:
			seen[s.kind] = append(seen[s.kind], s.us)
		case <-tick.C:
			w := window{Seconds: time.Since(began).Seconds()}
			for k := range seen {
				w.Requests += len(seen[k])
				slices.Sort(seen[k])
			}
			w.P50Us, w.P99Us, w.P999Us = percentile(seen[write], 0.5), percentile(seen[write], 0.99), percentile(seen[write], 0.999)
			w.ReadP99, w.FlushP99 = percentile(seen[read], 0.99), percentile(seen[flush], 0.99)
			for k := range seen {
				seen[k] = seen[k][:0]
			}
			var err error
			if w.Processes, err = d.costs(ctx, metrics); err != nil {
				return err
			}
			run.Windows = append(run.Windows, w)
			fmt.Printf("%6.0f s  %6d requests, write p50 %6.0f us, p99 %7.0f us, p99.9 %7.0f us, flush p99 %7.0f us", w.Seconds, w.Requests, w.P50Us, w.P99Us, w.P999Us, w.FlushP99)
			for _, name := range processes(w) {
				c := w.Processes[name]
				fmt.Printf("; %s %.0f MiB, %d goroutines, %d fds", name, c.RSSMiB, c.Goroutines, c.FDs)
			}
			fmt.Println()
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// percentile of sorted values.
func percentile(v []float64, p float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return v[min(len(v)-1, int(p*float64(len(v))))]
}

func processes(w window) []string {
	var names []string
	for n := range w.Processes {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// printLong compares the halves of the time after the first tenth, in which caches and pools fill.
func printLong(run *longRun) {
	all := run.Windows[len(run.Windows)/10:]
	if len(all) < 2 {
		return
	}
	halves := [2][]window{all[:len(all)/2], all[len(all)/2:]}
	mid := func(ws []window, get func(window) float64) float64 {
		var v []float64
		for _, w := range ws {
			v = append(v, get(w))
		}
		return median(v)
	}
	t := table.NewWriter()
	t.SetOutputMirror(os.Stdout)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.SetTitle("%d requests/s on %d disks: medians of windows, by half", run.Rate, run.Disks)
	t.AppendHeader(table.Row{"", "first", "second"})
	row := func(what string, get func(window) float64) {
		t.AppendRow(table.Row{what, fmt.Sprintf("%.0f", mid(halves[0], get)), fmt.Sprintf("%.0f", mid(halves[1], get))})
	}
	row("requests in a window", func(w window) float64 { return float64(w.Requests) })
	row("write p50, us", func(w window) float64 { return w.P50Us })
	row("write p99, us", func(w window) float64 { return w.P99Us })
	row("write p99.9, us", func(w window) float64 { return w.P999Us })
	row("read p99, us", func(w window) float64 { return w.ReadP99 })
	row("flush p99, us", func(w window) float64 { return w.FlushP99 })
	for _, name := range processes(all[0]) {
		row(name+", resident MiB", func(w window) float64 { return w.Processes[name].RSSMiB })
		if all[0].Processes[name].HeapMiB > 0 {
			row(name+", heap in use, MiB", func(w window) float64 { return w.Processes[name].HeapMiB })
			row(name+", goroutines", func(w window) float64 { return float64(w.Processes[name].Goroutines) })
		}
		row(name+", file descriptors", func(w window) float64 { return float64(w.Processes[name].FDs) })
		row(name+", threads", func(w window) float64 { return float64(w.Processes[name].Threads) })
	}
	fmt.Println()
	t.Render()
}

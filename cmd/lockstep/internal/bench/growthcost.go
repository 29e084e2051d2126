package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// spent is what a deployment took in a while.
type spent struct {
	What      string             `json:"what"`
	Seconds   float64            `json:"seconds"`
	Processes map[string]cost    `json:"processes"`               // at the end
	CPU       map[string]float64 `json:"cpu"`                     // processor seconds in each second
	Store     map[string]float64 `json:"store"`                   // operations of etcd in each second
	Frames    float64            `json:"link_frames"`             // segments with data in each second, both ways
	LinkKiB   float64            `json:"link_kib"`                // KiB in each second, both ways
	Writes    float64            `json:"client_writes,omitempty"` // acknowledged in each second
}

// meter measures a deployment whose store is a process of its own.
type meter struct {
	d       *deployment
	store   *storeProcess
	metrics map[dev.Member]string
}

// reading is what has been counted since the processes started.
type reading struct {
	costs   map[string]cost
	store   map[string]float64
	frames  float64
	linkKiB float64
}

func (m *meter) read(ctx context.Context) (x reading, err error) {
	if x.costs, err = m.d.costs(ctx, m.metrics); err != nil {
		return x, err
	}
	if x.costs["store"], err = processCost(m.store.pid()); err != nil {
		return x, err
	}
	if x.store, err = storeCounters(ctx, m.store.url); err != nil {
		return x, err
	}
	x.frames, x.linkKiB, err = m.link(ctx)
	return x, err
}

// over measures for a while.
func (m *meter) over(ctx context.Context, what string, during time.Duration) (spent, error) {
	began := time.Now()
	a, err := m.read(ctx)
	if err != nil {
		return spent{}, err
	}
	select {
	case <-ctx.Done():
		return spent{}, ctx.Err()
	case <-time.After(during):
	}
	b, err := m.read(ctx)
	if err != nil {
		return spent{}, err
	}
	s := spent{What: what, Seconds: time.Since(began).Seconds(), Processes: b.costs, CPU: map[string]float64{}, Store: map[string]float64{}}
	for name, c := range b.costs {
		s.CPU[name] = (c.CPUSeconds - a.costs[name].CPUSeconds) / s.Seconds
	}
	for name, n := range b.store {
		s.Store[name] = (n - a.store[name]) / s.Seconds
	}
	s.Frames, s.LinkKiB = (b.frames-a.frames)/s.Seconds, (b.linkKiB-a.linkKiB)/s.Seconds
	return s, nil
}

// operations of etcd by the name of their counter.
var operations = map[string]string{
	"etcd_mvcc_range_total":  "reads",
	"etcd_mvcc_put_total":    "puts",
	"etcd_mvcc_delete_total": "deletions",
	"etcd_mvcc_txn_total":    "transactions",
}

func storeCounters(ctx context.Context, url string) (map[string]float64, error) {
	families, err := scrape(ctx, url+"/metrics")
	if err != nil {
		return nil, fmt.Errorf("metrics of the store: %w", err)
	}
	out := map[string]float64{}
	for counter, what := range operations {
		f := families[counter]
		if f == nil || len(f.GetMetric()) != 1 {
			return nil, fmt.Errorf("metrics of the store: there is no %s", counter)
		}
		out[what] = f.GetMetric()[0].GetCounter().GetValue()
	}
	return out, nil
}

func scrape(ctx context.Context, url string) (map[string]*dto.MetricFamily, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(a.Body)
}

var linkCounts = regexp.MustCompile(`(data_segs_out|data_segs_in|bytes_sent|bytes_received):(\d+)`)

// link counts what went over the connections that the nodes accepted from each other, both ways: with little
// traffic a segment is a frame.
func (m *meter) link(ctx context.Context) (frames, kib float64, err error) {
	st, err := etcdstore.Open(ctx, etcdstore.Config{Endpoints: []string{m.store.url}})
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = st.Close() }() // it wrote nothing
	nodes, _, err := store.ListT[store.Node](ctx, st, store.PrefixNodes)
	if err != nil {
		return 0, 0, err
	}
	var ports []string
	for _, n := range nodes {
		_, port, err := net.SplitHostPort(n.Value.Replicate)
		if err != nil {
			return 0, 0, err
		}
		ports = append(ports, "sport = :"+port)
	}
	out, err := exec.CommandContext(ctx, "ss", "-Htin", "state", "established", "( "+strings.Join(ports, " or ")+" )").Output()
	if err != nil {
		return 0, 0, fmt.Errorf("ss: %w", err)
	}
	for _, found := range linkCounts.FindAllStringSubmatch(string(out), -1) {
		n, err := strconv.ParseFloat(found[2], 64)
		if err != nil {
			return 0, 0, err
		}
		if strings.HasPrefix(found[1], "data") {
			frames += n
		} else {
			kib += n / 1024
		}
	}
	return frames, kib, nil
}

func printSpent(g *growth) {
	for _, s := range g.Spent {
		t := newTable(fmt.Sprintf("%d pairs in %d groups, %s, over %.0f s", g.Volumes, g.Groups, s.What, s.Seconds),
			"process", "CPU, % of a core", "resident MiB", "heap MiB", "file descriptors", "goroutines", "threads")
		for _, name := range slices.Sorted(maps.Keys(s.Processes)) {
			c := s.Processes[name]
			t.AppendRow(table.Row{name, fmt.Sprintf("%.1f", 100*s.CPU[name]), fmt.Sprintf("%.0f", c.RSSMiB), fmt.Sprintf("%.0f", c.HeapMiB), c.FDs, c.Goroutines, c.Threads})
		}
		fmt.Println()
		t.Render()
		fmt.Printf("store: ")
		for _, what := range slices.Sorted(maps.Keys(s.Store)) {
			fmt.Printf("%.1f %s/s, ", s.Store[what], what)
		}
		fmt.Printf("link: %.1f segments/s, %.1f KiB/s; clients: %.1f writes/s\n", s.Frames, s.LinkKiB, s.Writes)
	}
}

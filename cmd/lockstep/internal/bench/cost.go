package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
)

// cost is what a process holds.
type cost struct {
	CPUSeconds float64 `json:"cpu_s"` // since it started
	RSSMiB     float64 `json:"rss_mib"`
	FDs        int     `json:"fds"`
	Threads    int     `json:"threads"`
	HeapMiB    float64 `json:"heap_mib,omitempty"` // in use; of processes whose metrics were asked for
	Goroutines int     `json:"goroutines,omitempty"`
}

// costs of the controller and of the nodes, whose metrics are served at the addresses given.
func (d *deployment) costs(ctx context.Context, metrics map[dev.Member]string) (map[string]cost, error) {
	all := map[string]cost{}
	for _, m := range append([]dev.Member{dev.Controller}, zones[:]...) {
		pid, err := d.child.Layout.PID(m)
		if err != nil || pid == 0 {
			return nil, fmt.Errorf("%s does not run: %w", m, err)
		}
		c, err := processCost(pid)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m, err)
		}
		if addr := metrics[m]; addr != "" {
			if err := c.fromMetrics(ctx, addr); err != nil {
				return nil, fmt.Errorf("metrics of %s: %w", m, err)
			}
		}
		all[m.String()] = c
	}
	return all, nil
}

func processCost(pid int) (c cost, err error) {
	if c.CPUSeconds, err = cpuSeconds([]int{pid}); err != nil {
		return c, err
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return c, err
	}
	c.FDs = len(fds)
	status := fmt.Sprintf("/proc/%d/status", pid)
	rss, _, _ := strings.Cut(field(status, "VmRSS"), " ")
	kib, err := strconv.Atoi(rss)
	if err != nil {
		return c, fmt.Errorf("VmRSS in %s: %w", status, err)
	}
	c.RSSMiB = float64(kib) / 1024
	c.Threads, err = strconv.Atoi(field(status, "Threads"))
	return c, err
}

func (c *cost) fromMetrics(ctx context.Context, addr string) error {
	found, err := scrape(ctx, "http://"+addr+"/metrics")
	if err != nil {
		return err
	}
	gauge := func(name string) float64 {
		f := found[name]
		if f == nil || len(f.GetMetric()) != 1 {
			return 0
		}
		return f.GetMetric()[0].GetGauge().GetValue()
	}
	c.Goroutines, c.HeapMiB = int(gauge("go_goroutines")), gauge("go_memstats_heap_inuse_bytes")/(1<<20)
	if c.Goroutines == 0 {
		return fmt.Errorf("%s has no go_goroutines", addr)
	}
	return nil
}

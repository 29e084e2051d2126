package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// workload is one fio job.
type workload struct {
	id    string
	title string
	args  []string
	reads bool
	large bool // compared by MiB/s
	// goals against quorum, qemu-nbd and nbdkit, as ratios.
	goals map[string]float64
	p99   bool // not above quorum's
	cpu   float64
}

func (w workload) Name() string { return w.id }

// workloads in the order in which they run: the sequential one first, the one that flushes last.
var workloads = []workload{
	{id: "W4", title: "1M sequential write qd8", args: []string{"--rw=write", "--bs=1M", "--iodepth=8"}, large: true, goals: map[string]float64{"quorum": 1.35, "qemu-nbd": 1.0, "nbdkit": 0.55}},
	{id: "W3", title: "4k read qd32", args: []string{"--rw=randread", "--bs=4k", "--iodepth=32"}, reads: true, goals: map[string]float64{"quorum": 4, "qemu-nbd": 2, "nbdkit": 1}},
	{id: "W1", title: "4k write qd1", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}, goals: map[string]float64{"quorum": 1.5, "qemu-nbd": 1, "nbdkit": 0.6}, p99: true},
	{id: "W2", title: "4k write qd32", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, goals: map[string]float64{"quorum": 3, "qemu-nbd": 1.5, "nbdkit": 1}, cpu: 0.3},
	{id: "W6", title: "4k write 4 jobs x qd32", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--numjobs=4", "--group_reporting"}, goals: map[string]float64{"quorum": 4, "qemu-nbd": 2, "nbdkit": 1.2}},
	{id: "W5", title: "4k write + flush each qd1", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}, goals: map[string]float64{"quorum": 2.1, "qemu-nbd": 0.9, "nbdkit": 0.7}, p99: true},
}

// run is what one job gave on one system.
type run struct {
	System   string  `json:"system"`
	Workload string  `json:"workload"`
	Round    int     `json:"round"`
	IOPS     float64 `json:"iops"`
	MiBps    float64 `json:"mib_per_s"`
	MeanUs   float64 `json:"mean_us"`
	P99Us    float64 `json:"p99_us"`
	SyncUs   float64 `json:"flush_mean_us,omitempty"`
	SyncP99  float64 `json:"flush_p99_us,omitempty"`
	CPU      float64 `json:"cpu_s_per_10k"` // of all processes of the system, user and system
	IOs      float64 `json:"ios"`
	Syncs    float64 `json:"flushes,omitempty"`
	RTTMs    float64 `json:"rtt_ms,omitempty"`
}

// value is what systems are compared by.
func (r run) value(w workload) float64 {
	if w.large {
		return r.MiBps
	}
	return r.IOPS
}

// fio runs a job against an export and charges the CPU time of pids to it.
func fio(ctx context.Context, w workload, uri string, size int64, runtime time.Duration, pids []int, extra ...string) (run, error) {
	// What earlier jobs left in the page cache must not be written in this one's time.
	if err := exec.CommandContext(ctx, "sync").Run(); err != nil {
		return run{}, fmt.Errorf("sync: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*runtime+time.Minute)
	defer cancel()
	args := append([]string{
		"--name=j", "--ioengine=nbd", "--uri=" + uri, fmt.Sprintf("--size=%d", size), "--time_based",
		fmt.Sprintf("--runtime=%dms", runtime.Milliseconds()), "--randrepeat=0", "--norandommap", "--refill_buffers",
		"--percentile_list=50:99:99.9", "--output-format=json",
	}, append(w.args, extra...)...)
	before, err := cpuSeconds(pids)
	if err != nil {
		return run{}, err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return run{}, fmt.Errorf("fio %s: %w: %s", w.id, err, tail(stderr.String()))
	}
	after, err := cpuSeconds(pids)
	if err != nil {
		return run{}, err
	}
	type latency struct {
		Mean       float64            `json:"mean"`
		Percentile map[string]float64 `json:"percentile"`
		N          float64            `json:"N"`
	}
	type side struct {
		IOPS  float64 `json:"iops"`
		BW    float64 `json:"bw"` // KiB/s
		Total float64 `json:"total_ios"`
		Lat   latency `json:"lat_ns"`
		CLat  latency `json:"clat_ns"`
	}
	var parsed struct {
		Jobs []struct {
			Error       int
			Read, Write side
			Sync        struct {
				Lat latency `json:"lat_ns"`
			}
		} `json:"jobs"`
	}
	at := bytes.IndexByte(out, '{')
	if at < 0 {
		return run{}, fmt.Errorf("fio %s printed no JSON: %s", w.id, tail(string(out)))
	}
	if err := json.Unmarshal(out[at:], &parsed); err != nil {
		return run{}, fmt.Errorf("fio %s: %w", w.id, err)
	}
	if len(parsed.Jobs) != 1 || parsed.Jobs[0].Error != 0 {
		return run{}, fmt.Errorf("fio %s: %d jobs, error: %s", w.id, len(parsed.Jobs), tail(stderr.String()))
	}
	j := parsed.Jobs[0]
	d := j.Write
	if w.reads {
		d = j.Read
	}
	if d.Total == 0 {
		return run{}, errors.New("fio did nothing")
	}
	return run{
		Workload: w.id, IOPS: d.IOPS, MiBps: d.BW / 1024, MeanUs: d.Lat.Mean / 1000, P99Us: d.CLat.Percentile["99.000000"] / 1000,
		SyncUs: j.Sync.Lat.Mean / 1000, SyncP99: j.Sync.Lat.Percentile["99.000000"] / 1000, Syncs: j.Sync.Lat.N,
		CPU: (after - before) / d.Total * 10_000, IOs: d.Total,
	}, nil
}

func tail(s string) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-500):]
}

// cpuSeconds is what processes have used so far, with all their threads.
func cpuSeconds(pids []int) (float64, error) {
	var ticks int64
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("a server has ended: %w", err)
		}
		_, rest, ok := strings.Cut(string(raw), ") ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat: %q", pid, raw)
		}
		for _, f := range fields[11:13] {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
			}
			ticks += n
		}
	}
	return float64(ticks) / 100, nil // USER_HZ
}

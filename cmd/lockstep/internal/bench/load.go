package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
)

// loads runs every job on every system in every round, and prints the tables.
func loads(ctx context.Context, o options, r *report) (err error) {
	s := &site{o: o, dir: o.dir, filled: map[string]bool{}}
	defer func() {
		if s.lockstep != nil {
			err = errors.Join(err, s.lockstep.remove())
		}
		for _, n := range []string{"a.raw", "b.raw"} {
			_ = os.Remove(s.path(n))
		}
	}()
	order := rand.New(rand.NewPCG(o.seed, 0))
	for round := 1; round <= o.rounds; round++ {
		turn := append([]system(nil), chosen(systems, o.systems)...)
		order.Shuffle(len(turn), func(i, j int) { turn[i], turn[j] = turn[j], turn[i] })
		for _, sys := range turn {
			runs, err := measure(ctx, s, sys)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", sys.name, round, err)
			}
			for _, x := range runs {
				x.Round = round
				r.Runs = append(r.Runs, x)
			}
		}
	}
	printLoads(os.Stdout, o, r.Runs)
	return plotLoads(o, r.Runs)
}

// fillThrough writes the whole disk as its user would, in requests of 1 MiB: what a write costs later
// depends on how large the writes were that made the page cache's folios, which is the system's own doing.
func fillThrough(ctx context.Context, uri string, size int64) error {
	out, err := exec.CommandContext(ctx, "fio", "--name=fill", "--ioengine=nbd", "--uri="+uri, fmt.Sprintf("--size=%d", size), "--rw=write", "--bs=1M", "--iodepth=8").CombinedOutput()
	if err != nil {
		return fmt.Errorf("fill the disk: %w: %s", err, tail(string(out)))
	}
	return nil
}

// measure starts a system, runs the jobs, and stops it.
func measure(ctx context.Context, s *site, sys system) (runs []run, err error) {
	sv, err := sys.start(ctx, s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sv.stop()) }()
	if !s.filled[sys.name] {
		if err := fillThrough(ctx, sv.uri, s.size()); err != nil {
			return nil, err
		}
		s.filled[sys.name] = true
	}
	for _, w := range chosen(workloads, s.o.workloads) {
		x, err := fio(ctx, w, sv.uri, s.size(), s.o.runtime, sv.pids)
		if err != nil {
			return nil, err
		}
		x.System = sys.name
		runs = append(runs, x)
		fmt.Printf("%-9s %s  %9.0f/s %8.1f MiB/s  mean %8.1f us  p99 %8.1f us  flush p99 %8.1f us  cpu %.3f s/10k\n", sys.name, w.id, x.IOPS, x.MiBps, x.MeanUs, x.P99Us, x.SyncP99, x.CPU)
	}
	return runs, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
)

// loads runs every job on every system in every round, and prints the tables.
func loads(ctx context.Context, o options, r *report) (err error) {
	s := &site{o: o, dir: o.dir}
	defer func() {
		for _, n := range []string{"a.raw", "b.raw"} {
			_ = os.Remove(s.path(n))
		}
		_ = os.RemoveAll(s.path("lockstep"))
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

// measure starts a system, runs the jobs, and stops it.
func measure(ctx context.Context, s *site, sys system) (runs []run, err error) {
	sv, err := sys.start(ctx, s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sv.stop()) }()
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

// Command bench runs Lockstep, replicated between two nodes, and the tools that people would use
// instead, with the same fio jobs, one after the other in every round, and prints how they compare.
//
// Everything runs in a network namespace of its own, whose loopback acknowledges at once: QEMU sets no
// TCP_NODELAY, and would stall for 40 ms without. The files of all systems are on one file system and
// filled in the same way.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command line's.
type options struct {
	lockstep  string // the binary
	dir       string // scratch: as much as four volumes
	out       string // the results' directory
	rounds    int
	runtime   time.Duration // of one job
	sizeGiB   int64
	systems   string // names, with commas; empty: all
	workloads string // ids, with commas; empty: all
	parts     string
	seed      uint64

	long       time.Duration // of the long run
	longRate   int           // its requests per second
	longWindow time.Duration

	volumes    int           // of each node, in the part growth; 0: none
	groups     int           // they are in
	pairs      string        // sizes of the stores, with commas; empty: none
	growthIdle time.Duration // of each measurement
	growthTime time.Duration // of the whole part
}

// report is the machine-readable file.
type report struct {
	When       time.Time    `json:"when"`
	Machine    machine      `json:"machine"`
	Version    string       `json:"lockstep"`
	Options    string       `json:"options"`
	Runs       []run        `json:"runs,omitempty"`
	Flushes    *flushes     `json:"flushes,omitempty"`
	Syncs      []syncRun    `json:"synchronizations,omitempty"`
	Resync     []resync     `json:"resyncs,omitempty"`
	Foreground []foreground `json:"foreground,omitempty"`
	Distant    []run        `json:"distant,omitempty"`
	Long       *longRun     `json:"long,omitempty"`
	Growth     *growth      `json:"growth,omitempty"`
}

func main() {
	if dir := os.Getenv(storeEnv); dir != "" {
		if err := serveStore(dir); err != nil {
			fmt.Fprintln(os.Stderr, "store:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.lockstep, "lockstep", "bin/lockstep", "the `binary` to measure")
	flag.StringVar(&o.dir, "dir", "", "scratch `directory`, on the file system to measure (default: a new one in out/bench)")
	flag.StringVar(&o.out, "out", "out/bench", "`directory` of results.json and the plots")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; each runs every job on every system")
	flag.DurationVar(&o.runtime, "runtime", 5*time.Second, "time of one job")
	flag.Int64Var(&o.sizeGiB, "size", 4, "`GiB` of a volume")
	flag.StringVar(&o.systems, "systems", "", "some of "+strings.Join(names(systems), ",")+" (default all)")
	flag.StringVar(&o.workloads, "workloads", "", "some of "+strings.Join(names(workloads), ",")+" (default all)")
	flag.StringVar(&o.parts, "parts", "load,flush,sync,resync,foreground,distance", "what to measure, some of load,flush,sync,resync,foreground,distance,long,growth")
	flag.DurationVar(&o.long, "long", 2*time.Hour, "time of the part long")
	flag.IntVar(&o.longRate, "long-rate", 600, "requests per `second` in the part long")
	flag.DurationVar(&o.longWindow, "long-window", 30*time.Second, "time of one point of the part long")
	flag.IntVar(&o.volumes, "volumes", 1000, "pairs of the part growth; 0: leave them out")
	flag.IntVar(&o.groups, "groups", 300, "groups they are in")
	flag.StringVar(&o.pairs, "pairs", "10000,100000", "pairs in the stores of the part growth, sizes with commas; empty: leave them out")
	flag.DurationVar(&o.growthIdle, "growth-window", time.Minute, "time of one measurement of the part growth")
	flag.DurationVar(&o.growthTime, "growth-time", 40*time.Minute, "time after which the part growth is given up")
	flag.Uint64Var(&o.seed, "seed", 1, "of the order of systems in a round")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "usage: bench [flags]\n\nCompares Lockstep with its peers. Needs root, ip, and what the parts use: fio, qemu-utils, nbdkit and strace, or ss for growth.\n\n"+
			"  bench -rounds 1 -runtime 1s -size 1\n  bench -systems lockstep,quorum -workloads W1,W2 -parts load\n  bench -parts long -long 10m\n  bench -parts growth -volumes 40 -groups 10 -pairs 1000 -growth-window 5s\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := bench(ctx, o)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is main without exits.
func bench(ctx context.Context, o options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	if code, inside, err := inNamespace(ctx); !inside {
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d", code)
		}
		return err
	}
	if o.lockstep, err = filepath.Abs(o.lockstep); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp(o.out, "work-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	r := &report{When: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(o.dir), Options: strings.Join(os.Args[1:], " ")}
	version, err := exec.CommandContext(ctx, o.lockstep, "version").Output()
	if err != nil {
		return fmt.Errorf("%s version: %w", o.lockstep, err)
	}
	r.Version, _, _ = strings.Cut(string(version), "\n")
	for _, part := range strings.Split(o.parts, ",") {
		if err := parts[part](ctx, o, r); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	path := filepath.Join(o.out, "results.json")
	if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Println("\nresults:", path)
	return nil
}

var parts = map[string]func(context.Context, options, *report) error{
	"load": loads, "flush": countFlushes, "sync": synchronizations, "resync": resyncs, "distance": distances, "foreground": foregrounds, "long": longs, "growth": growths,
}

// check names what is wrong with the command line, and what is missing on the machine.
func (o options) check() error {
	var errs []error
	if o.rounds < 1 || o.runtime < time.Second || o.sizeGiB < 1 {
		errs = append(errs, errors.New("-rounds and -size must be at least 1, -runtime at least 1s"))
	}
	if o.longRate < longDisks || o.longWindow < time.Second || o.long < 2*o.longWindow {
		errs = append(errs, fmt.Errorf("-long-rate must be at least %d, -long-window at least 1s, -long at least two windows", longDisks))
	}
	for _, p := range strings.Split(o.parts, ",") {
		if parts[p] == nil {
			errs = append(errs, fmt.Errorf("-parts: there is no %q", p))
		}
	}
	for _, n := range split(o.systems) {
		if !has(systems, n) {
			errs = append(errs, fmt.Errorf("-systems: there is no %q", n))
		}
	}
	for _, n := range split(o.workloads) {
		if !has(workloads, n) {
			errs = append(errs, fmt.Errorf("-workloads: there is no %q", n))
		}
	}
	tools := []string{"ip", o.lockstep}
	for _, p := range strings.Split(o.parts, ",") {
		if p == "growth" {
			tools = append(tools, "ss")
			errs = append(errs, o.checkGrowth())
		} else {
			tools = append(tools, "fio", "qemu-nbd", "qemu-storage-daemon", "nbdkit", "strace")
		}
	}
	slices.Sort(tools)
	for _, tool := range slices.Compact(tools) {
		if _, err := exec.LookPath(tool); err != nil {
			errs = append(errs, err)
		}
	}
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("a network namespace needs root"))
	}
	return errors.Join(errs...)
}

// named is what the command line can choose by name.
type named interface{ Name() string }

func names[T named](all []T) []string {
	out := make([]string, len(all))
	for i, x := range all {
		out[i] = x.Name()
	}
	return out
}

func has[T named](all []T, name string) bool {
	return len(chosen(all, name)) == 1
}

// chosen gives those of all that list names, all if it names none.
func chosen[T named](all []T, list string) []T {
	if list == "" {
		return all
	}
	var out []T
	for _, x := range all {
		for _, n := range split(list) {
			if n == x.Name() {
				out = append(out, x)
			}
		}
	}
	return out
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

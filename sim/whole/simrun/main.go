// Command simrun builds the tests of package sim/whole with a runtime that leaves nothing to chance, and runs
// them, one process for each seed, so that a seed repeats a run exactly. See docs/adr/0016-simulation-of-the-whole.md.
//
//	go run ./sim/whole/simrun -seeds 200          seeds 1 to 200
//	go run ./sim/whole/simrun -seed 17            one seed, with its story
//	go run ./sim/whole/simrun -run Scenario       the written stories
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	seeds := flag.Int("seeds", 0, "how many seeds to run")
	from := flag.Uint64("from", 1, "the first of them")
	seed := flag.Uint64("seed", 0, "the one seed to run, with its story")
	run := flag.String("run", "", "tests to run instead of seeds, as of go test")
	logs := flag.Bool("logs", false, "with -seed: the logs of nodes and controllers, too")
	times := flag.Int("times", 1, "with -seed: run it so often and compare")
	jobs := flag.Int("jobs", runtime.NumCPU(), "instances at a time")
	most := flag.Duration("for", 0, "begin no more seeds after that time; 0: no limit")
	overlay := flag.String("overlay", "", "a JSON file as of go build -overlay, beside the one for the runtime")
	cache := flag.String("cache", ".cache/sim", "folder for what was built")
	mutant := flag.String("mutants", "", "break the product on purpose: all, or those whose name has this in it")
	flag.Parse()
	if *mutant != "" {
		if err := runMutants(*cache, strings.TrimPrefix(*mutant, "all"), max(*from, 1), *jobs); err != nil {
			fmt.Fprintln(os.Stderr, "simrun:", err)
			os.Exit(1)
		}
		return
	}
	r := &runner{out: os.Stdout, logs: *logs, story: *seed != 0 && *times == 1, stats: map[string]int{}}
	err := r.build(*cache, *overlay)
	if err == nil {
		switch {
		case *seed != 0:
			err = r.seeds(slices.Repeat([]uint64{*seed}, *times), *jobs, 0)
		default:
			if *run != "" {
				err = r.tests(*run)
			}
			var list []uint64
			for i := range *seeds {
				list = append(list, *from+uint64(i))
			}
			if len(list) > 0 {
				err = errors.Join(err, r.seeds(list, *jobs, *most))
			}
		}
	}
	r.clean()
	if err != nil {
		fmt.Fprintln(os.Stderr, "simrun:", err)
		os.Exit(1)
	}
}

// runner has the compiled program.
type runner struct {
	cache   string
	program string
	logs    bool
	story   bool

	mu     sync.Mutex // guards what follows
	ran    int
	failed []uint64
	hashes map[uint64]string
	stats  map[string]int
	found  string // what the first failure said

	first bool      // stop at the first failure
	out   io.Writer // of failures and sums
}

// patch is a line of Go's source, and what the simulation has in its place.
type patch struct{ file, line, instead string }

// patches make a program on one processor (GOMAXPROCS=1, GOGC=off) a function of its seed.
var patches = []patch{
	// A goroutine that waits for a lock counts as waiting in a bubble of virtual time, as one that waits for a
	// channel does. Without it a slow disk under a lock would stop the clock.
	{
		"src/runtime/runtime2.go", "\twaitReasonSynctestSelect:        true,\n",
		"\twaitReasonSynctestSelect:        true,\n\twaitReasonSyncMutexLock:         true,\n\twaitReasonSyncRWMutexRLock:      true,\n\twaitReasonSyncRWMutexLock:       true,\n",
	},
	// Nobody takes the processor away from a goroutine by real time.
	{"src/runtime/proc.go", "const haveSysmon = GOARCH != \"wasm\"\n", "const haveSysmon = false\n"},
	// Nothing is bound to a thread, so that there is but one: what a thread needs would be in the heap, at another
	// address each time, and by addresses maps have their order.
	{"src/runtime/proc.go", "func lockOSThread() {\n", "func lockOSThread() {\n\treturn\n"},
	{"src/runtime/proc.go", "func unlockOSThread() {\n", "func unlockOSThread() {\n\treturn\n"},
	// Chance (of select, of maps, of ids) comes from a variable of the environment, and from one generator, whatever
	// thread asks.
	{
		"src/runtime/rand.go", "\tglobalRand.state.Init(*seed)\n", `	clear(seed[:])
	for i := argc + 1; argv_index(argv, i) != nil; i++ {
		const name = "` + seedVariable + `="
		if s := gostringnocopy(argv_index(argv, i)); len(s) > len(name) && s[:len(name)] == name {
			copy(seed[:], s[len(name):])
		}
	}
	globalRand.state.Init(*seed)
	simRand.Init(*seed)
`,
	},
	{"src/runtime/rand.go", "\tc := &mp.chacha8\n", "\tc := &simRand\n"},
	{"src/runtime/rand.go", "func cheaprand() uint32 {\n\tmp := getg().m\n", `func cheaprand() uint32 {
	mp := &simCheap
`},
	// Threads that come and go wait for each other by real time, and may not draw from it.
	{"src/runtime/rand.go", "\tmp.cheaprand = rand()\n", "\tmp.cheaprand = bootstrapRand()\n"},
	{"src/runtime/lock_spinbit.go", "cheaprandn(mutexTailWakePeriod) == 0\n", "false\n"},
	{"src/runtime/mprof.go", "\tif cheaprandn(gTrackingPeriod) == 0 {\n", "\tif false {\n"},
	// Whoever waits long for a lock gets it first: long is virtual time.
	{
		"src/runtime/sema.go", "func internal_sync_nanotime() int64 {\n",
		"func internal_sync_nanotime() int64 {\n\tif b := getg().bubble; b != nil {\n\t\treturn b.now\n\t}\n",
	},
	{"src/runtime/rand.go", "var readRandomFailed bool\n", `var readRandomFailed bool

var (
	simRand  chacha8rand.State
	simCheap struct{ cheaprand uint64 }
)
`},
}

// seedVariable of the environment holds the seed of the patched runtime.
const seedVariable = "LOCKSTEP_SIM_SEED"

// build compiles the tests with a patched runtime.
func (r *runner) build(cache, more string) error {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	r.cache = cache
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	replace := map[string]map[string]string{"Replace": {}}
	if more != "" {
		raw, err := os.ReadFile(more)
		if err == nil {
			err = json.Unmarshal(raw, &replace)
		}
		if err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
	}
	sources, err := edit(strings.TrimSpace(string(goroot)), patches)
	if err != nil {
		return fmt.Errorf("this version of Go is not known to simrun: %w", err)
	}
	for file, text := range sources {
		patched := filepath.Join(cache, filepath.Base(file))
		replace["Replace"][file] = patched
		if old, err := os.ReadFile(patched); err == nil && string(old) == text {
			continue
		}
		if err := os.WriteFile(patched, []byte(text), 0o644); err != nil { //nolint:gosec // a copy of public source
			return err
		}
	}
	raw, err := json.Marshal(replace)
	if err != nil {
		return err
	}
	overlay := filepath.Join(cache, fmt.Sprintf("overlay-%d.json", os.Getpid()))
	defer func() { _ = os.Remove(overlay) }()
	if err := os.WriteFile(overlay, raw, 0o644); err != nil { //nolint:gosec // no secret
		return err
	}
	began := time.Now()
	r.program = filepath.Join(cache, fmt.Sprintf("whole-%d.test", os.Getpid()))
	cmd := exec.Command("go", "test", "-c", "-tags", "simrun invariants", "-overlay", overlay, "-o", r.program, "./sim/whole")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	fmt.Fprintf(os.Stderr, "simrun: compiled in %.1f s\n", time.Since(began).Seconds())
	return nil
}

// clean removes what was built for this run alone.
func (r *runner) clean() {
	if r.program != "" {
		_ = os.Remove(r.program)
	}
}

// manySeeds have every kind of fault and of call among them.
const manySeeds = 200

// mostTime is many times what a seed takes on a loaded machine.
const mostTime = 3 * time.Minute

// once runs the program in a process of its own.
func (r *runner) once(seed uint64, out io.Writer, args ...string) error {
	dir, err := os.MkdirTemp("", "simrun")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithTimeout(context.Background(), mostTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.program, append([]string{"-test.timeout=0"}, args...)...)
	cmd.Dir = dir
	cmd.Args[0] = "whole" // and a relative folder: what the program is told has no chance in it, not even a length
	cmd.Env = []string{"TMPDIR=.", "GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=4GiB", "GOTRACEBACK=all", fmt.Sprintf("%s=%d", seedVariable, seed)}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // it tells where it is
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("it did not end within %s", mostTime)
	}
	return err
}

// tests runs tests by name, in one instance each.
func (r *runner) tests(pattern string) error {
	var list bytes.Buffer
	if err := r.once(1, &list, "-test.list="+pattern); err != nil {
		return err
	}
	bad := 0
	for _, name := range strings.Fields(list.String()) {
		began := time.Now()
		var out bytes.Buffer
		err := r.once(1, &out, "-test.run=^"+name+"$", "-test.v")
		if err != nil {
			bad++
			fmt.Print(out.String())
			fmt.Printf("FAIL %s: %v\n", name, err)
			continue
		}
		fmt.Printf("ok   %-60s %.1fs\n", name, time.Since(began).Seconds())
	}
	if bad > 0 {
		return fmt.Errorf("%d of the tests failed", bad)
	}
	return nil
}

// seeds runs them on all cores and sums up.
func (r *runner) seeds(list []uint64, jobs int, most time.Duration) error {
	began := time.Now()
	work := make(chan uint64)
	var wg sync.WaitGroup
	r.hashes = map[uint64]string{}
	for range jobs {
		wg.Go(func() {
			runtime.LockOSThread() // a child dies with the thread that started it
			for seed := range work {
				r.one(seed)
			}
		})
	}
	for _, seed := range list {
		if most > 0 && time.Since(began) > most {
			break
		}
		if r.first && r.failures() > 0 {
			break
		}
		work <- seed
	}
	close(work)
	wg.Wait()
	took := time.Since(began)
	for _, what := range slices.Sorted(maps.Keys(r.stats)) {
		fmt.Fprintf(r.out, "  %7d %s\n", r.stats[what], what)
	}
	fmt.Fprintf(r.out, "%d runs of the whole simulation in %.0f s (%.2f/s), failed: %d %v\n", r.ran, took.Seconds(), float64(r.ran)/took.Seconds(), len(r.failed), r.failed)
	var never []string
	faults := 0 // among them
	for what, n := range r.stats {
		if n == 0 {
			never = append(never, what)
			if strings.HasPrefix(what, "fault: ") {
				faults++
			}
		}
	}
	slices.Sort(never)
	if len(never) > 0 {
		fmt.Fprintf(r.out, "never: %s\n", strings.Join(never, ", "))
	}
	// Some calls, as "continue", are accepted in states that are rare; a kind of fault that never occurs is broken.
	if faults > 0 && len(r.failed) == 0 && len(list) > 1 && list[0] != list[1] && r.ran >= manySeeds {
		return fmt.Errorf("%d kinds of faults never occurred in %d runs", faults, r.ran)
	}
	if len(r.failed) > 0 {
		return fmt.Errorf("repeat one with: make sim SEED=%d", r.failed[0])
	}
	return nil
}

func (r *runner) failures() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failed)
}

// reason is the line of a run's output that says why it failed.
func reason(out string, err error) string {
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if i := strings.Index(line, ": seed "); i > 0 && strings.HasPrefix(line, "whole_test.go") || strings.HasPrefix(line, "panic:") {
			if len(line) > 200 {
				line = line[:200] + "…"
			}
			return line[max(0, i+2):]
		}
	}
	return err.Error()
}

func (r *runner) one(seed uint64) {
	args := []string{"-test.run=^TestSeed$", fmt.Sprintf("-seed=%d", seed)}
	var out bytes.Buffer
	var to io.Writer = &out
	if r.story {
		args = append(args, "-story")
		to = io.MultiWriter(os.Stdout, &out)
	}
	if r.logs {
		args = append(args, "-logs")
	}
	err := r.once(seed, to, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ran++
	if r.ran%100 == 0 {
		fmt.Fprintf(os.Stderr, "simrun: %d runs, %d failed\n", r.ran, len(r.failed))
	}
	hash := ""
	for line := range strings.Lines(out.String()) {
		var n int
		if _, err := fmt.Sscanf(line, "STAT %d ", &n); err == nil {
			r.stats[strings.TrimSpace(strings.SplitN(line, " ", 3)[2])] += n
		}
		if i := strings.Index(line, "hash="); strings.HasPrefix(line, "RESULT") && i > 0 {
			hash = line[i+5 : i+21]
		}
	}
	if have, known := r.hashes[seed]; known && have != hash {
		err = errors.Join(err, fmt.Errorf("seed %d: two runs differ: %s and %s", seed, have, hash))
	}
	r.hashes[seed] = hash
	if err != nil {
		r.failed = append(r.failed, seed)
		if r.found == "" {
			r.found = reason(out.String(), err)
		}
		file := filepath.Join(r.cache, fmt.Sprintf("failed-%d.txt", seed))
		_ = os.WriteFile(file, out.Bytes(), 0o644) //nolint:gosec // no secret; without it there is the text below
		text := out.String()
		if len(text) > 4000 {
			text = "…" + text[len(text)-4000:]
		}
		fmt.Fprintf(r.out, "FAIL seed %d: %v; all it printed is in %s\n%s\n", seed, err, file, text)
	}
}

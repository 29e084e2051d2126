// Command simrun builds the tests of package sim/whole as a WebAssembly program and runs it, one instance
// for each seed, so that a seed repeats a run exactly. See docs/adr/0016-simulation-of-the-whole.md.
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
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
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
	flag.Parse()
	r := &runner{logs: *logs, story: *seed != 0 && *times == 1, stats: map[string]int{}}
	err := r.build(*cache, *overlay)
	if err == nil {
		switch {
		case *seed != 0:
			err = r.seeds(slices.Repeat([]uint64{*seed}, *times), *jobs, 0)
		case *run != "":
			err = r.tests(*run)
		default:
			var list []uint64
			for i := range *seeds {
				list = append(list, *from+uint64(i))
			}
			err = r.seeds(list, *jobs, *most)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "simrun:", err)
		os.Exit(1)
	}
}

// runner has the compiled program.
type runner struct {
	rt     wazero.Runtime
	module wazero.CompiledModule
	logs   bool
	story  bool

	mu     sync.Mutex // guards what follows
	ran    int
	failed []uint64
	hashes map[uint64]string
	stats  map[string]int
}

// build compiles the tests for WASI. One line of Go's runtime is changed: a goroutine that waits for a
// lock counts as waiting in a bubble of virtual time, as one that waits for a channel does. Without it a
// slow disk under a lock would stop the clock.
func (r *runner) build(cache, more string) error {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	file := filepath.Join(strings.TrimSpace(string(goroot)), "src/runtime/runtime2.go")
	source, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	const line = "\twaitReasonSynctestSelect:        true,\n"
	if bytes.Count(source, []byte(line)) != 1 {
		return fmt.Errorf("%s has no line %q: this version of Go is not known to simrun", file, line)
	}
	patched := filepath.Join(cache, "runtime2.go")
	text := strings.Replace(string(source), line, line+"\twaitReasonSyncMutexLock:         true,\n\twaitReasonSyncRWMutexRLock:      true,\n\twaitReasonSyncRWMutexLock:       true,\n", 1)
	if old, err := os.ReadFile(patched); err != nil || string(old) != text {
		if err := os.WriteFile(patched, []byte(text), 0o644); err != nil { //nolint:gosec // a copy of public source
			return err
		}
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
	replace["Replace"][file] = patched
	raw, err := json.Marshal(replace)
	if err != nil {
		return err
	}
	overlay := filepath.Join(cache, fmt.Sprintf("overlay-%d.json", os.Getpid()))
	defer func() { _ = os.Remove(overlay) }()
	if err := os.WriteFile(overlay, raw, 0o644); err != nil { //nolint:gosec // no secret
		return err
	}
	program := filepath.Join(cache, fmt.Sprintf("whole-%d.wasm", os.Getpid()))
	defer func() { _ = os.Remove(program) }()
	cmd := exec.Command("go", "test", "-c", "-ldflags", "-s -w", "-tags", "simrun invariants", "-overlay", overlay, "-o", program, "./sim/whole")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	began := time.Now()
	ctx := context.Background()
	compiled, err := wazero.NewCompilationCacheWithDir(filepath.Join(cache, "wazero"))
	if err != nil {
		return err
	}
	r.rt = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithCompilationCache(compiled).WithCloseOnContextDone(true))
	wasi_snapshot_preview1.MustInstantiate(ctx, r.rt)
	code, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if r.module, err = r.rt.CompileModule(ctx, code); err != nil {
		return fmt.Errorf("compile: %w", err)
	}
	fmt.Fprintf(os.Stderr, "simrun: compiled in %.1f s\n", time.Since(began).Seconds())
	return nil
}

// chance is what the program gets where it asks its host for randomness.
type chance struct{ rng *rand.ChaCha8 }

func (c chance) Read(p []byte) (int, error) { return c.rng.Read(p) }

// once runs the program in an instance of its own.
func (r *runner) once(seed uint64, out io.Writer, args ...string) error {
	dir, err := os.MkdirTemp("", "simrun")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	key := [32]byte{}
	copy(key[:], fmt.Sprintf("seed %d", seed))
	cfg := wazero.NewModuleConfig().WithName("").WithStdout(out).WithStderr(out).
		WithArgs(append([]string{"whole", "-test.timeout=0"}, args...)...).
		WithEnv("TMPDIR", "/tmp").
		WithRandSource(chance{rand.NewChaCha8(key)}).
		WithFSConfig(wazero.NewFSConfig().WithDirMount(dir, "/"))
	mod, err := r.rt.InstantiateModule(ctx, r.module, cfg)
	if mod != nil {
		_ = mod.Close(ctx)
	}
	var exit *sys.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return errors.New("it did not end within 30 minutes")
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
			for seed := range work {
				r.one(seed)
			}
		})
	}
	for _, seed := range list {
		if most > 0 && time.Since(began) > most {
			break
		}
		work <- seed
	}
	close(work)
	wg.Wait()
	took := time.Since(began)
	for _, what := range slices.Sorted(maps.Keys(r.stats)) {
		fmt.Printf("  %7d %s\n", r.stats[what], what)
	}
	fmt.Printf("%d runs of the whole simulation in %.0f s (%.2f/s), failed: %d %v\n", r.ran, took.Seconds(), float64(r.ran)/took.Seconds(), len(r.failed), r.failed)
	if len(r.failed) > 0 {
		return fmt.Errorf("repeat one with: make sim SEED=%d", r.failed[0])
	}
	return nil
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
		text := out.String()
		if len(text) > 4000 {
			text = "…" + text[len(text)-4000:]
		}
		fmt.Printf("FAIL seed %d: %v\n%s\n", seed, err, text)
	}
}

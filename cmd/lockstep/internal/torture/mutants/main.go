// Command mutants shows that "lockstep torture" sees: it builds lockstep with one rule broken at a time,
// without touching the tree (go build -overlay), and tortures each such build until it is caught.
//
//	go run ./cmd/lockstep/internal/torture/mutants            all of them
//	go run ./cmd/lockstep/internal/torture/mutants -run f7    those whose name matches
//
// It ends with exit code 1 if one is not caught in time. Nothing of it is part of any other build.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	run := flag.String("run", "", "a regular expression: the mutants to run")
	most := flag.Duration("for", 3*time.Minute, "how long each is tortured at most")
	seed := flag.Uint64("seed", 1, "the seed of each run")
	all := flag.Bool("all-plans", false, "torture with all plans, not only with those aimed at what is broken")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := do(ctx, os.Stdout, *run, *most, *seed, *all); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func do(ctx context.Context, out io.Writer, run string, most time.Duration, seed uint64, allPlans bool) error {
	wanted, err := regexp.Compile(run)
	if err != nil {
		return err
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "lockstep-mutants-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is left of it is in a temporary place
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MUTANT\tRULE\tCAUGHT\tROUNDS\tSECONDS\tVERDICT")
	var missed []string
	for _, m := range mutants {
		if !wanted.MatchString(m.name) {
			continue
		}
		r, err := m.torture(ctx, root, filepath.Join(dir, m.name), most, seed, allPlans)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		caught := "yes"
		if r.Verdict == nothingLost {
			caught, missed = "NO", append(missed, m.name)
		}
		verdict, _, _ := strings.Cut(r.Verdict, "\n")
		fmt.Fprintf(os.Stderr, "%s: caught: %s, %d rounds, %.0f s: %s\n", m.name, caught, r.Rounds, r.Seconds, verdict)
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%.0f\t%s\n", m.name, m.rule, caught, r.Rounds, r.Seconds, verdict)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(missed) > 0 {
		return fmt.Errorf("not caught: %s", strings.Join(missed, ", "))
	}
	return nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// overlay writes the broken files into dir, and gives the file that go build -overlay takes.
func (m mutant) overlay(root, dir string) (string, error) {
	replace := map[string]string{}
	for _, e := range m.edits {
		path := filepath.Join(root, e.file)
		source := path
		if broken, ok := replace[path]; ok { // a further edit of the same file
			source = broken
		}
		text, err := os.ReadFile(source)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(text), e.old); n != 1 {
			return "", fmt.Errorf("%s has the text to replace %d times, not once: the mutant must follow the code:\n%s", e.file, n, e.old)
		}
		replace[path] = filepath.Join(dir, strings.ReplaceAll(e.file, "/", "_"))
		if err := os.WriteFile(replace[path], []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o600); err != nil {
			return "", err
		}
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, raw, 0o600)
}

// nothingLost is the verdict of a run that found nothing.
const nothingLost = "nothing lost"

// result is what is read of a run's report.
type result struct {
	Verdict string  `json:"verdict"`
	Rounds  int     `json:"rounds"`
	Seconds float64 `json:"seconds"`
}

// torture builds the mutant and runs it. A run that neither found something nor ended well is an error.
func (m mutant) torture(ctx context.Context, root, dir string, most time.Duration, seed uint64, allPlans bool) (r result, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return r, err
	}
	overlay, err := m.overlay(root, dir)
	if err != nil {
		return r, err
	}
	bin, report := filepath.Join(dir, "lockstep"), filepath.Join(dir, "report.json")
	build := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", bin, "./cmd/lockstep")
	build.Dir = root
	if text, err := build.CombinedOutput(); err != nil {
		return r, fmt.Errorf("build: %w\n%s", err, text)
	}
	args := []string{
		"torture", "--time", most.String(), "--seed", strconv.FormatUint(seed, 10),
		"--dir", filepath.Join(dir, "run"), "--report", report,
	}
	if !allPlans {
		args = append(args, "--plan", strings.Join(m.plans, ","))
	}
	ctx, cancel := context.WithTimeout(ctx, most+5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it ends its processes itself
	cmd.WaitDelay = time.Minute
	text, runErr := cmd.CombinedOutput()
	raw, err := os.ReadFile(report)
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		return r, fmt.Errorf("no report: %w\n%s", errors.Join(err, runErr), text)
	}
	if (runErr == nil) != (r.Verdict == nothingLost) {
		return r, fmt.Errorf("exit code and verdict say different things: %w, %s", runErr, r.Verdict)
	}
	return r, os.RemoveAll(filepath.Join(dir, "run"))
}

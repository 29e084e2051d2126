package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// flushes compares a client's flushes with the fdatasync calls of both nodes, as strace counts them: an
// answer to a flush stands for a sync on either side, and none is left out.
type flushes struct {
	Client    float64 `json:"client"`
	Primary   int     `json:"fdatasync_primary"`
	Secondary int     `json:"fdatasync_secondary"`
}

func countFlushes(ctx context.Context, o options, r *report) (err error) {
	s := &site{o: o, dir: o.dir}
	d, k, err := newProtected(ctx, s, "flush", 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	sv, err := d.served(ctx, k)
	if err != nil {
		return err
	}
	var traces []*exec.Cmd
	for i, pid := range sv.pids {
		cmd := exec.Command("strace", "-f", "-c", "-e", "trace=fdatasync", "-o", s.path(fmt.Sprintf("strace.%d", i)), "-p", strconv.Itoa(pid))
		if err := cmd.Start(); err != nil {
			return err
		}
		traces = append(traces, cmd)
	}
	time.Sleep(time.Second) // until strace is attached; more of them than flushes do no harm, fewer would
	w := workload{id: "flushes", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}}
	x, err := fio(ctx, w, sv.uri, 1<<30, 3*time.Second, sv.pids)
	if err != nil {
		return err
	}
	var counts [2]int
	for i, cmd := range traces {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it ends with the signal's code
		if counts[i], err = straced(s.path(fmt.Sprintf("strace.%d", i))); err != nil {
			return err
		}
	}
	r.Flushes = &flushes{Client: x.Syncs, Primary: counts[0], Secondary: counts[1]}
	fmt.Printf("\nflushes of the client: %.0f; fdatasync calls of the primary: %d, of the secondary: %d (background flushes included)\n", x.Syncs, counts[0], counts[1])
	if float64(counts[0]) < x.Syncs || float64(counts[1]) < x.Syncs {
		return errors.New("a flush was answered without an fdatasync on both sides")
	}
	return nil
}

// straced is the number of fdatasync calls in a summary of strace.
func straced(path string) (int, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(raw), "\n") {
		if f := strings.Fields(line); len(f) >= 5 && f[len(f)-1] == "fdatasync" {
			return strconv.Atoi(f[3])
		}
	}
	return 0, fmt.Errorf("%s names no fdatasync: %s", path, raw)
}

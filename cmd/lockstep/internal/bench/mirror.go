package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// startMirror starts a mirror job and waits until it is ready: then every write goes to both sides,
// but a client's flush to the near one alone.
func startMirror(ctx context.Context, s *site) (*served, error) {
	if err := s.peerFiles("a.raw", "b.raw"); err != nil {
		return nil, err
	}
	sv, _, err := mirror(ctx, s)
	return sv, err
}

// mirror also tells how long the job took from its start to ready.
func mirror(ctx context.Context, s *site) (*served, time.Duration, error) {
	g := &group{}
	if err := g.secondary(ctx, s); err != nil {
		return nil, 0, errors.Join(err, g.stop())
	}
	cmd := exec.Command("qemu-storage-daemon", append(s.both(), "--export", "type=nbd,id=e0,node-name=pri,name=,writable=on",
		"--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	if err := cmd.Start(); err != nil {
		return nil, 0, errors.Join(err, g.stop())
	}
	g.cmds = append(g.cmds, cmd)
	lines := make(chan string, 16)
	go func() {
		defer close(lines)
		for r := bufio.NewScanner(out); r.Scan(); {
			select {
			case lines <- r.Text():
			default: // nobody reads any more
			}
		}
	}()
	sv, err := s.serve(ctx, g, "q.sock")
	if err != nil {
		return nil, 0, err
	}
	began := time.Now()
	_, err = io.WriteString(in, `{"execute":"qmp_capabilities"}`+"\n"+
		`{"execute":"blockdev-mirror","arguments":{"job-id":"m0","device":"pri","target":"sec","sync":"full","copy-mode":"write-blocking"}}`+"\n")
	limit := time.After(10 * time.Minute)
	for err == nil {
		select {
		case line, ok := <-lines:
			switch {
			case !ok:
				err = errors.New("qemu-storage-daemon ended")
			case strings.Contains(line, "BLOCK_JOB_READY"):
				return sv, time.Since(began), nil
			case strings.Contains(line, `"error"`):
				err = fmt.Errorf("qemu-storage-daemon: %s", line)
			}
		case <-limit:
			err = errors.New("the mirror was not ready within 10 minutes")
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return nil, 0, errors.Join(err, sv.stop())
}

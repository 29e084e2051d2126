package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
)

// line is a TCP proxy that delivers every byte a fixed time after it came in, in order.
type line struct {
	l      net.Listener
	target string
	delay  time.Duration // one way
}

func newLine(target string, delay time.Duration) (*line, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	x := &line{l: l, target: target, delay: delay}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				_ = in.Close()
				continue
			}
			go x.carry(in, out)
			go x.carry(out, in)
		}
	}()
	return x, nil
}

// carry moves bytes one way until either end closes.
func (x *line) carry(from, to net.Conn) {
	type parcel struct {
		due  time.Time
		data []byte
	}
	way := make(chan parcel, 4096)
	go func() {
		// The timer of the kernel rounds up by 50 us for a thread that does not ask for better.
		runtime.LockOSThread()
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
		defer func() { _ = to.Close() }()
		broken := false
		for p := range way {
			if left := time.Until(p.due); left > 0 {
				ts := unix.NsecToTimespec(left.Nanoseconds())
				_ = unix.Nanosleep(&ts, nil)
			}
			if broken {
				continue
			}
			if _, err := to.Write(p.data); err != nil {
				broken = true
				_ = from.Close()
			}
		}
	}()
	defer close(way)
	for {
		buf := make([]byte, 64<<10)
		n, err := from.Read(buf)
		if n > 0 {
			way <- parcel{time.Now().Add(x.delay), buf[:n]}
		}
		if err != nil {
			return
		}
	}
}

// distances runs the small jobs with round trips of some length between the nodes.
func distances(ctx context.Context, o options, r *report) (err error) {
	s := &site{o: o, dir: o.dir}
	d, k, err := newProtected(ctx, s, "distance", 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	for _, rtt := range []time.Duration{0, 500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond} {
		runs, err := d.atDistance(ctx, k, rtt)
		if err != nil {
			return fmt.Errorf("at %s: %w", rtt, err)
		}
		r.Distant = append(r.Distant, runs...)
	}
	return nil
}

// atDistance puts the secondary behind a line and runs the jobs.
func (d *deployment) atDistance(ctx context.Context, k disk, rtt time.Duration) (runs []run, err error) {
	listen, err := dev.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	settings := map[string]any{"replicate": listen, "advertise": listen}
	if rtt > 0 {
		x, err := newLine(listen, rtt/2)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, x.l.Close()) }()
		settings["advertise"] = x.l.Addr().String()
	}
	far := zones[1:]
	if _, err := d.child.Layout.End(ctx, far, syscall.SIGTERM, 20*time.Second); err != nil {
		return nil, err
	}
	if err := d.child.Layout.Configure(far[0], settings); err != nil {
		return nil, err
	}
	if err := d.startNode(ctx, 1); err != nil {
		return nil, err
	}
	if err := d.inSync(ctx, k); err != nil {
		return nil, err
	}
	sv, err := d.served(ctx, k)
	if err != nil {
		return nil, err
	}
	for _, id := range []string{"W1", "W2", "W5", "W6"} {
		w := chosen(workloads, id)[0]
		x, err := fio(ctx, w, sv.uri, 1<<30, d.s.o.runtime, sv.pids)
		if err != nil {
			return nil, err
		}
		x.System, x.RTTMs = "lockstep", float64(rtt.Microseconds())/1000
		runs = append(runs, x)
		fmt.Printf("round trip %-6s %-26s %8.0f/s  mean %7.0f us  p99 %7.0f us  flush mean %7.0f us\n", rtt, w.title, x.IOPS, x.MeanUs, x.P99Us, x.SyncUs)
	}
	return runs, nil
}

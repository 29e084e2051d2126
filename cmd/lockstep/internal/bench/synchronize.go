package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// syncRun is one initial synchronization.
type syncRun struct {
	System string  `json:"system"`
	Target string  `json:"target"` // sparse or preallocated
	Round  int     `json:"round"`
	MiBps  float64 `json:"mib_per_s"`         // Lockstep: until both sides are durable; mirror: until it is ready
	Synced float64 `json:"durable_mib_per_s"` // until what was copied is durable
}

var targets = []string{"preallocated", "sparse"}

// synchronizations copies a disk of random data for the first time, by Lockstep and by QEMU's mirror, to
// a target that has every block and to one that has none.
func synchronizations(ctx context.Context, o options, r *report) error {
	s := &site{o: o, dir: o.dir}
	for round := 1; round <= o.rounds; round++ {
		for _, target := range targets {
			for _, system := range []struct {
				name string
				run  func(context.Context, *site, string) (ready, durable time.Duration, err error)
			}{{"lockstep", syncLockstep}, {"mirror", syncMirror}} {
				ready, durable, err := system.run(ctx, s, target)
				if err != nil {
					return fmt.Errorf("%s to a %s target: %w", system.name, target, err)
				}
				mib := float64(s.size() >> 20)
				x := syncRun{System: system.name, Target: target, Round: round, MiBps: mib / ready.Seconds(), Synced: mib / durable.Seconds()}
				r.Syncs = append(r.Syncs, x)
				fmt.Printf("initial synchronization, %-12s target, %-8s %7.0f MiB/s, durable %.0f MiB/s\n", target, x.System, x.MiBps, x.Synced)
			}
		}
	}
	for _, target := range targets {
		rate := func(system string, get func(syncRun) float64) float64 {
			var v []float64
			for _, x := range r.Syncs {
				if x.System == system && x.Target == target {
					v = append(v, get(x))
				}
			}
			return median(v)
		}
		mine := rate("lockstep", func(x syncRun) float64 { return x.Synced })
		ready, durable := rate("mirror", func(x syncRun) float64 { return x.MiBps }), rate("mirror", func(x syncRun) float64 { return x.Synced })
		fmt.Printf("initial synchronization, %s target: Lockstep, durable, %.0f MiB/s; mirror, durable, %.0f (%.2f), ready %.0f (%.2f, goal 1.30%s)\n",
			target, mine, durable, mine/durable, ready, mine/ready, verdict(mine >= 1.3*ready))
	}
	return nil
}

// randomize fills a file with bytes that no run of them repeats.
func randomize(path string, size int64) error {
	var key [16]byte
	binary.LittleEndian.PutUint64(key[:], rand.Uint64())
	b, err := aes.NewCipher(key[:])
	if err != nil {
		return err
	}
	stream := cipher.NewCTR(b, make([]byte, aes.BlockSize))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size && err == nil; off += int64(len(buf)) {
		stream.XORKeyStream(buf, buf)
		_, err = f.WriteAt(buf, off)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// prepareTarget makes the far file; one that exists is sparse.
func prepareTarget(target, path string, size int64) error {
	if target == "preallocated" {
		return fill(path, size)
	}
	return nil
}

func syncLockstep(ctx context.Context, s *site, target string) (ready, durable time.Duration, err error) {
	d, err := newDeployment(ctx, s, "sync")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	k, err := d.volumes(ctx, s.o.sizeGiB, func(zone int, path string) error {
		if zone == 0 {
			return randomize(path, s.size())
		}
		return prepareTarget(target, path, s.size())
	})
	if err != nil {
		return 0, 0, err
	}
	if err := exec.CommandContext(ctx, "sync").Run(); err != nil {
		return 0, 0, err
	}
	err = d.protect(ctx, &k)
	ready = time.Since(d.asked)
	return ready, ready, err
}

func syncMirror(ctx context.Context, s *site, target string) (ready, durable time.Duration, err error) {
	defer func() {
		_ = os.Remove(s.path("a.raw"))
		_ = os.Remove(s.path("b.raw"))
	}()
	if err := randomize(s.path("a.raw"), s.size()); err != nil {
		return 0, 0, err
	}
	f, err := os.Create(s.path("b.raw"))
	if err == nil {
		err = errors.Join(f.Truncate(s.size()), f.Close())
	}
	if err == nil {
		err = prepareTarget(target, s.path("b.raw"), s.size())
	}
	if err == nil {
		err = exec.CommandContext(ctx, "sync").Run()
	}
	if err != nil {
		return 0, 0, err
	}
	sv, ready, err := mirror(ctx, s)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	err = exec.CommandContext(ctx, "sync", "--data", s.path("b.raw")).Run()
	return ready, ready + time.Since(began), errors.Join(err, sv.stop())
}

// resync is one synchronization after an outage.
type resync struct {
	Writes     int     `json:"writes"`
	DirtyBytes int64   `json:"dirty_bytes"`    // at the map's granularity
	SentBytes  int64   `json:"sent_bytes"`     // on the wire, both ways, all traffic of the deployment included
	Waited     float64 `json:"waited_seconds"` // from the start of the node's process until it begins
	Seconds    float64 `json:"seconds"`        // from then until the group is in sync
	MiBps      float64 `json:"mib_per_s"`      // of dirty bytes, in Seconds
}

const (
	scattered  = 10_000 // writes that an outage sees
	settleTime = 5 * time.Second
)

// resyncs takes the secondary away, writes blocks of 4 KiB all over the disk, and brings it back.
func resyncs(ctx context.Context, o options, r *report) (err error) {
	s := &site{o: o, dir: o.dir}
	d, k, err := newProtected(ctx, s, "resync", o.sizeGiB)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	uri, err := d.c.ConnectionURI(ctx, k.volume[0])
	if err != nil {
		return err
	}
	c, err := nbdclient.Dial(ctx, uri)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for range o.rounds {
		select { // what was written last is flushed on both sides: an outage does not follow a synchronization at once
		case <-time.After(settleTime):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := d.stopNode(ctx, 1); err != nil {
			return err
		}
		dirty := map[int64]bool{}
		block := make([]byte, 4096)
		for range scattered {
			off := rand.Int64N(s.size()/4096) * 4096
			for i := range block {
				block[i] = byte(rand.Uint32())
			}
			if err := c.WriteAt(ctx, block, off, false); err != nil {
				return err
			}
			dirty[off/lockstep.ChunkBytes] = true
		}
		before, err := wireBytes()
		if err != nil {
			return err
		}
		began := time.Now()
		if err := d.startNode(ctx, 1); err != nil {
			return err
		}
		err = until(ctx, "copying", func(ctx context.Context) (bool, error) {
			left, err := d.toSend(ctx, k)
			return left > 0, err
		})
		if err != nil {
			return err
		}
		x := resync{Writes: scattered, DirtyBytes: int64(len(dirty)) * lockstep.ChunkBytes, Waited: time.Since(began).Seconds()}
		if err := d.inSync(ctx, k); err != nil {
			return err
		}
		x.Seconds = time.Since(began).Seconds() - x.Waited
		after, err := wireBytes()
		if err != nil {
			return err
		}
		x.SentBytes = after - before
		x.MiBps = float64(x.DirtyBytes>>20) / x.Seconds
		r.Resync = append(r.Resync, x)
		ratio := float64(x.SentBytes) / float64(x.DirtyBytes)
		fmt.Printf("resync after %d writes: %d MiB dirty, %d MiB on the wire (%.2f, goal at most 1.10)%s, begun after %.1f s, took %.1f s: %.0f MiB/s (goal 100)%s\n",
			x.Writes, x.DirtyBytes>>20, x.SentBytes>>20, ratio, verdict(ratio <= 1.1), x.Waited, x.Seconds, x.MiBps, verdict(x.MiBps >= 100))
	}
	return nil
}

// wireBytes is what has passed the loopback of this namespace.
func wireBytes() (int64, error) {
	raw, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(raw), "\n") {
		if name, rest, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "lo" {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, errors.New("/proc/net/dev has no lo")
}

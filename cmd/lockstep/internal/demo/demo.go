// Package demo proves on a deployment of its own what Lockstep promises: it writes chains of
// dependent writes to two replicated disks, kills the whole primary zone in the middle, fails
// over, and looks for every write that was acknowledged. Then it brings the zone back, goes back
// to it, and compares both sides byte by byte. It decides by what it reads from the disks alone,
// and never waits by sleeping: every wait ends with a status or a deadline.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
)

// Options of a demonstration.
type Options struct {
	// Sabotage flips a bit in a raw file before the comparison, which must then fail.
	Sabotage bool
	// Keep leaves the directory behind, as it is left anyway after a failure.
	Keep bool
	// Timeout bounds everything.
	Timeout time.Duration
	Out     io.Writer
	// Progress draws bars; where it is false lines are printed.
	Progress bool
}

const (
	sizeGiB = 1
	// writesBefore is how many writes each chain has acknowledged before the zone is killed;
	// writesAfter, how many more at each later stage.
	writesBefore = 300
	writesAfter  = 100
)

var zones = [2]string{"az1", "az2"}

// scenario is the state of one run.
type scenario struct {
	o      Options
	t      *timeline
	d      *dev.Child
	c      *client.Client
	h      *history
	res    result
	group  string
	pairs  [disksCount]string
	site   map[string][disksCount]string // volumes by zone
	killed time.Time
	disks  disks
	work   *workload
}

// Run runs the demonstration; an error means that something is not as promised.
func Run(ctx context.Context, o Options) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("the demonstration took longer than %s", o.Timeout))
	defer cancel()
	dir, err := os.MkdirTemp("", "lockstep-demo-")
	if err != nil {
		return err
	}
	s := &scenario{o: o, t: newTimeline(o.Out), site: map[string][disksCount]string{}}
	defer func() {
		if err != nil || o.Keep {
			fmt.Fprintf(o.Out, "the deployment's directory is kept: %s\n", dir)
		} else {
			err = os.RemoveAll(dir)
		}
	}()
	s.t.at("start a deployment of the zones %s and %s in %s", zones[0], zones[1], dir)
	s.d, err = dev.StartChild(ctx, dir, dev.Options{AZs: zones[:]}, func(line string) { s.t.at("  dev: %s", line) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	for _, step := range []func(context.Context) error{
		s.create, s.fill, s.synchronize, s.writeAndKill, s.failover, s.goOn, s.comeBack, s.switchBack, s.compare,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	s.res.print(o.Out)
	return nil
}

// end stops what still runs, whatever happened before.
func (s *scenario) end() error {
	var errs []error
	if s.work != nil {
		s.work.cancel()
	}
	// Closing the connections ends writes that are held.
	_ = s.disks.close() // after a failure they may be broken already
	if s.work != nil {
		s.work.wg.Wait()
	}
	s.t.at("stop the deployment")
	errs = append(errs, s.d.Stop())
	return errors.Join(errs...)
}

// create makes two production volumes, their DR volumes, two pairs and one group, by REST.
func (s *scenario) create(ctx context.Context) error {
	var err error
	s.c, err = client.Dial(ctx, client.Options{Cloud: "lockstep", CloudsFile: s.d.Layout.CloudsFile(), UserAgent: "lockstep-demo"})
	if err != nil {
		return err
	}
	for _, az := range zones {
		var ids [disksCount]string
		for i := range ids {
			name := fmt.Sprintf("demo-%s-%d", az, i)
			v, err := s.c.CreateVolume(ctx, client.VolumeCreate{Name: &name, SizeGiB: sizeGiB, AvailabilityZone: az})
			if err != nil {
				return fmt.Errorf("create volume %s: %w", name, err)
			}
			ids[i] = v.ID
		}
		for i, id := range ids {
			err := waitFor(ctx, "volume "+id+" is available", func(ctx context.Context) (bool, error) {
				v, err := s.c.Volume(ctx, id)
				return v.Status == "available", failedStatus(v.Status, err)
			})
			if err != nil {
				return err
			}
			s.t.at("volume %s: disk %d in %s, %d GiB", id, i, az, sizeGiB)
		}
		s.site[az] = ids
	}
	for i := range s.pairs {
		name := fmt.Sprintf("demo-%d", i)
		p, err := s.c.CreatePair(ctx, client.PairCreate{
			Name: &name, VolumeIDs: []string{s.site[zones[0]][i], s.site[zones[1]][i]}, PriorityStation: zones[0],
		})
		if err != nil {
			return fmt.Errorf("create pair %s: %w", name, err)
		}
		s.pairs[i] = p.ID
		err = waitFor(ctx, "pair "+p.ID+" is available", func(ctx context.Context) (bool, error) {
			p, err := s.c.Pair(ctx, p.ID)
			return p.Status == "available", failedStatus(p.Status, err)
		})
		if err != nil {
			return err
		}
	}
	name := "demo"
	g, err := s.c.CreateGroup(ctx, client.GroupCreate{Name: &name, PairIDs: s.pairs[:], PriorityStation: zones[0]})
	if err != nil {
		return fmt.Errorf("create the group: %w", err)
	}
	s.group = g.ID
	s.t.at("group %s of the pairs %s and %s", g.ID, s.pairs[0], s.pairs[1])
	return s.until(ctx, "the group is available", func(g client.Group) bool { return g.Status == "available" })
}

func failedStatus(status string, err error) error {
	if err == nil && len(status) >= 5 && status[:5] == "error" {
		return fmt.Errorf("the status is %s", status)
	}
	return err
}

// until polls the group.
func (s *scenario) until(ctx context.Context, what string, done func(client.Group) bool) error {
	return waitFor(ctx, what, func(ctx context.Context) (bool, error) {
		g, err := s.c.Group(ctx, s.group)
		if err == nil && done(g) {
			return true, nil
		}
		return false, failedStatus(g.Status, err)
	})
}

// fill writes what the first synchronization will have to copy.
func (s *scenario) fill(ctx context.Context) error {
	if err := s.connect(ctx, zones[0]); err != nil {
		return err
	}
	s.h = newHistory(rand.Uint64(), s.disks[0].Size(), baseChain)
	if err := writeBase(ctx, s.h, s.disks.devices()); err != nil {
		return fmt.Errorf("write data in %s: %w", zones[0], err)
	}
	s.t.at("%d MiB of data written to each disk in %s", baseDiskBytes>>20, zones[0])
	err := s.disks.close()
	s.disks = disks{}
	return err
}

func (s *scenario) synchronize(ctx context.Context) error {
	if err := s.c.Act(ctx, s.group, client.ActionSync); err != nil {
		return fmt.Errorf("start replication: %w", err)
	}
	s.t.at("replication started from %s to %s", zones[0], zones[1])
	if err := s.untilActive(ctx, zones[0]); err != nil {
		return err
	}
	s.t.at("group is active: every write is on both sides before it is acknowledged")
	return nil
}

// untilActive waits for the group to be in sync with its primary in az, showing progress.
func (s *scenario) untilActive(ctx context.Context, az string) error {
	bar := progressbar.DefaultSilent(100)
	if s.o.Progress {
		bar = progressbar.NewOptions(100, progressbar.OptionSetWriter(s.o.Out), progressbar.OptionSetDescription("copying"),
			progressbar.OptionSetWidth(40), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(false))
	}
	shown := -1
	var pairsErr error
	err := s.until(ctx, "the group is active with its primary in "+az, func(g client.Group) bool {
		if g.Status == "available" && g.ReplicationStatus == "active" && g.PriorityStation == az {
			return true
		}
		var percent int
		if percent, pairsErr = s.percent(ctx); pairsErr == nil && percent != shown && g.ReplicationStatus == "copying" {
			if !s.o.Progress && percent/20 != shown/20 {
				s.t.at("  copying: %d%%", percent)
			}
			shown = percent
			_ = bar.Set(percent) // a bar that cannot be drawn is no reason to fail
		}
		return false
	})
	_ = bar.Finish()
	return errors.Join(err, pairsErr)
}

// percent is the progress of the pair that is behind.
func (s *scenario) percent(ctx context.Context) (int, error) {
	least := 100
	for _, id := range s.pairs {
		p, err := s.c.Pair(ctx, id)
		if err != nil {
			return 0, err
		}
		if p.Progress == nil {
			return 0, nil
		}
		n, err := strconv.Atoi(*p.Progress)
		if err != nil {
			return 0, fmt.Errorf("progress of pair %s: %w", id, err)
		}
		least = min(least, n)
	}
	return least, nil
}

// connect opens both disks in a zone.
func (s *scenario) connect(ctx context.Context, az string) error {
	var err error
	s.disks, err = openSoon(ctx, s.c, s.site[az])
	return err
}

func (s *scenario) writeAndKill(ctx context.Context) error {
	if err := s.connect(ctx, zones[0]); err != nil {
		return err
	}
	s.work = startWorkload(ctx, s.h, s.disks.devices())
	s.t.at("%d chains of dependent writes go to both disks in %s", chainsCount, zones[0])
	if err := s.work.until(ctx, writesBefore); err != nil {
		return err
	}
	spec, err := s.d.Layout.Spec()
	if err != nil {
		return err
	}
	s.t.at("%d writes acknowledged; kill every process of %s with SIGKILL, writes in flight", s.h.acknowledged(), zones[0])
	s.killed = time.Now()
	ran, err := s.d.Layout.End(ctx, spec.Members(zones[0]), syscall.SIGKILL, 10*time.Second)
	if err != nil {
		return err
	}
	if len(ran) != len(spec.Members(zones[0])) {
		return fmt.Errorf("only %v were there to be killed", ran)
	}
	if err := s.work.broken(ctx); err != nil {
		return err
	}
	_ = s.disks.close() // their server is dead
	s.res.acknowledged = s.h.acknowledged()
	s.t.at("%s is gone; %d writes had been acknowledged", zones[0], s.res.acknowledged)
	return nil
}

func (s *scenario) failover(ctx context.Context) error {
	called := s.t.at("call %s", client.ActionFailover)
	if err := s.c.Act(ctx, s.group, client.ActionFailover); err != nil {
		return fmt.Errorf("fail over: %w", err)
	}
	if err := s.until(ctx, "the group is failed over", func(g client.Group) bool { return g.Status == "failovered" }); err != nil {
		return err
	}
	s.t.at("group is failovered, the primary is %s", zones[1])
	if err := s.connect(ctx, zones[1]); err != nil {
		return err
	}
	if err := probe(ctx, s.disks[0], s.h.run); err != nil {
		return fmt.Errorf("first write in %s: %w", zones[1], err)
	}
	accepted := s.t.at("first write accepted in %s", zones[1])
	s.res.rto, s.res.killToWrite = accepted.Sub(called), accepted.Sub(s.killed)
	v, err := inspect(ctx, s.h, s.disks.devices())
	s.res.rpoBytes, s.res.extra = v.lostBytes(), v.extra
	if err != nil {
		return fmt.Errorf("disks in %s after the failover: %w", zones[1], err)
	}
	if err := checkBase(ctx, s.h, s.disks.devices()); err != nil {
		return fmt.Errorf("disks in %s after the failover: %w", zones[1], err)
	}
	s.t.at("all %d acknowledged writes are there, and %d that were still in flight; no write without its predecessor", v.acknowledged, v.extra)
	return nil
}

// goOn lets the application work at the other zone, as if the first one had never been.
func (s *scenario) goOn(ctx context.Context) error {
	s.work = startWorkload(ctx, s.h, s.disks.devices())
	if err := s.work.until(ctx, writesAfter); err != nil {
		return err
	}
	s.t.at("writes go on in %s: %d acknowledged in all", zones[1], s.h.acknowledged())
	return nil
}

// comeBack brings the lost zone back and replicates to it, under load.
func (s *scenario) comeBack(ctx context.Context) error {
	spec, err := s.d.Layout.Spec()
	if err != nil {
		return err
	}
	members := spec.Members(zones[0])
	if _, err := s.d.Layout.Launch(members); err != nil {
		return err
	}
	if err := s.untilAlive(ctx, members); err != nil {
		return err
	}
	s.t.at("%s is back", zones[0])
	if err := s.c.Act(ctx, s.group, client.ActionReprotect); err != nil {
		return fmt.Errorf("reprotect: %w", err)
	}
	s.t.at("call %s: replicate from %s to %s, writes go on", client.ActionReprotect, zones[1], zones[0])
	if err := s.untilActive(ctx, zones[1]); err != nil {
		return err
	}
	s.t.at("group is active again")
	return s.work.until(ctx, writesAfter)
}

func (s *scenario) untilAlive(ctx context.Context, members []dev.Member) error {
	return waitFor(ctx, "the nodes are alive", func(ctx context.Context) (bool, error) {
		nodes, err := s.c.Nodes(ctx)
		if err != nil {
			return false, err
		}
		up := map[string]bool{}
		for _, n := range nodes {
			up[n.ID] = n.Alive
		}
		for _, m := range members {
			if !up[m.NodeID()] {
				return false, nil
			}
		}
		return true, nil
	})
}

// switchBack stops the application, swaps the roles, and lets it work in the first zone again.
func (s *scenario) switchBack(ctx context.Context) error {
	if err := s.leave(); err != nil {
		return err
	}
	s.t.at("application stopped in %s; call %s", zones[1], client.ActionReverse)
	if err := s.c.Act(ctx, s.group, client.ActionReverse); err != nil {
		return fmt.Errorf("switch over: %w", err)
	}
	if err := s.untilActive(ctx, zones[0]); err != nil {
		return err
	}
	if err := s.connect(ctx, zones[0]); err != nil {
		return err
	}
	s.t.at("group is active, the primary is %s again", zones[0])
	if _, err := inspect(ctx, s.h, s.disks.devices()); err != nil {
		return fmt.Errorf("disks in %s after the switchover: %w", zones[0], err)
	}
	s.work = startWorkload(ctx, s.h, s.disks.devices())
	if err := s.work.until(ctx, writesAfter); err != nil {
		return err
	}
	if err := s.work.stop(); err != nil {
		return err
	}
	s.work = nil
	if err := s.disks.flush(ctx); err != nil {
		return err
	}
	s.res.afterwards = s.h.acknowledged() - s.res.acknowledged - s.res.extra
	s.t.at("every write of the run is in %s; %d acknowledged in all; flushed", zones[0], s.h.acknowledged())
	return nil
}

// leave stops the writers and closes their disks.
func (s *scenario) leave() error {
	if err := s.work.stop(); err != nil {
		return err
	}
	s.work = nil
	err := s.disks.close()
	s.disks = disks{}
	return err
}

// compare stops replication, so that nothing moves, and compares both sides: the raw files with
// each other, and with what a client reads.
func (s *scenario) compare(ctx context.Context) error {
	if err := s.c.Act(ctx, s.group, client.ActionStop); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	err := s.until(ctx, "the group is paused", func(g client.Group) bool { return g.ReplicationStatus == "active-stopped" })
	if err != nil {
		return err
	}
	s.t.at("group is paused; compare both sides")
	spec, err := s.d.Layout.Spec()
	if err != nil {
		return err
	}
	for i := range s.pairs {
		var files [len(zones)]string
		for z, az := range zones {
			if files[z], err = s.d.Layout.RawFile(spec.Members(az)[0], s.site[az][i], s.disks[i].Size()); err != nil {
				return err
			}
		}
		if s.o.Sabotage && i == 1 {
			at, err := sabotage(files[1])
			if err != nil {
				return fmt.Errorf("sabotage: %w", err)
			}
			s.t.at("sabotage: flipped a bit of byte %d of %s", at, files[1])
		}
		sum, size, err := compareFiles(files[0], files[1])
		if err != nil {
			return fmt.Errorf("disk %d: the zones differ: %w", i, err)
		}
		if err := compareDevice(ctx, s.disks[i], files[1]); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
		s.res.sums[i] = sum
		s.res.compared += size
		s.t.at("disk %d: %d bytes are the same in both zones", i, size)
	}
	if _, err := inspect(ctx, s.h, s.disks.devices()); err != nil {
		return fmt.Errorf("disks at the end: %w", err)
	}
	if err := checkBase(ctx, s.h, s.disks.devices()); err != nil {
		return fmt.Errorf("disks at the end: %w", err)
	}
	return nil
}

package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// Bounds of what must happen once everything is mended. They are far above what a quiet machine
// needs: a busy one is no failure.
const (
	apiWithin      = time.Minute
	activeWithin   = 2 * time.Minute
	progressWithin = 30 * time.Second
	readsWithin    = 30 * time.Second
	equalWithin    = 30 * time.Second
	checkWithin    = 20 * time.Second // for each piece of the history
)

// heal mends everything and waits for the API and all nodes.
func (r *run) heal(ctx context.Context) *Failure {
	died, err := r.rig.mend()
	r.tell.note("everything is mended")
	if err != nil {
		return wrong(err)
	}
	if len(died) > 0 {
		return wrong(fmt.Errorf("ended although nobody killed it: %s; see its log", names(died)))
	}
	return stuck(poll(ctx, apiWithin, "the API answers and all nodes are alive", r.rig.alive))
}

// settle brings every group back to active by documented calls.
func (r *run) settle(ctx context.Context) *Failure {
	for _, g := range r.groups {
		var called time.Time
		err := poll(ctx, activeWithin, fmt.Sprintf("group %d is active again", g.number), func(ctx context.Context) error {
			have, err := r.rig.c.Group(ctx, g.id)
			if err != nil {
				return err
			}
			now := statuses(have)
			if at := slices.Index(zones, have.PriorityStation); at >= 0 && now == "available/active/0" {
				g.primary.Store(&zones[at])
				return nil
			}
			if time.Since(called) > 2*time.Second && have.Status != "failovering" && have.Status != "reversing" {
				called = time.Now()
				err = r.rig.c.Act(ctx, g.id, client.ActionSync)
				r.tell.note("group %d is %s; synchronize: %v", g.number, now, err)
			}
			reason := ""
			if have.Reason != nil {
				reason = ": " + *have.Reason
			}
			return errors.Join(fmt.Errorf("it is %s%s", now, reason), err)
		})
		if err != nil {
			return stuck(err)
		}
		r.tell.note("group %d is active, the primary is %s", g.number, g.where())
	}
	return nil
}

// progress waits until every application has written something more: it has its disks again.
func (r *run) progress(ctx context.Context) *Failure {
	for _, g := range r.groups {
		goal := g.chains.Acknowledged() + 2*chainsCount
		err := poll(ctx, progressWithin, fmt.Sprintf("the application of group %d goes on", g.number), func(context.Context) error {
			if have := g.chains.Acknowledged(); have < goal {
				return fmt.Errorf("it wrote %d blocks too few", goal-have)
			}
			return nil
		})
		if err != nil {
			return stuck(err)
		}
	}
	return nil
}

// verify judges everything, with no client running.
func (r *run) verify(ctx context.Context) *Failure {
	for _, g := range r.groups {
		if failed := r.verifyGroup(ctx, g); failed != nil {
			return failed
		}
	}
	v := r.rec.Check(checkWithin)
	r.report.judged(v)
	if err := v.Err(); err != nil {
		if len(v.Violations) == 0 {
			return wrong(err)
		}
		return lost(err)
	}
	// Whatever was in flight has been answered, so a group that is active now is equal on both sides.
	if failed := r.settle(ctx); failed != nil {
		return failed
	}
	for _, g := range r.groups {
		for _, d := range g.disks {
			// A primary that was restarted serves while it repairs the regions in which it was killed.
			err := poll(ctx, equalWithin, fmt.Sprintf("the sides of disk %d of group %d are equal", d.number, g.number), func(context.Context) error {
				n, err := r.compare(d)
				if err == nil {
					r.report.compared.Add(n)
				}
				return err
			})
			if err != nil {
				return lost(err)
			}
		}
	}
	return nil
}

// verifyGroup opens the disks at the primary, judges the chains, and reads every register once.
func (r *run) verifyGroup(ctx context.Context, g *group) *Failure {
	ctx, cancel := context.WithTimeout(ctx, readsWithin)
	defer cancel()
	var disks []block.Device
	for _, d := range g.disks {
		var c *nbdclient.Client
		err := poll(ctx, readsWithin, fmt.Sprintf("disk %d opens in %s", d.number, g.where()), func(ctx context.Context) (err error) {
			c, err = r.rig.dial(ctx, d, g.where())
			return err
		})
		if err != nil {
			return stuck(err)
		}
		defer func() { _ = c.Close() }()
		disks = append(disks, c)
	}
	if err := g.chains.Inspect(ctx, disks); err != nil {
		return lostOrStuck(fmt.Errorf("the disks of group %d in %s: %w", g.number, g.where(), err))
	}
	r.report.images.Add(1)
	for i, d := range g.disks {
		disk := r.rec.Disk(d.number, disks[i])
		for n := range registersCount {
			if err := disk.Read(ctx, registerBlock(n)); err != nil {
				return stuck(fmt.Errorf("read register %d of disk %d in %s: %w", n, d.number, g.where(), err))
			}
		}
		if err := disk.Flush(ctx); err != nil {
			return stuck(fmt.Errorf("flush disk %d in %s: %w", d.number, g.where(), err))
		}
	}
	return nil
}

// compare compares both sides' raw files, without what is a hole in both; n is what was compared.
func (r *run) compare(d *disk) (n int64, err error) {
	var files [2]*os.File
	for i, az := range zones {
		path, err := r.rig.layout.RawFile(d.node[az], d.volume[az], sizeGiB<<30)
		if err != nil {
			return 0, err
		}
		if files[i], err = os.Open(path); err != nil {
			return 0, err
		}
		defer files[i].Close()
	}
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		off, err = nextData(files, off)
		if err != nil || off == sizeGiB<<30 {
			return n, err
		}
		p, q := a[:min(int64(len(a)), sizeGiB<<30-off)], b[:min(int64(len(b)), sizeGiB<<30-off)]
		if _, err := files[0].ReadAt(p, off); err != nil {
			return n, err
		}
		if _, err := files[1].ReadAt(q, off); err != nil {
			return n, err
		}
		if !bytes.Equal(p, q) {
			at := 0
			for p[at] == q[at] {
				at++
			}
			return n, fmt.Errorf("byte %d is %#02x in %s and %#02x in %s", off+int64(at), p[at], zones[0], q[at], zones[1])
		}
		off, n = off+int64(len(p)), n+int64(len(p))
	}
}

// nextData is the first byte from off on that is no hole in one of the files, or their size.
func nextData(files [2]*os.File, off int64) (int64, error) {
	next := int64(sizeGiB << 30)
	for _, f := range files {
		at, err := f.Seek(off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // nothing but a hole up to the end
		case err != nil:
			return 0, err
		default:
			next = min(next, at)
		}
	}
	return next, nil
}

// statuses gives status, replication_status and fault_level with slashes between.
func statuses(g client.Group) string {
	level := "null"
	if g.FaultLevel != nil {
		level = *g.FaultLevel
	}
	return g.Status + "/" + g.ReplicationStatus + "/" + level
}

// documented are the statuses that docs/concepts/group.md lists, of groups that nobody makes, changes
// or deletes.
var documented = struct{ status, replication, level []string }{
	[]string{"available", "failovering", "failovered", "reversing", "error_failovering", "error_reversing"},
	[]string{"active", "active-stopped", "copying", "inactive", "error"},
	[]string{"0", "2", "5"},
}

// watch looks at the groups until the function that it returns is called, which tells what was wrong.
// It keeps where the primary is for the applications.
func (r *run) watch(ctx context.Context) (end func() *Failure) {
	ctx, cancel := context.WithCancel(ctx)
	result := make(chan *Failure, 1)
	go func() {
		var failed *Failure
		said := map[int]string{}
		for ctx.Err() == nil {
			for _, g := range r.groups {
				ask, cancel := context.WithTimeout(ctx, time.Second)
				have, err := r.rig.c.Group(ask, g.id)
				cancel()
				if err != nil {
					continue
				}
				if now := statuses(have) + ", primary " + have.PriorityStation; now != said[g.number] {
					said[g.number] = now
					r.tell.note("group %d is %s", g.number, now)
				}
				at := slices.Index(zones, have.PriorityStation)
				if at < 0 || !slices.Contains(documented.status, have.Status) || !slices.Contains(documented.replication, have.ReplicationStatus) ||
					have.FaultLevel == nil || !slices.Contains(documented.level, *have.FaultLevel) {
					failed = earlier(failed, wrong(fmt.Errorf("group %d is %s in %q, which is not documented", g.number, statuses(have), have.PriorityStation)))
					continue
				}
				g.primary.Store(&zones[at])
			}
			pause(ctx, 100*time.Millisecond)
		}
		result <- failed
	}()
	return func() *Failure {
		cancel()
		return <-result
	}
}

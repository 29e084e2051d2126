// Package torture breaks a deployment of its own, again and again, while clients use its disks, and
// judges what they were answered. It needs no root: processes are killed and stopped by signals, and
// links go through proxies of its own. It touches nothing but its own directory and the processes
// that it started, and listens on the loopback only.
//
// Each round draws faults and calls from the seed, carries them out, mends everything, waits until
// every group is active again by documented calls, and then verifies. What is verified is told by
// Run. The seed fixes what is done and when it is asked for; what it meets depends on the machine.
package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep/internal/history"
)

// Options of a run.
type Options struct {
	Time       time.Duration // no round begins later
	Seed       uint64
	Dir        string // made, or empty; "": a temporary one
	Groups     int
	Disks      int // of each group
	NodesPerAZ int
	Plans      []string // of rounds, see PlanNames; empty: all
	Keep       bool     // leave the directory behind, as it is left anyway after a failure
	Out        io.Writer
}

// Bounds of the options: it all runs on one machine.
const (
	groupsMax = 8
	disksMax  = 8
	nodesMax  = 4
)

// ErrUsage means that the options can be of no run.
var ErrUsage = errors.New("usage")

func (o Options) check() error {
	between := func(what string, n, most int) error {
		if n < 1 || n > most {
			return fmt.Errorf("%w: %d %s: between 1 and %d are possible", ErrUsage, n, what, most)
		}
		return nil
	}
	if o.Time <= 0 {
		return fmt.Errorf("%w: the time must be positive", ErrUsage)
	}
	return errors.Join(checkPlans(o.Plans), between("groups", o.Groups, groupsMax), between("disks", o.Disks, disksMax), between("nodes in a zone", o.NodesPerAZ, nodesMax))
}

// prepare makes the directory; one that holds anything is refused.
func (o *Options) prepare() error {
	if o.Dir == "" {
		var err error
		o.Dir, err = os.MkdirTemp("", "lockstep-torture-")
		return err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	found, err := os.ReadDir(o.Dir)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("%w: %s is not empty, and everything in the directory of a run is removed at its end", ErrUsage, o.Dir)
	}
	return nil
}

// run is the state of one run.
type run struct {
	o      Options
	tell   *story
	rig    *rig
	rec    *history.Recorder
	groups []*group
	report Report
}

// Run tortures a deployment for the given time, or until ctx ends, which lets the round under way
// end early. The error is one of the options or of the machine; what was found is in the report:
// every acknowledged write is there, every read was right (internal/history), the disks of a group
// are one consistent cut whenever they are opened, both sides are byte-identical when a group is
// active and quiet, every status and every answer of the API is a documented one, no process ends by
// itself, and everything heals in bounded time.
func Run(ctx context.Context, o Options) (report Report, err error) {
	if err := o.check(); err != nil {
		return report, err
	}
	if err := o.prepare(); err != nil {
		return report, err
	}
	r := &run{o: o, rec: history.New(o.Seed)}
	r.report = newReport(o)
	defer func() { report = r.report }()
	if r.tell, err = newStory(filepath.Join(o.Dir, "story.log"), o.Out); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, r.end(err == nil && r.report.Verdict == NothingLost)) }()
	began := time.Now()
	if r.rig, err = build(ctx, o, r.tell); err != nil {
		return report, fmt.Errorf("start the deployment: %w", err)
	}
	if r.groups, err = r.makeGroups(ctx); err != nil {
		return report, fmt.Errorf("make the groups: %w", err)
	}
	r.tell.line("ready after %s: %d groups of %d disks, %d nodes in each zone; seed %d; directory %s",
		time.Since(began).Round(time.Millisecond), o.Groups, o.Disks, o.NodesPerAZ, o.Seed, o.Dir)
	began = time.Now()
	for n := 1; ; n++ {
		failed := r.round(ctx, n)
		r.report.Seconds = time.Since(began).Seconds()
		r.count()
		if failed != nil {
			r.fail(failed)
			return r.report, nil
		}
		if ctx.Err() != nil {
			r.report.Interrupted = true
			break
		}
		if time.Since(began) >= o.Time {
			break
		}
	}
	r.report.Verdict = NothingLost
	return r.report, nil
}

// end stops the deployment, and removes the directory after a good run.
func (r *run) end(good bool) error {
	var errs []error
	if r.rig != nil {
		errs = append(errs, r.rig.close())
	}
	errs = append(errs, r.tell.close())
	if err := errors.Join(errs...); err != nil || !good || r.o.Keep {
		r.report.Directory = r.o.Dir
		return err
	}
	return os.RemoveAll(r.o.Dir)
}

// round does one round; nil: all is well.
func (r *run) round(ctx context.Context, n int) *Failure {
	r.tell.newRound(n)
	began := time.Now()
	p := r.planRound(n)
	r.tell.note("round %d: %s", n, p)
	// What follows a fault goes to its end even if the run is interrupted.
	work := context.WithoutCancel(ctx)
	watch := r.watch(work)
	load := r.startLoad(work)
	r.carryOut(ctx, work, p)
	failed := r.heal(work)
	if failed == nil && p.again != nil && ctx.Err() == nil {
		r.strikeAgain(work, p)
		failed = r.heal(work)
	}
	if failed == nil {
		failed = r.settle(work)
	}
	if failed == nil {
		failed = r.progress(work)
	}
	failed = earlier(load.stop(failed != nil), failed)
	if failed == nil {
		failed = r.verify(work)
	}
	failed = earlier(watch(), failed)
	if failed == nil {
		failed = p.judge()
	}
	r.report.Rounds = n
	r.report.round(p)
	result := "nothing lost"
	if failed != nil {
		result, _, _ = strings.Cut(failed.Error(), "\n")
	}
	r.tell.line("round %d, %4.1f s: %s: %s", n, time.Since(began).Seconds(), p, result)
	return failed
}

// planRound makes the plan of round n, from the seed alone.
func (r *run) planRound(n int) *plan {
	rnd := rand.New(rand.NewPCG(r.o.Seed, uint64(n)))
	if name := planOf(r.o.Seed, n, r.o.Plans); name != RandomPlan {
		return r.drawAimed(name, rnd)
	}
	return r.draw(rnd)
}

// earlier is the failure that counts: one that the data show goes before one that only says that
// something did not end.
func earlier(a, b *Failure) *Failure {
	if a == nil || b != nil && a.Kind == KindStuck && b.Kind != KindStuck {
		return b
	}
	return a
}

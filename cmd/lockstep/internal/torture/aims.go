package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/protocol"
)

// aimedPlans are all of them. What each is aimed at, and which broken build it finds, stands in
// docs/internals/verification.md.
var aimedPlans = []aimedPlan{
	{"report", reportPlan},
	{"restart after the report", restartPlan},
	{"isolated readers", isolatedPlan},
	{"frozen primary", frozenPlan},
	{"kill in mid-write", midWritePlan},
	{"late frames", latePlan},
	{"kill in mid-resync", midResyncPlan},
	{"hot block", hotPlan},
}

func millis(rnd *rand.Rand, from, to int) time.Duration {
	return time.Duration(from+rnd.IntN(to-from)) * time.Millisecond
}

func either(rnd *rand.Rand, yes string) (bool, string) {
	if rnd.IntN(2) == 0 {
		return true, yes
	}
	return false, ""
}

// reportPlan: all primary nodes have reported two-sided, and hear neither the secondary nor the store
// from then on, when the controller commits the group in sync. They must not go on alone [F7]: the
// other side may take over with nothing lost.
func reportPlan(a *aim, rnd *rand.Rand) (string, func(context.Context) error) {
	tries := millis(rnd, 500, 2000)
	reset, with := either(rnd, ", with a reset")
	text := fmt.Sprintf("cut the primary off between its two-sided report and the commit%s; fail over after %.1f s", with, tries.Seconds())
	return text, func(ctx context.Context) error {
		copying, err := a.reported(ctx)
		if copying.Epoch == 0 {
			return err
		}
		if err == nil {
			a.fault("isolate the primary after its two-sided report", a.primary)
			a.cutStore(a.primary, true)
			pause(ctx, 100*time.Millisecond) // what was under way to the store is over
			a.links(a.secondary, true, true, reset)
			a.links(a.primary, true, true, reset)
		}
		a.rig.hurt(zones, -1)
		if err := errors.Join(err, a.rig.resume(dev.Controller)); err != nil {
			return err
		}
		_, err = a.until(ctx, 20*time.Second, "the group is committed in sync", func(r protocol.Record) bool {
			return r.State == protocol.StateNormal && r.InSync && r.Epoch == copying.Epoch+1
		})
		if err != nil {
			return err
		}
		a.note("committed in sync; the primary is left alone")
		pause(ctx, tries)
		return a.failOver(ctx)
	}
}

// reported brings the group into the moment in which every primary node has reported two-sided in a
// synchronization, and the controller is paused and cannot commit it. With a copying record the controller
// is paused, whatever the error says.
func (a *aim) reported(ctx context.Context) (copying protocol.Record, err error) {
	if copying, err = a.outOfSync(ctx, 2<<20); err != nil {
		return protocol.Record{}, err
	}
	a.fault("pause the controller in a synchronization", zones...)
	if err := a.rig.pause(dev.Controller); err != nil {
		return protocol.Record{}, err
	}
	a.limit(a.secondary, 0)
	return copying, a.allReported(ctx, 15*time.Second, copying.Epoch)
}

// restartPlan: all primary nodes have reported two-sided and the controller is stopped; then their
// processes are killed and start again without a link to the secondary. Before they serve alone, they
// must have aborted the synchronization [F19]: the report binds, and the controller would still count it.
func restartPlan(a *aim, rnd *rand.Rand) (string, func(context.Context) error) {
	alone := millis(rnd, 500, 2000)
	text := fmt.Sprintf("restart the primary without its link between its two-sided report and the commit; leave it alone for %.1f s, and fail over", alone.Seconds())
	return text, func(ctx context.Context) error {
		copying, err := a.reported(ctx)
		if copying.Epoch == 0 {
			return err
		}
		if err == nil {
			a.fault("restart the primary after its two-sided report", a.primary)
			err = a.rig.kill(false, a.at(a.primary)...)
			a.links(zones[0], true, true, true)
			a.links(zones[1], true, true, true)
			err = errors.Join(err, a.rig.start(a.at(a.primary)...))
		}
		if err == nil {
			err = a.goesOn(ctx) // alone, which is right if the synchronization was aborted
			pause(ctx, alone)
		}
		a.rig.hurt(zones, -1)
		if err := errors.Join(err, a.rig.resume(dev.Controller)); err != nil {
			return err
		}
		r, err := a.until(ctx, 20*time.Second, "the synchronization is over", func(r protocol.Record) bool { return r.Epoch > copying.Epoch })
		if err != nil {
			return err
		}
		a.note("%s", r.Describe())
		if !r.InSync {
			return nil
		}
		return a.failOver(ctx)
	}
}

// isolatedPlan: the primary is cut from everything while it is in sync, and read all the time. It may
// answer reads for as long as its lease lasts, only of what is acknowledged, and the other zone may
// not begin before.
func isolatedPlan(a *aim, rnd *rand.Rand) (string, func(context.Context) error) {
	after := time.Duration(0) // the lease lasts
	if rnd.IntN(3) == 0 {
		after = millis(rnd, 500, 4000)
	}
	reset, with := either(rnd, ", with a reset")
	site, too := rnd.IntN(4) == 0, ""
	if site {
		too = " and its member of the store"
	}
	text := fmt.Sprintf("isolate the primary%s%s; fail over after %.1f s", too, with, after.Seconds())
	return text, func(ctx context.Context) error {
		a.isolate(a.primary, reset)
		if site {
			if err := a.rig.pause(storeOf(a.primary)); err != nil {
				return err
			}
		}
		pause(ctx, after)
		if err := a.failOver(ctx); err != nil {
			return err
		}
		pause(ctx, 1500*time.Millisecond) // both zones are asked
		return nil
	}
}

// frozenPlan: the primary is stopped by SIGSTOP across a failover, with requests of its clients in its
// sockets, and goes on with all its connections open. Nothing that it sends or answers may count.
func frozenPlan(a *aim, rnd *rand.Rand) (string, func(context.Context) error) {
	lead := millis(rnd, 0, 500)
	return "freeze the primary across a failover; let it go on", func(ctx context.Context) error {
		pause(ctx, lead)
		a.fault("freeze the primary", a.primary)
		if err := a.rig.pause(a.at(a.primary)...); err != nil {
			return err
		}
		if err := a.failOver(ctx); err != nil {
			return err
		}
		// Every slot of the chains is written anew: what the old primary still holds would show.
		if err := a.goesRound(ctx); err != nil {
			return err
		}
		a.g.idle.Store(true) // the image is judged before more is written over it
		defer a.g.idle.Store(false)
		pause(ctx, 300*time.Millisecond)
		a.fault("wake the old primary up")
		if err := a.rig.resume(a.at(a.primary)...); err != nil {
			return err
		}
		pause(ctx, 700*time.Millisecond)
		a.g.idle.Store(false)
		return a.judged(ctx)
	}
}

// midWritePlan: the primary's processes are killed while writes are on one side only, because the link
// held them back. After their restart both sides must become equal before they answer anything [F9];
// or the other zone takes over, with all that was acknowledged.
func midWritePlan(a *aim, rnd *rand.Rand) (string, func(context.Context) error) {
	lead, held := millis(rnd, 100, 400), millis(rnd, 50, 400)
	what := []string{"restart it", "restart both sides", "fail over"}[rnd.IntN(3)]
	text := fmt.Sprintf("kill the primary with %d ms of writes on one side only; %s", held.Milliseconds(), what)
	return text, func(ctx context.Context) error {
		a.burst(ctx, a.primary, lead+held+2*time.Second)
		pause(ctx, lead)
		a.links(a.secondary, true, false, false)
		pause(ctx, held)
		a.fault("kill the primary in mid-write", a.primary)
		if err := a.rig.kill(false, a.at(a.primary)...); err != nil {
			return err
		}
		a.links(a.secondary, true, false, true) // what the link held back is gone
		a.links(a.secondary, false, false, false)
		switch what {
		case "fail over":
			return a.failOver(ctx)
		case "restart both sides":
			a.fault("kill the secondary, too", a.secondary)
			if err := a.rig.kill(false, a.at(a.secondary)...); err != nil {
				return err
			}
		}
		if err := a.rig.start(a.at(zones[0])...); err != nil {
			return err
		}
		if err := a.rig.start(a.at(zones[1])...); err != nil {
			return err
		}
		return a.goesOn(ctx)
	}
}

// latePlan: what a killed primary had sent arrives after its next life has replicated over a connection
// of its own, at the same epoch: the secondary must have closed the older session [F8].
func latePlan(a *aim, rnd *rand.Rand) (string, func(context.Context) error) {
	lead, held := millis(rnd, 100, 400), millis(rnd, 50, 400)
	text := fmt.Sprintf("kill the primary, and deliver the last %d ms of its frames after its restart", held.Milliseconds())
	return text, func(ctx context.Context) error {
		pause(ctx, lead)
		a.fault("delay frames")
		for _, m := range a.at(a.secondary) {
			a.rig.links[m].Delay()
		}
		pause(ctx, held)
		a.fault("kill the primary in mid-write", a.primary)
		if err := a.rig.kill(false, a.at(a.primary)...); err != nil {
			return err
		}
		if err := a.rig.start(a.at(a.primary)...); err != nil {
			return err
		}
		if err := a.goesOn(ctx); err != nil {
			return err
		}
		if err := a.goesRound(ctx); err != nil {
			return err
		}
		a.g.idle.Store(true) // what arrives late is not written over
		defer a.g.idle.Store(false)
		pause(ctx, 200*time.Millisecond)
		a.note("deliver what was sent before the kill")
		for _, m := range a.at(a.secondary) {
			a.rig.links[m].Deliver()
		}
		pause(ctx, 300*time.Millisecond)
		return a.failOver(ctx) // the image of the secondary is judged as it is
	}
}

// midResyncPlan: a node, a zone or the link dies in the middle of a synchronization. A failover is
// refused then. When the group is in sync again, it is failed over: the other side must have all.
func midResyncPlan(a *aim, rnd *rand.Rand) (string, func(context.Context) error) {
	lead, rate := millis(rnd, 0, 600), (1+rnd.IntN(4))<<20
	what := []string{"kill the primary", "kill the secondary", "cut the links", "nothing"}[rnd.IntN(4)]
	text := fmt.Sprintf("in the middle of a synchronization: %s after %.1f s; fail over when it is done", what, lead.Seconds())
	return text, func(ctx context.Context) error {
		if _, err := a.outOfSync(ctx, rate); err != nil {
			return err
		}
		pause(ctx, lead)
		var hit []dev.Member
		switch what {
		case "kill the primary":
			hit = a.at(a.primary)
		case "kill the secondary":
			hit = a.at(a.secondary)
		case "cut the links":
			a.links(a.secondary, true, true, true)
		}
		if what != "nothing" {
			a.fault(what + " in mid-resync")
		}
		if err := a.rig.kill(false, hit...); err != nil {
			return err
		}
		if r, err := a.record(ctx, a.g); err == nil && r.State == protocol.StateCopying {
			if err := a.refusesFailover(ctx, r); err != nil {
				return err
			}
		}
		a.limit(a.secondary, 0)
		a.links(a.secondary, false, false, false)
		if err := a.rig.start(hit...); err != nil {
			return err
		}
		if err := a.syncs(ctx); err != nil {
			return err
		}
		return a.failOver(ctx)
	}
}

// hotPlan: a few blocks are written and read as fast as it goes, without a fault at first: a read that
// overlaps a write gives the block as it was before or as after. Then the primary is cut off, and the
// other zone takes over: what was read must be there.
func hotPlan(a *aim, rnd *rand.Rand) (string, func(context.Context) error) {
	hot := millis(rnd, 2000, 4000)
	reset, with := either(rnd, ", with a reset")
	text := fmt.Sprintf("read and write one range in %.1f s; then isolate the primary%s, and fail over", hot.Seconds(), with)
	return text, func(ctx context.Context) error {
		a.hammer(ctx, hot)
		a.isolate(a.primary, reset)
		return a.failOver(ctx)
	}
}

// refusesFailover: a group that is copying cannot be failed over.
func (a *aim) refusesFailover(ctx context.Context, copying protocol.Record) error {
	err := a.rig.c.Act(ctx, a.g.id, client.ActionFailover)
	a.note("fail over while copying: %v", err)
	switch {
	case client.IsConflict(err):
		a.report.call(callNames[client.ActionFailover], "refused")
		return nil
	case unanswered(err):
		return nil
	case err != nil:
		return fmt.Errorf("fail over group %d: an answer that is not documented: %w", a.g.number, err)
	}
	a.report.call(callNames[client.ActionFailover], "done")
	if r, err := a.record(ctx, a.g); err == nil && r.InSyncEpoch <= copying.InSyncEpoch {
		return fmt.Errorf("a failover of group %d was accepted while it was copying", a.g.number)
	}
	return missed(errors.New("it came in sync before the failover was called"))
}

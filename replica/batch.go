package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// batch is a protocol.Batch under way. A newer one cancels it and begins when it has stopped.
type batch struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (g *Group) startBatch(b protocol.Batch) {
	ctx, cancel := context.WithCancel(g.ctx)
	prev := g.batch
	// A job of an older epoch has been told to end; nothing of the new one is persisted before it
	// has: it would send, or write, what the new epoch did not foresee.
	var older []chan struct{}
	for _, j := range g.lastJob {
		if j.epoch < g.core.Record().Epoch {
			older = append(older, j.done)
		}
	}
	cur := &batch{cancel: cancel, done: make(chan struct{})}
	g.batch = cur
	if prev != nil {
		prev.cancel()
	}
	go func() {
		defer close(cur.done)
		defer cancel()
		if prev != nil {
			<-prev.done
		}
		for _, done := range older {
			<-done
		}
		result := protocol.BatchDone{Token: b.Token}
		for _, s := range b.Steps {
			if result.Err = ctx.Err(); result.Err != nil {
				break
			}
			if result.Err = g.durable(ctx, s, &result); result.Err != nil {
				g.log.Warn("durable step", "step", fmt.Sprintf("%T", s), "err", result.Err)
				break
			}
		}
		g.post(result)
	}()
}

// each runs f for all the group's volumes at once: two files flushed in parallel do not slow each
// other down.
func (g *Group) each(f func(*Volume) error) error {
	if err := g.complete(); err != nil {
		return err
	}
	var eg errgroup.Group
	for _, v := range g.volumes() {
		eg.Go(func() error { return v.noteFailure(f(v)) })
	}
	return eg.Wait()
}

// noteFailure makes a permanent error of the local disk the volume's, wherever it was met.
func (v *Volume) noteFailure(err error) error {
	if errors.Is(err, lockstep.ErrVolumeFailed) {
		return v.broken(err)
	}
	return err
}

// durable does one step; when it returns nil the step is done and durable.
func (g *Group) durable(ctx context.Context, s protocol.Durable, result *protocol.BatchDone) error {
	switch s := s.(type) {
	case protocol.Quiesce:
		result.Drained = g.quiesce(ctx, s)
		return nil
	case protocol.Fence:
		g.in.fence(s.Epoch)
		return nil
	case protocol.Flush:
		return g.each(g.syncVolume)
	case protocol.Save:
		blob, err := json.Marshal(s.Saved)
		if err != nil {
			return fmt.Errorf("encode group state: %w", err)
		}
		// What is persisted is fenced, in whatever role: a straggler of the time when this node was
		// the secondary must not meet it as a primary.
		g.in.fence(s.Saved.Record.Epoch)
		if err := g.host.pool.SaveGroup(g.id, blob); err != nil {
			return fmt.Errorf("save group state at epoch %d: %w", s.Saved.Record.Epoch, err)
		}
		g.post(protocol.SavedNow(s))
		return nil
	case protocol.LeaseWait:
		return g.in.leaseWait(ctx, s.Store)
	case protocol.MarkAllDirty:
		return g.eachOf(s.Pairs, func(v *Volume) error { return v.disk.MarkAllDirty() })
	case protocol.DirtyFromIntent:
		return g.each(func(v *Volume) error { return v.disk.DirtyFromIntent() })
	case protocol.ClearDirty:
		return g.each(func(v *Volume) error { return v.disk.ClearDirty() })
	case protocol.ClearMaps:
		return g.each(func(v *Volume) error { return v.disk.ClearMaps() })
	case protocol.SetPoint:
		if err := g.roomForPoint(s); err != nil {
			return err
		}
		return g.eachOf(s.Pairs, func(v *Volume) error { return v.disk.SetPoint(s.Epoch, s.InSyncEpoch) })
	case protocol.RollBack:
		return g.eachOf(s.Pairs, func(v *Volume) error {
			err := v.disk.RollBackSince(s.InSyncEpoch)
			if err != nil && s.InSyncEpoch == 0 { // a volume that joins as the truth: the others go on without it
				_ = v.broken(fmt.Errorf("back to the recovery point of an earlier pair: %w", err))
				return nil
			}
			return err
		})
	case protocol.KeepImage:
		return g.eachOf(s.Pairs, func(v *Volume) error { return v.disk.KeepImage(s.Epoch) })
	case protocol.DropPoint:
		drop := func(v *Volume) error { return v.disk.DropPoint() }
		if s.Pairs == nil {
			return g.each(drop)
		}
		return g.eachOf(s.Pairs, drop)
	}
	return fmt.Errorf("unknown durable step %T", s)
}

// roomForPoint looks whether what is known to differ would fit beside it: a synchronization that
// fills the pool half-way helps nobody. One that goes on has its point, and what is left is its.
func (g *Group) roomForPoint(s protocol.SetPoint) error {
	fresh := false
	for _, v := range g.volumes() {
		epoch, ok := v.disk.Point()
		fresh = fresh || !ok || epoch <= s.InSyncEpoch
	}
	if !fresh {
		return nil
	}
	_, free, err := g.host.pool.Space()
	if err != nil {
		return err
	}
	if need := g.pointNeeds.Load(); need > free {
		return fmt.Errorf("recovery point: %d bytes are known to differ, and the pool has %d bytes free: %w", need, free, lockstep.ErrNoSpace)
	}
	return nil
}

// eachOf is each for the volumes of the named pairs.
func (g *Group) eachOf(pairs []lockstep.PairID, f func(*Volume) error) error {
	return g.each(func(v *Volume) error {
		g.mu.Lock()
		pair := g.pairOf[v.id]
		g.mu.Unlock()
		if !slices.Contains(pairs, pair) {
			return nil
		}
		return f(v)
	})
}

func (g *Group) syncVolume(v *Volume) error {
	if err := v.failedNow(); err != nil {
		return err
	}
	if err := v.disk.Sync(); err != nil {
		return v.broken(err)
	}
	return nil
}

func (g *Group) volumeFailed(v *Volume, err error) {
	g.log.Error("volume failed", "volume", v.id, "err", err)
	g.post(protocol.VolumeFailed{Volume: v.id, Reason: err.Error()})
	g.host.cfg.Changed(g.id)
}

func (v *Volume) failedNow() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.failed
}

// quiesce waits for local I/O, and, remote, for the secondary; afterwards acknowledgements do not
// count any more.
func (g *Group) quiesce(ctx context.Context, q protocol.Quiesce) bool {
	deadline := time.Now().Add(time.Duration(q.WithinMs) * time.Millisecond)
	vols := g.volumes()
	if q.Remote {
		for _, v := range vols {
			v.drainRemote(true)
		}
	}
	drained := true
	for _, v := range vols {
		drained = v.quiesce(ctx, q.Remote, deadline) && drained
	}
	for _, v := range vols {
		v.drainRemote(false)
	}
	return drained
}

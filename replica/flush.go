package replica

import (
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/internal/invariant"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

var now0 time.Time // a deadline that has passed

// flushLoop flushes in the background: it bounds what a reboot must send again and how long a trip
// stalls, and, where both sides have flushed, clears marks of the write-intent log [F6].
func (h *Host) flushLoop() {
	ticker := time.NewTicker(h.cfg.FlushEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-h.ctx.Done():
			return
		}
		for _, id := range h.Volumes() {
			v := h.volume(id)
			if v == nil || v.failedNow() != nil || !v.flushing.CompareAndSwap(false, true) {
				continue
			}
			h.tasks.Go(func() {
				defer v.flushing.Store(false)
				if err := v.backgroundFlush(); err != nil {
					h.log.Warn("background flush", "volume", id, "err", err)
				}
			})
		}
	}
}

// backgroundFlush does one round for one volume, if anything was written since the last. Marks are
// cleared only of regions without a write begun since or still in flight, and not of those that a
// repair has still to compare.
func (v *Volume) backgroundFlush() error {
	v.mu.Lock()
	mode := v.mode
	v.mu.Unlock()
	if mode == protocol.ModeCopying || mode == protocol.ModeCopyTwoSided {
		return v.flushCopied()
	}
	if v.disk.IntentBytes() == 0 {
		return nil
	}
	if mode == protocol.ModeOneSided {
		if err := v.disk.Sync(); err != nil {
			return v.broken(err)
		}
	}
	if mode != protocol.ModeTwoSided {
		return nil
	}
	return v.flushAndClear(v.idleRounds(), func(marked []lockstep.Extent) []lockstep.Extent {
		v.mu.Lock()
		defer v.mu.Unlock()
		busy := v.unrepairedExtents()
		for _, o := range v.ops {
			busy = append(busy, o.ext)
		}
		return idle(marked, busy)
	})
}

// flushCopied flushes both sides while a synchronization runs, so that little is left for the flush at its
// end. Nothing follows from it.
func (v *Volume) flushCopied() error {
	v.mu.Lock()
	l, epoch, changed := v.link, v.epoch, v.changed
	v.mu.Unlock()
	if l == nil {
		return nil
	}
	remote := l.call(wire.Header{Kind: wire.KindFlush, Epoch: epoch, Volume: v.key}, nil)
	if err := v.disk.Sync(); err != nil {
		return v.broken(err)
	}
	select {
	case <-remote: // an error is seen elsewhere
	case <-changed:
	}
	return nil
}

// idleRounds is for how many background flushes a region must have been idle to lose its mark. A cold mark
// costs a sync on the path of a write, a mark too many a few milliseconds after a restart; so marks stay
// while there is room for them.
func (v *Volume) idleRounds() uint64 {
	marked := v.disk.IntentBytes()
	switch {
	case v.Size() <= v.intentLimit || marked <= v.intentLimit/2:
		return v.keepMarks
	case marked <= v.intentLimit/8*7:
		return v.keepMarks / 8
	}
	return 0
}

// flushAndClear flushes both sides and then confirms, and clears the marks of, what choose gives, called after
// the snapshot of the log and before the flushes. Neither is done unless, all the while, the volume was
// two-sided on one link, whose secondary is in its recorded life [F6]. Marks of regions that were written in the
// last idle rounds stay.
func (v *Volume) flushAndClear(idle uint64, choose func(marked []lockstep.Extent) []lockstep.Extent) error {
	v.mu.Lock()
	gen, mode, l, epoch, changed := v.gen, v.mode, v.link, v.epoch, v.changed
	ended := v.stopped || v.failed != nil
	v.mu.Unlock()
	// A volume that failed, or whose node stops, has let go of what is unrepaired or unacknowledged: only
	// the marks know of it.
	if mode != protocol.ModeTwoSided || ended {
		return nil
	}
	marked, snap := v.disk.IntentSnapshot()
	chosen := choose(marked)
	remote := l.call(wire.Header{Kind: wire.KindFlush, Epoch: epoch, Volume: v.key}, nil)
	if err := v.disk.Sync(); err != nil {
		return v.broken(err)
	}
	select {
	case r := <-remote:
		if r.err != nil {
			return nil // the link is watched elsewhere
		}
	case <-changed:
		return nil
	}
	v.mu.Lock()
	same := v.gen == gen
	v.mu.Unlock()
	if !same {
		return nil
	}
	return v.disk.ClearIntent(chosen, snap, idle)
}

// boundIntent makes room in the write-intent log before e is marked, so that the log exceeds its
// limit by one cold mark at most: it bounds what a restart of this process has to compare [F9]. Only two-sided: out of sync no mark is cleared [F14]. The oldest
// regions that no write is in are claimed, so that none begins, and flushed on both sides. Called
// without mu.
func (v *Volume) boundIntent(e lockstep.Extent) error {
	if v.disk.IntentBytes() < v.intentLimit || v.disk.IntentMarked(e.Off, e.Len) {
		return nil
	}
	v.roomMu.Lock()
	defer v.roomMu.Unlock()
	if v.disk.IntentBytes() < v.intentLimit {
		return nil
	}
	claims := v.claimIdle(v.disk.OldestIntent(int(v.disk.IntentBytes() / lockstep.RegionBytes)))
	if len(claims) == 0 {
		return nil // writes are under way in all of them: their number is bounded elsewhere
	}
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, o := range claims {
			v.leave(o)
		}
	}()
	return v.flushAndClear(0, func([]lockstep.Extent) []lockstep.Extent {
		exts := make([]lockstep.Extent, len(claims))
		for i, o := range claims {
			exts[i] = o.ext
		}
		return exts
	})
}

// roomBytes is the least that is made room for at once: more than a cold mark of a stream sets.
const roomBytes = int64(64) << 20

// claimIdle claims the first regions that nothing is under way in, up to a sixteenth of the limit.
func (v *Volume) claimIdle(regions []lockstep.Extent) []*op {
	v.mu.Lock()
	defer v.mu.Unlock()
	left := v.unrepairedExtents()
	var claims []*op
	for _, e := range regions {
		if int64(len(claims))*lockstep.RegionBytes >= max(v.intentLimit/16, roomBytes) {
			break
		}
		free := v.overlapping(e) == nil
		for _, u := range left {
			free = free && !u.Overlaps(e)
		}
		if free {
			o := &op{kind: opChunk, ext: e}
			v.ops = append(v.ops, o)
			claims = append(claims, o)
		}
	}
	invariant.Check(v.overlap)
	return claims
}

// idle lists the regions of exts that no busy range touches.
func idle(exts, busy []lockstep.Extent) []lockstep.Extent {
	var out []lockstep.Extent
	for _, e := range exts {
		for off := e.Off; off < e.End(); off += lockstep.RegionBytes {
			region := lockstep.Extent{Off: off, Len: min(lockstep.RegionBytes, e.End()-off)}
			free := true
			for _, b := range busy {
				free = free && !b.Overlaps(region)
			}
			if !free {
				continue
			}
			if n := len(out); n > 0 && out[n-1].End() == region.Off {
				out[n-1].Len += region.Len
			} else {
				out = append(out, region)
			}
		}
	}
	return out
}

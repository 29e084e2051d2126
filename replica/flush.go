package replica

import (
	"time"

	"github.com/lockstep-dr/lockstep"
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
// cleared only if, all the while, the volume was two-sided on one link, whose secondary is in its
// recorded life, and only those without a write begun since or still in flight.
func (v *Volume) backgroundFlush() error {
	v.mu.Lock()
	gen, mode, l, epoch, changed := v.gen, v.mode, v.link, v.epoch, v.changed
	v.mu.Unlock()
	if mode != protocol.ModeTwoSided {
		if mode == protocol.ModeOneSided && v.disk.IntentBytes() > 0 {
			if err := v.disk.Sync(); err != nil {
				return v.broken(err)
			}
		}
		return nil
	}
	if v.disk.IntentBytes() == 0 {
		return nil
	}
	exts, snap := v.disk.IntentSnapshot()
	v.mu.Lock()
	var busy []lockstep.Extent
	for _, o := range v.ops {
		busy = append(busy, o.ext)
	}
	v.mu.Unlock()
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
	return v.disk.ClearIntent(idle(exts, busy), snap)
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

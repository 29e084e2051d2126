package replica

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/bitmap"
	"github.com/lockstep-dr/lockstep/protocol"
)

// unrepaired is what the life before may have left different at the secondary: the regions that the
// write-intent log named when this process started. Until the repair has compared a region, requests
// to it wait and its mark stays; requests to all others are served [F9]. Guarded by Volume.mu.
type unrepaired struct {
	left    *bitmap.Bitmap // regions not yet known to be equal
	taken   *bitmap.Bitmap // of these, what the job has begun, or done
	wanted  []int          // regions that requests wait for, the first to be asked for first
	changed chan struct{}  // closed, and renewed, when a region leaves or all are given up
}

// loadUnrepaired comes before the first two-sided mode of a stint as primary, while the volume is
// held: nothing was written in this life whose mark could be among them.
func (v *Volume) loadUnrepaired() {
	marked := v.disk.Intent()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unrepaired != nil {
		return
	}
	u := &unrepaired{changed: make(chan struct{})}
	n := int((v.disk.Size() + lockstep.RegionBytes - 1) / lockstep.RegionBytes)
	u.left, u.taken = bitmap.New(n), bitmap.New(n)
	for _, e := range marked {
		u.left.SetRange(regions(e))
	}
	v.unrepaired = u
}

// dropUnrepaired: the own image counts, whatever the secondary has. Called with mu held.
func (v *Volume) dropUnrepaired() {
	if u := v.unrepaired; u != nil {
		close(u.changed)
		v.unrepaired = nil
	}
}

// regions gives the half-open range of region indexes that e touches.
func regions(e lockstep.Extent) (from, to int) {
	if e.Len == 0 {
		return 0, 0
	}
	return int(e.Off / lockstep.RegionBytes), int((e.End() + lockstep.RegionBytes - 1) / lockstep.RegionBytes)
}

// unrepairedIn asks for the regions of e that are not yet repaired; it gives what to wait for, or nil
// if there is none. Called with mu held.
func (v *Volume) unrepairedIn(e lockstep.Extent) <-chan struct{} {
	u := v.unrepaired
	if u == nil || u.left.Empty() {
		return nil
	}
	var wait <-chan struct{}
	from, to := regions(e)
	for r := from; r < min(to, u.left.Len()); r++ {
		if !u.left.Get(r) {
			continue
		}
		wait = u.changed
		if !u.taken.Get(r) {
			u.wanted = append(u.wanted, r)
		}
	}
	return wait
}

// unrepairedExtents lists what is left, by region. Called with mu held.
func (v *Volume) unrepairedExtents() []lockstep.Extent {
	if v.unrepaired == nil {
		return nil
	}
	var exts []lockstep.Extent
	for lo, hi := range v.unrepaired.left.Ranges() {
		exts = append(exts, lockstep.Extent{Off: int64(lo) * lockstep.RegionBytes, Len: int64(hi-lo) * lockstep.RegionBytes})
	}
	return exts
}

// repair makes the secondary equal in the regions left, those first that requests wait for. No
// request reaches a region before it is done, so that nothing overlaps what is sent.
func (v *Volume) repair(ctx context.Context, l *link, epoch lockstep.Epoch) error {
	v.loadUnrepaired()
	v.mu.Lock()
	u := v.unrepaired
	v.mu.Unlock()
	if u == nil {
		return ctx.Err()
	}
	v.mu.Lock()
	u.taken = bitmap.New(u.left.Len()) // an earlier job, over by now, may have ended half-way
	v.mu.Unlock()
	eg, ctx := errgroup.WithContext(ctx)
	for range resyncDepth {
		eg.Go(func() error {
			for {
				r := v.takeRegion(u)
				if r < 0 {
					return ctx.Err()
				}
				region := lockstep.Extent{Off: int64(r) * lockstep.RegionBytes, Len: lockstep.RegionBytes}
				err := split(region, v.Size(), func(e lockstep.Extent) error {
					return v.sendDiffering(ctx, l, epoch, e, func(int) bool { return true }, false, nil)
				})
				if err != nil {
					return err
				}
				v.regionRepaired(u, r)
			}
		})
	}
	return eg.Wait()
}

// takeRegion gives the next region to compare, -1 if none is left to begin.
func (v *Volume) takeRegion(u *unrepaired) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	for len(u.wanted) > 0 {
		r := u.wanted[0]
		u.wanted = u.wanted[1:]
		if u.left.Get(r) && u.taken.Set(r) {
			return r
		}
	}
	for r := u.left.NextSet(0); r >= 0; r = u.left.NextSet(r + 1) {
		if u.taken.Set(r) {
			return r
		}
	}
	return -1
}

func (v *Volume) regionRepaired(u *unrepaired, r int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	u.left.Clear(r)
	if v.unrepaired == u {
		close(u.changed)
		u.changed = make(chan struct{})
	}
}

// endsRepair: the modes in which the own image counts, or none is served here.
func endsRepair(m protocol.Mode) bool { return m != protocol.ModeHeld && m != protocol.ModeTwoSided }

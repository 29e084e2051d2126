package replica

import (
	"errors"
	"fmt"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/wire"
)

// OpenVolume opens a volume of the pool, once. It is held until its access is known.
func (h *Host) OpenVolume(id lockstep.VolumeID) (*Volume, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.vols[id]; v != nil {
		return v, nil
	}
	d, err := h.pool.Open(id)
	if err != nil {
		return nil, err
	}
	v := newVolume(d, h.cfg.IntentLimitBytes, h.cfg.KeepMarks, func(v *Volume, err error) {
		if g := h.ownerOf(v.id); g != nil {
			g.volumeFailed(v, err)
			return
		}
		h.log.Error("volume failed", "volume", v.id, "err", err)
	})
	h.vols[id] = v
	for _, g := range h.groups {
		g.post(protocol.VolumeOpened{Volume: id})
	}
	return v, nil
}

// CreateVolume makes the file if it is not there, and opens it. A member of a group is made anew only
// in another directory than the recorded one, where the group's rules fill it from the other side
// before it counts as anything.
func (h *Host) CreateVolume(id lockstep.VolumeID, size int64) (*Volume, error) {
	v, err := h.OpenVolume(id)
	if !errors.Is(err, lockstep.ErrNotFound) {
		return v, err
	}
	for _, g := range h.groupList() {
		if !g.mayMake(id) {
			return nil, fmt.Errorf("the files of volume %s are missing: it is not made anew while it belongs to group %s", id, g.id)
		}
	}
	if _, err := h.pool.Create(id, size); err != nil {
		return nil, err
	}
	return h.OpenVolume(id)
}

// GrowVolume grows the file and its maps durably; it never shrinks. Outside a group the new size
// is announced at once; in a group the record does that.
func (h *Host) GrowVolume(id lockstep.VolumeID, size int64) error {
	v := h.volume(id)
	if v == nil {
		return fmt.Errorf("grow volume %s: %w", id, lockstep.ErrNotFound)
	}
	if size > v.disk.Size() {
		if err := v.disk.Grow(size); err != nil {
			return err
		}
	}
	if h.ownerOf(id) == nil { // also less than the file has, after an extension that was undone
		v.size.Store(size)
	}
	return nil
}

// RemoveVolume refuses the volume, waits for what is under way, and deletes its files.
func (h *Host) RemoveVolume(id lockstep.VolumeID) error {
	v := h.volume(id)
	if v == nil {
		if err := h.pool.Remove(id); err != nil && !errors.Is(err, lockstep.ErrNotFound) {
			return err
		}
		return nil
	}
	if g := h.ownerOf(id); g != nil {
		return fmt.Errorf("volume %s belongs to group %s", id, g.id)
	}
	v.setMode(protocol.ModeRefused, 0, nil, nil, "the volume is deleted")
	v.quiesce(h.ctx, false, now0)
	h.mu.Lock()
	delete(h.vols, id)
	delete(h.refused, id)
	h.mu.Unlock()
	return h.pool.Remove(id)
}

func (h *Host) volume(id lockstep.VolumeID) *Volume {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.vols[id]
}

// Volume gives an open volume, or nil.
func (h *Host) Volume(id lockstep.VolumeID) *Volume { return h.volume(id) }

// Volumes lists the open volumes.
func (h *Host) Volumes() []lockstep.VolumeID {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := make([]lockstep.VolumeID, 0, len(h.vols))
	for id := range h.vols {
		ids = append(ids, id)
	}
	return ids
}

func (h *Host) ownerOf(id lockstep.VolumeID) *Group {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.owner[id]
}

// attach puts a volume under a group: it is held, with nothing in flight, until the group decides.
func (h *Host) attach(v *Volume, g *Group, pair lockstep.PairID) {
	h.accessMu.Lock()
	defer h.accessMu.Unlock()
	h.mu.Lock()
	h.owner[v.id] = g
	h.mu.Unlock()
	v.setMode(protocol.ModeHeld, 0, nil, nil, "joins group "+string(g.id))
	v.quiesce(h.ctx, false, now0)
	v.mu.Lock()
	v.key, v.pair = wire.Key(pair), pair
	v.mu.Unlock()
}

// detach lets a volume go back to its own access.
func (h *Host) detach(v *Volume, g *Group) {
	h.accessMu.Lock()
	defer h.accessMu.Unlock()
	h.mu.Lock()
	if h.owner[v.id] != g { // another group has it already
		h.mu.Unlock()
		return
	}
	delete(h.owner, v.id)
	a, known := h.refused[v.id]
	h.mu.Unlock()
	v.setMode(protocol.ModeHeld, 0, nil, nil, "left group "+string(g.id))
	if known {
		v.apply0(a)
	}
}

// SetAccess says how a volume outside every group is served. For a volume in a group it takes
// effect when the volume leaves it.
func (h *Host) SetAccess(id lockstep.VolumeID, a store.Access) {
	want := access{plain: a.Mode == store.AccessPlain, reason: a.Reason}
	h.accessMu.Lock() // a volume that joins a group in this instant must not become plain
	defer h.accessMu.Unlock()
	h.mu.Lock()
	v, owned := h.vols[id], h.owner[id] != nil
	if a.Mode == store.AccessGroup {
		delete(h.refused, id)
	} else {
		h.refused[id] = want
	}
	h.mu.Unlock()
	if v != nil && !owned && a.Mode != store.AccessGroup {
		v.apply0(want)
	}
}

// apply0 is setMode for a volume outside every group, if that changes anything. A plain volume has
// neither marks nor dirty bits.
func (v *Volume) apply0(a access) {
	mode := protocol.ModeRefused
	if a.plain {
		mode = protocol.ModePlain
	}
	v.mu.Lock()
	same := v.mode == mode && v.why == a.reason
	v.mu.Unlock()
	if same {
		return
	}
	if a.plain {
		if err := v.becomePlain(); err != nil {
			_ = v.broken(err)
			return
		}
	}
	v.setMode(mode, 0, nil, nil, a.reason)
}

// becomePlain ends what a group left: a copy that was being overwritten goes back to its recovery
// point, the last consistent image; then marks and dirty bits have no meaning any more.
func (v *Volume) becomePlain() error {
	if _, ok := v.disk.Point(); ok {
		if _, err := v.disk.Rollback(); err != nil {
			return err
		}
	}
	return v.disk.ClearMaps()
}

// Opening says whether an export may be opened now; closed is closed when it must be dropped.
func (v *Volume) Opening() (closed <-chan struct{}, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mode == protocol.ModeRefused {
		return nil, fmt.Errorf("volume %s: %s: %w", v.id, v.why, lockstep.ErrNotPrimary)
	}
	return v.closed, nil
}

// Failed gives the permanent error of the volume, or nil.
func (v *Volume) Failed() error { return v.failedNow() }

// FileSize is the size of the volume's file, which may be larger than the announced size.
func (v *Volume) FileSize() int64 { return v.disk.Size() }

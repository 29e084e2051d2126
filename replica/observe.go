package replica

import (
	"encoding/json"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Observe reports a group for people and statuses; nothing is decided from it.
func (h *Host) Observe(id lockstep.GroupID) (store.GroupObserved, bool) {
	g := h.group(id)
	if g == nil {
		return store.GroupObserved{}, false
	}
	g.mu.Lock()
	view := g.view
	o := store.GroupObserved{
		Group: id, Node: h.cfg.Node, Start: h.cfg.Start, Epoch: view.Saved.Record.Epoch, Role: string(view.Role),
		Mode: string(view.Mode), Why: view.Why, Volumes: map[lockstep.VolumeID]store.ReplicaObserved{},
		Peers: map[lockstep.NodeID]store.PeerObserved{}, At: time.Now().UTC(),
	}
	for peer, d := range g.dialers {
		p := store.PeerObserved{Error: d.lastError()}
		if l := d.current(); l != nil {
			p.Connected, p.BootID = h.now()-h.lastHeard(peer) < h.cfg.TripAfter, l.boot
		}
		o.Peers[peer] = p
	}
	for _, id := range g.missing {
		o.Volumes[id] = store.ReplicaObserved{Failed: "its files are not in the pool, or cannot be opened"}
	}
	o.Serving = view.Role == protocol.RolePrimary && len(g.missing) == 0
	g.mu.Unlock()
	for _, v := range g.volumes() {
		rep, serving := v.observe()
		rep.NoImage = view.Role == protocol.RolePrimary && memberOf(view.Record, v.id).NoImage
		o.Volumes[v.id] = rep
		o.Serving = o.Serving && (serving || rep.NoImage)
		if rep.ToSendBytes > 0 {
			o.ResyncRate = g.synced.rate(h.now())
		}
	}
	return o, true
}

// ObserveSaved is Observe with what the node has persisted, for a recovery of the store.
func (h *Host) ObserveSaved(id lockstep.GroupID, recovery string) (store.GroupObserved, bool) {
	o, ok := h.Observe(id)
	if !ok || recovery == "" {
		return o, ok
	}
	view, ok := h.View(id)
	if !ok {
		return o, false
	}
	raw, err := json.Marshal(view.Saved.Record)
	if err != nil {
		h.log.Error("encode record", "group", id, "err", err)
		return o, false
	}
	o.Epoch, o.Role = view.Saved.Record.Epoch, string(view.Saved.Role)
	o.Recovery, o.Saved, o.BootID, o.Instance = recovery, raw, h.cfg.BootID, h.cfg.Instance
	return o, true
}

func (v *Volume) observe() (r store.ReplicaObserved, serving bool) {
	r.DirtyBytes, r.IntentBytes = v.disk.DirtyBytes(), v.disk.IntentBytes()
	if epoch, ok := v.disk.Point(); ok {
		r.PointEpoch = uint64(epoch)
	}
	for _, epoch := range v.disk.Images() {
		r.Images = append(r.Images, uint64(epoch))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed != nil {
		r.Failed = v.failed.Error()
	}
	if v.todo != nil {
		r.ToSendBytes = int64(v.todo.Count()) * lockstep.ChunkBytes
		r.TotalBytes = v.total * lockstep.ChunkBytes
	}
	serving = v.failed == nil && v.mode != protocol.ModeHeld && v.mode != protocol.ModeRefused
	return r, serving
}

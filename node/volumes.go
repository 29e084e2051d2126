package node

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// volumes makes the desired state of this node's volumes so, and reports what came of it. Work
// that fails is tried again; every step may be repeated.
type volumes struct {
	n *Node

	mu      sync.Mutex // guards what follows
	desired map[lockstep.VolumeID]store.Volume
	told    map[lockstep.VolumeID]store.VolumeObserved
	synced  bool
	wake    chan struct{} // capacity 1
}

func newVolumes(n *Node) *volumes {
	return &volumes{
		n: n, desired: map[lockstep.VolumeID]store.Volume{}, told: map[lockstep.VolumeID]store.VolumeObserved{},
		wake: make(chan struct{}, 1),
	}
}

func (vs *volumes) kick() {
	select {
	case vs.wake <- struct{}{}:
	default:
	}
}

// run follows the store and reconciles until ctx ends.
func (vs *volumes) run(ctx context.Context) error {
	var follow sync.WaitGroup
	defer follow.Wait()
	follow.Go(func() {
		_ = store.Follow(ctx, vs.n.st, store.PrefixVolumes, vs.take) // it returns only when ctx ends
	})
	retry := time.NewTicker(2 * time.Second)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-vs.wake:
		case <-retry.C:
		}
		vs.mu.Lock()
		todo := make([]store.Volume, 0, len(vs.desired))
		for _, v := range vs.desired {
			todo = append(todo, v)
		}
		vs.mu.Unlock()
		for _, v := range todo {
			if ctx.Err() != nil {
				return nil
			}
			vs.reconcile(ctx, v)
		}
	}
}

func (vs *volumes) take(batch []store.Change[store.Volume]) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	defer vs.kick()
	for _, c := range batch {
		id := lockstep.VolumeID(strings.TrimPrefix(c.Key, store.PrefixVolumes))
		switch {
		case c.Kind == store.ChangeSynced:
			vs.synced = true
		case c.Kind == store.ChangePut && c.Value.Node == vs.n.cfg.ID:
			vs.desired[id] = c.Value
		case c.Kind == store.ChangeBad:
			vs.n.log.Error("volume record cannot be read", "volume", id, "err", c.Err)
		default:
			delete(vs.desired, id)
			delete(vs.told, id)
		}
	}
}

// reconcile brings one volume to its desired state and reports it if that is news.
func (vs *volumes) reconcile(ctx context.Context, v store.Volume) {
	o := store.VolumeObserved{Volume: v.ID, Node: vs.n.cfg.ID}
	switch err := vs.bring(v); {
	case err == nil && v.Deleted:
		o.State = "absent"
	case err == nil:
		o.State = "present"
	case errors.Is(err, lockstep.ErrNoSpace):
		o.State, o.Error = "no-space", err.Error()
	default:
		o.State, o.Error = "failed", err.Error()
	}
	if vol := vs.n.host.Volume(v.ID); vol != nil {
		o.SizeBytes = vol.FileSize()
		if err := vol.Failed(); err != nil {
			o.State, o.Error = "failed", err.Error()
			if errors.Is(err, lockstep.ErrNoSpace) {
				o.State = "no-space"
			}
		}
	}
	vs.mu.Lock()
	same := vs.told[v.ID] == o
	vs.mu.Unlock()
	if same {
		return
	}
	told := o
	o.UpdatedAt = time.Now().UTC()
	if err := store.PutOwn(ctx, vs.n.st, store.KeyObservedVolume(v.ID), o); err != nil {
		vs.n.log.Warn("report volume", "volume", v.ID, "err", err)
		return
	}
	vs.n.log.Info("volume", "volume", v.ID, "state", o.State, "size_bytes", o.SizeBytes, "err", o.Error)
	vs.mu.Lock()
	vs.told[v.ID] = told
	vs.mu.Unlock()
}

func (vs *volumes) bring(v store.Volume) error {
	h := vs.n.host
	if v.Deleted {
		return h.RemoveVolume(v.ID)
	}
	if h.Volume(v.ID) == nil {
		if _, err := h.CreateVolume(v.ID, v.SizeBytes); err != nil {
			return err
		}
	}
	if err := h.GrowVolume(v.ID, v.SizeBytes); err != nil {
		return err
	}
	h.SetAccess(v.ID, v.Access)
	return nil
}

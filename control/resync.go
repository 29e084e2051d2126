package control

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// backoff spaces the automatic syncs of one group, so that a link that comes and goes does not
// keep it copying and tripping.
type backoff struct {
	delay     time.Duration // before the next sync
	waitUntil time.Time     // zero: nothing was found to be waited for
	syncSince time.Time     // in sync since; zero: it is not
}

// autoSync synchronizes a group again after a fault: users must not have to do anything. The user
// must want replication, every node must be alive, every primary node connected to its peers and
// no disk failed. It answers when to look again.
func (d *driver) autoSync(ctx context.Context, id lockstep.GroupID, r protocol.Record) (time.Duration, error) {
	now := d.c.cfg.Now()
	d.mu.Lock()
	b := d.resync[id]
	if b == nil {
		b = &backoff{delay: d.c.cfg.ResyncMin}
		d.resync[id] = b
	}
	if r.InSync {
		b.waitUntil = time.Time{}
		if b.syncSince.IsZero() {
			b.syncSince = now
		}
		left := d.c.cfg.ResyncReset - now.Sub(b.syncSince)
		if left <= 0 {
			b.delay, left = d.c.cfg.ResyncMin, 0
		}
		d.mu.Unlock()
		return left, nil
	}
	b.syncSince = time.Time{}
	ready := wantsSync(r)
	if ready {
		d.c.peekCache(func(s *snapshot) { ready = canSync(r, s.sights[id], s.aliveSet(r)) })
	}
	if !ready {
		b.waitUntil = time.Time{}
		d.mu.Unlock()
		return 0, nil
	}
	if b.waitUntil.IsZero() {
		b.waitUntil = now.Add(b.delay)
	}
	if wait := b.waitUntil.Sub(now); wait > 0 {
		d.mu.Unlock()
		return wait, nil
	}
	b.waitUntil = time.Time{}
	b.delay = min(b.delay*2, d.c.cfg.ResyncMax)
	d.mu.Unlock()

	return recheck, d.c.update(ctx, d.fence, func(t *tx) error {
		r, found, err := get[protocol.Record](t, store.KeyRecord(id))
		if err != nil || !found || !wantsSync(r) {
			return err
		}
		gone, err := t.missing(r.Nodes())
		if err != nil || len(gone) > 0 {
			return err
		}
		next, err := r.Sync()
		if err != nil {
			return fmt.Errorf("automatic sync: %w", err)
		}
		t.put(store.KeyRecord(id), next)
		t.history(next, "automatic sync: "+describeStep(r, next), byController, "")
		return nil
	})
}

// wantsSync: at rest, not in sync, and replication is what the user asked for.
func wantsSync(r protocol.Record) bool {
	if r.State != protocol.StateNormal || r.InSync || r.FailedOver || r.Intent != protocol.IntentRun || len(r.Members) == 0 {
		return false
	}
	for _, m := range r.Members {
		if m.ExtendBytes != 0 {
			return false
		}
	}
	return true
}

// canSync: all nodes are alive, all primary nodes see all their peers, and no disk has failed.
func canSync(r protocol.Record, seen map[lockstep.NodeID]Sight, alive map[lockstep.NodeID]bool) bool {
	for _, n := range r.Nodes() {
		if !alive[n] {
			return false
		}
		for _, v := range seen[n].Volumes {
			if v.Failed != "" {
				return false
			}
		}
	}
	for _, n := range r.PrimaryNodes() {
		for _, peer := range r.PeersOf(n, r.Primary) {
			if !seen[n].Peers[peer].Connected {
				return false
			}
		}
	}
	return true
}

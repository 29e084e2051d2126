package replica

import (
	"context"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep/protocol"
)

// storeLeaseLoop keeps the leases of groups whose policy is strict while they are not in sync: each
// counts from when a linearizable read of the record was begun that still showed the epoch [F16].
func (h *Host) storeLeaseLoop() {
	ticker := time.NewTicker(h.cfg.LeaseTTL / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-h.ctx.Done():
			return
		}
		var reads sync.WaitGroup
		for _, g := range h.groupList() {
			g.mu.Lock()
			view := g.view
			g.mu.Unlock()
			if view.Record.Strict && !view.Record.InSync && view.Role == protocol.RolePrimary {
				reads.Go(g.renewStoreLease)
			}
		}
		reads.Wait()
	}
}

// renewStoreLease asks the store once. A newer record is taken as read.
func (g *Group) renewStoreLease() {
	ctx, cancel := context.WithTimeout(g.ctx, g.host.cfg.LeaseTTL)
	defer cancel()
	g.mu.Lock()
	was := g.view.Saved.Record // before the read begins
	g.mu.Unlock()
	asked := g.host.now()
	r, err := g.host.cfg.Store.Read(ctx, g.id)
	if err != nil {
		g.log.Debug("lease of the store", "err", err)
		return
	}
	// A linearizable read shows at least what was persisted before it, unless the store went back.
	if rewound := r.Epoch < was.Epoch; rewound || r.Epoch != g.epochNow() || r.Contradicts(was, g.host.cfg.Node) {
		g.post(protocol.RecordRead{Record: r, FromStore: true, Rewound: rewound})
		return
	}
	g.storeLease.grant(r.Epoch, asked+g.host.cfg.LeaseTTL)
	for _, v := range g.volumes() {
		v.mu.Lock()
		if v.lease == g.storeLease {
			v.completeAll()
		}
		v.mu.Unlock()
	}
}

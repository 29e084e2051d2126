package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
)

// TestAForcedFailoverOfAStrictGroupNeedsNobodysWord: the old primary serves alone by the store's lease,
// and is then cut off from everything. Its lease runs out, so it acknowledges nothing more; the other side
// may serve without a person who says that the host is off, and what the old primary alone had is kept.
func TestAForcedFailoverOfAStrictGroupNeedsNobodysWord(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(1))
	d.cli("group", "policy", g.id, "strict")
	g.untilActive()
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	low := c.counts()
	w.replication[node("az2", 1)].Sever()
	g.until(30*time.Second, "available", "inactive", "5")
	high := c.counts()
	for i := range high {
		high[i]++ // under way
	}
	c.progress(g, patience, 500) // alone, by the lease

	w.store[node("az1", 1)].Sever()
	g.previewOf("the old primary is cut off", func(p client.FailoverPreview) error {
		for _, n := range p.WaitsFor {
			if n.Alive {
				return fmt.Errorf("%s is alive", n.Node)
			}
		}
		return nil
	})
	g.eventually(patience, "forced", func() error {
		p, err := g.c.FailoverPreview(g.ctx, g.id)
		if err != nil {
			return err
		}
		if !p.Allowed || !p.Forced || p.Token == nil {
			return errors.Join(errNotYet, fmt.Errorf("%v", p.Reasons))
		}
		return g.c.ForceFailover(g.ctx, g.id, *p.Token)
	})
	g.until(patience, "failovered", "active-stopped", "0") // nobody said confirm-node-off
	after := c.counts()
	there := g.disks("az2")
	newer := newChains()
	newer.cut(g, there, low, high)
	newer.run(there)
	newer.progress(g, patience, 500)
	if have := c.counts(); have != after {
		t.Error("the old primary acknowledged writes after the failover")
	}

	w.store[node("az1", 1)].Join()
	w.replication[node("az2", 1)].Join()
	if err := c.broken(g); err == nil {
		t.Error("no writer noticed that the old primary stopped")
	}
	closeAll(disks)
	g.images(2)
	d.eventually(patience, "reprotect is taken", func() error { return g.c.Act(g.ctx, g.id, client.ActionReprotect) })
	g.untilActive()
	flushAndCompare(g, newer, there)
}

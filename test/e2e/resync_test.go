package e2e

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
)

// A synchronization shows its rate and the time that is left, keeps to the limits of its group and of its node, which
// a restarted node knows, too, and ends soon when they are taken away.
func TestASynchronizationKeepsToLimitsThatChangeWhileItRuns(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	p := d.pair(1)
	data := make([]byte, 320<<20)
	_, _ = rand.Read(data) // never fails
	if err := d.open(p, "az1").WriteAt(d.ctx, data, 0, false); err != nil {
		t.Fatal(err)
	}
	g := d.group(p)
	const primary = "az1-node-1"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	running := func(what string, ok func(client.Resync) bool) {
		t.Helper()
		g.eventually(2*patience, what, func() error {
			got, err := g.c.Group(g.ctx, g.id)
			if err != nil {
				return err
			}
			if got.Resync == nil {
				return fmt.Errorf("no synchronization runs: %s", got.ReplicationStatus)
			}
			if r := *got.Resync; !ok(r) {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
	}
	must(g.c.LimitResync(g.ctx, g.id, 8))
	g.act(client.ActionSync)
	running("8 MiB/s, and the time that is left", func(r client.Resync) bool {
		left := r.ToSendBytes / (8 << 20)
		return r.BytesPerSecond > 6<<20 && r.BytesPerSecond < 9<<20 && r.SecondsLeft != nil && *r.SecondsLeft > left/2 && *r.SecondsLeft < left*2+5 && r.TotalBytes == gib
	})
	must(g.c.LimitNodeResync(g.ctx, primary, 2))
	running("the node's limit counts, too", func(r client.Resync) bool { return r.BytesPerSecond > 1<<20 && r.BytesPerSecond < 3<<20 })
	d.kill("az1/node-1")
	d.start("az1/node-1")
	d.untilAlive("az1/node-1")
	running("after a restart", func(r client.Resync) bool { return r.BytesPerSecond > 1<<20 && r.BytesPerSecond < 3<<20 })
	must(g.c.LimitNodeResync(g.ctx, primary, 0))
	running("the group's again", func(r client.Resync) bool { return r.BytesPerSecond > 6<<20 && r.BytesPerSecond < 9<<20 })
	began := time.Now()
	must(g.c.LimitResync(g.ctx, g.id, 0))
	g.untilActive()
	t.Logf("in sync %s after the limit went", time.Since(began))
	g.sameFiles(p)
}

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// rtoBound is far above what a failover takes on a quiet machine: a read lease, and little more.
const rtoBound = 10 * time.Second

func TestLosingAZoneUnderLoadLosesNoAcknowledgedWrite(t *testing.T) {
	t.Parallel()
	rounds := *roundsFlag
	d := deploy(t, 2)
	g := d.syncedGroup(d.pair(1), d.pair(2))
	zone := "az1"
	disks := g.disks(zone)
	c := newChains()
	var took []time.Duration
	for round := range rounds {
		c.run(disks)
		c.progress(g, patience, 2000)

		d.kill(d.members(zone)...)
		if err := c.broken(g); err == nil {
			t.Fatal("no writer noticed that its zone is gone")
		}
		closeAll(disks)

		began := time.Now()
		g.act(client.ActionFailover)
		zone = other(zone)
		firstWrite(g, zone)
		took = append(took, time.Since(began))
		if last := took[round]; last > rtoBound+stalls.slack(began) {
			t.Errorf("round %d: the first write in %s was accepted %s after the call, more than %s", round+1, zone, last, rtoBound)
		}
		g.until(patience, "failovered", "active-stopped", "0")
		disks = g.disks(zone)
		if err := c.inspect(d.ctx, disks); err != nil {
			t.Fatalf("round %d: the image in %s: %v", round+1, zone, err)
		}

		c.run(disks) // the application goes on while the lost zone comes back
		c.progress(g, patience, 500)
		d.start(d.members(other(zone))...)
		d.untilAlive(d.members(other(zone))...)
		g.act(client.ActionReprotect)
		g.untilActive()
		c.progress(g, patience, 500)
		if err := c.stop(g); err != nil {
			t.Fatalf("round %d: writers in %s: %v", round+1, zone, err)
		}
	}
	for _, disk := range disks {
		if err := disk.Flush(d.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.inspect(d.ctx, disks); err != nil {
		t.Fatal(err)
	}
	d.sameFiles(g.pairs...)
	slices.Sort(took)
	fmt.Printf("failover: rounds=%d median=%dms max=%dms\n", rounds, took[len(took)/2].Milliseconds(), took[len(took)-1].Milliseconds())
}

// firstWrite tries until a write is taken in the zone, at a place that belongs to no chain.
func firstWrite(g *group, az string) {
	g.t.Helper()
	p := g.pairs[0]
	g.eventually(patience, "a write is accepted in "+az, func() error {
		disk, err := g.dial(p, az)
		if err != nil {
			return err
		}
		defer disk.Close()
		return probe(g, disk)
	})
}

func probe(g *group, disk *nbdclient.Client) error {
	return disk.WriteAt(g.ctx, make([]byte, blockSize), disk.Size()-blockSize, false)
}

var _ block.Device = (*nbdclient.Client)(nil)

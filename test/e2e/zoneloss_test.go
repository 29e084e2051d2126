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

func TestChecksOfChainsFindLostAndReorderedWrites(t *testing.T) {
	image := func(skip func(chain int, k uint64) bool) [2][]byte {
		img := [2][]byte{make([]byte, chainBytes), make([]byte, chainBytes)}
		for chain := range chainCount {
			for k := uint64(1); k <= 100; k++ {
				if !skip(chain, k) {
					disk, off := place(chain, k)
					fill(img[disk][off:off+blockSize], chain, k)
				}
			}
		}
		return img
	}
	for _, tc := range []struct {
		name  string
		acked uint64
		skip  func(chain int, k uint64) bool
		ok    bool
	}{
		{"whole", 100, func(int, uint64) bool { return false }, true},
		{"one in flight", 99, func(int, uint64) bool { return false }, true},
		{"last one lost", 100, func(c int, k uint64) bool { return c == 7 && k == 100 }, false},
		{"one in the middle lost", 100, func(c int, k uint64) bool { return c == 0 && k == 80 }, false},
		{"second without first", 98, func(c int, k uint64) bool { return c == 31 && k == 99 }, false},
		{"never issued", 98, func(int, uint64) bool { return false }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c chains
			for i := range c.acked {
				c.acked[i].Store(tc.acked)
			}
			if err := c.judge(image(tc.skip)); (err == nil) != tc.ok {
				t.Errorf("judge: %v", err)
			}
		})
	}
}

func TestLosingAZoneUnderLoadLosesNoAcknowledgedWrite(t *testing.T) {
	t.Parallel()
	rounds := *roundsFlag
	d := deploy(t, 2)
	g := d.syncedGroup(d.pair(1), d.pair(2))
	zone := "az1"
	disks := g.disks(zone)
	var c chains
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
		if last := took[round]; last > rtoBound {
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

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
)

// flushAndCompare ends the load, flushes both disks of a group that is active and compares the sides.
func flushAndCompare(g *group, c *chains, disks [2]block.Device) {
	g.t.Helper()
	if err := c.stop(g); err != nil {
		g.t.Fatalf("writers: %v", err)
	}
	if err := c.inspect(g.ctx, disks); err != nil {
		g.t.Fatal(err)
	}
	for _, disk := range disks {
		if err := disk.Flush(g.ctx); err != nil {
			g.t.Fatal(err)
		}
	}
	g.until(time.Second, "available", "active", "0")
	g.sameFiles(g.pairs...)
}

func TestAStoppedSecondaryStallsWritesForSecondsAndHealsByItself(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)

	d.signal(syscall.SIGSTOP, node("az2", 1))
	stopped := time.Now()
	g.until(5*time.Second, "available", "inactive", "5")
	tripped := time.Since(stopped)
	c.progress(g, 2*time.Second, 500)
	stall := c.Longest()
	t.Logf("tripped after %s, the longest write took %s", tripped.Round(time.Millisecond), stall.Round(time.Millisecond))
	if stall > 6*time.Second+stalls.slack(stopped) {
		t.Errorf("writes stalled for %s", stall)
	}
	g.refused("5")
	g.until(time.Second, "available", "inactive", "5")

	d.signal(syscall.SIGCONT, node("az2", 1))
	g.untilActive()
	c.progress(g, patience, 500)
	flushAndCompare(g, c, disks)
}

func TestAStoppedPrimaryGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	d.signal(syscall.SIGSTOP, node("az1", 1))
	g.until(15*time.Second, "available", "active", "2") // gone, as far as anybody can see
	before := c.Acknowledged()
	d.signal(syscall.SIGCONT, node("az1", 1))
	c.progress(g, patience, 500)
	if c.Acknowledged() <= before {
		t.Error("no write went on")
	}
	g.untilActive()
	flushAndCompare(g, c, disks)
}

func TestAStoppedPrimaryThatWakesAfterAFailoverAnswersNothing(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	reader := g.open(g.pairs[0], "az1")
	const at = gib / 2 // where no chain is
	d.writes(reader, at, patience)
	d.signal(syscall.SIGSTOP, node("az1", 1))
	g.failover()
	there := g.disks("az2")
	if err := there[0].WriteAt(d.ctx, make([]byte, blockSize), at, true); err != nil {
		t.Fatal(err)
	}
	// From here on a read of the old primary would give out what was overwritten. Some wait in its
	// socket, and are the first that it sees when it wakes.
	var reads []*request
	read := func(ctx context.Context) error { return reader.ReadAt(ctx, make([]byte, blockSize), at) }
	for range 32 {
		reads = append(reads, d.ask("read", read))
	}
	// What was acknowledged up to here is there. The old primary's answers that are still in
	// sockets are of writes that both sides have.
	d.signal(syscall.SIGCONT, node("az1", 1))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 100 { // while it learns that it is no primary any more
		reads = append(reads, d.ask("read", read))
		<-tick.C
	}
	refuse(reads...)
	if err := c.broken(g); err == nil {
		t.Fatal("the old primary took writes after the failover")
	}
	if err := c.inspect(d.ctx, there); err != nil {
		t.Fatal(err)
	}
	closeAll(disks)
	c.run(there)
	c.progress(g, patience, 500)
	d.untilAlive(node("az1", 1))
	g.act(client.ActionReprotect)
	g.untilActive()
	flushAndCompare(g, c, there)
}

func TestAKilledSecondaryIsCaughtUpWhenItReturns(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	d.kill(node("az2", 1))
	g.until(10*time.Second, "available", "inactive", "5")
	c.progress(g, patience, 500)
	g.refused("5")
	d.start(node("az2", 1))
	g.untilActive()
	c.progress(g, patience, 500)
	flushAndCompare(g, c, disks)
}

// TestAKilledPrimaryProcessGoesOnAfterItsRestart: nothing else happens; the clients connect again.
func TestAKilledPrimaryProcessGoesOnAfterItsRestart(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	for range 3 {
		c.run(disks)
		c.progress(g, patience, 500)
		d.kill(node("az1", 1))
		if err := c.broken(g); err == nil {
			t.Fatal("no writer noticed")
		}
		closeAll(disks)
		d.start(node("az1", 1))
		disks = g.disks("az1")
		if err := c.inspect(d.ctx, disks); err != nil {
			t.Fatal(err)
		}
	}
	g.untilActive()
	c.run(disks)
	c.progress(g, patience, 500)
	flushAndCompare(g, c, disks)
}

// TestBothNodesKilledLoseNothing: the processes die, the hosts do not, so even what was not
// flushed is there.
func TestBothNodesKilledLoseNothing(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	d.kill(d.members("")...)
	if err := c.broken(g); err == nil {
		t.Fatal("no writer noticed")
	}
	closeAll(disks)
	d.start(d.members("")...)
	g.untilActive()
	disks = g.disks("az1")
	if err := c.inspect(d.ctx, disks); err != nil {
		t.Fatal(err)
	}
	c.run(disks)
	c.progress(g, patience, 500)
	flushAndCompare(g, c, disks)
}

func TestReadsUnderLoadSeeTheLastAcknowledgedWrite(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	disk := g.open(g.pairs[0], "az1") // a connection of its own
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 200)
	stop := time.Now().Add(4 * time.Second)
	chased := d.ask("reader of chains", func(context.Context) error { return c.chase(ctx, disks, stop) })
	have, want := make([]byte, blockSize), make([]byte, blockSize)
	for i := uint64(1); time.Now().Before(stop); i++ {
		c.Fill(want, int(i%5), i)
		off := chainBytes + int64(i%64)*blockSize
		if err := disk.WriteAt(ctx, want, off, i%100 == 0); err != nil {
			t.Fatal(err)
		}
		if err := disk.ReadAt(ctx, have, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Fatalf("write %d is not what a read gives", i)
		}
	}
	if err := chased.end(); err != nil {
		t.Fatal(err)
	}
	flushAndCompare(g, c, disks)
}

// chase reads, until that time, the place of a write that was acknowledged: it must hold that write,
// or a later one that has the same place.
func (c *chains) chase(ctx context.Context, disks [2]block.Device, until time.Time) error {
	b := make([]byte, blockSize)
	for i := 0; time.Now().Before(until); i++ {
		chain := i % chainCount
		k := c.Newest(chain)
		if k == 0 {
			continue
		}
		disk, off := c.Place(chain, k)
		if err := disks[disk].ReadAt(ctx, b, off); err != nil {
			return err
		}
		have, err := c.Parse(b, disk, chain)
		if err == nil && (have < k || (have-k)%(2*chainSlots) != 0) {
			err = fmt.Errorf("write %d was acknowledged, a read of its place gives write %d", k, have)
		}
		if err != nil {
			return fmt.Errorf("chain %d: %w", chain, err)
		}
	}
	return nil
}

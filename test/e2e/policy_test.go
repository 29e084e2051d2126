package e2e

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

// Goal: under the policy strict a primary without its secondary answers nothing while the store is
// away, although its process was serving; what waited is done when the store is back.
func TestAStrictPrimaryWithoutItsSecondaryHoldsWhileTheStoreIsDown(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	p := d.pair(1)
	g := d.syncedGroup(p)
	d.cli("group", "policy", g.id, "strict")
	g.untilActive()
	d.kill(node("az2", 1))
	g.until(15*time.Second, "available", "inactive", "5")
	disk := d.open(p, "az1")
	d.writes(disk, 0, patience)

	d.signal(syscall.SIGSTOP, "controller") // the store is embedded in it
	time.Sleep(1500 * time.Millisecond)     // longer than the lease of 1 s: the point of this test is time
	held := d.askBoth(disk)
	stayHeld(3*time.Second, held...)
	d.signal(syscall.SIGCONT, "controller")
	succeed(held...)
	d.eventually(patience, "the API answers", func() error { _, _, err := g.statuses(); return err })
	d.start(node("az2", 1))
	g.untilActive()
	if err := disk.Flush(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.sameFiles(p)
}

// Goal: with one primary node dead and the other's link down the group is held; an operator's
// continue lets the living node go on alone, and nothing is lost when the others return.
func TestAnOperatorContinuesAGroupThatWaitsForADeadPrimaryNode(t *testing.T) {
	t.Parallel()
	d := deploy(t, 2)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(2))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 200)
	w.replication[node("az2", 2)].Sever()
	d.kill(node("az1", 1))
	g.until(15*time.Second, "available", "active", "2")

	held := d.askBoth(disks[1]) // of the node that lives
	stayHeld(3*time.Second, held...)
	d.cli("group", "continue", g.id, "--reason", "the host of az1/node-1 is gone", "--yes")
	var disk block.Device = d.open(g.pairs[1], "az1")
	succeed(held...)
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	if err := disk.WriteAt(ctx, make([]byte, 4096), gib-4096, false); err != nil {
		t.Fatalf("the living node does not go on: %v", err)
	}
	if err := c.broken(g); err == nil {
		t.Error("no writer noticed that a disk is gone")
	}
	g.refused("5")

	w.replication[node("az2", 2)].Join()
	d.start(node("az1", 1))
	g.untilActive()
	closeAll(disks)
	disks = g.disks("az1")
	if err := c.inspect(d.ctx, disks); err != nil {
		t.Fatal(err)
	}
	c.run(disks)
	c.progress(g, patience, 200)
	flushAndCompare(g, c, disks)
}

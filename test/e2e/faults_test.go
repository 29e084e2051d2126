package e2e

import (
	"crypto/rand"
	"os"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
)

// The rows of the table "what a user sees when something breaks", each produced on purpose.

func TestStatusesOfAGroupThatIsNewCopyingPausedAndFailedOver(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.group(d.pair(1))
	p := g.pairs[0]
	disk := g.open(p, "az1")

	t.Log("new, never synchronized")
	d.writes(disk, 0, time.Second)
	g.refused("0")
	if _, err := d.dial(p, "az2"); err == nil {
		t.Error("the disk of a secondary opens")
	}

	t.Log("copying")
	data := make([]byte, 24<<20)
	_, _ = rand.Read(data) // never fails
	if err := disk.WriteAt(d.ctx, data, 1<<20, false); err != nil {
		t.Fatal(err)
	}
	w.replication[node("az2", 1)].Limit(4 << 20)
	g.act(client.ActionSync)
	g.until(5*time.Second, "available", "copying", "0")
	d.writes(disk, 0, 3*time.Second)
	g.refused("0")
	w.replication[node("az2", 1)].Limit(0)
	g.untilActive()
	d.writes(disk, 0, time.Second)

	t.Log("paused")
	g.act(client.ActionStop)
	g.until(time.Second, "available", "active-stopped", "0")
	d.writes(disk, 0, time.Second)
	g.refused("0")
	g.until(time.Second, "available", "active-stopped", "0")
	g.act(client.ActionSync)
	g.untilActive()

	t.Log("failed over")
	g.failover()
	if err := disk.WriteAt(d.ctx, make([]byte, 4096), 0, false); err == nil {
		t.Error("the old primary takes a write")
	}
	there := g.open(p, "az2")
	d.writes(there, 0, time.Second)
	g.refused("")
	g.until(time.Second, "failovered", "active-stopped", "0")
	g.act(client.ActionReprotect)
	g.untilActive()

	t.Log("switched over")
	_ = there.Close()
	g.act(client.ActionReverse)
	g.eventually(patience, "az1 is the primary", func() error {
		_, have, err := g.statuses()
		if err == nil && (have.PriorityStation != "az1" || have.Status != "available") {
			err = errNotYet
		}
		return err
	})
	g.untilActive()
	back := g.open(p, "az1")
	d.writes(back, 0, time.Second)
	if err := back.Flush(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.sameFiles(p)
}

func TestACutLinkStallsWritesForSecondsAndHealsByItself(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(1))
	link := w.replication[node("az2", 1)]
	disks := g.disks("az1")
	c := newChains()
	for _, cut := range []struct {
		name     string
		to, from bool
		reset    bool
	}{
		{"both ways", true, true, false},
		{"only answers", false, true, false},
		{"only requests, and connections lost", true, false, true},
	} {
		t.Log(cut.name)
		began := time.Now()
		c.run(disks)
		c.progress(g, patience, 200)
		link.Cut(cut.to, cut.from)
		if cut.reset {
			link.Reset()
		}
		g.until(6*time.Second, "available", "inactive", "5")
		c.progress(g, 3*time.Second, 200)
		if longest := c.Longest(); longest > 6*time.Second+stalls.slack(began) {
			t.Errorf("%s: a write took %s", cut.name, longest)
		}
		g.refused("5")
		link.Join()
		g.untilActive()
		c.progress(g, patience, 200)
		flushAndCompare(g, c, disks)
	}
}

func TestALostPrimaryZoneIsShownAndCanBeFailedOver(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 200)
	d.kill(node("az1", 1))
	g.until(10*time.Second, "available", "active", "2")
	if err := c.broken(g); err == nil {
		t.Error("no writer noticed")
	}
	g.failover()
	there := g.disks("az2")
	if err := c.inspect(d.ctx, there); err != nil {
		t.Fatal(err)
	}
}

func TestAPrimaryCutFromSecondaryAndStoreHoldsItsRequests(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 200)
	w.replication[node("az2", 1)].Sever()
	w.store[node("az1", 1)].Sever()
	g.until(15*time.Second, "available", "active", "2")
	held := c.Acknowledged()

	// Nothing is acknowledged, and nothing is given up: the requests wait.
	began := time.Now()
	g.eventually(10*time.Second, "the requests are held", func() error {
		if c.Acknowledged() != held {
			t.Fatalf("%d writes were acknowledged by a primary that hears nobody", c.Acknowledged()-held)
		}
		if time.Since(began) < 3*time.Second {
			return errNotYet
		}
		return nil
	})
	select {
	case <-c.ended:
		t.Fatalf("a held request failed: %v", c.err)
	default:
	}

	g.failover()
	there := g.disks("az2")
	// The old primary learns of it when its wires are joined, and fails what it held.
	w.store[node("az1", 1)].Join()
	w.replication[node("az2", 1)].Join()
	if err := c.broken(g); err == nil {
		t.Fatal("the old primary took writes after the failover")
	}
	// Acknowledgements that were on their way when the wire was cut still arrive: of writes that
	// the secondary had before the failover, and that are there. Nothing follows them.
	if late := c.Acknowledged() - held; late > chainCount {
		t.Fatalf("the old primary acknowledged %d writes after the failover", late)
	}
	if err := c.inspect(d.ctx, there); err != nil {
		t.Fatal(err)
	}
	c.run(there)
	c.progress(g, patience, 200)
	g.act(client.ActionReprotect)
	g.untilActive()
	flushAndCompare(g, c, there)
}

func TestAPrimaryCutFromSecondaryAndStoreGoesOnWhenTheyReturn(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	for _, first := range []string{"store", "secondary"} {
		t.Log(first, "returns first")
		c.run(disks)
		c.progress(g, patience, 200)
		w.replication[node("az2", 1)].Sever()
		w.store[node("az1", 1)].Sever()
		g.until(15*time.Second, "available", "active", "2")
		if first == "store" {
			w.store[node("az1", 1)].Join()
			c.progress(g, 15*time.Second, 100)
			w.replication[node("az2", 1)].Join()
		} else {
			w.replication[node("az2", 1)].Join()
			c.progress(g, 15*time.Second, 100)
			w.store[node("az1", 1)].Join()
		}
		g.untilActive()
		flushAndCompare(g, c, disks)
	}
}

func TestARebootedPrimaryIsHeldUntilItHasTakenBackWhatItLost(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	for life, failover := range []bool{false, true} {
		c.run(disks)
		c.progress(g, patience, 200)
		// Under load: the region of the chains is marked at any moment. Once the writers stop, the
		// next background flush makes everything durable, and what lose takes would not be lost.
		d.kill(node("az1", 1))
		if err := c.broken(g); err == nil {
			t.Error("no writer noticed")
		}
		closeAll(disks)
		for _, p := range g.pairs {
			lose(t, d.raw(p, "az1"), c)
		}
		d.reboot(w, node("az1", 1), 2+life)
		w.replication[node("az2", 1)].Sever()
		d.start(node("az1", 1))
		d.untilAlive(node("az1", 1))
		g.until(15*time.Second, "available", "active", "2")
		// Neither a marked region nor one that is not may be used before the secondary's word.
		held := d.askBoth(g.open(g.pairs[0], "az1"))
		stayHeld(3*time.Second, held...)
		g.until(time.Second, "available", "active", "2")
		zone := "az1"
		if failover {
			zone = "az2"
			g.failover()
			refuse(held...)
			w.replication[node("az2", 1)].Join()
		} else {
			w.replication[node("az2", 1)].Join()
			succeed(held...)
		}
		disks = g.disks(zone)
		if err := c.inspect(d.ctx, disks); err != nil {
			t.Fatalf("failover %t: %v", failover, err)
		}
		if failover {
			g.act(client.ActionReprotect)
		}
		g.untilActive()
		c.run(disks)
		c.progress(g, patience, 200)
		flushAndCompare(g, c, disks)
	}
}

// lose takes from a raw file the block of chain 0 that was written last there, as a host does that
// loses its page cache: the older content of that block was zeroes, or nearly so.
func lose(t *testing.T, raw string, c *chains) {
	t.Helper()
	f, err := os.OpenFile(raw, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	k := c.Newest(0)
	for _, k := range []uint64{k, k - 1} { // one of the two is on this disk; the other block is lost, too
		_, off := c.Place(0, k)
		if _, err := f.WriteAt(make([]byte, blockSize), off); err != nil {
			t.Fatal(err)
		}
	}
}

func TestASecondaryWhoseHostRebootedIsSynchronizedAgain(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 200)
	d.reboot(w, node("az2", 1), 2)
	d.kill(node("az2", 1))
	d.start(node("az2", 1))
	g.until(10*time.Second, "available", "inactive", "5")
	g.untilActive()
	c.progress(g, patience, 200)
	flushAndCompare(g, c, disks)
}

func TestBothHostsRebootedKeepThePrimarysImage(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 200)
	for _, m := range d.members("") {
		d.reboot(w, m, 2)
	}
	d.kill(d.members("")...)
	if err := c.broken(g); err == nil {
		t.Error("no writer noticed")
	}
	closeAll(disks)
	d.start(d.members("")...)
	disks = g.disks("az1")
	if err := c.inspect(d.ctx, disks); err != nil { // held until both boot ids are known
		t.Fatal(err)
	}
	g.untilActive()
	c.run(disks)
	c.progress(g, patience, 200)
	flushAndCompare(g, c, disks)
}

// TestAFailoverToARebootedSecondaryEndsAsItBegan: it may lack writes, so it must not take over.
func TestAFailoverToARebootedSecondaryEndsAsItBegan(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 200)
	d.reboot(w, node("az2", 1), 2)
	d.kill(d.members("")...)
	if err := c.broken(g); err == nil {
		t.Error("no writer noticed")
	}
	closeAll(disks)
	d.start(node("az2", 1))
	d.untilAlive(node("az2", 1))
	g.act(client.ActionFailover)
	g.eventually(patience, "the failover has ended in error", func() error {
		_, have, err := g.statuses()
		if err == nil && have.Status != "error_failovering" {
			err = errNotYet
		}
		if err == nil && have.PriorityStation != "az1" {
			t.Errorf("priority_station is %s", have.PriorityStation)
		}
		return err
	})
	if _, err := d.dial(g.pairs[0], "az2"); err == nil {
		t.Error("the disk of a rebooted secondary opens")
	}
	d.start(node("az1", 1))
	d.untilAlive(node("az1", 1))
	disks = g.disks("az1")
	if err := c.inspect(d.ctx, disks); err != nil {
		t.Fatal(err)
	}
	c.run(disks)
	c.progress(g, patience, 200)
	g.act(client.ActionSync)
	g.untilActive()
	flushAndCompare(g, c, disks)
}

func TestOneDeadPrimaryNodeAndTheOthersLinkDownHoldTheGroup(t *testing.T) {
	t.Parallel()
	d := deploy(t, 2)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(2))
	disks := g.disks("az1")
	c := newChains()
	for _, failover := range []bool{false, true} {
		c.run(disks)
		c.progress(g, patience, 200)
		w.replication[node("az2", 2)].Sever()
		d.kill(node("az1", 1))
		g.until(15*time.Second, "available", "active", "2")
		held := d.askBoth(disks[1]) // of the node that lives
		stayHeld(3*time.Second, held...)
		g.until(time.Second, "available", "active", "2")
		if failover {
			g.failover()
			refuse(held...)
			w.replication[node("az2", 2)].Join()
			d.start(node("az1", 1))
			d.untilAlive(node("az1", 1))
			if err := c.broken(g); err == nil {
				t.Error("no writer noticed")
			}
			closeAll(disks)
			disks = g.disks("az2")
		} else {
			// The dead node answers again: the trip can end, or is taken back.
			d.start(node("az1", 1))
			w.replication[node("az2", 2)].Join()
			succeed(held...)
			if err := c.broken(g); err == nil {
				t.Error("no writer noticed")
			}
			closeAll(disks)
			disks = g.disks("az1")
		}
		if err := c.inspect(d.ctx, disks); err != nil {
			t.Fatalf("failover %t: %v", failover, err)
		}
		if failover {
			g.act(client.ActionReprotect)
		}
		g.untilActive()
	}
	c.run(disks)
	c.progress(g, patience, 200)
	flushAndCompare(g, c, disks)
}

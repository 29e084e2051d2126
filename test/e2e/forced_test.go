package e2e

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
	"github.com/lockstep-dr/lockstep/test/need"
)

// counts is what of each chain was acknowledged.
func (c *chains) counts() (n [chainCount]uint64) {
	for i := range n {
		n[i] = c.Newest(i)
	}
	return n
}

// cut judges an image that may lack writes: of every chain it holds all writes up to one that is not
// older than low and not newer than high, and none after it. The chains go on from there.
func (c *chains) cut(g *group, disks [2]block.Device, low, high [chainCount]uint64) {
	g.t.Helper()
	var image [2][]byte
	for i := range image {
		image[i] = make([]byte, chainBytes)
		if err := disks[i].ReadAt(g.ctx, image[i], 0); err != nil {
			g.t.Fatalf("read disk %d: %v", i, err)
		}
	}
	for chain := range chainCount {
		var newest uint64
		for disk := range image {
			for slot := range chainSlots {
				at := (chain*chainSlots + slot) * blockSize
				if k, err := c.Parse(image[disk][at:at+blockSize], disk, chain); err == nil {
					newest = max(newest, k)
				}
			}
		}
		if newest < low[chain] || newest > high[chain] {
			g.t.Errorf("chain %d: the newest write is %d; %d was acknowledged while in sync, and %d when replication had stopped", chain, newest, low[chain], high[chain])
		}
		c.SetNewest(chain, newest)
	}
	if err := c.Judge(image[:]); err != nil {
		g.t.Fatalf("the image is no consistent cut: %v", err)
	}
}

// previewOf waits for a preview that is as it should be.
func (g *group) previewOf(what string, is func(client.FailoverPreview) error) client.FailoverPreview {
	g.t.Helper()
	var p client.FailoverPreview
	g.eventually(patience, what, func() error {
		var err error
		if p, err = g.c.FailoverPreview(g.ctx, g.id); err == nil {
			err = is(p)
		}
		return err
	})
	return p
}

// fromPoints: it goes to the recovery points of all volumes.
func fromPoints(p client.FailoverPreview) error {
	if !p.Allowed || !p.Forced {
		return fmt.Errorf("not allowed: %v", p.Reasons)
	}
	for _, v := range p.Volumes {
		if v.Image != "recovery-point" {
			return fmt.Errorf("volume %s: image %s", v.VolumeID, v.Image)
		}
	}
	return nil
}

func TestAForcedFailoverInTheMiddleOfAResyncServesOneCut(t *testing.T) {
	need.Programs(t, "qemu-img", "cp")
	d := deploy(t, 2) // alone: it moves much data
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(2))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 1000)

	low, began := c.counts(), time.Now()
	g.act(client.ActionStop)
	stopped := time.Now()
	high := c.counts()
	for i := range high {
		high[i]++ // under way
	}
	c.progress(g, patience, 1000)
	const filler = 24 << 20
	data := make([]byte, filler)
	_, _ = rand.Read(data) // never fails
	for _, disk := range disks {
		if err := disk.WriteAt(d.ctx, data, 64<<20, false); err != nil {
			t.Fatal(err)
		}
	}

	for _, m := range d.members("az2") {
		w.replication[m].Limit(3 << 20)
	}
	g.act(client.ActionSync)
	middle := func() {
		t.Helper()
		g.previewOf("the recovery points are set", fromPoints)
		g.eventually(patience, "the middle of a resync", func() error {
			have, got, err := g.statuses()
			if err == nil && !strings.HasPrefix(have, "available/copying") {
				err = fmt.Errorf("the group is %s", have)
			}
			if err != nil {
				return err
			}
			for _, p := range g.pairs {
				pair, err := g.c.Pair(g.ctx, p.id)
				if err != nil {
					return err
				}
				if pair.Progress == nil || *pair.Progress == "0" || *pair.Progress == "99" || *pair.Progress == "100" {
					return fmt.Errorf("pair %s is at %v, group %s", p.id, deref(pair.Progress), got.Status)
				}
			}
			return nil
		})
	}
	middle()
	d.kill(d.members("az2")...) // in the middle, under load
	d.start(d.members("az2")...)
	d.untilAlive(d.members("az2")...)
	middle()
	c.progress(g, patience, 100)
	d.kill(d.members("az1")...)
	if err := c.broken(g); err == nil {
		t.Fatal("no writer noticed that its zone is gone")
	}
	closeAll(disks)
	for _, p := range g.pairs {
		d.tool("cp", "--sparse=always", d.raw(p, "az1"), d.kept(p))
	}

	g.refused("")
	p := g.previewOf("the old primary's nodes are not alive", func(p client.FailoverPreview) error {
		for _, n := range p.WaitsFor {
			if n.Alive {
				return errors.New(n.Node + " is alive")
			}
		}
		return fromPoints(p)
	})
	if p.BytesMissing == nil || *p.BytesMissing < 2*filler {
		t.Errorf("the preview says that %v bytes are missing; at least %d are", p.BytesMissing, 2*filler)
	}
	if at := p.RecoveryPointAt; at.Before(began.Add(-time.Second)) || at.After(stopped.Add(time.Second)) {
		t.Errorf("the recovery point is of %s; it was paused between %s and %s", at, began, stopped)
	}
	if err := g.c.ForceFailover(d.ctx, g.id, *p.Token+"0"); !client.IsConflict(err) {
		t.Errorf("a token that is wrong in its last digit: %v", err)
	}
	d.cli("group", "failover", g.id, "--force", "--token", *p.Token, "--yes")
	time.Sleep(3 * time.Second)
	if have, _, err := g.statuses(); err != nil || !strings.HasPrefix(have, "failovering/") {
		t.Fatalf("without a word about the old primary the group is %s: %v", have, err)
	}
	if disk, err := g.dial(g.pairs[0], "az2"); err == nil {
		_ = disk.Close()
		t.Fatal("the new primary is served before the old one is known to be off")
	}
	for _, m := range d.members("az1") {
		d.cli("group", "confirm-node-off", g.id, "--node", strings.Replace(m, "/", "-", 1), "--reason", "the zone burnt", "--yes")
	}
	g.until(patience, "failovered", "active-stopped", "0")
	disks = g.disks("az2")
	c.cut(g, disks, low, high)

	var history []client.HistoryEntry
	if err := json.Unmarshal([]byte(d.cli("group", "history", g.id, "--json")), &history); err != nil {
		t.Fatal(err)
	}
	receipts := 0
	for _, e := range history {
		if e.Receipt != nil {
			receipts++
			if e.Receipt.BytesMissing == nil || *e.Receipt.BytesMissing != *p.BytesMissing || e.Receipt.Final {
				t.Errorf("receipt of epoch %d: %+v", e.Epoch, e.Receipt)
			}
		}
	}
	if receipts != 2 {
		t.Errorf("%d receipts in the history", receipts)
	}

	c.run(disks)
	c.progress(g, patience, 500)
	for _, m := range d.members("az2") {
		w.replication[m].Limit(0)
	}
	d.start(d.members("az1")...)
	d.untilAlive(d.members("az1")...)
	image := g.images(2)
	g.sameAsKept(image)
	d.eventually(patience, "reprotect is taken", func() error { return g.c.Act(g.ctx, g.id, client.ActionReprotect) })
	g.untilActive()
	c.progress(g, patience, 500)
	if err := c.stop(g); err != nil {
		t.Fatal(err)
	}
	closeAll(disks)
	g.act(client.ActionReverse)
	g.eventually(patience, "switched back", func() error {
		have, got, err := g.statuses()
		if err == nil && (have != "available/active/0" || got.PriorityStation != "az1") {
			err = fmt.Errorf("%s in %s", have, got.PriorityStation)
		}
		return err
	})
	disks = g.disks("az1")
	if err := c.inspect(d.ctx, disks); err != nil {
		t.Fatalf("after reprotect and switching back: %v", err)
	}
	c.run(disks)
	c.progress(g, patience, 300)
	flushAndCompare(g, c, disks)
	g.sameAsKept(g.images(2)) // whatever was written since

	d.cli("group", "divergence", "delete", g.id, image.ID, "--yes")
	g.images(0)
	d.eventually(patience, "the images' files are gone", func() error {
		left, err := filepath.Glob(filepath.Join(d.dir, "az1", "pool-*", "*.diverged"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%v", left)
		}
		return err
	})
}

func (d *deployment) kept(p pair) string { return filepath.Join(d.dir, "kept-"+p.id) }

// images waits until the group has one divergence image of so many volumes; 0: none.
func (g *group) images(volumes int) client.DivergenceImage {
	g.t.Helper()
	var image client.DivergenceImage
	g.eventually(patience, fmt.Sprintf("divergence images of %d volumes", volumes), func() error {
		images, err := g.c.DivergenceImages(g.ctx, g.id)
		if err != nil {
			return err
		}
		have := 0
		for _, i := range images {
			have, image = have+len(i.Volumes), i
		}
		if have != volumes || len(images) > 1 {
			return fmt.Errorf("%d volumes in %d images", have, len(images))
		}
		return nil
	})
	return image
}

// sameAsKept compares what is exported with the files as the old primary left them, and tries to
// write to it.
func (g *group) sameAsKept(image client.DivergenceImage) {
	g.t.Helper()
	for _, v := range image.Volumes {
		for _, p := range g.pairs {
			if p.id != v.PairID {
				continue
			}
			g.tool("qemu-img", "compare", "-f", "raw", "-F", "raw", *v.URI, g.kept(p))
			disk, err := nbdclient.Dial(g.ctx, *v.URI)
			if err != nil {
				g.t.Fatal(err)
			}
			if err := disk.WriteAt(g.ctx, make([]byte, 4096), 0, false); err == nil {
				g.t.Error("a divergence image took a write")
			}
			_ = disk.Close()
		}
	}
}

// TestAForcedFailoverStopsAnOldPrimaryThatLives: with the link cut the old primary serves alone. It
// stops before the other side serves, without anybody's word, and what it alone had is exact.
func TestAForcedFailoverStopsAnOldPrimaryThatLives(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	w := d.wired()
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	low := c.counts()
	w.replication[node("az2", 1)].Sever()
	g.until(30*time.Second, "available", "inactive", "5")
	high := c.counts() // what was acknowledged alone by now included
	for i := range high {
		high[i]++
	}
	c.progress(g, patience, 500)
	// A loss that grew is not the one that was previewed.
	p := g.previewOf("a preview", func(p client.FailoverPreview) error {
		if !p.Allowed {
			return fmt.Errorf("%v", p.Reasons)
		}
		return nil
	})
	if err := disks[0].WriteAt(d.ctx, make([]byte, 4096), 512<<20, false); err != nil {
		t.Fatal(err)
	}
	g.previewOf("the loss has grown", func(now client.FailoverPreview) error {
		if *now.BytesMissing == *p.BytesMissing {
			return errNotYet
		}
		return nil
	})
	if err := g.c.ForceFailover(d.ctx, g.id, *p.Token); !client.IsConflict(err) {
		t.Fatalf("a token of a smaller loss: %v", err)
	}
	d.eventually(patience, "forced", func() error {
		p, err := g.c.FailoverPreview(d.ctx, g.id)
		if err != nil {
			return err
		}
		return g.c.ForceFailover(d.ctx, g.id, *p.Token)
	})
	if err := c.broken(g); err == nil {
		t.Error("no writer noticed that the old primary stopped")
	}
	after := c.counts()
	g.until(patience, "failovered", "active-stopped", "0")
	closeAll(disks)
	if disk, err := g.dial(g.pairs[0], "az1"); err == nil {
		_ = disk.Close()
		t.Error("the old primary is still served")
	}
	disks = g.disks("az2")
	c.cut(g, disks, low, high)
	image := g.images(2)
	var old [2]block.Device
	for _, v := range image.Volumes {
		for i, p := range g.pairs {
			if p.id == v.PairID {
				disk, err := nbdclient.Dial(d.ctx, *v.URI)
				if err != nil {
					t.Fatal(err)
				}
				old[i] = disk
			}
		}
	}
	alone := newChains()
	for i := range after {
		alone.SetNewest(i, after[i])
	}
	if err := alone.inspect(d.ctx, old); err != nil {
		t.Errorf("the divergence image lacks what the old primary had acknowledged: %v", err)
	}
	closeAll(old)
	w.replication[node("az2", 1)].Join()
	w.replication[node("az1", 1)].Join()
	c.run(disks)
	d.eventually(patience, "reprotect is taken", func() error { return g.c.Act(g.ctx, g.id, client.ActionReprotect) })
	g.untilActive()
	flushAndCompare(g, c, disks)
}

func deref(s *string) string {
	if s == nil {
		return "null"
	}
	return *s
}

package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: the power of one or both hosts fails and comes back: what was flushed on either side is
// there, the sides become identical again, and the record tells the way: taking back [F2], a trip,
// or the primary's own image [F5].
func TestPowerLoss(t *testing.T) {
	for name, tc := range map[string]struct {
		nodes []string
		lost  bool // unflushed writes may be lost: both hosts lost power
	}{
		"primary": {nodes: []string{"a1"}}, "secondary": {nodes: []string{"b2"}}, "both": {nodes: []string{"a1", "b2"}, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, "a1", "b2")
			c.app2()
			c.active()
			l := newLoad(c)
			l.run(0, 3)
			l.progress(400)
			boots := c.record().BootIDs
			if tc.lost {
				l.halt()
				for i := range c.vols {
					if err := c.dev(c.vols[i][0]).Flush(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, id := range tc.nodes {
				c.nodes[lockstep.NodeID(id)].powerLoss(0.3)
			}
			if !tc.lost && name == "primary" {
				l.halt()
			}
			for _, id := range tc.nodes {
				c.nodes[lockstep.NodeID(id)].start()
			}
			c.eventually("the new boot ids are recorded", func() error {
				r := c.record()
				for _, id := range tc.nodes {
					if r.BootIDs[lockstep.NodeID(id)] == boots[lockstep.NodeID(id)] {
						return fmt.Errorf("%s has the old one; %s", id, r.Describe())
					}
				}
				return nil
			})
			c.await("available", "active", "0")
			if name == "secondary" {
				l.progress(100)
				l.halt()
			}
			l.check(0)
			c.same()
		})
	}
}

// Goal: an error of the primary's disk fails that volume, is seen, and allows a failover that
// loses nothing.
func TestPrimaryDiskFails(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	l := newLoad(c)
	l.run(0, 3)
	l.progress(200)
	bad := string(c.vols[0][0])
	c.nodes["a1"].fs.OnOp(failOnce(bad, "raw:fdatasync", syscall.EIO))
	c.await("available", "active", "2")
	l.halt()
	if l.errs.Load() == 0 {
		t.Error("no write failed")
	}
	c.act(control.ActionFailover)
	c.await("failovered", "active-stopped", "0")
	l.check(1)
	l.run(1, 2)
	l.progress(100)
	l.halt()
}

// failOnce fails the next operation of that kind. (Labels do not name the volume.)
func failOnce(_ string, op vfs.Op, err error) func(vfs.Op) error {
	failed := make(chan struct{}, 1)
	failed <- struct{}{}
	return func(o vfs.Op) error {
		if o != op {
			return nil
		}
		select {
		case <-failed:
			return err
		default:
			return nil
		}
	}
}

// Goal: an error of the secondary's disk, or its full pool, trips the group with the error shown;
// I/O at the primary goes on. A full pool heals by itself.
func TestSecondaryDiskFails(t *testing.T) {
	for name, err := range map[string]error{"error": syscall.EIO, "full": syscall.ENOSPC} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, "a1", "b2")
			c.app2()
			c.active()
			l := newLoad(c)
			l.run(0, 3)
			l.progress(200)
			c.nodes["b2"].fs.OnOp(func(o vfs.Op) error {
				if o == "raw:write" {
					return err
				}
				return nil
			})
			c.await("available", "error", "5")
			l.progress(200)
			c.nodes["b2"].fs.OnOp(nil)
			if errors.Is(err, syscall.ENOSPC) {
				c.await("available", "active", "0")
				l.halt()
				c.same()
			} else {
				time.Sleep(500 * time.Millisecond)
				if v := c.view(); v.ReplicationStatus == "active" {
					t.Errorf("a failed volume is %s again", v.ReplicationStatus)
				}
				l.halt()
			}
			l.check(0)
		})
	}
}

// Goal: a pair grows while it is written to; the new space replicates.
func TestExtendUnderLoad(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	l := newLoad(c)
	l.run(0, 3)
	l.progress(100)
	c.act(control.ActionExtend, control.Extend{Pair: c.pairs[0], SizeGiB: 2})
	dev := c.dev(c.vols[0][0])
	c.eventually("the new size is announced", func() error {
		if dev.Size() != 2*lockstep.GiB {
			return fmt.Errorf("%d bytes", dev.Size())
		}
		return nil
	})
	if err := dev.WriteAt(t.Context(), content(5), 2*lockstep.GiB-blockBytes, true); err != nil {
		t.Fatal(err)
	}
	l.progress(100)
	l.halt()
	c.await("available", "active", "0")
	c.same()
	l.check(0)
}

// Goal: a group that is taken apart leaves a plain volume with all that was written, and a DR
// volume that is not served; a new group of the pair starts from nothing and becomes identical,
// whatever was written in between.
func TestGroupDeletedAndMadeAnew(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	l := newLoad(c)
	l.run(0, 2)
	l.progress(200)
	c.act(control.ActionStop)
	c.await("available", "active-stopped", "0")
	ctx := t.Context()
	if _, err := c.ctl.UpdateGroup(ctx, caller, c.group, control.GroupUpdate{Remove: c.pairs}); err != nil {
		t.Fatal(err)
	}
	old := c.group
	c.eventually("the group is deleted", func() error { return c.ctl.DeleteGroup(ctx, caller, old) })
	c.eventually("the group is gone", func() error {
		_, err := c.ctl.GetGroup(ctx, caller, old)
		if err == nil {
			return errors.New("it is there")
		}
		return nil
	})
	l.progress(100) // plain
	if _, err := c.dev(c.vols[0][1]).Opening(); err == nil {
		t.Error("the DR volume is served")
	}
	var g control.GroupView
	c.eventually("a new group is made", func() error {
		var err error
		g, err = c.ctl.CreateGroup(ctx, caller, control.GroupCreate{Pairs: c.pairs, Priority: "az1", Model: "hypermetro"})
		return err
	})
	c.group = g.ID
	c.await("available", "inactive", "0")
	l.progress(100)
	c.active()
	l.progress(100)
	l.halt()
	c.same()
	l.check(0)
}

// Goal: a directory restored from an older copy becomes a stranger and is compared in full.
func TestDirectoryRestored(t *testing.T) {
	for name, storeAway := range map[string]bool{"store in reach": false, "store away at the start": true} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, "a1", "b2")
			c.app(1)
			c.active()
			l := newLoad(c)
			l.run(0, 3)
			l.progress(100)
			b := c.nodes["b2"]
			older := b.fs.CrashClone(rng(), 1)
			instance := c.record().Instances["b2"]
			l.progress(300)
			b.kill()
			b.start()
			c.eventually("the second start is registered", func() error {
				n, _, err := store.GetT[store.Node](t.Context(), c.mem, store.KeyNode("b2"))
				if err == nil && n.Start < 2 {
					err = fmt.Errorf("start %d", n.Start)
				}
				return err
			})
			c.await("available", "active", "0")
			b.kill()
			b.fs = older
			if storeAway {
				b.startWithout(t)
			}
			b.start()
			c.eventually("the new instance is recorded", func() error {
				if r := c.record(); r.Instances["b2"] == instance {
					return errors.New(r.Describe())
				}
				return nil
			})
			c.await("available", "active", "0")
			l.progress(100)
			l.halt()
			c.same()
			l.check(0)
		})
	}
}

// Goal: a directory that appears on another machine becomes a stranger, even with the right counter.
func TestDirectoryMoved(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	instance := c.record().Instances["b2"]
	b := c.nodes["b2"]
	b.kill()
	b.cfg.hostID = "another"
	b.start()
	c.eventually("the new instance is recorded", func() error {
		if r := c.record(); r.Instances["b2"] == instance {
			return errors.New(r.Describe())
		}
		return nil
	})
	c.await("available", "active", "0")
	c.same()
}

// startWithout starts the node with the store away and then back: it must end by itself.
func (p *proc) startWithout(t *testing.T) {
	t.Helper()
	cfg := p.cfg
	cfg.fs = p.fs
	cfg.started = func(*Node) {}
	client := p.c.mem.NewClient()
	client.SetDown(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	timer := time.AfterFunc(time.Second, func() { client.SetDown(false) })
	defer timer.Stop()
	err := RunOn(ctx, cfg, client, logger(t, "without"))
	if err == nil || !strings.Contains(err.Error(), "older copy") {
		t.Errorf("a node in an older directory ended with %v", err)
	}
	n, _, err := store.GetT[store.Node](context.Background(), p.c.mem, store.KeyNode(p.cfg.ID))
	if err != nil || n.Start < 2 {
		t.Errorf("the node's record was overwritten: %+v, %v", n, err)
	}
}

// Goal: a node that cannot open one of its volumes confirms nothing: a failover that would make it
// primary ends with the error, and the primary goes on.
func TestMissingVolumeIsNoConfirmation(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	l := newLoad(c)
	l.run(0, 2)
	l.progress(100)
	l.halt()
	b := c.nodes["b2"]
	b.kill()
	id := string(c.vols[0][1])
	if err := b.fs.Rename("test", filepath.Join(b.cfg.Pool, id+".meta"), filepath.Join(b.cfg.Pool, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	c.nodes["a1"].proxy.set(modeRefuse)
	c.nodes["a1"].kill() // nobody is there to trip
	b.start()
	if err := c.ctl.Act(t.Context(), caller, c.group, control.ActionFailover, nil); err != nil {
		t.Logf("failover refused: %v", err)
	}
	time.Sleep(2 * time.Second)
	if r := c.record(); r.Primary != "az1" || r.FailedOver {
		t.Fatalf("failed over to a node without the volume: %s", r.Describe())
	}
	if v := b.volume(lockstep.VolumeID(id)); v != nil {
		t.Error("the volume was made anew, empty")
	}
	c.nodes["a1"].start()
	l.run(0, 1)
	l.progress(50)
	l.halt()
	l.check(0)
}

// Goal: in sync and one-sided, I/O goes on without the store.
func TestStoreAway(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	l := newLoad(c)
	l.run(0, 2)
	l.progress(50)
	down := func(on bool) {
		for _, p := range c.nodes {
			p.client.SetDown(on)
		}
	}
	down(true)
	time.Sleep(time.Second)
	l.progress(200)
	down(false)
	c.nodes["b2"].proxy.set(modeRefuse)
	c.await("available", "inactive", "5")
	l.progress(50) // one-sided: a trip in its middle would wait for the store
	down(true)
	time.Sleep(time.Second)
	l.progress(200)
	down(false)
	c.nodes["b2"].proxy.set(modePass)
	c.await("available", "active", "0")
	l.halt()
	c.same()
	l.check(0)
}

// Goal: four nodes, two on each side: what a node holds may differ, and the group stays one.
func TestFourNodes(t *testing.T) {
	c := newCluster(t, "a1", "b1", "c2", "d2")
	c.app(4)
	c.active()
	l := newLoad(c)
	l.run(0, 2)
	l.progress(200)
	c.nodes["c2"].proxy.set(modeRefuse)
	c.await("available", "inactive", "5")
	l.progress(200)
	c.nodes["c2"].proxy.set(modePass)
	c.await("available", "active", "0")
	l.progress(100)
	c.reverse("az2")
	l.halt()
	c.same()
	l.check(1)
}

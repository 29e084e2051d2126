package node

import (
	"bytes"
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

// Goal: out of sync the newest writes are in the primary's directory alone. Moved to another machine
// it is neither overwritten from the secondary nor served unasked; an operator's word makes it count.
func TestDirectoryMovedOutOfSync(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	c.act(control.ActionStop)
	c.await("available", "active-stopped", "0")
	data := bytes.Repeat([]byte{0x5a}, 4096)
	if err := c.dev(c.vols[0][0]).WriteAt(t.Context(), data, 0, true); err != nil {
		t.Fatal(err)
	}
	p := c.nodes["a1"]
	p.shutdown()
	p.cfg.hostID = "another"
	p.start()
	c.await("available", "active-stopped", "5") // held, and why
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	got := make([]byte, 4096)
	if err := c.dev(c.vols[0][0]).ReadAt(ctx, got, 0); err == nil {
		t.Fatalf("a directory of unknown standing was served: it begins with %#x", got[0])
	}
	if err := c.ctl.Declare(t.Context(), caller, c.group, control.StateDirectory, "b2", "wrong node"); err == nil {
		t.Error("the statement was taken for a secondary node")
	}
	if err := c.ctl.Declare(t.Context(), caller, c.group, control.StateDirectory, "a1", "moved to a new host"); err != nil {
		t.Fatal(err)
	}
	c.await("available", "active-stopped", "0")
	if err := c.dev(c.vols[0][0]).ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %#x, %v", got[0], err)
	}
	c.act(control.ActionSync)
	c.active()
	c.same()
}

// Goal: a primary whose pool is lost starts in an empty one and serves nothing but what it has taken
// back in full, however late the new files are made. The new directory was started less often than the
// old one, which its secondary has heard of.
func TestLostPoolOfAPrimary(t *testing.T) {
	times := []int{0, 1, 3, 7, 40}
	if testing.Short() {
		times = []int{3}
	}
	for _, ms := range times {
		t.Run(fmt.Sprintf("syncs take %d ms", ms), func(t *testing.T) {
			c := newCluster(t, "a1", "b2")
			c.app2()
			c.active()
			p := c.nodes["a1"]
			p.shutdown()
			p.start()
			c.eventually("the second start is registered", func() error {
				n, _, err := store.GetT[store.Node](t.Context(), c.mem, store.KeyNode("a1"))
				if err == nil && n.Start < 2 {
					err = fmt.Errorf("start %d", n.Start)
				}
				return err
			})
			l := newLoad(c)
			l.run(0, 3)
			l.progress(200)
			l.halt()
			p.kill()
			p.fs = vfs.NewMem()
			p.mkdir()
			p.fs.OnOp(func(op vfs.Op) error {
				if op == "raw:fdatasync" {
					time.Sleep(time.Duration(ms) * time.Millisecond)
				}
				return nil
			})
			p.start()
			l.check(0)
			c.await("available", "active", "0")
			c.same()
		})
	}
}

// Goal: the directory of a primary is lost with its intent log, which named what the secondary had not
// flushed. What is taken back is durable at the secondary, too, before it counts: if its host loses
// power then, nothing is missing there that no map names.
func TestLostPoolAndThenAPowerLossOfTheSecondary(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	for _, id := range []lockstep.NodeID{"a1", "b2"} { // nothing but what the test asks for is flushed
		c.nodes[id].shutdown()
		c.nodes[id].cfg.FlushEvery = time.Hour
		c.nodes[id].start()
	}
	c.await("available", "active", "0")
	want := bytes.Repeat([]byte{0x5a}, 4096)
	c.eventually("a write is acknowledged", func() error {
		return c.dev(c.vols[0][0]).WriteAt(t.Context(), want, 0, false)
	})
	a1, b2 := c.nodes["a1"], c.nodes["b2"]
	a1.kill()
	a1.fs = vfs.NewMem()
	a1.mkdir()
	a1.start()
	read := func() error {
		have := make([]byte, len(want))
		v := a1.volume(c.vols[0][0])
		if v == nil {
			return errors.New("no volume yet")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := v.ReadAt(ctx, have, 0); err != nil {
			return err
		}
		if !bytes.Equal(have, want) {
			return errors.New("the acknowledged write is not there")
		}
		return nil
	}
	c.eventually("the primary has taken everything back", read)
	boot := c.record().BootIDs["b2"]
	b2.powerLoss(0)
	b2.start()
	c.eventually("it was synchronized again", func() error {
		if r := c.record(); r.BootIDs["b2"] == boot {
			return fmt.Errorf("%s", r.Describe())
		}
		return nil
	})
	c.await("available", "active", "0")
	if err := read(); err != nil {
		t.Error(err)
	}
	c.same()
}

// Goal: a disk error that only a job meets is the volume's, and the group does not stay as it was.
func TestDiskErrorDuringResync(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	c.act(control.ActionStop)
	c.await("available", "active-stopped", "0")
	if err := c.dev(c.vols[0][0]).WriteAt(t.Context(), bytes.Repeat([]byte{0x5a}, 4096), 0, true); err != nil {
		t.Fatal(err)
	}
	c.nodes["a1"].fs.OnOp(func(op vfs.Op) error {
		if op == "raw:read" {
			return syscall.EIO
		}
		return nil
	})
	c.act(control.ActionSync)
	c.await("available", "inactive", "5")
	if c.dev(c.vols[0][0]).Failed() == nil {
		t.Error("the volume has not failed")
	}
}

// Goal: a node that was down while its group was dissolved learns of it, and its volumes can be
// deleted; so does one that comes back with an empty pool.
func TestGroupDissolvedWhileANodeIsDown(t *testing.T) {
	for name, lost := range map[string]bool{"with its pool": false, "with an empty pool": true} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, "a1", "b2")
			c.app2()
			c.active()
			b := c.nodes["b2"]
			b.kill()
			c.await("available", "inactive", "5")
			ctx, v := t.Context(), c.view()
			c.act(control.ActionStop)
			if _, err := c.ctl.UpdateGroup(ctx, caller, v.ID, control.GroupUpdate{Remove: v.Pairs}); err != nil {
				t.Fatal(err)
			}
			c.eventually("updated", func() error {
				if g := c.view(); g.Status != "available" || len(c.record().Untold) != 1 {
					return fmt.Errorf("%s, untold %v", g.Status, c.record().Untold)
				}
				return nil
			})
			if err := c.ctl.DeleteGroup(ctx, caller, v.ID); err != nil {
				t.Fatal(err)
			}
			for _, p := range v.Pairs {
				if err := c.ctl.DeletePair(ctx, caller, p); err != nil {
					t.Fatal(err)
				}
			}
			if lost {
				b.fs = vfs.NewMem()
				b.mkdir()
			}
			b.start()
			for _, pair := range c.vols {
				for _, id := range pair {
					if err := c.ctl.DeleteVolume(ctx, caller, id); err != nil {
						t.Fatal(err)
					}
				}
			}
			c.eventually("everything is gone", func() error {
				kvs, _, err := c.mem.List(ctx, "")
				if err != nil {
					return err
				}
				for _, kv := range kvs {
					for _, prefix := range []string{"volumes/", "records/", "answers/", "observed/", "history/"} {
						if len(kv.Key) > len(prefix) && kv.Key[:len(prefix)] == prefix {
							return fmt.Errorf("%s is still there", kv.Key)
						}
					}
				}
				return nil
			})
		})
	}
}

// Goal: a synchronization whose recovery point would not fit is not begun, says so, and overwrites
// nothing; it begins by itself when there is room.
func TestNoRoomForTheRecoveryPoint(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	c.eventually("the primary has adopted that it is in sync", func() error { // else it still takes all for dirty
		if v, ok := c.nodes["a1"].running().host.View(c.group); !ok || !v.Adopted || !v.Record.InSync {
			return errors.New(v.Record.Describe())
		}
		return nil
	})
	c.act(control.ActionStop)
	c.await("available", "active-stopped", "0")
	mib := bytes.Repeat([]byte{1}, 1<<20)
	dev := c.dev(c.vols[0][0])
	for off := int64(0); off < 8<<20; off += 1 << 20 {
		if err := dev.WriteAt(t.Context(), mib, off, false); err != nil {
			t.Fatal(err)
		}
	}
	b := c.nodes["b2"]
	total, free, err := b.fs.Space("")
	if err != nil {
		t.Fatal(err)
	}
	b.fs.SetTotal(total - free + 4<<20)
	c.act(control.ActionSync)
	g := c.await("available", "inactive", "5")
	if !strings.Contains(g.Reason, "recovery point: 8388608 bytes are known to differ") {
		t.Errorf("reason %q", g.Reason)
	}
	b.fs.SetTotal(total)
	c.await("available", "active", "0")
	c.same()
}

// Goal: files of a member that are gone from the very directory that the record names are not made
// anew, empty: the group holds and says so, and a failover loses nothing.
func TestDeletedFilesOfAMemberAreNotMadeAnew(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	p, id := c.nodes["a1"], c.vols[0][0]
	p.kill()
	for _, ext := range []string{".raw", ".meta"} {
		if err := p.fs.Remove("test", filepath.Join(p.cfg.Pool, string(id)+ext)); err != nil {
			t.Fatal(err)
		}
	}
	p.start()
	c.eventually("the group says which files are missing", func() error {
		if g := c.view(); g.FaultLevel != "2" || !strings.Contains(g.Reason, string(id)) {
			return fmt.Errorf("%s %q", g.FaultLevel, g.Reason)
		}
		return nil
	})
	time.Sleep(3 * time.Second) // some reconciliations
	if p.volume(id) != nil {
		t.Error("the volume was made anew")
	}
	c.act(control.ActionFailover)
	c.await("failovered", "active-stopped", "")
}

// Goal: a node that started from an older copy of its directory while the store was away serves nothing
// of it when the store is back, although it reads the group's record before it has looked at its own.
func TestOlderCopyStartedWithoutTheStore(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	c.act(control.ActionStop)
	c.await("available", "active-stopped", "0")
	p := c.nodes["a1"]
	write := func(fill byte) {
		t.Helper()
		if err := c.dev(c.vols[0][0]).WriteAt(t.Context(), bytes.Repeat([]byte{fill}, 4096), 0, true); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	p.shutdown()
	older := p.fs.CrashClone(rng(), 1)
	p.start()
	c.await("available", "active-stopped", "0")
	write(2)
	p.shutdown()
	p.fs, p.cutOff = older, true
	p.start()
	time.Sleep(20 * time.Millisecond) // the next look at the records is sooner than that at the directory
	p.client.SetDown(false)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make([]byte, 4096)
	read := make(chan error, 1)
	go func() {
		err := errors.New("there is no such volume")
		for ctx.Err() == nil && err != nil { // held requests wait; before that the volume may not be open
			if v := p.volume(c.vols[0][0]); v != nil {
				err = v.ReadAt(ctx, got, 0)
			}
		}
		read <- err
	}()
	select {
	case err := <-p.done:
		p.mu.Lock()
		p.node, p.stop = nil, nil
		p.mu.Unlock()
		if err == nil || !strings.Contains(err.Error(), "older copy") {
			t.Fatalf("the node ended with %v", err)
		}
	case <-time.After(slow * 20 * time.Second):
		t.Fatal("the node runs on with an older copy of its directory")
	}
	cancel()
	if err := <-read; err == nil {
		t.Fatalf("the older copy was served: it has %d, the last write was 2", got[0])
	}
	p.cutOff = false
	p.start()
	c.await("available", "active-stopped", "5") // an operator must say whether it counts
}

// Goal: a node whose pool is lost starts to count its starts anew; its secondaries have seen later
// sessions of it, and take its new ones all the same.
func TestLostPoolOfANodeThatWasStartedOften(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	p := c.nodes["a1"]
	for range 2 {
		p.shutdown()
		p.start()
		c.await("available", "active", "0")
	}
	if err := c.dev(c.vols[0][0]).WriteAt(t.Context(), bytes.Repeat([]byte{7}, 4096), 0, true); err != nil {
		t.Fatal(err)
	}
	p.kill()
	p.fs = vfs.NewMem()
	p.mkdir()
	p.start()
	c.await("available", "active", "0")
	got := make([]byte, 4096)
	ctx, cancel := context.WithTimeout(t.Context(), slow*20*time.Second)
	defer cancel()
	if err := c.dev(c.vols[0][0]).ReadAt(ctx, got, 0); err != nil || got[0] != 7 {
		t.Fatalf("read %d: %v", got[0], err)
	}
	c.same()
}

// Goal: a node that was started once in an empty directory, because the right one was not mounted, is
// no stranger when it is started in the right one again.
func TestStartedOnceInTheWrongDirectory(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	c.act(control.ActionStop)
	c.await("available", "active-stopped", "0")
	p := c.nodes["a1"]
	p.shutdown()
	right := p.fs
	p.fs = vfs.NewMem()
	p.mkdir()
	p.start()
	p.registered()
	p.shutdown()
	p.fs = right
	p.start()
	c.await("available", "active-stopped", "0")
	ctx, cancel := context.WithTimeout(t.Context(), slow*20*time.Second)
	defer cancel()
	if err := c.dev(c.vols[0][0]).WriteAt(ctx, make([]byte, 4096), 0, true); err != nil {
		t.Fatal(err)
	}
	c.act(control.ActionSync)
	c.active()
	c.same()
}

// registered waits until the store knows the directory.
func (p *proc) registered() {
	p.c.t.Helper()
	p.c.eventually("the node has registered", func() error {
		n, _, err := store.GetT[store.Node](p.c.t.Context(), p.c.mem, store.KeyNode(p.cfg.ID))
		if err == nil && n.Instance != p.running().pool.InstanceID() {
			err = errors.New("not yet")
		}
		return err
	})
}

// Goal: after a lost pool the node ran in an empty directory for a while; the backup of the lost one
// that is put in its place is an older copy all the same.
func TestBackupAfterALostPool(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	c.act(control.ActionStop)
	c.await("available", "active-stopped", "0")
	p := c.nodes["a1"]
	p.shutdown()
	backup := p.fs.CrashClone(rng(), 1)
	p.start()
	c.await("available", "active-stopped", "0")
	if err := c.dev(c.vols[0][0]).WriteAt(t.Context(), bytes.Repeat([]byte{2}, 4096), 0, true); err != nil {
		t.Fatal(err)
	}
	p.registered()
	p.kill()
	p.fs = vfs.NewMem()
	p.mkdir()
	p.start()
	p.registered()
	p.shutdown()
	p.fs = backup
	p.start()
	p.registered()
	c.await("available", "active-stopped", "5") // held, and why
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	got := make([]byte, 4096)
	if err := c.dev(c.vols[0][0]).ReadAt(ctx, got, 0); err == nil {
		t.Fatalf("the backup was served: it has %d, the last write was 2", got[0])
	}
}

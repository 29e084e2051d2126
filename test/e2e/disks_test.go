package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
	"github.com/lockstep-dr/lockstep/test/need"
)

// smallPool puts a file system in memory of that size, in MiB, under a node's pool, which must be empty.
func (d *deployment) smallPool(member string, mib int) string {
	d.t.Helper()
	need.Root(d.t, "mounting a small file system")
	d.stop(member)
	az, n, _ := strings.Cut(member, "/node-")
	pool := filepath.Join(d.dir, az, "pool-"+n)
	for _, err := range []error{os.RemoveAll(pool), os.Mkdir(pool, 0o700)} {
		if err != nil {
			d.t.Fatal(err)
		}
	}
	size := "size=" + bytesOf(mib)
	if err := unix.Mount("tmpfs", pool, "tmpfs", 0, size); err != nil {
		need.Missing(d.t, "mount a small file system: %v", err)
	}
	d.mounts = append(d.mounts, pool)
	d.start(member)
	d.untilAlive(member)
	return pool
}

// thinPool puts a file system on a device that promises more than it has under a node's pool, and
// gives the directory where the device's space comes from: when that is full, data that the page
// cache has taken cannot be flushed.
func (d *deployment) thinPool(member string) string {
	d.t.Helper()
	need.Programs(d.t, "mkfs.ext4", "mount")
	space := d.smallPool(member, 400)
	d.stop(member) // before its pool is hidden
	image := filepath.Join(space, "device")
	pool := filepath.Join(d.dir, "thin")
	if err := os.Mkdir(pool, 0o700); err != nil {
		d.t.Fatal(err)
	}
	d.tool("truncate", "-s", "4G", image)
	d.tool("mkfs.ext4", "-q", image)
	if out, err := exec.Command("mount", "-o", "loop", image, pool).CombinedOutput(); err != nil {
		need.Missing(d.t, "mount a thin device: %v: %s", err, out)
	}
	d.mounts = append([]string{pool}, d.mounts...)
	// `lockstep dev` would write the old pool again: it is not started twice in such a test.
	d.reconfigure(map[string]map[string]string{member: {"pool": pool}})
	return space
}

// fillPool takes a pool's space but for so many MiB, and gives the file that does.
func fillPool(t *testing.T, pool string, leave int) string {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(pool, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(pool, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-int64(leave)<<20); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func TestAVolumeThatDoesNotFitIsAnErrorAndNothingElse(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	pool := d.smallPool(node("az1", 1), 1300)
	// The controller has seen the space, and would place the volume there; then it is gone.
	d.eventually(patience, "the space of the pool is known", func() error {
		nodes, err := d.c.Nodes(d.ctx)
		for _, n := range nodes {
			if n.ID == "az1-node-1" && n.TotalBytes == 1300<<20 {
				return err
			}
		}
		return errors.Join(err, errNotYet)
	})
	ballast := fillPool(t, pool, 100)
	v, err := d.c.CreateVolume(d.ctx, client.VolumeCreate{SizeGiB: 1, AvailabilityZone: "az1"})
	var refused *client.Error
	switch {
	case errors.As(err, &refused) && refused.Status == 413: // the node's new report was faster
		if !strings.Contains(refused.Message, "free") {
			t.Errorf("refused with %q", refused.Message)
		}
	case err != nil:
		t.Fatal(err)
	default:
		d.eventually(patience, "the volume is in error", func() error {
			got, err := d.c.Volume(d.ctx, v.ID)
			if err == nil && got.Status != "error" {
				err = errors.New("status " + got.Status)
			}
			return err
		})
		if err := d.c.DeleteVolume(d.ctx, v.ID); err != nil {
			t.Fatal(err)
		}
		d.eventually(patience, "the volume is gone", func() error {
			if _, err := d.c.Volume(d.ctx, v.ID); !client.IsNotFound(err) {
				return errors.Join(err, errNotYet)
			}
			return nil
		})
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	d.eventually(patience, "a volume fits again", func() error {
		_, err := d.c.CreateVolume(d.ctx, client.VolumeCreate{SizeGiB: 1, AvailabilityZone: "az1"})
		return err
	})
}

func TestAFullPrimaryPoolStopsTheVolumeAndLosesNothing(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	pool := d.smallPool(node("az1", 1), 2500)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	if err := c.stop(g); err != nil {
		t.Fatal(err)
	}
	ballast := fillPool(t, pool, 8)
	acked := 0
	disk := g.open(g.pairs[0], "az1")
	block := bytes.Repeat([]byte{0xa5}, 1<<20)
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	var err error
	for off := int64(chainBytes); off < gib-2<<20; off += 1 << 20 {
		if err = disk.WriteAt(ctx, block, off, false); err != nil {
			break
		}
		acked++
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("after %d MiB: %v; want ENOSPC", acked, err)
	}
	g.until(10*time.Second, "available", "active", "2")
	if err := disk.ReadAt(ctx, block, 0); err == nil {
		t.Error("a failed volume is read")
	}
	g.failover()
	there := g.disks("az2")
	if err := c.inspect(d.ctx, there); err != nil {
		t.Fatal(err)
	}
	for i := range acked {
		if err := there[0].ReadAt(ctx, block, chainBytes+int64(i)<<20); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(block, bytes.Repeat([]byte{0xa5}, 1<<20)) {
			t.Fatalf("MiB %d was acknowledged and is not there", i)
		}
	}

	// Room is made, the node starts again, and it is a secondary as good as any.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	d.kill(node("az1", 1))
	d.start(node("az1", 1))
	d.untilAlive(node("az1", 1))
	g.act(client.ActionReprotect)
	g.untilActive()
	c.run(there)
	c.progress(g, patience, 200)
	flushAndCompare(g, c, there)
}

func TestAFullSecondaryPoolIsAnErrorAndWritesGoOn(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	pool := d.smallPool(node("az2", 1), 2500)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	ballast := fillPool(t, pool, 4)
	disk := g.open(g.pairs[0], "az1")
	block := bytes.Repeat([]byte{0x5a}, 1<<20)
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	for off := int64(chainBytes); off < chainBytes+32<<20; off += 1 << 20 {
		if err := disk.WriteAt(ctx, block, off, false); err != nil {
			t.Fatalf("the primary's client sees the secondary's full pool: %v", err)
		}
	}
	g.until(15*time.Second, "available", "error", "5")
	c.progress(g, patience, 200)
	g.refused("5")
	g.until(5*time.Second, "available", "error", "5")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	g.act(client.ActionSync)
	g.untilActive()
	c.progress(g, patience, 200)
	flushAndCompare(g, c, disks)
}

// TestABrokenPrimaryDiskFailsTheVolumeAndCanBeFailedOver: the file is cut short under the node, so
// a read of it fails as a bad sector does.
func TestABrokenPrimaryDiskFailsTheVolumeAndCanBeFailedOver(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	if err := c.stop(g); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.raw(g.pairs[0], "az1"), 512<<20); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	if err := disks[0].ReadAt(ctx, make([]byte, 4096), 700<<20); !errors.Is(err, syscall.EIO) {
		t.Fatalf("read of a broken disk: %v", err)
	}
	g.until(10*time.Second, "available", "active", "2")
	if err := disks[0].WriteAt(ctx, make([]byte, 4096), 0, false); !errors.Is(err, syscall.EIO) {
		t.Errorf("write to a failed volume: %v", err)
	}
	if err := disks[1].WriteAt(ctx, make([]byte, 4096), gib-4096, false); err != nil {
		t.Errorf("write to the group's other volume: %v", err)
	}
	g.failover()
	if err := c.inspect(d.ctx, g.disks("az2")); err != nil {
		t.Fatal(err)
	}
}

// TestABrokenSecondaryDiskIsShownAndWritesGoOn: the file is cut short, and a synchronization, which
// compares, reads it.
func TestABrokenSecondaryDiskIsShownAndWritesGoOn(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	g.act(client.ActionStop)
	disk := g.open(g.pairs[0], "az1")
	d.writes(disk, 700<<20, 5*time.Second)
	if err := os.Truncate(d.raw(g.pairs[0], "az2"), 512<<20); err != nil {
		t.Fatal(err)
	}
	g.act(client.ActionSync)
	g.until(15*time.Second, "available", "error", "5")
	c.progress(g, patience, 200)
	g.refused("5")
	if err := c.stop(g); err != nil {
		t.Error(err)
	}
}

// TestAFailedFlushIsPermanentAndCanBeFailedOver: the kernel took the data and could not write it;
// a later fdatasync that succeeds proves nothing.
func TestAFailedFlushIsPermanentAndCanBeFailedOver(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	space := d.thinPool(node("az1", 1))
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 500)
	if err := c.stop(g); err != nil {
		t.Fatal(err)
	}
	ballast := fillPool(t, space, 4)
	disk := g.open(g.pairs[0], "az1")
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	block := make([]byte, 1<<20)
	acked := 0
	for ; acked < 64; acked++ {
		for i := range block {
			block[i] = byte(acked + i)
		}
		if err := disk.WriteAt(ctx, block, chainBytes+int64(acked)<<20, false); err != nil {
			break // the background flush may fail before the client's own
		}
	}
	if err := disk.Flush(ctx); err == nil {
		t.Fatal("a flush succeeds on a device that has no space")
	}
	g.until(15*time.Second, "available", "active", "2")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := disk.Flush(ctx); err == nil {
		t.Error("a flush succeeds after one that failed")
	}
	if err := disk.WriteAt(ctx, block, 0, false); err == nil {
		t.Error("a write is taken after a flush that failed")
	}
	g.failover()
	there := g.disks("az2")
	if err := c.inspect(d.ctx, there); err != nil {
		t.Fatal(err)
	}
	have := make([]byte, 1<<20)
	for n := range acked {
		for i := range block {
			block[i] = byte(n + i)
		}
		if err := there[0].ReadAt(ctx, have, chainBytes+int64(n)<<20); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, block) {
			t.Fatalf("MiB %d was acknowledged and is not there", n)
		}
	}
}

func TestTheDiskOfASecondaryIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	p := d.pair(1)
	refusedTo := func(name string, args ...string) {
		t.Helper()
		need.Programs(t, name)
		ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "LIBNBD_DEBUG=1") // libnbd keeps the server's text to itself otherwise
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Fatalf("%s opens a DR disk: %s", name, out)
		}
		if !bytes.Contains(out, []byte("az1")) { // where the primary is
			t.Errorf("%s does not say where the primary is: %s", name, out)
		}
	}
	uri := d.uri(p.disk["az2"], p.node["az2"])
	refusedTo("qemu-img", "info", uri)
	g := d.syncedGroup(p)
	refusedTo("qemu-img", "info", uri)
	refusedTo("qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", uri)
	refusedTo("nbdinfo", uri)
	g.failover()
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "nbdinfo", uri).CombinedOutput(); err != nil {
		t.Errorf("after a failover: %v: %s", err, out)
	}
}

// TestExtendWhileCopying grows a pair in the middle of its first synchronization, under writes: the
// call is taken, the copying goes on, and both sides are equal to the last byte of the new size.
func TestExtendWhileCopying(t *testing.T) {
	// Alone: it reads 4 GiB in the end, which would make others late.
	d := deploy(t, 1)
	w := d.wired()
	g := d.group(d.pair(1))
	p := g.pairs[0]
	disk := g.open(p, "az1")
	data := make([]byte, 24<<20)
	_, _ = rand.Read(data) // never fails
	if err := disk.WriteAt(d.ctx, data, 1<<20, false); err != nil {
		t.Fatal(err)
	}
	w.replication[node("az2", 1)].Limit(4 << 20)
	g.act(client.ActionSync)
	g.until(5*time.Second, "available", "copying", "0")
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() { // writes to what is copied, what was, and what is not
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			case <-time.After(5 * time.Millisecond):
			}
			if err := disk.WriteAt(d.ctx, data[i%1000*4096:][:4096], i*7919%(30<<20)/4096*4096, i%8 == 0); err != nil {
				stopped <- err
				return
			}
		}
	}()
	if err := d.c.ExtendPairs(d.ctx, g.id, []client.Growth{{PairID: p.id, NewSizeGiB: 2}}); err != nil {
		t.Fatal(err)
	}
	g.until(time.Second, "available", "copying", "0")
	grown := g.open(p, "az1")
	if grown.Size() != 2*gib {
		t.Errorf("the disk shows %d bytes", grown.Size())
	}
	if err := grown.WriteAt(d.ctx, data[:1<<20], 2*gib-1<<20, false); err != nil {
		t.Fatal(err)
	}
	w.replication[node("az2", 1)].Limit(0)
	g.untilActive()
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatalf("a write failed: %v", err)
	}
	for _, c := range []*nbdclient.Client{disk, grown} {
		if err := c.Flush(d.ctx); err != nil {
			t.Fatal(err)
		}
	}
	d.sameFiles(p)
	// What was written into the new part is there after a failover.
	g.failover()
	there := g.open(p, "az2")
	got := make([]byte, 1<<20)
	if err := there.ReadAt(d.ctx, got, 2*gib-1<<20); err != nil || !bytes.Equal(got, data[:1<<20]) {
		t.Errorf("the new part after the failover: %v, equal %v", err, bytes.Equal(got, data[:1<<20]))
	}
}

package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

func TestPoolIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pool")
	p, err := OpenPool(dir, Options{Logger: quiet()})
	must(t, err)
	id := p.InstanceID()
	if len(id) != 36 || p.StartCounter() != 1 {
		t.Fatalf("instance %q, start %d", id, p.StartCounter())
	}
	if _, err := OpenPool(dir, Options{Logger: quiet()}); !errors.Is(err, ErrInUse) {
		t.Fatalf("second open of a pool in use: %v", err)
	}
	boot, err := p.BootID()
	must(t, err)
	kernel, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	if !strings.HasPrefix(string(boot), strings.TrimSpace(string(kernel))+"/") {
		t.Fatalf("boot id %q", boot)
	}
	must(t, p.Close())
	must(t, p.Close())
	p, err = OpenPool(dir, Options{Logger: quiet()})
	must(t, err)
	again, err := p.BootID()
	must(t, err)
	if p.InstanceID() != id || p.StartCounter() != 2 || again != boot {
		t.Fatalf("after a restart: instance %q, start %d, boot %q", p.InstanceID(), p.StartCounter(), again)
	}
	must(t, p.Close())
	fake := filepath.Join(t.TempDir(), "boot")
	must(t, os.WriteFile(fake, []byte("other\n"), 0o600))
	p, err = OpenPool(dir, Options{Logger: quiet(), BootIDPath: fake})
	must(t, err)
	if b, _ := p.BootID(); b == boot || !strings.HasPrefix(string(b), "other/") {
		t.Fatalf("boot id of another boot: %q", b)
	}
	must(t, p.Close())
	node := filepath.Join(dir, nodeFile)
	data, err := os.ReadFile(node)
	must(t, err)
	must(t, os.WriteFile(node, bytes.Replace(data, []byte(`"start_counter": 3`), []byte(`"start_counter": 2`), 1), 0o600))
	if _, err := OpenPool(dir, Options{Logger: quiet()}); !errors.Is(err, lockstep.ErrCorrupt) {
		t.Fatalf("changed node.json: %v", err)
	}
}

func TestBootIDNewAfterPowerLoss(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	a, err := p.BootID()
	must(t, err)
	c := m.CrashClone(newRand(1), 0)
	b, err := openMem(t, c).BootID()
	must(t, err)
	if a == b {
		t.Fatalf("boot id %q survived", a)
	}
}

func TestVolumeLifeCycle(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "vol.a", 8*mib)
	if w := create(t, p, "vol.a", 8*mib); w != v {
		t.Fatal("a repeated create gave another handle")
	}
	if _, err := p.Create("vol.a", 9*mib); !errors.Is(err, lockstep.ErrExists) {
		t.Fatalf("create with another size: %v", err)
	}
	create(t, p, "b", mib)
	must(t, v.WriteAt(fill(3, 4096), mib))
	p = reopen(t, p, m)
	ids, err := p.Volumes()
	must(t, err)
	if !slices.Equal(ids, []lockstep.VolumeID{"b", "vol.a"}) {
		t.Fatalf("volumes %v", ids)
	}
	if err := v.WriteAt(fill(3, 4096), 0); !errors.Is(err, ErrClosed) || errors.Is(err, lockstep.ErrVolumeFailed) {
		t.Fatalf("write to a closed volume: %v", err)
	}
	v = open(t, p, "vol.a")
	expect(t, v, mib, 4096, 3)
	must(t, p.Remove("vol.a"))
	must(t, p.Remove("vol.a"))
	if _, err := p.Open("vol.a"); !errors.Is(err, lockstep.ErrNotFound) {
		t.Fatalf("open of a removed volume: %v", err)
	}
	if err := v.Sync(); !errors.Is(err, ErrClosed) || v.Failed() != nil {
		t.Fatalf("sync of a removed volume: %v, failed %v", err, v.Failed())
	}
	v = create(t, p, "vol.a", 8*mib)
	expect(t, v, mib, 4096, 0)
	for _, id := range []lockstep.VolumeID{"", "a/b", ".a", "..", "x\x00", lockstep.VolumeID(strings.Repeat("x", 300))} {
		if _, err := p.Create(id, mib); err == nil {
			t.Errorf("create accepted the id %q", id)
		}
	}
	for _, size := range []int64{0, -512, 1000, maxVolumeBytes + 512} {
		if _, err := p.Create("c", size); err == nil {
			t.Errorf("create accepted the size %d", size)
		}
	}
}

func TestCreateSpace(t *testing.T) {
	m := vfs.NewMem()
	m.SetTotal(1 << 30)
	p := openMem(t, m)
	if _, err := p.Create("a", 1<<30); !errors.Is(err, lockstep.ErrNoSpace) {
		t.Fatalf("create beyond the free space: %v", err)
	}
	if ids, _ := p.Volumes(); len(ids) != 0 {
		t.Fatalf("left behind: %v", ids)
	}
	create(t, p, "a", 512*mib)
}

// TestCreateKeepsForeignData: a raw file with data but without metadata is not overwritten.
func TestCreateKeepsForeignData(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	f, err := m.OpenFile("x", "/pool/a.raw", vfs.Create)
	must(t, err)
	_, err = f.WriteAt(fill(1, 512), 4096)
	must(t, err)
	must(t, f.Truncate(mib))
	if _, err := p.Create("a", mib); !errors.Is(err, lockstep.ErrExists) {
		t.Fatalf("create over foreign data: %v", err)
	}
	must(t, p.RebuildMeta("a"))
	v := open(t, p, "a")
	expect(t, v, 4096, 512, 1)
	if v.IntentBytes() != lockstep.RegionBytes || v.DirtyBytes() != mib {
		t.Fatalf("rebuilt metadata: %d marked, %d dirty", v.IntentBytes(), v.DirtyBytes())
	}
}

func TestGroups(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	if _, err := p.LoadGroup("g"); !errors.Is(err, lockstep.ErrNotFound) {
		t.Fatalf("load of a missing group: %v", err)
	}
	must(t, p.SaveGroup("g", []byte("one")))
	must(t, p.SaveGroup("g", []byte("two")))
	must(t, p.SaveGroup("h", nil))
	p = reopen(t, p, m)
	if b, err := p.LoadGroup("g"); err != nil || string(b) != "two" {
		t.Fatalf("group g: %q %v", b, err)
	}
	if b, err := p.LoadGroup("h"); err != nil || len(b) != 0 {
		t.Fatalf("group h: %q %v", b, err)
	}
	must(t, m.Rename("x", "/pool/groups/g.state", "/pool/groups/h.state"))
	if _, err := p.LoadGroup("h"); !errors.Is(err, lockstep.ErrCorrupt) {
		t.Fatalf("a group's file under another name: %v", err)
	}
	ids, err := p.Groups()
	must(t, err)
	if !slices.Equal(ids, []lockstep.GroupID{"h"}) {
		t.Fatalf("groups %v", ids)
	}
	must(t, p.DeleteGroup("h"))
	must(t, p.DeleteGroup("h"))
	if ids, _ := p.Groups(); len(ids) != 0 {
		t.Fatalf("groups %v", ids)
	}
	failOp(m, "group:rename", errIO)
	if err := p.SaveGroup("g", []byte("x")); !errors.Is(err, errIO) {
		t.Fatalf("save with a failing rename: %v", err)
	}
	failOp(m, "group:write", syscall.ENOSPC)
	if err := p.SaveGroup("g", []byte("x")); !errors.Is(err, lockstep.ErrNoSpace) {
		t.Fatalf("save on a full pool: %v", err)
	}
}

// TestCopiedPool copies the files of a closed pool, as an operator would, and opens the copy.
func TestCopiedPool(t *testing.T) {
	dir := t.TempDir()
	p, err := OpenPool(filepath.Join(dir, "a"), Options{Logger: quiet()})
	must(t, err)
	v := create(t, p, "v", 4*mib)
	must(t, v.MarkIntent(0, 1))
	must(t, v.MarkDirty(mib, 1))
	must(t, v.WriteAt(fill(9, 4096), mib))
	must(t, p.SaveGroup("g", []byte("blob")))
	must(t, p.Close())
	must(t, os.CopyFS(filepath.Join(dir, "b"), os.DirFS(filepath.Join(dir, "a"))))
	q, err := OpenPool(filepath.Join(dir, "b"), Options{Logger: quiet()})
	must(t, err)
	defer func() { must(t, q.Close()) }()
	w := open(t, q, "v")
	expect(t, w, mib, 4096, 9)
	if q.InstanceID() != p.InstanceID() || len(w.Intent()) != 1 || w.DirtyBytes() != lockstep.ChunkBytes {
		t.Fatalf("the copy differs: %s, %v, %d", q.InstanceID(), w.Intent(), w.DirtyBytes())
	}
	raw, err := os.ReadFile(filepath.Join(dir, "b", "v.raw"))
	must(t, err)
	if int64(len(raw)) != 4*mib || raw[mib] != 9 {
		t.Fatal("the raw file is not the plain image of the volume")
	}
}

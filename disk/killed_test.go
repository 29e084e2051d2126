package disk

import (
	"errors"
	"testing"

	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// These tests kill the process at one given operation, let the next process rely on what it finds,
// and then cut the power: what lay in the page cache only must not have been relied upon.

// kill makes do end at op and opens the pool again.
func kill(t *testing.T, m *vfs.Mem, p *Pool, op vfs.Op, do func() error) *Pool {
	t.Helper()
	failOp(m, op, vfs.ErrGone)
	if err := do(); !errors.Is(err, vfs.ErrGone) {
		t.Fatalf("killed at %s: %v", op, err)
	}
	// The process is gone: it cannot record a failure either.
	must(t, p.Close())
	m.OnOp(nil)
	if err := m.Remove("x", "/pool/v.failed"); err != nil {
		t.Fatal(err)
	}
	return openMem(t, m)
}

func TestKilledBeforeUndoSync(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 8*mib)
	must(t, v.WriteAt(fill(1, mib), 0))
	must(t, v.Sync())
	must(t, v.SetPoint(2, 1))
	p = kill(t, m, p, "undo:fdatasync", func() error { return v.Preserve(exts(ext(0, mib))) })
	v = open(t, p, "v")
	overwrite(t, v, 0, mib, 2)
	must(t, v.Sync())
	v = open(t, openMem(t, m.CrashClone(newRand(1), 0)), "v")
	_, err := v.Rollback()
	must(t, err)
	expect(t, v, 0, mib, 1)
}

func TestKilledBeforeIntentSync(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 64*mib)
	p = kill(t, m, p, "meta:fdatasync", func() error { return v.MarkIntent(0, 1) })
	v = open(t, p, "v")
	must(t, v.MarkIntent(0, 1))
	v = open(t, openMem(t, m.CrashClone(newRand(1), 0)), "v")
	if !covered(v.Intent(), ext(0, 1)) {
		t.Fatal("a mark that only the page cache had was taken for durable")
	}
}

// TestTornAfterRestart tears the first image that a restarted process writes of each map: what the
// process before had made durable must be in the other slot.
func TestTornAfterRestart(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 64*mib)
	must(t, v.MarkIntent(0, 1))
	must(t, v.AddDirty(exts(ext(0, 1))))
	p = reopen(t, p, m)
	v = open(t, p, "v")
	must(t, v.MarkDirty(mib, 1))
	failOp(m, "meta:fdatasync", vfs.ErrGone)
	if err := v.MarkIntent(32*mib, 1); !errors.Is(err, vfs.ErrGone) {
		t.Fatal(err)
	}
	for seed := range uint64(300) {
		c := open(t, openMem(t, m.CrashClone(newRand(seed), 0.8)), "v")
		if !covered(c.Intent(), ext(0, 1)) || !c.Dirty().Get(0) || c.DamagedPages() != 0 {
			t.Fatalf("seed %d: marked %v, first chunk dirty %v, damaged %d", seed, c.Intent(), c.Dirty().Get(0), c.DamagedPages())
		}
	}
}

// TestInterruptedRemove: a removal that was begun is finished by the next OpenPool, and the name is
// free then.
func TestInterruptedRemove(t *testing.T) {
	for _, op := range []vfs.Op{"remove:syncdir", "remove:remove"} {
		m := vfs.NewMem()
		p := openMem(t, m)
		v := create(t, p, "v", 8*mib)
		must(t, v.WriteAt(fill(1, mib), 0))
		must(t, v.SetPoint(2, 1))
		failOp(m, op, vfs.ErrGone)
		if err := p.Remove("v"); !errors.Is(err, vfs.ErrGone) {
			t.Fatal(err)
		}
		m.OnOp(nil)
		p = reopen(t, p, m)
		if ids, err := p.Volumes(); err != nil || len(ids) != 0 {
			t.Fatalf("volumes %v, %v", ids, err)
		}
		v = create(t, p, "v", 16*mib)
		expect(t, v, 0, mib, 0)
		if _, ok := v.Point(); ok {
			t.Fatal("a removed volume left its recovery point")
		}
	}
}

// TestInterruptedCreate kills Create at each of its operations; the next one succeeds.
func TestInterruptedCreate(t *testing.T) {
	for at := 1; ; at++ {
		m := vfs.NewMem()
		p := openMem(t, m)
		n := 0
		m.OnOp(func(vfs.Op) error {
			if n++; n >= at {
				return vfs.ErrGone
			}
			return nil
		})
		_, err := p.Create("v", 8*mib)
		m.OnOp(nil)
		if err == nil {
			if at < 20 {
				t.Fatalf("only %d operations", at)
			}
			return
		}
		p = reopen(t, p, m)
		v := create(t, p, "v", 8*mib)
		must(t, v.Failed())
		if v.Size() != 8*mib || v.IntentBytes() != 0 || v.DirtyBytes() != 0 {
			t.Fatalf("killed at operation %d: size %d, marked %d, dirty %d", at, v.Size(), v.IntentBytes(), v.DirtyBytes())
		}
	}
}

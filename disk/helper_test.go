package disk

import (
	"bytes"
	"io"
	"log/slog"
	"syscall"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

const (
	mib = int64(1) << 20
	kib = int64(1) << 10
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openMem opens the pool "/pool" of m and closes it with the test.
func openMem(t testing.TB, m *vfs.Mem) *Pool {
	t.Helper()
	p, err := OpenPool("/pool", Options{FS: m, Logger: quiet()})
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// reopen closes p and opens the pool again, as a restarted process does.
func reopen(t testing.TB, p *Pool, m *vfs.Mem) *Pool {
	t.Helper()
	must(t, p.Close())
	return openMem(t, m)
}

func create(t testing.TB, p *Pool, id lockstep.VolumeID, size int64) *Volume {
	t.Helper()
	v, err := p.Create(id, size)
	must(t, err)
	return v
}

func open(t testing.TB, p *Pool, id lockstep.VolumeID) *Volume {
	t.Helper()
	v, err := p.Open(id)
	must(t, err)
	return v
}

func ext(off, length int64) lockstep.Extent { return lockstep.Extent{Off: off, Len: length} }

func exts(e ...lockstep.Extent) []lockstep.Extent { return e }

func fill(b byte, n int64) []byte { return bytes.Repeat([]byte{b}, int(n)) }

func expect(t testing.TB, v *Volume, off, n int64, b byte) {
	t.Helper()
	got := make([]byte, n)
	must(t, v.ReadAt(got, off))
	if !bytes.Equal(got, fill(b, n)) {
		t.Fatalf("[%d,+%d) is not all %d: begins with %v", off, n, b, got[:min(16, n)])
	}
}

// failOp makes every operation with that label fail.
func failOp(m *vfs.Mem, op vfs.Op, err error) {
	m.OnOp(func(o vfs.Op) error {
		if o == op {
			return err
		}
		return nil
	})
}

// countOps counts operations by label from now on.
func countOps(m *vfs.Mem) map[vfs.Op]int {
	n := map[vfs.Op]int{}
	m.OnOp(func(o vfs.Op) error {
		n[o]++
		return nil
	})
	return n
}

var errIO = error(syscall.EIO)

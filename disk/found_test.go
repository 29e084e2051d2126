package disk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// Goal: both versions of a difference are kept durably, within a bound that a restart knows too, and
// go with their volume, but not with another one whose id begins alike.
func TestKeepFound(t *testing.T) {
	fs := vfs.NewMem()
	pool := func() *Pool {
		p, err := OpenPool("/pool", Options{FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := pool()
	for _, id := range []lockstep.VolumeID{"v", "v+1"} {
		if _, err := p.Create(id, lockstep.RegionBytes); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	name, err := p.KeepFound("v", 4096, at, []byte("mine"), []byte("yours"))
	if err != nil || name != "found/v+4096+20260102T030405.000006Z" {
		t.Fatalf("%q, %v", name, err)
	}
	if _, err := p.KeepFound("v+1", 0, at, []byte("mine"), []byte("other")); err != nil {
		t.Fatal(err)
	}
	after := fs.CrashClone(rand.New(rand.NewPCG(1, 2)), 0) // a power loss that keeps what was synced
	for ext, want := range map[string]string{".primary": "mine", ".secondary": "yours"} {
		f, err := after.OpenFile("t", filepath.Join("/pool", name+ext), 0)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", ext, got, err)
		}
	}
	for i := int64(0); ; i++ { // the bound
		_, err := p.KeepFound("v", i<<20, at, make([]byte, 1<<20), bytes.Repeat([]byte{1}, 1<<20))
		if errors.Is(err, lockstep.ErrNoSpace) {
			if i != 31 {
				t.Errorf("full after %d of 2 MiB", i)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = pool()
	if _, err := p.KeepFound("v", 7<<30, at, make([]byte, 1<<20), make([]byte, 1<<20)); !errors.Is(err, lockstep.ErrNoSpace) {
		t.Errorf("after a restart the bound is forgotten: %v", err)
	}
	if err := p.Remove("v"); err != nil {
		t.Fatal(err)
	}
	names, err := fs.ReadDir("t", "/pool/found")
	if err != nil || len(names) != 2 {
		t.Errorf("left after the removal of v: %q, %v", names, err)
	}
	if _, err := p.KeepFound("v+1", 1<<20, at, make([]byte, 1<<20), make([]byte, 1<<20)); err != nil {
		t.Errorf("the space of a removed volume is not given back: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

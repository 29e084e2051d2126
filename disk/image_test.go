package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

func readImage(t testing.TB, v *Volume, epoch lockstep.Epoch) []byte {
	t.Helper()
	i, err := v.OpenImage(epoch)
	must(t, err)
	defer func() { must(t, i.Close()) }()
	got := make([]byte, i.Size())
	must(t, i.ReadAt(t.Context(), got, 0))
	return got
}

func contents(t testing.TB, v *Volume) []byte {
	t.Helper()
	got := make([]byte, v.Size())
	must(t, v.ReadAt(got, 0))
	return got
}

// Goal: a divergence image is what the volume held, whatever comes after: writes, a recovery point
// and its roll-back, growth, restarts; and only DropImage, or the volume's end, removes it.
func TestDivergenceImage(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		m := vfs.NewMem()
		m.SetReflink(reflink)
		p := openMem(t, m)
		v, twin := create(t, p, "v", 4*mib), create(t, p, "v.7", mib)
		must(t, v.WriteAt(fill(1, mib), mib))
		must(t, twin.WriteAt(fill(5, mib), 0))
		want := contents(t, v)
		must(t, v.KeepImage(7))
		must(t, twin.KeepImage(8)) // v.7.8.diverged belongs to v.7, not to v
		overwrite(t, v, 0, 4*mib, 2)
		must(t, v.KeepImage(7)) // there already: not replaced
		must(t, v.Sync())
		must(t, v.SetPoint(9, 8))
		overwrite(t, v, 0, mib, 3)
		_, err := v.Rollback()
		must(t, err)
		must(t, v.KeepImage(9))
		must(t, v.Grow(5*mib))
		p = reopen(t, p, m)
		v = open(t, p, "v")
		if got := v.Images(); !slices.Equal(got, []lockstep.Epoch{7, 9}) {
			t.Fatalf("reflink %v: images %v", reflink, got)
		}
		if !bytes.Equal(readImage(t, v, 7), want) || !bytes.Equal(readImage(t, v, 9), fill(2, 4*mib)) {
			t.Fatalf("reflink %v: an image is not what it was", reflink)
		}
		i, err := v.OpenImage(7)
		must(t, err)
		if err := i.WriteAt(t.Context(), []byte{1}, 0, false); !errors.Is(err, fs.ErrPermission) {
			t.Fatalf("a write was not refused: %v", err)
		}
		states, err := i.Extents(t.Context(), 0, 4*mib)
		must(t, err)
		if len(states) != 3 || !states[0].Hole || states[1].Hole || states[1].Len != mib {
			t.Fatalf("extents %v", states)
		}
		must(t, i.Close())
		must(t, v.DropImage(7))
		must(t, v.DropImage(7))
		if _, err := v.OpenImage(7); !errors.Is(err, lockstep.ErrNotFound) {
			t.Fatalf("dropped, yet: %v", err)
		}
		must(t, p.Remove("v"))
		names, err := m.ReadDir("x", "/pool")
		must(t, err)
		for _, name := range names {
			if id, _, ok := imageName(name); ok && id == "v" || name == "v.raw" {
				t.Errorf("%s is left of a removed volume", name)
			}
		}
		if twin = open(t, p, "v.7"); !bytes.Equal(readImage(t, twin, 8), fill(5, mib)) {
			t.Error("another volume's image went with it")
		}
		must(t, p.Close())
	}
}

// Goal: an image that does not fit is refused before anything is written, with the bytes that it needs.
func TestDivergenceImageNoSpace(t *testing.T) {
	m := vfs.NewMem()
	p := openMem(t, m)
	v := create(t, p, "v", 64*mib)
	must(t, v.WriteAt(fill(1, 8*mib), 0))
	total, free, err := p.Space()
	must(t, err)
	m.SetTotal(total - free + spaceReserve + 7*mib)
	if err := v.KeepImage(3); !errors.Is(err, lockstep.ErrNoSpace) {
		t.Fatalf("want no space, have %v", err)
	}
	if len(v.Images()) != 0 || v.Failed() != nil {
		t.Fatal("half an image counts, or the volume failed")
	}
	m.SetTotal(total)
	must(t, v.KeepImage(3))
	if !bytes.Equal(readImage(t, v, 3), contents(t, v)) {
		t.Fatal("the image is not the volume")
	}
}

// Goal: wherever the power fails while an image is made or dropped, or a volume rolled back, the
// next open finds it whole or not at all, the volume as it was, and a repetition ends it.
func TestDivergenceImageCrash(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		for _, step := range []string{"keep", "drop", "roll back"} {
			points := 0
			for at := 1; ; at++ {
				m := vfs.NewMem()
				m.SetReflink(reflink)
				p := openMem(t, m)
				v := create(t, p, "v", 512*kib)
				must(t, v.WriteAt(fill(1, 192*kib), 128*kib))
				must(t, v.Sync())
				want := contents(t, v)
				switch step {
				case "drop":
					must(t, v.KeepImage(7))
				case "roll back":
					must(t, v.SetPoint(6, 5))
					overwrite(t, v, 0, 512*kib, 9)
				}
				do := func(v *Volume) error {
					switch step {
					case "keep":
						return v.KeepImage(7)
					case "drop":
						return v.DropImage(7)
					}
					return v.RollBackSince(5)
				}
				var clone *vfs.Mem
				n := 0
				m.OnOp(func(vfs.Op) error {
					if n++; n < at {
						return nil
					}
					if clone == nil {
						clone = m.CrashClone(newRand(uint64(at)), 0.5)
					}
					return vfs.ErrGone
				})
				err := do(v)
				m.OnOp(nil)
				if clone == nil {
					must(t, err)
					break
				}
				points++
				must(t, p.Close())
				p = openMem(t, clone)
				v = open(t, p, "v")
				if step != "roll back" && !bytes.Equal(contents(t, v), want) {
					t.Fatalf("%s, reflink %v, operation %d: the volume changed", step, reflink, at)
				}
				if len(v.Images()) > 0 && !bytes.Equal(readImage(t, v, 7), want) {
					t.Fatalf("%s, reflink %v, operation %d: the image is not whole", step, reflink, at)
				}
				must(t, do(v))
				if !bytes.Equal(contents(t, v), want) || (step == "keep") != (len(v.Images()) == 1) {
					t.Fatalf("%s, reflink %v, operation %d: repeated, images %v", step, reflink, at, v.Images())
				}
				if step == "roll back" && v.DirtyBytes() == 0 {
					t.Fatalf("reflink %v, operation %d: what was rolled back is not dirty", reflink, at)
				}
				must(t, p.Close())
			}
			if points < 2 {
				t.Errorf("%s, reflink %v: ended at %d operations only", step, reflink, points)
			}
		}
	}
}

// Goal: which image counts is decided by the record: a point that is not newer than the last in-sync
// commit is no image to go back to.
func TestRollBackSince(t *testing.T) {
	v := create(t, openMem(t, vfs.NewMem()), "v", mib)
	must(t, v.RollBackSince(5)) // no point: the present contents
	must(t, v.WriteAt(fill(1, mib), 0))
	must(t, v.Sync())
	must(t, v.SetPoint(6, 5))
	overwrite(t, v, 0, mib, 2)
	must(t, v.RollBackSince(8)) // in sync at 8, and the point was not dropped yet
	expect(t, v, 0, mib, 2)
	if _, ok := v.Point(); ok {
		t.Fatal("an older point is left")
	}
}

package disk

import (
	"testing"

	"github.com/lockstep-dr/lockstep"
)

func benchVolume(b *testing.B, size int64) *Volume {
	b.Helper()
	p, err := OpenPool(b.TempDir(), Options{Logger: quiet()})
	must(b, err)
	b.Cleanup(func() { must(b, p.Close()) })
	return create(b, p, "v", size)
}

// TestHotPathsDoNotAllocate holds what the benchmarks show.
func TestHotPathsDoNotAllocate(t *testing.T) {
	p, err := OpenPool(t.TempDir(), Options{Logger: quiet()})
	must(t, err)
	defer func() { must(t, p.Close()) }()
	v := create(t, p, "v", lockstep.GiB)
	must(t, v.SetPoint(2, 1))
	list := exts(ext(mib, 4096))
	for name, f := range map[string]func() error{
		"MarkIntent": func() error { return v.MarkIntent(mib, 4096) },
		"MarkDirty":  func() error { return v.MarkDirty(mib, 4096) },
		"Preserve":   func() error { return v.Preserve(list) },
	} {
		must(t, f())
		if n := testing.AllocsPerRun(100, func() { must(t, f()) }); n != 0 {
			t.Errorf("%s allocates %v times when there is nothing to do", name, n)
		}
	}
}

func BenchmarkMarkIntentHot(b *testing.B) {
	v := benchVolume(b, lockstep.GiB)
	must(b, v.MarkIntent(0, 16*mib))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := int64(0); pb.Next(); i++ {
			if err := v.MarkIntent(i%4000*4096, 4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkMarkIntentCold(b *testing.B) {
	const step, marks = 48 * mib, 160 // 7.5 GiB: what a pool must have free
	v := benchVolume(b, step*marks)
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		if err := v.MarkIntent(i%marks*step, 4096); err != nil {
			b.Fatal(err)
		}
		if i++; i%marks == 0 {
			must(b, v.ClearMaps())
		}
	}
}

func BenchmarkMarkDirtyHot(b *testing.B) {
	v := benchVolume(b, lockstep.GiB)
	must(b, v.MarkDirty(0, 16*mib))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := int64(0); pb.Next(); i++ {
			if err := v.MarkDirty(i%4000*4096, 4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkMarkDirtyCold(b *testing.B) {
	const size = 8 * lockstep.GiB
	v := benchVolume(b, size)
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		if err := v.MarkDirty(i*lockstep.ChunkBytes%size, 4096); err != nil {
			b.Fatal(err)
		}
		if i++; i%(size/lockstep.ChunkBytes) == 0 {
			must(b, v.ClearDirty())
		}
	}
}

func BenchmarkWrite4k(b *testing.B) {
	v := benchVolume(b, lockstep.GiB)
	for off := int64(0); off < 64*mib; off += 64 * kib {
		must(b, v.WriteAt(fill(1, 64*kib), off))
	}
	p := fill(2, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		if err := v.WriteAt(p, i*7919%(64*mib/4096)*4096); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkPreserve64MiB(b *testing.B) {
	v := benchVolume(b, lockstep.GiB)
	for off := int64(0); off < 64*mib; off += 64 * kib {
		must(b, v.WriteAt(fill(1, 64*kib), off))
	}
	must(b, v.Sync())
	b.SetBytes(64 * mib)
	b.ReportAllocs()
	epoch := lockstep.Epoch(1)
	for b.Loop() {
		epoch++
		must(b, v.SetPoint(epoch, epoch-1))
		must(b, v.Preserve(exts(ext(0, 64*mib))))
	}
}

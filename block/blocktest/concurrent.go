package blocktest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
)

// checkExtents asks for the extents of a range and holds them against the contract and the data.
func (b *bench) checkExtents(e lockstep.Extent) {
	b.Helper()
	ctx, cancel := b.call()
	defer cancel()
	list, err := b.dev.Extents(ctx, e.Off, e.Len)
	if err != nil {
		b.Fatalf("extents of [%d,+%d): %v", e.Off, e.Len, err)
	}
	off := e.Off
	for i, x := range list {
		if x.Len <= 0 {
			b.Fatalf("extents of [%d,+%d): entry %d has length %d", e.Off, e.Len, i, x.Len)
		}
		if i > 0 && list[i-1].Hole == x.Hole && list[i-1].Zero == x.Zero {
			b.Fatalf("extents of [%d,+%d): entries %d and %d have one state and are not merged", e.Off, e.Len, i-1, i)
		}
		if off+x.Len > e.End() {
			b.Fatalf("extents of [%d,+%d): entry %d ends at %d", e.Off, e.Len, i, off+x.Len)
		}
		if x.Zero {
			b.expectZeroes(off, x.Len)
		}
		off += x.Len
	}
	if off != e.End() {
		b.Fatalf("extents of [%d,+%d) end at %d", e.Off, e.Len, off)
	}
}

// expectZeroes reads in pieces, since an extent may be as large as the device.
func (b *bench) expectZeroes(off, length int64) {
	b.Helper()
	for end := off + length; off < end; {
		n := min(end-off, MinBytes)
		b.expect(off, make([]byte, n), "an extent said to be zero")
		off += n
	}
}

func testExtents(b *bench) {
	b.checkExtents(lockstep.Extent{Off: 0, Len: b.size})
	data := lockstep.Extent{Off: 3*lockstep.ChunkBytes + 100, Len: 2*lockstep.ChunkBytes + 1}
	b.write(data.Off, pattern(7, data.Len), false)
	b.flush()
	list, err := b.dev.Extents(b.ctx, data.Off, data.Len)
	if err != nil {
		b.Fatal(err)
	}
	for _, x := range list {
		if x.Hole || x.Zero {
			b.Fatalf("extents of written data are %+v", list)
		}
	}
	b.zero(4*lockstep.ChunkBytes, lockstep.ChunkBytes, block.ZeroFlags{})
	b.write(b.size-10, pattern(8, 10), false)
	for _, e := range append(ranges(b.size), lockstep.Extent{Off: 0, Len: b.size}, lockstep.Extent{Off: 12345, Len: b.size - 23456}) {
		b.checkExtents(e)
	}
}

// testModel does random operations on the device and on a byte slice, and compares all the way.
func testModel(b *bench) {
	seed := uint64(time.Now().UnixNano())
	defer func() {
		if b.Failed() {
			b.Logf("seed %d", seed)
		}
	}()
	r := rand.New(rand.NewPCG(seed, 2))
	span := min(b.size, 2*MinBytes)
	model := make([]byte, span)
	base := b.size - span // the model covers the end, where range errors live
	pick := func() (off, length int64) {
		length = 1 + r.Int64N(min(span, 1<<(1+r.IntN(18))))
		off = r.Int64N(span - length + 1)
		if r.IntN(2) == 0 && length > 512 {
			off, length = off&^511, length&^511
		}
		return off, length
	}
	for i := range 300 {
		off, length := pick()
		switch r.IntN(6) {
		case 0, 1:
			p := pattern(uint64(i), length)
			b.write(base+off, p, r.IntN(8) == 0)
			copy(model[off:], p)
		case 2:
			b.trim(base+off, length, r.IntN(8) == 0)
			clear(model[off : off+length])
		case 3:
			b.zero(base+off, length, block.ZeroFlags{NoHole: r.IntN(2) == 0, FUA: r.IntN(8) == 0})
			clear(model[off : off+length])
		case 4:
			b.checkExtents(lockstep.Extent{Off: base + off, Len: length})
		default:
			b.expect(base+off, model[off:off+length], "random operations")
		}
	}
	b.expect(base, model, "the whole after random operations")
}

// race runs the calls at one moment and waits for all of them.
func (b *bench) race(calls ...func() error) {
	b.Helper()
	start := make(chan struct{})
	var wg sync.WaitGroup
	for _, call := range calls {
		wg.Go(func() {
			<-start
			if err := call(); err != nil {
				b.Errorf("one of %d concurrent calls: %v", len(calls), err)
			}
		})
	}
	close(start)
	wg.Wait()
}

// expectOneOf checks that a range is filled with a single byte of those allowed.
func (b *bench) expectOneOf(off, length int64, allowed []byte, what string) {
	b.Helper()
	got := b.read(off, length)
	if bytes.IndexByte(allowed, got[0]) < 0 {
		b.Fatalf("%s: [%d,+%d) starts with %#02x, which nobody wrote", what, off, length, got[0])
	}
	if i := firstDifference(got, bytes.Repeat(got[:1], int(length))); i >= 0 {
		b.Fatalf("%s: [%d,+%d) is torn: %#02x at its start, %#02x at +%d", what, off, length, got[0], got[i], i)
	}
}

func testOverlapping(b *bench) {
	// Each writer writes several times, so that the last writes of a round meet each other at
	// different points; a torn write shows in a few of many rounds only.
	const writers, repeats = 4, 6
	length := min(8*lockstep.ChunkBytes, MinBytes/2) + 512
	begin := time.Now()
	for round := 0; round < 100 && time.Since(begin) < 2*time.Second; round++ {
		off := int64(round)*1024 + 4096
		var calls []func() error
		var allowed []byte
		for w := range writers {
			fill := byte(1 + (round*writers+w)%255)
			allowed = append(allowed, fill)
			p := bytes.Repeat([]byte{fill}, int(length))
			calls = append(calls, func() error {
				for range repeats {
					if err := b.dev.WriteAt(b.ctx, p, off, false); err != nil {
						return err
					}
				}
				return nil
			})
		}
		b.race(calls...)
		b.expectOneOf(off, length, allowed, "identical ranges")
	}
	// A and B overlap in the middle third only; each keeps its own third.
	third := lockstep.ChunkBytes + 512
	for round := range 20 {
		x, y := byte(1+round), byte(101+round)
		a, c := bytes.Repeat([]byte{x}, int(2*third)), bytes.Repeat([]byte{y}, int(2*third))
		b.race(
			func() error { return b.dev.WriteAt(b.ctx, a, 512, false) },
			func() error { return b.dev.WriteAt(b.ctx, c, 512+third, false) },
		)
		b.expectOneOf(512, third, []byte{x}, "only the first writer's")
		b.expectOneOf(512+third, third, []byte{x, y}, "both writers'")
		b.expectOneOf(512+2*third, third, []byte{y}, "only the second writer's")
	}
}

func testWriteAgainstZero(b *bench) {
	length := 3 * lockstep.ChunkBytes
	for round := range 30 {
		fill := byte(1 + round)
		p := bytes.Repeat([]byte{fill}, int(length))
		b.race(
			func() error { return b.dev.WriteAt(b.ctx, p, 1024, false) },
			func() error {
				if round%2 == 0 {
					return b.dev.Trim(b.ctx, 1024, length, false)
				}
				return b.dev.Zero(b.ctx, 1024, length, block.ZeroFlags{NoHole: round%4 == 1})
			},
		)
		b.expectOneOf(1024, length, []byte{0, fill}, "a write beside a trim or zero")
	}
}

func testDisjoint(b *bench) {
	const workers = 8
	part := MinBytes / workers
	var wg sync.WaitGroup
	for w := range int64(workers) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			mine := make([]byte, part)
			got := make([]byte, part)
			for i := range 60 {
				length := 1 + r.Int64N(part/4)
				off := r.Int64N(part - length + 1)
				p := pattern(uint64(w)<<32|uint64(i), length)
				if err := b.dev.WriteAt(b.ctx, p, w*part+off, false); err != nil {
					b.Errorf("write: %v", err)
					return
				}
				copy(mine[off:], p)
				if err := b.dev.ReadAt(b.ctx, got, w*part); err != nil {
					b.Errorf("read: %v", err)
					return
				}
				if at := firstDifference(got, mine); at >= 0 {
					b.Errorf("worker %d: byte %d of its own part is %#02x, want %#02x", w, at, got[at], mine[at])
					return
				}
			}
		})
	}
	wg.Wait()
}

// testContext: a call whose context has ended returns, with or without success, and the device
// goes on working.
func testContext(b *bench) {
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := make([]byte, 4096)
		// Either outcome is allowed: only that the calls return is checked.
		_ = b.dev.ReadAt(ctx, p, 0)
		_ = b.dev.WriteAt(ctx, p, 0, true)
		_ = b.dev.Flush(ctx)
		_ = b.dev.Trim(ctx, 0, 4096, false)
		_ = b.dev.Zero(ctx, 0, 4096, block.ZeroFlags{})
		_, _ = b.dev.Extents(ctx, 0, 4096)
	}()
	select {
	case <-done:
	case <-time.After(callTimeout):
		b.Fatal("a call with an ended context did not return")
	}
	b.write(0, pattern(9, 4096), false)
	b.expect(0, pattern(9, 4096), "after calls with an ended context")
}

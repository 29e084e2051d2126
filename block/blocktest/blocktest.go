// Package blocktest is the conformance suite of block.Device: every implementation and every
// decorator passes it. It checks what the contract says a caller may rely on while the process
// lives; what survives a crash needs a device that can be reopened and is tested beside it.
package blocktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
)

// MinBytes is the smallest device that Run accepts.
const MinBytes = int64(1) << 20

// callTimeout bounds every call, so that a device that hangs fails the test by name.
const callTimeout = 30 * time.Second

// Run runs the suite. open returns a new device of at least MinBytes that was never written; it
// registers its own clean-up with t. Each subtest opens its own device.
func Run(t *testing.T, open func(t *testing.T) block.Device) {
	for _, c := range []struct {
		name string
		test func(*bench)
	}{
		{"NewDeviceReadsZero", testNew},
		{"ReadAfterWrite", testReadAfterWrite},
		{"BufferBelongsToCaller", testBufferOwnership},
		{"OutOfRange", testOutOfRange},
		{"ZeroLength", testZeroLength},
		{"TrimAndZero", testTrimAndZero},
		{"FlushAndFUA", testFlushAndFUA},
		{"Extents", testExtents},
		{"RandomAgainstModel", testModel},
		{"OverlappingWritesAreWhole", testOverlapping},
		{"OverlappingWriteAndZero", testWriteAgainstZero},
		{"DisjointWritesDoNotMix", testDisjoint},
		{"EndedContext", testContext},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := open(t)
			if dev.Size() < MinBytes {
				t.Fatalf("device of %d bytes, the suite needs %d", dev.Size(), MinBytes)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*callTimeout)
			defer cancel()
			c.test(&bench{T: t, ctx: ctx, dev: dev, size: dev.Size()})
		})
	}
}

// bench is one test with its device.
type bench struct {
	*testing.T
	ctx  context.Context
	dev  block.Device
	size int64
}

func (b *bench) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.ctx, callTimeout)
}

func (b *bench) read(off, length int64) []byte {
	b.Helper()
	ctx, cancel := b.call()
	defer cancel()
	// Dirty buffers show a device that leaves part of p unfilled.
	p := bytes.Repeat([]byte{0xEE}, int(length))
	if err := b.dev.ReadAt(ctx, p, off); err != nil {
		b.Fatalf("read [%d,+%d): %v", off, length, err)
	}
	return p
}

func (b *bench) write(off int64, p []byte, fua bool) {
	b.Helper()
	ctx, cancel := b.call()
	defer cancel()
	if err := b.dev.WriteAt(ctx, p, off, fua); err != nil {
		b.Fatalf("write [%d,+%d) fua=%t: %v", off, len(p), fua, err)
	}
}

func (b *bench) trim(off, length int64, fua bool) {
	b.Helper()
	ctx, cancel := b.call()
	defer cancel()
	if err := b.dev.Trim(ctx, off, length, fua); err != nil {
		b.Fatalf("trim [%d,+%d): %v", off, length, err)
	}
}

func (b *bench) zero(off, length int64, flags block.ZeroFlags) {
	b.Helper()
	ctx, cancel := b.call()
	defer cancel()
	if err := b.dev.Zero(ctx, off, length, flags); err != nil {
		b.Fatalf("zero [%d,+%d) %+v: %v", off, length, flags, err)
	}
}

func (b *bench) flush() {
	b.Helper()
	ctx, cancel := b.call()
	defer cancel()
	if err := b.dev.Flush(ctx); err != nil {
		b.Fatalf("flush: %v", err)
	}
}

// expect compares a range with want and says where the first difference is.
func (b *bench) expect(off int64, want []byte, what string) {
	b.Helper()
	got := b.read(off, int64(len(want)))
	if i := firstDifference(got, want); i >= 0 {
		b.Fatalf("%s: byte %d (offset %d in the request) is %#02x, want %#02x", what, off+int64(i), i, got[i], want[i])
	}
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// pattern returns n bytes without a zero among them; different seeds differ nearly everywhere.
func pattern(seed uint64, n int64) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(r.Uint32()%255) + 1
	}
	return p
}

// ranges are the shapes that offset arithmetic gets wrong: sector, page, chunk borders and the end.
func ranges(size int64) []lockstep.Extent {
	return []lockstep.Extent{
		{Off: 0, Len: 1},
		{Off: 1, Len: 1},
		{Off: 0, Len: 512},
		{Off: 511, Len: 2},
		{Off: 4096, Len: 4096},
		{Off: 4095, Len: 4098},
		{Off: lockstep.ChunkBytes - 1, Len: 2},
		{Off: lockstep.ChunkBytes, Len: lockstep.ChunkBytes},
		{Off: lockstep.ChunkBytes - 513, Len: 2*lockstep.ChunkBytes + 1026},
		{Off: 3*lockstep.ChunkBytes + 7, Len: 5 * lockstep.ChunkBytes},
		{Off: size - 1, Len: 1},
		{Off: size - 512, Len: 512},
		{Off: size - lockstep.ChunkBytes - 1, Len: lockstep.ChunkBytes + 1},
	}
}

func testNew(b *bench) {
	const step = int64(256) << 10
	zeroes := make([]byte, step)
	for off := int64(0); off+step <= min(b.size, 16*MinBytes); off += step {
		b.expect(off, zeroes, "a new device")
	}
	b.expect(b.size-4096, zeroes[:4096], "the end of a new device")
}

func testReadAfterWrite(b *bench) {
	for i, e := range ranges(b.size) {
		// The neighbours are part of what is compared: a write must not touch them.
		from, to := max(0, e.Off-600), min(b.size, e.End()+600)
		want := b.read(from, to-from)
		data := pattern(uint64(i), e.Len)
		b.write(e.Off, data, false)
		copy(want[e.Off-from:], data)
		b.expect(from, want, fmt.Sprintf("after a write of [%d,+%d)", e.Off, e.Len))
	}
}

func testBufferOwnership(b *bench) {
	data := pattern(1, 8192)
	mine := bytes.Clone(data)
	b.write(4096, mine, false)
	clear(mine)
	b.expect(4096, data, "after the caller reused its buffer")
	first := b.read(4096, 8192)
	b.write(4096, pattern(2, 8192), false)
	if !bytes.Equal(first, data) {
		b.Fatal("a buffer that was read changed with a later write")
	}
}

func testOutOfRange(b *bench) {
	marker := pattern(3, 4096)
	b.write(b.size-4096, marker, false)
	b.write(0, marker, false)
	for _, e := range []lockstep.Extent{
		{Off: b.size, Len: 1},
		{Off: b.size - 1, Len: 2},
		{Off: b.size - 4096, Len: 4097},
		{Off: b.size + 1, Len: 0},
		{Off: b.size + 4096, Len: 512},
		{Off: -1, Len: 1},
		{Off: -1, Len: 0},
		{Off: -4096, Len: 8192},
		{Off: math.MinInt64, Len: 1},
		{Off: math.MaxInt64, Len: 1},
		{Off: math.MaxInt64 - 10, Len: 100},
	} {
		p := bytes.Repeat([]byte{0x55}, int(e.Len))
		check := func(op string, do func(ctx context.Context) error) {
			ctx, cancel := b.call()
			defer cancel()
			if err := do(ctx); !errors.Is(err, lockstep.ErrOutOfRange) {
				b.Errorf("%s [%d,+%d) of %d bytes: %v, want ErrOutOfRange", op, e.Off, e.Len, b.size, err)
			}
		}
		check("read", func(ctx context.Context) error { return b.dev.ReadAt(ctx, p, e.Off) })
		check("write", func(ctx context.Context) error { return b.dev.WriteAt(ctx, p, e.Off, false) })
		check("write fua", func(ctx context.Context) error { return b.dev.WriteAt(ctx, p, e.Off, true) })
		b.checkNoData(e, check)
	}
	// Lengths that no buffer can have.
	for _, e := range []lockstep.Extent{
		{Off: 0, Len: -1},
		{Off: 0, Len: math.MaxInt64},
		{Off: 4096, Len: math.MaxInt64},
		{Off: b.size - 1, Len: math.MaxInt64},
		{Off: math.MaxInt64, Len: math.MaxInt64},
		{Off: b.size, Len: math.MinInt64},
	} {
		b.checkNoData(e, func(op string, do func(ctx context.Context) error) {
			ctx, cancel := b.call()
			defer cancel()
			if err := do(ctx); !errors.Is(err, lockstep.ErrOutOfRange) {
				b.Errorf("%s [%d,+%d) of %d bytes: %v, want ErrOutOfRange", op, e.Off, e.Len, b.size, err)
			}
		})
	}
	b.expect(0, marker, "the start after refused requests")
	b.expect(b.size-4096, marker, "the end after refused requests")
	if got := b.dev.Size(); got != b.size {
		b.Fatalf("size is %d after refused requests, was %d", got, b.size)
	}
}

// checkNoData runs check over the operations that carry no data.
func (b *bench) checkNoData(e lockstep.Extent, check func(op string, do func(ctx context.Context) error)) {
	check("trim", func(ctx context.Context) error { return b.dev.Trim(ctx, e.Off, e.Len, false) })
	check("zero", func(ctx context.Context) error { return b.dev.Zero(ctx, e.Off, e.Len, block.ZeroFlags{}) })
	check("zero no-hole", func(ctx context.Context) error {
		return b.dev.Zero(ctx, e.Off, e.Len, block.ZeroFlags{NoHole: true})
	})
	check("extents", func(ctx context.Context) error { _, err := b.dev.Extents(ctx, e.Off, e.Len); return err })
}

func testZeroLength(b *bench) {
	data := pattern(4, 4096)
	b.write(0, data, false)
	for _, off := range []int64{0, 1, 4096, b.size} {
		b.read(off, 0)
		b.write(off, nil, false)
		b.write(off, []byte{}, true)
		b.trim(off, 0, false)
		b.zero(off, 0, block.ZeroFlags{FUA: true})
		ctx, cancel := b.call()
		list, err := b.dev.Extents(ctx, off, 0)
		cancel()
		if err != nil || len(list) != 0 {
			b.Fatalf("extents of an empty range at %d: %v, %v; want none", off, list, err)
		}
	}
	b.expect(0, data, "after requests of length zero")
}

func testTrimAndZero(b *bench) {
	ops := map[string]func(off, length int64){
		"trim":         func(off, length int64) { b.trim(off, length, false) },
		"trim fua":     func(off, length int64) { b.trim(off, length, true) },
		"zero":         func(off, length int64) { b.zero(off, length, block.ZeroFlags{}) },
		"zero fua":     func(off, length int64) { b.zero(off, length, block.ZeroFlags{FUA: true}) },
		"zero no-hole": func(off, length int64) { b.zero(off, length, block.ZeroFlags{NoHole: true}) },
	}
	for name, op := range ops {
		for i, e := range ranges(b.size) {
			from, to := max(0, e.Off-600), min(b.size, e.End()+600)
			want := pattern(uint64(100+i), to-from)
			b.write(from, want, false)
			op(e.Off, e.Len)
			clear(want[e.Off-from : e.End()-from])
			b.expect(from, want, fmt.Sprintf("after %s of [%d,+%d)", name, e.Off, e.Len))
			// What was zeroed can be written again.
			b.write(e.Off, pattern(uint64(i), min(e.Len, 700)), false)
			b.expect(e.Off, pattern(uint64(i), min(e.Len, 700)), "written over a range after "+name)
		}
		op(0, b.size)
		b.expect(0, make([]byte, MinBytes), "the start after "+name+" of the whole device")
		b.expect(b.size-4096, make([]byte, 4096), "the end after "+name+" of the whole device")
	}
}

func testFlushAndFUA(b *bench) {
	b.flush() // of a device with nothing to flush
	data := pattern(5, 12345)
	b.write(777, data, true)
	b.expect(777, data, "after a FUA write")
	b.write(777, pattern(6, 100), false)
	b.flush()
	b.flush()
	copy(data, pattern(6, 100))
	b.expect(777, data, "after a flush")
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 8 {
				off := int64(g)*65536 + int64(i)*4096
				if err := b.dev.WriteAt(b.ctx, pattern(uint64(g), 4096), off, i%2 == 0); err != nil {
					b.Errorf("write beside flushes: %v", err)
				}
				if err := b.dev.Flush(b.ctx); err != nil {
					b.Errorf("flush beside writes: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for g := range 8 {
		b.expect(int64(g)*65536, pattern(uint64(g), 4096), "written beside flushes")
	}
}

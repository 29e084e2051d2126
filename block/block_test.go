package block_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/block/blocktest"
)

func TestMemoryConforms(t *testing.T) {
	for name, size := range map[string]int64{"aligned": 8 << 20, "odd": blocktest.MinBytes + 12345} {
		t.Run(name, func(t *testing.T) {
			blocktest.Run(t, func(*testing.T) block.Device { return block.NewMemory(size) })
		})
	}
}

func TestFaultWithoutRulesConforms(t *testing.T) {
	blocktest.Run(t, func(*testing.T) block.Device { return block.NewFault(block.NewMemory(4 << 20)) })
}

func TestCheckRange(t *testing.T) {
	for _, c := range []struct {
		off, length, size int64
		ok                bool
	}{
		{0, 0, 0, true},
		{0, 10, 10, true},
		{10, 0, 10, true},
		{11, 0, 10, false},
		{5, 6, 10, false},
		{-1, 1, 10, false},
		{0, -1, 10, false},
		{1, math.MaxInt64, math.MaxInt64, false},
		{math.MaxInt64, math.MaxInt64, math.MaxInt64, false},
		{math.MaxInt64, 0, math.MaxInt64, true},
	} {
		if err := block.CheckRange(c.off, c.length, c.size); (err == nil) != c.ok {
			t.Errorf("CheckRange(%d, %d, %d) = %v", c.off, c.length, c.size, err)
		}
	}
}

func TestMemoryAllocation(t *testing.T) {
	ctx := context.Background()
	m := block.NewMemory(1 << 40) // sparse: a terabyte costs nothing until it is written
	expect := func(off, length int64, want ...block.ExtentState) {
		t.Helper()
		got, err := m.Extents(ctx, off, length)
		if err != nil || len(got) != len(want) {
			t.Fatalf("extents %+v, %v; want %+v", got, err, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("extents %+v, want %+v", got, want)
			}
		}
	}
	const c = 64 << 10
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect(0, 4*c, block.ExtentState{Len: 4 * c, Hole: true, Zero: true})
	must(m.WriteAt(ctx, []byte{1}, c+5, false))
	must(m.Zero(ctx, 2*c, c, block.ZeroFlags{NoHole: true}))
	expect(0, 4*c, block.ExtentState{Len: c, Hole: true, Zero: true}, block.ExtentState{Len: c},
		block.ExtentState{Len: c, Zero: true}, block.ExtentState{Len: c, Hole: true, Zero: true})
	must(m.WriteAt(ctx, []byte{1}, 2*c, false))
	must(m.WriteAt(ctx, []byte{0}, 2*c, false))
	other := make([]byte, 1)
	must(m.Zero(ctx, 8*c, c, block.ZeroFlags{NoHole: true}))
	must(m.ReadAt(ctx, other, 8*c))
	if other[0] != 0 {
		t.Fatal("a write to an allocated zero chunk reached another one")
	}
	must(m.Trim(ctx, c, 2*c, false))
	expect(0, 4*c, block.ExtentState{Len: 4 * c, Hole: true, Zero: true})
	if err := m.Grow(1); !errors.Is(err, lockstep.ErrOutOfRange) {
		t.Fatalf("shrinking: %v", err)
	}
	must(m.Grow(1<<40 + 1))
	if m.Size() != 1<<40+1 {
		t.Fatalf("size %d after growing", m.Size())
	}
}

func TestFaultRules(t *testing.T) {
	ctx := context.Background()
	boom := errors.New("boom")
	mem := block.NewMemory(1 << 20)
	f := block.NewFault(mem)
	write := func(off int64) error { return f.WriteAt(ctx, []byte{7}, off, false) }

	remove := f.Inject(block.FaultRule{Ops: block.OpWrite, Range: lockstep.Extent{Off: 100, Len: 10}, Skip: 1, Count: 2, Err: boom})
	var got []bool
	for range 4 {
		got = append(got, errors.Is(write(105), boom))
	}
	if want := []bool{false, true, true, false}; !bytes.Equal(flags(got), flags(want)) {
		t.Fatalf("skip 1 count 2 gave %v", got)
	}
	if err := write(110); err != nil {
		t.Fatalf("write beside the range: %v", err)
	}
	remove()

	remove = f.Inject(block.FaultRule{Ops: block.OpFlush | block.OpRead, Err: boom})
	if err := f.Flush(ctx); !errors.Is(err, boom) {
		t.Fatalf("flush: %v", err)
	}
	if err := f.Trim(ctx, 0, 1, false); err != nil {
		t.Fatalf("trim under a rule for others: %v", err)
	}
	remove()
	if err := f.Flush(ctx); err != nil {
		t.Fatalf("flush after the rule is gone: %v", err)
	}

	// After: the data is there though the caller was told otherwise.
	remove = f.Inject(block.FaultRule{Ops: block.OpWrite, Err: boom, After: true})
	if err := write(500); !errors.Is(err, boom) {
		t.Fatalf("write: %v", err)
	}
	p := make([]byte, 1)
	if err := mem.ReadAt(ctx, p, 500); err != nil || p[0] != 7 {
		t.Fatalf("read %v, %v", p, err)
	}
	remove()

	hold := make(chan struct{})
	f.Inject(block.FaultRule{Ops: block.OpExtents, Hold: hold})
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := f.Extents(short, 0, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("held call whose context ended: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { close(hold) })
	if list, err := f.Extents(ctx, 0, 10); err != nil || len(list) != 1 {
		t.Fatalf("released call: %v, %v", list, err)
	}
	if n := f.Calls(block.OpExtents); n != 2 {
		t.Fatalf("%d calls of extents counted", n)
	}
	f.Inject(block.FaultRule{Ops: block.OpZero, Delay: 30 * time.Millisecond})
	begin := time.Now()
	if err := f.Zero(ctx, 0, 1, block.ZeroFlags{}); err != nil || time.Since(begin) < 30*time.Millisecond {
		t.Fatalf("delayed call: %v after %v", err, time.Since(begin))
	}
}

func flags(list []bool) []byte {
	out := make([]byte, len(list))
	for i, v := range list {
		if v {
			out[i] = 1
		}
	}
	return out
}

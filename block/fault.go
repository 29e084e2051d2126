package block

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
)

// Op is a set of device operations.
type Op uint8

// The operations of a Device, to be or-ed together.
const (
	OpRead Op = 1 << iota
	OpWrite
	OpFlush
	OpTrim
	OpZero
	OpExtents
	// OpAll is every operation.
	OpAll = OpRead | OpWrite | OpFlush | OpTrim | OpZero | OpExtents
)

// FaultRule says which calls of a Fault go wrong and how. A matching call first waits for Delay,
// then until Hold is closed, then fails with Err; each part is optional.
type FaultRule struct {
	Ops   Op              // which operations; zero means OpAll
	Range lockstep.Extent // calls that overlap it; Len 0 means everywhere. A Flush matches any range
	Skip  int             // let that many matching calls pass untouched first
	Count int             // then act on that many; zero means on all

	Delay time.Duration
	Hold  <-chan struct{}
	Err   error
	// After carries the call out first, and delays, holds or fails its answer: the caller sees an
	// error though the data was written.
	After bool
}

// Fault is a decorator for tests: a Device that misbehaves by rule. Without rules it changes
// nothing. Its waits end with the call's context, as the contract demands, with the context's error.
type Fault struct {
	dev Device

	// mu guards rules, their counters and calls.
	mu    sync.Mutex
	rules []*faultState
	calls map[Op]int
}

type faultState struct {
	FaultRule
	seen int // matching calls so far
}

var _ Device = (*Fault)(nil)

// NewFault wraps dev.
func NewFault(dev Device) *Fault { return &Fault{dev: dev, calls: make(map[Op]int)} }

// Inject adds a rule; the first rule that acts on a call decides. The returned function removes it
// again; calls that it holds already go on waiting.
func (f *Fault) Inject(r FaultRule) (remove func()) {
	if r.Ops == 0 {
		r.Ops = OpAll
	}
	s := &faultState{FaultRule: r}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, s)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.rules = slices.DeleteFunc(f.rules, func(t *faultState) bool { return t == s })
	}
}

// Calls is the number of calls so far of the given operations, faulty or not, counted on entry.
func (f *Fault) Calls(ops Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for op, c := range f.calls {
		if op&ops != 0 {
			n += c
		}
	}
	return n
}

// rule counts the call and returns the rule that acts on it, or nil.
func (f *Fault) rule(op Op, off, length int64) *FaultRule {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	for _, s := range f.rules {
		if s.Ops&op == 0 || op != OpFlush && s.Range.Len > 0 && !s.Range.Overlaps(lockstep.Extent{Off: off, Len: length}) {
			continue
		}
		s.seen++
		if s.seen > s.Skip && (s.Count == 0 || s.seen <= s.Skip+s.Count) {
			return &s.FaultRule
		}
	}
	return nil
}

// act does what the rule says.
func (r *FaultRule) act(ctx context.Context) error {
	if r.Delay > 0 {
		t := time.NewTimer(r.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.Hold != nil {
		select {
		case <-r.Hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return r.Err
}

// call runs do under the rule for it.
func (f *Fault) call(ctx context.Context, op Op, off, length int64, do func() error) error {
	r := f.rule(op, off, length)
	if r == nil {
		return do()
	}
	if r.After {
		if err := do(); err != nil {
			return err
		}
		return r.act(ctx)
	}
	if err := r.act(ctx); err != nil {
		return err
	}
	return do()
}

// Size is the size of the wrapped device.
func (f *Fault) Size() int64 { return f.dev.Size() }

// ReadAt implements Device.
func (f *Fault) ReadAt(ctx context.Context, p []byte, off int64) error {
	return f.call(ctx, OpRead, off, int64(len(p)), func() error { return f.dev.ReadAt(ctx, p, off) })
}

// WriteAt implements Device.
func (f *Fault) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return f.call(ctx, OpWrite, off, int64(len(p)), func() error { return f.dev.WriteAt(ctx, p, off, fua) })
}

// Flush implements Device.
func (f *Fault) Flush(ctx context.Context) error {
	return f.call(ctx, OpFlush, 0, 0, func() error { return f.dev.Flush(ctx) })
}

// Trim implements Device.
func (f *Fault) Trim(ctx context.Context, off, length int64, fua bool) error {
	return f.call(ctx, OpTrim, off, length, func() error { return f.dev.Trim(ctx, off, length, fua) })
}

// Zero implements Device.
func (f *Fault) Zero(ctx context.Context, off, length int64, flags ZeroFlags) error {
	return f.call(ctx, OpZero, off, length, func() error { return f.dev.Zero(ctx, off, length, flags) })
}

// Extents implements Device.
func (f *Fault) Extents(ctx context.Context, off, length int64) (list []ExtentState, err error) {
	err = f.call(ctx, OpExtents, off, length, func() error {
		list, err = f.dev.Extents(ctx, off, length)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

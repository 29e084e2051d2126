package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// newSteadyPair is a pair that does not trip because the machine is busy: that would end a verification.
func newSteadyPair(t testing.TB) *pair {
	return newPairWith(t, func(c *Config) { c.TripAfter = time.Minute })
}

// verify runs one verification to its end.
func (p *pair) verify(t testing.TB, id string) store.VerifyObserved {
	t.Helper()
	epoch := p.st.get().Epoch
	p.until(t, "the verification begins", func() bool { // a node that has not seen the record waits
		p.a.Verify("g", VerifyRequest{ID: id, Epoch: epoch})
		o, ok := p.a.ObserveVerify("g")
		return ok && o.ID == id
	})
	return p.verified(t, id)
}

func (p *pair) verified(t testing.TB, id string) store.VerifyObserved {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		o, ok := p.a.ObserveVerify("g")
		if ok && o.ID == id && o.State != store.VerifyRunning {
			return o
		}
		if time.Now().After(end) {
			t.Fatalf("the verification does not end: %+v", o)
		}
	}
}

// behind changes bytes of the secondary's file behind its back.
func (p *pair) behind(t testing.TB, off int64, data []byte) {
	t.Helper()
	f, err := p.fs[1].OpenFile("test", "/pool/vb.raw", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

// equal compares both sides' files in full.
func (p *pair) equal(t testing.TB) {
	t.Helper()
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < testSize; off += int64(len(a)) {
		for v, buf := range map[*Volume][]byte{p.a.Volume("va"): a, p.b.Volume("vb"): b} {
			if err := v.disk.ReadAt(buf, off); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(a, b) {
			t.Fatalf("the sides differ in the MiB at %d", off)
		}
	}
}

// Goal: no false alarm, and no verification that starves, whatever is written: writers hammer one range
// with writes that overlap each other, of every kind, and others everything, while verifications go
// round and round.
func TestVerifyUnderWritesFindsNothing(t *testing.T) {
	p := newSteadyPair(t)
	p.sync(t)
	v := p.a.Volume("va")
	for i, fs := range p.fs { // each side is late at times, so that one has what the other has not yet
		fs.OnOp(func(op vfs.Op) error {
			if op == "raw:write" && rand.IntN(64) == 0 {
				time.Sleep(time.Duration(1+i) * time.Millisecond)
			}
			return nil
		})
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var writes atomic.Int64
	for i := range 6 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			span := int64(verifyBytes)
			if i%3 == 2 { // around it, too; the rest are holes, or a round would take long
				span = 8 << 20
			}
			for ctx.Err() == nil {
				n := 512 * (1 + r.Int64N(64))
				off := 512 * r.Int64N((span-n)/512+1)
				var err error
				switch r.IntN(8) {
				case 0:
					err = v.Zero(ctx, off, n, block.ZeroFlags{NoHole: r.IntN(2) == 0})
				case 1:
					err = v.WriteAt(context.Background(), bytes.Repeat([]byte{byte(r.Uint32())}, int(n)), off, true)
				default:
					err = v.WriteAt(context.Background(), bytes.Repeat([]byte{byte(r.Uint32())}, int(n)), off, false)
				}
				if err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
				writes.Add(1)
			}
		})
	}
	rounds := 0
	for end := time.Now().Add(2 * time.Second); (time.Now().Before(end) || rounds < 2) && !t.Failed(); rounds++ {
		o := p.verify(t, fmt.Sprint(rounds))
		if o.State != store.VerifyEqual || o.Differences.Count != 0 || o.Bytes != testSize {
			t.Errorf("round %d: %+v", rounds, o)
		}
	}
	stop()
	wg.Wait()
	if writes.Load() < 100 {
		t.Errorf("only %d writes in %d rounds: nothing was tested", writes.Load(), rounds)
	}
	t.Logf("%d rounds, %d writes", rounds, writes.Load())
	p.equal(t)
}

// Goal: a difference is found exactly, marked before anything is sent, kept in both versions, repaired
// from the primary, and gone afterwards.
func TestVerifyFindsMarksAndRepairs(t *testing.T) {
	p := newSteadyPair(t)
	p.sync(t)
	v := p.a.Volume("va")
	data := bytes.Repeat([]byte{7}, 3*int(lockstep.ChunkBytes))
	if err := v.WriteAt(context.Background(), data, lockstep.RegionBytes, false); err != nil {
		t.Fatal(err)
	}
	p.until(t, "the marks are cleared", func() bool { return v.disk.IntentBytes() == 0 })
	// In written bytes, over the boundary of two chunks, and where both sides have a hole.
	const at, hole = int64(lockstep.RegionBytes + lockstep.ChunkBytes - 1024), int64(48<<20 + 4096)
	p.behind(t, at, bytes.Repeat([]byte{9}, 2048))
	p.behind(t, hole+100, []byte{1})

	var unmarked, repairs atomic.Int64
	p.fs[1].OnOp(func(op vfs.Op) error {
		if op == "raw:write" || op == "raw:punch" {
			repairs.Add(1)
			// A flush may have cleared the first marks by the time the hole is repaired.
			marked := v.disk.IntentMarked(at, 2048) || v.disk.IntentMarked(hole, 512)
			if !marked || v.disk.DirtyBytes() < lockstep.ChunkBytes {
				unmarked.Add(1)
			}
		}
		return nil
	})
	o := p.verify(t, "1")
	p.fs[1].OnOp(nil)
	if o.State != store.VerifyEqual || o.Differences.Count != 3 || o.Differences.Bytes != 2048+512 || len(o.Differences.First) != 3 {
		t.Fatalf("%+v", o)
	}
	for i, want := range []lockstep.Extent{{Off: at, Len: 1024}, {Off: at + 1024, Len: 1024}, {Off: hole, Len: 512}} {
		d := o.Differences.First[i]
		if d.Volume != "va" || d.Node != "a" || d.Off != want.Off || d.Len != want.Len || !d.Repaired || d.Kept == "" {
			t.Errorf("difference %d: %+v, want %v", i, d, want)
		}
	}
	if repairs.Load() == 0 || unmarked.Load() != 0 {
		t.Errorf("%d repairs, %d of them before their marks", repairs.Load(), unmarked.Load())
	}
	for ext, want := range map[string]byte{".primary": 7, ".secondary": 9} {
		f, err := p.fs[0].OpenFile("t", "/pool/"+o.Differences.First[0].Kept+ext, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, lockstep.ChunkBytes)
		if _, err := f.ReadAt(got, 0); err != nil || got[len(got)-1] != want || got[0] != 7 {
			t.Errorf("%s: %x.., ..%x, %v", ext, got[0], got[len(got)-1], err)
		}
		f.Close()
	}
	p.equal(t)
	if total, differences := p.a.VerifyTotals("g"); total != testSize || differences != 3 {
		t.Errorf("totals: %d, %d", total, differences)
	}
	if o = p.verify(t, "2"); o.State != store.VerifyEqual || o.Differences.Count != 0 {
		t.Errorf("after the repair: %+v", o)
	}
	if len(o.Writes) != 1 || !strings.HasPrefix(o.Writes["a>b"], "1.") {
		t.Errorf("write numbers %v", o.Writes)
	}
	p.until(t, "the marks are cleared", func() bool { return v.disk.IntentBytes() == 0 })
}

// Goal: a difference that was found and not repaired, because everything stopped in between, is not
// forgotten: the next synchronization repairs it without a verification.
func TestFoundDifferenceIsRepairedByTheNextSync(t *testing.T) {
	p := newSteadyPair(t)
	p.sync(t)
	v := p.a.Volume("va")
	p.behind(t, 5<<20, []byte{1, 2, 3})
	p.until(t, "the marks are cleared", func() bool { return v.disk.IntentBytes() == 0 })
	p.fs[0].OnOp(func(op vfs.Op) error {
		if strings.HasPrefix(string(op), "found:") { // after the marks, before the repair
			p.a.StopVerify("g")
		}
		return nil
	})
	p.a.Verify("g", VerifyRequest{ID: "1", Epoch: p.st.get().Epoch})
	p.until(t, "it is stopped", func() bool {
		_, running := p.a.ObserveVerify("g")
		return !running
	})
	p.fs[0].OnOp(nil)
	p.until(t, "the marks of the log are cleared", func() bool { return v.disk.IntentBytes() == 0 })
	if v.disk.DirtyBytes() != lockstep.ChunkBytes {
		t.Fatalf("%d bytes are dirty", v.disk.DirtyBytes())
	}
	err := p.st.change(func(r protocol.Record) (protocol.Record, error) { return r.Trip(r.Epoch, protocol.CauseLink, "test") })
	if err != nil {
		t.Fatal(err)
	}
	p.until(t, "not in sync", func() bool { return !p.st.get().InSync })
	if err := p.st.change(func(r protocol.Record) (protocol.Record, error) { return r.Sync() }); err != nil {
		t.Fatal(err)
	}
	p.until(t, "in sync", func() bool {
		w, _ := p.a.View("g")
		return w.Mode == protocol.ModeTwoSided
	})
	p.equal(t)
	p.until(t, "nothing is dirty", func() bool { return v.disk.DirtyBytes() == 0 })
}

// slow begins a verification that takes for ever, and waits until it has begun.
func (p *pair) slow(t testing.TB, id string) {
	t.Helper()
	v := p.a.Volume("va")
	if err := v.WriteAt(context.Background(), make([]byte, 4<<20), 1<<20, false); err != nil { // no hole
		t.Fatal(err)
	}
	p.a.Verify("g", VerifyRequest{ID: id, Epoch: p.st.get().Epoch, RateBytes: 128 << 10})
	p.until(t, "the verification is in the middle", func() bool {
		o, ok := p.a.ObserveVerify("g")
		return ok && o.ID == id && o.State == store.VerifyRunning && o.Bytes >= 1<<20
	})
}

// Goal: a trip in the middle is no proof, and neither is the way back to in sync.
func TestTripEndsAVerification(t *testing.T) {
	p := newSteadyPair(t)
	p.sync(t)
	p.slow(t, "1")
	err := p.st.change(func(r protocol.Record) (protocol.Record, error) { return r.Trip(r.Epoch, protocol.CauseLink, "a test") })
	if err != nil {
		t.Fatal(err)
	}
	o := p.verified(t, "1")
	if o.State != store.VerifyNotCompleted || !strings.Contains(o.Why, "left in sync") || !strings.Contains(o.Why, "a test") || o.Bytes >= testSize {
		t.Fatalf("%+v", o)
	}
	p.until(t, "not in sync", func() bool { return !p.st.get().InSync })
	if err := p.st.change(func(r protocol.Record) (protocol.Record, error) { return r.Sync() }); err != nil {
		t.Fatal(err)
	}
	p.until(t, "in sync", func() bool { return p.st.get().InSync })
	p.a.Verify("g", VerifyRequest{ID: "1", Epoch: 1})
	if o, _ := p.a.ObserveVerify("g"); o.State != store.VerifyNotCompleted {
		t.Errorf("it came to life again: %+v", o)
	}
	// A policy's epoch is no end of in sync.
	p.slow(t, "2")
	if err := p.st.change(func(r protocol.Record) (protocol.Record, error) { return r.SetStrict(true) }); err != nil {
		t.Fatal(err)
	}
	if o := p.verify(t, "3"); o.State != store.VerifyEqual || o.InSyncEpoch != p.st.get().InSyncEpoch {
		t.Errorf("after a change of the policy: %+v", o)
	}
}

// Goal: a link that breaks in the middle of comparisons makes them void, not different, and the
// verification goes on by itself.
func TestVerifyOverABrokenLink(t *testing.T) {
	p := newSteadyPair(t)
	p.sync(t)
	v := p.a.Volume("va")
	if err := v.WriteAt(context.Background(), bytes.Repeat([]byte{1}, 16<<20), 0, false); err != nil {
		t.Fatal(err)
	}
	p.a.Verify("g", VerifyRequest{ID: "1", Epoch: p.st.get().Epoch, RateBytes: 16 << 20})
	for range 3 {
		time.Sleep(100 * time.Millisecond)
		var l *link
		p.until(t, "there is a link", func() bool {
			v.mu.Lock()
			defer v.mu.Unlock()
			l = v.link
			return l != nil && v.mode == protocol.ModeTwoSided
		})
		l.close()
		if err := v.WriteAt(context.Background(), bytes.Repeat([]byte{2}, 1<<20), 8<<20, false); err != nil {
			t.Fatal(err)
		}
	}
	o := p.verified(t, "1")
	if o.State != store.VerifyEqual || o.Differences.Count != 0 || p.st.get().InSyncEpoch != o.InSyncEpoch {
		t.Errorf("%+v", o)
	}
	p.equal(t)
}

// Goal: after a restart of the process a verification goes on where it was, but only where what it had
// compared is still proven.
func TestVerifyGoesOnAfterARestart(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*store.VerifyObserved)
		want   store.VerifyState
		why    string
		bytes  int64 // by this process
	}{
		"as it was":          {func(*store.VerifyObserved) {}, store.VerifyEqual, "", testSize - 48<<20},
		"another boot":       {func(o *store.VerifyObserved) { o.BootID = "older" }, store.VerifyNotCompleted, "host of node a", 0},
		"another directory":  {func(o *store.VerifyObserved) { o.Instance = "older" }, store.VerifyNotCompleted, "host of node a", 0},
		"another sync":       {func(o *store.VerifyObserved) { o.InSyncEpoch-- }, store.VerifyNotCompleted, "changed while", 0},
		"over":               {func(o *store.VerifyObserved) { o.State, o.Why = store.VerifyNotCompleted, "then" }, store.VerifyNotCompleted, "then", 0},
		"another's progress": {func(o *store.VerifyObserved) { o.ID = "0" }, store.VerifyEqual, "", testSize},
	} {
		t.Run(name, func(t *testing.T) {
			p := newSteadyPair(t)
			p.sync(t)
			r := p.st.get()
			p.behind(t, 50<<20, []byte{5})
			from := store.VerifyObserved{
				ID: "1", Node: "a", BootID: p.a.cfg.BootID, Instance: p.a.cfg.Instance, InSyncEpoch: r.InSyncEpoch, State: store.VerifyRunning,
				Bytes: 48 << 20, Volumes: map[lockstep.VolumeID]store.VerifyProgress{"va": {Position: 48 << 20, Size: testSize}},
			}
			c.change(&from)
			p.a.Verify("g", VerifyRequest{ID: "1", Epoch: r.Epoch, From: from})
			o := p.verified(t, "1")
			done, found := p.a.VerifyTotals("g")
			if o.State != c.want || !strings.Contains(o.Why, c.why) || done != c.bytes {
				t.Errorf("%+v, %d bytes", o, done)
			}
			if (c.want == store.VerifyEqual) != (found == 1) || c.want == store.VerifyEqual && o.Bytes != testSize {
				t.Errorf("%d found: %+v", found, o)
			}
		})
	}
}

// Goal: a node that has not read the record it is asked for, or is no primary, waits.
func TestVerifyWaitsForItsRecord(t *testing.T) {
	p := newSteadyPair(t)
	p.sync(t)
	p.a.Verify("g", VerifyRequest{ID: "1", Epoch: p.st.get().Epoch + 1})
	p.b.Verify("g", VerifyRequest{ID: "1", Epoch: p.st.get().Epoch})
	p.a.Verify("no such group", VerifyRequest{ID: "1"})
	for _, h := range []*Host{p.a, p.b} {
		if o, ok := h.ObserveVerify("g"); ok {
			t.Errorf("node %s began: %+v", h.cfg.Node, o)
		}
	}
}

// Goal: a sector of the primary that cannot be read ends the verification with its place; the volume
// goes on, since no client has asked for it.
func TestVerifyMeetsABadSector(t *testing.T) {
	p := newSteadyPair(t)
	p.sync(t)
	v := p.a.Volume("va")
	if err := v.WriteAt(context.Background(), bytes.Repeat([]byte{1}, 1<<20), 8<<20, false); err != nil {
		t.Fatal(err)
	}
	p.fs[0].OnOp(func(op vfs.Op) error {
		if op == "raw:read" {
			return syscall.EIO
		}
		return nil
	})
	o := p.verify(t, "1")
	p.fs[0].OnOp(nil)
	if o.State != store.VerifyNotCompleted || !strings.Contains(o.Why, "[8388608,+262144)") || !strings.Contains(o.Why, "va") {
		t.Errorf("%+v", o)
	}
	if err := v.WriteAt(context.Background(), []byte{1}, 0, false); err != nil || v.Failed() != nil {
		t.Errorf("the volume failed: %v, %v", err, v.Failed())
	}
}

// Goal: a secondary that does not keep what it is sent is not called equal.
func TestVerifyOfADiskThatKeepsNothing(t *testing.T) {
	p := newSteadyPair(t)
	p.sync(t)
	var inside atomic.Bool
	p.fs[1].OnOp(func(op vfs.Op) error {
		if op == "raw:seekhole" || op == "raw:seekdata" { // it looks at the file, before it reads
			if inside.CompareAndSwap(false, true) {
				p.behind(t, 4<<20, []byte{2})
				inside.Store(false)
			}
		}
		return nil
	})
	o := p.verify(t, "1")
	p.fs[1].OnOp(nil)
	if o.State != store.VerifyNotCompleted || !strings.Contains(o.Why, "differ still") || o.Differences.Count != 1 || o.Differences.First[0].Repaired {
		t.Errorf("%+v", o)
	}
	if dirty := p.a.Volume("va").disk.DirtyBytes(); dirty != lockstep.ChunkBytes {
		t.Errorf("%d bytes are dirty", dirty)
	}
}

// Goal: a claim lets those ops end that were there before, holds off those that come later, from the
// beginning, and outlasts no mode.
func TestQuietRange(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.twoSided(f, 1)
	first := b.write(0, 1)
	h := f.next()
	type got struct {
		q   *quiet
		err error
	}
	claimed := make(chan got, 1)
	claim := func(ctx context.Context) {
		q, err := b.v.quieten(ctx, lockstep.Extent{Off: 0, Len: verifyBytes})
		claimed <- got{q, err}
	}
	go claim(context.Background())
	untilOps(t, b.v, 2)
	later, beside := b.write(4096, 2), b.write(verifyBytes, 3)
	f.ack(f.next()) // beside it, at once
	if err := b.ended(beside); err != nil {
		t.Fatal(err)
	}
	f.none() // the later one waits, although the claim itself still does
	select {
	case <-claimed:
		t.Fatal("claimed with a write in flight")
	default:
	}
	f.ack(h)
	if err := b.ended(first); err != nil {
		t.Fatal(err)
	}
	q := (<-claimed).q
	f.none()
	if err := q.still(); err != nil {
		t.Fatal(err)
	}
	q.release()
	f.ack(f.next())
	if err := b.ended(later); err != nil {
		t.Fatal(err)
	}

	// A mode's end is the claim's.
	go claim(context.Background())
	q = (<-claimed).q
	b.v.setMode(protocol.ModeHeld, 2, nil, nil, "tripping")
	<-q.ctx.Done()
	if err := q.send(lockstep.Extent{Len: 4096}, []byte{1}); !errors.Is(err, errVoid) {
		t.Errorf("sent after the mode's end: %v", err)
	}
	q.release()
	f.none()
	ctx, cancel := context.WithCancel(context.Background())
	go claim(ctx)
	select {
	case <-claimed:
		t.Fatal("claimed while held")
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	if g := <-claimed; !errors.Is(g.err, context.Canceled) {
		t.Errorf("%v", g.err)
	}

	// One that waits for a write gives up with the mode, and tries again in the next.
	b.twoSided(f, 3)
	last := b.write(0, 4)
	f.next()
	go claim(context.Background())
	untilOps(t, b.v, 2)
	b.v.setMode(protocol.ModeRefused, 4, nil, nil, "elsewhere")
	if g := <-claimed; !errors.Is(g.err, lockstep.ErrDemoted) {
		t.Errorf("%v", g.err)
	}
	if err := b.ended(last); !errors.Is(err, lockstep.ErrDemoted) {
		t.Errorf("%v", err)
	}
	if len(b.v.ops) != 0 {
		t.Errorf("%d ops are left", len(b.v.ops))
	}
}

func untilOps(t *testing.T, v *Volume, n int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		v.mu.Lock()
		have := len(v.ops)
		v.mu.Unlock()
		if have == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d ops, want %d", have, n)
		}
	}
}

func TestDifferingSectors(t *testing.T) {
	a, b := make([]byte, 4096), make([]byte, 4096)
	b[0], b[511], b[512], b[2048], b[4095] = 1, 1, 1, 1, 1
	got := differingSectors(a, b, 1<<20)
	want := "[{1048576 1024} {1050624 512} {1052160 512}]"
	if fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	if got := differingSectors(a, a, 0); got != nil {
		t.Errorf("%v", got)
	}
}

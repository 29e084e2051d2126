package replica

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/disk"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

const testSize = 64 << 20

// bed is a volume on a file system in memory, with links whose other end is the test.
type bed struct {
	t  testing.TB
	fs *vfs.Mem
	d  *disk.Volume
	v  *Volume
	g  *Group

	mu    sync.Mutex
	fails []error
}

func newBed(t testing.TB) *bed {
	fs := vfs.NewMem()
	b := newBedOn(t, fs)
	b.fs = fs
	return b
}

func newBedOn(t testing.TB, fs vfs.FS) *bed { return newBedAt(t, fs, "/pool") }

func newBedAt(t testing.TB, fs vfs.FS, dir string) *bed {
	b := &bed{t: t}
	pool, err := disk.OpenPool(dir, disk.Options{FS: fs, Logger: discard()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	if b.d, err = pool.Create("v", testSize); err != nil {
		t.Fatal(err)
	}
	b.v = newVolume(b.d, 1<<40, 0, func(_ *Volume, err error) {
		b.mu.Lock()
		b.fails = append(b.fails, err)
		b.mu.Unlock()
	})
	b.g = &Group{host: &Host{cfg: Config{TripAfter: time.Second, Clock: bootTime}}}
	t.Cleanup(b.v.release)
	return b
}

func (b *bed) failures() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.fails)
}

// far is the other end of a link: it takes frames and answers when told.
type far struct {
	b     *bed
	l     *link
	heads chan wire.Header
}

func (b *bed) link(conn uint64) *far {
	near, other := net.Pipe()
	l := &link{
		group: b.g, peer: "b", session: lockstep.Session{Start: 1, Conn: conn}, boot: "boot", conn: near,
		calls: map[uint64]chan reply{}, sent: map[uint64]time.Duration{}, down: make(chan struct{}),
	}
	f := &far{b: b, l: l, heads: make(chan wire.Header, 1000)}
	go func() {
		var scratch [wire.HeaderSize]byte
		for {
			h, err := wire.ReadHeader(other, &scratch)
			if err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, other, int64(h.BodyLen)); err != nil {
				return
			}
			f.heads <- h
		}
	}()
	b.t.Cleanup(func() { l.close(); _ = other.Close() })
	return f
}

func (f *far) next() wire.Header {
	f.b.t.Helper()
	select {
	case h := <-f.heads:
		return h
	case <-time.After(5 * time.Second):
		f.b.t.Fatal("no frame came")
	}
	return wire.Header{}
}

func (f *far) none() {
	f.b.t.Helper()
	select {
	case h := <-f.heads:
		f.b.t.Fatalf("a frame came: %+v", h)
	case <-time.After(50 * time.Millisecond):
	}
}

func (f *far) ack(h wire.Header) { f.b.v.acknowledged(f.l, h.Epoch, h.Seq) }

func valid(e lockstep.Epoch, d time.Duration) *lease {
	le := newLease(bootTime)
	le.grant(e, bootTime()+d)
	return le
}

func (b *bed) twoSided(f *far, e lockstep.Epoch) {
	b.v.setMode(protocol.ModeTwoSided, e, f.l, valid(e, time.Minute), "")
}

// write begins a write; its outcome comes on the channel.
func (b *bed) write(off int64, fill byte) <-chan error {
	done := make(chan error, 1)
	go func() {
		done <- b.v.WriteAt(context.Background(), bytes.Repeat([]byte{fill}, 4096), off, false)
	}()
	return done
}

func (b *bed) ended(done <-chan error) error {
	b.t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(5 * time.Second):
		b.t.Fatal("a request did not end")
	}
	return nil
}

func (b *bed) waits(done <-chan error) {
	b.t.Helper()
	select {
	case err := <-done:
		b.t.Fatalf("a request ended with %v, too early", err)
	case <-time.After(50 * time.Millisecond):
	}
}

func (b *bed) dirty(off int64) bool { return b.d.Dirty().Get(int(off / lockstep.ChunkBytes)) }

// Goal: a write that is in flight when the mode changes ends as the new mode says, or waits.
func TestWriteInFlightAtModeChange(t *testing.T) {
	held := func(b *bed) { b.v.setMode(protocol.ModeHeld, 2, nil, nil, "tripping") }
	for name, tc := range map[string]struct {
		change func(b *bed, f *far, h wire.Header, done <-chan error)
		want   error
		dirty  bool
	}{
		"one-sided": {change: func(b *bed, _ *far, _ wire.Header, done <-chan error) {
			held(b)
			b.waits(done)
			b.v.setMode(protocol.ModeOneSided, 3, nil, nil, "")
		}, dirty: true},
		"refused": {change: func(b *bed, _ *far, _ wire.Header, _ <-chan error) {
			b.v.setMode(protocol.ModeRefused, 3, nil, nil, "elsewhere")
		}, want: lockstep.ErrDemoted},
		"held and the same mode again": {change: func(b *bed, f *far, h wire.Header, done <-chan error) {
			held(b)
			f.ack(h)
			b.waits(done)
			b.twoSided(f, 1)
			f.ack(f.next()) // it is sent again
		}},
		"acknowledged while draining": {change: func(b *bed, f *far, h wire.Header, done <-chan error) {
			held(b)
			f.ack(h)
			b.waits(done)
			b.v.drainRemote(true)
		}},
		"way back under a newer epoch needs a newer answer": {change: func(b *bed, f *far, h wire.Header, done <-chan error) {
			held(b)
			f.ack(h)
			b.twoSided(f, 3)
			again := f.next()
			f.ack(h) // the older epoch's
			b.waits(done)
			if again.Epoch != 3 || again.Offset != h.Offset {
				b.t.Errorf("sent again: %+v", again)
			}
			f.ack(again)
		}},
		"an older link's answer does not count": {change: func(b *bed, f *far, h wire.Header, done <-chan error) {
			g := b.link(2)
			b.twoSided(g, 1)
			again := g.next()
			f.ack(again) // same epoch and sequence, other session
			f.ack(h)
			b.waits(done)
			g.ack(again)
		}},
		"the node stops": {change: func(b *bed, _ *far, _ wire.Header, _ <-chan error) {
			held(b)
			b.v.release()
		}, want: lockstep.ErrNotPrimary},
		"the volume breaks": {change: func(b *bed, _ *far, _ wire.Header, _ <-chan error) {
			_ = b.v.broken(syscall.EIO)
		}, want: lockstep.ErrVolumeFailed},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			f := b.link(1)
			b.twoSided(f, 1)
			done := b.write(0, 1)
			h := f.next()
			b.waits(done)
			tc.change(b, f, h, done)
			if err := b.ended(done); !errors.Is(err, tc.want) {
				t.Errorf("the write ended with %v, want %v", err, tc.want)
			}
			if b.dirty(0) != tc.dirty {
				t.Errorf("dirty is %v", b.dirty(0))
			}
			if b.d.IntentBytes() == 0 {
				t.Error("the intent is gone")
			}
		})
	}
}

// Goal: what waits in a hold was neither written nor sent, and is refused by a demotion.
func TestHeldRequestIsNeverSubmitted(t *testing.T) {
	b := newBed(t)
	b.v.setMode(protocol.ModeHeld, 1, nil, nil, "")
	done := b.write(0, 7)
	b.waits(done)
	b.v.setMode(protocol.ModeRefused, 2, nil, nil, "elsewhere")
	if err := b.ended(done); !errors.Is(err, lockstep.ErrDemoted) {
		t.Fatal(err)
	}
	p := make([]byte, 1)
	if err := b.d.ReadAt(p, 0); err != nil || p[0] != 0 {
		t.Fatalf("the file holds %d, %v", p[0], err)
	}
}

// Goal: a write under way in its intent mark when the group trips is written one-sided and dirty.
func TestTripWhileMarking(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.twoSided(f, 1)
	in, out := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.fs.OnOp(func(op vfs.Op) error {
		if op == "meta:fdatasync" {
			once.Do(func() { close(in); <-out })
		}
		return nil
	})
	done := b.write(0, 1)
	<-in
	b.v.setMode(protocol.ModeHeld, 2, nil, nil, "tripping")
	if !b.v.quiesce(t.Context(), false, now0) {
		t.Error("a write that is only being marked counts as in flight")
	}
	close(out)
	b.waits(done)
	b.v.setMode(protocol.ModeOneSided, 3, nil, nil, "")
	if err := b.ended(done); err != nil || !b.dirty(0) {
		t.Fatalf("%v, dirty %v", err, b.dirty(0))
	}
	f.none()
}

// Goal: the dirty bit of a write in flight is there after a trip although an in-sync commit has
// cleared the map in between.
func TestDirtyAgainAfterTheMapWasCleared(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.v.setMode(protocol.ModeCopyTwoSided, 1, f.l, valid(1, time.Minute), "")
	done := b.write(0, 1)
	f.next()
	if !b.dirty(0) {
		t.Fatal("not dirty while copying")
	}
	if err := b.d.ClearDirty(); err != nil { // epoch 2, in sync, is adopted
		t.Fatal(err)
	}
	b.v.setMode(protocol.ModeHeld, 3, nil, nil, "tripping")
	b.v.setMode(protocol.ModeOneSided, 4, nil, nil, "")
	if err := b.ended(done); err != nil || !b.dirty(0) {
		t.Fatalf("%v, dirty %v", err, b.dirty(0))
	}
}

// Goal: a pause that is overtaken by a newer record does not wait for acknowledgements that will
// never come; what is submitted locally is waited for.
func TestQuiesceEndsWhenCanceled(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.twoSided(f, 1)
	done := b.write(0, 1)
	f.next()
	b.v.setMode(protocol.ModeHeld, 2, nil, nil, "")
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan bool, 1)
	go func() { result <- b.v.quiesce(ctx, true, time.Now().Add(time.Minute)) }()
	time.Sleep(20 * time.Millisecond)
	cancel()
	select {
	case drained := <-result:
		if drained {
			t.Error("drained without an acknowledgement")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the quiesce does not end")
	}
	b.waits(done)
}

// Goal: writes that overlap are never in flight together; others are.
func TestOverlapOrder(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.twoSided(f, 1)
	first := b.write(0, 1)
	h := f.next()
	second := b.write(2048, 2)
	f.none()
	other := b.write(1<<20, 3)
	o := f.next()
	if o.Offset != 1<<20 {
		t.Fatalf("an overlapping write was sent: %+v", o)
	}
	f.ack(o)
	if err := b.ended(other); err != nil {
		t.Fatal(err)
	}
	f.ack(h)
	if err := b.ended(first); err != nil {
		t.Fatal(err)
	}
	f.ack(f.next())
	if err := b.ended(second); err != nil {
		t.Fatal(err)
	}
}

// Goal: a read that overlaps a write in flight waits for it; a read needs a lease of its epoch
// that holds when the read is answered.
func TestReads(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	le := valid(1, time.Minute)
	b.v.setMode(protocol.ModeTwoSided, 1, f.l, le, "")
	read := func() <-chan error {
		done := make(chan error, 1)
		go func() { done <- b.v.ReadAt(context.Background(), make([]byte, 512), 0) }()
		return done
	}
	w := b.write(0, 1)
	h := f.next()
	r := read()
	b.waits(r)
	f.ack(h)
	if err := errors.Join(b.ended(w), b.ended(r)); err != nil {
		t.Fatal(err)
	}

	le.until.Store(int64(bootTime()) - 1) // expired
	r = read()
	b.waits(r)
	le.grant(0, bootTime()+time.Minute) // an older epoch's
	b.waits(r)
	le.grant(1, bootTime()-time.Second) // the answer to an old request
	b.waits(r)
	le.grant(1, bootTime()+time.Minute)
	if err := b.ended(r); err != nil {
		t.Fatal(err)
	}

	le.until.Store(0)
	r = read()
	b.waits(r)
	b.v.setMode(protocol.ModeRefused, 2, nil, nil, "elsewhere")
	if err := b.ended(r); !errors.Is(err, lockstep.ErrDemoted) {
		t.Fatal(err)
	}
}

// Goal: an error of the disk while a trip is carried out ends the writes in flight and is told;
// they do not wait for ever.
func TestBrokenMapEndsWrites(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.twoSided(f, 1)
	one, two := b.write(0, 1), b.write(8<<20, 1)
	f.next()
	f.next()
	b.fs.OnOp(func(op vfs.Op) error {
		if op == "meta:write" {
			return syscall.EIO
		}
		return nil
	})
	b.v.setMode(protocol.ModeOneSided, 2, nil, nil, "")
	for _, done := range []<-chan error{one, two} {
		if err := b.ended(done); !errors.Is(err, lockstep.ErrVolumeFailed) {
			t.Errorf("ended with %v", err)
		}
	}
	if b.failures() != 1 {
		t.Errorf("told %d times", b.failures())
	}
}

// Goal: a mark that cannot be made breaks the volume, and its group learns it.
func TestBrokenIntent(t *testing.T) {
	b := newBed(t)
	b.v.setMode(protocol.ModeOneSided, 1, nil, nil, "")
	b.fs.OnOp(func(op vfs.Op) error {
		if op == "meta:fdatasync" {
			return syscall.EIO
		}
		return nil
	})
	if err := b.ended(b.write(0, 1)); !errors.Is(err, lockstep.ErrVolumeFailed) {
		t.Fatal(err)
	}
	if b.failures() != 1 {
		t.Fatalf("told %d times", b.failures())
	}
}

// Goal: a full pool fails one write where nothing else depends on it, and the volume where the
// secondary may have what is missing here.
func TestNoSpace(t *testing.T) {
	for _, mode := range []protocol.Mode{protocol.ModePlain, protocol.ModeOneSided, protocol.ModeTwoSided} {
		t.Run(string(mode), func(t *testing.T) {
			b := newBed(t)
			f := b.link(1)
			full := true
			b.fs.OnOp(func(op vfs.Op) error {
				if op == "raw:write" && full {
					return syscall.ENOSPC
				}
				return nil
			})
			if mode == protocol.ModeTwoSided {
				b.twoSided(f, 1)
			} else {
				b.v.setMode(mode, 1, nil, nil, "")
			}
			if err := b.ended(b.write(0, 1)); !errors.Is(err, lockstep.ErrNoSpace) {
				t.Fatal(err)
			}
			full = false
			if mode == protocol.ModeTwoSided {
				if b.v.Failed() == nil {
					t.Fatal("the volume goes on although the sides may differ unnoticed")
				}
				return
			}
			if err := b.ended(b.write(0, 1)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Goal: a large zeroing goes in pieces, and each is acknowledged.
func TestZeroInPieces(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.twoSided(f, 1)
	done := make(chan error, 1)
	go func() { done <- b.v.Zero(context.Background(), 512, testSize-512, block.ZeroFlags{}) }()
	var end uint64 = 512
	for end < testSize {
		h := f.next()
		if h.Kind != wire.KindZero || h.Offset != end || h.Length > uint64(zeroBytes) {
			t.Fatalf("%+v at %d", h, end)
		}
		end += h.Length
		f.ack(h)
	}
	if err := b.ended(done); err != nil {
		t.Fatal(err)
	}
}

// Goal: what is taken back is not written after the end of the epoch, and a demotion waits for it.
func TestRestoreCountsAsLocalIO(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithCancel(t.Context())
	in, out := make(chan struct{}), make(chan struct{})
	b.fs.OnOp(func(op vfs.Op) error {
		if op == "raw:write" {
			close(in)
			<-out
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- b.v.restore(ctx, []byte{1, 2, 3}, lockstep.Extent{Len: 3}) }()
	<-in
	cancel()
	quiet := make(chan error, 1)
	go func() { b.v.quiesce(context.Background(), false, now0); quiet <- nil }()
	b.waits(quiet)
	close(out)
	if err := errors.Join(b.ended(done), b.ended(quiet)); err != nil {
		t.Fatal(err)
	}
	if err := b.v.restore(ctx, []byte{1, 2, 3}, lockstep.Extent{Len: 3}); !errors.Is(err, context.Canceled) {
		t.Fatalf("written after the end: %v", err)
	}
}

// Goal: marks are cleared only for regions without a write in flight.
func TestBackgroundFlushSparesWritesInFlight(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.twoSided(f, 1)
	first := b.write(0, 1)
	h := f.next()
	second := b.write(32<<20, 1)
	f.ack(f.next())
	if err := b.ended(second); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- b.v.backgroundFlush() }()
	fl := f.next()
	if fl.Kind != wire.KindFlush {
		t.Fatalf("%+v", fl)
	}
	f.l.mu.Lock()
	ch := f.l.calls[fl.Seq]
	f.l.mu.Unlock()
	ch <- reply{}
	if err := b.ended(done); err != nil {
		t.Fatal(err)
	}
	left := b.d.Intent()
	if len(left) != 1 || left[0].Off != 0 || left[0].Len != lockstep.RegionBytes {
		t.Fatalf("marked: %v, want the region of the write in flight", left)
	}
	f.ack(h)
	if err := b.ended(first); err != nil {
		t.Fatal(err)
	}
}

func TestIdle(t *testing.T) {
	const r = lockstep.RegionBytes
	got := idle([]lockstep.Extent{{Off: 0, Len: 3 * r}, {Off: 5 * r, Len: r / 2}}, []lockstep.Extent{{Off: r + 5, Len: 1}})
	want := []lockstep.Extent{{Off: 0, Len: r}, {Off: 2 * r, Len: r}, {Off: 5 * r, Len: r / 2}}
	if !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
}

// Goal: a list of differences always fits, and covers everything.
func TestCoarsen(t *testing.T) {
	var exts []lockstep.Extent
	for i := range int64(10000) {
		exts = append(exts, lockstep.Extent{Off: i * 3 * lockstep.ChunkBytes, Len: lockstep.ChunkBytes})
	}
	exts = append(exts, lockstep.Extent{Off: 1 << 40, Len: 5}, lockstep.Extent{Off: 10, Len: 1 << 20})
	all := slices.Clone(exts)
	for _, limit := range []int{0, 1, 2, 100, 20000} {
		got := coarsen(slices.Clone(exts), limit)
		if len(got) > max(limit, 1) {
			t.Errorf("limit %d: %d ranges", limit, len(got))
		}
		for _, e := range all {
			if !slices.ContainsFunc(got, func(g lockstep.Extent) bool { return g.Off <= e.Off && e.End() <= g.End() }) {
				t.Fatalf("limit %d: %v is not covered", limit, e)
			}
		}
	}
	if got := coarsen(slices.Clone(exts), 20000); len(got) < 9000 {
		t.Errorf("%d ranges where %d would fit", len(got), len(exts))
	}
}

package replica

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/bitmap"
	"github.com/lockstep-dr/lockstep/protocol"
)

// copyingBed is a volume whose chunks but the second are still to be sent.
func copyingBed(t *testing.T, le *lease) (*bed, *far) {
	b := newBed(t)
	f := b.link(1)
	if err := b.d.MarkDirty(0, testSize); err != nil {
		t.Fatal(err)
	}
	b.v.setMode(protocol.ModeCopying, 7, f.l, le, "")
	b.v.todo, b.v.todoEpoch, b.v.todoPeer = bitmap.New(int(testSize/lockstep.ChunkBytes)), 7, f.l.life()
	b.v.todo.SetAll()
	b.v.todo.Clear(1)
	return b, f
}

// Goal: a write to chunks that are still to be sent is acknowledged one-sided, is dirty, and its chunks
// are still to be sent; every other one needs the secondary.
func TestCopyingSendsAWriteOrItsChunk(t *testing.T) {
	b, f := copyingBed(t, nil)
	if err := b.ended(b.write(0, 1)); err != nil {
		t.Fatal(err)
	}
	f.none()
	if !b.dirty(0) || !b.v.todo.Get(0) {
		t.Fatalf("dirty %v, still to be sent %v", b.dirty(0), b.v.todo.Get(0))
	}
	for _, off := range []int64{lockstep.ChunkBytes, lockstep.ChunkBytes - 512, 2*lockstep.ChunkBytes - 512} {
		done := b.write(off, 2)
		h := f.next()
		b.waits(done)
		f.ack(h)
		if err := b.ended(done); err != nil {
			t.Fatal(err)
		}
	}
	b.v.todo.ClearAll()
	done := b.write(0, 3)
	f.ack(f.next())
	if err := b.ended(done); err != nil {
		t.Fatal(err)
	}
}

// Goal: the same in a batch.
func TestCopyingBatch(t *testing.T) {
	b, f := copyingBed(t, nil)
	if err := b.ended(b.write(0, 1)); err != nil { // marks the region
		t.Fatal(err)
	}
	batch, o := b.v.NewBatch(), newOutcome()
	if !batch.Write(page(2), 4096, o) {
		t.Fatal("refused, although its region is marked, its chunk dirty and nothing in the way")
	}
	o.pending(t, "before Run")
	batch.Run()
	if err := o.ended(t); err != nil {
		t.Fatal(err)
	}
	f.none()
	o = newOutcome()
	if !batch.Write(page(3), lockstep.ChunkBytes, o) {
		t.Fatal("refused")
	}
	batch.Run()
	h := f.next()
	o.pending(t, "without the secondary's answer")
	f.ack(h)
	if err := o.ended(t); err != nil {
		t.Fatal(err)
	}
	if err := b.d.ClearDirty(); err != nil {
		t.Fatal(err)
	}
	if batch.Write(page(4), 8192, newOutcome()) {
		t.Fatal("a batch took a write to a chunk that is not dirty: marking it is a sync")
	}
}

// Goal: a list of another epoch or of another life of the secondary says nothing; two-sided at the end of
// a copying needs the secondary at all times.
func TestCopyingListIsOfOneEpochAndPeer(t *testing.T) {
	for name, change := range map[string]func(b *bed, f *far){
		"epoch":     func(b *bed, _ *far) { b.v.todoEpoch = 6 },
		"peer":      func(b *bed, _ *far) { b.v.todoPeer.boot = "another" },
		"directory": func(b *bed, _ *far) { b.v.todoPeer.instance = "another" },
		"none":      func(b *bed, _ *far) { b.v.todo = nil },
		"two-sided": func(b *bed, f *far) { b.v.setMode(protocol.ModeCopyTwoSided, 7, f.l, valid(7, time.Minute), "") },
	} {
		t.Run(name, func(t *testing.T) {
			b, f := copyingBed(t, nil)
			change(b, f)
			done := b.write(0, 1)
			h := f.next()
			b.waits(done)
			f.ack(h)
			if err := b.ended(done); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Goal: strict, such a write needs the store's lease, as one-sided; what still waits when the volume becomes
// two-sided is sent, and needs the secondary then.
func TestCopyingStrict(t *testing.T) {
	le := newLease(bootTime)
	b, f := copyingBed(t, le)
	first := b.write(0, 1)
	b.waits(first)
	le.grant(7, bootTime()+time.Minute)
	b.v.mu.Lock()
	b.v.completeAll()
	b.v.mu.Unlock()
	if err := b.ended(first); err != nil {
		t.Fatal(err)
	}
	f.none()

	b, f = copyingBed(t, newLease(bootTime))
	second := b.write(0, 2)
	b.waits(second)
	b.v.setMode(protocol.ModeCopyTwoSided, 7, f.l, valid(7, time.Minute), "")
	h := f.next()
	b.waits(second)
	f.ack(h)
	if err := b.ended(second); err != nil {
		t.Fatal(err)
	}
}

// Goal: both sides are the same after a synchronization under writes to everywhere, in requests and in batches.
func TestSynchronizationUnderWrites(t *testing.T) {
	p := newPair(t)
	a, b := p.a.Volume("va"), p.b.Volume("vb")
	for off := int64(0); off < testSize; off += compareBytes {
		if err := a.disk.WriteAt(bytes.Repeat([]byte{byte(off>>20) + 1}, compareBytes), off); err != nil {
			t.Fatal(err)
		}
	}
	stop, ended := make(chan struct{}), make(chan error, 2)
	write := func(seed int64, f func(off int64, fill byte) error) {
		n := int64(0)
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			n++
			off := (seed + n*7919*4096) % (testSize - 4096)
			if err := f(off/4096*4096, byte(n)); err != nil {
				ended <- err
				return
			}
		}
	}
	go write(0, func(off int64, fill byte) error { return a.WriteAt(context.Background(), page(fill), off, false) })
	go write(testSize/2, func(off int64, fill byte) error {
		batch, o := a.NewBatch(), newOutcome()
		if !batch.Write(page(fill), off, o) {
			return a.WriteAt(context.Background(), page(fill), off, false)
		}
		batch.Run()
		return <-o.ch
	})
	p.sync(t)
	close(stop)
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	have, want := make([]byte, testSize), make([]byte, testSize)
	if err := a.disk.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := b.disk.ReadAt(have, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		for off := range have {
			if have[off] != want[off] {
				t.Fatalf("different from %d on", off)
			}
		}
	}
}

package replica

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
)

// outcome is a block.Completion that remembers.
type outcome struct{ ch chan error }

func newOutcome() *outcome { return &outcome{ch: make(chan error, 1)} }

func (o *outcome) Done(err error) block.Flusher {
	o.ch <- err
	return nil
}

func (o *outcome) pending(t *testing.T, when string) {
	t.Helper()
	select {
	case err := <-o.ch:
		t.Fatalf("%s the write has ended: %v", when, err)
	case <-time.After(20 * time.Millisecond):
	}
}

func (o *outcome) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-o.ch:
		return err
	case <-time.After(5 * time.Second):
		t.Fatal("the write has not ended")
	}
	return nil
}

// twoSidedBed is a volume in sync with a far end, whose first regions are marked.
func twoSidedBed(t *testing.T) (*bed, *far) {
	b := newBed(t)
	f := b.link(1)
	b.v.setMode(protocol.ModeTwoSided, 1, f.l, valid(1, time.Minute), "")
	w := b.write(0, 1)
	f.ack(f.next())
	if err := b.ended(w); err != nil {
		t.Fatal(err)
	}
	return b, f
}

func page(fill byte) []byte { return bytes.Repeat([]byte{fill}, 4096) }

// TestBatchWriteNeedsBothSides: a write of a batch is told as done when it is applied here and acknowledged
// there, in whichever order, and not before.
func TestBatchWriteNeedsBothSides(t *testing.T) {
	b, f := twoSidedBed(t)
	batch, o := b.v.NewBatch(), newOutcome()
	if !batch.Write(page(2), 4096, o) {
		t.Fatal("refused, although the region is marked and nothing is in the way")
	}
	o.pending(t, "before Run")
	batch.Run()
	h := f.next()
	o.pending(t, "without the other side's answer")
	f.ack(h)
	if err := o.ended(t); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if !batch.Read(got, 4096) || !bytes.Equal(got, page(2)) {
		t.Fatal("what was written is not there")
	}

	// The answer may come before the local write: the frame leaves first.
	o = newOutcome()
	if !batch.Write(page(3), 8192, o) {
		t.Fatal("refused")
	}
	f.l.push()
	f.ack(f.next())
	o.pending(t, "before it is applied here")
	batch.Run()
	if err := o.ended(t); err != nil {
		t.Fatal(err)
	}
}

// TestBatchRefusesWhatMustWait: what a batch does not take has had no effect.
func TestBatchRefusesWhatMustWait(t *testing.T) {
	b, f := twoSidedBed(t)
	batch := b.v.NewBatch()
	refused := func(why string, off int64, n int) {
		t.Helper()
		o := newOutcome()
		if batch.Write(make([]byte, n), off, o) {
			t.Errorf("%s: the write was begun", why)
		}
		batch.Run()
		o.pending(t, why)
	}
	if b.d.IntentMarked(testSize-4096, 4096) {
		t.Fatal("the last region is marked")
	}
	refused("a region without a mark", testSize-4096, 4096)
	refused("beyond the end", testSize, 4096)
	refused("nothing", 0, 0)

	o := newOutcome()
	if !batch.Write(page(2), 4096, o) {
		t.Fatal("refused")
	}
	refused("an overlapping write in flight", 4096+512, 512)
	batch.Run()
	h := f.next()
	got := make([]byte, 4096)
	if batch.Read(got, 4096) {
		t.Error("a read gave what is not acknowledged")
	}
	if !batch.Read(got, 0) || got[0] != 1 {
		t.Error("a read beside it was refused")
	}
	f.ack(h)
	if err := o.ended(t); err != nil {
		t.Fatal(err)
	}

	b.v.mu.Lock()
	b.v.lease = valid(1, -time.Minute)
	b.v.mu.Unlock()
	if batch.Read(got, 0) {
		t.Error("a read was answered without a lease")
	}
	for _, mode := range []protocol.Mode{protocol.ModeHeld, protocol.ModeRefused} {
		b.v.setMode(mode, 1, nil, nil, "test")
		refused(string(mode), 0, 4096)
		if batch.Read(got, 0) {
			t.Errorf("%s: a read was answered", mode)
		}
	}
	b.v.setMode(protocol.ModeOneSided, 2, nil, nil, "")
	refused("one-sided, where it has to be noted as dirty first", 0, 4096)
}

// TestBatchWriteAcrossAChangeOfLinks: what was begun on a link that dies is sent again on the next, and only
// the answer of that one counts.
func TestBatchWriteAcrossAChangeOfLinks(t *testing.T) {
	b, f := twoSidedBed(t)
	batch, o := b.v.NewBatch(), newOutcome()
	if !batch.Write(page(2), 4096, o) {
		t.Fatal("refused")
	}
	b.v.setMode(protocol.ModeHeld, 1, nil, nil, "the link broke")
	batch.Run()
	f.ack(f.next())
	o.pending(t, "while held")
	f2 := b.link(2)
	b.v.setMode(protocol.ModeTwoSided, 2, f2.l, valid(2, time.Minute), "")
	h := f2.next()
	o.pending(t, "on the new link, without its answer")
	f2.ack(h)
	if err := o.ended(t); err != nil {
		t.Fatal(err)
	}
}

// TestBatchWriteFails: an error of the disk is told, and is the volume's.
func TestBatchWriteFails(t *testing.T) {
	b, _ := twoSidedBed(t)
	b.fs.OnOp(func(op vfs.Op) error {
		if op == "raw:write" {
			return errors.New("broken on purpose")
		}
		return nil
	})
	batch, o := b.v.NewBatch(), newOutcome()
	if !batch.Write(page(2), 4096, o) {
		t.Fatal("refused")
	}
	batch.Run()
	if err := o.ended(t); !errors.Is(err, lockstep.ErrVolumeFailed) {
		t.Fatalf("got %v", err)
	}
	if b.failures() != 1 || batch.Write(page(3), 8192, newOutcome()) {
		t.Fatalf("%d failures told; or a failed volume takes writes", b.failures())
	}
}

// flushed is a completion with a flusher, which counts.
type flushed struct {
	outcome
	told chan struct{}
}

func (f *flushed) Done(err error) block.Flusher {
	f.outcome.Done(err)
	return f
}

func (f *flushed) Flush() { f.told <- struct{}{} }

// TestAnswersLeave: whoever ends a write of a batch sends its answer on its way.
func TestAnswersLeave(t *testing.T) {
	begin := func(v *Volume) *flushed {
		t.Helper()
		o := &flushed{outcome{make(chan error, 1)}, make(chan struct{}, 1)}
		batch := v.NewBatch()
		if !batch.Write(page(2), 4096, o) {
			t.Fatal("refused")
		}
		batch.Run()
		return o
	}
	told := func(o *flushed, by string) {
		t.Helper()
		_ = o.ended(t)
		select {
		case <-o.told:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: the answer stays", by)
		}
	}
	t.Run("reader of answers", func(t *testing.T) {
		p := newPair(t)
		p.sync(t)
		v := p.a.Volume("va")
		if err := v.WriteAt(t.Context(), page(1), 0, false); err != nil { // the mark
			t.Fatal(err)
		}
		told(begin(v), "the secondary's answer")
	})
	t.Run("change of the mode", func(t *testing.T) {
		b, _ := twoSidedBed(t)
		o := begin(b.v)
		b.v.setMode(protocol.ModeRefused, 2, nil, nil, "elsewhere")
		told(o, "refused")
	})
	t.Run("one-sided", func(t *testing.T) {
		b, _ := twoSidedBed(t)
		o := begin(b.v)
		b.v.setMode(protocol.ModeOneSided, 2, nil, nil, "")
		told(o, "one-sided")
		if !b.dirty(4096) {
			t.Error("acknowledged one-sided, and not dirty")
		}
	})
	t.Run("the node stops", func(t *testing.T) {
		b, _ := twoSidedBed(t)
		o := begin(b.v)
		b.v.release()
		told(o, "release")
	})
}

// TestOpIsNotUsedAgainWhileLookedAt: the change to one-sided gives the lock up between the writes in flight;
// one that ends meanwhile must not stand for another write.
func TestOpIsNotUsedAgainWhileLookedAt(t *testing.T) {
	b, _ := twoSidedBed(t)
	batch, o := b.v.NewBatch(), newOutcome()
	if !batch.Write(page(2), 4096, o) {
		t.Fatal("refused")
	}
	batch.Run()
	var once sync.Once
	b.fs.OnOp(func(op vfs.Op) error {
		if op == "meta:write" { // the dirty map
			once.Do(b.v.release)
		}
		return nil
	})
	b.v.setMode(protocol.ModeOneSided, 2, nil, nil, "")
	if err := o.ended(t); !errors.Is(err, errStopped) {
		t.Fatalf("ended with %v: the lock was not given up", err)
	}
	b.v.mu.Lock()
	defer b.v.mu.Unlock()
	if n := len(b.v.spare); n != 0 {
		t.Fatalf("%d ops to be used again", n)
	}
}

// TestBatchesOfAStreamMarkAhead: the marks are there before the stream comes to them.
func TestBatchesOfAStreamMarkAhead(t *testing.T) {
	b, f := twoSidedBed(t) // the first group is marked
	w := b.write(16<<20, 1)
	f.ack(f.next())
	if err := b.ended(w); err != nil {
		t.Fatal(err)
	}
	end := b.d.IntentBytes()
	batch, o := b.v.NewBatch(), newOutcome()
	if !batch.Write(page(2), end-4096, o) {
		t.Fatal("refused")
	}
	batch.Run()
	f.ack(f.next())
	if err := o.ended(t); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(5 * time.Second); !b.d.IntentMarked(end, 4096); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("nothing is marked behind %d MiB", end>>20)
		}
	}
}

// cachedFS lets something happen in the middle of a read from memory.
type cachedFS struct{ *halvesFS }

type cachedFile struct{ *halvesFile }

func (c *cachedFS) OpenFile(label, path string, flags int) (vfs.File, error) {
	f, err := c.halvesFS.OpenFile(label, path, flags)
	if h, ok := f.(*halvesFile); ok {
		f = &cachedFile{h}
	}
	return f, err
}

func (f *cachedFile) ReadCached(p []byte, off int64) bool {
	n, err := f.ReadAt(p, off)
	return n == len(p) && err == nil
}

// TestBatchReadIsNotTorn: a write that comes while a batch reads makes the read void.
func TestBatchReadIsNotTorn(t *testing.T) {
	fs := &cachedFS{&halvesFS{FS: vfs.NewMem()}}
	b := newBedOn(t, fs)
	b.v.setMode(protocol.ModePlain, 1, nil, nil, "")
	batch, p := b.v.NewBatch(), make([]byte, 3*4096)
	if !batch.Read(p, 0) {
		t.Fatal("refused with nothing in the way")
	}
	fs.between = func() {
		fs.between = nil
		if err := b.ended(b.write(4096, 2)); err != nil {
			t.Error(err)
		}
	}
	if batch.Read(p, 0) {
		t.Fatal("a read that was written into was given out")
	}
	fs.between = func() {
		fs.between = nil
		b.v.setMode(protocol.ModePlain, 2, nil, nil, "")
	}
	if batch.Read(p, 0) {
		t.Fatal("a read over a change of the mode was given out")
	}
	if !batch.Read(p, 0) || len(b.v.reads) != 0 {
		t.Fatalf("refused with nothing in the way, or reads left: %d", len(b.v.reads))
	}
}

// TestBatchDoesNotAllocate holds the promise of the write path.
func TestBatchDoesNotAllocate(t *testing.T) {
	b := newBedAt(t, vfs.OS, t.TempDir())
	b.v.setMode(protocol.ModePlain, 1, nil, nil, "")
	batch, p, got := b.v.NewBatch(), page(1), make([]byte, 4096)
	o := newOutcome()
	cached := true // not every file system can tell
	one := func() {
		if !batch.Write(p, 0, o) {
			t.Fatal("refused")
		}
		batch.Run()
		if err := <-o.ch; err != nil {
			t.Fatal(err)
		}
		if cached {
			cached = batch.Read(got, 0)
		}
	}
	one()
	if n := testing.AllocsPerRun(200, one); n > 0 {
		t.Errorf("%v allocations for a write and a read", n)
	}
}

// TestReplicatedWriteDoesNotAllocate: neither here nor at the secondary, which is in this process, too.
func TestReplicatedWriteDoesNotAllocate(t *testing.T) {
	p := newPair(t, t.TempDir(), t.TempDir())
	p.sync(t)
	v := p.a.Volume("va")
	if err := v.WriteAt(t.Context(), page(1), 0, false); err != nil { // the mark
		t.Fatal(err)
	}
	batch, data, o := v.NewBatch(), page(2), newOutcome()
	one := func() {
		if !batch.Write(data, 0, o) {
			t.Fatal("refused")
		}
		batch.Run()
		if err := <-o.ch; err != nil {
			t.Fatal(err)
		}
	}
	one()
	if n := testing.AllocsPerRun(2000, one); n > 0 { // heartbeats and the like make far less than one each
		t.Errorf("%v allocations for a write", n)
	}
}

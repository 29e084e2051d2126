package replica

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
)

// halvesFS reads raw files in two halves, as the kernel reads page by page and copies a page while
// somebody writes to it. between runs between them, if it is set.
type halvesFS struct {
	vfs.FS
	between func()
}

type halvesFile struct {
	vfs.File
	fs *halvesFS
}

func (h *halvesFS) OpenFile(label, path string, flags int) (vfs.File, error) {
	f, err := h.FS.OpenFile(label, path, flags)
	if err == nil && filepath.Ext(path) == ".raw" {
		f = &halvesFile{f, h}
	}
	return f, err
}

func (f *halvesFile) ReadAt(p []byte, off int64) (int, error) {
	half := len(p) / 2
	n, err := f.File.ReadAt(p[:half], off)
	if err != nil {
		return n, err
	}
	if f.fs.between != nil {
		f.fs.between()
	}
	m, err := f.File.ReadAt(p[half:], off+int64(half))
	return n + m, err
}

// TestReadIsNotTornByAWrite: a block that is written while it is read is given out as it was before
// or after, as any disk does, and not half of each.
func TestReadIsNotTornByAWrite(t *testing.T) {
	for _, mode := range []protocol.Mode{protocol.ModePlain, protocol.ModeOneSided, protocol.ModeTwoSided} {
		t.Run(string(mode), func(t *testing.T) {
			fs := &halvesFS{FS: vfs.NewMem()}
			b := newBedOn(t, fs)
			f := b.link(1)
			b.v.setMode(mode, 1, f.l, valid(1, time.Minute), "")
			write := func(fill byte) {
				t.Helper()
				w := b.write(4096, fill)
				if mode == protocol.ModeTwoSided {
					f.ack(f.next())
				}
				if err := b.ended(w); err != nil {
					t.Error(err)
				}
			}
			write(1)
			// A write comes while the first block of a longer range is read, and so does one when that
			// is read again.
			times := 0
			fs.between = func() {
				if times++; times <= 2 {
					write(byte(1 + times))
				}
			}
			p := make([]byte, 3*4096)
			if err := b.v.ReadAt(context.Background(), p, 0); err != nil {
				t.Fatal(err)
			}
			got := p[4096:8192]
			if !bytes.Equal(got, bytes.Repeat(got[:1], 4096)) {
				t.Errorf("the block begins with %d and ends with %d", got[0], got[4095])
			}
			if got[0] != 3 {
				t.Errorf("the block holds %d; a write of 3 was acknowledged while it was read", got[0])
			}
			for _, i := range []int{0, 4095, 8192, len(p) - 1} {
				if p[i] != 0 {
					t.Errorf("byte %d is %d, and was never written", i, p[i])
				}
			}
			if len(b.v.reads) != 0 {
				t.Errorf("%d reads are left", len(b.v.reads))
			}
		})
	}
}

// TestReadWaitsForAWriteThatIsApplied: one that began before the read tears it just as well.
func TestReadWaitsForAWriteThatIsApplied(t *testing.T) {
	fs := &halvesFS{FS: vfs.NewMem()}
	b := newBedOn(t, fs)
	b.v.setMode(protocol.ModeOneSided, 1, nil, nil, "")
	if err := b.ended(b.write(0, 1)); err != nil {
		t.Fatal(err)
	}
	o := &op{kind: opWrite, done: make(chan error, 1), data: bytes.Repeat([]byte{2}, 4096)}
	o.ext.Len = 4096
	b.v.mu.Lock()
	if err := b.v.admit(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	if _, err := b.v.submit(o); err != nil {
		t.Fatal(err)
	}
	b.v.mu.Unlock()
	first := true
	fs.between = func() {
		if !first {
			return
		}
		first = false
		if err := b.v.apply(o); err != nil {
			t.Error(err)
		}
		b.v.mu.Lock()
		b.v.submitted--
		o.local = true
		b.v.complete(o)
		b.v.settle()
		b.v.mu.Unlock()
	}
	p := make([]byte, 4096)
	if err := b.v.ReadAt(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, o.data) {
		t.Errorf("the block begins with %d and ends with %d", p[0], p[4095])
	}
}

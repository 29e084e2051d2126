package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"syscall"
)

type memFile struct {
	m      *Mem
	n      *node
	label  string
	name   string
	closed bool
}

// begin runs the hook and takes the lock; the caller releases it when err is nil.
func (f *memFile) begin(op string) error {
	if err := f.m.before(f.label, op); err != nil {
		return pathErr(op, f.name, err)
	}
	f.m.mu.Lock()
	if f.closed {
		f.m.mu.Unlock()
		return pathErr(op, f.name, fs.ErrClosed)
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.begin("read"); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	if off >= f.n.size {
		return 0, io.EOF
	}
	want := len(p)
	p = p[:min(int64(want), f.n.size-off)]
	for done := 0; done < len(p); {
		pg, in := (off+int64(done))/memPage, (off+int64(done))%memPage
		dst := p[done:min(len(p), done+int(memPage-in))]
		if data := f.n.pages[pg]; data != nil {
			copy(dst, data[in:])
		} else {
			clear(dst)
		}
		done += len(dst)
	}
	if len(p) < want {
		return len(p), io.EOF
	}
	return len(p), nil
}

// ReadCached implements CachedReader: everything is in memory.
func (f *memFile) ReadCached(p []byte, off int64) bool {
	n, err := f.ReadAt(p, off)
	return n == len(p) && err == nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.begin("write"); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	n, done := f.n, 0
	for done < len(p) {
		at := off + int64(done)
		pg, in := at/memPage, at%memPage
		src := p[done:min(len(p), done+int(memPage-in))]
		data := new([memPage]byte)
		if old := n.pages[pg]; old != nil {
			*data = *old
		} else {
			if f.m.used+memPage > f.m.total {
				return done, pathErr("write", f.name, syscall.ENOSPC)
			}
			f.m.used += memPage
		}
		copy(data[in:], src)
		n.pages[pg] = data
		f.grew(at + int64(len(src)))
		var mask uint8
		for s := in / 512; s*512 < in+int64(len(src)); s++ {
			mask |= 1 << s
		}
		n.pending = append(n.pending, change{page: pg, data: data, mask: mask})
		done += len(src)
	}
	return done, nil
}

func (f *memFile) grew(size int64) {
	if size > f.n.size {
		f.n.size = size
		f.n.pending = append(f.n.pending, change{resize: true, size: size})
	}
}

func (f *memFile) Fdatasync() error {
	if err := f.m.before(f.label, "fdatasync"); err != nil {
		if !errors.Is(err, ErrGone) {
			f.m.mu.Lock()
			f.n.pending = nil // as Linux does: the pages are marked clean and were never written
			f.m.mu.Unlock()
		}
		return pathErr("fdatasync", f.name, err)
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.closed {
		return pathErr("fdatasync", f.name, fs.ErrClosed)
	}
	for _, c := range f.n.pending {
		c.apply(f.n, 0xff)
	}
	f.n.pending = nil
	return nil
}

// apply carries the change, or of a write the sectors in keep, over to the stable contents.
func (c change) apply(n *node, keep uint8) {
	if c.resize {
		n.stSize = cut(n.stable, n.stSize, c.size)
		return
	}
	if c.data == nil {
		delete(n.stable, c.page)
		return
	}
	if c.mask&keep == 0xff {
		n.stable[c.page] = c.data
		return
	}
	pg := new([memPage]byte)
	if old := n.stable[c.page]; old != nil {
		*pg = *old
	}
	n.stable[c.page] = pg
	for s := range 8 {
		if c.mask&keep&(1<<s) != 0 {
			copy(pg[s*512:(s+1)*512], c.data[s*512:])
		}
	}
}

// cut drops what lies beyond size and returns size.
func cut(p pages, old, size int64) int64 {
	if size < old {
		for k, data := range p {
			if k*memPage >= size {
				delete(p, k)
			} else if (k+1)*memPage > size {
				cp := *data
				clear(cp[size-k*memPage:])
				p[k] = &cp
			}
		}
	}
	return size
}

func (f *memFile) truncate(size int64) {
	if size == f.n.size {
		return
	}
	before := len(f.n.pages)
	f.n.size = cut(f.n.pages, f.n.size, size)
	f.m.used -= int64(before-len(f.n.pages)) * memPage
	f.n.pending = append(f.n.pending, change{resize: true, size: size})
}

func (f *memFile) Truncate(size int64) error {
	if err := f.begin("truncate"); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	f.truncate(size)
	return nil
}

func (f *memFile) Size() (int64, error) {
	if err := f.begin("size"); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	return f.n.size, nil
}

func (f *memFile) PunchHole(off, length int64) error {
	if err := f.begin("punch"); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	if f.m.noPunch {
		return pathErr("punch", f.name, ErrUnsupported)
	}
	end := min(off+length, f.n.size)
	for at := off; at < end; {
		pg, in := at/memPage, at%memPage
		to := min(end, (pg+1)*memPage)
		data := f.n.pages[pg]
		switch {
		case data == nil:
		case in == 0 && (to == (pg+1)*memPage || to == f.n.size):
			delete(f.n.pages, pg)
			f.m.used -= memPage
			f.n.pending = append(f.n.pending, change{page: pg})
		default:
			after := *data
			clear(after[in : to-pg*memPage])
			f.n.pages[pg] = &after
			var mask uint8
			for s := in / 512; s*512 < to-pg*memPage; s++ {
				mask |= 1 << s
			}
			f.n.pending = append(f.n.pending, change{page: pg, data: &after, mask: mask})
		}
		at = to
	}
	return nil
}

func (f *memFile) SeekData(off int64) (int64, error) { return f.seek("seekdata", off, true) }
func (f *memFile) SeekHole(off int64) (int64, error) { return f.seek("seekhole", off, false) }

func (f *memFile) seek(op string, off int64, data bool) (int64, error) {
	if err := f.begin(op); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	if off >= f.n.size {
		return 0, io.EOF
	}
	if !data {
		at := off
		for at < f.n.size && f.n.pages[at/memPage] != nil {
			at = (at/memPage + 1) * memPage
		}
		return min(at, f.n.size), nil
	}
	best := int64(-1) // files are sparse: look at the pages there are, not at every offset
	for pg := range f.n.pages {
		at := max(off, pg*memPage)
		if (pg+1)*memPage > off && at < f.n.size && (best < 0 || at < best) {
			best = at
		}
	}
	if best < 0 {
		return 0, io.EOF
	}
	return best, nil
}

func (f *memFile) CloneFrom(src File) error {
	if err := f.begin("clone"); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	s, ok := src.(*memFile)
	if !ok || !f.m.reflink {
		return pathErr("clone", f.name, fmt.Errorf("no shared extents: %w", ErrUnsupported))
	}
	for _, pg := range slices.Sorted(maps.Keys(f.n.pages)) { // sorted: one seed, one crash
		if pg*memPage < s.n.size && s.n.pages[pg] == nil {
			delete(f.n.pages, pg)
			f.m.used -= memPage
			f.n.pending = append(f.n.pending, change{page: pg})
		}
	}
	for _, pg := range slices.Sorted(maps.Keys(s.n.pages)) {
		data := s.n.pages[pg]
		if f.n.pages[pg] == nil {
			f.m.used += memPage // shared space is counted twice; good enough for tests
		}
		f.n.pages[pg] = data
		f.n.pending = append(f.n.pending, change{page: pg, data: data, mask: 0xff})
	}
	f.grew(s.n.size)
	return nil
}

func (f *memFile) Lock() error {
	if err := f.begin("lock"); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	if f.n.locked != nil && f.n.locked != f {
		return ErrLocked
	}
	f.n.locked = f
	return nil
}

func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.closed {
		return pathErr("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	if f.n.locked == f {
		f.n.locked = nil
	}
	f.m.unlink(f.n)
	return nil
}

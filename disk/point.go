package disk

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/bitmap"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// pointState is the recovery point of a volume, if it has one.
type pointState struct {
	cur atomic.Pointer[point]
	// mu guards the change of cur and a point's tail, seq, durable and appended. It is held over
	// the I/O of setting, appending to, applying and dropping a point, all of which must not
	// overlap; the sync of an append is outside of it.
	mu sync.Mutex
}

// point is one recovery point. With reflink the old contents are the .point file, else the records
// of the undo file f.
type point struct {
	undoHeader
	f      vfs.File
	damage error // set: the point cannot be used, only dropped

	saved    *bitmap.Atomic // chunks whose old contents are durable
	run      sharedRun      // syncs of f
	appended *bitmap.Bitmap // chunks whose old contents are in f
	tail     int64          // end of the last whole record
	seq      uint64         // of the next record
	lastData int64          // end of the last record that is not a seal
	durable  int64          // length of f known to be durable
}

func (s *pointState) close() error {
	if p := s.cur.Load(); p != nil && p.f != nil {
		return p.f.Close()
	}
	return nil
}

func (s *pointState) grow(chunks int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.cur.Load(); p != nil && p.damage == nil {
		p.saved.Grow(chunks)
		p.appended.Grow(chunks)
	}
}

func (v *Volume) newPoint(h undoHeader, f vfs.File) *point {
	chunks := int(chunksOf(v.size.Load()))
	p := &point{
		undoHeader: h, f: f, saved: bitmap.NewAtomic(chunks), appended: bitmap.New(chunks),
		tail: undoHead, seq: 1, durable: undoHead,
	}
	p.run.init()
	return p
}

// loadPoint finds the recovery point that an earlier run left.
func (v *Volume) loadPoint() error {
	path := v.pool.path(v.id, extUndo)
	f, err := v.pool.fs.OpenFile("undo", path, 0)
	if errors.Is(err, fs.ErrNotExist) {
		// A clone without its header: setting it was not finished, or dropping it was.
		return v.pool.removeFiles("point", v.pool.path(v.id, extPoint))
	}
	if err != nil {
		return err
	}
	p, err := v.readPoint(f)
	if errors.Is(err, lockstep.ErrCorrupt) {
		v.log.Error("the recovery point cannot be used", "err", err)
		p, err = &point{f: f, damage: fmt.Errorf("recovery point of %s: %w", v.id, err)}, nil
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	v.undo.cur.Store(p)
	return nil
}

func (v *Volume) readPoint(f vfs.File) (*point, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	head := make([]byte, min(size, undoHead))
	if err := readFull(f, head, 0); err != nil {
		return nil, err
	}
	h, err := decodeUndoHeader(v.id, head)
	if err != nil {
		return nil, err
	}
	p := v.newPoint(h, f)
	if h.reflink {
		c, err := v.pool.fs.OpenFile("point", v.pool.path(v.id, extPoint), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the clone is missing: %w", lockstep.ErrCorrupt)
		}
		if err != nil {
			return nil, err
		}
		return p, c.Close()
	}
	// What a killed process appended may be in the page cache only; chunks found here will be
	// overwritten without being saved again.
	if err := f.Fdatasync(); err != nil {
		return nil, v.fail("fdatasync of undo", err)
	}
	p.tail, p.seq, err = v.undoLog(p, size).open(func(r record) {
		lo, hi := int(r.chunk), int(r.chunk+r.chunks)
		p.appended.SetRange(lo, hi)
		p.saved.SetRange(lo, hi)
	})
	if err != nil {
		return nil, err
	}
	if p.tail < size {
		v.log.Info("cutting the torn tail of the undo file", "from", size, "to", p.tail)
		if err := f.Truncate(p.tail); err != nil {
			return nil, err
		}
		if err := f.Fdatasync(); err != nil {
			return nil, v.fail("fdatasync of undo", err)
		}
	}
	p.durable = p.tail
	return p, nil
}

func (v *Volume) undoLog(p *point, size int64) undoLog {
	return undoLog{f: p.f, size: size, nonce: p.nonce, chunks: chunksOf(v.size.Load())}
}

// SetPoint makes the present contents, which the caller has synced, the recovery point of epoch,
// durably. A point that is newer than insyncEpoch is kept instead: it is the last consistent image,
// the present contents are not. No write may run beside it. lockstep.ErrNoSpace if the pool is
// full; lockstep.ErrCorrupt if there is a point that cannot be read (DropPoint removes it).
func (v *Volume) SetPoint(epoch, insyncEpoch lockstep.Epoch) error {
	if err := v.usable(); err != nil {
		return err
	}
	s := &v.undo
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.cur.Load(); p != nil {
		if p.damage != nil {
			return p.damage
		}
		if p.epoch > insyncEpoch {
			return nil
		}
		if err := v.dropPoint(); err != nil {
			return err
		}
	}
	h := undoHeader{epoch: epoch, size: v.size.Load()}
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails
	h.nonce = le.Uint64(nonce[:])
	err := v.clonePoint()
	h.reflink = err == nil
	if err != nil && !isUnsupported(err) {
		return fmt.Errorf("set recovery point of %s: %w", v.id, wrapSpace(err))
	}
	path := v.pool.path(v.id, extUndo)
	if err := v.pool.replace("undo", path, encodeUndoHeader(v.id, h)); err != nil {
		return fmt.Errorf("set recovery point of %s: %w", v.id, err)
	}
	f, err := v.pool.fs.OpenFile("undo", path, 0)
	if err != nil {
		return fmt.Errorf("set recovery point of %s: %w", v.id, err)
	}
	s.cur.Store(v.newPoint(h, f))
	return nil
}

// clonePoint makes the .point file share the raw file's extents, durably.
func (v *Volume) clonePoint() error {
	path := v.pool.path(v.id, extPoint)
	f, err := v.pool.fs.OpenFile("point", path+extTmp, vfs.Create|vfs.Truncate)
	if err != nil {
		return err
	}
	if err = f.CloneFrom(v.raw); err == nil {
		err = f.Fdatasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, v.pool.fs.Remove("point", path+extTmp))
	}
	if err := v.pool.fs.Rename("point", path+extTmp, path); err != nil {
		return err
	}
	return v.pool.fs.SyncDir("point", v.pool.dir)
}

// Point returns the epoch of the recovery point; ok is false if there is none that can be used.
func (v *Volume) Point() (epoch lockstep.Epoch, ok bool) {
	p := v.undo.cur.Load()
	if p == nil || p.damage != nil {
		return 0, false
	}
	return p.epoch, true
}

// PointBytes is how many bytes the undo file has; a reflink point counts only its header, for the
// file system does not say what is shared.
func (v *Volume) PointBytes() int64 {
	v.undo.mu.Lock()
	defer v.undo.mu.Unlock()
	if p := v.undo.cur.Load(); p != nil && p.damage == nil {
		return p.tail
	}
	return 0
}

// Preserve saves the old contents of all chunks that exts touch, unless they have been saved
// already. It must return nil before any byte of exts is overwritten, and nothing may overwrite
// them while it runs. What it saved is durable then, data and index, at the cost of one sync that
// concurrent callers may share. Without a point, or with a reflink point, it does nothing.
// lockstep.ErrNoSpace if the undo file cannot grow: then nothing of exts may be overwritten.
func (v *Volume) Preserve(exts []lockstep.Extent) error {
	for _, e := range exts {
		if err := v.check(e.Off, e.Len); err != nil {
			return err
		}
	}
	p := v.undo.cur.Load()
	if p == nil {
		return v.usable()
	}
	if p.damage != nil {
		return p.damage
	}
	if p.reflink || p.allSaved(exts) {
		return v.usable()
	}
	if err := v.appendUndo(p, exts); err != nil {
		return err
	}
	if err := p.run.do(func() error { return v.syncUndo(p) }); err != nil {
		return err
	}
	for _, e := range exts {
		lo, hi := chunkRange(e.Off, e.Len)
		p.saved.SetRange(lo, hi)
	}
	return nil
}

func (p *point) allSaved(exts []lockstep.Extent) bool {
	for _, e := range exts {
		if e.Len > 0 {
			if lo, hi := chunkRange(e.Off, e.Len); !p.saved.AllSet(lo, hi) {
				return false
			}
		}
	}
	return true
}

// undoBatch collects the records of one Preserve; nothing of it counts before it is whole.
type undoBatch struct {
	v    *Volume
	p    *point
	buf  []byte
	off  int64 // where buf goes
	seq  uint64
	runs [][2]int // chunks in the batch
	data []byte
}

// appendUndo writes records for the chunks of exts that have none.
func (v *Volume) appendUndo(p *point, exts []lockstep.Extent) error {
	v.undo.mu.Lock()
	defer v.undo.mu.Unlock()
	if v.undo.cur.Load() != p {
		return fmt.Errorf("preserve %s: the recovery point was dropped meanwhile", v.id)
	}
	b := undoBatch{v: v, p: p, off: p.tail, seq: p.seq, data: make([]byte, lockstep.ChunkBytes)}
	var err error
	for _, e := range exts {
		if e.Len == 0 {
			continue
		}
		lo, hi := chunkRange(e.Off, e.Len)
		if err = b.add(lo, hi); err != nil {
			break
		}
	}
	if err == nil {
		err = b.flush()
	}
	if err != nil {
		for _, r := range b.runs {
			p.appended.ClearRange(r[0], r[1])
		}
		if cutErr := p.f.Truncate(p.tail); cutErr != nil {
			v.log.Warn("the undo file could not be cut back", "err", cutErr)
		}
		return err
	}
	if b.seq != p.seq {
		p.tail, p.seq, p.lastData = b.off, b.seq, b.off
	}
	return nil
}

// add puts the chunks [lo, hi) that have no record yet into the batch.
func (b *undoBatch) add(lo, hi int) error {
	for lo < hi {
		next := b.p.appended.NextClear(lo)
		if next < 0 || next >= hi {
			return nil
		}
		lo = next
		end := b.p.appended.NextSet(lo)
		if end < 0 || end > hi {
			end = hi
		}
		n, err := b.addRun(lo, end)
		if err != nil {
			return err
		}
		b.runs = append(b.runs, [2]int{lo, lo + n})
		b.p.appended.SetRange(lo, lo+n)
		lo += n
	}
	return nil
}

// addRun adds one record for chunks at the beginning of [lo, hi), none of which has one, and
// returns for how many.
func (b *undoBatch) addRun(lo, hi int) (int, error) {
	v := b.v
	off := int64(lo) * lockstep.ChunkBytes
	end := min(int64(hi)*lockstep.ChunkBytes, v.size.Load())
	data, err := v.nextData(off, end)
	if err != nil {
		return 0, err
	}
	holes := int((data - off) / lockstep.ChunkBytes)
	if data == end {
		holes = hi - lo
	}
	r := record{kind: recordHole, seq: b.seq, chunk: int64(lo), chunks: int64(holes), durable: b.p.durable}
	var old []byte
	if holes == 0 {
		old = b.data[:min(lockstep.ChunkBytes, end-off)]
		if err := v.ReadAt(old, off); err != nil {
			return 0, err
		}
		r.kind, r.chunks = recordData, 1
	}
	b.buf = appendRecord(b.buf, b.p.nonce, r, old)
	b.seq++
	if len(b.buf) >= undoBatchLen {
		if err := b.flush(); err != nil {
			return 0, err
		}
	}
	return int(r.chunks), nil
}

func (b *undoBatch) flush() error {
	if len(b.buf) == 0 {
		return nil
	}
	if _, err := b.p.f.WriteAt(b.buf, b.off); err != nil {
		return b.v.writeError("write of undo", err)
	}
	b.off += int64(len(b.buf))
	b.buf = b.buf[:0]
	return nil
}

// syncUndo makes the records durable and seals them with a record that says so, which lets a later
// open tell damage from a torn tail. The seal itself need not be durable.
func (v *Volume) syncUndo(p *point) error {
	if err := v.usable(); err != nil {
		return err
	}
	v.undo.mu.Lock()
	upTo, done := p.tail, p.lastData <= p.durable
	v.undo.mu.Unlock()
	if done {
		return nil
	}
	if err := p.f.Fdatasync(); err != nil {
		return v.fail("fdatasync of undo", err)
	}
	v.undo.mu.Lock()
	defer v.undo.mu.Unlock()
	p.durable = upTo
	seal := appendRecord(nil, p.nonce, record{kind: recordSeal, seq: p.seq, durable: upTo}, nil)
	if _, err := p.f.WriteAt(seal, p.tail); err != nil {
		return nil //nolint:nilerr // the seal is a help, not a promise; the next write will tell
	}
	p.tail += int64(len(seal))
	p.seq++
	return nil
}

// Rollback makes the volume what it was at SetPoint (bytes that a Grow added become zeroes), syncs
// it, makes the chunks that it touched dirty, durably, and drops the point. It returns the extents
// touched: with a reflink point, the whole volume. Nothing else may use the volume meanwhile. After
// a crash or an error the point is still there and Rollback is to be repeated; it gives the same
// result. lockstep.ErrNotFound without a point; lockstep.ErrCorrupt, with nothing written, if the
// undo file has gone bad.
func (v *Volume) Rollback() ([]lockstep.Extent, error) {
	if err := v.usable(); err != nil {
		return nil, err
	}
	v.undo.mu.Lock()
	defer v.undo.mu.Unlock()
	exts, err := v.rollback()
	if err != nil {
		return nil, fmt.Errorf("roll back %s: %w", v.id, err)
	}
	return exts, nil
}

func (v *Volume) rollback() ([]lockstep.Extent, error) {
	p := v.undo.cur.Load()
	if p == nil {
		return nil, fmt.Errorf("no recovery point: %w", lockstep.ErrNotFound)
	}
	if p.damage != nil {
		return nil, p.damage
	}
	restore := v.restoreUndo
	if p.reflink {
		restore = v.restoreClone
	}
	exts, err := restore(p)
	if err != nil {
		return nil, err
	}
	if err := v.Sync(); err != nil {
		return nil, err
	}
	// Before the point goes: a crash must not lose the list of what now differs from the peer.
	if err := v.AddDirty(exts); err != nil {
		return nil, err
	}
	return exts, v.dropPoint()
}

// restoreUndo writes the old contents back, having checked all of them first.
func (v *Volume) restoreUndo(p *point) ([]lockstep.Extent, error) {
	always := func(int64) bool { return true }
	log := v.undoLog(p, p.tail)
	tail, _, err := log.walk(always, func(record, []byte) error { return nil })
	if err != nil {
		return nil, v.fail("read of undo", err)
	}
	if tail != p.tail {
		return nil, fmt.Errorf("undo file is damaged at %d: %w", tail, lockstep.ErrCorrupt)
	}
	touched := bitmap.New(int(chunksOf(v.size.Load())))
	_, _, err = log.walk(always, func(r record, data []byte) error {
		lo, hi := int(r.chunk), int(r.chunk+r.chunks)
		touched.SetRange(lo, hi)
		off := r.chunk * lockstep.ChunkBytes
		if err := v.WriteAt(data, off); err != nil {
			return err
		}
		// Holes, and what a Grow added behind a short last chunk.
		off += int64(len(data))
		end := min(int64(hi)*lockstep.ChunkBytes, v.size.Load())
		return v.Zero(off, max(0, end-off), false)
	})
	if err != nil {
		return nil, err
	}
	return unitExtents(touched, lockstep.ChunkBytes, v.size.Load()), nil
}

// restoreClone makes the raw file share the clone's extents again, or copies them where the file
// system cannot (a pool that was copied to another host).
func (v *Volume) restoreClone(p *point) ([]lockstep.Extent, error) {
	f, err := v.pool.fs.OpenFile("point", v.pool.path(v.id, extPoint), 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err == nil && size < p.size { // it is longer if a Grow had grown the raw file only
		err = fmt.Errorf("the clone has %d bytes, not %d: %w", size, p.size, lockstep.ErrCorrupt)
	}
	if err == nil {
		err = v.raw.CloneFrom(f)
		if isUnsupported(err) {
			err = v.copyFrom(f, p.size)
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, wrapSpace(err)
	}
	now := v.size.Load()
	if err := v.Zero(p.size, now-p.size, false); err != nil {
		return nil, err
	}
	return []lockstep.Extent{{Off: 0, Len: now}}, nil
}

// copyFrom makes the first size bytes equal to those of f, holes as holes.
func (v *Volume) copyFrom(f vfs.File, size int64) error {
	buf := make([]byte, lockstep.ChunkBytes)
	for off := int64(0); off < size; {
		data, err := f.SeekData(off)
		if errors.Is(err, io.EOF) {
			data, err = size, nil
		}
		if err != nil {
			return err
		}
		data = min(data, size)
		if err := v.Zero(off, data-off, false); err != nil {
			return err
		}
		if off = data; off == size {
			return nil
		}
		b := buf[:min(int64(len(buf)), size-off)]
		if err := readFull(f, b, off); err != nil {
			return err
		}
		if err := v.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

// DropPoint removes the recovery point, durably. It is no error if there is none.
func (v *Volume) DropPoint() error {
	if err := v.usable(); err != nil {
		return err
	}
	v.undo.mu.Lock()
	defer v.undo.mu.Unlock()
	return v.dropPoint()
}

// dropPoint removes the header first: without it a clone means nothing.
func (v *Volume) dropPoint() error {
	p := v.undo.cur.Load()
	if p == nil {
		return nil
	}
	if err := v.pool.removeFiles("undo", v.pool.path(v.id, extUndo)); err != nil {
		return fmt.Errorf("drop recovery point of %s: %w", v.id, err)
	}
	v.undo.cur.Store(nil)
	if err := errors.Join(v.pool.removeFiles("point", v.pool.path(v.id, extPoint)), p.f.Close()); err != nil {
		return fmt.Errorf("drop recovery point of %s: %w", v.id, err)
	}
	return nil
}

package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// pieceBytes is how much one write to the file writes. The page cache keeps folios as large as the
// writes that made them, and what a small write costs later grows with the folio it falls into: 4 KiB
// into one of 1 MiB cost ten times as much as into one of 16 KiB, on ext4.
const pieceBytes = 16 << 10

var zeroes [pieceBytes]byte

// Volume is one open volume of a pool. Its methods may be called concurrently unless they say
// otherwise; ordering overlapping reads and writes is the caller's. After a permanent failure
// every call that could fail does, with an error that matches lockstep.ErrVolumeFailed.
type Volume struct {
	pool *Pool
	id   lockstep.VolumeID
	log  *slog.Logger
	raw  vfs.File
	meta vfs.File

	size    atomic.Int64 // of the raw file and of the maps, bytes
	failed  atomic.Pointer[failure]
	noPunch atomic.Bool // the file system cannot punch holes

	syncRun sharedRun
	syncs   atomic.Uint64

	growMu  sync.Mutex // serializes Grow, which it is held over; guards header
	header  slotState
	damaged int // metadata pages found unreadable at Open

	intent intentLog
	dirty  dirtyMap
	undo   pointState
}

// ID is the volume's name.
func (v *Volume) ID() lockstep.VolumeID { return v.id }

// Size is the size of the raw file in bytes.
func (v *Volume) Size() int64 { return v.size.Load() }

// MaxIntentBytes is the bound on IntentBytes that the pool's options ask the caller to keep.
func (v *Volume) MaxIntentBytes() int64 { return v.pool.opts.MaxIntentBytes }

// DamagedPages is how many metadata pages had to be taken as all marked when the volume was opened.
func (v *Volume) DamagedPages() int { return v.damaged }

// check is the beginning of every call on a range.
func (v *Volume) check(off, length int64) error {
	if f := v.failed.Load(); f != nil {
		return f.err
	}
	if size := v.size.Load(); off < 0 || length < 0 || off > size || length > size-off {
		return fmt.Errorf("[%d,+%d) of %s with %d bytes: %w", off, length, v.id, size, lockstep.ErrOutOfRange)
	}
	return nil
}

// ReadAt fills p from off. An I/O error is permanent for the volume.
func (v *Volume) ReadAt(p []byte, off int64) error {
	if err := v.check(off, int64(len(p))); err != nil {
		return err
	}
	if n, err := v.raw.ReadAt(p, off); n < len(p) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // somebody cut the file
		}
		return v.fail("read", err)
	}
	return nil
}

// ReadCached fills p from off if all of it is in memory, and reports whether it did.
func (v *Volume) ReadCached(p []byte, off int64) bool {
	c, ok := v.raw.(vfs.CachedReader)
	return ok && v.check(off, int64(len(p))) == nil && c.ReadCached(p, off)
}

// TryReadAt is ReadAt for who looks on his own account: an I/O error is not the volume's, which may
// serve everything else for as long as no client asks for these bytes.
func (v *Volume) TryReadAt(p []byte, off int64) error {
	if err := v.check(off, int64(len(p))); err != nil {
		return err
	}
	if n, err := v.raw.ReadAt(p, off); n < len(p) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// WriteAt writes p at off, to the page cache; Sync makes it durable. lockstep.ErrNoSpace if the
// pool is full: the range then holds old and new bytes mixed. Any other error is permanent.
func (v *Volume) WriteAt(p []byte, off int64) error {
	if err := v.check(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), pieceBytes-off%pieceBytes)
		if _, err := v.raw.WriteAt(p[:n], off); err != nil {
			return v.writeError("write", err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (v *Volume) writeError(doing string, err error) error {
	if noSpace(err) {
		return fmt.Errorf("%s of %s: %w", doing, v.id, wrapSpace(err))
	}
	return v.fail(doing, err)
}

// Zero makes the range read as zeroes: as a hole where the file system can punch one and noHole is
// not set, else by writing zeroes. Errors and durability as with WriteAt.
func (v *Volume) Zero(off, length int64, noHole bool) error {
	if err := v.check(off, length); err != nil {
		return err
	}
	if !noHole && !v.noPunch.Load() {
		err := v.raw.PunchHole(off, length)
		if err == nil {
			return nil
		}
		if !isUnsupported(err) {
			return v.writeError("punch", err)
		}
		v.noPunch.Store(true)
	}
	for length > 0 {
		n := min(length, pieceBytes-off%pieceBytes)
		if _, err := v.raw.WriteAt(zeroes[:n], off); err != nil {
			return v.writeError("write zeroes", err)
		}
		off, length = off+n, length-n
	}
	return nil
}

// Sync makes every write and zeroing that returned before the call durable (fdatasync). A failure
// is permanent. Concurrent callers share a sync only if it began after their calls.
func (v *Volume) Sync() error {
	if err := v.usable(); err != nil {
		return err
	}
	return v.syncRun.do(func() error {
		v.syncs.Add(1)
		if err := v.raw.Fdatasync(); err != nil {
			return v.fail("fdatasync", err)
		}
		return nil
	})
}

// Syncs counts the calls of fdatasync on the raw file.
func (v *Volume) Syncs() uint64 { return v.syncs.Load() }

// Extents describes [off, off+length) in order and without gaps, merging equal neighbours.
func (v *Volume) Extents(off, length int64) ([]block.ExtentState, error) {
	if err := v.check(off, length); err != nil {
		return nil, err
	}
	var out []block.ExtentState
	for end := off + length; off < end; {
		data, err := v.nextData(off, end)
		if err != nil {
			return nil, err
		}
		if data > off {
			out = append(out, block.ExtentState{Len: data - off, Hole: true, Zero: true})
			off = data
			continue
		}
		hole, err := v.raw.SeekHole(off)
		if err != nil {
			return nil, v.fail("seek hole", err)
		}
		if hole = min(hole, end); hole <= off { // punched in between: ask again
			continue
		}
		if n := len(out); n > 0 && !out[n-1].Hole {
			out[n-1].Len += hole - off
		} else {
			out = append(out, block.ExtentState{Len: hole - off})
		}
		off = hole
	}
	return out, nil
}

// IsHole reports whether no byte of the range is allocated. It looks for data only: where a hole ends a file
// system may have to walk to the end of the file to find the next one, which Extents does for each stretch of data.
func (v *Volume) IsHole(off, length int64) bool {
	if v.check(off, length) != nil || length == 0 {
		return false
	}
	data, err := v.nextData(off, off+length)
	return err == nil && data == off+length
}

// nextData is the first offset in [off, end) that may hold data, or end. What lies beyond the end
// of the file is no hole: somebody cut it, and what it held is not known.
func (v *Volume) nextData(off, end int64) (int64, error) {
	data, err := v.raw.SeekData(off)
	if errors.Is(err, io.EOF) {
		size, err := v.raw.Size()
		if err == nil && size < end {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, v.fail("seek data", err)
		}
		return end, nil
	}
	if err != nil {
		return 0, v.fail("seek data", err)
	}
	return min(data, end), nil
}

// Grow makes the volume size bytes long, file first, then maps; both are durable when it returns
// nil. New bytes are zeroes, neither marked nor dirty. A size at or below Size changes nothing, so
// repeating a Grow is safe. lockstep.ErrNoSpace if the maps do not fit into the pool.
func (v *Volume) Grow(size int64) error {
	if err := v.usable(); err != nil {
		return err
	}
	if err := checkSize(size); err != nil {
		return fmt.Errorf("grow %s: %w: %w", v.id, err, lockstep.ErrOutOfRange)
	}
	v.growMu.Lock()
	defer v.growMu.Unlock()
	if size <= v.size.Load() {
		return nil
	}
	have, err := v.raw.Size()
	if err == nil && have < size {
		err = v.raw.Truncate(size)
	}
	if err != nil {
		return v.writeError("grow", err)
	}
	if err := v.Sync(); err != nil {
		return err
	}
	return v.growMaps(v.size.Load(), size)
}

// close ends the use of the volume; calls under way end normally or with ErrClosed.
func (v *Volume) close() error {
	v.failed.CompareAndSwap(nil, &failure{err: fmt.Errorf("%s: %w", v.id, ErrClosed)})
	err := errors.Join(v.raw.Close(), v.meta.Close())
	return errors.Join(err, v.undo.close())
}

// Create makes a volume of size bytes, all zero, neither marked nor dirty, and opens it; it is
// durable when Create returns. Repeating it for the same size opens the volume, also after a crash
// in the middle. lockstep.ErrExists if there is a volume of another size, or a raw file with data
// but without metadata; lockstep.ErrNoSpace if the size does not fit into the free space less a
// small reserve.
func (p *Pool) Create(id lockstep.VolumeID, size int64) (*Volume, error) {
	v, err := p.create(id, size)
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", id, err)
	}
	return v, nil
}

func (p *Pool) create(id lockstep.VolumeID, size int64) (*Volume, error) {
	if err := checkID("volume", string(id)); err != nil {
		return nil, err
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.openLocked(id)
	if err == nil {
		if v.Size() != size {
			return nil, fmt.Errorf("it has %d bytes, not %d: %w", v.Size(), size, lockstep.ErrExists)
		}
		return v, nil
	}
	if !errors.Is(err, lockstep.ErrNotFound) {
		return nil, err
	}
	_, free, err := p.Space()
	if err != nil {
		return nil, err
	}
	if size > free-spaceReserve-metaBytes(size) {
		return nil, fmt.Errorf("%d bytes wanted, %d free: %w", size, free, lockstep.ErrNoSpace)
	}
	// A marker or a point of an earlier life must not meet the new volume.
	if err := p.removeFiles("volume", p.path(id, extFailed), p.path(id, extUndo), p.path(id, extPoint)); err != nil {
		return nil, err
	}
	if err := p.createRaw(id, size); err != nil {
		return nil, wrapSpace(err)
	}
	if err := p.createMeta(id, size, false); err != nil {
		return nil, wrapSpace(err)
	}
	return p.openLocked(id)
}

// createRaw makes the raw file, or takes over the one that an interrupted Create left: that one
// has no data. Its entry is durable before the metadata file's, which makes the volume exist.
func (p *Pool) createRaw(id lockstep.VolumeID, size int64) error {
	f, err := p.fs.OpenFile("raw", p.path(id, extRaw), vfs.Create)
	if err != nil {
		return err
	}
	err = func() error {
		if _, err := f.SeekData(0); err == nil {
			return fmt.Errorf("%s%s has data but no metadata: %w", id, extRaw, lockstep.ErrExists)
		} else if !errors.Is(err, io.EOF) {
			return err
		}
		if err := f.Truncate(size); err != nil {
			return err
		}
		return f.Fdatasync()
	}()
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return p.fs.SyncDir("raw", p.dir)
}

// Open opens a volume; opening it again gives the same Volume, which stays open until the pool is
// closed or the volume removed. A Grow that a crash interrupted is finished. lockstep.ErrNotFound
// if there is no such volume; lockstep.ErrCorrupt if its files contradict each other. A volume
// that has failed before opens, with Failed set.
func (p *Pool) Open(id lockstep.VolumeID) (*Volume, error) {
	err := checkID("volume", string(id))
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		var v *Volume
		if v, err = p.openLocked(id); err == nil {
			return v, nil
		}
	}
	return nil, fmt.Errorf("open volume %s: %w", id, err)
}

func (p *Pool) openLocked(id lockstep.VolumeID) (*Volume, error) {
	if p.closed {
		return nil, ErrClosed
	}
	if v := p.vols[id]; v != nil {
		return v, nil
	}
	v := &Volume{pool: p, id: id, log: p.log.With("volume", string(id))}
	v.syncRun.init()
	if err := v.load(); err != nil {
		for _, f := range []vfs.File{v.raw, v.meta} {
			if f != nil {
				err = errors.Join(err, f.Close())
			}
		}
		return nil, errors.Join(err, v.undo.close())
	}
	p.vols[id] = v
	return v, nil
}

func (v *Volume) load() error {
	var err error
	if v.meta, err = v.pool.fs.OpenFile("meta", v.pool.path(v.id, extMeta), 0); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return lockstep.ErrNotFound
		}
		return err
	}
	if v.raw, err = v.pool.fs.OpenFile("raw", v.pool.path(v.id, extRaw), 0); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the raw file is missing: %w", lockstep.ErrCorrupt)
		}
		return err
	}
	failed, err := v.pool.readFailed(v.id)
	if err != nil {
		return err
	}
	have, err := v.raw.Size()
	if err != nil {
		return err
	}
	size, err := v.loadMaps()
	if err != nil {
		return err
	}
	if have < size {
		return fmt.Errorf("the raw file has %d bytes, the metadata %d: %w", have, size, lockstep.ErrCorrupt)
	}
	if have > size && checkSize(have) == nil {
		// A Grow was interrupted, or an operator made the file longer: a longer file is never cut.
		if err := v.raw.Fdatasync(); err != nil {
			return v.fail("fdatasync", err)
		}
		err := v.growMaps(size, have)
		if errors.Is(err, lockstep.ErrNoSpace) { // it has the size that it had; who wants more grows it
			v.log.Warn("the raw file is longer than the volume, and there is no room for larger maps", "bytes", have, "err", err)
			err = nil
		}
		if err != nil {
			return err
		}
	}
	if err := v.loadPoint(); err != nil {
		return err
	}
	if failed != "" {
		v.log.Error("volume failed in an earlier run", "reason", failed)
		v.failed.Store(&failure{err: fmt.Errorf("%s failed earlier: %w", v.id, lockstep.ErrVolumeFailed)})
	}
	return nil
}

// Remove deletes a volume with its metadata, its recovery point and its divergence images; it is closed first. A crash in
// the middle is finished by the next OpenPool. It is no error if there is no such volume.
func (p *Pool) Remove(id lockstep.VolumeID) error {
	err := checkID("volume", string(id))
	if err == nil {
		err = p.remove(id)
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", id, err)
	}
	return nil
}

func (p *Pool) remove(id lockstep.VolumeID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	if v := p.vols[id]; v != nil {
		delete(p.vols, id)
		if err := v.close(); err != nil {
			return err
		}
	}
	err := p.fs.Rename("remove", p.path(id, extMeta), p.path(id, extRemoved))
	if ignoreMissing(err) != nil {
		return err
	}
	if err := p.fs.SyncDir("remove", p.dir); err != nil {
		return err
	}
	return p.finishRemove(id)
}

// finishRemove deletes what is left of a volume whose removal has begun, the marker last.
func (p *Pool) finishRemove(id lockstep.VolumeID) error {
	p.imageMu.Lock()
	images := p.images[id]
	p.imageMu.Unlock()
	paths := []string{p.path(id, extUndo), p.path(id, extPoint), p.path(id, extFailed), p.path(id, extRaw)}
	for _, epoch := range images {
		paths = append(paths, p.imagePath(id, epoch))
	}
	if err := p.removeFiles("remove", paths...); err != nil {
		return err
	}
	if err := p.removeFound(id); err != nil {
		return err
	}
	p.imageMu.Lock()
	delete(p.images, id)
	p.imageMu.Unlock()
	return p.removeFiles("remove", p.path(id, extRemoved))
}

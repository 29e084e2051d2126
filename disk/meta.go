package disk

import (
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/bitmap"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// slotState says where the current image of a page is. The slot durable holds an image that has
// been synced and is not written to; the other slot takes the next image.
type slotState struct {
	seq     uint64 // of the newest image written
	durable int    // slot 0 or 1
	ahead   bool   // the other slot holds a newer image that has not been synced
}

// next seals buf as the page's next image and returns where to write it.
func (s *slotState) next(buf []byte, id lockstep.VolumeID, n pageNo) (off int64) {
	s.seq++
	sealPage(buf, id, n, s.seq)
	return n.offset(1 - s.durable)
}

// synced notes that the image written last is durable.
func (s *slotState) synced() {
	s.durable = 1 - s.durable
	s.ahead = false
}

// freshSlot is the state after initPage.
var freshSlot = slotState{seq: 2, durable: 1}

// initPage writes both slots of a page, so that its blocks are allocated and no later sync of the
// page has to wait for the file system's journal. payload holds pagePayload bytes.
func initPage(f vfs.File, id lockstep.VolumeID, n pageNo, payload []byte) error {
	var buf [pageBytes]byte
	for slot := range 2 {
		copy(buf[pageHead:], payload)
		sealPage(buf[:], id, n, uint64(slot)+1)
		if _, err := f.WriteAt(buf[:], n.offset(slot)); err != nil {
			return fmt.Errorf("write page %d: %w", n, err)
		}
	}
	return nil
}

// initPages writes the map pages that a volume of size to has and one of size from has not.
func initPages(f vfs.File, id lockstep.VolumeID, from, to int64, payload []byte) error {
	for i := intentPages(from); i < intentPages(to); i++ {
		if err := initPage(f, id, intentPage(i), payload); err != nil {
			return err
		}
	}
	for i := dirtyPages(from); i < dirtyPages(to); i++ {
		if err := initPage(f, id, dirtyPage(i), payload); err != nil {
			return err
		}
	}
	return nil
}

// createMeta makes the metadata file, with nothing marked or everything, atomically and durably.
func (p *Pool) createMeta(id lockstep.VolumeID, size int64, all bool) error {
	path := p.path(id, extMeta)
	f, err := p.fs.OpenFile("meta", path+extTmp, vfs.Create|vfs.Truncate)
	if err != nil {
		return err
	}
	payload := make([]byte, pagePayload)
	if all {
		for i := range payload {
			payload[i] = 0xff
		}
	}
	err = initPages(f, id, 0, size, payload)
	if err == nil {
		var buf [pageBytes]byte
		putHeader(buf[:], id, size)
		err = initPage(f, id, 0, buf[pageHead:])
	}
	if err == nil {
		err = f.Fdatasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := p.fs.Rename("meta", path+extTmp, path); err != nil {
		return err
	}
	return p.fs.SyncDir("meta", p.dir)
}

// RebuildMeta gives a volume whose metadata file is lost or unreadable a new one for the size of
// its raw file, with everything marked and everything dirty. It is a deed of an operator: a
// recovery point is kept, the permanent failure too. The volume must not be open.
func (p *Pool) RebuildMeta(id lockstep.VolumeID) error {
	err := checkID("volume", string(id))
	if err == nil {
		err = p.rebuildMeta(id)
	}
	if err != nil {
		return fmt.Errorf("rebuild metadata of volume %s: %w", id, err)
	}
	return nil
}

func (p *Pool) rebuildMeta(id lockstep.VolumeID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.vols[id] != nil {
		return errors.New("the volume is open")
	}
	f, err := p.fs.OpenFile("raw", p.path(id, extRaw), 0)
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := checkSize(size); err != nil {
		return err
	}
	return p.createMeta(id, size, true)
}

// readPage reads both slots of a page into buf and returns the state of the newer whole one, whose
// image is then in buf. ok is false if neither is whole.
func (v *Volume) readPage(n pageNo, buf []byte) (s slotState, ok bool, err error) {
	var other [pageBytes]byte
	for slot := range 2 {
		got, err := v.meta.ReadAt(other[:], n.offset(slot))
		if err != nil && !errors.Is(err, io.EOF) {
			return s, false, fmt.Errorf("read page %d: %w: %w", n, lockstep.ErrVolumeFailed, err)
		}
		clear(other[got:])
		seq, err := openPage(other[:], v.id, n)
		if errors.Is(err, errNewVersion) {
			return s, false, err
		}
		if err == nil && (!ok || seq > s.seq) {
			s, ok = slotState{seq: seq, durable: slot}, true
			copy(buf, other[:])
		}
	}
	return s, ok, nil
}

// loadMaps reads the metadata file and returns the size that it is for.
func (v *Volume) loadMaps() (size int64, err error) {
	// The newest images may be in the page cache only, left there by a process that was killed.
	// From here on each is the durable one of its page.
	if err := v.meta.Fdatasync(); err != nil {
		return 0, v.fail("fdatasync of metadata", err)
	}
	var buf [pageBytes]byte
	s, ok, err := v.readPage(0, buf[:])
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("both headers of the metadata are unreadable, or the file was renamed: %w", lockstep.ErrCorrupt)
	}
	if size, err = getHeader(buf[:], v.id); err != nil {
		return 0, err
	}
	v.header = s
	v.size.Store(size)
	v.intent.init(int(regionsOf(size)))
	v.dirty.init(int(chunksOf(size)))
	words := make([]uint64, wordsPerPage)
	load := func(n pageNo) (slotState, error) {
		s, ok, err := v.readPage(n, buf[:])
		if err != nil {
			return s, err
		}
		if !ok {
			if s, err = v.repairPage(n, buf[:]); err != nil {
				return s, err
			}
		}
		getWords(buf[:], words)
		return s, nil
	}
	for i := range intentPages(size) {
		s, err := load(intentPage(i))
		if err != nil {
			return 0, err
		}
		v.intent.slots = append(v.intent.slots, s)
		v.intent.want.OrWords(i*bitsPerPage, words)
	}
	chunks := bitmap.New(int(chunksOf(size)))
	for i := range dirtyPages(size) {
		s, err := load(dirtyPage(i))
		if err != nil {
			return 0, err
		}
		v.dirty.slots = append(v.dirty.slots, s)
		chunks.OrWords(i*bitsPerPage, words)
	}
	for lo, hi := range v.intent.want.Ranges() {
		v.intent.hot.SetRange(lo, hi)
	}
	v.intent.count.Store(int64(v.intent.want.Count()))
	for lo, hi := range chunks.Ranges() {
		v.dirty.bits.SetRange(lo, hi)
	}
	v.dirty.count.Store(int64(chunks.Count()))
	return size, nil
}

// repairPage takes a page of which neither slot is whole as all ones, never as empty, and writes
// it so, durably.
func (v *Volume) repairPage(n pageNo, buf []byte) (slotState, error) {
	v.damaged++
	v.log.Error("metadata page is unreadable, all that it covers counts as marked", "page", int64(n), "kind", int(n.kind()))
	for i := pageHead; i < pageBytes; i++ {
		buf[i] = 0xff
	}
	if err := initPage(v.meta, v.id, n, buf[pageHead:]); err != nil {
		return slotState{}, v.fail("repair of metadata", err)
	}
	if err := v.meta.Fdatasync(); err != nil {
		return slotState{}, v.fail("fdatasync of metadata", err)
	}
	return freshSlot, nil
}

// growMaps extends the maps to a raw file that is already size to, durably. Called with growMu
// held, or before the volume is shared.
func (v *Volume) growMaps(from, to int64) error {
	if err := initPages(v.meta, v.id, from, to, make([]byte, pagePayload)); err != nil {
		return v.writeError("grow metadata", err)
	}
	if err := v.meta.Fdatasync(); err != nil {
		return v.fail("fdatasync of metadata", err)
	}
	var buf [pageBytes]byte
	putHeader(buf[:], v.id, to)
	if _, err := v.meta.WriteAt(buf[:], v.header.next(buf[:], v.id, 0)); err != nil {
		return v.fail("write header of metadata", err)
	}
	if err := v.meta.Fdatasync(); err != nil {
		return v.fail("fdatasync of metadata", err)
	}
	v.header.synced()
	v.intent.grow(int(regionsOf(to)), intentPages(to))
	v.dirty.grow(int(chunksOf(to)), dirtyPages(to))
	v.undo.grow(int(chunksOf(to)))
	v.size.Store(to)
	return nil
}

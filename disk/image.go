package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// imageName splits the name of a divergence image's file.
func imageName(name string) (id lockstep.VolumeID, epoch lockstep.Epoch, ok bool) {
	stem, ok := strings.CutSuffix(name, extImage)
	dot := strings.LastIndexByte(stem, '.')
	if !ok || dot < 1 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(stem[dot+1:], 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != stem[dot+1:] || checkID("volume", stem[:dot]) != nil {
		return "", 0, false
	}
	return lockstep.VolumeID(stem[:dot]), lockstep.Epoch(n), true
}

func (p *Pool) imagePath(id lockstep.VolumeID, epoch lockstep.Epoch) string {
	return p.path(id, "."+strconv.FormatUint(uint64(epoch), 10)+extImage)
}

// indexImages takes the names of the pool's files.
func (p *Pool) indexImages(names []string) {
	p.imageMu.Lock()
	defer p.imageMu.Unlock()
	for _, name := range names {
		if id, epoch, ok := imageName(name); ok {
			p.images[id] = append(p.images[id], epoch)
		}
	}
}

// Images lists the epochs of the volume's divergence images, sorted.
func (v *Volume) Images() []lockstep.Epoch {
	v.pool.imageMu.Lock()
	defer v.pool.imageMu.Unlock()
	return slices.Sorted(slices.Values(v.pool.images[v.id]))
}

// KeepImage keeps the present contents as the divergence image of epoch, whole and durably, beside
// the volume and its recovery point: a clone where the file system has them, else a copy, for which
// the space is looked at first. An image that is there is kept as it is. No write may run beside it.
// lockstep.ErrNoSpace, with the bytes that are needed, if the pool has not the room. After a crash
// the image is there, whole, or not at all.
func (v *Volume) KeepImage(epoch lockstep.Epoch) error {
	if err := v.usable(); err != nil {
		return err
	}
	v.pool.keepMu.Lock() // two copies at once would both find the same free space
	defer v.pool.keepMu.Unlock()
	if slices.Contains(v.Images(), epoch) {
		return nil
	}
	path := v.pool.imagePath(v.id, epoch)
	if err := v.copyTo(path + extTmp); err != nil {
		return fmt.Errorf("keep divergence image %d of %s: %w", epoch, v.id, errors.Join(wrapSpace(err), ignoreMissing(v.pool.fs.Remove("image", path+extTmp))))
	}
	err := v.pool.fs.Rename("image", path+extTmp, path)
	if err == nil {
		err = v.pool.fs.SyncDir("image", v.pool.dir)
	}
	if err != nil {
		return fmt.Errorf("keep divergence image %d of %s: %w", epoch, v.id, err)
	}
	v.pool.imageMu.Lock()
	defer v.pool.imageMu.Unlock()
	v.pool.images[v.id] = append(v.pool.images[v.id], epoch)
	return nil
}

// copyTo makes path equal to the raw file, durably.
func (v *Volume) copyTo(path string) error {
	f, err := v.pool.fs.OpenFile("image", path, vfs.Create|vfs.Truncate)
	if err != nil {
		return err
	}
	err = func() error {
		err := f.CloneFrom(v.raw)
		if isUnsupported(err) {
			err = v.copyData(f)
		}
		if err != nil {
			return err
		}
		return f.Fdatasync()
	}()
	return errors.Join(err, f.Close())
}

// copyData copies what is not a hole, if it fits.
func (v *Volume) copyData(f vfs.File) error {
	size := v.size.Load()
	states, err := v.Extents(0, size)
	if err != nil {
		return err
	}
	var need int64
	for _, s := range states {
		if !s.Hole {
			need += s.Len
		}
	}
	_, free, err := v.pool.Space()
	if err != nil {
		return err
	}
	if need > free-spaceReserve {
		return fmt.Errorf("%d bytes are needed, the pool has %d bytes free: %w", need, free, lockstep.ErrNoSpace)
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, undoBatchLen)
	var off int64
	for _, s := range states {
		end := off + s.Len
		for ; !s.Hole && off < end; off += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), end-off)]
			if err := v.ReadAt(b, off); err != nil {
				return err
			}
			if _, err := f.WriteAt(b, off); err != nil {
				return err
			}
		}
		off = end
	}
	return nil
}

// DropImage removes a divergence image, durably. It is no error if there is none. Who has it open
// goes on reading.
func (v *Volume) DropImage(epoch lockstep.Epoch) error {
	v.pool.keepMu.Lock()
	defer v.pool.keepMu.Unlock()
	if !slices.Contains(v.Images(), epoch) {
		return nil
	}
	if err := v.pool.removeFiles("image", v.pool.imagePath(v.id, epoch)); err != nil {
		return fmt.Errorf("drop divergence image %d of %s: %w", epoch, v.id, err)
	}
	v.pool.imageMu.Lock()
	defer v.pool.imageMu.Unlock()
	v.pool.images[v.id] = slices.DeleteFunc(v.pool.images[v.id], func(e lockstep.Epoch) bool { return e == epoch })
	return nil
}

// RollBackSince is Rollback if there is a recovery point newer than insyncEpoch. An older one means
// nothing any more: the present contents are the last consistent image, and it is dropped.
func (v *Volume) RollBackSince(insyncEpoch lockstep.Epoch) error {
	p := v.undo.cur.Load()
	switch {
	case p == nil:
		return v.usable()
	case p.damage == nil && p.epoch <= insyncEpoch:
		return v.DropPoint()
	}
	_, err := v.Rollback()
	return err
}

// Image is an open divergence image: a block device that cannot be written.
type Image struct {
	f    vfs.File
	size int64
	name string
}

var _ block.Device = (*Image)(nil)

// OpenImage opens a divergence image for reading; it is to be closed. lockstep.ErrNotFound.
func (v *Volume) OpenImage(epoch lockstep.Epoch) (*Image, error) {
	f, err := v.pool.fs.OpenFile("image", v.pool.imagePath(v.id, epoch), 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = lockstep.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("open divergence image %d of %s: %w", epoch, v.id, err)
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Image{f: f, size: size, name: fmt.Sprintf("divergence image %d of %s", epoch, v.id)}, nil
}

// Close closes the image's file.
func (i *Image) Close() error { return i.f.Close() }

// Size implements block.Device.
func (i *Image) Size() int64 { return i.size }

// ReadAt implements block.Device.
func (i *Image) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), i.size); err != nil {
		return err
	}
	if err := readFull(i.f, p, off); err != nil {
		return fmt.Errorf("read %s: %w", i.name, err)
	}
	return nil
}

var errReadOnly = fmt.Errorf("a divergence image is never written: %w", fs.ErrPermission)

// WriteAt implements block.Device; it is refused, as everything that would change the image.
func (i *Image) WriteAt(context.Context, []byte, int64, bool) error { return errReadOnly }

// Flush implements block.Device: nothing was written.
func (i *Image) Flush(context.Context) error { return nil }

// Trim implements block.Device.
func (i *Image) Trim(context.Context, int64, int64, bool) error { return errReadOnly }

// Zero implements block.Device.
func (i *Image) Zero(context.Context, int64, int64, block.ZeroFlags) error { return errReadOnly }

// Extents implements block.Device.
func (i *Image) Extents(_ context.Context, off, length int64) ([]block.ExtentState, error) {
	if err := block.CheckRange(off, length, i.size); err != nil {
		return nil, err
	}
	var out []block.ExtentState
	for end := off + length; off < end; {
		data, err := i.f.SeekData(off)
		if errors.Is(err, io.EOF) {
			data, err = end, nil
		}
		if err != nil {
			return nil, err
		}
		if data = min(data, end); data > off {
			out = append(out, block.ExtentState{Len: data - off, Hole: true, Zero: true})
			off = data
			continue
		}
		hole, err := i.f.SeekHole(off)
		if err != nil {
			return nil, err
		}
		out = append(out, block.ExtentState{Len: min(hole, end) - off})
		off = min(hole, end)
	}
	return out, nil
}

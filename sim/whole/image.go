package whole

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

// image is what the disks of one side hold right now, by pair and sector.
type image []map[int]uint64

// rawFile opens a volume's raw file beside whoever has it open.
func rawFile(fs *vfs.Mem, id lockstep.VolumeID) (vfs.File, error) {
	return fs.OpenFile("sim", pool+"/"+string(id)+".raw", 0)
}

// look reads the sectors that guests use from the raw files of a side, of the pairs that are wanted.
func (w *World) look(side int, wanted func(pair int) bool) (image, error) {
	im := make(image, len(w.vols))
	for i, ids := range w.vols {
		if !wanted(i) {
			continue
		}
		sectors := map[int]uint64{}
		im[i] = sectors
		fs := w.home(ids[side]).files()
		f, err := rawFile(fs, ids[side])
		if err != nil {
			return nil, err
		}
		err = w.hist.scan(i, f.ReadAt, sectors)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("side %d: %w", side, err)
		}
	}
	return im, nil
}

// scan reads the sectors that guests use; what is beyond the end is zeroes.
func (h *history) scan(pair int, readAt func(b []byte, off int64) (int, error), sectors map[int]uint64) error {
	b := make([]byte, spotSectors*sectorBytes)
	for _, first := range spots {
		n, err := readAt(b, int64(first)*sectorBytes)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		clear(b[n:])
		for s := range spotSectors {
			v, err := h.decode(b[s*sectorBytes:(s+1)*sectorBytes], pair, first+s)
			if err != nil {
				return err
			}
			sectors[first+s] = v
		}
	}
	return nil
}

// cut judges an image across all volumes and nodes of a side: with a write it has every write that was
// acknowledged before that one was issued. since: it has every write that was acknowledged before that
// time. What a loss of power excused is left out.
func (h *history) cut(im image, since uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	until := since // what was acknowledged before is in
	var witness *write
	for pair := range im {
		for s, v := range im[pair] {
			x := h.writes[v]
			if v != 0 && h.sector(pair, s).gone[v] {
				return fmt.Errorf("sector %d of pair %d holds %s, which a forced failover gave up", s, pair, x)
			}
			if v != 0 && x.issued > until {
				until, witness = x.issued, x
			}
		}
	}
	for pair := range im {
		for s, v := range im[pair] {
			have := h.writes[v] // nil: zeroes
			for _, x := range h.bySec[pair][s] {
				if x.acked == 0 || x.acked >= until || x.issued <= h.excused[pair] || x == have || x.shows() == v {
					continue
				}
				// x is in. What the sector shows must not be older than x.
				if have != nil && have.acked == 0 || have != nil && have.acked >= x.issued {
					continue
				}
				if have == nil && h.zeroedSince(pair, s, x) {
					continue
				}
				after := "every acknowledged write"
				if witness != nil {
					after = witness.String()
				}
				return fmt.Errorf("sector %d of pair %d holds %s and not %s, although the image has %s", s, pair, h.named(v), x, after)
			}
		}
	}
	return nil
}

// zeroedSince reports whether zeroes may stand over x.
func (h *history) zeroedSince(pair, s int, x *write) bool {
	for _, y := range h.bySec[pair][s] {
		if y.zero && (y.acked == 0 || y.acked >= x.issued) {
			return true
		}
	}
	return false
}

// equal compares the raw files of both sides byte by byte.
func (w *World) equal() error {
	for i, ids := range w.vols {
		if !w.member(i) {
			continue
		}
		a, err := rawFile(w.home(ids[0]).files(), ids[0])
		if err != nil {
			return err
		}
		b, err := rawFile(w.home(ids[1]).files(), ids[1])
		if err == nil {
			err = equalFiles(a, b)
			_ = b.Close()
		}
		_ = a.Close()
		if err != nil {
			return fmt.Errorf("pair %d: %w", i, err)
		}
	}
	return nil
}

func equalFiles(a, b vfs.File) error {
	const step = 64 << 10
	x, y := make([]byte, step), make([]byte, step)
	for _, f := range []vfs.File{a, b} { // what is a hole in both is equal
		for off := int64(0); ; {
			var err error
			if off, err = f.SeekData(off); errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			end, err := f.SeekHole(off)
			if err != nil {
				return err
			}
			for off -= off % step; off < end; off += step {
				clear(x)
				clear(y)
				_, err := a.ReadAt(x, off)
				_, err2 := b.ReadAt(y, off)
				for _, err := range []error{err, err2} {
					if err != nil && !errors.Is(err, io.EOF) {
						return err
					}
				}
				if !bytes.Equal(x, y) {
					i := 0
					for x[i] == y[i] {
						i++
					}
					return fmt.Errorf("the sides differ at byte %d", off+int64(i))
				}
			}
		}
	}
	return nil
}

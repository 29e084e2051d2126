package rig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// EqualFiles compares two sparse files wherever one of them has data.
func EqualFiles(pathA, pathB string) error {
	var files [2]*os.File
	var ranges [][2]int64
	for i, path := range []string{pathA, pathB} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = f
		r, err := dataRanges(f)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		ranges = append(ranges, r...)
	}
	slices.SortFunc(ranges, func(a, b [2]int64) int { return int(min(1, max(-1, a[0]-b[0]))) })
	var bufs [2][]byte
	for i := range bufs {
		bufs[i] = make([]byte, 1<<20)
	}
	var done int64
	for _, r := range ranges {
		for at := max(r[0], done); at < r[1]; at = done {
			n := min(int64(len(bufs[0])), r[1]-at)
			for i, f := range files {
				clear(bufs[i][:n])
				if _, err := f.ReadAt(bufs[i][:n], at); err != nil && !errors.Is(err, io.EOF) {
					return err
				}
			}
			if !bytes.Equal(bufs[0][:n], bufs[1][:n]) {
				i := int64(0)
				for bufs[0][i] == bufs[1][i] {
					i++
				}
				return fmt.Errorf("%s and %s differ at byte %d", pathA, pathB, at+i)
			}
			done = at + n
		}
	}
	return nil
}

// dataRanges lists where a file is no hole: pairs of begin and end.
func dataRanges(f *os.File) ([][2]int64, error) {
	var list [][2]int64
	for off := int64(0); ; {
		begin, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		list = append(list, [2]int64{begin, end})
		off = end
	}
}

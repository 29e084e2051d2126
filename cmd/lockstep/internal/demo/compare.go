package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/lockstep-dr/lockstep/block"
)

const compareBytes = 1 << 20

// compareReaders reads both to their ends and tells the first byte that differs.
func compareReaders(a, b io.Reader) (sum string, size int64, err error) {
	h := sha256.New()
	p, q := make([]byte, compareBytes), make([]byte, compareBytes)
	for {
		n, errA := io.ReadFull(a, p)
		m, errB := io.ReadFull(b, q)
		if !endOrNil(errA) {
			return "", size, errA
		}
		if !endOrNil(errB) {
			return "", size, errB
		}
		if !bytes.Equal(p[:n], q[:m]) {
			at := 0
			for at < min(n, m) && p[at] == q[at] {
				at++
			}
			if at == min(n, m) {
				return "", size, fmt.Errorf("one ends at byte %d, the other goes on", size+int64(at))
			}
			return "", size, fmt.Errorf("byte %d differs: %#02x and %#02x", size+int64(at), p[at], q[at])
		}
		sumUp(h, p[:n])
		size += int64(n)
		if errA != nil || errB != nil {
			return hex.EncodeToString(h.Sum(nil)), size, nil
		}
	}
}

func sumUp(h hash.Hash, p []byte) { _, _ = h.Write(p) } // a hash never fails

func endOrNil(err error) bool {
	return err == nil || err == io.EOF || err == io.ErrUnexpectedEOF //nolint:errorlint // io.ReadFull returns them bare
}

// compareFiles compares two raw files as a whole.
func compareFiles(a, b string) (sum string, size int64, err error) {
	f, err := os.Open(a)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return "", 0, err
	}
	defer g.Close()
	if sum, size, err = compareReaders(f, g); err != nil {
		err = fmt.Errorf("compare %s with %s: %w", a, b, err)
	}
	return sum, size, err
}

// compareDevice compares what a client reads with a raw file.
func compareDevice(ctx context.Context, disk block.Device, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, err := compareReaders(&deviceReader{ctx: ctx, disk: disk}, f); err != nil {
		return fmt.Errorf("compare what a client reads with %s: %w", file, err)
	}
	return nil
}

type deviceReader struct {
	ctx  context.Context
	disk block.Device
	off  int64
}

func (r *deviceReader) Read(p []byte) (int, error) {
	n := min(int64(len(p)), r.disk.Size()-r.off)
	if n == 0 {
		return 0, io.EOF
	}
	if err := r.disk.ReadAt(r.ctx, p[:n], r.off); err != nil {
		return 0, err
	}
	r.off += n
	return int(n), nil
}

// sabotage flips the lowest bit of one byte in the middle of a raw file, behind the node's back.
func sabotage(file string) (at int64, err error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close() // nothing was written
		return 0, err
	}
	at = info.Size() / 2
	var b [1]byte
	if _, err = f.ReadAt(b[:], at); err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b[:], at)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return at, err
}

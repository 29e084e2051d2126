package disk

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/lockstep-dr/lockstep"
)

// Numbers of the undo file; they never change within a version.
const (
	undoMagic    = 0x4855534c // "LSUH" in the file
	recordMagic  = 0x5255534c // "LSUR" in the file
	undoVersion  = 1
	undoHead     = 4096
	recordHead   = 64
	flagReflink  = 1 // of the header: the old contents are in the .point file
	recordData   = 1 // the chunk's old bytes follow
	recordHole   = 2 // the chunks were holes
	recordSeal   = 3 // no chunk; carries the durable length only
	undoBatchLen = 1 << 20
)

// undoHeader is the first block of an undo file.
type undoHeader struct {
	epoch   lockstep.Epoch
	size    int64  // of the volume when the point was set, bytes
	nonce   uint64 // random; ties the records to this header
	reflink bool
}

func encodeUndoHeader(id lockstep.VolumeID, h undoHeader) []byte {
	buf := make([]byte, undoHead)
	le.PutUint32(buf[0:], undoMagic)
	le.PutUint16(buf[4:], undoVersion)
	if h.reflink {
		le.PutUint16(buf[6:], flagReflink)
	}
	le.PutUint64(buf[8:], uint64(h.epoch))
	le.PutUint64(buf[16:], uint64(h.size))
	le.PutUint64(buf[24:], h.nonce)
	le.PutUint32(buf[32:], uint32(lockstep.ChunkBytes))
	le.PutUint32(buf[60:], undoSum(id, buf))
	return buf
}

func undoSum(id lockstep.VolumeID, buf []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(id), castagnoli), castagnoli, buf[:60])
}

func decodeUndoHeader(id lockstep.VolumeID, buf []byte) (h undoHeader, err error) {
	if len(buf) < undoHead || le.Uint32(buf) != undoMagic || le.Uint32(buf[60:]) != undoSum(id, buf) {
		return h, fmt.Errorf("undo header: %w", lockstep.ErrCorrupt)
	}
	if ver := le.Uint16(buf[4:]); ver != undoVersion {
		return h, fmt.Errorf("undo file of unknown version %d", ver)
	}
	h = undoHeader{
		epoch: lockstep.Epoch(le.Uint64(buf[8:])), size: int64(le.Uint64(buf[16:])),
		nonce: le.Uint64(buf[24:]), reflink: le.Uint16(buf[6:])&flagReflink != 0,
	}
	if int64(le.Uint32(buf[32:])) != lockstep.ChunkBytes || checkSize(h.size) != nil {
		return h, fmt.Errorf("undo header: %w", lockstep.ErrCorrupt)
	}
	return h, nil
}

// record is one entry of an undo file.
type record struct {
	kind    uint32
	seq     uint64 // 1, 2, 3...: a record of an earlier life cannot be taken for the next one
	chunk   int64  // first chunk
	chunks  int64  // how many; 1 for data, 0 for a seal
	dataLen int64  // bytes behind the header
	durable int64  // length of the file known to be durable when this was written
	dataSum uint32 // crc32c of the data
}

func (r record) bytes() int64 { return recordHead + r.dataLen }

// appendRecord adds the record and its data to buf.
func appendRecord(buf []byte, nonce uint64, r record, data []byte) []byte {
	var h [recordHead]byte
	le.PutUint32(h[0:], recordMagic)
	le.PutUint32(h[4:], r.kind)
	le.PutUint64(h[8:], r.seq)
	le.PutUint64(h[16:], uint64(r.chunk))
	le.PutUint64(h[24:], uint64(r.chunks))
	le.PutUint32(h[32:], uint32(len(data)))
	le.PutUint64(h[36:], uint64(r.durable))
	le.PutUint64(h[44:], nonce)
	le.PutUint32(h[56:], crc32.Checksum(data, castagnoli))
	le.PutUint32(h[60:], crc32.Checksum(h[:60], castagnoli))
	return append(append(buf, h[:]...), data...)
}

// decodeRecord reads a record's header; ok is false for anything that appendRecord did not write
// under this nonce for a volume of at most chunks chunks.
func decodeRecord(h []byte, nonce uint64, chunks int64) (r record, ok bool) {
	if len(h) < recordHead || le.Uint32(h) != recordMagic || le.Uint64(h[44:]) != nonce ||
		le.Uint32(h[60:]) != crc32.Checksum(h[:60], castagnoli) {
		return r, false
	}
	r = record{
		kind: le.Uint32(h[4:]), seq: le.Uint64(h[8:]), chunk: int64(le.Uint64(h[16:])), chunks: int64(le.Uint64(h[24:])),
		dataLen: int64(le.Uint32(h[32:])), durable: int64(le.Uint64(h[36:])), dataSum: le.Uint32(h[56:]),
	}
	if r.chunk < 0 || r.chunks < 0 || r.chunk > chunks || r.chunks > chunks-r.chunk || r.durable < 0 {
		return r, false
	}
	switch r.kind {
	case recordData:
		ok = r.chunks == 1 && r.dataLen > 0 && r.dataLen <= lockstep.ChunkBytes && r.dataLen%lockstep.SectorBytes == 0
	case recordHole:
		ok = r.chunks > 0 && r.dataLen == 0
	case recordSeal:
		ok = r.chunks == 0 && r.dataLen == 0
	}
	return r, ok
}

// undoLog is the read side of an undo file's records.
type undoLog struct {
	f      io.ReaderAt
	size   int64 // of the file
	nonce  uint64
	chunks int64 // of the volume
}

// walk calls visit with each record from the first to the last whole one, in order, and returns
// the offset behind that and the next sequence number. A record's data is read, checked and handed
// over (valid during the call) if need(offset) says so; else data is nil. A record that is not
// whole ends the walk without an error: the tail of the last, unfinished Preserve looks like that.
func (u undoLog) walk(need func(off int64) bool, visit func(r record, data []byte) error) (tail int64, seq uint64, err error) {
	head := make([]byte, recordHead)
	body := make([]byte, lockstep.ChunkBytes)
	tail, seq = undoHead, 1
	for tail+recordHead <= u.size {
		if err := readFull(u.f, head, tail); err != nil {
			return tail, seq, err
		}
		r, ok := decodeRecord(head, u.nonce, u.chunks)
		if !ok || r.seq != seq || r.durable > tail || r.bytes() > u.size-tail {
			break
		}
		var data []byte
		if r.dataLen > 0 && need(tail) {
			data = body[:r.dataLen]
			if err := readFull(u.f, data, tail+recordHead); err != nil {
				return tail, seq, err
			}
			if crc32.Checksum(data, castagnoli) != r.dataSum {
				break
			}
		}
		if err := visit(r, data); err != nil {
			return tail, seq, err
		}
		tail += r.bytes()
		seq++
	}
	return tail, seq, nil
}

// damagedBehind reports whether a record behind tail knows that more than tail bytes had become
// durable: then the walk did not end at a torn tail but at a place that has gone bad since.
func (u undoLog) damagedBehind(tail int64) (bool, error) {
	buf := make([]byte, undoBatchLen)
	for off := tail; off < u.size; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), u.size-off)]
		if err := readFull(u.f, b, off); err != nil {
			return false, err
		}
		for ; len(b) >= recordHead; b = b[recordHead:] {
			if le.Uint32(b) != recordMagic {
				continue
			}
			if r, ok := decodeRecord(b, u.nonce, u.chunks); ok && r.durable > tail {
				return true, nil
			}
		}
	}
	return false, nil
}

func readFull(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// open finds the end of the valid records and hands each to visit, without data. Data is checked
// only where no later record says that it was durable; the rest is checked before a rollback.
func (u undoLog) open(visit func(r record)) (tail int64, seq uint64, err error) {
	var durable int64
	never := func(int64) bool { return false }
	_, _, err = u.walk(never, func(r record, _ []byte) error {
		durable = max(durable, r.durable)
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	tail, seq, err = u.walk(func(off int64) bool { return off >= durable }, func(r record, _ []byte) error {
		visit(r)
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	bad, err := u.damagedBehind(tail)
	if err == nil && (bad || tail < durable) {
		err = fmt.Errorf("undo file is damaged at %d: %w", tail, lockstep.ErrCorrupt)
	}
	return tail, seq, err
}

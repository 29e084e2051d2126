package bitmap

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/lockstep-dr/lockstep"
)

// Wire constants; they never change.
const (
	encMagic   = "LSBM"
	encVersion = 1
	kindRaw    = 1
	kindRuns   = 2
	encHead    = 20
	encTail    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode returns the bitmap in the form that the package comment describes.
func (b *Bitmap) Encode() []byte {
	raw := len(b.words) * 8
	out := make([]byte, encHead, encHead+min(raw, 4096)+encTail)
	copy(out, encMagic)
	out[4] = encVersion
	out[5] = kindRuns
	binary.LittleEndian.PutUint64(out[8:], uint64(b.n))
	at := 0
	for lo, hi := range b.Ranges() {
		out = binary.AppendUvarint(out, uint64(lo-at))
		out = binary.AppendUvarint(out, uint64(hi-lo))
		if at = hi; len(out)-encHead > raw {
			break
		}
	}
	if at < b.n {
		out = binary.AppendUvarint(out, uint64(b.n-at))
	}
	if len(out)-encHead > raw {
		out = out[:encHead]
		out[5] = kindRaw
		for _, w := range b.words {
			out = binary.LittleEndian.AppendUint64(out, w)
		}
	}
	binary.LittleEndian.PutUint32(out[16:], uint32(len(out)-encHead))
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
}

// Decode reads what Encode wrote; data must hold exactly that. A bitmap of more than maxBits bits
// is refused before anything is allocated. All errors match lockstep.ErrCorrupt.
func Decode(data []byte, maxBits int) (*Bitmap, error) {
	bad := func(what string) (*Bitmap, error) {
		return nil, fmt.Errorf("decode bitmap: %s: %w", what, lockstep.ErrCorrupt)
	}
	if len(data) < encHead+encTail || string(data[:4]) != encMagic {
		return bad("magic")
	}
	body := data[:len(data)-encTail]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(data[len(body):]) {
		return bad("checksum")
	}
	if data[4] != encVersion || data[6] != 0 || data[7] != 0 {
		return bad("version")
	}
	n64 := binary.LittleEndian.Uint64(data[8:])
	if n64 > uint64(max(maxBits, 0)) {
		return bad("too many bits")
	}
	payload := body[encHead:]
	if uint64(binary.LittleEndian.Uint32(data[16:])) != uint64(len(payload)) {
		return bad("length")
	}
	n := int(n64)
	switch data[5] {
	case kindRaw:
		if len(payload) != wordsFor(n)*8 {
			return bad("raw length")
		}
		b := New(n)
		for i := range b.words {
			b.words[i] = binary.LittleEndian.Uint64(payload[i*8:])
		}
		if r := uint(n) % wordBits; r != 0 && b.words[len(b.words)-1]>>r != 0 {
			return bad("bits beyond the end")
		}
		return b, nil
	case kindRuns:
		b := New(n)
		at, set := 0, false
		for len(payload) > 0 {
			run, k := binary.Uvarint(payload)
			if k <= 0 || run > uint64(n-at) {
				return bad("run")
			}
			payload = payload[k:]
			if set {
				b.SetRange(at, at+int(run))
			}
			at, set = at+int(run), !set
		}
		if at != n {
			return bad("runs do not add up")
		}
		return b, nil
	default:
		return bad("kind")
	}
}

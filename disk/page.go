package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/lockstep-dr/lockstep"
)

// Numbers of the metadata file; they never change within a format version.
const (
	metaMagic   = 0x504d534c // "LSMP" in the file
	metaVersion = 1

	pageBytes    = 4096
	pageHead     = 64
	pagePayload  = pageBytes - pageHead
	bitsPerPage  = pagePayload * 8 // 32256
	wordsPerPage = bitsPerPage / 64

	dirtyPerStripe = 64                                         // chunks per region: one intent page, 64 dirty pages
	stripePages    = 1 + dirtyPerStripe                         //
	stripeBytes    = 2 * stripePages * pageBytes                // both slots
	firstStripe    = 64 << 10                                   // file offset of stripe 0
	headerSlotB    = 32 << 10                                   // file offset of the header's second slot
	chunksPerRegn  = lockstep.RegionBytes / lockstep.ChunkBytes // 64

	kindHeader = 1
	kindIntent = 2
	kindDirty  = 3

	maxVolumeBytes = int64(1) << 50 // 1 PiB; bounds what a header can make us allocate
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// pageNo is the logical number of a page: 0 the header, 1+65s the intent page of stripe s, the 64
// after it that stripe's dirty pages.
type pageNo int64

func intentPage(i int) pageNo { return pageNo(1 + i*stripePages) }

func dirtyPage(i int) pageNo {
	return pageNo(1 + i/dirtyPerStripe*stripePages + 1 + i%dirtyPerStripe)
}

func (n pageNo) kind() byte {
	switch {
	case n == 0:
		return kindHeader
	case (n-1)%stripePages == 0:
		return kindIntent
	default:
		return kindDirty
	}
}

// offset is where slot (0 or 1) of the page lies in the file.
func (n pageNo) offset(slot int) int64 {
	if n == 0 {
		return int64(slot) * headerSlotB
	}
	stripe, in := int64(n-1)/stripePages, int64(n-1)%stripePages
	return firstStripe + stripe*stripeBytes + (int64(slot)*stripePages+in)*pageBytes
}

// intentPages and dirtyPages are how many pages a volume of size bytes has.
func intentPages(size int64) int { return int(ceil(regionsOf(size), bitsPerPage)) }
func dirtyPages(size int64) int  { return int(ceil(chunksOf(size), bitsPerPage)) }

func ceil(a, b int64) int64      { return (a + b - 1) / b }
func regionsOf(size int64) int64 { return ceil(size, lockstep.RegionBytes) }
func chunksOf(size int64) int64  { return ceil(size, lockstep.ChunkBytes) }
func metaBytes(size int64) int64 { return firstStripe + ceil(int64(intentPages(size)), 1)*stripeBytes }

// sealPage fills in the header and the checksum of buf, whose payload is in place.
func sealPage(buf []byte, id lockstep.VolumeID, n pageNo, seq uint64) {
	clear(buf[:pageHead])
	le.PutUint32(buf[0:], metaMagic)
	le.PutUint16(buf[4:], metaVersion)
	buf[6] = n.kind()
	le.PutUint64(buf[8:], uint64(n))
	le.PutUint64(buf[16:], seq)
	le.PutUint32(buf[60:], pageSum(buf, id))
}

// pageSum covers the volume's id, the page's header with its number, and the payload.
func pageSum(buf []byte, id lockstep.VolumeID) uint32 {
	sum := crc32.Checksum([]byte(id), castagnoli)
	sum = crc32.Update(sum, castagnoli, buf[:60])
	return crc32.Update(sum, castagnoli, buf[pageHead:pageBytes])
}

var (
	errPage       = fmt.Errorf("metadata page: %w", lockstep.ErrCorrupt)
	errNewVersion = errors.New("metadata is of a newer format")
)

// openPage checks buf and returns its sequence number. A page that is whole but of a newer format
// is errNewVersion; anything else is errPage.
func openPage(buf []byte, id lockstep.VolumeID, n pageNo) (seq uint64, err error) {
	if len(buf) != pageBytes || le.Uint32(buf) != metaMagic || le.Uint32(buf[60:]) != pageSum(buf, id) ||
		le.Uint64(buf[8:]) != uint64(n) || buf[6] != n.kind() {
		return 0, errPage
	}
	if le.Uint16(buf[4:]) != metaVersion {
		return 0, fmt.Errorf("version %d: %w", le.Uint16(buf[4:]), errNewVersion)
	}
	return le.Uint64(buf[16:]), nil
}

// putHeader writes the payload of the header page.
func putHeader(buf []byte, id lockstep.VolumeID, size int64) {
	p := buf[pageHead:pageBytes]
	clear(p)
	le.PutUint64(p[0:], uint64(size))
	le.PutUint32(p[8:], uint32(lockstep.RegionBytes))
	le.PutUint32(p[12:], uint32(lockstep.ChunkBytes))
	le.PutUint16(p[16:], uint16(len(id)))
	copy(p[18:], id)
}

// getHeader reads the payload of a header page that openPage has passed.
func getHeader(buf []byte, id lockstep.VolumeID) (size int64, err error) {
	p := buf[pageHead:pageBytes]
	n := int(le.Uint16(p[16:]))
	if n > maxIDBytes || string(p[18:18+n]) != string(id) {
		return 0, fmt.Errorf("header names another volume: %w", lockstep.ErrCorrupt)
	}
	if r, c := le.Uint32(p[8:]), le.Uint32(p[12:]); int64(r) != lockstep.RegionBytes || int64(c) != lockstep.ChunkBytes {
		return 0, fmt.Errorf("header: regions of %d and chunks of %d bytes: %w", r, c, lockstep.ErrCorrupt)
	}
	size = int64(le.Uint64(p[0:]))
	if err := checkSize(size); err != nil {
		return 0, fmt.Errorf("header: %w: %w", err, lockstep.ErrCorrupt)
	}
	return size, nil
}

func checkSize(size int64) error {
	if size <= 0 || size > maxVolumeBytes || size%lockstep.SectorBytes != 0 {
		return fmt.Errorf("a volume cannot have %d bytes", size)
	}
	return nil
}

func putWords(buf []byte, words []uint64) {
	for i, w := range words {
		le.PutUint64(buf[pageHead+i*8:], w)
	}
}

func getWords(buf []byte, words []uint64) {
	for i := range words {
		words[i] = le.Uint64(buf[pageHead+i*8:])
	}
}

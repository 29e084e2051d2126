// Package wire is the replication link as bytes: the fixed header, its checksums, the kinds of
// frames and the handshake. It does no I/O of its own beyond a reader and a writer it is given,
// and knows nothing of volumes or epochs beyond their numbers.
//
// A frame is a header of 96 bytes, big endian, followed by BodyLen bytes:
//
//	 0  u32  magic "LKST"
//	 4  u8   version of the layout (1)
//	 5  u8   kind
//	 6  u16  flags
//	 8  u64  group key (first 8 bytes of SHA-256 of the id)
//	16  u64  epoch
//	24  u64  session: start counter of the dialing node
//	32  u64  session: connection number
//	40  u64  pair key: the same on both sides, whose volumes have different ids
//	48  u64  sequence: matches an answer to its request
//	56  u64  offset, bytes (in acknowledgements: the boot key of the answering node)
//	64  u64  length of the range, bytes
//	72  u32  status (answers), else 0
//	76  u32  body length, bytes
//	80  u32  CRC-32C of the body
//	84  u64  reserved, 0
//	92  u32  CRC-32C of bytes 0 to 91
//
// These numbers never change within a version; a receiver closes the link on an unknown version.
package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/lockstep-dr/lockstep"
)

// Layout constants.
const (
	Magic      = 0x4c4b5354 // "LKST"
	Version    = 1
	HeaderSize = 96
	// MaxBody bounds a frame's body: the data of the largest request plus room for JSON.
	MaxBody = lockstep.MaxRequestBytes + 64<<10
	// MaxControlBody bounds the body of every kind that carries no volume data.
	MaxControlBody = 8 << 20
)

// Kind says what a frame is.
type Kind uint8

// Kinds. A request's answer is KindAck unless said otherwise.
const (
	KindInvalid        Kind = 0
	KindHello          Kind = 1  // first frame of the dialing node; body Hello
	KindHelloReply     Kind = 2  // body HelloReply
	KindAnnounce       Kind = 3  // primary to secondary: body Announce
	KindAnnounceReply  Kind = 4  // body AnnounceReply
	KindWrite          Kind = 5  // offset, body: data
	KindZero           Kind = 6  // offset, length; FlagNoHole
	KindFlush          Kind = 7  // fdatasync of the volume
	KindCompare        Kind = 8  // offset, length, body: a SHA-256 for each chunk; answer KindCompareReply
	KindCompareReply   Kind = 9  // body: a byte for each chunk, 1 = differs
	KindRead           Kind = 10 // offset, length: take-back; answer KindReadReply
	KindReadReply      Kind = 11 // body: data
	KindPreserve       Kind = 12 // body: extents that will be overwritten by a resync
	KindAck            Kind = 13 // status, boot key in offset
	KindHeartbeat      Kind = 14 // body Heartbeat
	KindHeartbeatReply Kind = 15 // body HeartbeatReply
)

// Flags of a frame.
const (
	FlagFUA    uint16 = 1 << 0 // durable before it is acknowledged
	FlagNoHole uint16 = 1 << 1 // zeroes are written, not punched
	FlagResync uint16 = 1 << 2 // a resync's chunk, not a client's write
)

// Status is the outcome in an answer.
type Status uint32

// Statuses. Everything but StatusOK is a refusal; nothing was applied.
const (
	StatusOK           Status = 0
	StatusStaleEpoch   Status = 1
	StatusUnannounced  Status = 2
	StatusStaleSession Status = 3
	StatusNotSecondary Status = 4
	StatusOutOfRange   Status = 5
	StatusNoSpace      Status = 6
	StatusIO           Status = 7
	StatusUnknown      Status = 8
)

// Header is the fixed part of a frame.
type Header struct {
	Kind    Kind
	Flags   uint16
	Group   uint64
	Epoch   lockstep.Epoch
	Session lockstep.Session
	Volume  uint64
	Seq     uint64
	Offset  uint64
	Length  uint64
	Status  Status
	BodyLen uint32
	BodyCRC uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C that frames carry.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// Key is the number by which frames name a group or volume.
func Key[T ~string](id T) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(sum[:8])
}

// Put encodes h into p, which has at least HeaderSize bytes.
func (h *Header) Put(p []byte) {
	_ = p[HeaderSize-1]
	be := binary.BigEndian
	be.PutUint32(p[0:], Magic)
	p[4], p[5] = Version, byte(h.Kind)
	be.PutUint16(p[6:], h.Flags)
	be.PutUint64(p[8:], h.Group)
	be.PutUint64(p[16:], uint64(h.Epoch))
	be.PutUint64(p[24:], h.Session.Start)
	be.PutUint64(p[32:], h.Session.Conn)
	be.PutUint64(p[40:], h.Volume)
	be.PutUint64(p[48:], h.Seq)
	be.PutUint64(p[56:], h.Offset)
	be.PutUint64(p[64:], h.Length)
	be.PutUint32(p[72:], uint32(h.Status))
	be.PutUint32(p[76:], h.BodyLen)
	be.PutUint32(p[80:], h.BodyCRC)
	be.PutUint64(p[84:], 0)
	be.PutUint32(p[92:], Checksum(p[:92]))
}

// ErrFrame marks bytes that are not a frame of this protocol; the link is closed.
var ErrFrame = fmt.Errorf("bad replication frame: %w", lockstep.ErrCorrupt)

// ErrTLS: the bytes are the first of a TLS handshake.
var ErrTLS = errors.New("a TLS handshake where a frame was expected")

// Parse decodes and checks a header. It refuses a body longer than its kind may have, so that a
// reader never allocates what a peer merely claims.
func (h *Header) Parse(p []byte) error {
	if len(p) < HeaderSize {
		return fmt.Errorf("%w: header of %d bytes", ErrFrame, len(p))
	}
	be := binary.BigEndian
	if m := be.Uint32(p[0:]); m != Magic {
		if p[0] == 22 && p[1] == 3 { // RFC 8446, 5.1: a handshake record
			return fmt.Errorf("%w: %w", ErrFrame, ErrTLS)
		}
		return fmt.Errorf("%w: magic %#x", ErrFrame, m)
	}
	if got, want := be.Uint32(p[92:]), Checksum(p[:92]); got != want {
		return fmt.Errorf("%w: header checksum %#x, computed %#x", ErrFrame, got, want)
	}
	if p[4] != Version {
		return fmt.Errorf("%w: layout version %d, this build speaks %d", ErrFrame, p[4], Version)
	}
	*h = Header{
		Kind: Kind(p[5]), Flags: be.Uint16(p[6:]), Group: be.Uint64(p[8:]), Epoch: lockstep.Epoch(be.Uint64(p[16:])),
		Session: lockstep.Session{Start: be.Uint64(p[24:]), Conn: be.Uint64(p[32:])},
		Volume:  be.Uint64(p[40:]), Seq: be.Uint64(p[48:]), Offset: be.Uint64(p[56:]), Length: be.Uint64(p[64:]),
		Status: Status(be.Uint32(p[72:])), BodyLen: be.Uint32(p[76:]), BodyCRC: be.Uint32(p[80:]),
	}
	limit := uint32(MaxControlBody)
	switch h.Kind {
	case KindWrite, KindReadReply:
		limit = MaxBody
	case KindZero, KindFlush, KindRead, KindAck:
		limit = 4 << 10
	case KindHello, KindHelloReply, KindAnnounce, KindAnnounceReply, KindCompare, KindCompareReply, KindPreserve, KindHeartbeat, KindHeartbeatReply:
	case KindInvalid:
		return fmt.Errorf("%w: kind 0", ErrFrame)
	default:
		return fmt.Errorf("%w: kind %d", ErrFrame, h.Kind)
	}
	if h.BodyLen > limit {
		return fmt.Errorf("%w: body of %d bytes, kind %d may have %d", ErrFrame, h.BodyLen, h.Kind, limit)
	}
	return nil
}

// ReadHeader reads and checks the next header. io.EOF means that the peer closed between frames.
func ReadHeader(r io.Reader, scratch *[HeaderSize]byte) (Header, error) {
	var h Header
	if _, err := io.ReadFull(r, scratch[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return h, fmt.Errorf("%w: cut off in a header", ErrFrame)
		}
		return h, err
	}
	return h, h.Parse(scratch[:])
}

// ReadBody reads the body that h announces into p (of h.BodyLen bytes) and checks it.
func ReadBody(r io.Reader, h *Header, p []byte) error {
	if _, err := io.ReadFull(r, p); err != nil {
		return fmt.Errorf("%w: cut off in a body: %w", ErrFrame, err)
	}
	if got := Checksum(p); got != h.BodyCRC {
		return fmt.Errorf("%w: body checksum %#x, computed %#x", ErrFrame, h.BodyCRC, got)
	}
	return nil
}

package history

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"

	"github.com/lockstep-dr/lockstep"
)

// BlockBytes is the unit of the registers and of the chains: a whole block has one value.
const BlockBytes = 4096

// Value is what a block holds: 0 for zeroes, and a number of its own for every write.
type Value uint64

// Layout of a block that was written, little endian: magic, run, disk u32, kind u32, block or chain
// u64, value u64, filler that follows from them, CRC-32 of all before it.
const (
	magic    = "LOCKSTEP-HISTORY"
	runAt    = 16
	diskAt   = 24
	kindAt   = 28
	placeAt  = 32
	valueAt  = 40
	fillerAt = 48
	sumAt    = BlockBytes - 8
)

// kinds of blocks, so that one of a chain is never taken for a register's.
const (
	kindRegister = 1
	kindChain    = 2
)

// stamp is everything that a block says about itself.
type stamp struct {
	run   uint64
	disk  int
	kind  uint32
	place uint64
	value Value
}

// fill makes the content of a block.
func (s stamp) fill(b []byte) {
	if s.value == 0 {
		clear(b[:BlockBytes])
		return
	}
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint64(b[runAt:], s.run)
	le.PutUint32(b[diskAt:], uint32(s.disk))
	le.PutUint32(b[kindAt:], s.kind)
	le.PutUint64(b[placeAt:], s.place)
	le.PutUint64(b[valueAt:], uint64(s.value))
	r := rand.NewPCG(s.run^s.place, uint64(s.value))
	for i := fillerAt; i < sumAt; i += 8 {
		le.PutUint64(b[i:], r.Uint64())
	}
	le.PutUint64(b[sumAt:], uint64(crc32.ChecksumIEEE(b[:sumAt])))
}

var zeroes [BlockBytes]byte

// read gives the value of a block that must be one of s's run, disk, kind and place. Whatever else
// it holds is an error that says what.
func (s stamp) read(b []byte) (Value, error) {
	if bytes.Equal(b, zeroes[:]) {
		return 0, nil
	}
	le := binary.LittleEndian
	if string(b[:len(magic)]) != magic || le.Uint64(b[sumAt:]) != uint64(crc32.ChecksumIEEE(b[:sumAt])) {
		return 0, fmt.Errorf("it is neither empty nor whole: %w", lockstep.ErrCorrupt)
	}
	have := stamp{
		run: le.Uint64(b[runAt:]), disk: int(le.Uint32(b[diskAt:])), kind: le.Uint32(b[kindAt:]),
		place: le.Uint64(b[placeAt:]), value: Value(le.Uint64(b[valueAt:])),
	}
	if want := (stamp{s.run, s.disk, s.kind, s.place, have.value}); have != want {
		return 0, fmt.Errorf("it holds what was written elsewhere (%+v): %w", have, lockstep.ErrCorrupt)
	}
	return have.value, nil
}

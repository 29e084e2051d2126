// Package bitmap holds sets of small integers as bits: the dirty map, the write-intent log and
// the list of preserved chunks are such sets. Bitmap is a plain value for one goroutine; Atomic is
// its lock-free companion for the paths of a write. The package never does I/O and never logs.
//
// # Encoding
//
// Encode gives a self-contained, checksummed form for files and frames (little endian):
//
//	 0      4     5      6       8          16         20          20+n        24+n
//	+------+-----+------+-------+----------+----------+-----------+-----------+
//	| LSBM | ver | kind | zero  | bits u64 | n u32    | payload   | crc32c    |
//	+------+-----+------+-------+----------+----------+-----------+-----------+
//
// kind 1 (raw): the bits as little-endian 64-bit words. kind 2 (runs): uvarint run lengths,
// alternately of clear and set bits, the first of clear ones (possibly zero long); together they
// are exactly the number of bits. The shorter kind is chosen. The checksum covers all before it.
package bitmap

import (
	"iter"
	"math/bits"
)

const wordBits = 64

// Bitmap is a set of the integers [0, Len). It is not safe for concurrent use.
// The bits of the last word at and above Len are always zero.
type Bitmap struct {
	words []uint64
	n     int
}

// New returns an empty bitmap of n bits; n must not be negative.
func New(n int) *Bitmap {
	if n < 0 {
		panic("bitmap: negative length")
	}
	return &Bitmap{words: make([]uint64, wordsFor(n)), n: n}
}

func wordsFor(n int) int { return (n + wordBits - 1) / wordBits }

// Len is the number of bits, set or not.
func (b *Bitmap) Len() int { return b.n }

func (b *Bitmap) check(i int) {
	if i < 0 || i >= b.n {
		panic("bitmap: index out of range")
	}
}

func (b *Bitmap) checkRange(lo, hi int) {
	if lo < 0 || hi > b.n || lo > hi {
		panic("bitmap: range out of range")
	}
}

// Get reports whether bit i is set.
func (b *Bitmap) Get(i int) bool {
	b.check(i)
	return b.words[i/wordBits]&(1<<(uint(i)%wordBits)) != 0
}

// Set sets bit i and reports whether it was clear before.
func (b *Bitmap) Set(i int) bool {
	b.check(i)
	w, m := &b.words[i/wordBits], uint64(1)<<(uint(i)%wordBits)
	was := *w&m != 0
	*w |= m
	return !was
}

// Clear clears bit i and reports whether it was set before.
func (b *Bitmap) Clear(i int) bool {
	b.check(i)
	w, m := &b.words[i/wordBits], uint64(1)<<(uint(i)%wordBits)
	was := *w&m != 0
	*w &^= m
	return was
}

// eachWord calls f with the index and the mask of every word that [lo, hi) touches.
func eachWord(lo, hi int, f func(word int, mask uint64)) {
	for lo < hi {
		end := min(hi, (lo/wordBits+1)*wordBits)
		mask := ^uint64(0) << (uint(lo) % wordBits)
		if r := uint(end) % wordBits; r != 0 {
			mask &= 1<<r - 1
		}
		f(lo/wordBits, mask)
		lo = end
	}
}

// SetRange sets the bits [lo, hi).
func (b *Bitmap) SetRange(lo, hi int) {
	b.checkRange(lo, hi)
	eachWord(lo, hi, func(w int, m uint64) { b.words[w] |= m })
}

// ClearRange clears the bits [lo, hi).
func (b *Bitmap) ClearRange(lo, hi int) {
	b.checkRange(lo, hi)
	eachWord(lo, hi, func(w int, m uint64) { b.words[w] &^= m })
}

// SetAll sets every bit.
func (b *Bitmap) SetAll() { b.SetRange(0, b.n) }

// ClearAll clears every bit.
func (b *Bitmap) ClearAll() { clear(b.words) }

// AllSet reports whether every bit of [lo, hi) is set; it is true of the empty range.
func (b *Bitmap) AllSet(lo, hi int) bool {
	b.checkRange(lo, hi)
	all := true
	eachWord(lo, hi, func(w int, m uint64) { all = all && b.words[w]&m == m })
	return all
}

// Count is the number of set bits.
func (b *Bitmap) Count() int {
	n := 0
	for _, w := range b.words {
		n += bits.OnesCount64(w)
	}
	return n
}

// Empty reports whether no bit is set.
func (b *Bitmap) Empty() bool {
	for _, w := range b.words {
		if w != 0 {
			return false
		}
	}
	return true
}

// NextSet is the first set bit at or after i, or -1. An i at or above Len gives -1.
func (b *Bitmap) NextSet(i int) int { return b.next(i, 0) }

// NextClear is the first clear bit at or after i, or -1. An i at or above Len gives -1.
func (b *Bitmap) NextClear(i int) int { return b.next(i, ^uint64(0)) }

func (b *Bitmap) next(i int, flip uint64) int {
	i = max(i, 0)
	if i >= b.n {
		return -1
	}
	w := i / wordBits
	v := (b.words[w] ^ flip) &^ (1<<(uint(i)%wordBits) - 1)
	for v == 0 {
		if w++; w >= len(b.words) {
			return -1
		}
		v = b.words[w] ^ flip
	}
	if i = w*wordBits + bits.TrailingZeros64(v); i >= b.n {
		return -1
	}
	return i
}

// Ranges yields the maximal runs [lo, hi) of set bits, ascending. The bitmap must not change
// during the iteration at or behind the run just given.
func (b *Bitmap) Ranges() iter.Seq2[int, int] {
	return func(yield func(lo, hi int) bool) {
		for lo := b.NextSet(0); lo >= 0; {
			hi := b.NextClear(lo)
			if hi < 0 {
				hi = b.n
			}
			if !yield(lo, hi) {
				return
			}
			lo = b.NextSet(hi)
		}
	}
}

// Or adds the bits of o, which must not be longer than b.
func (b *Bitmap) Or(o *Bitmap) {
	if o.n > b.n {
		panic("bitmap: or with a longer bitmap")
	}
	for i, w := range o.words {
		b.words[i] |= w
	}
}

// AndNot removes the bits of o, which must not be longer than b.
func (b *Bitmap) AndNot(o *Bitmap) {
	if o.n > b.n {
		panic("bitmap: and-not with a longer bitmap")
	}
	for i, w := range o.words {
		b.words[i] &^= w
	}
}

// Equal reports whether both have the same length and the same bits.
func (b *Bitmap) Equal(o *Bitmap) bool {
	if b.n != o.n {
		return false
	}
	for i, w := range b.words {
		if w != o.words[i] {
			return false
		}
	}
	return true
}

// Clone returns an independent copy.
func (b *Bitmap) Clone() *Bitmap {
	return &Bitmap{words: append([]uint64(nil), b.words...), n: b.n}
}

// Grow makes the bitmap n bits long; the new bits are clear. A smaller n changes nothing.
func (b *Bitmap) Grow(n int) {
	if n <= b.n {
		return
	}
	if more := wordsFor(n) - len(b.words); more > 0 {
		b.words = append(b.words, make([]uint64, more)...)
	}
	b.n = n
}

// Words copies the words that begin at bit lo into dst: dst[0] holds the bits lo to lo+63. lo must
// be a multiple of 64; words beyond the end are zero.
func (b *Bitmap) Words(lo int, dst []uint64) {
	if lo%wordBits != 0 {
		panic("bitmap: unaligned word offset")
	}
	clear(dst)
	if w := lo / wordBits; w < len(b.words) {
		copy(dst, b.words[w:])
	}
}

// OrWords adds the bits of src, whose first word begins at bit lo, a multiple of 64. Bits beyond
// the end are dropped.
func (b *Bitmap) OrWords(lo int, src []uint64) {
	if lo%wordBits != 0 {
		panic("bitmap: unaligned word offset")
	}
	for i, w := range src {
		k := lo/wordBits + i
		if k >= len(b.words) {
			return
		}
		if k == len(b.words)-1 && b.n%wordBits != 0 {
			w &= 1<<(uint(b.n)%wordBits) - 1
		}
		b.words[k] |= w
	}
}

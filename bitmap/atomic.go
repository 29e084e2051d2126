package bitmap

import (
	"sync/atomic"
)

const (
	segWords = 64
	segBits  = segWords * wordBits
)

type segment [segWords]atomic.Uint64

// Atomic is a bitmap whose single-bit operations are safe for concurrent use and take no lock.
// Its bits live in segments that never move, so it can grow while other goroutines set and clear
// bits. Operations over ranges are not atomic as a whole, only bit by bit.
// All operations are sequentially consistent, as those of sync/atomic are.
type Atomic struct {
	segs atomic.Pointer[[]*segment]
	n    atomic.Int64
}

// NewAtomic returns an empty bitmap of n bits.
func NewAtomic(n int) *Atomic {
	a := &Atomic{}
	a.segs.Store(&[]*segment{})
	a.Grow(n)
	return a
}

// Len is the number of bits, set or not.
func (a *Atomic) Len() int { return int(a.n.Load()) }

// Grow makes the bitmap n bits long; the new bits are clear. A smaller n changes nothing. It may
// run beside any operation except another Grow.
func (a *Atomic) Grow(n int) {
	if n <= a.Len() {
		return
	}
	old := *a.segs.Load()
	segs := append(make([]*segment, 0, (n+segBits-1)/segBits), old...)
	for len(segs)*segBits < n {
		segs = append(segs, new(segment))
	}
	a.segs.Store(&segs)
	a.n.Store(int64(n))
}

func (a *Atomic) word(i int) *atomic.Uint64 {
	return &(*a.segs.Load())[i/segBits][i%segBits/wordBits]
}

// Get reports whether bit i is set.
func (a *Atomic) Get(i int) bool {
	return a.word(i).Load()&(1<<(uint(i)%wordBits)) != 0
}

// Set sets bit i and reports whether it was clear before.
func (a *Atomic) Set(i int) bool {
	m := uint64(1) << (uint(i) % wordBits)
	return a.word(i).Or(m)&m == 0
}

// Clear clears bit i and reports whether it was set before.
func (a *Atomic) Clear(i int) bool {
	m := uint64(1) << (uint(i) % wordBits)
	return a.word(i).And(^m)&m != 0
}

// AllSet reports whether every bit of [lo, hi) was set when it was looked at.
func (a *Atomic) AllSet(lo, hi int) bool {
	for lo < hi {
		end := min(hi, (lo/wordBits+1)*wordBits)
		mask := ^uint64(0) << (uint(lo) % wordBits)
		if r := uint(end) % wordBits; r != 0 {
			mask &= 1<<r - 1
		}
		if a.word(lo).Load()&mask != mask {
			return false
		}
		lo = end
	}
	return true
}

// SetRange sets the bits [lo, hi), word by word.
func (a *Atomic) SetRange(lo, hi int) {
	eachWord(lo, hi, func(w int, m uint64) { a.word(w * wordBits).Or(m) })
}

// ClearAll clears every bit, word by word.
func (a *Atomic) ClearAll() {
	for _, s := range *a.segs.Load() {
		for i := range s {
			s[i].Store(0)
		}
	}
}

// Snapshot copies the bits, word by word.
func (a *Atomic) Snapshot() *Bitmap {
	b := New(a.Len())
	a.Words(0, b.words)
	return b
}

// Words copies the words that begin at bit lo, a multiple of 64, into dst; words beyond the end
// are zero.
func (a *Atomic) Words(lo int, dst []uint64) {
	if lo%wordBits != 0 {
		panic("bitmap: unaligned word offset")
	}
	segs := *a.segs.Load()
	for i := range dst {
		w := lo/wordBits + i
		if w/segWords >= len(segs) {
			dst[i] = 0
			continue
		}
		dst[i] = segs[w/segWords][w%segWords].Load()
	}
}

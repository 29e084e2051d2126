package bitmap

import (
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/lockstep-dr/lockstep"
)

// checkModel compares every way to read b with a map.
func checkModel(t *rapid.T, b *Bitmap, m map[int]bool) {
	count := 0
	for i := range b.Len() {
		if b.Get(i) != m[i] {
			t.Fatalf("bit %d is %v, want %v", i, b.Get(i), m[i])
		}
		if m[i] {
			count++
		}
	}
	if b.Count() != count || b.Empty() != (count == 0) {
		t.Fatalf("count %d, empty %v; want %d", b.Count(), b.Empty(), count)
	}
	next := func(from int, want bool) int {
		for i := from; i < b.Len(); i++ {
			if m[i] == want {
				return i
			}
		}
		return -1
	}
	from := rapid.IntRange(0, b.Len()+3).Draw(t, "from")
	if g, w := b.NextSet(from), next(from, true); g != w {
		t.Fatalf("next set from %d: %d, want %d", from, g, w)
	}
	if g, w := b.NextClear(from), next(from, false); g != w {
		t.Fatalf("next clear from %d: %d, want %d", from, g, w)
	}
	seen, prev := 0, -1
	for lo, hi := range b.Ranges() {
		if lo <= prev || hi <= lo {
			t.Fatalf("range [%d,%d) after %d: not maximal or not ascending", lo, hi, prev)
		}
		for i := lo; i < hi; i++ {
			if !m[i] {
				t.Fatalf("range [%d,%d) has clear bit %d", lo, hi, i)
			}
		}
		seen, prev = seen+hi-lo, hi
	}
	if seen != count {
		t.Fatalf("ranges hold %d bits, want %d", seen, count)
	}
}

// TestBitmapAgainstMap runs random operations on a bitmap, an atomic one and a map.
func TestBitmapAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 700).Draw(t, "n")
		b, a, m := New(n), NewAtomic(n), map[int]bool{}
		pair := func() (int, int) {
			lo := rapid.IntRange(0, n).Draw(t, "lo")
			return lo, rapid.IntRange(lo, n).Draw(t, "hi")
		}
		one := func(f func(i int)) func(*rapid.T) {
			return func(t *rapid.T) {
				if n == 0 {
					t.Skip("empty bitmap")
				}
				f(rapid.IntRange(0, n-1).Draw(t, "i"))
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": one(func(i int) {
				if b.Set(i) == m[i] || a.Set(i) == m[i] {
					t.Fatalf("set %d: wrong answer about the old value", i)
				}
				m[i] = true
			}),
			"clear": one(func(i int) {
				if b.Clear(i) != m[i] || a.Clear(i) != m[i] {
					t.Fatalf("clear %d: wrong answer about the old value", i)
				}
				delete(m, i)
			}),
			"setRange": func(*rapid.T) {
				lo, hi := pair()
				b.SetRange(lo, hi)
				a.SetRange(lo, hi)
				for i := lo; i < hi; i++ {
					m[i] = true
				}
				if !b.AllSet(lo, hi) || !a.AllSet(lo, hi) {
					t.Fatalf("[%d,%d) is not all set", lo, hi)
				}
			},
			"clearRange": func(*rapid.T) {
				lo, hi := pair()
				b.ClearRange(lo, hi)
				for i := lo; i < hi; i++ {
					a.Clear(i)
					delete(m, i)
				}
				if lo < hi && (b.AllSet(lo, hi) || a.AllSet(lo, hi)) {
					t.Fatalf("[%d,%d) is all set", lo, hi)
				}
			},
			"grow": func(t *rapid.T) {
				n = rapid.IntRange(n, n+200).Draw(t, "to")
				b.Grow(n)
				a.Grow(n)
			},
			"all": func(t *rapid.T) {
				if rapid.Bool().Draw(t, "value") {
					b.SetAll()
					a.SetRange(0, n)
					for i := range n {
						m[i] = true
					}
				} else {
					b.ClearAll()
					a.ClearAll()
					clear(m)
				}
			},
			"words": func(t *rapid.T) {
				lo := rapid.IntRange(0, n/64+1).Draw(t, "word") * 64
				w := make([]uint64, 5)
				b.Words(lo, w)
				v := make([]uint64, 5)
				a.Words(lo, v)
				if !slices.Equal(v, w) {
					t.Fatalf("words at %d: %x, atomic %x", lo, w, v)
				}
				c := New(n)
				c.OrWords(lo, w)
				for i := range n {
					if c.Get(i) != (m[i] && i >= lo && i < lo+320) {
						t.Fatalf("bit %d after copying words at %d", i, lo)
					}
				}
				for i := range w {
					w[i] = ^uint64(0)
				}
				c.OrWords(lo, w) // must not set bits beyond the end
				if c.Count() != max(0, min(n, lo+320)-lo) {
					t.Fatalf("or of ones at %d gives %d bits of %d", lo, c.Count(), n)
				}
			},
			"": func(t *rapid.T) {
				checkModel(t, b, m)
				if !a.Snapshot().Equal(b) {
					t.Fatalf("atomic and plain differ")
				}
			},
		})
	})
}

func drawBitmap(t *rapid.T, n int, label string) *Bitmap {
	b := New(n)
	for range rapid.IntRange(0, 12).Draw(t, label+"Runs") {
		lo := rapid.IntRange(0, n).Draw(t, label)
		b.SetRange(lo, rapid.IntRange(lo, min(n, lo+300)).Draw(t, label))
	}
	if rapid.Bool().Draw(t, label+"Noise") {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, label+"Seed"), 0))
		for i := range n {
			if r.IntN(2) == 0 {
				b.Set(i)
			}
		}
	}
	return b
}

func TestSetAlgebra(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 3000).Draw(t, "n")
		x, y := drawBitmap(t, n, "x"), drawBitmap(t, rapid.IntRange(0, n).Draw(t, "m"), "y")
		or, sub := x.Clone(), x.Clone()
		or.Or(y)
		sub.AndNot(y)
		for i := range n {
			inY := i < y.Len() && y.Get(i)
			if or.Get(i) != (x.Get(i) || inY) || sub.Get(i) != (x.Get(i) && !inY) {
				t.Fatalf("bit %d", i)
			}
		}
	})
}

// TestCodecRoundTrip checks that encoding keeps every bit, never costs much more than raw words,
// and that any changed byte is noticed.
func TestCodecRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 5000).Draw(t, "n")
		b := drawBitmap(t, n, "b")
		enc := b.Encode()
		if len(enc) > encHead+encTail+wordsFor(n)*8+2 {
			t.Fatalf("%d bits took %d bytes", n, len(enc))
		}
		d, err := Decode(enc, n)
		if err != nil || !d.Equal(b) {
			t.Fatalf("round trip: %v", err)
		}
		if n > 0 {
			if _, err := Decode(enc, n-1); !errors.Is(err, lockstep.ErrCorrupt) {
				t.Fatalf("limit ignored: %v", err)
			}
		}
		i := rapid.IntRange(0, len(enc)-1).Draw(t, "at")
		enc[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		if _, err := Decode(enc, n); !errors.Is(err, lockstep.ErrCorrupt) {
			t.Fatalf("changed byte %d went unnoticed: %v", i, err)
		}
	})
}

// TestAtomicConcurrent sets disjoint bits of the same words while the bitmap grows; none is lost.
func TestAtomicConcurrent(t *testing.T) {
	const n, workers = 5000, 4
	a := NewAtomic(n)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				a.Set(i)
			}
		})
	}
	for size := n; size < 4*n; size += 700 {
		a.Grow(size)
	}
	wg.Wait()
	if !a.AllSet(0, n) || a.Snapshot().Count() != n {
		t.Fatalf("%d bits set, want %d", a.Snapshot().Count(), n)
	}
}

func TestPanicsOutOfRange(t *testing.T) {
	b := New(10)
	for name, f := range map[string]func(){
		"get": func() { b.Get(10) }, "set": func() { b.Set(-1) }, "range": func() { b.SetRange(3, 11) },
		"or": func() { b.Or(New(11)) }, "words": func() { b.Words(1, nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

// FuzzDecode feeds hostile bytes with a right checksum, so that the fuzzer gets behind it.
func FuzzDecode(f *testing.F) {
	b := New(300)
	b.SetRange(5, 60)
	enc := b.Encode()
	f.Add(enc[:len(enc)-encTail])
	f.Add([]byte("LSBM\x01\x02\x00\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := crc32.Checksum(body, castagnoli)
		data := append(slices.Clone(body), byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24))
		b, err := Decode(data, 1<<16)
		if err != nil {
			if !errors.Is(err, lockstep.ErrCorrupt) {
				t.Fatalf("error of another class: %v", err)
			}
			return
		}
		c, err := Decode(b.Encode(), b.Len())
		if err != nil || !c.Equal(b) {
			t.Fatalf("a decoded bitmap does not survive: %v", err)
		}
	})
}

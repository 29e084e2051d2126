package nbd

import (
	"math/bits"
	"sync"

	"github.com/lockstep-dr/lockstep"
)

// Request data lives in pooled buffers, one pool for each power of two from 4 KiB to the largest
// request. A buffer wastes at most half of itself, and a request allocates nothing once the pools
// are warm.
const (
	minBufferShift = 12
	bufferClasses  = 14 // 4 KiB << 13 = 32 MiB
)

// The largest class must hold the largest request.
const _ = uint((1<<(minBufferShift+bufferClasses-1) - lockstep.MaxRequestBytes))

// buffer is a pooled slice; the pools hold pointers so that putting one back does not allocate.
type buffer struct {
	b     []byte // full capacity
	class int
}

var bufferPools [bufferClasses]sync.Pool

// bufferClass is the class of the smallest buffer that holds n bytes, 0 < n <= MaxRequestBytes.
func bufferClass(n int) int {
	return max(0, bits.Len(uint(n-1))-minBufferShift)
}

// bufferBytes is the memory that a request with n bytes of data takes.
func bufferBytes(n int) int64 {
	if n == 0 {
		return 0
	}
	return 1 << (minBufferShift + bufferClass(n))
}

// getBuffer returns a buffer of at least n bytes with unspecified content.
func getBuffer(n int) *buffer {
	class := bufferClass(n)
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 1<<(minBufferShift+class)), class: class}
}

func putBuffer(b *buffer) { bufferPools[b.class].Put(b) }

package block

import (
	"context"
	"fmt"
	"sync"

	"github.com/lockstep-dr/lockstep"
)

// memoryChunkBytes is the allocation unit of Memory: a chunk is either absent (a hole), the shared
// zeroChunk (allocated, never written), or its own array.
const memoryChunkBytes = int64(64) << 10

type memoryChunk [memoryChunkBytes]byte

// zeroChunk stands for every allocated chunk that holds only zeroes. It is compared by address and
// never written.
var zeroChunk = new(memoryChunk)

// Memory is a sparse Device in main memory, for tests and demonstrations. Its cache is its medium:
// every write that returned is as durable as the process, so Flush and FUA have nothing to do. It
// never returns an error other than ErrOutOfRange.
type Memory struct {
	// mu guards all fields. Writers hold it exclusively for the whole copy, which is what makes
	// overlapping writes whole.
	mu     sync.RWMutex
	size   int64
	chunks map[int64]*memoryChunk // by offset / memoryChunkBytes
}

var _ Device = (*Memory)(nil)

// NewMemory returns a device of size bytes that reads as zeroes and has nothing allocated.
// It panics if size is negative.
func NewMemory(size int64) *Memory {
	if size < 0 {
		panic(fmt.Sprintf("block: negative size %d", size))
	}
	return &Memory{size: size, chunks: make(map[int64]*memoryChunk)}
}

// Size is the size in bytes.
func (m *Memory) Size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.size
}

// Grow raises the size to size bytes; the new part reads as zeroes. A smaller size is ErrOutOfRange.
func (m *Memory) Grow(size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if size < m.size {
		return fmt.Errorf("shrink from %d to %d bytes: %w", m.size, size, lockstep.ErrOutOfRange)
	}
	m.size = size
	return nil
}

// span is the part of one chunk that a request covers: bytes [from, to) of chunk index.
type span struct{ index, from, to int64 }

// spans calls f for each chunk that [off, off+length) touches, in order.
func spans(off, length int64, f func(span)) {
	for end := off + length; off < end; {
		index, from := off/memoryChunkBytes, off%memoryChunkBytes
		to := min(memoryChunkBytes, from+end-off)
		f(span{index, from, to})
		off += to - from
	}
}

// ReadAt fills p from off.
func (m *Memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := CheckRange(off, int64(len(p)), m.size); err != nil {
		return err
	}
	spans(off, int64(len(p)), func(s span) {
		n := s.to - s.from
		if c := m.chunks[s.index]; c != nil {
			copy(p[:n], c[s.from:s.to])
		} else {
			clear(p[:n])
		}
		p = p[n:]
	})
	return nil
}

// WriteAt writes p at off.
func (m *Memory) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := CheckRange(off, int64(len(p)), m.size); err != nil {
		return err
	}
	spans(off, int64(len(p)), func(s span) {
		c := m.chunks[s.index]
		if c == nil || c == zeroChunk {
			c = new(memoryChunk)
			m.chunks[s.index] = c
		}
		p = p[copy(c[s.from:s.to], p):]
	})
	return nil
}

// Flush has nothing to do.
func (m *Memory) Flush(context.Context) error { return nil }

// Trim makes the range read as zeroes and frees the chunks that lie wholly within it.
func (m *Memory) Trim(_ context.Context, off, length int64, _ bool) error {
	return m.zero(off, length, nil)
}

// Zero makes the range read as zeroes. With NoHole the chunks of the range count as allocated.
func (m *Memory) Zero(_ context.Context, off, length int64, flags ZeroFlags) error {
	if flags.NoHole {
		return m.zero(off, length, zeroChunk)
	}
	return m.zero(off, length, nil)
}

// zero clears the range; a chunk that lies wholly within it becomes whole (nil: a hole).
func (m *Memory) zero(off, length int64, whole *memoryChunk) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := CheckRange(off, length, m.size); err != nil {
		return err
	}
	spans(off, length, func(s span) {
		c := m.chunks[s.index]
		switch {
		case s.to-s.from == memoryChunkBytes && whole == nil:
			delete(m.chunks, s.index)
		case s.to-s.from == memoryChunkBytes, c == nil && whole != nil:
			m.chunks[s.index] = whole
		case c != nil && c != zeroChunk:
			clear(c[s.from:s.to])
		}
	})
	return nil
}

// Extents describes the range with the granularity of 64 KiB chunks.
func (m *Memory) Extents(_ context.Context, off, length int64) ([]ExtentState, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := CheckRange(off, length, m.size); err != nil {
		return nil, err
	}
	var out []ExtentState
	spans(off, length, func(s span) {
		c := m.chunks[s.index]
		out = AppendExtent(out, ExtentState{Len: s.to - s.from, Hole: c == nil, Zero: c == nil || c == zeroChunk})
	})
	return out, nil
}

// AppendExtent appends e to list, merging it with the last element where that has the same state.
// An empty e changes nothing. It is how a Device builds the answer of Extents.
func AppendExtent(list []ExtentState, e ExtentState) []ExtentState {
	if e.Len == 0 {
		return list
	}
	if n := len(list); n > 0 && list[n-1].Hole == e.Hole && list[n-1].Zero == e.Zero {
		list[n-1].Len += e.Len
		return list
	}
	return append(list, e)
}

package nbd

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep/internal/nowait"
)

// copyBytes is the longest reply body that is copied behind its header; a longer one is written
// from where it lies.
const copyBytes = 1024

// output queues replies and writes all that are queued in one system call. There is no writer
// goroutine: a worker that finds nobody writing becomes the writer until the queue is empty. The
// queue is bounded by the slots, which a request keeps until its reply is written.
type output struct {
	nc     net.Conn
	nowait *nowait.Writer                  // the writer's own; nil: nc is no socket
	stall  time.Duration                   // without progress ends it
	done   func(n int, bytes, taken int64) // called when n replies are written or dropped
	failed func(error)                     // called once, by the writer

	mu      sync.Mutex // guards queue, writing
	queue   []*request
	writing bool

	// Owned by the writer.
	spare  []*request  // the queue's other half
	small  []byte      // headers and short bodies of the batch, back to back
	pieces net.Buffers // what is written: slices of small, and long bodies
	send   net.Buffers // the same, consumed by WriteTo
	broken bool
	armed  time.Time // when the deadline was set
}

// add queues a finished request and writes unless somebody else is. gather says that further
// replies are expected right away, which makes it worth letting other workers run first.
func (o *output) add(q *request, gather bool) {
	o.mu.Lock()
	o.queue = append(o.queue, q)
	if o.writing {
		o.mu.Unlock()
		return
	}
	o.writing = true
	o.mu.Unlock()
	if gather {
		runtime.Gosched()
	}
	o.writeQueue()
}

// writeQueue writes until the queue is empty.
func (o *output) writeQueue() {
	for {
		batch := o.take()
		if batch == nil {
			return
		}
		o.write(batch)
	}
}

// take takes the queue out, or ends the writing if it is empty.
func (o *output) take() []*request {
	o.mu.Lock()
	defer o.mu.Unlock()
	batch := o.queue
	if len(batch) == 0 {
		o.writing = false
		return nil
	}
	o.queue, o.spare = o.spare[:0], batch
	return batch
}

// queueUp is add for who calls Flush later.
func (o *output) queueUp(q *request) {
	o.mu.Lock()
	o.queue = append(o.queue, q)
	o.mu.Unlock()
}

// Flush implements block.Flusher: what the socket does not take at once is written by somebody else.
func (o *output) Flush() {
	o.mu.Lock()
	if o.writing || len(o.queue) == 0 {
		o.mu.Unlock()
		return
	}
	o.writing = true
	o.mu.Unlock()
	for {
		batch := o.take()
		if batch == nil {
			return
		}
		if o.nowait == nil || o.broken {
			go o.writeOn(batch, nil)
			return
		}
		pieces := o.gather(batch)
		n, err := o.nowait.Write(pieces...)
		for len(pieces) > 0 && n >= len(pieces[0]) {
			n -= len(pieces[0])
			pieces = pieces[1:]
		}
		if err != nil || len(pieces) > 0 { // an error shows again
			pieces[0] = pieces[0][n:]
			go o.writeOn(batch, pieces)
			return
		}
		clear(o.pieces)
		o.free(batch)
	}
}

// writeOn goes on where Flush has stopped: pieces are what is left of the batch, nil is all of it.
func (o *output) writeOn(batch []*request, pieces net.Buffers) {
	if pieces == nil {
		o.write(batch)
	} else {
		if err := o.writePieces(pieces); err != nil {
			o.broken = true
			o.failed(err)
		}
		clear(o.pieces)
		o.free(batch)
	}
	o.writeQueue()
}

// write sends a batch and frees its requests.
func (o *output) write(batch []*request) {
	if !o.broken {
		if err := o.writeAll(batch); err != nil {
			o.broken = true
			o.failed(err)
		}
	}
	o.free(batch)
}

// free gives a batch's requests and their slots back.
func (o *output) free(batch []*request) {
	var bytes, taken int64
	for i, q := range batch {
		bytes += q.cost
		taken += q.taken
		q.free()
		batch[i] = nil
	}
	o.done(len(batch), bytes, taken)
}

// gather lays a batch out as pieces to write.
func (o *output) gather(batch []*request) net.Buffers {
	small, pieces, start := o.small[:0], o.pieces[:0], 0
	for _, q := range batch {
		small = append(small, q.head[:q.headLen]...)
		if len(q.body) <= copyBytes {
			small = append(small, q.body...)
			continue
		}
		pieces = append(pieces, small[start:], q.body)
		start = len(small)
	}
	if start < len(small) {
		pieces = append(pieces, small[start:])
	}
	o.small, o.pieces = small, pieces
	return pieces
}

func (o *output) writeAll(batch []*request) error {
	err := o.writePieces(o.gather(batch))
	clear(o.pieces) // bodies go back to their pools
	return err
}

// writePieces writes until all is written or the client has taken nothing for the time stall.
//
// A deadline covers a whole write, but what counts is progress: a write that ran into its deadline
// goes on if it had made some. The deadline is moved only when less than stall is left of it, so
// most writes cost no more than a look at the clock.
func (o *output) writePieces(pieces net.Buffers) error {
	for {
		if stale(o.armed, o.stall) {
			o.armed = time.Now()
			if err := o.nc.SetWriteDeadline(o.armed.Add(o.stall + o.stall/4)); err != nil {
				return err
			}
		}
		var n int64
		var err error
		if len(pieces) == 1 { // the short way
			var m int
			m, err = o.nc.Write(pieces[0])
			pieces[0] = pieces[0][m:]
			n = int64(m)
		} else {
			o.send = pieces
			n, err = o.send.WriteTo(o.nc)
			pieces = o.send // what is left
		}
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// stale reports whether less than stall is left of a deadline that was set to 5/4 of stall. Since is
// cheaper than Now.
func stale(armed time.Time, stall time.Duration) bool {
	return armed.IsZero() || time.Since(armed) > stall/4
}

// requestMagicOK checks the first field of a request header.
func requestMagicOK(h []byte) bool { return binary.BigEndian.Uint32(h) == MagicRequest }

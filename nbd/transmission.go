package nbd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/internal/nowait"
)

const (
	// maxIdleWorkers is how many workers wait for the reader's role when there is little to do;
	// further ones end.
	maxIdleWorkers = 32
	// hangupInterval is how often a reader that is kept from reading looks whether its client is
	// gone, and hangupPatience how many such looks without progress it takes to give up: a client
	// may close its side and still be owed its last requests.
	hangupInterval = 250 * time.Millisecond
	hangupPatience = 4
)

// errStalled is a client that keeps memory and makes no progress.
var errStalled = errors.New("no progress")

// errDisconnect is the client's NBD_CMD_DISC.
var errDisconnect = errors.New("client disconnected in good order")

// transmission is the second phase of a connection.
type transmission struct {
	*conn
	sel     *selection
	metrics ExportMetrics // nil without metrics
	out     output

	refusing    atomic.Bool // new requests get ESHUTDOWN
	stopRead    atomic.Bool // the reader is to end: no read deadline but one in the past may be set
	executing   atomic.Int32
	caching     chan struct{} // capacity 1: full while a CACHE is under way
	deviceError sync.Once     // logs the first error of the device
	workers     sync.WaitGroup
	begun       sync.WaitGroup // writes of batches that have not ended
	batch       block.Batch    // the reader's own; nil: the device has none
	batched     bool           // the reader's own: something is to be carried out, or answered

	// The reader's role. roleMu guards the fields below it; the reader itself, that is c.r, belongs
	// to the worker that has the role.
	roleMu  sync.Mutex
	reading bool          // somebody has the role
	idle    []*worker     // waiting for it, last come first served: its stack is warm
	running int           // workers that exist
	ended   bool          // nothing further is read
	endErr  error         // why
	readEnd chan struct{} // closed with ended

	readArmed time.Time // when the read deadline was set, zero if there is none; the reader's own

	// Slots: what is in flight. slotMu guards the fields below it.
	slotMu   sync.Mutex
	requests int
	bytes    int64
	own      int64         // those of bytes that are of the connection's own, at most ownBytes
	claim    claim         // on the server's budget, of the request that the reader has read
	claiming bool          // claim is queued or granted
	waiting  bool          // the reader waits for room
	room     chan struct{} // capacity 1: tells the waiting reader; one token is enough for one waiter
	drained  chan struct{} // not nil while drain waits; closed when requests is zero
}

// worker is a goroutine that reads requests and executes them.
type worker struct {
	wake chan bool // capacity 1: true gives it the role, false ends it
}

func newTransmission(c *conn, sel *selection) *transmission {
	t := &transmission{
		conn: c, sel: sel,
		readEnd: make(chan struct{}),
		room:    make(chan struct{}, 1),
		caching: make(chan struct{}, 1),
	}
	t.claim = claim{share: sel.share, ready: t.room}
	t.out = output{nc: c.nc, stall: c.limits.StallTimeout, done: t.release, failed: t.writeFailed}
	t.out.nowait = nowait.New(c.nc)
	if d, ok := sel.export.Device.(block.Batcher); ok {
		t.batch = d.NewBatch()
	}
	if c.srv.Metrics != nil {
		t.metrics = c.srv.Metrics.Export(sel.name)
	}
	return t
}

// run serves requests until the client disconnects or is lost, the export is closed, or the server
// shuts down. When it returns no call of the device is running. A nil error is an orderly end.
func (t *transmission) run() error {
	if t.metrics != nil {
		t.metrics.Connected(1)
		defer t.metrics.Connected(-1)
	}
	t.passRole()

	select {
	case <-t.readEnd:
	case <-t.sel.export.Closed:
		t.log.Info("export closed, draining the connection")
		t.refuse()
	case <-t.stopping:
		t.refuse()
	}
	<-t.readEnd

	workersDone := make(chan struct{})
	go func() {
		t.workers.Wait()
		t.begun.Wait() // nobody begins one any more
		close(workersDone)
	}()
	t.roleMu.Lock()
	err := t.endErr
	t.roleMu.Unlock()
	if orderly(err) {
		err = nil
		select {
		case <-workersDone:
		case <-time.After(t.limits.DrainTimeout):
			t.log.Warn("requests still in flight at the end of the connection are given up", "waited", t.limits.DrainTimeout)
		case <-t.ctx.Done():
		}
	}
	select {
	case <-workersDone:
		return err // leaves the connection open for linger
	default:
	}
	// Nobody is there to hear of the outcome: held calls need not wait any longer.
	t.drop()
	<-workersDone
	return err
}

// orderly reports whether requests in flight are to be finished and answered.
func orderly(err error) bool {
	return errors.Is(err, errDisconnect) || errors.Is(err, os.ErrDeadlineExceeded)
}

// refuse answers new requests with ESHUTDOWN until those in flight have ended, then stops reading.
func (t *transmission) refuse() {
	t.refusing.Store(true)
	select {
	case <-t.drain():
	case <-t.readEnd:
		return
	case <-time.After(t.limits.DrainTimeout):
	}
	// The reader reports the deadline as its end.
	t.stopRead.Store(true)
	if err := t.nc.SetReadDeadline(longAgo); err != nil {
		t.drop()
	}
	select {
	case <-t.readEnd:
	case <-time.After(t.limits.DrainTimeout):
		t.drop() // the reader waits for room that does not come
	}
}

// work is the life of a worker; it starts with the role.
func (t *transmission) work(w *worker) {
	defer t.workers.Done()
	for {
		q, err := t.next()
		if err != nil {
			t.endBatch()
			t.endReading(err)
			return
		}
		if t.inline(q) {
			continue
		}
		t.endBatch()
		t.executing.Add(1)
		t.passRole()
		t.execute(q)
		// Others that are executing will have replies soon.
		t.out.add(q, t.executing.Add(-1) > 0)
		if !t.takeRole(w) {
			return
		}
	}
}

// passRole gives the reader's role to an idle worker, or to a new one.
func (t *transmission) passRole() {
	t.roleMu.Lock()
	t.reading = false
	if t.ended {
		t.roleMu.Unlock()
		return
	}
	if n := len(t.idle); n > 0 {
		w := t.idle[n-1]
		t.idle = t.idle[:n-1]
		t.reading = true
		t.roleMu.Unlock()
		w.wake <- true
		return
	}
	// One more than there are slots, so that one can always read.
	if t.running <= t.limits.Requests {
		t.running++
		t.reading = true
		t.roleMu.Unlock()
		w := &worker{wake: make(chan bool, 1)}
		t.workers.Add(1)
		go t.work(w)
		return
	}
	t.roleMu.Unlock()
}

// takeRole waits for the reader's role; false ends the worker.
func (t *transmission) takeRole(w *worker) bool {
	t.roleMu.Lock()
	switch {
	case t.ended, t.reading && len(t.idle) >= maxIdleWorkers:
		t.running--
		t.roleMu.Unlock()
		return false
	case !t.reading:
		t.reading = true
		t.roleMu.Unlock()
		return true
	}
	t.idle = append(t.idle, w)
	t.roleMu.Unlock()
	return <-w.wake
}

// endReading is called by the reader: nobody reads after it.
func (t *transmission) endReading(err error) {
	t.roleMu.Lock()
	t.ended, t.endErr = true, err
	for _, w := range t.idle {
		w.wake <- false
	}
	t.idle = nil
	t.roleMu.Unlock()
	close(t.readEnd)
}

// next reads one request with its data, waiting for room first.
func (t *transmission) next() (*request, error) {
	if t.r.Buffered() < RequestBytes {
		t.endBatch()
	}
	h, err := t.r.Peek(RequestBytes)
	for errors.Is(err, os.ErrDeadlineExceeded) && !t.stopRead.Load() {
		// What is left of the deadline for data: for the next request the client may take its time.
		t.readArmed = time.Time{}
		if err = t.setReadDeadline(time.Time{}); err == nil {
			h, err = t.r.Peek(RequestBytes)
		}
	}
	if err != nil {
		if len(h) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read request: %w", err)
	}
	if !requestMagicOK(h) {
		return nil, fmt.Errorf("request magic %x", h[:4])
	}
	q, _ := requestPool.Get().(*request)
	q.parse(h)
	_, _ = t.r.Discard(RequestBytes) // they were peeked at
	if q.cmd == CmdDisc {
		q.free()
		return nil, errDisconnect
	}
	t.check(q)
	q.cost = q.memoryCost()
	if err := t.acquire(q); err != nil {
		q.free()
		return nil, err
	}
	if q.cmd == CmdWrite {
		if err := t.readPayload(q); err != nil {
			t.release(1, q.cost, q.taken)
			q.free()
			return nil, err
		}
	}
	if t.metrics != nil {
		q.began = time.Now()
		t.metrics.Begin(q.metricCmd())
	}
	return q, nil
}

// readPayload reads the data of a WRITE, or skips it where the request is refused.
func (t *transmission) readPayload(q *request) error {
	n := int64(q.length)
	switch {
	case n == 0:
		return nil
	case q.errno == 0:
		q.buf = getBuffer(int(n))
		q.data = q.buf.b[:n]
		if err := t.readProgress(int(n), func(done int) (int, error) { return io.ReadFull(t.r, q.data[done:]) }); err != nil {
			return fmt.Errorf("read data of a write: %w", err)
		}
		return nil
	case n > 2*int64(t.limits.RequestBytes):
		return fmt.Errorf("write of %d bytes, the announced maximum is %d", n, t.limits.RequestBytes)
	}
	if err := t.readProgress(int(n), func(done int) (int, error) { return t.r.Discard(int(n) - done) }); err != nil {
		return fmt.Errorf("skip data of a write: %w", err)
	}
	return nil
}

// readProgress reads n bytes by read, which is told how many there were already, until there are n
// or none has come for the time limits.StallTimeout. Data that came with its request needs no
// deadline, which is the rule for small requests. As for replies, the deadline is moved only when too
// little is left of it, since that may wake a thread which waits for it; next removes it when it
// passes between two requests. And if there was some progress meanwhile it is set anew.
func (t *transmission) readProgress(n int, read func(done int) (int, error)) error {
	if t.r.Buffered() >= n {
		_, err := read(0)
		return err
	}
	t.endBatch()
	for done := 0; ; {
		if stall := t.limits.StallTimeout; stale(t.readArmed, stall) {
			t.readArmed = time.Now()
			if err := t.setReadDeadline(t.readArmed.Add(stall + stall/4)); err != nil {
				return err
			}
		}
		m, err := read(done)
		done += m
		switch {
		case err == nil:
			return nil
		case t.stopRead.Load() || !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case m == 0:
			return fmt.Errorf("%w: %d of %d bytes in time", errStalled, done, n)
		}
	}
}

// setReadDeadline sets a deadline unless refuse has set the one that ends the reader, or does so at
// this moment.
func (t *transmission) setReadDeadline(at time.Time) error {
	if err := t.nc.SetReadDeadline(at); err != nil {
		return err
	}
	if t.stopRead.Load() {
		return t.nc.SetReadDeadline(longAgo)
	}
	return nil
}

// longAgo is the deadline that ends reads at once.
var longAgo = time.Unix(1, 0)

// acquire waits until a request has room for all that it costs. Only the reader calls it.
func (t *transmission) acquire(q *request) error {
	t.slotMu.Lock()
	for !t.admit(q) {
		t.waiting = true
		t.slotMu.Unlock()
		t.endBatch() // what it has begun may hold the room
		err := t.awaitRoom()
		t.slotMu.Lock()
		if err != nil {
			t.withdraw()
			t.slotMu.Unlock()
			return err
		}
	}
	t.waiting = false
	t.slotMu.Unlock()
	return nil
}

// admit takes a slot, and q.cost from the connection's own bytes or else from the server's budget.
// When there is no room, a token in the channel room says when to try again: a slot or own bytes
// came back, or the budget granted the claim. It is called with slotMu held.
func (t *transmission) admit(q *request) bool {
	if t.requests > 0 && (t.requests >= t.limits.Requests || t.bytes+q.cost > t.limits.Bytes) {
		return false
	}
	switch {
	case t.own+q.cost <= ownBytes:
		t.withdraw()
		t.own += q.cost
	case t.srv.budget.take(&t.claim, q.cost):
		t.claiming = false
		q.taken = q.cost
	default:
		t.claiming = true
		return false
	}
	t.requests++
	t.bytes += q.cost
	return true
}

// withdraw gives up the claim, if there is one. It is called with slotMu held.
func (t *transmission) withdraw() {
	if t.claiming {
		t.srv.budget.cancel(&t.claim)
		t.claiming = false
	}
}

// awaitRoom waits for a token in room. While it waits nobody reads, so the loss of the client is
// looked for by other means.
func (t *transmission) awaitRoom() error {
	tick := time.NewTicker(hangupInterval)
	defer tick.Stop()
	for silent := 0; ; {
		select {
		case <-t.room:
			return nil
		case <-t.ctx.Done():
			return t.ctx.Err()
		case <-tick.C:
			if !hungUp(t.nc) {
				continue
			}
			if silent++; silent >= hangupPatience {
				return fmt.Errorf("client hung up with requests held: %w", io.EOF)
			}
		}
	}
}

// release frees the slots of n answered requests that held bytes in all, of which taken were of the
// server's budget.
func (t *transmission) release(n int, bytes, taken int64) {
	if taken > 0 {
		t.srv.budget.release(t.sel.share, taken)
	}
	t.slotMu.Lock()
	t.requests -= n
	t.bytes -= bytes
	t.own -= bytes - taken
	wake := t.waiting
	t.waiting = false
	t.noteDrained()
	t.slotMu.Unlock()
	if wake {
		select {
		case t.room <- struct{}{}:
		default: // a token is there already
		}
	}
}

// drain returns a channel that is closed when nothing is in flight.
func (t *transmission) drain() <-chan struct{} {
	t.slotMu.Lock()
	defer t.slotMu.Unlock()
	done := make(chan struct{})
	t.drained = done
	t.noteDrained()
	return done
}

// noteDrained tells a waiting drain when nothing is in flight. It is called with slotMu held.
func (t *transmission) noteDrained() {
	if t.requests == 0 && t.drained != nil {
		close(t.drained)
		t.drained = nil
	}
}

// writeFailed is called by the writer when the connection cannot be written to any more.
func (t *transmission) writeFailed(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.log.Warn("the client takes no replies", "waited", t.limits.StallTimeout)
	} else {
		t.log.Debug("write replies", "error", err)
	}
	t.roleMu.Lock()
	leaving := t.ended && errors.Is(t.endErr, errDisconnect)
	t.roleMu.Unlock()
	if leaving {
		return // a client that said goodbye and did not wait; its requests are finished all the same
	}
	t.drop()
}

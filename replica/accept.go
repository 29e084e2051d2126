package replica

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// inbox is the secondary's side of a group: the newest connection of each primary node, the fence,
// and when leases were granted.
type inbox struct {
	g *Group

	// gate is held for reading while a frame is applied, for writing by a fence: after the fence no
	// frame of an older epoch is applied.
	gate   sync.RWMutex
	fenced lockstep.Epoch // guarded by gate

	mu      sync.Mutex // guards what follows
	conns   map[lockstep.NodeID]*inConn
	newest  map[lockstep.NodeID]lockstep.Session
	waiting map[uint64]chan protocol.AnnounceOut
	nextAsk uint64
	granted time.Duration // the clock at the last lease granted, or the start of the process [F15]
	closed  bool
}

// inConn is one incoming session.
type inConn struct {
	from    lockstep.NodeID
	session lockstep.Session
	conn    net.Conn
	end     context.CancelFunc // ends what the handler waits for
	done    chan struct{}      // closed when its handler has drained
	epoch   lockstep.Epoch     // announced on it; owned by the handler, read under gate

	mu  sync.Mutex // guards out and writes to conn
	out []byte
	bg  sync.WaitGroup // flushes and compares
	sem chan struct{}  // bounds them: a peer decides neither our memory nor our goroutines

	slow atomic.Bool // the last fdatasync was
}

func (b *inbox) init(g *Group, saved lockstep.Epoch) {
	b.g, b.fenced = g, saved
	b.conns = map[lockstep.NodeID]*inConn{}
	b.newest = map[lockstep.NodeID]lockstep.Session{}
	b.waiting = map[uint64]chan protocol.AnnounceOut{}
	b.granted = g.host.now()
}

// fence refuses older epochs from now on and waits for what is being applied.
func (b *inbox) fence(e lockstep.Epoch) {
	b.gate.Lock()
	defer b.gate.Unlock()
	b.fenced = max(b.fenced, e)
}

// grant says whether a lease may be given for that epoch, and notes the time if so. It does not wait for a
// fence under way, which may wait for a slow disk: one heartbeat speaks for all groups. There is none then.
func (b *inbox) grant(e lockstep.Epoch) bool {
	if !b.gate.TryRLock() {
		return false
	}
	defer b.gate.RUnlock()
	if e != b.fenced {
		return false
	}
	b.mu.Lock()
	b.granted = b.g.host.now()
	b.mu.Unlock()
	return true
}

// leaseWait returns when every lease ever granted has run out; store: also those that the store gave
// before now.
func (b *inbox) leaseWait(ctx context.Context, store bool) error {
	b.mu.Lock()
	granted := b.granted
	b.mu.Unlock()
	if store {
		granted = b.g.host.now()
	}
	until := granted + b.g.host.cfg.LeaseTTL + b.g.host.cfg.LeaseMargin
	for {
		left := until - b.g.host.now()
		if left <= 0 {
			return nil
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *inbox) closeAll() {
	b.mu.Lock()
	b.closed = true
	var all []*inConn
	for _, c := range b.conns {
		all = append(all, c)
	}
	b.mu.Unlock()
	for _, c := range all {
		_ = c.conn.Close()
		<-c.done
	}
}

// adopt makes c the newest session of its node, after the older one is closed and drained [F8].
func (b *inbox) adopt(c *inConn) error {
	for {
		b.mu.Lock()
		switch old := b.conns[c.from]; {
		case b.closed:
			b.mu.Unlock()
			return errors.New("the node is shutting down")
		case c.session.Less(b.newest[c.from]) || c.session == b.newest[c.from]:
			b.mu.Unlock()
			return fmt.Errorf("session %s: %w", c.session, lockstep.ErrStaleSession)
		case old == nil:
			b.conns[c.from], b.newest[c.from] = c, c.session
			b.mu.Unlock()
			return nil
		default:
			b.mu.Unlock()
			_ = old.conn.Close()
			old.end() // the answer to an announcement may be long in coming, and is for nobody now
			<-old.done
		}
	}
}

func (b *inbox) drop(c *inConn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conns[c.from] == c {
		delete(b.conns, c.from)
	}
}

// serve handles one incoming session from its hello to its end.
func (b *inbox) serve(ctx context.Context, conn net.Conn, hello wire.Hello) error {
	h := b.g.host
	ctx, end := context.WithCancel(ctx)
	defer end()
	c := &inConn{from: hello.From, session: hello.Session, conn: conn, end: end, done: make(chan struct{}), sem: make(chan struct{}, maxBeside)}
	answer := wire.HelloReply{
		Node: h.cfg.Node, BootID: h.cfg.BootID, Instance: h.cfg.Instance, Features: wire.Features, Session: hello.Session,
	}
	err := b.adopt(c)
	defer close(c.done)
	if err == nil {
		defer b.drop(c)
	} else {
		answer.Error = err.Error()
	}
	b.g.mu.Lock()
	saved := b.g.view.Saved.Record
	known := b.g.view.Record
	b.g.mu.Unlock()
	if saved.Epoch > known.Epoch {
		known = saved
	}
	answer.Epoch = saved.Epoch
	if known.Epoch > hello.Epoch {
		if answer.Record, err = json.Marshal(known); err != nil {
			return fmt.Errorf("encode record: %w", err)
		}
	}
	if err := wire.WriteJSON(conn, wire.Header{Kind: wire.KindHelloReply, Group: b.g.key, Session: hello.Session}, answer); err != nil || answer.Error != "" {
		return errors.Join(err, errors.New(answer.Error))
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer c.bg.Wait()
	return b.frames(ctx, c)
}

// frames applies what comes in until the connection ends. Writes are applied in the reader: that
// keeps their order and costs no hand-over.
func (b *inbox) frames(ctx context.Context, c *inConn) error {
	br := bufio.NewReaderSize(c.conn, 64<<10)
	var scratch [wire.HeaderSize]byte
	var data []byte
	for {
		if br.Buffered() < wire.HeaderSize || c.queued() > maxAcks {
			if err := c.flush(); err != nil {
				return err
			}
		}
		h, err := wire.ReadHeader(br, &scratch)
		if err != nil {
			return err
		}
		if h.Group != b.g.key || h.Session != c.session {
			return fmt.Errorf("%w: group %x session %s on a link of session %s", wire.ErrFrame, h.Group, h.Session, c.session)
		}
		if h.Kind == wire.KindWrite {
			if uint64(h.BodyLen) != h.Length {
				return fmt.Errorf("%w: write of %d bytes with a body of %d", wire.ErrFrame, h.Length, h.BodyLen)
			}
			if int(h.BodyLen) > cap(data) {
				data = make([]byte, h.BodyLen)
			}
			data = data[:h.BodyLen]
			if err := wire.ReadBody(br, &h, data); err != nil {
				return err
			}
			b.write(c, h, data, br.Buffered() > 0)
			continue
		}
		body, err := wire.ReadSmallBody(br, &h)
		if err != nil {
			return err
		}
		// A closure over h itself would move the header of every write to the heap.
		call := h
		switch h.Kind {
		case wire.KindAnnounce:
			err = b.announced(ctx, c, h, body)
		case wire.KindZero:
			b.write(c, h, nil, br.Buffered() > 0)
		case wire.KindFlush:
			b.flush(c, h, br.Buffered() > 0)
		case wire.KindPreserve:
			c.beside(func() { b.preserve(c, call, body) })
		case wire.KindCompare:
			c.beside(func() { b.compare(c, call, body) })
		case wire.KindRead:
			c.beside(func() { b.readBack(c, call) })
		default:
			err = fmt.Errorf("%w: kind %d from a primary", wire.ErrFrame, h.Kind)
		}
		if err != nil {
			return err
		}
	}
}

// ack queues an answer; it leaves with the next flush of the connection.
func (c *inConn) ack(g *Group, kind wire.Kind, h wire.Header, err error, body []byte) {
	a := wire.Header{
		Kind: kind, Group: h.Group, Epoch: h.Epoch, Session: h.Session, Volume: h.Volume, Seq: h.Seq,
		Offset: g.host.bootKey, Status: wire.StatusOf(err), BodyLen: uint32(len(body)), BodyCRC: wire.Checksum(body),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.out)
	c.out = append(c.out, make([]byte, wire.HeaderSize)...)
	a.Put(c.out[n:])
	c.out = append(c.out, body...)
}

const (
	maxBeside = 64       // flushes, compares and reads under way for one connection
	maxAcks   = 64 << 10 // bytes of answers that may wait for a quiet moment
)

// beside runs f beside the reader, which waits while too many are under way.
func (c *inConn) beside(f func()) {
	c.sem <- struct{}{}
	c.bg.Go(func() {
		defer func() { <-c.sem }()
		f()
	})
}

func (c *inConn) queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out)
}

func (c *inConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.conn.Write(c.out)
	c.out = c.out[:0]
	return err
}

// answer is ack and flush, for what runs beside the reader.
func (c *inConn) answer(g *Group, kind wire.Kind, h wire.Header, err error, body []byte) {
	c.ack(g, kind, h, err, body)
	if err := c.flush(); err != nil {
		_ = c.conn.Close() // the reader ends and reports it
	}
}

// enter checks a frame against epochs and finds its volume; with gate held for reading. Reads and
// compares of a take-back or repair come before any announcement.
func (b *inbox) enter(c *inConn, h wire.Header, announced bool) (*Volume, error) {
	switch {
	case h.Epoch < b.fenced:
		return nil, lockstep.ErrStaleEpoch
	case announced && h.Epoch != c.epoch:
		return nil, lockstep.ErrUnannouncedEpoch
	}
	v := b.g.volumeByKey(h.Volume)
	if v == nil {
		return nil, lockstep.ErrNotFound
	}
	if h.Offset > 1<<62 || h.Length > 1<<62 {
		return nil, lockstep.ErrOutOfRange
	}
	if err := block.CheckRange(int64(h.Offset), int64(h.Length), v.Size()); err != nil {
		return nil, err
	}
	return v, v.failedNow()
}

// write applies a client's write or a chunk. What it overwrites is preserved first, if this node
// has a recovery point.
func (b *inbox) write(c *inConn, h wire.Header, data []byte, more bool) {
	b.gate.RLock()
	v, err := b.enter(c, h, true)
	if err == nil {
		ext := lockstep.Extent{Off: int64(h.Offset), Len: int64(h.Length)}
		if _, ok := v.disk.Point(); ok {
			err = v.disk.Preserve([]lockstep.Extent{ext})
		}
		switch {
		case err != nil:
		case h.Kind == wire.KindZero:
			err = v.disk.Zero(ext.Off, ext.Len, h.Flags&wire.FlagNoHole != 0)
		default:
			err = v.disk.WriteAt(data, ext.Off)
		}
	}
	b.gate.RUnlock()
	b.note(v, err)
	if err == nil && h.Flags&wire.FlagFUA != 0 {
		b.flush(c, h, more)
		return
	}
	c.ack(b.g, wire.KindAck, h, err, nil)
}

func (b *inbox) note(v *Volume, err error) {
	if v != nil && err != nil && errors.Is(err, lockstep.ErrVolumeFailed) {
		_ = v.broken(err)
	}
}

// slowSync is how long an fdatasync may take to be done in the reader the next time.
const slowSync = 10 * time.Millisecond

// flush is fdatasync: here in the reader if nothing else waits and the disk is quick, else beside
// it, so that writes that follow are not held up. At the end of a take-back it comes before any
// announcement.
func (b *inbox) flush(c *inConn, h wire.Header, more bool) {
	do := func() error {
		b.gate.RLock()
		defer b.gate.RUnlock()
		v, err := b.enter(c, h, false)
		if err == nil {
			err = v.disk.Sync()
			b.note(v, err)
		}
		return err
	}
	if !more && !c.slow.Load() {
		began := time.Now()
		c.ack(b.g, wire.KindAck, h, do(), nil)
		c.slow.Store(time.Since(began) > slowSync)
		return
	}
	c.beside(func() {
		began := time.Now()
		c.answer(b.g, wire.KindAck, h, do(), nil)
		c.slow.Store(time.Since(began) > slowSync)
	})
}

func (b *inbox) preserve(c *inConn, h wire.Header, body []byte) {
	b.gate.RLock()
	v, err := b.enter(c, h, true)
	if err == nil {
		var exts []lockstep.Extent
		if exts, err = wire.ParseExtents(body); err == nil {
			for _, e := range exts {
				if err = block.CheckRange(e.Off, e.Len, v.Size()); err != nil {
					break
				}
			}
		}
		if _, ok := v.disk.Point(); ok && err == nil {
			err = v.disk.Preserve(exts)
		}
	}
	b.gate.RUnlock()
	b.note(v, err)
	c.answer(b.g, wire.KindAck, h, err, nil)
}

// compare answers which chunks of a range differ from the primary's checksums.
func (b *inbox) compare(c *inConn, h wire.Header, sums []byte) {
	b.gate.RLock()
	v, err := b.enter(c, h, true)
	var differ []byte
	if err == nil {
		differ, err = v.compare(int64(h.Offset), int64(h.Length), sums)
	}
	b.gate.RUnlock()
	b.note(v, err)
	c.answer(b.g, wire.KindCompareReply, h, err, differ)
}

// compare gives a byte for each chunk of the range: 1 where the content's SHA-256 is another.
func (v *Volume) compare(off, length int64, sums []byte) ([]byte, error) {
	n := int((length + lockstep.ChunkBytes - 1) / lockstep.ChunkBytes)
	if len(sums) != n*sha256.Size || length > compareBytes {
		return nil, fmt.Errorf("%w: %d bytes of sums for a range of %d", wire.ErrFrame, len(sums), length)
	}
	var buf []byte // nil: a hole
	if !v.isHole(off, length) {
		mem := getRange()
		defer putRange(mem)
		buf = mem[:length]
		if err := v.disk.ReadAt(buf, off); err != nil {
			return nil, err
		}
	}
	differ := make([]byte, n)
	for i := range n {
		if sumOf(buf, i, length) != [sha256.Size]byte(sums[i*sha256.Size:]) {
			differ[i] = 1
		}
	}
	return differ, nil
}

// readBack gives data to a primary that takes its regions back [F2]; an empty answer stands for
// zeroes: most of a thin volume that is taken back in full is a hole.
func (b *inbox) readBack(c *inConn, h wire.Header) {
	b.gate.RLock()
	v, err := b.enter(c, h, false)
	var data []byte
	if err == nil && h.Length > compareBytes {
		err = lockstep.ErrOutOfRange
	}
	if err == nil && !v.isHole(int64(h.Offset), int64(h.Length)) {
		data = make([]byte, h.Length)
		err = v.disk.ReadAt(data, int64(h.Offset))
	}
	b.gate.RUnlock()
	if err != nil {
		data = nil
	}
	c.answer(b.g, wire.KindReadReply, h, err, data)
}

// announced hands an announcement to the core and answers when the epoch is persisted.
func (b *inbox) announced(ctx context.Context, c *inConn, h wire.Header, body []byte) error {
	var a wire.Announce
	var r protocol.Record
	if err := wire.DecodeJSON(body, &a); err != nil {
		return err
	}
	if err := wire.DecodeJSON(a.Record, &r); err != nil {
		return err
	}
	if r.Group != b.g.id || r.Epoch != h.Epoch {
		return fmt.Errorf("%w: announcement of group %s epoch %d", wire.ErrFrame, r.Group, r.Epoch)
	}
	ch := make(chan protocol.AnnounceOut, 1)
	b.mu.Lock()
	b.nextAsk++
	ask := b.nextAsk
	b.waiting[ask] = ch
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.waiting, ask)
		b.mu.Unlock()
	}()
	if r.State == protocol.StateCopying {
		b.g.pointNeeds.Store(a.DirtyBytes)
	}
	b.g.post(protocol.AnnounceIn{Record: r, Conn: ask})
	var out protocol.AnnounceOut
	select {
	case out = <-ch:
	case <-ctx.Done():
		return ctx.Err()
	case <-b.g.ctx.Done():
		return b.g.ctx.Err()
	}
	answer := wire.AnnounceReply{OK: out.OK, Error: out.Error, BootID: b.g.host.cfg.BootID}
	if out.Newer != nil {
		raw, err := json.Marshal(out.Newer)
		if err != nil {
			return fmt.Errorf("encode record: %w", err)
		}
		answer.Record = raw
	}
	if out.OK {
		b.gate.Lock()
		c.epoch = r.Epoch
		b.gate.Unlock()
		if r.State == protocol.StateCopying {
			b.differences(&answer)
		}
	}
	raw, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	c.answer(b.g, wire.KindAnnounceReply, h, nil, raw)
	return nil
}

// differences lists what this side knows to differ: its own marks, left from when it was primary.
func (b *inbox) differences(a *wire.AnnounceReply) {
	a.Differs = map[lockstep.PairID][]lockstep.Extent{}
	vols := b.g.volumes()
	for _, v := range vols {
		exts := v.disk.Doubtful()
		for from, to := range v.disk.Dirty().Ranges() {
			exts = append(exts, lockstep.Extent{Off: int64(from) * lockstep.ChunkBytes, Len: int64(to-from) * lockstep.ChunkBytes})
		}
		if len(exts) > 0 {
			a.Differs[v.pair] = coarsen(exts, maxDiffers/len(vols))
		}
		if v.isHole(0, v.Size()) {
			a.Empty = append(a.Empty, v.pair)
		}
	}
}

// maxDiffers is how many ranges an answer to an announcement names: as JSON they stay far below
// what a frame may carry.
const maxDiffers = 64 << 10

// coarsen gives at most limit ranges, and at least one, that cover exts, by closing the smallest
// gaps first: what is compared without need costs time, an answer that does not fit costs the sync.
func coarsen(exts []lockstep.Extent, limit int) []lockstep.Extent {
	slices.SortFunc(exts, func(a, b lockstep.Extent) int { return cmp.Compare(a.Off, b.Off) })
	for gap := int64(0); ; gap = max(2*gap, lockstep.ChunkBytes) {
		out := exts[:0:0]
		for _, e := range exts {
			if n := len(out); n > 0 && e.Off-out[n-1].End() <= gap {
				out[n-1].Len = max(out[n-1].End(), e.End()) - out[n-1].Off
			} else {
				out = append(out, e)
			}
		}
		if exts = out; len(exts) <= max(limit, 1) {
			return exts
		}
	}
}

func (b *inbox) answerAnnounce(a protocol.AnnounceOut) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ch := b.waiting[a.Conn]; ch != nil {
		ch <- a
	}
}

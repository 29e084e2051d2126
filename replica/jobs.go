package replica

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

const (
	// compareBytes is how much one compare, and one claim on a range, covers.
	compareBytes = 1 << 20
	// windowBytes is what a secondary preserves at once of what a resync will overwrite, with one sync; while
	// clients write it is politeWindow.
	windowBytes, politeWindow = 32 << 20, 4 << 20
	// resyncDepth is how many ranges of one volume are under way at once.
	resyncDepth = 8
)

// runJob does one job with one secondary and reports its end. It ends with its epoch at the latest:
// what it claims of a volume must not stay claimed.
func (g *Group) runJob(epochCtx context.Context, j protocol.PeerJob) {
	l, _ := g.linkTo(j.Peer, j.Session)
	ctx, cancel := context.WithCancel(epochCtx)
	defer cancel()
	go func() { // a job ends with its link
		select {
		case <-l.down:
			cancel()
		case <-ctx.Done():
		}
	}()
	done := protocol.JobDone{Token: j.Token, Peer: j.Peer, Session: j.Session, BootID: l.boot, Instance: l.instance}
	eg, ectx := errgroup.WithContext(ctx)
	if done.Err = g.complete(); done.Err == nil {
		for _, v := range g.volumesAt(j.Peer) {
			eg.Go(func() error { return v.noteFailure(g.jobOn(ectx, v, l, j)) })
		}
		done.Err = eg.Wait()
	}
	if done.Err != nil {
		g.log.Warn("job", "job", j.Job, "node", j.Peer, "epoch", j.Epoch, "err", done.Err)
	}
	g.post(done)
}

func (g *Group) jobOn(ctx context.Context, v *Volume, l *link, j protocol.PeerJob) error {
	if (j.Job == protocol.JobTakeBack || j.Job == protocol.JobTakeBackAll) && g.neverInSync(v) {
		return nil // the other side has no image of it
	}
	switch j.Job {
	case protocol.JobFlush:
		_, err := l.ask(ctx, wire.Header{Kind: wire.KindFlush, Epoch: j.Epoch, Volume: v.key}, nil)
		return err
	case protocol.JobResync:
		return g.resync(ctx, v, l, j.Epoch)
	case protocol.JobRepair:
		return v.repair(ctx, l, j.Epoch)
	case protocol.JobTakeBack:
		return v.takeBack(ctx, l, j.Epoch, v.disk.Intent())
	case protocol.JobTakeBackAll:
		if err := v.takeBack(ctx, l, j.Epoch, []lockstep.Extent{{Off: 0, Len: v.Size()}}); err != nil {
			return err
		}
		// The log that named what the secondary has not flushed stayed in the other directory: from now
		// on a loss of power there would take what no map names.
		_, err := l.ask(ctx, wire.Header{Kind: wire.KindFlush, Epoch: j.Epoch, Volume: v.key}, nil)
		return err
	}
	return fmt.Errorf("unknown job %q", j.Job)
}

func (g *Group) neverInSync(v *Volume) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.view.Record.Members {
		if m.Pair == v.pair {
			return m.InSyncEpoch == 0
		}
	}
	return false
}

// split calls f for pieces of e of at most compareBytes, aligned to it, within size.
func split(e lockstep.Extent, size int64, f func(lockstep.Extent) error) error {
	end := min(e.End(), size)
	for off := e.Off; off < end; {
		next := min((off/compareBytes+1)*compareBytes, end)
		if err := f(lockstep.Extent{Off: off, Len: next - off}); err != nil {
			return err
		}
		off = next
	}
	return nil
}

// takeBack fetches ranges from the secondary, which is in its recorded life [F2]. The caller
// flushes before the new boot id is recorded.
func (v *Volume) takeBack(jobCtx context.Context, l *link, epoch lockstep.Epoch, exts []lockstep.Extent) error {
	eg, ctx := errgroup.WithContext(jobCtx)
	eg.SetLimit(resyncDepth)
	for _, region := range exts {
		err := split(region, v.Size(), func(e lockstep.Extent) error {
			eg.Go(func() error {
				r, err := l.ask(ctx, wire.Header{Kind: wire.KindRead, Epoch: epoch, Volume: v.key, Offset: uint64(e.Off), Length: uint64(e.Len)}, nil)
				if err != nil {
					return fmt.Errorf("take back [%d,+%d) of volume %s: %w", e.Off, e.Len, v.id, err)
				}
				if n := int64(len(r.body)); n != e.Len && n != 0 {
					return fmt.Errorf("%w: %d bytes taken back instead of %d", wire.ErrFrame, len(r.body), e.Len)
				}
				return v.restore(ctx, r.body, e)
			})
			return ctx.Err()
		})
		if err != nil {
			break
		}
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	return jobCtx.Err() // what was asked for may have come, and the rest was not asked for
}

// restore writes what was taken back; an empty p is zeroes. It counts as submitted I/O: a demotion waits for it, and after
// the end of the epoch none begins.
func (v *Volume) restore(ctx context.Context, p []byte, e lockstep.Extent) error {
	v.mu.Lock()
	if err := ctx.Err(); err != nil {
		v.mu.Unlock()
		return err
	}
	v.submitted++
	v.mu.Unlock()
	var err error
	if len(bytes.TrimLeft(p, "\x00")) == 0 {
		err = v.disk.Zero(e.Off, e.Len, false) // what is sparse there stays so here
	} else {
		err = v.disk.WriteAt(p, e.Off)
	}
	v.mu.Lock()
	v.submitted--
	v.settle()
	v.mu.Unlock()
	return err
}

// startTodo prepares the list of chunks to send. It is kept over a reconnect to the same life of
// the secondary; another boot id or epoch begins with everything that is dirty.
func (g *Group) startTodo(v *Volume, l *link, epoch lockstep.Epoch) error {
	g.mu.Lock()
	answer := g.differs[l.peer]
	g.mu.Unlock()
	v.mu.Lock()
	resume := v.todo != nil && v.todoEpoch == epoch && v.todoPeer == l.life()
	v.mu.Unlock()
	if resume {
		return nil
	}
	var exts []lockstep.Extent
	for _, e := range answer.Differs[v.pair] {
		if e.Off < 0 || e.Len <= 0 || e.Off >= v.Size() {
			continue
		}
		e.Len = min(e.Len, v.Size()-e.Off)
		exts = append(exts, e)
	}
	if err := v.disk.AddDirty(exts); err != nil {
		return err
	}
	want := g.recordedInstance(l.peer)
	if want != "" && want != l.instance {
		if err := v.disk.MarkAllDirty(); err != nil {
			return err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.epoch != epoch {
		return lockstep.ErrStaleEpoch
	}
	v.todo, v.todoEpoch, v.todoPeer = v.disk.Dirty(), epoch, l.life()
	// The file may be larger than announced, after an extension that was given up.
	if _, end := chunks(lockstep.Extent{Len: v.Size()}); end < v.todo.Len() {
		v.todo.ClearRange(end, v.todo.Len())
	}
	v.total = int64(v.todo.Count())
	return nil
}

func (g *Group) recordedInstance(node lockstep.NodeID) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.view.Record.Instances[node]
}

// resync sends dirty chunks until none is left. New writes to what was sent replicate meanwhile, and none overlaps
// a chunk in flight.
func (g *Group) resync(ctx context.Context, v *Volume, l *link, epoch lockstep.Epoch) error {
	if err := g.startTodo(v, l, epoch); err != nil {
		return err
	}
	empty := false
	g.mu.Lock()
	for _, id := range g.differs[l.peer].Empty {
		empty = empty || id == v.pair
	}
	g.mu.Unlock()
	how := &comparing{}
	for {
		v.mu.Lock()
		left := v.todo != nil && !v.todo.Empty() && v.epoch == epoch
		v.mu.Unlock()
		if !left {
			return ctx.Err()
		}
		if err := v.resyncPass(ctx, l, epoch, empty, how); err != nil {
			return err
		}
	}
}

// resyncPass goes through the volume once, in windows; while one is sent the secondary preserves the next.
func (v *Volume) resyncPass(ctx context.Context, l *link, epoch lockstep.Epoch, empty bool, how *comparing) error {
	w := v.nextWindow(ctx, l, epoch, 0, empty)
	for len(w.exts) > 0 {
		if err := <-w.preserved; err != nil {
			return fmt.Errorf("preserve at the secondary: %w", err)
		}
		next := v.nextWindow(ctx, l, epoch, w.end, empty)
		eg, ectx := errgroup.WithContext(ctx)
		eg.SetLimit(resyncDepth)
		for _, ext := range w.exts {
			err := split(ext, v.Size(), func(e lockstep.Extent) error {
				eg.Go(func() error { return v.resyncPaced(ectx, l, epoch, e, empty, how) })
				return ectx.Err()
			})
			if err != nil {
				break
			}
		}
		if err := eg.Wait(); err != nil {
			return err
		}
		w = next
	}
	return nil
}

// window is a stretch of a volume with what of it is still to be sent.
type window struct {
	exts      []lockstep.Extent
	end       int64
	preserved <-chan error
}

// nextWindow takes the next chunks to send from an offset on, and asks the secondary to preserve them.
func (v *Volume) nextWindow(ctx context.Context, l *link, epoch lockstep.Epoch, from int64, empty bool) window {
	most := int64(windowBytes)
	if l.group.host.pace.polite() {
		most = politeWindow
	}
	w := window{end: from}
	for left := most; left > 0 && w.end < v.Size(); {
		e := lockstep.Extent{Off: w.end, Len: min(left, v.Size()-w.end)}
		w.end = e.End()
		for _, x := range v.todoIn(e) {
			w.exts = append(w.exts, x)
			left -= x.Len
		}
	}
	preserved := make(chan error, 1)
	w.preserved = preserved
	if empty || len(w.exts) == 0 {
		preserved <- nil
		return w
	}
	go func() {
		_, err := l.ask(ctx, wire.Header{Kind: wire.KindPreserve, Epoch: epoch, Volume: v.key}, wire.PutExtents(w.exts))
		preserved <- err
	}()
	return w
}

// todoIn lists the ranges still to send within e.
func (v *Volume) todoIn(e lockstep.Extent) []lockstep.Extent {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.todo == nil {
		return nil
	}
	first, last := chunks(e)
	last = min(last, v.todo.Len())
	var exts []lockstep.Extent
	for i := v.todo.NextSet(first); i >= 0 && i < last; {
		end := v.todo.NextClear(i)
		if end < 0 || end > last {
			end = last
		}
		exts = append(exts, lockstep.Extent{
			Off: int64(i) * lockstep.ChunkBytes,
			Len: min(int64(end)*lockstep.ChunkBytes, v.Size()) - int64(i)*lockstep.ChunkBytes,
		})
		if end >= last {
			break
		}
		i = v.todo.NextSet(end)
	}
	return exts
}

// resyncPaced is resyncRange under the limits, and in small pieces, one at a time on this node, while clients write.
func (v *Volume) resyncPaced(ctx context.Context, l *link, epoch lockstep.Epoch, e lockstep.Extent, empty bool, how *comparing) error {
	p := &l.group.host.pace
	for e.Len > 0 {
		piece, polite := e, p.polite()
		if polite {
			piece.Len = min(e.Len, politeBytes)
		}
		if n := v.todoBytes(piece); n > 0 && !(empty && v.isHole(piece.Off, piece.Len)) {
			for _, limit := range []*limit{l.group.limit, p.limit} {
				if err := limit.wait(ctx, n); err != nil {
					return err
				}
			}
		}
		f := func() error { return v.resyncRange(ctx, l, epoch, piece, empty, how) }
		err := error(nil)
		if polite {
			err = p.take(ctx, f)
		} else {
			err = f()
		}
		if err != nil {
			return err
		}
		e = lockstep.Extent{Off: piece.End(), Len: e.End() - piece.End()}
	}
	return nil
}

// todoBytes is how much of a range of at most compareBytes is still to send.
func (v *Volume) todoBytes(e lockstep.Extent) int {
	n := int64(0)
	for _, x := range v.todoIn(e) {
		n += x.Len
	}
	return int(n)
}

// resyncRange claims a range against client writes, sends what of it is to be sent, and notes it.
func (v *Volume) resyncRange(ctx context.Context, l *link, epoch lockstep.Epoch, e lockstep.Extent, empty bool, how *comparing) error {
	claim := &op{kind: opChunk, ext: e}
	v.mu.Lock()
	for {
		other := v.overlapping(e)
		if other == nil {
			break
		}
		if err := v.wait(ctx, other.leaving()); err != nil {
			v.mu.Unlock()
			return err
		}
	}
	first, last := chunks(e)
	wanted, some := make([]bool, last-first), false
	for i := range wanted {
		wanted[i] = v.todo != nil && v.todo.Get(first+i)
		some = some || wanted[i]
	}
	if !some {
		v.mu.Unlock()
		return nil
	}
	v.ops = append(v.ops, claim)
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		v.leave(claim)
		v.mu.Unlock()
	}()
	err := v.sendDiffering(ctx, l, epoch, e, func(i int) bool { return wanted[i] }, empty, how)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.todo == nil || v.todoEpoch != epoch || v.todoPeer != l.life() {
		return lockstep.ErrStaleEpoch
	}
	done := int64(0)
	for i, ok := range wanted {
		if ok {
			v.todo.Clear(first + i)
			done += lockstep.ChunkBytes
		}
	}
	l.group.synced.add(l.group.host.now(), done)
	return nil
}

// sendDiffering sends the chunks of e that want names and that differ at the secondary, and waits
// until they are applied there. how may be nil.
func (v *Volume) sendDiffering(ctx context.Context, l *link, epoch lockstep.Epoch, e lockstep.Extent, want func(i int) bool, empty bool, how *comparing) error {
	first, last := chunks(e)
	if e.Off%lockstep.ChunkBytes != 0 {
		return errors.New("a range that does not begin at a chunk")
	}
	if empty && v.isHole(e.Off, e.Len) {
		return nil
	}
	mem := getRange()
	defer putRange(mem)
	buf, err := v.readRange(e, mem)
	if err != nil {
		return err
	}
	piece := func(i int) []byte {
		if buf == nil {
			return zeroes[:min(lockstep.ChunkBytes, e.Len-int64(i)*lockstep.ChunkBytes)]
		}
		return buf[int64(i)*lockstep.ChunkBytes : min(int64(i+1)*lockstep.ChunkBytes, e.Len)]
	}
	differ := make([]byte, last-first)
	switch {
	case empty:
		for i := range differ {
			if !allZero(piece(i)) {
				differ[i] = 1
			}
		}
	case !how.worth():
		for i := range differ {
			differ[i] = 1
		}
	default:
		if differ, err = v.differing(ctx, l, epoch, e, buf); err != nil {
			return err
		}
		how.saw(differ)
	}
	if err := ctx.Err(); err != nil { // an answer and the end of the epoch may come together
		return err
	}
	var waits []<-chan reply
	for i := 0; i < len(differ); {
		if differ[i] == 0 || !want(i) {
			i++
			continue
		}
		// Neighbours that are sent, too, go along, zeroes with zeroes.
		zero, n := allZero(piece(i)), 1
		for i+n < len(differ) && differ[i+n] != 0 && want(i+n) && allZero(piece(i+n)) == zero {
			n++
		}
		off := int64(i) * lockstep.ChunkBytes
		length := min(int64(n)*lockstep.ChunkBytes, e.Len-off)
		h := wire.Header{Kind: wire.KindZero, Flags: wire.FlagResync, Epoch: epoch, Volume: v.key, Offset: uint64(e.Off + off), Length: uint64(length)}
		var p []byte
		if !zero {
			h.Kind, p = wire.KindWrite, buf[off:off+length]
		}
		waits = append(waits, l.call(h, p))
		i += n
	}
	for _, ch := range waits {
		select {
		case r := <-ch:
			if r.err != nil {
				return fmt.Errorf("send a chunk of volume %s: %w", v.id, r.err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// rangePool holds memory for ranges of compareBytes.
var rangePool = sync.Pool{New: func() any { return new([compareBytes]byte) }}

func getRange() *[compareBytes]byte {
	mem, _ := rangePool.Get().(*[compareBytes]byte)
	return mem
}

func putRange(mem *[compareBytes]byte) { rangePool.Put(mem) }

// comparing decides whether the chunks of a range are compared before they are sent, which pays where
// some of them are the same: after streakRanges ranges without one, so many are sent as they are, and then
// one is tried again. A nil comparing always compares.
type comparing struct {
	mu           sync.Mutex
	streak, skip int
}

const (
	streakRanges = 8
	skipRanges   = 32
)

func (c *comparing) worth() bool {
	if c == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.skip == 0 {
		return true
	}
	c.skip--
	return false
}

// saw notes what a comparison gave: a byte for each chunk, 1 where it differs.
func (c *comparing) saw(differ []byte) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.IndexByte(differ, 0) >= 0 {
		c.streak = 0
		return
	}
	if c.streak++; c.streak >= streakRanges {
		c.skip = skipRanges
	}
}

// readRange reads a range into mem; nil stands for zeroes that no byte is allocated for.
func (v *Volume) readRange(e lockstep.Extent, mem *[compareBytes]byte) ([]byte, error) {
	if v.isHole(e.Off, e.Len) {
		return nil, nil
	}
	buf := mem[:e.Len]
	return buf, v.disk.ReadAt(buf, e.Off)
}

// differing asks the secondary which chunks of a range are not what buf, of readRange, says: a byte for
// each, 1 where it differs.
func (v *Volume) differing(ctx context.Context, l *link, epoch lockstep.Epoch, e lockstep.Extent, buf []byte) ([]byte, error) {
	n := int((e.Len + lockstep.ChunkBytes - 1) / lockstep.ChunkBytes)
	sums := make([]byte, 0, n*sha256.Size)
	for i := range n {
		sum := sumOf(buf, i, e.Len)
		sums = append(sums, sum[:]...)
	}
	r, err := l.ask(ctx, wire.Header{Kind: wire.KindCompare, Epoch: epoch, Volume: v.key, Offset: uint64(e.Off), Length: uint64(e.Len)}, sums)
	if err != nil {
		return nil, fmt.Errorf("compare [%d,+%d) of volume %s: %w", e.Off, e.Len, v.id, err)
	}
	if len(r.body) != n {
		return nil, fmt.Errorf("%w: %d results for %d chunks", wire.ErrFrame, len(r.body), n)
	}
	return r.body, nil
}

// isHole reports whether the range has no allocated byte; then it need not be read, nor its sums be
// computed: most of a thin volume that is compared in full is like that.
func (v *Volume) isHole(off, length int64) bool { return v.disk.IsHole(off, length) }

var zeroSum = sha256.Sum256(zeroes[:])

// sumOf is the checksum of chunk i of buf, or, if that is nil, of length zeroes. Zeroes are not summed
// again each time: a thin volume has many beside its data.
func sumOf(buf []byte, i int, length int64) [sha256.Size]byte {
	from, to := int64(i)*lockstep.ChunkBytes, min(int64(i+1)*lockstep.ChunkBytes, length)
	switch {
	case buf != nil && !allZero(buf[from:to]):
		return sha256.Sum256(buf[from:to])
	case to-from == lockstep.ChunkBytes:
		return zeroSum
	}
	return sha256.Sum256(zeroes[:to-from])
}

var zeroes [lockstep.ChunkBytes]byte

func allZero(p []byte) bool { return string(p) == string(zeroes[:len(p)]) }

var _ block.Device = (*Volume)(nil)

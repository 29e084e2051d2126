package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// VerifyRequest asks a primary node to compare its volumes of a group with their secondaries.
type VerifyRequest struct {
	ID        string
	RateBytes int64          // per second; 0: the node's, which all such verifications share
	Epoch     lockstep.Epoch // of the record when it was asked for: a node that has not seen it waits
	// From is what this node reported of it before its process was started again; zero: nothing.
	From store.VerifyObserved
}

// verifier is a group's verification, if there is one.
type verifier struct {
	g           *Group
	bytes       atomic.Int64 // compared since the start of the process
	differences atomic.Int64 // found likewise

	mu     sync.Mutex    // guards what follows
	run    *verifyRun    // the newest one; nil: none
	last   chan struct{} // closed when the goroutine that was begun last has ended; nil: there was none
	closed bool
}

// verifyRun is one verification on one primary node: volume by volume, range by range, each claimed
// only while it is compared.
type verifyRun struct {
	g     *Group
	req   VerifyRequest
	limit *rate.Limiter
	ctx   context.Context
	stop  context.CancelCauseFunc

	mu     sync.Mutex // guards report
	report store.VerifyObserved
	// again holds what was found in the range under way: one that has to be compared once more must
	// not be counted twice. Owned by the goroutine.
	again map[lockstep.Extent]bool
}

var (
	errVerifyStopped = errors.New("the verification was ended")
	errVoid          = errors.New("the comparison is void")
)

// notCompleted is the end of a verification that proves nothing.
type notCompleted struct{ why string }

func (e *notCompleted) Error() string { return e.why }

// Verify begins a verification, or goes on with one from where this node reported to be. It does
// nothing if that runs, or ran to its end, already, or if this node is not a primary of the group or
// has not read the record for which it was asked.
func (h *Host) Verify(id lockstep.GroupID, req VerifyRequest) {
	if g := h.group(id); g != nil {
		g.verify.begin(req)
	}
}

// StopVerify ends a verification that is not wanted any more.
func (h *Host) StopVerify(id lockstep.GroupID) {
	if g := h.group(id); g != nil {
		g.verify.mu.Lock()
		defer g.verify.mu.Unlock()
		if r := g.verify.run; r != nil {
			r.stop(errVerifyStopped)
			g.verify.run = nil
		}
	}
}

// ObserveVerify reports this node's part of a group's verification; false: it has none.
func (h *Host) ObserveVerify(id lockstep.GroupID) (store.VerifyObserved, bool) {
	g := h.group(id)
	if g == nil {
		return store.VerifyObserved{}, false
	}
	g.verify.mu.Lock()
	r := g.verify.run
	g.verify.mu.Unlock()
	if r == nil {
		return store.VerifyObserved{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.report
	o.Volumes, o.Writes = maps.Clone(o.Volumes), maps.Clone(o.Writes)
	o.Differences.First = slices.Clone(o.Differences.First)
	return o, true
}

// VerifyTotals gives what verifications of a group have compared, in bytes, and found different since
// the start of the process.
func (h *Host) VerifyTotals(id lockstep.GroupID) (bytes, differences int64) {
	if g := h.group(id); g != nil {
		return g.verify.bytes.Load(), g.verify.differences.Load()
	}
	return 0, 0
}

func (x *verifier) begin(req VerifyRequest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	view := x.g.viewNow()
	if x.closed || x.run != nil && x.run.req.ID == req.ID || view.Role != protocol.RolePrimary || view.Record.Epoch < req.Epoch {
		return
	}
	cfg := x.g.host.cfg
	r := &verifyRun{g: x.g, req: req, limit: x.g.host.verifyLimit, again: map[lockstep.Extent]bool{}}
	if req.RateBytes > 0 {
		r.limit = rate.NewLimiter(rate.Limit(req.RateBytes), compareBytes)
	}
	r.ctx, r.stop = context.WithCancelCause(x.g.ctx)
	r.report = store.VerifyObserved{
		ID: req.ID, Node: cfg.Node, BootID: cfg.BootID, Instance: cfg.Instance, InSyncEpoch: view.Record.InSyncEpoch,
		State: store.VerifyRunning, Volumes: map[lockstep.VolumeID]store.VerifyProgress{},
	}
	if prev := x.run; prev != nil {
		prev.stop(errVerifyStopped)
	}
	x.run = r
	if from := req.From; from.ID == req.ID {
		if from.State != store.VerifyRunning {
			r.report = from // it was over
			return
		}
		r.resume(from)
	}
	r.seen(view)
	r.seen(x.g.viewNow()) // a change since then met no run to tell
	before, done := x.last, make(chan struct{})
	x.last = done
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		r.end(r.all())
	}()
}

// resume takes over what was compared before this process began, unless what it proves may be gone
// with the page cache, the directory or the time in sync.
func (r *verifyRun) resume(from store.VerifyObserved) {
	have := r.report
	r.report = from
	r.report.Why = ""
	r.report.Volumes = maps.Clone(from.Volumes) // who asked goes on reading what it gave
	r.report.Differences.First = slices.Clone(from.Differences.First)
	if r.report.Volumes == nil {
		r.report.Volumes = map[lockstep.VolumeID]store.VerifyProgress{}
	}
	switch {
	case from.BootID != have.BootID || from.Instance != have.Instance:
		r.stop(&notCompleted{fmt.Sprintf("the host of node %s, or its pool's directory, is not the one with which it began", have.Node)})
	case from.InSyncEpoch != have.InSyncEpoch:
		r.stop(&notCompleted{fmt.Sprintf("the group changed while node %s was not running", have.Node)})
	}
}

// close ends the verification with the group's loop; it goes on after a restart.
func (x *verifier) close() {
	x.mu.Lock()
	x.closed = true
	if x.run != nil {
		x.run.stop(errVerifyStopped)
	}
	last := x.last
	x.mu.Unlock()
	if last != nil {
		<-last
	}
}

// seen tells the verification of every view that the group's loop has: the end of in sync ends it,
// and no way back to it brings it to life again.
func (x *verifier) seen(v View) {
	x.mu.Lock()
	r := x.run
	x.mu.Unlock()
	if r != nil {
		r.seen(v)
	}
}

func (r *verifyRun) seen(v View) {
	rec := v.Record
	if v.Role != protocol.RolePrimary || rec.State != protocol.StateNormal || !rec.InSync {
		why := "the group left in sync"
		if rec.Reason != "" {
			why += ": " + rec.Reason
		}
		r.stop(&notCompleted{why})
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.report.State == store.VerifyRunning {
		r.report.InSyncEpoch = rec.InSyncEpoch
	}
}

func (g *Group) viewNow() View {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.view
}

// end writes the result. A verification that ends with the process stays running: it is gone on with.
func (r *verifyRun) end(err error) {
	if r.ctx.Err() != nil {
		err = context.Cause(r.ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Why = ""
	switch {
	case err == nil:
		r.report.State, r.report.Writes = store.VerifyEqual, r.g.writeNumbers()
	case errors.Is(err, errVerifyStopped) || errors.Is(err, context.Canceled):
		return
	default:
		r.report.State, r.report.Why = store.VerifyNotCompleted, err.Error()
	}
	r.report.At = time.Now().UTC()
	r.g.log.Info("verification ended", "id", r.req.ID, "result", r.report.State, "why", r.report.Why, "bytes", r.report.Bytes, "differences", r.report.Differences.Count)
}

// writeNumbers gives, for each link, the number of the last frame sent over it.
func (g *Group) writeNumbers() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := map[string]string{}
	for peer, d := range g.dialers {
		if l := d.current(); l != nil {
			at[string(g.host.cfg.Node)+">"+string(peer)] = fmt.Sprintf("%d.%d.%d", l.session.Start, l.session.Conn, l.seq.Load())
		}
	}
	return at
}

// all compares every volume. One that grew meanwhile is compared to its new end.
func (r *verifyRun) all() error {
	if err := r.g.complete(); err != nil {
		return err
	}
	vols := r.g.volumes()
	slices.SortFunc(vols, func(a, b *Volume) int { return cmp.Compare(a.id, b.id) })
	for _, v := range vols {
		r.advance(v, 0)
	}
	for again := true; again; {
		again = false
		for _, v := range vols {
			if r.position(v) < v.Size() {
				again = true
				if err := r.volume(v); err != nil {
					return err
				}
			}
		}
	}
	return r.ctx.Err()
}

func (r *verifyRun) position(v *Volume) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report.Volumes[v.id].Position
}

// advance notes that n more bytes of a volume are equal.
func (r *verifyRun) advance(v *Volume, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.report.Volumes[v.id]
	p.Position, p.Size = p.Position+n, v.Size()
	r.report.Volumes[v.id] = p
	r.report.Bytes += n
	r.report.Why = ""
	r.g.verify.bytes.Add(n)
}

// volume compares what is left of one volume.
func (r *verifyRun) volume(v *Volume) error {
	for {
		e := v.nextRange(r.position(v))
		if e.Len <= 0 {
			return nil
		}
		cost := e.Len
		if e.Len > verifyBytes { // a hole: nothing is read here, and seldom there
			cost = lockstep.ChunkBytes
		}
		if err := r.limit.WaitN(r.ctx, int(cost)); err != nil {
			return err
		}
		err := r.verifyRange(v, e)
		switch {
		case err == nil:
			clear(r.again)
			r.advance(v, e.Len)
		case errors.Is(err, errVoid) && r.ctx.Err() == nil:
			r.waits(err)
			select { // it is compared again, and not a difference
			case <-time.After(voidPause):
			case <-r.ctx.Done():
			}
		default:
			return err
		}
	}
}

// voidPause is before a range is compared again whose comparison was void.
const voidPause = 100 * time.Millisecond

func (r *verifyRun) waits(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Why = "waits: " + err.Error()
}

// found notes ranges of a chunk that differ, before they are repaired.
func (r *verifyRun) found(v *Volume, exts []lockstep.Extent, kept string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := &r.report.Differences
	for _, e := range exts {
		if r.again[e] {
			continue
		}
		r.again[e] = true
		r.g.verify.differences.Add(1)
		d.Count++
		d.Bytes += e.Len
		if len(d.First) < store.MaxDifferences {
			d.First = append(d.First, store.Difference{Volume: v.id, Node: r.report.Node, Off: e.Off, Len: e.Len, Kept: kept, At: time.Now().UTC()})
		}
		r.g.log.Error("the sides differ", "volume", v.id, "offset", e.Off, "length", e.Len, "kept", kept, "verification", r.req.ID)
	}
}

// repaired notes that what was found in the range under way is equal by now.
func (r *verifyRun) repaired(v *Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, d := range r.report.Differences.First {
		if d.Volume == v.id && r.again[lockstep.Extent{Off: d.Off, Len: d.Len}] {
			r.report.Differences.First[i].Repaired = true
		}
	}
}

package sim

import (
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// outcome of a request.
type outcome int

const (
	acked   outcome = iota
	refused         // ESHUTDOWN: this node may not serve it; whether it was applied is open
	ioError         // EIO: the local copy failed
	reset           // the connection to the node broke: whether it was applied is open
)

// request is one block read or written by a client.
type request struct {
	pair, block int
	read        bool
	id          wid // of a write
	done        func(outcome, wid)
	over        bool // answered, or its client is gone
	submitted   bool // handed to the data path; what is given up before never happened
}

func (r *request) finish(o outcome, value wid) {
	if !r.over {
		r.over = true
		r.done(o, value)
	}
}

// flight is a submitted write, or a chunk of a resync; both are ordered per block.
type flight struct {
	req        *request // nil for a chunk
	block      int
	id         wid
	chunk      bool
	local      bool // applied here
	needRemote bool
	remote     bool // acknowledged by the secondary under the binding in force
	sentAt     int64
}

// pvol is a volume inside a process: its mode, the binding of that mode, and what is under way.
type pvol struct {
	v         *vol
	p         *process
	peer      lockstep.NodeID
	mode      protocol.Mode
	epoch     lockstep.Epoch
	session   lockstep.Session
	strict    bool // one side alone needs a lease from the store
	queue     []*request
	fly       []*flight
	submitted int // local writes handed to the kernel by requests that were answered meanwhile
	marking   [regionsPerVolume]bool
	hasIntent bool // the dirty map names all that the intent log stands for
	regionGen [regionsPerVolume]int

	// unrepaired is set for the regions of the intent log of the life before that the secondary may
	// not have as they are here; loaded once in a life. wanted: a request waits for it.
	unrepaired, wanted [regionsPerVolume]bool
	loaded             bool

	// sent notes, out of sync, which dirty blocks the secondary has, in which life of it.
	sent     [blocksPerVolume]bool
	sentBoot lockstep.BootID
}

func (p *process) pvol(pair int) *pvol {
	for _, pv := range p.vols {
		if pv.v.pair == pair {
			return pv
		}
	}
	return nil
}

// submit takes a client's request.
func (p *process) submit(r *request) {
	pv := p.pvol(r.pair)
	pv.queue = append(pv.queue, r)
	pv.pump()
}

func (p *process) pumpAll() {
	for _, pv := range p.vols {
		pv.pump()
	}
}

func (pv *pvol) busy(block int) bool {
	return slices.ContainsFunc(pv.fly, func(f *flight) bool { return f.block == block })
}

// pump starts every queued request that may start now; requests to one block keep their order.
func (pv *pvol) pump() {
	if pv.p.dead {
		return
	}
	queue := pv.queue
	pv.queue = nil
	var kept []*request
	var waiting [blocksPerVolume]bool
	for _, r := range queue {
		switch {
		case r.over:
		case pv.mode == protocol.ModeRefused:
			r.finish(refused, 0)
		case pv.v.failed:
			r.finish(ioError, 0)
		case waiting[r.block] || !pv.start(r):
			waiting[r.block] = true
			kept = append(kept, r)
		}
	}
	pv.queue = append(kept, pv.queue...)
}

func (pv *pvol) start(r *request) bool {
	brk := pv.p.w.opt.Break
	if pv.mode == protocol.ModeHeld || pv.busy(r.block) && !(r.read && brk.ReadInFlight) {
		return false
	}
	if region := r.block / blocksPerRegion; pv.unrepaired[region] && !brk.UnrepairedServed {
		pv.wanted[region] = true
		return false
	}
	if r.read {
		if pv.mode == protocol.ModeTwoSided || pv.mode == protocol.ModeCopyTwoSided {
			l := pv.p.lease[pv.peer]
			if !brk.NoReadLease && (l.until <= pv.p.w.now || l.epoch != pv.epoch) {
				return false
			}
		}
		if pv.mode == protocol.ModeOneSided || pv.mode == protocol.ModeCopying {
			if !pv.mayServeAlone() {
				return false
			}
			pv.p.w.truth.servedAlone(pv.p.w, pv, "answers a read")
		}
		r.finish(acked, pv.v.cache[r.block])
		return true
	}
	if !pv.mark(r) {
		return false
	}
	pv.apply(r)
	return true
}

// mark makes the region's write intent durable before anything else happens to the write.
func (pv *pvol) mark(r *request) bool {
	region := r.block / blocksPerRegion
	if pv.v.intent[region] || pv.p.w.opt.Break.NoIntent || pv.mode == protocol.ModePlain {
		return true
	}
	if !pv.marking[region] {
		pv.marking[region] = true
		pv.p.after(1+pv.p.w.latency()/2, func() {
			pv.marking[region] = false
			pv.v.intent[region] = true
			pv.pump()
		})
	}
	return false
}

// apply submits a write under the mode of this moment.
func (pv *pvol) apply(r *request) {
	w := pv.p.w
	f := &flight{req: r, block: r.block, id: r.id, sentAt: w.now}
	r.submitted = true
	pv.regionGen[r.block/blocksPerRegion]++
	switch pv.mode {
	case protocol.ModeOneSided, protocol.ModeCopying, protocol.ModeCopyTwoSided:
		pv.v.dirty[r.block] = true
		pv.sent[r.block] = false
		f.needRemote = pv.mode != protocol.ModeOneSided
	case protocol.ModeTwoSided:
		f.needRemote = true
	case protocol.ModePlain, protocol.ModeHeld, protocol.ModeRefused:
	}
	pv.fly = append(pv.fly, f)
	pv.writeLocal(f)
	if f.needRemote {
		pv.send(f)
	}
}

func (pv *pvol) writeLocal(f *flight) {
	pv.submitted++
	pv.p.disk(pv.p.w.latency()/2, func() {
		if !pv.v.failed {
			pv.v.write(f.block, f.id)
		}
	}, func() {
		pv.submitted--
		if pv.v.failed {
			pv.fail()
			return
		}
		f.local = true
		pv.complete(f)
	})
}

// fail: an error at the primary fails the volume; the marks stay.
func (pv *pvol) fail() {
	for _, f := range pv.fly {
		if f.req != nil {
			f.req.finish(ioError, 0)
		}
	}
	pv.fly = nil
	pv.pump()
	pv.p.volumeFailed(pv.v)
}

func (pv *pvol) send(f *flight) {
	c := pv.p.links[pv.peer]
	if c == nil || !c.answered || c.session != pv.session {
		return
	}
	pv.frame(c, f.block, f.id, func() {
		f.remote = true
		pv.complete(f)
	})
}

// frame sends one block under the binding in force; an answer counts only if that still holds.
func (pv *pvol) frame(c *conn, block int, id wid, ok func()) {
	epoch, session := pv.epoch, pv.session
	fr := frame{epoch: epoch, session: session, vol: pv.v.pair, block: block, id: id}
	c.request(func(answer func(any)) { c.acc.onFrame(c, fr, answer) }, func(reply any) {
		a := reply.(frameReply)
		if a.newer != nil {
			pv.p.step(protocol.RecordRead{Record: *a.newer})
			return
		}
		if a.disk {
			pv.p.step(protocol.PeerFailed{Peer: pv.peer, Reason: "I/O error at the secondary"})
			return
		}
		if a.refused || pv.epoch != epoch || pv.session != session || pv.p.n.file.saved.Record.Epoch != epoch {
			return
		}
		ok()
	})
}

// complete acknowledges a write that is where its mode says it must be.
func (pv *pvol) complete(f *flight) {
	i := slices.Index(pv.fly, f)
	if i < 0 {
		return
	}
	early := pv.p.w.opt.Break.AckEarly && f.local && f.req != nil
	if early && pv.mode == protocol.ModeTwoSided {
		pv.acknowledge(f)
	}
	if !f.local && !f.chunk || f.needRemote && !f.remote {
		return
	}
	alone := !f.needRemote && (pv.mode == protocol.ModeOneSided || pv.mode == protocol.ModeHeld)
	if alone && f.req != nil && !f.req.over && !pv.mayServeAlone() {
		return // the next lease completes it
	}
	pv.fly = slices.Delete(pv.fly, i, i+1)
	if f.needRemote && pv.v.dirty[f.block] && (f.chunk || pv.mode != protocol.ModeOneSided) {
		pv.sent[f.block] = true
	}
	pv.acknowledge(f)
	pv.pump()
}

func (pv *pvol) acknowledge(f *flight) {
	if f.req != nil && !f.req.over {
		pv.p.w.truth.ackedAt(pv.p.w, pv, f.id)
		f.req.finish(acked, 0)
	}
}

// setMode is in force when it returns.
func (p *process) setMode(a protocol.SetMode) {
	p.w.say("%s: mode %s %s session %s epoch %d %s", p.n.id, a.Mode, a.Peer, a.Session, a.Epoch, a.Why)
	for _, pv := range p.vols {
		if a.Peer == "" || a.Peer == pv.peer {
			pv.setMode(a)
		}
	}
	p.pumpAll()
}

func (pv *pvol) setMode(a protocol.SetMode) {
	was := pv.mode
	pv.mode = a.Mode
	if a.Mode != protocol.ModeHeld {
		pv.strict = a.Strict
		if a.Unrepaired {
			pv.loadUnrepaired()
		} else {
			pv.unrepaired = [regionsPerVolume]bool{}
		}
	}
	switch a.Mode {
	case protocol.ModeHeld:
		// What is under way keeps its binding: a pause drains under the old epoch.
	case protocol.ModeOneSided, protocol.ModePlain:
		pv.epoch, pv.session = a.Epoch, lockstep.Session{}
		pv.dropChunks()
		for _, f := range slices.Clone(pv.fly) {
			if f.needRemote {
				pv.v.dirty[f.block] = true
				pv.sent[f.block] = false
				f.needRemote = false
			}
			pv.complete(f)
		}
	case protocol.ModeTwoSided, protocol.ModeCopying, protocol.ModeCopyTwoSided:
		if pv.session != a.Session || pv.epoch != a.Epoch {
			pv.dropChunks()
		}
		resend := pv.session != a.Session || pv.epoch != a.Epoch || was == protocol.ModeHeld
		pv.epoch, pv.session = a.Epoch, a.Session
		if resend && pv.p.w.opt.Break.NoResend {
			for _, f := range pv.fly {
				f.req.finish(reset, 0)
			}
			pv.fly = nil
		}
		for _, f := range pv.fly {
			if f.chunk {
				continue
			}
			if a.Mode != protocol.ModeTwoSided {
				pv.v.dirty[f.block] = true
			}
			f.needRemote = true // also what one side alone was not allowed to acknowledge
			if !f.remote && resend {
				pv.send(f)
			}
		}
	case protocol.ModeRefused:
		pv.dropChunks()
		pv.sent = [blocksPerVolume]bool{} // it belongs to one stint as primary
		for _, f := range pv.fly {
			f.req.finish(refused, 0)
		}
		pv.fly = nil
	}
}

// loadUnrepaired is called before the first request of a life is served two-sided.
func (pv *pvol) loadUnrepaired() {
	if !pv.loaded {
		pv.loaded, pv.unrepaired = true, pv.v.intent
	}
}

// dropChunks forgets the chunks under way: whoever still wants them sends them again.
func (pv *pvol) dropChunks() {
	pv.fly = slices.DeleteFunc(pv.fly, func(f *flight) bool { return f.chunk })
}

func (pv *pvol) dirtyFromIntent() {
	for b := range blocksPerVolume {
		if pv.doubtful(b) && !pv.v.dirty[b] {
			pv.v.setDirtyDurably(b)
			pv.sent[b] = false
		}
	}
	pv.hasIntent = true
}

func (pv *pvol) wouldDirty() bool {
	for b := range blocksPerVolume {
		if pv.doubtful(b) && !pv.v.dirty[b] {
			return true
		}
	}
	return false
}

// doubtful: the intent log stands for a difference there.
func (pv *pvol) doubtful(block int) bool {
	return pv.v.intent[block/blocksPerRegion] && !pv.hasIntent
}

func (pv *pvol) clearDirty() {
	pv.v.clearDirty()
	pv.sent = [blocksPerVolume]bool{}
	pv.hasIntent = pv.hasIntent && pv.p.w.opt.Break.IntentAssumed
}

// sessionUp: what was noted as sent belongs to one life of the secondary.
func (p *process) sessionUp(c *conn, boot lockstep.BootID) {
	for _, pv := range p.vols {
		if pv.peer == c.acc.n.id && pv.sentBoot != boot {
			pv.sent, pv.sentBoot = [blocksPerVolume]bool{}, boot
		}
	}
}

func (p *process) connGone(c *conn) {
	for _, pv := range p.vols {
		if pv.peer == c.acc.n.id {
			pv.dropChunks()
		}
	}
	delete(p.jobs, c.acc.n.id)
}

// dropClients is what clients see of a dying process.
func (p *process) dropClients() {
	for _, pv := range p.vols {
		for _, r := range pv.queue {
			r.finish(reset, 0)
		}
		for _, f := range pv.fly {
			if f.req != nil {
				f.req.finish(reset, 0)
			}
		}
	}
}

func (p *process) oldestUnacked(peer lockstep.NodeID) int64 {
	oldest := int64(0)
	for _, pv := range p.vols {
		if pv.peer != peer {
			continue
		}
		for _, f := range pv.fly {
			if f.needRemote && !f.remote && (oldest == 0 || f.sentAt < oldest) {
				oldest = f.sentAt
			}
		}
	}
	return oldest
}

// backgroundFlush clears write intent where both sides have flushed after the last write, and the
// secondary's answer came on the session on which it was asked for [F6] [F8].
func (p *process) backgroundFlush() {
	for _, pv := range p.vols {
		if pv.mode != protocol.ModeTwoSided {
			continue
		}
		c := p.links[pv.peer]
		if c == nil || !c.answered || c.session != pv.session {
			continue
		}
		pv.flushAndClear(c)
	}
}

func (pv *pvol) flushAndClear(c *conn) {
	p, epoch, session := pv.p, pv.epoch, pv.session
	gen, candidates := pv.regionGen, [regionsPerVolume]bool{}
	for r := range candidates {
		candidates[r] = pv.v.intent[r] && (!pv.unrepaired[r] || p.w.opt.Break.UnrepairedCleared) && !slices.ContainsFunc(pv.fly, func(f *flight) bool { return f.block/blocksPerRegion == r })
	}
	left := 2
	end := func(ok bool) {
		if !ok {
			left = 99
		}
		if left--; left != 0 || pv.mode != protocol.ModeTwoSided || pv.epoch != epoch || pv.session != session {
			return
		}
		for r, yes := range candidates {
			if yes && pv.regionGen[r] == gen[r] && !pv.marking[r] {
				pv.v.intent[r] = false
			}
		}
	}
	p.flushAll(func(err error) { end(err == nil) })
	if p.w.opt.Break.ClearAlone {
		end(true)
		return
	}
	c.request(func(answer func(any)) { c.acc.onFlush(answer) }, func(reply any) { end(reply.(flushReply).err == nil) })
}

package sim

import (
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// frame is one block on its way to the secondary.
type frame struct {
	epoch   lockstep.Epoch
	session lockstep.Session
	vol     int // the pair
	block   int
	id      wid
}

type frameReply struct {
	refused bool
	disk    bool
	newer   *protocol.Record
}

type flushReply struct {
	err      error
	boot     lockstep.BootID
	instance string
}

type announceReply struct {
	ok      bool
	err     string
	newer   *protocol.Record
	differs map[int][blocksPerVolume]bool // by pair: the secondary's own marks
}

// applying is a frame being written at the secondary.
type applying struct {
	from    lockstep.NodeID
	session lockstep.Session
	epoch   lockstep.Epoch
}

type waiter struct {
	match func(*applying) bool
	then  func()
}

// onFrame refuses every epoch but the one that was announced on this connection and is persisted,
// and every session but the newest.
func (p *process) onFrame(c *conn, f frame, answer func(any)) {
	brk := p.w.opt.Break
	saved := p.n.file.saved
	stale := saved.Record.Epoch != f.epoch || p.fence > f.epoch || c.announced != f.epoch
	if brk.NoFence {
		stale = c.announced < f.epoch
	}
	if saved.Role != protocol.RoleSecondary && !brk.NoFence || stale || c.session != p.newest[c.dial.n.id] && !brk.StaleSessions {
		r := frameReply{refused: true}
		if rec := p.core.Record(); rec.Epoch > f.epoch {
			r.newer = &rec
		}
		answer(r)
		return
	}
	pv := p.pvol(f.vol)
	if pv.v.failed {
		p.volumeFailed(pv.v)
		answer(frameReply{disk: true})
		return
	}
	p.w.overwritten(pv.v, saved.Record)
	a := &applying{from: c.dial.n.id, session: c.session, epoch: f.epoch}
	p.applies = append(p.applies, a)
	at := max(p.w.now+p.w.latency()/2, pv.v.applyNotUntil)
	pv.v.applyNotUntil = at
	if brk.AckUnapplied {
		answer(frameReply{})
	}
	p.disk(at-p.w.now, func() {
		if !pv.v.failed {
			pv.v.write(f.block, f.id)
		}
	}, func() {
		p.applies = slices.DeleteFunc(p.applies, func(o *applying) bool { return o == a })
		answer(frameReply{disk: pv.v.failed})
		p.wake()
	})
}

// whenApplied calls then once no frame that matches is being written.
func (p *process) whenApplied(match func(*applying) bool, then func()) {
	p.waiters = append(p.waiters, &waiter{match: match, then: then})
	p.wake()
}

func (p *process) wake() {
	for i := 0; i < len(p.waiters); {
		wt := p.waiters[i]
		if slices.ContainsFunc(p.applies, wt.match) {
			i++
			continue
		}
		p.waiters = slices.Delete(p.waiters, i, i+1)
		wt.then()
	}
}

func (p *process) onFlush(answer func(any)) {
	p.flushAll(func(err error) {
		answer(flushReply{err: err, boot: p.n.bootID(), instance: p.n.instance})
	})
}

// announce sends the record to a secondary on the connection that the Core named.
func (p *process) announce(a protocol.Announce) {
	c := p.links[a.Peer]
	if c == nil || c.session != a.Session {
		return
	}
	c.request(func(answer func(any)) { c.acc.onAnnounce(c, a.Record, answer) }, func(reply any) {
		r := reply.(announceReply)
		for pair, blocks := range r.differs {
			p.mergeDiffers(pair, blocks)
		}
		p.step(protocol.Announced{Peer: a.Peer, Session: a.Session, Epoch: a.Record.Epoch, OK: r.ok, Error: r.err})
		if r.newer != nil {
			p.step(protocol.RecordRead{Record: *r.newer})
		}
	})
}

// mergeDiffers unites the secondary's marks with the own dirty map (reprotect).
func (p *process) mergeDiffers(pair int, blocks [blocksPerVolume]bool) {
	pv := p.pvol(pair)
	if pv == nil || p.w.opt.Break.NoUnion {
		return
	}
	for b, yes := range blocks {
		if yes {
			pv.v.setDirtyDurably(b)
			pv.sent[b] = false
		}
	}
}

type announcing struct {
	conn   *conn
	answer func(any)
}

func (p *process) onAnnounce(c *conn, rec protocol.Record, answer func(any)) {
	p.w.announceSeq++
	id := p.w.announceSeq
	p.w.announces[id] = announcing{conn: c, answer: answer}
	p.step(protocol.AnnounceIn{Record: rec, Conn: id})
}

func (p *process) announceOut(a protocol.AnnounceOut) {
	in, ok := p.w.announces[a.Conn]
	if !ok {
		p.w.fail("%s: an announcement was answered twice", p.n.id)
		return
	}
	delete(p.w.announces, a.Conn)
	r := announceReply{ok: a.OK, err: a.Error, newer: a.Newer}
	if a.OK {
		if p.n.file.saved.Record.Epoch != a.Record.Epoch || p.n.file.saved.Role != protocol.RoleSecondary {
			p.w.fail("%s: an announcement of epoch %d was confirmed while epoch %d is persisted", p.n.id, a.Record.Epoch, p.n.file.saved.Record.Epoch)
		}
		in.conn.announced = a.Record.Epoch
		if a.Record.State == protocol.StateCopying {
			r.differs = p.differs(in.conn.dial.n.id)
		}
	}
	in.answer(r)
}

func (p *process) differs(peer lockstep.NodeID) map[int][blocksPerVolume]bool {
	d := map[int][blocksPerVolume]bool{}
	for _, pv := range p.vols {
		if pv.peer != peer {
			continue
		}
		var blocks [blocksPerVolume]bool
		for b := range blocks {
			blocks[b] = pv.v.dirty[b] || pv.doubtful(b)
		}
		d[pv.v.pair] = blocks
	}
	return d
}

package sim

import (
	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// conn is one connection life of the group between a primary (the dialer) and a secondary. Each
// direction keeps its order; what is under way when one end closes may still arrive.
type conn struct {
	w         *world
	dial, acc *process
	session   lockstep.Session
	up, down  pipe // to the acceptor, to the dialer

	dialOpen, accOpen bool
	answered          bool // the dialer knows the hello's answer
	openedAt          int64
	lastHeard         int64
	announced         lockstep.Epoch // acceptor's side: told on this connection and persisted
	tokens            uint64
	waiting           map[uint64]func(reply any) // dialer's side: requests by token
}

type message struct {
	at int64
	fn func()
}

// pipe is one direction of a connection.
type pipe struct {
	queue   []message
	lastAt  int64
	pumping bool
}

func (c *conn) toAcc(fn func())  { c.push(&c.up, c.dial, c.acc, fn) }
func (c *conn) toDial(fn func()) { c.push(&c.down, c.acc, c.dial, fn) }

func (c *conn) push(p *pipe, from, to *process, fn func()) {
	at := max(p.lastAt, c.w.now+1+c.w.latency())
	p.lastAt = at
	p.queue = append(p.queue, message{at: at, fn: fn})
	c.pump(p, from, to)
}

func (c *conn) pump(p *pipe, from, to *process) {
	if p.pumping || len(p.queue) == 0 {
		return
	}
	p.pumping = true
	c.w.after(p.queue[0].at-c.w.now, func() {
		p.pumping = false
		if len(p.queue) == 0 {
			return
		}
		open := c.accOpen
		if to == c.dial {
			open = c.dialOpen
		}
		switch {
		case to.dead || !open:
			p.queue = nil
			return
		case p.queue[0].at > c.w.now: // it was held up after this was planned
		case to.n.pausedUntil > c.w.now:
			p.queue[0].at = to.n.pausedUntil
		case c.w.cut(from.n.id, to.n.id):
			p.queue[0].at = c.w.now + 50
		default:
			m := p.queue[0]
			p.queue = p.queue[1:]
			m.fn()
		}
		c.pump(p, from, to)
	})
}

// request asks the acceptor and gives the reply to done, in the dialer's context, if the
// connection still lives then.
func (c *conn) request(handle func(answer func(any)), done func(reply any)) {
	c.tokens++
	token := c.tokens
	c.waiting[token] = done
	c.toAcc(func() {
		handle(func(reply any) {
			if c.acc.dead || !c.accOpen && !c.w.opt.Break.StaleSessions {
				return
			}
			c.toDial(func() {
				if fn := c.waiting[token]; fn != nil {
					delete(c.waiting, token)
					c.lastHeard = c.w.now
					fn(reply)
				}
			})
		})
	})
}

// closeDial ends the dialer's side; the acceptor hears of it behind whatever is under way.
func (c *conn) closeDial(why string) {
	if !c.dialOpen {
		return
	}
	c.dialOpen = false
	c.w.say("%s: connection %s to %s ends: %s", c.dial.n.id, c.session, c.acc.n.id, why)
	c.truncate(&c.up)
	c.straggle()
	c.push(&c.up, c.dial, c.acc, func() { c.accOpen = false })
	if c.dial.links[c.acc.n.id] == c {
		delete(c.dial.links, c.acc.n.id)
		c.dial.redialAt[c.acc.n.id] = c.w.now + c.w.between(20, 400)
	}
	if c.answered && !c.dial.dead {
		c.dial.connGone(c)
		c.dial.step(protocol.PeerDown{Peer: c.acc.n.id, Session: c.session})
	}
}

// truncate loses a random tail of what is under way.
func (c *conn) truncate(p *pipe) {
	if len(p.queue) > 0 && c.w.chance(60) {
		p.queue = p.queue[:1+c.w.rng.IntN(len(p.queue))]
	}
}

// straggle makes what is under way at the end of a connection arrive much later.
func (c *conn) straggle() {
	if !c.w.chance(30) {
		return
	}
	d := c.w.between(0, 3000)
	for i := range c.up.queue {
		c.up.queue[i].at += d
	}
	c.up.lastAt += d
}

// abandon is what the kernel does for a process that died.
func (c *conn) abandon(dead *process) {
	if dead == c.dial {
		c.dialOpen = false
		c.truncate(&c.up)
		c.straggle()
		c.push(&c.up, c.dial, c.acc, func() { c.accOpen = false })
		return
	}
	c.accOpen = false
	c.truncate(&c.down)
	c.push(&c.down, c.acc, c.dial, func() { c.closeDial("reset by peer") })
}

// dialPeers opens connections to the secondaries of a primary, and closes dead ones.
func (p *process) dialPeers() {
	rec := p.core.Record()
	role, _, _ := p.core.Status()
	var peers []lockstep.NodeID
	if role == protocol.RolePrimary {
		peers = rec.PeersOf(p.n.id, p.n.az)
	}
	for _, c := range p.dialed() {
		switch {
		case role != protocol.RolePrimary:
			c.closeDial("not the primary any more")
		case !c.answered && p.w.now-c.openedAt > 1000:
			c.closeDial("no answer to the hello")
		case c.answered && p.w.now-max(c.openedAt, p.heard[c.acc.n.id]) > deadLinkMs:
			c.closeDial("silence")
		}
	}
	for _, id := range peers {
		if p.links[id] == nil && p.w.now >= p.redialAt[id] {
			p.dial(p.w.node(id))
		}
	}
}

func (p *process) dial(to *node) {
	if to.proc == nil || p.w.cut(p.n.id, to.id) {
		p.redialAt[to.id] = p.w.now + p.w.between(100, 400)
		return
	}
	p.connections++
	c := &conn{
		w: p.w, dial: p, acc: to.proc, session: lockstep.Session{Start: p.n.starts, Conn: p.connections},
		dialOpen: true, accOpen: true, openedAt: p.w.now, waiting: map[uint64]func(any){},
	}
	p.links[to.id] = c
	to.proc.accepted = append(to.proc.accepted, c)
	c.request(func(answer func(any)) { c.acc.onHello(c, answer) }, func(reply any) {
		h := reply.(helloReply)
		if h.refused {
			c.closeDial("hello refused")
			return
		}
		c.answered = true
		p.w.say("%s: connection %s to %s is up, boot %s", p.n.id, c.session, to.id, h.boot)
		p.sessionUp(c, h.boot)
		p.step(protocol.PeerUp{Peer: to.id, Session: c.session, BootID: h.boot, Instance: h.instance})
		if h.newer != nil {
			p.step(protocol.RecordRead{Record: *h.newer})
		}
	})
}

type helloReply struct {
	refused  bool
	boot     lockstep.BootID
	instance string
	newer    *protocol.Record
}

// onHello closes and drains every older session of that node before it answers [F8].
func (p *process) onHello(c *conn, answer func(any)) {
	from := c.dial.n.id
	if newest, ok := p.newest[from]; ok && !newest.Less(c.session) {
		answer(helloReply{refused: true})
		return
	}
	p.newest[from] = c.session
	if !p.w.opt.Break.StaleSessions {
		for _, old := range p.accepted {
			if old != c && old.dial.n.id == from {
				old.accOpen = false
			}
		}
	}
	p.whenApplied(func(a *applying) bool { return a.from == from && a.session.Less(c.session) }, func() {
		h := helloReply{boot: p.n.bootID(), instance: p.n.instance}
		if rec := p.core.Saved().Record; rec.Epoch > 0 {
			h.newer = &rec
		}
		answer(h)
	})
}

// dialed lists the outgoing connections in the order of the nodes.
func (p *process) dialed() []*conn {
	var cs []*conn
	for _, n := range p.w.nodes {
		if c := p.links[n.id]; c != nil {
			cs = append(cs, c)
		}
	}
	return cs
}

// conns lists all connections that are open at this end.
func (p *process) conns() []*conn {
	cs := p.dialed()
	for _, c := range p.accepted {
		if c.accOpen {
			cs = append(cs, c)
		}
	}
	return cs
}

// heartbeat asks a secondary for the lease; it counts from the moment of asking.
func (p *process) heartbeat(to *node) {
	w, asked, epoch := p.w, p.w.now, p.n.file.saved.Record.Epoch
	acc := to.proc
	if acc == nil || epoch == 0 {
		return
	}
	w.after(1+w.latency(), func() {
		if acc.dead || w.cut(p.n.id, to.id) {
			return
		}
		acc.do(func() {
			covered, newer := acc.grant(epoch)
			w.after(1+w.latency(), func() {
				if w.cut(to.id, p.n.id) {
					return
				}
				p.do(func() {
					p.heard[to.id] = w.now
					if covered && asked+leaseTTLMs > p.lease[to.id].until {
						p.lease[to.id] = readLease{until: asked + leaseTTLMs, epoch: epoch}
						p.pumpAll()
					}
					if newer != nil {
						p.step(protocol.RecordRead{Record: *newer})
					}
				})
			})
		})
	})
}

type readLease struct {
	until int64
	epoch lockstep.Epoch
}

// grant is the secondary's side: only for the epoch that it has persisted as a secondary.
func (p *process) grant(epoch lockstep.Epoch) (covered bool, newer *protocol.Record) {
	saved := p.n.file.saved
	if saved.Record.Epoch == epoch && saved.Role == protocol.RoleSecondary && p.fence <= epoch {
		p.lastGrant = p.w.now
		return true, nil
	}
	if rec := p.core.Record(); rec.Epoch > epoch {
		return false, &rec
	}
	return false, nil
}

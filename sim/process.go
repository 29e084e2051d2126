package sim

import (
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

func bootName(id lockstep.NodeID, boot int) lockstep.BootID {
	return lockstep.BootID(fmt.Sprintf("%s#%d", id, boot))
}

// savedFile is the group's file on a node: replaced atomically.
type savedFile struct{ saved protocol.Saved }

// pending is something handed to the kernel that a dying process leaves undecided.
type pending struct{ do func() }

// process is one life of a node's daemon, with the group's Core and a shell as small as can be.
type process struct {
	w    *world
	n    *node
	dead bool
	core *protocol.Core

	events  []protocol.Event
	running bool
	kernel  []*pending

	started   int64
	read      bool // the first linearizable read of this life is done
	watching  bool
	reading   bool
	lastRead  int64
	proposing bool
	advancing bool
	answer    *protocol.Answer // to be written
	writing   bool
	changedAt int64
	seen      lockstep.Epoch

	batch *batch

	// as primary
	vols        []*pvol
	links       map[lockstep.NodeID]*conn
	redialAt    map[lockstep.NodeID]int64
	connections uint64
	lease       map[lockstep.NodeID]readLease
	heard       map[lockstep.NodeID]int64
	jobs        map[lockstep.NodeID]*job
	lastFlush   int64
	storeLease  readLease // of the strict policy
	leaseAsked  int64
	leasing     bool

	// as secondary
	accepted  []*conn
	newest    map[lockstep.NodeID]lockstep.Session
	fence     lockstep.Epoch
	lastGrant int64
	applies   []*applying
	waiters   []*waiter
}

// startProcess begins a new life. Only the disk tells it anything.
func (n *node) startProcess() {
	if n.proc != nil {
		return
	}
	w := n.w
	n.starts++
	n.ranAs = n.boot
	cfg := protocol.Config{
		Node: n.id, AZ: n.az, BootID: n.bootID(), Instance: n.instance, Start: n.starts, TripAfterMs: tripAfterMs,
	}
	p := &process{
		w: w, n: n, core: protocol.NewCore(cfg, n.file.saved, w.now), started: w.now,
		links: map[lockstep.NodeID]*conn{}, redialAt: map[lockstep.NodeID]int64{},
		lease: map[lockstep.NodeID]readLease{}, heard: map[lockstep.NodeID]int64{},
		jobs: map[lockstep.NodeID]*job{}, newest: map[lockstep.NodeID]lockstep.Session{},
		fence: n.file.saved.Record.Epoch, lastGrant: w.now, changedAt: w.now,
	}
	for _, v := range n.vols {
		p.vols = append(p.vols, &pvol{v: v, p: p, mode: protocol.ModeHeld, peer: w.volOf(v.pair, other(n.az)).n.id})
	}
	n.proc = p
	w.say("%s: process %d starts, boot %s, persisted epoch %d as %q, mark %d", n.id, n.starts, n.bootID(), n.file.saved.Record.Epoch, n.file.saved.Role, n.file.saved.Mark)
	p.after(w.between(0, tickMs), p.tick)
}

// do runs fn in this process: not at all if it is dead, later if the node stands still.
func (p *process) do(fn func()) {
	switch {
	case p.dead:
	case p.n.pausedUntil > p.w.now:
		p.w.after(p.n.pausedUntil-p.w.now, func() { p.do(fn) })
	default:
		fn()
	}
}

func (p *process) after(d int64, fn func()) { p.w.after(d, func() { p.do(fn) }) }

// disk is an operation that the kernel may finish without the process.
func (p *process) disk(d int64, op func(), done func()) {
	k := &pending{do: op}
	p.kernel = append(p.kernel, k)
	p.after(d, func() {
		p.kernel = slices.DeleteFunc(p.kernel, func(o *pending) bool { return o == k })
		op()
		done()
	})
}

// step feeds the Core and carries out what it says, one event at a time.
func (p *process) step(ev protocol.Event) {
	p.events = append(p.events, ev)
	if p.running {
		return
	}
	p.running = true
	for len(p.events) > 0 && !p.dead {
		ev := p.events[0]
		p.events = p.events[1:]
		before := p.core.Record().Epoch
		if p.w.opt.Story {
			p.sayEvent(ev)
		}
		acts := p.core.Step(ev)
		if rec := p.core.Record(); rec.Epoch != p.seen {
			p.seen, p.changedAt = rec.Epoch, p.w.now
			if p.w.opt.Story {
				p.w.say("%s: knows that %s", p.n.id, rec.Describe())
			}
		}
		if p.core.Record().Epoch > before && p.batch != nil {
			p.batch.outdated = true
		}
		for _, a := range acts {
			p.carryOut(a)
		}
	}
	p.running = false
}

// sayEvent tells what no other line of the story would.
func (p *process) sayEvent(ev protocol.Event) {
	switch e := ev.(type) {
	case protocol.BatchDone:
		p.w.say("%s: batch %d is done, drained %v, error %v", p.n.id, e.Token, e.Drained, e.Err)
	case protocol.JobDone:
		p.w.say("%s: job %d with %s is done, error %v", p.n.id, e.Token, e.Peer, e.Err)
	case protocol.Announced:
		p.w.say("%s: announcement of epoch %d to %s: %v %s", p.n.id, e.Epoch, e.Peer, e.OK, e.Error)
	}
}

func (p *process) carryOut(a protocol.Action) {
	switch a := a.(type) {
	case protocol.SetMode:
		p.setMode(a)
	case protocol.Batch:
		p.startBatch(a)
	case protocol.Announce:
		p.announce(a)
	case protocol.AnnounceOut:
		p.announceOut(a)
	case protocol.PeerJob:
		p.startJob(a)
	case protocol.Reply:
		ans := a.Answer
		if p.w.opt.Break.BootIgnored && ans.Step == protocol.StepReady {
			ans.BootID = p.core.Record().BootIDs[p.n.id]
		}
		p.w.say("%s: answers %s at epoch %d, healthy %v drained %v back %v %s", p.n.id, ans.Step, ans.Epoch, ans.Healthy, ans.Drained, ans.PeersBack, ans.Error)
		p.answer = &ans
		p.writeAnswer()
	case protocol.Proposal:
		p.propose(a)
	}
}

// tick is the process's clock: everything periodic hangs on it.
func (p *process) tick() {
	w := p.w
	p.after(tickMs, p.tick)
	signs := map[lockstep.NodeID]protocol.PeerSign{}
	for id, at := range p.heard {
		signs[id] = protocol.PeerSign{LastHeardMs: at, OldestUnackedMs: p.oldestUnacked(id)}
	}
	p.step(protocol.Tick{NowMs: w.now, Peers: signs})
	p.dialPeers()
	if (w.now-p.started)%heartbeatMs < tickMs {
		for _, c := range p.dialed() {
			p.heartbeat(c.acc.n)
		}
	}
	if !p.read || w.now-p.lastRead > 1500 {
		p.readRecord()
	}
	p.renewStoreLease()
	if w.now-p.lastFlush > flushEveryMs {
		p.lastFlush = w.now
		p.backgroundFlush()
	}
	p.advance()
	if p.answer != nil {
		p.writeAnswer()
	}
}

func (p *process) readRecord() {
	if p.reading {
		return
	}
	p.reading, p.lastRead = true, p.w.now
	var v view
	watchFrom := false
	p.w.store.call(p.n, func() {
		v, watchFrom = p.w.store.read(), true
	}, p.after, func(ok bool) {
		p.reading = false
		if !ok || !watchFrom {
			return
		}
		first := !p.read
		p.read, p.watching = true, true
		p.step(protocol.RecordRead{Record: v.rec, FromStore: true, AtStart: first})
	})
}

// writeAnswer puts the newest answer until it is there.
func (p *process) writeAnswer() {
	if p.writing || p.answer == nil {
		return
	}
	a := *p.answer
	p.writing = true
	p.w.store.call(p.n, func() {
		s := &p.w.store
		if s.answers[p.n.id].answer.Epoch > a.Epoch {
			return
		}
		s.writes++
		s.answers[p.n.id] = answerRow{answer: a, rev: s.writes}
	}, p.after, func(ok bool) {
		p.writing = false
		if p.answer == nil {
			return
		}
		if ok && answersEqual(*p.answer, a) {
			p.answer = nil
			return
		}
		if ok {
			p.writeAnswer()
		}
	})
}

func answersEqual(a, b protocol.Answer) bool {
	return a.Epoch == b.Epoch && a.Step == b.Step && a.Healthy == b.Healthy && a.Drained == b.Drained && a.PeersBack == b.PeersBack && a.Error == b.Error
}

// propose reads, applies the transition and compares-and-swaps, once. The outcome is learned by
// reading the record.
func (p *process) propose(a protocol.Proposal) {
	if p.proposing {
		return
	}
	p.proposing = true
	p.w.say("%s: proposes %s at epoch %d (%s, f5 %v)", p.n.id, a.Kind, a.At, a.Reason, a.F5)
	p.transact(func(v view) (protocol.Record, []lockstep.NodeID, bool) {
		var next protocol.Record
		var err error
		switch a.Kind {
		case protocol.ProposeTrip:
			next, err = v.rec.Trip(a.At, a.Cause, a.Reason)
		case protocol.ProposeAbortCopy:
			next, err = v.rec.AbortCopy(a.At, a.Cause, a.Reason)
		case protocol.ProposeRenewBoot:
			next, err = v.rec.RenewBoot(a.At, p.n.id, p.n.bootID(), p.n.instance, a.F5)
		}
		return next, nil, err == nil
	}, func() { p.proposing = false })
}

// advance lets a primary node carry a transition forward without any controller.
func (p *process) advance() {
	rec := p.core.Record()
	role, _, _ := p.core.Status()
	if p.advancing || role != protocol.RolePrimary || rec.State == protocol.StateNormal || p.w.now-p.changedAt < 700 {
		return
	}
	p.advancing = true
	patience := p.w.now-p.changedAt > 6000
	p.transact(func(v view) (protocol.Record, []lockstep.NodeID, bool) {
		if v.rec.Epoch != rec.Epoch {
			return v.rec, nil, false
		}
		return p.w.advance(v, patience)
	}, func() { p.after(500, func() { p.advancing = false }) })
}

// transact is read, decide, compare-and-swap, in two calls.
func (p *process) transact(decide func(view) (protocol.Record, []lockstep.NodeID, bool), end func()) {
	var v view
	s := &p.w.store
	s.call(p.n, func() { v = s.read() }, p.after, func(ok bool) {
		if !ok {
			end()
			return
		}
		next, used, yes := decide(v)
		if !yes {
			end()
			return
		}
		s.call(p.n, func() { s.cas(v, next, used, string(p.n.id)) }, p.after, func(bool) {
			p.readRecord()
			end()
		})
	})
}

// volumeFailed tells the Core once.
func (p *process) volumeFailed(v *vol) {
	p.step(protocol.VolumeFailed{Volume: v.id, Reason: "I/O error"})
}

package sim

import (
	"slices"

	"github.com/lockstep-dr/lockstep/protocol"
)

// job is a PeerJob under way; it ends with its connection.
type job struct {
	protocol.PeerJob
	p       *process
	c       *conn
	pending int
	todo    []place // repair, take-back
	ended   bool
	slow    bool // a repair that takes seconds
}

type place struct {
	pv    *pvol
	block int
}

const jobWindow = 2

func (p *process) startJob(a protocol.PeerJob) {
	c := p.links[a.Peer]
	if c == nil || c.session != a.Session {
		return
	}
	j := &job{PeerJob: a, p: p, c: c}
	p.jobs[a.Peer] = j
	p.w.say("%s: job %s with %s", p.n.id, a.Job, a.Peer)
	switch a.Job {
	case protocol.JobFlush:
		c.request(func(answer func(any)) { c.acc.onFlush(answer) }, func(reply any) {
			r := reply.(flushReply)
			j.end(protocol.JobDone{Err: r.err, BootID: r.boot, Instance: r.instance})
		})
	case protocol.JobResync:
		j.resync()
	case protocol.JobRepair:
		p.w.stats.Repairs++
		j.slow = p.w.chance(25)
		j.collectUnrepaired()
		j.repair()
	case protocol.JobTakeBack, protocol.JobTakeBackAll:
		p.w.stats.TakeBacks++
		j.collect(a.Job == protocol.JobTakeBackAll)
		j.takeBack()
	}
}

// gone: the job has no one to work for any more. Nothing more is sent once a newer epoch is
// persisted here: the secondary may not have heard of it and would still apply what comes.
func (j *job) gone() bool {
	if j.ended || j.p.dead || j.p.jobs[j.Peer] != j {
		return true
	}
	return j.p.n.file.saved.Record.Epoch > j.Epoch && !j.p.w.opt.Break.JobsGoOn
}

func (j *job) end(e protocol.JobDone) {
	if j.gone() {
		return
	}
	j.ended = true
	delete(j.p.jobs, j.Peer)
	e.Token, e.Peer, e.Session = j.Token, j.Peer, j.Session
	j.p.step(e)
}

// collectUnrepaired lists the blocks of the regions that may differ since the life before.
func (j *job) collectUnrepaired() {
	for _, pv := range j.p.vols {
		if pv.peer != j.Peer {
			continue
		}
		pv.loadUnrepaired()
		for b := range blocksPerVolume {
			if pv.unrepaired[b/blocksPerRegion] {
				j.todo = append(j.todo, place{pv, b})
			}
		}
	}
}

// next takes a block of a region that a request waits for, or else any.
func (j *job) next() place {
	i := max(0, slices.IndexFunc(j.todo, func(at place) bool { return at.pv.wanted[at.block/blocksPerRegion] }))
	at := j.todo[i]
	j.todo = slices.Delete(j.todo, i, i+1)
	return at
}

// repairedRegion ends the waiting for a region once no block of it is left.
func (j *job) repairedRegion(pv *pvol, region int) {
	if !slices.ContainsFunc(j.todo, func(at place) bool { return at.pv == pv && at.block/blocksPerRegion == region }) {
		pv.unrepaired[region], pv.wanted[region] = false, false
		pv.pump()
	}
}

// collect lists the blocks under the write intent, or all.
func (j *job) collect(all bool) {
	for _, pv := range j.p.vols {
		if pv.peer != j.Peer {
			continue
		}
		for b := range blocksPerVolume {
			if all || pv.v.intent[b/blocksPerRegion] {
				j.todo = append(j.todo, place{pv, b})
			}
		}
	}
}

// resync sends what is dirty and not sent, until nothing is.
func (j *job) resync() {
	if j.gone() {
		return
	}
	waiting := false
	for _, pv := range j.p.vols {
		if pv.peer != j.Peer {
			continue
		}
		if pv.session != j.Session || pv.epoch != j.Epoch {
			j.p.after(20, j.resync) // the volumes are not bound to the session (any more)
			return
		}
		for b := range blocksPerVolume {
			if !pv.v.dirty[b] || pv.sent[b] {
				continue
			}
			waiting = true
			if j.pending >= jobWindow || pv.busy(b) {
				continue
			}
			j.pending++
			f := &flight{block: b, id: pv.v.cache[b], chunk: true, needRemote: true, sentAt: j.p.w.now}
			pv.fly = append(pv.fly, f)
			pv.frame(j.c, b, f.id, func() {
				f.remote = true
				pv.complete(f)
				j.pending--
				j.resync()
			})
		}
	}
	if !waiting {
		j.end(protocol.JobDone{})
		return
	}
	if j.pending == 0 {
		j.p.after(10, j.resync)
	}
}

// repair sends the blocks of unrepaired regions under an epoch announced before, while requests to
// other regions are served [F9].
func (j *job) repair() {
	if j.gone() {
		return
	}
	if len(j.todo) == 0 {
		j.end(protocol.JobDone{})
		return
	}
	at := j.next()
	fr := frame{epoch: j.Epoch, session: j.Session, vol: at.pv.v.pair, block: at.block, id: at.pv.v.cache[at.block]}
	j.c.request(func(answer func(any)) { j.c.acc.onFrame(j.c, fr, answer) }, func(reply any) {
		a := reply.(frameReply)
		if a.refused || a.disk {
			j.end(protocol.JobDone{Err: errVolume})
			return
		}
		if j.gone() {
			return
		}
		j.repairedRegion(at.pv, at.block/blocksPerRegion)
		if j.slow { // a log of many regions: much happens before its end
			j.p.after(j.p.w.between(100, 900), j.repair)
			return
		}
		j.repair()
	})
}

// takeBack fetches the blocks under the write intent from the secondary [F2].
func (j *job) takeBack() {
	if j.gone() {
		return
	}
	if len(j.todo) == 0 {
		j.end(protocol.JobDone{})
		return
	}
	at := j.todo[0]
	j.todo = j.todo[1:]
	j.c.request(func(answer func(any)) {
		pv := j.c.acc.pvol(at.pv.v.pair)
		if pv.v.failed {
			answer(errVolume)
			return
		}
		answer(pv.v.cache[at.block])
	}, func(reply any) {
		id, ok := reply.(wid)
		if !ok {
			j.end(protocol.JobDone{Err: errVolume})
			return
		}
		j.p.disk(j.p.w.latency()/2, func() {
			// What is served under a newer epoch must not be overwritten by what was fetched under this.
			if !j.gone() && at.pv.v.cache[at.block] != id {
				at.pv.v.write(at.block, id)
			}
		}, j.takeBack)
	})
}

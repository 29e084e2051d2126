package protocol

import "github.com/lockstep-dr/lockstep"

// Event is something that happened; Core.Step takes it.
type Event interface{ apply(c *Core) }

// RecordRead: a record was read. FromStore: from the store, by a read begun after this process
// started (never set for a record that a peer passed on). AtStart: it is the first such read; one
// that is older than what this node had persisted then shows a store that went back. Rewound: it came
// from the store after a newer one, or from a list whose revision is lower than one that was seen
// before, which shows the same.
type RecordRead struct {
	Record    Record
	FromStore bool
	AtStart   bool
	Rewound   bool
}

// RecordMissing: the store was read and has neither record nor tombstone.
type RecordMissing struct{}

// BatchDone: a Batch ended. Err: the step that failed; the steps after it were not done.
type BatchDone struct {
	Token   uint64
	Drained bool // what Quiesce with Remote found
	Err     error
}

// SavedNow: a Save is durable, whether or not its batch still counts.
type SavedNow struct{ Saved Saved }

// PeerUp: a hello was answered: this is the newest session with that node.
type PeerUp struct {
	Peer     lockstep.NodeID
	Session  lockstep.Session
	BootID   lockstep.BootID
	Instance string
}

// PeerDown: the session ended.
type PeerDown struct {
	Peer    lockstep.NodeID
	Session lockstep.Session
}

// Announced: the secondary has persisted the epoch, or refused it.
type Announced struct {
	Peer    lockstep.NodeID
	Session lockstep.Session
	Epoch   lockstep.Epoch
	OK      bool
	Error   string
}

// JobDone: a PeerJob ended. For JobFlush BootID and Instance are the answering node's.
type JobDone struct {
	Token    uint64
	Peer     lockstep.NodeID
	Session  lockstep.Session
	Err      error
	BootID   lockstep.BootID
	Instance string
}

// PeerFailed: the secondary answered with an error of its disk.
type PeerFailed struct {
	Peer   lockstep.NodeID
	Reason string
}

// VolumeFailed: a local volume had an I/O error; it is permanent.
type VolumeFailed struct {
	Volume lockstep.VolumeID
	Reason string
}

// VolumesMissing lists the members of the newest record that are on this node and not in its pool;
// empty: all are there again.
type VolumesMissing struct{ Volumes []lockstep.VolumeID }

// VolumeOpened: a volume came into the pool; the caller looks again for what is missing.
type VolumeOpened struct{ Volume lockstep.VolumeID }

// AnnounceIn: a primary announces a record on an incoming connection.
type AnnounceIn struct {
	Record Record
	Conn   uint64 // names the connection and request in AnnounceOut
}

// Tick: time passed. NowMs is the caller's clock, which never goes back.
type Tick struct {
	NowMs int64
	Peers map[lockstep.NodeID]PeerSign
}

// PeerSign is what the caller knows of a secondary's liveness, in the caller's milliseconds.
type PeerSign struct {
	LastHeardMs     int64 // last heartbeat answer; 0: never
	OldestUnackedMs int64 // when the oldest unacknowledged frame was sent; 0: none
}

// ShowsOlderStore reports that a record can only come from a store that was restored from an older copy.
// Nothing may be done by it, and by none that follows, until the store is recovered.
func (c *Core) ShowsOlderStore(e RecordRead) bool {
	saved := c.saved.Record
	switch {
	case !e.FromStore:
		return false
	case e.AtStart && e.Record.Epoch < c.startIn, e.Rewound && e.Record.Epoch < saved.Epoch:
		return true
	case c.behind != 0 && e.Record.RecoveredAt <= saved.Epoch:
		return true
	}
	// An older copy of this directory has persisted less than this node had: that proves nothing.
	known := e.Record.Instances[c.cfg.Node]
	return (known == "" || known == c.cfg.Instance) && e.Record.Contradicts(saved, c.cfg.Node)
}

func (e RecordRead) apply(c *Core) {
	if e.FromStore {
		c.lost = false
		if e.Record.Epoch >= c.rec.Epoch {
			c.fresh = true
		}
		if c.ShowsOlderStore(e) {
			c.fresh, c.behind = false, e.Record.Epoch // plan reports it
			return
		}
		// Epochs that the older copy went on to make mean something else than those known here.
		if e.Record.RecoveredAt > c.saved.Record.Epoch {
			c.behind = 0
		}
	}
	if e.Record.Epoch < c.rec.Epoch || e.Record.Epoch < c.saved.Record.Epoch {
		return
	}
	if e.Record.Epoch == c.rec.Epoch {
		c.rec = e.Record // intent and texts may change within an epoch
		return
	}
	c.rec = e.Record
	c.newEpoch()
}

// newEpoch forgets what belonged to the epoch before.
func (c *Core) newEpoch() {
	c.closing, c.flushing, c.flushed, c.reported = false, false, false, false
	c.proposed, c.retryAt = 0, 0
	for _, p := range c.peers {
		p.announcing, p.announced, p.refused = 0, 0, ""
		p.serving, p.synced, p.decided, p.f5 = false, false, false, false
		p.flushed, p.flushInst, p.jobToken = "", "", 0
		if !p.up {
			p.downSince = c.now
		}
	}
}

func (e RecordMissing) apply(c *Core) { c.lost = true }

func (e SavedNow) apply(c *Core) { c.saved = e.Saved }

func (e BatchDone) apply(c *Core) {
	if e.Token != c.token || c.batchFor == 0 {
		return
	}
	epoch := c.batchFor
	c.batchFor = 0
	if e.Err != nil {
		c.why = e.Err.Error()
	}
	switch c.batchKind {
	case batchAdopt, batchAnnounce:
		// A batch of another kind has done less than an announcement asks for: no recovery point.
		if c.batchKind == batchAnnounce || e.Err != nil {
			c.finishAnnounces(epoch, e.Err)
		}
		if e.Err != nil {
			c.batchFailed(epoch, e)
			return
		}
		c.adopted, c.adoptedAt, c.drained = epoch, c.now, e.Drained
		if epoch != c.rec.Epoch {
			return // a newer record came meanwhile: nothing of it is persisted yet
		}
		for _, p := range c.peers {
			if !p.up {
				p.downSince = c.now
			}
		}
		c.afterAdopt()
	case batchRenew:
		if e.Err == nil && epoch == c.rec.Epoch {
			f5 := false
			for _, p := range c.peers {
				f5 = f5 || p.f5
			}
			c.emit(Proposal{Kind: ProposeRenewBoot, At: epoch, F5: f5})
		} else {
			for _, p := range c.peers {
				p.decided = false
			}
		}
	case batchFinal:
		c.flushed = e.Err == nil && epoch == c.rec.Epoch
		c.flushing = c.flushed
		if e.Err != nil {
			c.retryAt = c.now + 1000
		}
	}
}

func (e PeerUp) apply(c *Core) {
	p := c.peer(e.Peer)
	if p.up && e.Session.Less(p.session) {
		return
	}
	if p.decided && p.boot != e.BootID {
		p.decided, p.f5 = false, false // a further reboot starts over [F18]
	}
	*p = peer{
		up: true, session: e.Session, boot: e.BootID, instance: e.Instance, seen: true,
		repaired: p.repaired, decided: p.decided, f5: p.f5, downSince: p.downSince, lastHeard: p.lastHeard,
	}
}

func (e PeerDown) apply(c *Core) {
	p := c.peer(e.Peer)
	if !p.up || p.session != e.Session {
		return
	}
	p.up, p.serving, p.synced, p.jobToken = false, false, false, 0
	p.announcing, p.announced = 0, 0
	p.flushed, p.flushInst = "", ""
	p.downSince = c.now
	c.peerGone(e.Peer)
}

func (e Announced) apply(c *Core) {
	p := c.peer(e.Peer)
	if !p.up || p.session != e.Session || e.Epoch != c.rec.Epoch {
		return
	}
	p.announcing = 0
	p.refused = ""
	if e.OK {
		p.announced = e.Epoch
	} else {
		c.why, p.refused = e.Error, e.Error
	}
}

func (e JobDone) apply(c *Core) {
	p := c.peer(e.Peer)
	if !p.up || p.session != e.Session || p.jobToken != e.Token || e.Token == 0 {
		return
	}
	p.jobToken = 0
	c.jobDone(e.Peer, p, e)
}

func (e PeerFailed) apply(c *Core) {
	if c.role(c.rec) != RolePrimary || c.adopted != c.rec.Epoch {
		return
	}
	switch c.rec.State {
	case StateNormal:
		if c.rec.InSync {
			c.emit(Proposal{Kind: ProposeTrip, At: c.rec.Epoch, Cause: CauseSecondaryDisk, Reason: e.Reason})
		}
	case StateCopying:
		c.emit(Proposal{Kind: ProposeAbortCopy, At: c.rec.Epoch, Cause: CauseSecondaryDisk, Reason: e.Reason})
	case StateTripping, StateFailovering, StateReversing, StateDeleted:
	}
}

func (e VolumeFailed) apply(c *Core) {
	c.failed[e.Volume] = e.Reason
	if c.answer.Epoch == c.rec.Epoch && c.answer.Epoch != 0 {
		a := c.answer
		a.Healthy, a.Error = false, "volume "+string(e.Volume)+": "+e.Reason
		c.answer = a
		c.emit(Reply{Answer: a})
	}
}

func (e VolumesMissing) apply(c *Core) { c.missing = e.Volumes }

func (e VolumeOpened) apply(*Core) {}

func (e AnnounceIn) apply(c *Core) {
	switch {
	case e.Record.Epoch < c.saved.Record.Epoch:
		c.emit(AnnounceOut{Conn: e.Conn, Record: e.Record, Newer: &c.saved.Record, Error: "a newer epoch is persisted"})
		return
	case c.role(e.Record) != RoleSecondary:
		c.emit(AnnounceOut{Conn: e.Conn, Record: e.Record, Error: "this node is not the secondary in that record"})
		return
	}
	c.announces = append(c.announces, announce{rec: e.Record, conn: e.Conn})
	if e.Record.Epoch > c.rec.Epoch {
		c.rec = e.Record
		c.newEpoch()
	}
}

func (e Tick) apply(c *Core) {
	if e.NowMs > c.now {
		c.now = e.NowMs
	}
	for id, s := range e.Peers {
		if s.LastHeardMs > c.peer(id).lastHeard {
			c.peer(id).lastHeard = s.LastHeardMs
		}
	}
	c.watchPeers(e.Peers)
}

package protocol

import (
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
)

// mustTakeBack: the record was made in sync by another life of this host, so what it had not
// flushed may be missing here [F2]; unless the node had left in sync properly [F3] [F4]. A
// directory other than the recorded one is no excuse at all.
func (c *Core) mustTakeBack() bool {
	if c.rec.InSyncEpoch == 0 || c.rec.BootIDs[c.cfg.Node] == "" {
		return false
	}
	if c.otherInstance(c.cfg.Node, c.cfg.Instance) {
		return true
	}
	return c.rec.BootIDs[c.cfg.Node] != c.cfg.BootID && !c.markValid()
}

func (c *Core) otherInstance(node lockstep.NodeID, instance string) bool {
	want := c.rec.Instances[node]
	return want != "" && want != instance
}

// recorded: the secondary is in the life and directory that the record names.
func (c *Core) recorded(id lockstep.NodeID, p *peer) bool {
	return p.boot == c.rec.BootIDs[id] && !c.otherInstance(id, p.instance)
}

func (c *Core) planPrimary() {
	r := &c.rec
	atRest := r.State == StateNormal && r.InSync
	if !c.fresh && !(atRest && r.Epoch == c.saved.Record.Epoch) {
		c.hold("waits for the store: a record read after this start is needed")
		return
	}
	if r.State == StateCopying && c.startIn == r.Epoch {
		c.hold("restarted in the middle of a synchronization: it is aborted first")
		c.propose(Proposal{Kind: ProposeAbortCopy, Cause: CauseCopyAborted, Reason: fmt.Sprintf("node %s restarted", c.cfg.Node)}) // [F19]
		return
	}
	if ok, why := c.healthy(); len(c.missing) > 0 && r.State != StateDeleted {
		// Every step would leave the missing one out: no confirmation, no new boot id, no service.
		c.hold(why)
		if r.State == StateCopying && !ok {
			c.propose(Proposal{Kind: ProposeAbortCopy, Cause: CauseCopyAborted, Reason: why})
		}
		return
	}
	if c.mustTakeBack() {
		switch r.State {
		case StateNormal, StateTripping:
			c.planTakeBack()
			return
		case StateCopying:
			c.hold("the host restarted: the synchronization is aborted first")
			c.propose(Proposal{Kind: ProposeAbortCopy, Cause: CauseCopyAborted, Reason: fmt.Sprintf("the host of node %s restarted", c.cfg.Node)})
			return
		case StateFailovering, StateReversing, StateDeleted:
		}
	}
	if c.adopted != r.Epoch {
		c.adoptPrimary()
		return
	}
	switch r.State {
	case StateTripping:
		c.reply(StepTripping, func(a *Answer) { a.Drained, a.PeersBack = c.drained && c.allRepaired(), c.peersBack() })
	case StateNormal:
		if r.InSync {
			c.serveInSync()
		}
	case StateCopying:
		c.copy()
	case StateReversing:
		c.reverse()
	case StateFailovering, StateDeleted:
	}
}

// adoptPrimary persists the epoch, with what must be durable before and in force while it is done.
func (c *Core) adoptPrimary() {
	r := &c.rec
	if c.retryAt > c.now {
		return
	}
	switch {
	case c.mode == ModeRefused:
		c.hold("this node takes over as primary")
	case c.mode == ModeTwoSided && !r.InSync:
		// What is written two-sided has no dirty bit: none of it may begin after DirtyFromIntent.
		c.hold("stops replicating: " + r.Reason)
	}
	mark := c.saved.Mark
	var steps []Durable
	switch r.State {
	case StateTripping:
		c.setMode(ModeHeld, "tripping: "+r.Reason)
		steps = append(steps, Quiesce{Remote: r.Cause == CausePause && c.adopted != 0, WithinMs: c.cfg.TripAfterMs}, Flush{})
		mark = r.Epoch
	case StateNormal:
		if r.InSync {
			mark = 0
			break
		}
		if !c.markValid() {
			steps = append(steps, Flush{})
			mark = r.Epoch
		}
		// Before the first write of one side: those mark their chunks, not the whole region.
		steps = append(append(steps, c.leftOver()...), DirtyFromIntent{})
	case StateCopying:
		if !c.markValid() {
			steps = append(steps, Flush{})
			mark = r.Epoch
		}
		steps = append(steps, c.leftOver()...)
		if fresh := c.unsynced(); len(fresh) > 0 {
			steps = append(steps, MarkAllDirty{Pairs: fresh})
		}
		steps = append(steps, DirtyFromIntent{})
	case StateFailovering:
		c.setMode(ModeHeld, "a failover to "+string(r.Secondary)+" is under way")
		steps = append(steps, Quiesce{})
	case StateReversing:
		c.setMode(ModeHeld, "a switchover to "+string(r.Secondary)+" is under way")
		steps = append(steps, Quiesce{Remote: c.adopted != 0, WithinMs: c.cfg.TripAfterMs})
	case StateDeleted:
		steps = append(steps, Quiesce{})
	}
	steps = append(steps, c.save(RolePrimary, mark))
	if r.State == StateNormal && r.InSync {
		steps = append(steps, ClearDirty{}, DropPoint{})
	}
	// Until the next in-sync commit: a reprotect, or its abort, may follow the failover so soon that
	// this node never saw the record in between.
	if !r.InSync && (r.State == StateNormal || r.State == StateCopying) && !r.Fenced {
		steps = append(steps, LeaseWait{Store: r.Forced != nil})
	}
	c.startBatch(batchAdopt, steps...)
}

// leftOver is the step by which a volume that was the copy of an earlier pair, and joins as the truth of
// a new one, goes back to its recovery point, if it still has one: it was being overwritten, and nobody
// served it in between, which would have done the same.
func (c *Core) leftOver() []Durable {
	joined := slices.DeleteFunc(c.unsynced(), func(p lockstep.PairID) bool {
		return slices.ContainsFunc(c.saved.Record.Members, func(m Member) bool { return m.Pair == p })
	})
	if len(joined) == 0 {
		return nil
	}
	return []Durable{RollBack{Pairs: joined}}
}

// unsynced lists the pairs that never were in sync in this group and have their truth here.
func (c *Core) unsynced() []lockstep.PairID {
	var pairs []lockstep.PairID
	for _, m := range c.rec.Members {
		if m.InSyncEpoch == 0 && !m.NoImage {
			pairs = append(pairs, m.Pair)
		}
	}
	return pairs
}

// afterAdopt is called once the record's epoch is in force here.
func (c *Core) afterAdopt() {
	r := &c.rec
	if c.role(*r) == RoleNone {
		c.reply(StepTold, nil)
		c.setMode(ModePlain, "")
		return
	}
	if c.role(*r) == RoleSecondary {
		c.afterAdoptSecondary()
		return
	}
	switch r.State {
	case StateNormal:
		if !r.InSync {
			c.setMode(ModeOneSided, r.Reason)
		}
		c.reply(StepAdopted, nil)
	case StateCopying:
		c.repairFree = true // marks became dirty bits: the sync covers them
		// Also where it was one-sided before: the lease of a strict group counts for one epoch [F16].
		c.setMode(ModeOneSided, "synchronizing")
	case StateFailovering:
		c.reply(StepHeld, nil)
	case StateDeleted:
		c.reply(StepTold, nil)
		c.setMode(ModePlain, "")
	case StateTripping, StateReversing:
	}
}

func (c *Core) batchFailed(epoch lockstep.Epoch, e BatchDone) {
	if epoch != c.rec.Epoch {
		return // outdated by a newer record, which need not wait
	}
	c.retryAt = c.now + 1000
	if c.rec.State == StateFailovering && c.role(c.rec) == RoleSecondary {
		// Whatever the reason (a full pool, say): it cannot take over, and nobody waits for it.
		c.reply(StepReady, func(a *Answer) { a.Healthy, a.Error = false, e.Err.Error() })
		return
	}
	if len(c.failed) == 0 {
		return
	}
	switch c.rec.State {
	case StateTripping:
		if c.role(c.rec) == RolePrimary {
			c.reply(StepTripping, func(a *Answer) { a.Healthy = false })
		}
	case StateFailovering:
	case StateReversing:
		c.reply(StepGaveUp, func(a *Answer) { a.Error = e.Err.Error() })
	case StateCopying: // after a continue, the flush before the first epoch out of sync is due here
		if c.role(c.rec) == RolePrimary {
			_, why := c.healthy()
			c.propose(Proposal{Kind: ProposeAbortCopy, Cause: CauseCopyAborted, Reason: why})
		}
	case StateNormal, StateDeleted:
	}
}

func (c *Core) peersBack() bool {
	for _, id := range c.peersOf(c.rec) {
		p := c.peer(id)
		if !p.up || !c.recorded(id, p) {
			return false
		}
	}
	return true
}

// announced makes sure that the peer has persisted the record's epoch on this session.
func (c *Core) announceTo(id lockstep.NodeID, p *peer) bool {
	if p.announced == c.rec.Epoch {
		return true
	}
	if p.announcing != c.rec.Epoch {
		p.announcing = c.rec.Epoch
		c.emit(Announce{Peer: id, Session: p.session, Record: c.rec.Clone()})
	}
	return false
}

func (c *Core) job(id lockstep.NodeID, p *peer, j Job) {
	if p.jobToken != 0 || p.retryAt > c.now {
		return
	}
	c.jobs++
	p.jobToken, p.job = c.jobs, j
	c.emit(PeerJob{Token: p.jobToken, Peer: id, Session: p.session, Job: j, Epoch: c.rec.Epoch})
}

func (c *Core) serve(id lockstep.NodeID, p *peer, m Mode) {
	if p.serving {
		return
	}
	p.serving = true
	c.mode, c.why = m, ""
	unrepaired := m == ModeTwoSided && !c.repairFree && !p.repaired
	c.emit(SetMode{Mode: m, Peer: id, Session: p.session, Epoch: c.rec.Epoch, Strict: c.rec.Strict, Unrepaired: unrepaired})
}

// repaired: after a restart of this process the regions that may differ were compared [F9].
func (c *Core) repaired(id lockstep.NodeID, p *peer) bool {
	if c.repairFree || p.repaired {
		return true
	}
	c.job(id, p, JobRepair)
	return false
}

// allRepaired: nothing is left that the life before may have left different.
func (c *Core) allRepaired() bool {
	for _, id := range c.peersOf(c.rec) {
		if !c.repairFree && !c.peer(id).repaired {
			return false
		}
	}
	return true
}

// serveInSync brings every volume to two-sided whose secondary is there under its recorded boot
// id; another boot id is a reason to trip at once. No data is sent before. After a restart it is
// repaired while it serves.
func (c *Core) serveInSync() {
	for _, id := range c.peersOf(c.rec) {
		p := c.peer(id)
		if !p.up {
			continue
		}
		if !c.recorded(id, p) {
			c.propose(Proposal{Kind: ProposeTrip, Cause: CauseSecondaryBoot, Reason: fmt.Sprintf("secondary node %s came back after a restart of its host or with another directory", id)})
			continue
		}
		if c.announceTo(id, p) {
			c.serve(id, p, ModeTwoSided)
			c.repaired(id, p)
		}
	}
}

// copy runs a copying epoch: announce, replicate new writes, send what is dirty; at zero switch to
// two-sided, send what was left, flush both sides, report [F6] [F7].
func (c *Core) copy() {
	if ok, why := c.healthy(); !ok {
		c.propose(Proposal{Kind: ProposeAbortCopy, Cause: CauseCopyAborted, Reason: why})
		return
	}
	ids := c.peersOf(c.rec)
	mode := ModeCopying
	if c.closing {
		mode = ModeCopyTwoSided
	}
	synced := 0
	for _, id := range ids {
		p := c.peer(id)
		if !p.up {
			continue
		}
		if c.reported && p.boot != c.answer.PeerBoots[id] {
			c.propose(Proposal{Kind: ProposeAbortCopy, Cause: CauseSecondaryBoot, Reason: fmt.Sprintf("secondary node %s restarted its host at the end of the synchronization", id)})
			continue
		}
		if !c.announceTo(id, p) {
			continue
		}
		c.serve(id, p, mode)
		if c.reported {
			continue
		}
		if !p.synced {
			c.job(id, p, JobResync)
			continue
		}
		synced++
	}
	if c.reported || synced < len(ids) || len(ids) == 0 {
		return
	}
	if !c.closing {
		c.closing = true
		for _, id := range ids {
			p := c.peer(id)
			p.serving, p.synced = false, false
			c.serve(id, p, ModeCopyTwoSided)
			c.job(id, p, JobResync)
		}
		return
	}
	if c.flushBoth(ids) {
		c.reported = true
		c.reply(StepTwoSided, c.peerBoots(ids))
	}
}

// flushBoth runs fdatasync here and at every secondary; true when all have answered.
func (c *Core) flushBoth(ids []lockstep.NodeID) bool {
	done := 0
	for _, id := range ids {
		p := c.peer(id)
		if p.flushed != "" {
			done++
			continue
		}
		c.job(id, p, JobFlush)
	}
	if !c.flushing && c.retryAt <= c.now {
		c.flushing, c.flushed = true, false
		c.startBatch(batchFinal, Flush{})
	}
	return done == len(ids) && c.flushed
}

func (c *Core) peerBoots(ids []lockstep.NodeID) func(*Answer) {
	return func(a *Answer) {
		a.Drained = true
		a.PeerBoots = map[lockstep.NodeID]lockstep.BootID{}
		a.PeerInstances = map[lockstep.NodeID]string{}
		for _, id := range ids {
			a.PeerBoots[id], a.PeerInstances[id] = c.peer(id).flushed, c.peer(id).flushInst
		}
	}
}

// reverse ends the old primary's part of a switchover: drained and held under the persisted epoch,
// it has both sides flushed [F12].
func (c *Core) reverse() {
	if !c.drained || c.mustTakeBack() {
		c.reply(StepGaveUp, func(a *Answer) { a.Error = "not every write reached the secondary in time" })
		return
	}
	if ok, why := c.healthy(); !ok {
		c.reply(StepGaveUp, func(a *Answer) { a.Error = why })
		return
	}
	ids := c.peersOf(c.rec)
	ready := 0
	for _, id := range ids {
		p := c.peer(id)
		if !p.up {
			continue
		}
		if !c.recorded(id, p) {
			c.reply(StepGaveUp, func(a *Answer) { a.Error = fmt.Sprintf("secondary node %s restarted its host", id) })
			return
		}
		if c.announceTo(id, p) && c.repaired(id, p) {
			ready++
		}
	}
	if ready == len(ids) && c.flushBoth(ids) {
		c.reply(StepReversed, c.peerBoots(ids))
	}
}

// planTakeBack is [F2] and [F5]: per volume, that is per secondary node, the regions are taken back
// from a secondary in its recorded life, or, where that too has restarted, the own image is kept.
// One compare-and-swap records the new boot id for all [F18].
func (c *Core) planTakeBack() {
	why := "the host restarted while in sync: the last regions are taken back from the secondary first"
	if ok, failed := c.healthy(); !ok {
		c.hold(failed)
		return
	}
	ids := c.peersOf(c.rec)
	decided := 0
	strange := c.otherInstance(c.cfg.Node, c.cfg.Instance)
	accepted := strange && c.rec.Accepted[c.cfg.Node] == c.cfg.Instance
	switch {
	case accepted: // as where both rebooted: the own image, and everything is compared
		for _, id := range ids {
			c.peer(id).decided, c.peer(id).f5 = true, true
		}
	case strange && !c.rec.InSync:
		// The newest writes were on this side only: the secondary's image must not replace them, and
		// an older copy of the directory must not pass for them.
		c.hold("the directory is not that of the last in-sync commit, and the newest writes were on this side alone: an operator must say whether it counts (accept-directory)")
		return
	case strange:
		why = "the directory is not that of the last in-sync commit: everything is taken back from the secondary first"
	}
	for _, id := range ids {
		p := c.peer(id)
		switch {
		case p.decided:
			decided++
		case !p.up && c.rec.Lost[id] != 0 && c.rec.Lost[id] == c.rec.InSyncEpoch:
			if strange {
				why = fmt.Sprintf("the directory is not that of the last in-sync commit, and secondary node %s was given up: no side is known to be complete", id)
				continue
			}
			p.decided, p.f5 = true, true // an operator gave it up
			decided++
		case !p.up:
		case !c.recorded(id, p) && strange:
			// The own image is not the one that was in sync, it may be empty; the other may lack what
			// was not flushed. Neither may overwrite the other: this is for people to decide.
			why = fmt.Sprintf("the directory is not that of the last in-sync commit, and secondary node %s has restarted since: neither side is known to be complete", id)
		case !c.recorded(id, p):
			p.decided, p.f5 = true, true
			decided++
		case strange:
			c.job(id, p, JobTakeBackAll)
		default:
			c.job(id, p, JobTakeBack)
		}
	}
	c.hold(why)
	if decided == len(ids) && c.retryAt <= c.now {
		c.retryAt = c.now + 1000
		steps := []Durable{Flush{}}
		if accepted {
			all := MarkAllDirty{}
			for _, m := range c.rec.Members {
				all.Pairs = append(all.Pairs, m.Pair)
			}
			steps = append(steps, all)
		}
		c.startBatch(batchRenew, steps...)
	}
}

func (c *Core) jobDone(id lockstep.NodeID, p *peer, e JobDone) {
	if e.Err != nil {
		c.why = e.Err.Error()
		p.retryAt = c.now + 500
		return // plan starts it again; a dead session ends by PeerDown
	}
	switch p.job {
	case JobRepair:
		p.repaired = true
	case JobTakeBack, JobTakeBackAll:
		p.decided, p.f5 = true, false
	case JobResync:
		p.synced = true
	case JobFlush:
		p.flushed, p.flushInst = e.BootID, e.Instance
	}
}

// peerGone falls back to one-sided where the group is copying and has not reported [F7]; in sync
// the requests wait.
func (c *Core) peerGone(id lockstep.NodeID) {
	if c.rec.State != StateCopying || c.adopted != c.rec.Epoch || c.reported || c.role(c.rec) != RolePrimary {
		return
	}
	if c.closing {
		c.closing, c.flushing, c.flushed = false, false, false
		if c.batchFor != 0 && c.batchKind == batchFinal {
			c.token++ // the flush under way began before what is sent again
			c.batchFor = 0
		}
		for _, other := range c.peersOf(c.rec) {
			p := c.peer(other)
			p.serving, p.synced, p.flushed, p.jobToken = false, false, "", 0
		}
	}
	c.mode = ModeOneSided
	c.emit(SetMode{Mode: ModeOneSided, Peer: id, Epoch: c.rec.Epoch, Why: "secondary node " + string(id) + " is away", Strict: c.rec.Strict})
}

// watchPeers turns silence into a request to trip, or to give a synchronization up.
func (c *Core) watchPeers(signs map[lockstep.NodeID]PeerSign) {
	r := &c.rec
	if c.role(*r) != RolePrimary || c.adopted != r.Epoch {
		return
	}
	copying := r.State == StateCopying
	if !copying && !(r.State == StateNormal && r.InSync) {
		return
	}
	for _, id := range c.peersOf(*r) {
		why := c.silent(id, signs[id])
		if why == "" {
			continue
		}
		why = fmt.Sprintf("secondary node %s: %s for %d ms", id, why, c.cfg.TripAfterMs)
		if copying {
			c.propose(Proposal{Kind: ProposeAbortCopy, Cause: CauseCopyAborted, Reason: why})
		} else {
			c.propose(Proposal{Kind: ProposeTrip, Cause: CauseLink, Reason: why})
		}
		return
	}
}

func (c *Core) silent(id lockstep.NodeID, s PeerSign) string {
	p := c.peer(id)
	late := func(since int64) bool { return c.now-max(since, c.adoptedAt) > c.cfg.TripAfterMs }
	switch {
	case !p.serving && p.jobToken == 0 && p.up && p.refused != "" && late(0):
		return "it does not take part (" + p.refused + ")"
	case !p.serving && p.jobToken == 0 && late(p.downSince):
		return "no replication link"
	case late(p.lastHeard):
		return "no heartbeat answer"
	case s.OldestUnackedMs != 0 && late(s.OldestUnackedMs):
		return "no acknowledgement"
	}
	return ""
}

package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// tickEvery is how often a group looks at the time.
const tickEvery = 100 * time.Millisecond

// runningJob is a protocol.PeerJob under way, or over.
type runningJob struct {
	epoch lockstep.Epoch
	done  chan struct{} // closed at its end
}

// Group is one group on one node: the thin loop around a protocol.Core. One goroutine owns the
// core; everybody else posts events.
type Group struct {
	id   lockstep.GroupID
	key  uint64
	host *Host
	log  *slog.Logger

	core  *protocol.Core // owned by run
	epoch atomic.Uint64  // newest epoch known
	batch *batch         // owned by run; the newest one
	// epochCtx ends with the epoch; owned by run, as is endEpoch.
	epochCtx context.Context
	endEpoch context.CancelFunc
	jobs     sync.WaitGroup
	lastJob  map[lockstep.NodeID]runningJob // owned by run; the newest one with that node

	boxMu sync.Mutex
	box   []protocol.Event // guarded by boxMu
	wake  chan struct{}    // capacity 1: something is in the box

	mu      sync.Mutex // guards what follows
	view    View
	vols    map[uint64]*Volume                    // by wire key: the members' replicas on this node
	peerOf  map[lockstep.VolumeID]lockstep.NodeID // at the other side
	pairOf  map[lockstep.VolumeID]lockstep.PairID
	missing []lockstep.VolumeID // members on this node that are not in the pool, sorted
	dialers map[lockstep.NodeID]*dialer
	leases  map[lockstep.NodeID]*lease
	differs map[lockstep.NodeID]wire.AnnounceReply // last answers to announcements
	answers chan protocol.Answer                   // capacity 1, newest wins
	// storeLease is the right to serve without a secondary where the policy is strict [F16].
	storeLease *lease
	asking     map[proposalKey]bool // proposals under way

	discarded []lockstep.Epoch // owned by run: divergence images that are removed, or being so

	in     inbox // the secondary's side
	verify verifier
	limit  *limit // of its synchronizations on this node, beside the node's
	synced meter  // what they get done
	// pointNeeds is the room that the recovery point of the newest announced copying epoch may need.
	pointNeeds atomic.Int64

	ctx  context.Context
	stop context.CancelFunc
	done chan struct{}
}

// View is what a group tells people and statuses.
type View struct {
	Record  protocol.Record
	Saved   protocol.Saved
	Role    protocol.Role
	Mode    protocol.Mode
	Why     string
	Adopted bool
}

func newGroup(h *Host, id lockstep.GroupID, saved protocol.Saved) *Group {
	ctx, stop := context.WithCancel(h.ctx)
	g := &Group{
		id: id, key: wire.Key(id), host: h, log: h.log.With("group", id), wake: make(chan struct{}, 1),
		core: protocol.NewCore(protocol.Config{
			Node: h.cfg.Node, AZ: h.cfg.AZ, BootID: h.cfg.BootID, Instance: h.cfg.Instance, Start: h.cfg.Start,
			TripAfterMs: h.cfg.TripAfter.Milliseconds(),
		}, saved, h.now().Milliseconds()),
		vols: map[uint64]*Volume{}, peerOf: map[lockstep.VolumeID]lockstep.NodeID{}, pairOf: map[lockstep.VolumeID]lockstep.PairID{}, dialers: map[lockstep.NodeID]*dialer{},
		leases: map[lockstep.NodeID]*lease{}, differs: map[lockstep.NodeID]wire.AnnounceReply{},
		answers: make(chan protocol.Answer, 1), ctx: ctx, stop: stop, done: make(chan struct{}),
		endEpoch: func() {}, lastJob: map[lockstep.NodeID]runningJob{}, storeLease: newLease(h.cfg.Clock), asking: map[proposalKey]bool{},
		limit: newLimit(0),
	}
	g.verify.g = g
	g.in.init(g, saved.Record.Epoch)
	g.epoch.Store(uint64(saved.Record.Epoch))
	return g
}

func (g *Group) post(ev protocol.Event) {
	g.boxMu.Lock()
	g.box = append(g.box, ev)
	g.boxMu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (g *Group) epochNow() lockstep.Epoch { return lockstep.Epoch(g.epoch.Load()) }

// passOn takes a record that a peer sent.
func (g *Group) passOn(raw json.RawMessage) {
	var r protocol.Record
	if err := json.Unmarshal(raw, &r); err != nil || r.Group != g.id {
		g.log.Warn("a peer passed on a record that cannot be read", "err", err)
		return
	}
	g.post(protocol.RecordRead{Record: r})
}

func (g *Group) volumeByKey(key uint64) *Volume {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.vols[key]
}

func (g *Group) volumes() []*Volume {
	g.mu.Lock()
	defer g.mu.Unlock()
	vols := make([]*Volume, 0, len(g.vols))
	for _, v := range g.vols {
		vols = append(vols, v)
	}
	return vols
}

// complete says which member is not in the pool: without it no step would be what its answer says.
func (g *Group) complete() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.missing) > 0 {
		return fmt.Errorf("volume %s is not in the pool, or cannot be opened: %w", g.missing[0], lockstep.ErrNotFound)
	}
	return nil
}

// volumesAt lists the volumes whose other side is that node.
func (g *Group) volumesAt(peer lockstep.NodeID) []*Volume {
	var at []*Volume
	for _, v := range g.volumes() {
		g.mu.Lock()
		ok := peer == "" || g.peerOf[v.id] == peer
		g.mu.Unlock()
		if ok {
			at = append(at, v)
		}
	}
	return at
}

// run owns the core until the group is stopped.
func (g *Group) run() {
	defer close(g.done)
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	var writer sync.WaitGroup
	writer.Go(g.writeAnswers)
	defer func() {
		g.verify.close()
		g.stopDialers(nil)
		g.in.closeAll()
		if g.batch != nil {
			g.batch.cancel()
			<-g.batch.done
		}
		g.jobs.Wait()
		writer.Wait()
	}()
	g.step(g.tick())
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-ticker.C:
			g.step(g.tick())
		case <-g.wake:
		}
		g.boxMu.Lock()
		box := g.box
		g.box = nil
		g.boxMu.Unlock()
		for _, ev := range box {
			g.step(ev)
		}
	}
}

func (g *Group) tick() protocol.Tick {
	t := protocol.Tick{NowMs: g.host.now().Milliseconds(), Peers: map[lockstep.NodeID]protocol.PeerSign{}}
	oldest := map[lockstep.NodeID]time.Duration{}
	older := func(id lockstep.NodeID, at time.Duration) {
		if at != 0 && (oldest[id] == 0 || at < oldest[id]) {
			oldest[id] = at
		}
	}
	for _, v := range g.volumes() {
		g.mu.Lock()
		id := g.peerOf[v.id]
		g.mu.Unlock()
		older(id, v.oldestUnacked())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, d := range g.dialers {
		if l := d.current(); l != nil {
			older(id, l.oldest())
			if l.stuck() {
				l.close()
			}
		}
		t.Peers[id] = protocol.PeerSign{LastHeardMs: g.host.lastHeard(id).Milliseconds(), OldestUnackedMs: oldest[id].Milliseconds()}
	}
	return t
}

// step feeds one event and carries out what comes of it, in order.
func (g *Group) step(ev protocol.Event) {
	var joined []*Volume
	if v, ok := ev.(protocol.RecordRead); ok {
		// The members of an older store are not those of now: one that joined since must not leave.
		if !g.core.ShowsOlderStore(v) {
			joined = g.bindVolumes(v.Record)
		}
	} else if v, ok := ev.(protocol.AnnounceIn); ok {
		joined = g.bindVolumes(v.Record)
	} else if _, ok := ev.(protocol.VolumeOpened); ok {
		joined = g.bindVolumes(g.core.Record())
	}
	acts := g.core.Step(ev)
	if e := uint64(g.core.Record().Epoch); g.epoch.Swap(e) != e || g.epochCtx == nil {
		g.endEpoch()
		g.epochCtx, g.endEpoch = context.WithCancel(g.ctx)
	}
	for _, a := range acts {
		g.do(a)
	}
	role, mode, why := g.core.Status()
	if mode == protocol.ModeRefused { // said once, to those that were there
		for _, v := range joined {
			v.setMode(mode, g.core.Record().Epoch, nil, nil, why)
		}
	}
	view := View{Record: g.core.Record(), Saved: g.core.Saved(), Role: role, Mode: mode, Why: why, Adopted: g.core.Adopted()}
	g.mu.Lock()
	changed := view.Record.Epoch != g.view.Record.Epoch || view.Mode != g.view.Mode || view.Role != g.view.Role || view.Adopted != g.view.Adopted
	g.view = view
	g.mu.Unlock()
	g.verify.seen(view)
	g.discardImages(view)
	if changed {
		g.log.Info("group", "epoch", view.Record.Epoch, "state", view.Record.State, "in_sync", view.Record.InSync, "role", role, "mode", mode, "adopted", view.Adopted, "why", why)
		g.wantDialers(view)
		g.host.cfg.Changed(g.id)
	}
}

// members lists this node's replicas in a record.
func (g *Group) members(r protocol.Record) map[lockstep.VolumeID]protocol.Member {
	ours := map[lockstep.VolumeID]protocol.Member{}
	if r.State == protocol.StateDeleted {
		return ours
	}
	for _, m := range r.Members {
		for _, rep := range m.Replicas {
			if rep.Node == g.host.cfg.Node {
				ours[rep.Volume] = m
			}
		}
	}
	return ours
}

// hasMember reports whether a volume of this node is a member, by what is persisted or known.
func (g *Group) hasMember(id lockstep.VolumeID) bool {
	g.mu.Lock()
	saved, known := g.view.Saved.Record, g.view.Record
	g.mu.Unlock()
	_, ok := g.members(saved)[id]
	if !ok {
		_, ok = g.members(known)[id]
	}
	return ok
}

// mayMake reports whether the files of a volume may be made: it is no member, or the directory is
// another one than the record names, and the other side has an image that replaces this one: as a
// secondary always, as a primary only in sync.
func (g *Group) mayMake(id lockstep.VolumeID) bool {
	if !g.hasMember(id) {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.view.Record
	recorded := r.Instances[g.host.cfg.Node]
	return recorded != "" && recorded != g.host.cfg.Instance && (g.view.Role == protocol.RoleSecondary || r.InSync)
}

// bindVolumes ties the volumes of a newer record to this group, with their announced sizes, and
// lets those go that left it. It gives those that joined, which are held.
func (g *Group) bindVolumes(r protocol.Record) (joined []*Volume) {
	if r.Epoch < g.core.Record().Epoch || r.Epoch < g.core.Saved().Record.Epoch {
		return nil
	}
	ours := g.members(r)
	var left []*Volume
	var missing []lockstep.VolumeID
	g.mu.Lock()
	for id, m := range ours {
		v := g.host.volume(id)
		if v == nil {
			missing = append(missing, id)
			continue
		}
		v.size.Store(m.SizeBytes)
		if key := wire.Key(m.Pair); g.vols[key] == nil {
			g.vols[key] = v
			joined = append(joined, v)
		}
		g.pairOf[id] = m.Pair
		for _, rep := range m.Replicas {
			if rep.Volume != id {
				g.peerOf[id] = rep.Node
			}
		}
	}
	for key, v := range g.vols {
		if _, ok := ours[v.id]; !ok {
			delete(g.vols, key)
			left = append(left, v)
		}
	}
	slices.Sort(missing)
	changed := !slices.Equal(missing, g.missing)
	g.missing = missing
	g.mu.Unlock()
	if changed { // known to the core before it sees the record: no step may leave one out
		g.log.Warn("member volumes that are not in the pool", "volumes", missing)
		for _, a := range g.core.Step(protocol.VolumesMissing{Volumes: missing}) {
			g.do(a)
		}
	}
	for _, v := range joined {
		g.host.attach(v, g, ours[v.id].Pair)
		if err := v.failedNow(); err != nil { // before it joined: the group was not told
			g.volumeFailed(v, err)
		} else if err := v.disk.Failed(); err != nil { // in an earlier run
			_ = v.broken(err)
		}
	}
	for _, v := range left {
		g.host.detach(v, g)
	}
	return joined
}

// wantDialers keeps links to all secondaries while this node is primary.
func (g *Group) wantDialers(v View) {
	want := map[lockstep.NodeID]bool{}
	if v.Role == protocol.RolePrimary && v.Record.State != protocol.StateDeleted {
		for _, id := range v.Record.PeersOf(g.host.cfg.Node, g.host.cfg.AZ) {
			want[id] = true
		}
	}
	g.stopDialers(want)
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range want {
		if g.dialers[id] == nil {
			ctx, stop := context.WithCancel(g.ctx)
			d := &dialer{group: g, peer: id, stop: stop, done: make(chan struct{})}
			g.dialers[id] = d
			g.leases[id] = newLease(g.host.cfg.Clock)
			g.host.heartbeatTo(id)
			go d.run(ctx)
		}
	}
}

func (g *Group) stopDialers(keep map[lockstep.NodeID]bool) {
	g.mu.Lock()
	var stopped []*dialer
	for id, d := range g.dialers {
		if !keep[id] {
			d.stop()
			stopped = append(stopped, d)
			delete(g.dialers, id)
		}
	}
	g.mu.Unlock()
	for _, d := range stopped {
		<-d.done
	}
}

// linkTo gives the live link of that session, or one that is dead: its loss is reported already.
func (g *Group) linkTo(peer lockstep.NodeID, session lockstep.Session) (*link, *lease) {
	g.mu.Lock()
	defer g.mu.Unlock()
	le := g.leases[peer]
	if d := g.dialers[peer]; d != nil {
		if l := d.current(); l != nil && l.session == session {
			return l, le
		}
	}
	if le == nil {
		le = newLease(g.host.cfg.Clock)
	}
	down := make(chan struct{})
	close(down)
	return &link{group: g, peer: peer, session: session, dead: true, down: down}, le
}

// do carries out one action. It never waits for a peer or the store.
func (g *Group) do(a protocol.Action) {
	switch a := a.(type) {
	case protocol.SetMode:
		var l *link
		var le *lease
		if replicates(a.Mode) {
			l, le = g.linkTo(a.Peer, a.Session)
		}
		if a.Mode == protocol.ModeOneSided || a.Mode == protocol.ModeCopying {
			le = nil
			if a.Strict {
				le = g.storeLease
			}
		}
		for _, v := range g.volumesAt(a.Peer) {
			if a.Unrepaired {
				v.loadUnrepaired()
			}
			mode, why := a.Mode, a.Why
			if pair := g.withoutImage(v); pair != "" && mode != protocol.ModePlain {
				mode, why = protocol.ModeRefused, noImage(pair)
			}
			v.setMode(mode, a.Epoch, l, le, why)
		}
	case protocol.Batch:
		g.startBatch(a)
	case protocol.Announce:
		g.jobs.Go(func() { g.announce(a) })
	case protocol.AnnounceOut:
		g.in.answerAnnounce(a)
	case protocol.PeerJob:
		// One after the other: an older job, whose link or epoch has ended, must not have a write to
		// the local disk under way when a newer one has done its part.
		ctx, prev, done := g.epochCtx, g.lastJob[a.Peer].done, make(chan struct{})
		g.lastJob[a.Peer] = runningJob{epoch: a.Epoch, done: done}
		g.jobs.Go(func() {
			defer close(done)
			if prev != nil {
				<-prev
			}
			g.runJob(ctx, a)
		})
	case protocol.Reply:
		select {
		case <-g.answers:
		default:
		}
		g.answers <- a.Answer
	case protocol.Proposal:
		g.jobs.Go(func() { g.propose(a) })
	}
}

// writeAnswers puts the newest answer into the store, again and again until it is there.
func (g *Group) writeAnswers() {
	var pending *protocol.Answer
	retry := time.NewTicker(300 * time.Millisecond)
	defer retry.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case a := <-g.answers:
			pending = &a
		case <-retry.C:
			g.mu.Lock()
			tripping := g.view.Role == protocol.RolePrimary && g.view.Record.State == protocol.StateTripping
			g.mu.Unlock()
			if tripping && pending == nil { // a trip needs no controller
				if err := g.host.cfg.Store.Advance(g.ctx, g.id); err != nil {
					g.log.Debug("advance", "err", err)
				}
			}
			if pending == nil {
				continue
			}
		}
		if err := g.host.cfg.Store.PutAnswer(g.ctx, *pending); err != nil {
			g.log.Warn("write answer", "epoch", pending.Epoch, "step", pending.Step, "err", err)
			continue
		}
		step := pending.Step
		pending = nil
		if step == protocol.StepTripping {
			if err := g.host.cfg.Store.Advance(g.ctx, g.id); err != nil {
				g.log.Debug("advance", "err", err)
			}
		}
	}
}

// proposalKey tells proposals apart: the same one is made once at a time.
type proposalKey struct {
	kind protocol.ProposalKind
	at   lockstep.Epoch
	f5   bool
}

// propose tries a transition by compare-and-swap, again and again while the store does not answer
// and the epoch is the same: some reasons (a secondary's negative answer) come once only. The
// outcome is learned by reading the record.
func (g *Group) propose(p protocol.Proposal) {
	key := proposalKey{p.Kind, p.At, p.F5}
	g.mu.Lock()
	under := g.asking[key]
	g.asking[key] = true
	g.mu.Unlock()
	if under {
		return
	}
	defer func() {
		g.mu.Lock()
		delete(g.asking, key)
		g.mu.Unlock()
	}()
	g.log.Warn("asks for a transition", "kind", p.Kind, "epoch", p.At, "cause", p.Cause, "reason", p.Reason)
	for {
		err := g.tryPropose(p)
		var refused *protocol.RefusedError
		if err == nil || errors.As(err, &refused) {
			return
		}
		g.log.Warn("transition not made", "kind", p.Kind, "epoch", p.At, "err", err)
		select {
		case <-time.After(300 * time.Millisecond):
		case <-g.ctx.Done():
			return
		}
		if g.epochNow() != p.At {
			return
		}
	}
}

func (g *Group) tryPropose(p protocol.Proposal) error {
	ctx, cancel := context.WithTimeout(g.ctx, 3*time.Second)
	defer cancel()
	return g.host.cfg.Store.Propose(ctx, g.id, func(r protocol.Record) (protocol.Record, error) {
		switch p.Kind {
		case protocol.ProposeTrip:
			return r.Trip(p.At, p.Cause, p.Reason)
		case protocol.ProposeAbortCopy:
			return r.AbortCopy(p.At, p.Cause, p.Reason)
		case protocol.ProposeRenewBoot:
			return r.RenewBoot(p.At, g.host.cfg.Node, g.host.cfg.BootID, g.host.cfg.Instance, p.F5)
		}
		return r, nil
	})
}

// announce tells a secondary an epoch and waits until it is persisted there.
func (g *Group) announce(a protocol.Announce) {
	l, _ := g.linkTo(a.Peer, a.Session)
	done := protocol.Announced{Peer: a.Peer, Session: a.Session, Epoch: a.Record.Epoch}
	raw, err := json.Marshal(a.Record)
	if err == nil {
		var body []byte
		ask := wire.Announce{Record: raw}
		if a.Record.State == protocol.StateCopying {
			for _, v := range g.volumesAt(a.Peer) {
				ask.DirtyBytes += v.disk.DirtyBytes()
			}
		}
		if body, err = json.Marshal(ask); err == nil {
			var r reply
			if r, err = l.ask(g.ctx, wire.Header{Kind: wire.KindAnnounce, Epoch: a.Record.Epoch}, body); err == nil {
				var answer wire.AnnounceReply
				if err = wire.DecodeJSON(r.body, &answer); err == nil {
					done.OK, done.Error = answer.OK, answer.Error
					if answer.Record != nil {
						g.passOn(answer.Record)
					}
					g.mu.Lock()
					g.differs[a.Peer] = answer
					g.mu.Unlock()
				}
			}
		}
	}
	if err != nil {
		done.Error = err.Error()
		select { // the loss of the link is reported by its reader: until then nobody asks again at once
		case <-time.After(tickEvery):
		case <-g.ctx.Done():
		}
	}
	g.post(done)
}

package protocol

import (
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/internal/invariant"
)

// Role is a node's part in a group, decided by its AZ and the record.
type Role string

// Roles.
const (
	RoleNone      Role = ""
	RolePrimary   Role = "primary"
	RoleSecondary Role = "secondary"
)

// Mode is how a volume's requests are treated. It belongs to a volume; volumes with the same
// secondary node change together.
type Mode string

// Modes.
const (
	ModeHeld         Mode = "held"           // requests wait
	ModeOneSided     Mode = "one-sided"      // own copy only, dirty tracking
	ModeTwoSided     Mode = "two-sided"      // both copies; reads under the lease
	ModeCopying      Mode = "copying"        // both copies, or own copy only where the chunk is still to be sent
	ModeCopyTwoSided Mode = "copy-two-sided" // as two-sided, at the end of a copying epoch
	ModePlain        Mode = "plain"          // not in a group any more
	ModeRefused      Mode = "refused"        // demoted or never primary: ESHUTDOWN
)

// Saved is the group's file on a node: what it has persisted. Every epoch a node has seen is
// persisted before it is acted on, and a node never goes back to an older one.
type Saved struct {
	Format int             `json:"format"`
	Record Record          `json:"record"` // Record.Epoch is the persisted epoch
	Role   Role            `json:"role"`
	Mark   lockstep.Epoch  `json:"mark"` // the node left in sync properly at this epoch [F3]; 0: no mark
	BootID lockstep.BootID `json:"boot_id"`
}

// SavedFormat is the version of Saved this build writes; a newer one is refused.
const SavedFormat = 1

// Config is what a Core is told once. Times are in milliseconds of the caller's clock.
type Config struct {
	Node     lockstep.NodeID
	AZ       lockstep.AZ
	BootID   lockstep.BootID
	Instance string
	Start    uint64
	// TripAfterMs is how long a secondary may be silent before the group trips.
	TripAfterMs int64
}

// peer is a node at the other side of one or more of this node's volumes.
type peer struct {
	up       bool
	session  lockstep.Session
	boot     lockstep.BootID
	instance string
	seen     bool // a hello was answered in this process life

	announcing lockstep.Epoch // on this session
	announced  lockstep.Epoch // on this session
	jobToken   uint64         // of the running job, 0: none
	job        Job
	repaired   bool   // F9 repair done in this process life, and nothing since undid it
	serving    bool   // SetMode with its serving mode was emitted at this epoch and session
	synced     bool   // resync at zero on this session
	refused    string // why it does not take the record's epoch, if it said so
	flushed    lockstep.BootID
	flushInst  string
	decided    bool // F2/F5
	f5         bool

	downSince int64
	retryAt   int64 // no job before
	lastHeard int64 // last heartbeat answer
}

// Core is one group on one node. It is not safe for concurrent use.
type Core struct {
	cfg   Config
	saved Saved
	rec   Record
	fresh bool // rec was read from the store by a read begun after this process started
	lost  bool // the store has neither record nor tombstone
	// behind: the store's epoch, when it was found to be older than what is persisted here, or not to
	// follow from it: the store was restored from an older copy. Only a record that was recovered since
	// ends that. 0: it is not.
	behind lockstep.Epoch

	now       int64
	token     uint64
	batchFor  lockstep.Epoch // epoch of the running batch; 0: none runs
	batchKind batchKind
	adopted   lockstep.Epoch // epoch whose batch is done in this process life
	adoptedAt int64
	startIn   lockstep.Epoch // epoch persisted when this process started

	peers  map[lockstep.NodeID]*peer
	failed map[lockstep.VolumeID]string
	// missing: members on this node that are not in its pool; nothing is done for the group as primary.
	missing []lockstep.VolumeID

	drained    bool
	repairFree bool // nothing can differ but what is in flight: F9 has nothing to do
	retryAt    int64
	jobs       uint64
	announced  lockstep.Epoch // secondary: epoch persisted by an announcement in this process life
	closing    bool           // copying: all switched to copy-two-sided
	flushing   bool           // copying/reversing: local final flush runs or is done
	flushed    bool
	reported   bool // copying: the two-sided report was handed out

	answer    Answer // last one emitted
	proposed  int64  // time of the last proposal, for pacing
	mode      Mode   // last group-wide mode, for people
	why       string
	announces []announce // waiting for the batch that persists their epoch
	acts      []Action
}

type batchKind int

const (
	batchAdopt batchKind = iota
	batchAnnounce
	batchRenew
	batchFinal
)

type announce struct {
	rec  Record
	conn uint64
}

// NewCore makes the state machine of one group on one node from what the node had persisted
// (the zero Saved if nothing). Nothing is served until events say that it may be.
func NewCore(cfg Config, saved Saved, now int64) *Core {
	return &Core{
		cfg: cfg, saved: saved, rec: saved.Record, startIn: saved.Record.Epoch, now: now,
		peers: map[lockstep.NodeID]*peer{}, failed: map[lockstep.VolumeID]string{}, mode: ModeHeld,
	}
}

// Saved returns what is persisted.
func (c *Core) Saved() Saved { return c.saved }

// Record returns the newest record the node knows.
func (c *Core) Record() Record { return c.rec }

// Status is for people: the mode requests meet, and why.
func (c *Core) Status() (role Role, mode Mode, why string) { return c.role(c.rec), c.mode, c.why }

// Adopted reports whether the newest known record is in force on this node.
func (c *Core) Adopted() bool { return c.adopted == c.rec.Epoch && c.batchFor == 0 }

func (c *Core) role(r Record) Role {
	if r.Epoch == 0 {
		return RoleNone
	}
	for _, m := range r.Members {
		for _, rep := range m.Replicas {
			if rep.Node != c.cfg.Node {
				continue
			}
			if rep.AZ == r.Primary {
				return RolePrimary
			}
			return RoleSecondary
		}
	}
	return RoleNone
}

func (c *Core) emit(a Action) { c.acts = append(c.acts, a) }

func (c *Core) setMode(m Mode, why string) {
	c.mode, c.why = m, why
	c.emit(SetMode{Mode: m, Epoch: c.rec.Epoch, Why: why, Strict: c.rec.Strict})
}

// Step takes one event and returns the actions to carry out, in their order.
func (c *Core) Step(ev Event) []Action {
	c.acts = nil
	persisted := c.saved.Record.Epoch
	ev.apply(c)
	c.plan()
	invariant.Check(func() string { return c.broken(persisted) })
	acts := c.acts
	c.acts = nil
	return acts
}

// broken says what must not be after any event; persisted is the epoch that was before it.
func (c *Core) broken(persisted lockstep.Epoch) string {
	if c.saved.Record.Epoch < persisted {
		return fmt.Sprintf("the persisted epoch went back from %d to %d", persisted, c.saved.Record.Epoch)
	}
	for _, a := range c.acts {
		m, ok := a.(SetMode)
		if !ok || m.Mode == ModeHeld || m.Mode == ModeRefused || m.Mode == ModePlain {
			continue
		}
		twoSided := m.Mode == ModeTwoSided
		switch {
		case c.role(c.rec) != RolePrimary:
			return fmt.Sprintf("mode %s at a node that is not the primary of epoch %d", m.Mode, c.rec.Epoch)
		case c.saved.Record.Epoch != c.rec.Epoch || m.Epoch != c.rec.Epoch:
			return fmt.Sprintf("mode %s at epoch %d, persisted is %d, known %d", m.Mode, m.Epoch, c.saved.Record.Epoch, c.rec.Epoch)
		case twoSided != c.rec.InSync:
			return fmt.Sprintf("mode %s while %s", m.Mode, c.rec.Describe())
		case len(c.missing) > 0 || c.behind != 0 || c.lost:
			return fmt.Sprintf("mode %s with members missing %v, the store behind %d, lost %v", m.Mode, c.missing, c.behind, c.lost)
		case twoSided && c.mustTakeBack():
			return "two-sided before the last regions were taken back"
		}
	}
	return ""
}

// plan decides what has to happen next, from the facts alone. It is called after every event, so
// a lost or late event delays and never misleads.
func (c *Core) plan() {
	if c.rec.Epoch == 0 || c.batchFor != 0 && c.batchFor >= c.rec.Epoch {
		return
	}
	if c.lost {
		c.hold("the store has neither a record nor a tombstone of this group: quarantined")
		return
	}
	if c.behind != 0 {
		c.dropOldAnnounces()
		why := fmt.Sprintf("the store's epoch %d is older than the persisted epoch %d: the store was restored from an older copy, and nothing is served until lockstep store recover", c.behind, c.saved.Record.Epoch)
		if c.behind >= c.saved.Record.Epoch {
			why = fmt.Sprintf("the store's epoch %d contradicts the persisted epoch %d: the store was restored from an older copy and has gone on from there, and nothing is served until lockstep store recover", c.behind, c.saved.Record.Epoch)
		}
		if c.role(c.saved.Record) != RoleSecondary {
			c.hold(why)
		} else if c.mode != ModeRefused || c.why != why {
			c.setMode(ModeRefused, why)
		}
		return
	}
	c.dropOldAnnounces()
	switch c.role(c.rec) {
	case RolePrimary:
		c.planPrimary()
	case RoleSecondary:
		c.planSecondary()
	case RoleNone:
		c.planNone()
	}
}

func (c *Core) hold(why string) {
	if c.mode != ModeHeld || c.why != why {
		c.setMode(ModeHeld, why)
	}
}

// planNone: this node's volumes left the group. They are served, or refused, as the volumes' own
// records say; here the epoch is persisted and confirmed.
func (c *Core) planNone() {
	if c.adopted == c.rec.Epoch || !c.fresh {
		return
	}
	c.startBatch(batchAdopt, Quiesce{}, c.save(RoleNone, 0))
}

func (c *Core) save(role Role, mark lockstep.Epoch) Save {
	return Save{Saved: Saved{Format: SavedFormat, Record: c.rec, Role: role, Mark: mark, BootID: c.cfg.BootID}}
}

func (c *Core) startBatch(kind batchKind, steps ...Durable) {
	c.token++
	c.batchFor, c.batchKind = c.rec.Epoch, kind
	c.emit(Batch{Token: c.token, Steps: steps})
}

// markValid: the node left in sync properly, at an epoch newer than the last in-sync commit [F4].
func (c *Core) markValid() bool { return c.saved.Mark > c.rec.InSyncEpoch }

func (c *Core) peersOf(r Record) []lockstep.NodeID {
	return r.PeersOf(c.cfg.Node, c.cfg.AZ)
}

func (c *Core) peer(id lockstep.NodeID) *peer {
	p := c.peers[id]
	if p == nil {
		p = &peer{downSince: c.now, lastHeard: c.now}
		c.peers[id] = p
	}
	return p
}

func (c *Core) healthy() (bool, string) {
	if len(c.missing) > 0 {
		return false, fmt.Sprintf("volume %s is not in the pool, or cannot be opened", c.missing[0])
	}
	if len(c.failed) == 0 {
		return true, ""
	}
	vols := make([]lockstep.VolumeID, 0, len(c.failed))
	for v := range c.failed {
		vols = append(vols, v)
	}
	slices.Sort(vols)
	return false, fmt.Sprintf("volume %s: %s", vols[0], c.failed[vols[0]])
}

// reply hands out an answer at the record's epoch, once; a change of content makes a new one.
func (c *Core) reply(step Step, fill func(*Answer)) {
	ok, why := c.healthy()
	a := Answer{
		Group: c.rec.Group, Node: c.cfg.Node, Epoch: c.rec.Epoch, Step: step, BootID: c.cfg.BootID,
		Instance: c.cfg.Instance, Start: c.cfg.Start, Healthy: ok, Error: why,
	}
	if fill != nil {
		fill(&a)
	}
	if !sameAnswer(a, c.answer) {
		c.answer = a
		c.emit(Reply{Answer: a})
	}
}

func sameAnswer(a, b Answer) bool {
	if len(a.PeerBoots) != len(b.PeerBoots) {
		return false
	}
	for k, v := range a.PeerBoots {
		if b.PeerBoots[k] != v {
			return false
		}
	}
	return a.Epoch == b.Epoch && a.Step == b.Step && a.Healthy == b.Healthy && a.Drained == b.Drained && a.PeersBack == b.PeersBack && a.Error == b.Error
}

// propose asks the caller for a compare-and-swap; at most one each second, since the record's
// change, or its absence, is what counts.
func (c *Core) propose(p Proposal) {
	if c.proposed != 0 && c.now-c.proposed < 1000 && c.now >= c.proposed {
		return
	}
	c.proposed = c.now
	p.At = c.rec.Epoch
	c.emit(p)
}

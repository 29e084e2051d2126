package protocol

import "github.com/lockstep-dr/lockstep"

// Action is something the caller must do. The actions of one Step are begun in their order:
// a SetMode takes effect before anything after it begins, and a Batch's steps are done one after
// the other, each durable before the next begins. That order is the durability promise: an answer
// is handed out only after the batch that makes it true was reported done.
type Action interface{ isAction() }

// Durable is a step of a Batch.
type Durable interface{ isDurable() }

// SetMode changes how requests are treated, for the volumes whose secondary is Peer, or, if Peer
// is empty, for all volumes of the group on this node. It is in force when it returns: no request
// is treated by an older mode any more. ModeTwoSided, ModeCopying and ModeCopyTwoSided bind the
// volumes to Session and re-send what is unacknowledged under Epoch.
type SetMode struct {
	Mode    Mode
	Peer    lockstep.NodeID
	Session lockstep.Session
	Epoch   lockstep.Epoch
	Why     string
	// Strict: in ModeOneSided reads and acknowledgements, and in ModeCopying reads, need a lease from
	// the store: an answer to a linearizable read of the record that still showed Epoch, not older
	// than the TTL counted from when it was asked [F16].
	Strict bool
	// Unrepaired: in ModeTwoSided the regions that the write-intent log named when this process
	// started may still differ at the secondary. Requests to one of them wait until JobRepair has
	// compared it, which takes those first that are waited for; its mark must not be cleared before
	// [F9]. Every other mode but ModeHeld ends that.
	Unrepaired bool
}

// Batch is a list of slow, durable steps; BatchDone reports its end. A newer Batch, or a newer
// record, may come while it runs: then the steps not yet begun are dropped.
type Batch struct {
	Token uint64
	Steps []Durable
}

// Quiesce waits until no local I/O is submitted. Remote: also until every write is acknowledged
// by the secondary, for at most WithinMs; BatchDone says whether that was so.
type Quiesce struct {
	Remote   bool
	WithinMs int64
}

// Fence refuses frames of epochs older than Epoch, and waits for those being applied. It must not
// grant leases for them either.
type Fence struct{ Epoch lockstep.Epoch }

// Flush is fdatasync of every volume of the group on this node.
type Flush struct{}

// Save persists the group's file.
type Save struct{ Saved Saved }

// LeaseWait waits until every lease granted to the old primaries has run out, drift included.
// Store: also those that the store gave them for an epoch before this one; none can have been given
// after the record was read here, so that it is counted from the beginning of this step.
type LeaseWait struct{ Store bool }

// MarkAllDirty marks volumes entirely dirty, durably: those of the named pairs.
type MarkAllDirty struct{ Pairs []lockstep.PairID }

// DirtyFromIntent makes every region dirty, durably, of which the write-intent log leaves it in doubt whether both
// sides have the same. Until the next ClearDirty nothing else becomes so: writes of these modes set their bits themselves.
type DirtyFromIntent struct{}

// ClearDirty empties the dirty maps.
type ClearDirty struct{}

// ClearMaps empties dirty maps and write-intent logs: the node is a secondary in sync.
type ClearMaps struct{}

// SetPoint makes the recovery point of the named pairs' volumes, unless one newer than InSyncEpoch
// is there. It follows a Flush.
type SetPoint struct {
	Epoch, InSyncEpoch lockstep.Epoch
	Pairs              []lockstep.PairID
}

// RollBack makes the named pairs' volumes what they were at their recovery point, if they have one
// newer than InSyncEpoch, durably; what it touched is dirty then, and the point gone. Repeating it
// after a crash gives the same.
type RollBack struct {
	InSyncEpoch lockstep.Epoch
	Pairs       []lockstep.PairID
}

// KeepImage keeps the present contents of the named pairs' volumes as the divergence image of that
// epoch, durably, unless it is there.
type KeepImage struct {
	Epoch lockstep.Epoch
	Pairs []lockstep.PairID
}

// DropPoint gives the recovery points of the named pairs' volumes up, of all if none is named: the
// secondary is in sync, or what a volume has is of an earlier stay in a group.
type DropPoint struct{ Pairs []lockstep.PairID }

// Announce sends the record to a secondary on that session.
type Announce struct {
	Peer    lockstep.NodeID
	Session lockstep.Session
	Record  Record
}

// AnnounceOut answers an AnnounceIn.
type AnnounceOut struct {
	Conn   uint64
	Record Record
	OK     bool
	Error  string
	Newer  *Record
}

// Job is work with one secondary.
type Job string

// Jobs.
const (
	JobRepair   Job = "repair"    // send the regions of the write-intent log that differ, while requests to others are served [F9]
	JobTakeBack Job = "take-back" // fetch the regions of the write-intent log [F2]
	// JobTakeBackAll fetches everything, for the directory is not the recorded one, and has the secondary
	// flush it: the log that named what is not flushed there is lost.
	JobTakeBackAll Job = "take-back-all"
	// JobResync sends dirty chunks until none is left. What was noted as sent under another boot id
	// of the secondary does not count; a secondary in another directory is sent everything.
	JobResync Job = "resync"
	JobFlush  Job = "flush" // fdatasync of the secondary's volumes
)

// PeerJob starts a job; JobDone reports its end, also when the session ends.
type PeerJob struct {
	Token   uint64
	Peer    lockstep.NodeID
	Session lockstep.Session
	Job     Job
	Epoch   lockstep.Epoch
}

// Reply writes the node's answer to the store, again and again until it is there or superseded.
type Reply struct{ Answer Answer }

// ProposalKind names a transition that a node asks for.
type ProposalKind string

// Proposals a node makes by compare-and-swap on the record.
const (
	ProposeTrip      ProposalKind = "trip"
	ProposeAbortCopy ProposalKind = "abort-copy"
	ProposeRenewBoot ProposalKind = "renew-boot"
)

// Proposal asks the caller to try a transition of the record at epoch At. Its outcome is learned
// by reading the record.
type Proposal struct {
	Kind   ProposalKind
	At     lockstep.Epoch
	Cause  Cause
	Reason string
	F5     bool
}

func (SetMode) isAction()     {}
func (Batch) isAction()       {}
func (Announce) isAction()    {}
func (AnnounceOut) isAction() {}
func (PeerJob) isAction()     {}
func (Reply) isAction()       {}
func (Proposal) isAction()    {}

func (Quiesce) isDurable()         {}
func (Fence) isDurable()           {}
func (Flush) isDurable()           {}
func (Save) isDurable()            {}
func (LeaseWait) isDurable()       {}
func (MarkAllDirty) isDurable()    {}
func (DirtyFromIntent) isDurable() {}
func (ClearDirty) isDurable()      {}
func (ClearMaps) isDurable()       {}
func (SetPoint) isDurable()        {}
func (DropPoint) isDurable()       {}
func (RollBack) isDurable()        {}
func (KeepImage) isDurable()       {}

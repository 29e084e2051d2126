package protocol

import (
	"maps"
	"slices"

	"github.com/lockstep-dr/lockstep"
)

// State is what a group's record is doing. Together with InSync, Intent and FailedOver it decides
// everything a user sees.
type State string

// States of a record. Entered and left only by the functions of transitions.go and advance.go.
const (
	// StateNormal: at rest. In sync: two-sided. Not in sync: the primary serves one-sided.
	StateNormal State = "normal"
	// StateTripping: still in sync; every primary node is to hold, flush and confirm. Left to
	// normal-not-in-sync when all confirmed, or back to normal-in-sync.
	StateTripping State = "tripping"
	// StateCopying: not in sync; dirty chunks are sent while new writes replicate.
	StateCopying State = "copying"
	// StateFailovering: no primary; the secondaries are asked to persist, flush and answer.
	StateFailovering State = "failovering"
	// StateReversing: the primary drains, holds and flushes both sides; then the roles swap.
	StateReversing State = "reversing"
	// StateDeleted: a tombstone, kept until every node of it has persisted it.
	StateDeleted State = "deleted"
)

// Intent is what the user wants of replication; automatic synchronization needs IntentRun.
type Intent string

// Intents of a group.
const (
	IntentRun    Intent = "run"
	IntentPaused Intent = "paused"
)

// Cause says why a group is tripping, or why it is not in sync.
type Cause string

// Causes of a stop.
const (
	CauseNone          Cause = ""
	CauseLink          Cause = "link"           // no acknowledgement, or no heartbeat answer
	CauseSecondaryBoot Cause = "secondary-boot" // a secondary came back under another boot id
	CauseSecondaryDisk Cause = "secondary-disk" // a secondary volume failed
	CausePause         Cause = "pause"          // asked for by the user
	CausePrimaryBoot   Cause = "primary-boot"   // both sides rebooted [F5]
	CauseBackOut       Cause = "back-out"       // a failover met a rebooted secondary
	CauseCopyAborted   Cause = "copy-aborted"   // a sync lost its link
	CauseFailover      Cause = "failover"       // failed over; replication starts at reprotect
	CauseNew           Cause = "new"            // never synchronized
	CauseStore         Cause = "store-restored" // the store was restored from an older copy
)

// Replica is one node's copy of one volume.
type Replica struct {
	Volume lockstep.VolumeID `json:"volume"`
	Node   lockstep.NodeID   `json:"node"`
	AZ     lockstep.AZ       `json:"az"`
}

// Member is a pair in a group: its two replicas, in no particular order of role.
type Member struct {
	Pair        lockstep.PairID `json:"pair"`
	Replicas    [2]Replica      `json:"replicas"`
	SizeBytes   int64           `json:"size_bytes"`             // the announced size
	ExtendBytes int64           `json:"extend_bytes,omitempty"` // size being grown to, 0: none
	InSyncEpoch lockstep.Epoch  `json:"insync_epoch"`           // last in-sync commit, 0: never
	// NoImage: the group was failed over by force, and this pair's new primary has no consistent image:
	// it is not served there, and not synchronized.
	NoImage bool `json:"no_image,omitempty"`
}

// In returns the member's replica in that AZ.
func (m Member) In(az lockstep.AZ) Replica {
	if m.Replicas[0].AZ == az {
		return m.Replicas[0]
	}
	return m.Replicas[1]
}

// Record is the group's entry in the store, changed by compare-and-swap only, by controllers and
// nodes. Every change that concerns the data path makes a new epoch.
type Record struct {
	Group      lockstep.GroupID   `json:"group"`
	Project    lockstep.ProjectID `json:"project"`
	Epoch      lockstep.Epoch     `json:"epoch"`
	State      State              `json:"state"`
	InSync     bool               `json:"in_sync"`
	Intent     Intent             `json:"intent"`
	Primary    lockstep.AZ        `json:"primary"` // the last primary while failovering
	Secondary  lockstep.AZ        `json:"secondary"`
	FailedOver bool               `json:"failed_over"` // from the failover's commit to reprotect
	// Strict: one-sided, the primary serves only under a lease from the store [F16]. Otherwise a
	// process that was serving goes on until it learns a newer epoch.
	Strict bool `json:"strict,omitempty"`
	// StrictAt is the epoch since which the policy is strict; 0: it is not.
	StrictAt lockstep.Epoch `json:"strict_at,omitempty"`
	// Fenced: no lease of an old primary is left to wait for. False from a failover's commit for
	// which not every old primary node had confirmed the failovering epoch, to the next in-sync one.
	Fenced bool `json:"fenced,omitempty"`
	// Drained: the group was paused with every write on both sides.
	Drained bool     `json:"drained,omitempty"`
	Cause   Cause    `json:"cause,omitempty"`
	Reason  string   `json:"reason,omitempty"` // for people: what was found
	Members []Member `json:"members"`
	// ContinueAt is the tripping epoch that an operator let end without a primary node that does not
	// confirm, fenced through its secondaries; void at any other epoch.
	ContinueAt lockstep.Epoch `json:"continue_at,omitempty"`
	// Off names primary nodes that are powered off by an operator's or a fencing device's word, with
	// the epoch at which that was said; void at any other: whoever is off may be switched on again.
	Off map[lockstep.NodeID]lockstep.Epoch `json:"off,omitempty"`
	// RecoveredAt is the epoch at which the record was lifted above what nodes report, after the store
	// had been restored from an older copy; 0: never.
	RecoveredAt lockstep.Epoch `json:"recovered_at,omitempty"`
	// Accepted names primary nodes whose directory, another one than recorded, counts as the group's
	// image by an operator's word, with that directory's instance id.
	Accepted map[lockstep.NodeID]string `json:"accepted,omitempty"`
	// Untold lists nodes that left the group and have not yet persisted an epoch without them, sorted.
	Untold []lockstep.NodeID `json:"untold,omitempty"`
	// Lost names secondary nodes that an operator gave up, with the InSyncEpoch at which; void at
	// any other.
	Lost map[lockstep.NodeID]lockstep.Epoch `json:"lost,omitempty"`
	// InSyncEpoch is the epoch of the group's last in-sync commit; 0: never.
	InSyncEpoch lockstep.Epoch `json:"insync_epoch"`
	// StoppedAtMs is when replication stopped, Unix milliseconds of the clock of whoever wrote it; 0: it
	// goes on, or that is not known.
	StoppedAtMs int64 `json:"stopped_at_ms,omitempty"`
	// Forced is the forced failover under way, or the last one until the next in-sync commit.
	Forced *Forced `json:"forced,omitempty"`
	// Discard names divergence images that a user deleted, by their epochs, sorted.
	Discard []lockstep.Epoch `json:"discard,omitempty"`
	// BootIDs holds both sides' nodes as of the last in-sync commit, renewed only by [F2] and [F5].
	BootIDs map[lockstep.NodeID]lockstep.BootID `json:"boot_ids,omitempty"`
	// Instances holds the directories' instance ids as of the last in-sync commit.
	Instances map[lockstep.NodeID]string `json:"instances,omitempty"`
}

// Clone returns a deep copy.
func (r Record) Clone() Record {
	r.Members = slices.Clone(r.Members)
	r.BootIDs = maps.Clone(r.BootIDs)
	r.Instances = maps.Clone(r.Instances)
	r.Lost = maps.Clone(r.Lost)
	r.Off = maps.Clone(r.Off)
	r.Accepted = maps.Clone(r.Accepted)
	r.Untold = slices.Clone(r.Untold)
	r.Discard = slices.Clone(r.Discard)
	if r.Forced != nil {
		f := *r.Forced
		f.FlushOnly = slices.Clone(f.FlushOnly)
		r.Forced = &f
	}
	return r
}

// PrimaryNodes lists the nodes that hold a replica in the primary AZ, sorted, each once.
func (r Record) PrimaryNodes() []lockstep.NodeID { return r.nodesIn(r.Primary) }

// SecondaryNodes lists the nodes that hold a replica in the secondary AZ, sorted, each once.
func (r Record) SecondaryNodes() []lockstep.NodeID { return r.nodesIn(r.Secondary) }

// Nodes lists all nodes of the group, sorted, each once.
func (r Record) Nodes() []lockstep.NodeID {
	all := append(r.PrimaryNodes(), r.SecondaryNodes()...)
	slices.Sort(all)
	return slices.Compact(all)
}

func (r Record) nodesIn(az lockstep.AZ) []lockstep.NodeID {
	var nodes []lockstep.NodeID
	for _, m := range r.Members {
		nodes = append(nodes, m.In(az).Node)
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// PeersOf lists the nodes at the other side of the volumes that node holds in AZ az.
func (r Record) PeersOf(node lockstep.NodeID, az lockstep.AZ) []lockstep.NodeID {
	other := r.Secondary
	if az == r.Secondary {
		other = r.Primary
	}
	var peers []lockstep.NodeID
	for _, m := range r.Members {
		if m.In(az).Node == node {
			peers = append(peers, m.In(other).Node)
		}
	}
	slices.Sort(peers)
	return slices.Compact(peers)
}

// Step says what a node has durably done at an epoch.
type Step string

// Steps a node answers with.
const (
	StepAdopted  Step = "adopted"   // the epoch is persisted; nothing more was asked
	StepHeld     Step = "held"      // old primary at failovering: holds, answers no read
	StepTripping Step = "tripping"  // held, flushed, marked; stopped sending [F3]
	StepTwoSided Step = "two-sided" // nothing left to send, both sides flushed [F6] [F7]
	StepReady    Step = "ready"     // secondary at failovering: persisted, flushed
	StepReversed Step = "reversed"  // primary at reversing: drained, held, both sides flushed
	StepGaveUp   Step = "gave-up"   // reversing could not drain in time
	StepTold     Step = "told"      // tombstone persisted
	StepFenced   Step = "fenced"    // secondary at tripping, on an operator's continue: persisted [F10] [F22]
)

// Answer is what a node writes at answers/<group>/<node>, after the deed is durable. It counts
// only at exactly the record's epoch, and only as of the revision the committing transaction
// compares.
type Answer struct {
	Group    lockstep.GroupID `json:"group"`
	Node     lockstep.NodeID  `json:"node"`
	Epoch    lockstep.Epoch   `json:"epoch"`
	Step     Step             `json:"step"`
	BootID   lockstep.BootID  `json:"boot_id"`
	Instance string           `json:"instance"`
	Start    uint64           `json:"start"`
	// Healthy: all the node's volumes of the group work.
	Healthy bool `json:"healthy"`
	// Drained: every write was on both sides when the node held.
	Drained bool `json:"drained,omitempty"`
	// PeersBack: all its secondaries answer with the recorded boot ids (for the way back).
	PeersBack bool `json:"peers_back,omitempty"`
	// PeerBoots and PeerInstances: as the secondaries' own flush answers carried them.
	PeerBoots     map[lockstep.NodeID]lockstep.BootID `json:"peer_boots,omitempty"`
	PeerInstances map[lockstep.NodeID]string          `json:"peer_instances,omitempty"`
	Error         string                              `json:"error,omitempty"`
}

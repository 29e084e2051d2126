package store

import (
	"encoding/json"
	"time"

	"github.com/lockstep-dr/lockstep"
)

// Keys. One line per kind; <x> is an id.
//
//	cluster                         Cluster
//	nodes/<node>                    Node, written by the node at start and when its facts change
//	alive/node/<node>               Presence, tied to a store lease
//	alive/controller/<id>           Presence of a controller
//	recovery                        Recovery, the last one, written by controllers
//	leader                          election of the controller that drives operations
//	volumes/<volume>                Volume, desired state, written by controllers
//	observed/volume/<volume>        VolumeObserved, written by the volume's node
//	pairs/<pair>                    Pair
//	groups/<group>                  Group, the API's view of a consistency group
//	records/<group>                 protocol.Record, by CAS, written by controllers and nodes
//	answers/<group>/<node>          protocol.Answer, written by the node
//	observed/group/<group>/<node>   GroupObserved, written by the node, for people and statuses only
//	verify/<group>                  Verification, the last one, written by controllers
//	observed/verify/<group>/<node>  VerifyObserved, written by the group's primary nodes
//	limits/group/<group>            ResyncLimit of a group, written by controllers
//	limits/node/<node>              ResyncLimit of a node, written by controllers
//	ops/<op>                        Operation, a persisted step machine
//	history/<group>/<seq>           HistoryEntry
//	identity/...                    users, projects, domains, tokens (package api/identity)
const (
	KeyCluster           = "cluster"
	KeyLeader            = "leader"
	KeyRecovery          = "recovery"
	PrefixNodes          = "nodes/"
	PrefixAliveNodes     = "alive/node/"
	PrefixVolumes        = "volumes/"
	PrefixObservedVol    = "observed/volume/"
	PrefixPairs          = "pairs/"
	PrefixGroups         = "groups/"
	PrefixRecords        = "records/"
	PrefixAnswers        = "answers/"
	PrefixObservedGroup  = "observed/group/"
	PrefixVerify         = "verify/"
	PrefixObservedVerify = "observed/verify/"
	PrefixLimits         = "limits/"
	PrefixGroupLimits    = "limits/group/"
	PrefixNodeLimits     = "limits/node/"
	PrefixOps            = "ops/"
	PrefixHistory        = "history/"
	PrefixIdentity       = "identity/"
)

// Key functions; see the table above.
func KeyNode(n lockstep.NodeID) string             { return PrefixNodes + string(n) }
func KeyAliveNode(n lockstep.NodeID) string        { return PrefixAliveNodes + string(n) }
func KeyVolume(v lockstep.VolumeID) string         { return PrefixVolumes + string(v) }
func KeyObservedVolume(v lockstep.VolumeID) string { return PrefixObservedVol + string(v) }
func KeyPair(p lockstep.PairID) string             { return PrefixPairs + string(p) }
func KeyGroup(g lockstep.GroupID) string           { return PrefixGroups + string(g) }
func KeyRecord(g lockstep.GroupID) string          { return PrefixRecords + string(g) }
func KeyAnswer(g lockstep.GroupID, n lockstep.NodeID) string {
	return PrefixAnswers + string(g) + "/" + string(n)
}

func KeyObservedGroup(g lockstep.GroupID, n lockstep.NodeID) string {
	return PrefixObservedGroup + string(g) + "/" + string(n)
}
func KeyOp(id string) string { return PrefixOps + id }

// Cluster is written by the first controller; later ones may change StoreSites.
type Cluster struct {
	ID        string    `json:"id"` // part of every replication handshake
	Region    string    `json:"region"`
	CreatedAt time.Time `json:"created_at"`
	// StoreSites is the zone or third site of each member of the store, as a controller's
	// configuration said last; empty: not known.
	StoreSites []string `json:"store_sites,omitempty"`
}

// Node is what a storage daemon says of itself.
type Node struct {
	ID         lockstep.NodeID `json:"id"`
	AZ         lockstep.AZ     `json:"az"`
	Replicate  string          `json:"replicate"` // host:port of the replication listener
	NBDSocket  string          `json:"nbd_socket,omitempty"`
	NBDAddress string          `json:"nbd_address,omitempty"` // host:port, empty: no TCP
	Instance   string          `json:"instance"`              // of the pool directory
	Start      uint64          `json:"start"`                 // start counter of the pool directory
	// Earlier holds the last start of every other directory that the node was started in, by instance id:
	// one of them that comes back may be an older copy.
	Earlier    map[string]uint64 `json:"earlier,omitempty"`
	BootID     lockstep.BootID   `json:"boot_id"`
	TotalBytes int64             `json:"total_bytes"`
	FreeBytes  int64             `json:"free_bytes"`
	Version    string            `json:"version"`
	UpdatedAt  time.Time         `json:"updated_at"`
}

// Presence is the value of an alive key.
type Presence struct {
	Node  lockstep.NodeID `json:"node"`
	Start uint64          `json:"start"`
	Since time.Time       `json:"since"`
}

// AccessMode is how a node may serve a volume.
type AccessMode string

// Access modes.
const (
	AccessPlain   AccessMode = "plain"   // an ordinary disk, not replicated
	AccessGroup   AccessMode = "group"   // as the group's record says
	AccessRefused AccessMode = "refused" // not served; Reason says why
)

// Access is the controller's word on how a volume is served; it changes in the same transaction
// as the pair or group that is its cause.
type Access struct {
	Mode   AccessMode       `json:"mode"`
	Group  lockstep.GroupID `json:"group,omitempty"`
	Reason string           `json:"reason,omitempty"` // for AccessRefused, a full sentence
}

// Volume is the desired state of a virtual disk. The node that holds it makes it so: it creates
// the file, grows it to SizeBytes, serves it as Access says, removes it when Deleted is set.
type Volume struct {
	ID          lockstep.VolumeID  `json:"id"`
	Project     lockstep.ProjectID `json:"project"`
	User        string             `json:"user"`
	Name        *string            `json:"name"`
	Description *string            `json:"description"`
	SizeBytes   int64              `json:"size_bytes"`
	Type        string             `json:"type"`
	AZ          lockstep.AZ        `json:"az"`
	Node        lockstep.NodeID    `json:"node"`
	Status      string             `json:"status"` // creating, available, in-use, deleting, extending, error, error_deleting
	Failure     string             `json:"failure,omitempty"`
	Metadata    map[string]string  `json:"metadata,omitempty"`
	Multiattach bool               `json:"multiattach"`
	Bootable    bool               `json:"bootable"`
	ReadOnly    bool               `json:"read_only"`
	Attachments []Attachment       `json:"attachments,omitempty"`
	Pair        lockstep.PairID    `json:"pair,omitempty"`
	Access      Access             `json:"access"`
	Deleted     bool               `json:"deleted,omitempty"`
	CreatedAt   time.Time          `json:"created_at"`
	UpdatedAt   *time.Time         `json:"updated_at"`
}

// Attachment ties a volume to a server.
type Attachment struct {
	ID         string    `json:"id"`
	Server     string    `json:"server"`
	Device     string    `json:"device"`
	Host       string    `json:"host,omitempty"`
	AttachedAt time.Time `json:"attached_at"`
}

// VolumeObserved is what the node found.
type VolumeObserved struct {
	Volume    lockstep.VolumeID `json:"volume"`
	Node      lockstep.NodeID   `json:"node"`
	State     string            `json:"state"` // present, absent (removed), failed, no-space
	SizeBytes int64             `json:"size_bytes"`
	Error     string            `json:"error,omitempty"`
	UpdatedAt time.Time         `json:"updated_at"`
}

// Pair is a production volume and its DR volume.
type Pair struct {
	ID          lockstep.PairID      `json:"id"`
	Project     lockstep.ProjectID   `json:"project"`
	Name        *string              `json:"name"`
	Description *string              `json:"description"`
	Volumes     [2]lockstep.VolumeID `json:"volumes"` // in creation order, for ever
	AZs         [2]lockstep.AZ       `json:"azs"`     // of Volumes
	// Primary is the AZ whose volume is the truth while the pair is in no group; in a group the
	// record says so. It moves with failover and switchover when the pair leaves the group.
	Primary lockstep.AZ      `json:"primary"`
	Model   string           `json:"model"` // hypermetro
	Group   lockstep.GroupID `json:"group,omitempty"`
	// Image: the DR side was in sync when the pair left its group, or can be rolled back to when it
	// was. A pair that was never in sync has no consistent image there.
	Image     bool       `json:"image,omitempty"`
	Status    string     `json:"status"` // creating, available, error, deleting, error_deleting
	Failure   *string    `json:"failure"`
	Meta      PairMeta   `json:"meta"`
	CreatedAt time.Time  `json:"created_at"`
	UpdatedAt *time.Time `json:"updated_at"`
}

// PairMeta is the content of record_metadata at the API.
type PairMeta struct {
	SizeGiB     int64  `json:"volume_size"`
	Type        string `json:"volume_type"`
	Multiattach bool   `json:"multiattach"`
}

// Group is the API's side of a consistency group; how it replicates stands in its record.
type Group struct {
	ID          lockstep.GroupID   `json:"id"`
	Project     lockstep.ProjectID `json:"project"`
	Name        *string            `json:"name"`
	Description *string            `json:"description"`
	Pairs       []lockstep.PairID  `json:"pairs"`
	Model       string             `json:"model"`
	// Overlay is a status that an operation sets over the one derived from the record: creating,
	// updating, deleting, or an error status; empty otherwise.
	Overlay   string     `json:"overlay,omitempty"`
	Op        string     `json:"op,omitempty"` // the operation that is changing this group
	Failure   *string    `json:"failure"`
	CreatedAt time.Time  `json:"created_at"`
	UpdatedAt *time.Time `json:"updated_at"`
}

// GroupObserved is a node's report about a group, for people, progress and statuses. It is never
// counted by a transition.
type GroupObserved struct {
	Group   lockstep.GroupID                      `json:"group"`
	Node    lockstep.NodeID                       `json:"node"`
	Start   uint64                                `json:"start"`
	Epoch   lockstep.Epoch                        `json:"epoch"` // persisted by the node
	Role    string                                `json:"role"`  // primary, secondary
	Mode    string                                `json:"mode"`  // what requests meet: two-sided, one-sided, copying, held, refused
	Why     string                                `json:"why,omitempty"`
	Serving bool                                  `json:"serving"` // reads and writes go on now
	Volumes map[lockstep.VolumeID]ReplicaObserved `json:"volumes"`
	Peers   map[lockstep.NodeID]PeerObserved      `json:"peers,omitempty"`
	// ResyncRate is what a synchronization gets done, bytes per second over the last ten; what it finds
	// equal counts, too. 0: none runs, or it has just begun.
	ResyncRate int64     `json:"resync_rate,omitempty"`
	At         time.Time `json:"at"`
	// Recovery answers the Recovery of that id, with what the node has persisted.
	Recovery string          `json:"recovery,omitempty"`
	Saved    json.RawMessage `json:"saved,omitempty"` // the persisted protocol.Record
	BootID   lockstep.BootID `json:"boot_id,omitempty"`
	Instance string          `json:"instance,omitempty"` // of the pool directory
}

// Recovery asks every node to report what it has persisted of each group, after the store was
// restored from an older copy.
type Recovery struct {
	ID     string        `json:"id"`
	By     string        `json:"by"`
	Reason string        `json:"reason"`
	Off    []lockstep.AZ `json:"off,omitempty"` // zones stated to be powered off
	At     time.Time     `json:"at"`
}

// ReplicaObserved is one volume's part of a GroupObserved.
type ReplicaObserved struct {
	Failed      string `json:"failed,omitempty"`
	DirtyBytes  int64  `json:"dirty_bytes"`  // known to differ, by the dirty map
	IntentBytes int64  `json:"intent_bytes"` // marked in the write-intent log
	ToSendBytes int64  `json:"to_send_bytes"`
	TotalBytes  int64  `json:"total_bytes"` // to send when the sync began
	PointEpoch  uint64 `json:"point_epoch,omitempty"`
	// Images are the epochs of the divergence images: what the volume held when its side lost a
	// forced failover.
	Images []uint64 `json:"images,omitempty"`
	// NoImage: not served, since the group was failed over by force and there was no image of it.
	NoImage bool `json:"no_image,omitempty"`
}

// PeerObserved is how a node sees the other side.
type PeerObserved struct {
	Connected bool            `json:"connected"`
	BootID    lockstep.BootID `json:"boot_id,omitempty"`
	Error     string          `json:"error,omitempty"`
}

// Operation is a piece of orchestration that survives its controller.
type Operation struct {
	ID        string             `json:"id"`
	Kind      string             `json:"kind"`
	Project   lockstep.ProjectID `json:"project"`
	Group     lockstep.GroupID   `json:"group,omitempty"`
	Pair      lockstep.PairID    `json:"pair,omitempty"`
	Volume    lockstep.VolumeID  `json:"volume,omitempty"`
	Step      string             `json:"step"`
	Args      map[string]string  `json:"args,omitempty"`
	RequestID string             `json:"request_id"`
	User      string             `json:"user"`
	StartedAt time.Time          `json:"started_at"`
	Deadline  time.Time          `json:"deadline"`
	Error     string             `json:"error,omitempty"`
}

// ForcedReceipt is what a forced failover was told to lose, and in the entry of its end what it lost.
type ForcedReceipt struct {
	// PointAt is when replication had stopped: what was acknowledged before is in the image.
	PointAt time.Time `json:"point_at,omitzero"` // zero: not known
	// FlushOnly are nodes whose host restarted since the last in-sync commit: their image holds for
	// sure only what was flushed before.
	FlushOnly []lockstep.NodeID `json:"flush_only,omitempty"`
	Volumes   []ForcedLoss      `json:"volumes"`
	// Final: the old primary had stopped when it reported these figures.
	Final bool `json:"final,omitempty"`
}

// ForcedLoss is one pair's part of it.
type ForcedLoss struct {
	Pair   lockstep.PairID   `json:"pair"`
	Volume lockstep.VolumeID `json:"volume"` // that is, or would be, served
	Lost   lockstep.VolumeID `json:"lost"`   // the old primary's
	Image  string            `json:"image"`  // recovery-point, current, none
	// PointEpoch is the recovery point's; 0 where it is not one.
	PointEpoch lockstep.Epoch `json:"point_epoch,omitempty"`
	// Bytes missing, counted in whole chunks of 64 KiB, as the old primary knew them; -1: not known.
	Bytes int64     `json:"bytes"`
	AsOf  time.Time `json:"as_of,omitzero"` // of its report
	// Estimate: the old primary may have written since that report.
	Estimate bool `json:"estimate,omitempty"`
}

// HistoryEntry is one thing that happened to a group; kept for people.
type HistoryEntry struct {
	At        time.Time        `json:"at"`
	Group     lockstep.GroupID `json:"group"`
	Epoch     lockstep.Epoch   `json:"epoch"`
	What      string           `json:"what"`
	By        string           `json:"by"`
	RequestID string           `json:"request_id,omitempty"`
	// Condition is the group's at this epoch in a few words; empty: the entry made no epoch.
	Condition string         `json:"condition,omitempty"`
	Receipt   *ForcedReceipt `json:"receipt,omitempty"` // of a forced failover
}

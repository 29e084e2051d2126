// Package control is the orchestration: what the API's calls mean for volumes, pairs and groups,
// as validated changes of the store and as operations that survive their controller. It never
// opens a socket and knows no JSON of the API; nodes and controllers meet in the store only.
package control

import (
	"context"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// Caller is on whose behalf a call is made.
type Caller struct {
	Project   lockstep.ProjectID // whose things exist for the caller, and no others
	User      string
	RequestID string
	// Operator may decide which side of a group serves. Which call needs it the API says, but for a sync of a group
	// that was failed over.
	Operator bool
	Admin    bool // may make operators' statements about groups of Project, and recover the store
}

// Kind classifies a refusal; api/fault.go translates it.
type Kind int

// Kinds of refusal.
const (
	KindInternal    Kind = iota // 500
	KindBadRequest              // 400
	KindForbidden               // 403
	KindNotFound                // 404
	KindConflict                // 409
	KindQuota                   // 413
	KindUnsupported             // 501
	KindUnavailable             // 503
)

// Error is a refusal with the vendor's code where it has one ("37100041", "EVS.1010").
type Error struct {
	Kind    Kind
	Code    string
	Message string // names the field and the limit, or the status needed and the one it has
	Cause   error  // what happened below, for the log and not for clients; nil: the message says all
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

func (e *Error) Error() string {
	if e.Code != "" {
		return e.Code + ": " + e.Message
	}
	return e.Message
}

// VolumeCreate asks for a new volume.
type VolumeCreate struct {
	Name, Description *string
	SizeGiB           int64
	Type              string      // "" : the default type
	AZ                lockstep.AZ // "": the first AZ
	Metadata          map[string]string
	Multiattach       bool
}

// VolumeView is a volume with what is derived for answers.
type VolumeView struct {
	store.Volume
	// ReplicationStatus is "disabled" for a disk in no pair.
	ReplicationStatus string
}

// PairCreate asks for a new pair.
type PairCreate struct {
	Name, Description *string
	Volumes           []lockstep.VolumeID
	Priority          lockstep.AZ
	Model             string
}

// PairView is a pair with its derived statuses.
type PairView struct {
	store.Pair
	Priority          lockstep.AZ // current primary
	ReplicationStatus string      // active, active-stopped, copying, inactive, error
	Progress          *string     // "0".."100", nil: never synchronized
	FaultLevel        string      // "0", "2", "5"
}

// GroupCreate asks for a new group.
type GroupCreate struct {
	Name, Description *string
	Pairs             []lockstep.PairID
	Priority          lockstep.AZ
	Model             string
}

// GroupUpdate changes a group; nil fields stay.
type GroupUpdate struct {
	Name, Description *string
	SetName, SetDesc  bool // the field was present (null clears it)
	Model             *string
	Add, Remove       []lockstep.PairID
}

// GroupView is a group with its derived statuses.
type GroupView struct {
	store.Group
	Priority          lockstep.AZ
	Status            string
	ReplicationStatus string
	FaultLevel        string
	Failure           *string
	Epoch             lockstep.Epoch
	Strict            bool // see SetStrict
	// Detail is for people and the CLI: why, progress, rates.
	Reason   string
	Progress *string
	// Warnings are sentences about what threatens the group beside its own state.
	Warnings []string
	// Resync is the synchronization that runs; nil: none does.
	Resync         *ResyncView
	ResyncLimitMiB int64 // MiB/s at each primary node; 0: none
	// Verification is the group's running or last one, with its last proof; nil: there was none.
	Verification *VerificationView
}

// Action is one of the group actions.
type Action string

// Group actions, named after the API's keys.
const (
	ActionFailover  Action = "failover"
	ActionSync      Action = "sync"
	ActionReverse   Action = "reverse"
	ActionStop      Action = "stop"
	ActionReprotect Action = "reprotect"
	ActionExtend    Action = "extend"
)

// Extend names a pair and its new size.
type Extend struct {
	Pair    lockstep.PairID
	SizeGiB int64
}

// Service is what the API calls. Every method answers with *Error for a refusal, and changes
// nothing then. It is implemented by *Controller.
type Service interface {
	CreateVolume(ctx context.Context, c Caller, v VolumeCreate) (VolumeView, error)
	GetVolume(ctx context.Context, c Caller, id lockstep.VolumeID) (VolumeView, error)
	EachVolume(ctx context.Context, c Caller, w Walk, keep, fn func(VolumeView) bool) (known bool, err error)
	UpdateVolume(ctx context.Context, c Caller, id lockstep.VolumeID, change func(*store.Volume) error) (VolumeView, error)
	ExtendVolume(ctx context.Context, c Caller, id lockstep.VolumeID, sizeGiB int64) error
	DeleteVolume(ctx context.Context, c Caller, id lockstep.VolumeID) error
	// ReleaseVolume serves a former DR volume again, as a plain disk.
	ReleaseVolume(ctx context.Context, c Caller, id lockstep.VolumeID) error
	// ConnectionURI answers where the volume can be opened: nbd+unix:///… or nbd://…
	ConnectionURI(ctx context.Context, c Caller, id lockstep.VolumeID) (string, error)

	CreatePair(ctx context.Context, c Caller, p PairCreate) (PairView, error)
	GetPair(ctx context.Context, c Caller, id lockstep.PairID) (PairView, error)
	// EachPair calls fn with those of the caller's pairs that keep admits (nil: all), in the order of their
	// creation, until it answers false; known is false if w.After is none of them. keep sees them without
	// replication status, fault level and progress. Neither function may block or call the Service.
	EachPair(ctx context.Context, c Caller, w Walk, keep, fn func(PairView) bool) (known bool, err error)
	DeletePair(ctx context.Context, c Caller, id lockstep.PairID) error

	CreateGroup(ctx context.Context, c Caller, g GroupCreate) (GroupView, error)
	GetGroup(ctx context.Context, c Caller, id lockstep.GroupID) (GroupView, error)
	EachGroup(ctx context.Context, c Caller, w Walk, keep, fn func(GroupView) bool) (known bool, err error)
	UpdateGroup(ctx context.Context, c Caller, id lockstep.GroupID, u GroupUpdate) (GroupView, error)
	DeleteGroup(ctx context.Context, c Caller, id lockstep.GroupID) error
	// Act runs a group action; it answers when the transition is recorded (extend: when done;
	// stop: when it is effective).
	Act(ctx context.Context, c Caller, id lockstep.GroupID, a Action, ext []Extend) error
	History(ctx context.Context, c Caller, id lockstep.GroupID) ([]store.HistoryEntry, error)
	// Explain says what a group does and why, and what every action would do now.
	Explain(ctx context.Context, c Caller, id lockstep.GroupID) (Explanation, error)
	// PreviewFailover says what a failover of the group would do now, and lose.
	PreviewFailover(ctx context.Context, c Caller, id lockstep.GroupID) (FailoverPreview, error)
	// ForceFailover fails over to an image that lacks writes; token is that of a preview that still holds.
	ForceFailover(ctx context.Context, c Caller, id lockstep.GroupID, token string) error
	// DivergenceImages lists what sides that lost a forced failover had.
	DivergenceImages(ctx context.Context, c Caller, id lockstep.GroupID) ([]DivergenceImage, error)
	// DeleteDivergenceImage removes one, for good.
	DeleteDivergenceImage(ctx context.Context, c Caller, id lockstep.GroupID, epoch lockstep.Epoch) error
	// SetStrict chooses whether a primary without its secondary serves only under a lease of the store.
	SetStrict(ctx context.Context, c Caller, id lockstep.GroupID, strict bool) error
	// Verify compares both sides of a group in sync, at that rate of each primary node in MiB/s (0: the
	// node's); it answers the verification that runs then, a new one or an earlier.
	Verify(ctx context.Context, c Caller, id lockstep.GroupID, rateMiB int64) (VerificationView, error)
	CancelVerify(ctx context.Context, c Caller, id lockstep.GroupID) error
	// Declare takes an operator's statement about a group; it needs the admin role.
	Declare(ctx context.Context, c Caller, id lockstep.GroupID, s Statement, node lockstep.NodeID, reason string) error

	// LimitGroup and LimitNode bound what synchronizations read and send, MiB/s; 0: no limit of the group's, and
	// what the node's own configuration says.
	LimitGroup(ctx context.Context, c Caller, id lockstep.GroupID, mib int64) error
	LimitNode(ctx context.Context, c Caller, id lockstep.NodeID, mib int64) error

	Zones(ctx context.Context) ([]Zone, error)
	Nodes(ctx context.Context) ([]NodeView, error)
	// RecoverStore lifts every group after the store was restored from an older copy; zones in off are
	// stated to be powered off. It needs the admin role.
	RecoverStore(ctx context.Context, c Caller, off []lockstep.AZ, reason string) (Recovery, error)
	Types() []VolumeType
}

// Zone is an AZ with its health.
type Zone struct {
	Name      lockstep.AZ
	Available bool
}

// NodeView is a node with its liveness.
type NodeView struct {
	store.Node
	Alive          bool
	Since          time.Time
	ResyncLimitMiB int64 // MiB/s; 0: as its configuration says
}

// VolumeType is a kind of volume.
type VolumeType struct {
	ID, Name, Description string
	Default               bool
}

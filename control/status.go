package control

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Statuses of groups and pairs, in the API's words.
const (
	StatusCreating        = "creating"
	StatusAvailable       = "available"
	StatusError           = "error"
	StatusDeleting        = "deleting"
	StatusErrorDeleting   = "error_deleting"
	StatusUpdating        = "updating"
	StatusReversing       = "reversing"
	StatusErrorReversing  = "error_reversing"
	StatusFailovering     = "failovering"
	StatusFailovered      = "failovered"
	StatusErrorFailovered = "error_failovering"
)

// Statuses of volumes beyond those above.
const (
	StatusInUse     = "in-use"
	StatusExtending = "extending"
)

// Replication statuses, in the API's words; "disabled" is that of a disk in no pair.
const (
	ReplicationActive   = "active"
	ReplicationStopped  = "active-stopped"
	ReplicationCopying  = "copying"
	ReplicationInactive = "inactive"
	ReplicationError    = "error"
	ReplicationDisabled = "disabled"
)

// Fault levels, in the API's words.
const (
	FaultNone       = "0"
	FaultProduction = "2" // the production side cannot be read and written; a failover is advised
	FaultLink       = "5" // the secondary cannot be reached; a failover is refused
)

// heldAfter is how long a primary may hold requests, with a peer away, before that is shown as a
// fault of the production side: a link fault ends in a trip before it.
const heldAfter = 4 * time.Second

// Sight is a node's report with what the controller itself saw of it.
type Sight struct {
	store.GroupObserved
	// HeldSince is when the node was first seen not serving; zero: it serves, or At must do.
	HeldSince time.Time
}

// GroupStatus is what a user sees of a group.
type GroupStatus struct {
	Status            string
	ReplicationStatus string
	FaultLevel        string
	Progress          *string // "0".."100", nil: never synchronized
	Reason            string
}

// PairStatus is what a user sees of a pair's replication.
type PairStatus struct {
	ReplicationStatus string
	FaultLevel        string
	Progress          *string
}

// DeriveGroup gives a group's statuses. The record is the truth; what nodes report and whether
// they are alive only decide the fault level, the progress and the reason.
func DeriveGroup(g store.Group, r protocol.Record, seen map[lockstep.NodeID]Sight, alive map[lockstep.NodeID]bool, now time.Time) GroupStatus {
	s := GroupStatus{Status: recordStatus(g, r)}
	f := inspect(r, seen, alive, now)
	s.ReplicationStatus, s.FaultLevel = replication(r, f)
	s.Progress = progress(r, r.Members, s.ReplicationStatus, seen)
	s.Reason = f.reason(r)
	return s
}

// recordStatus: what an operation of the API says first, then the record, then an error that the
// last operation left.
func recordStatus(g store.Group, r protocol.Record) string {
	switch g.Overlay {
	case StatusCreating, StatusUpdating, StatusDeleting:
		return g.Overlay
	}
	switch r.State {
	case protocol.StateFailovering:
		return StatusFailovering
	case protocol.StateReversing:
		return StatusReversing
	case protocol.StateDeleted:
		return StatusDeleting
	case protocol.StateNormal, protocol.StateTripping, protocol.StateCopying:
	}
	switch {
	case r.FailedOver:
		return StatusFailovered
	case g.Overlay != "":
		return g.Overlay
	}
	return StatusAvailable
}

// faults is what is wrong around a record.
type faults struct {
	primaryGone, secondaryGone     []lockstep.NodeID
	primaryFailed, secondaryFailed []string // "volume v on node n: error"
	held                           []string // "node n: why"
	older                          string   // why the record cannot be believed; empty: it can
}

func inspect(r protocol.Record, seen map[lockstep.NodeID]Sight, alive map[lockstep.NodeID]bool, now time.Time) faults {
	var f faults
	for _, n := range r.PrimaryNodes() {
		if !alive[n] {
			f.primaryGone = append(f.primaryGone, n)
			continue
		}
		if s, ok := seen[n]; ok && s.heldUp(now, r.State == protocol.StateNormal || r.State == protocol.StateTripping) {
			f.held = append(f.held, strings.TrimSuffix(fmt.Sprintf("node %s holds requests: %s", n, s.Why), ": "))
		}
	}
	for _, n := range r.SecondaryNodes() {
		if !alive[n] {
			f.secondaryGone = append(f.secondaryGone, n)
		}
	}
	for _, n := range r.Nodes() {
		if s, ok := seen[n]; ok && s.Epoch > r.Epoch && f.older == "" {
			f.older = olderStore(n, s.Epoch, r.Epoch)
		}
	}
	for _, m := range r.Members {
		f.primaryFailed = appendFailed(f.primaryFailed, m.In(r.Primary), seen)
		f.secondaryFailed = appendFailed(f.secondaryFailed, m.In(r.Secondary), seen)
	}
	return f
}

func appendFailed(list []string, replica protocol.Replica, seen map[lockstep.NodeID]Sight) []string {
	if why := seen[replica.Node].Volumes[replica.Volume].Failed; why != "" {
		return append(list, fmt.Sprintf("volume %s on node %s: %s", replica.Volume, replica.Node, why))
	}
	return list
}

// heldUp: not serving, longer than a trip takes, and either at rest or in a trip, whatever is the reason
// (a directory that is not the recorded one, a take-back, a disk that hangs), or with a peer away.
func (s Sight) heldUp(now time.Time, unasked bool) bool {
	if s.Serving {
		return false
	}
	away := unasked
	for _, p := range s.Peers {
		away = away || !p.Connected
	}
	since := s.HeldSince
	if since.IsZero() {
		since = s.At
	}
	return away && now.Sub(since) > heldAfter
}

func (f faults) primary() bool {
	return len(f.primaryGone)+len(f.primaryFailed)+len(f.held) > 0
}

func (f faults) anyGone() bool { return len(f.primaryGone)+len(f.secondaryGone) > 0 }

// reason is for people: what was found now, else what the record keeps.
func (f faults) reason(r protocol.Record) string {
	var parts []string
	if f.older != "" {
		parts = append(parts, f.older)
	}
	if len(f.primaryGone) > 0 {
		parts = append(parts, "primary node "+joinIDs(f.primaryGone)+" is not alive")
	}
	if len(f.secondaryGone) > 0 {
		parts = append(parts, "secondary node "+joinIDs(f.secondaryGone)+" is not alive")
	}
	parts = append(parts, f.primaryFailed...)
	parts = append(parts, f.secondaryFailed...)
	parts = append(parts, f.held...)
	if r.Reason != "" {
		parts = append(parts, r.Reason)
	}
	return strings.Join(parts, "; ")
}

// replication gives replication_status and fault_level: the rows of the table of faults.
func replication(r protocol.Record, f faults) (status, fault string) {
	if f.older != "" { // what is true now the store does not know; every failover is refused
		return ReplicationError, FaultLink
	}
	// The record says in sync: a failover loses nothing, whatever the primary side is doing.
	if r.InSync {
		if f.primary() {
			return ReplicationActive, FaultProduction
		}
		return ReplicationActive, FaultNone
	}
	// Not in sync: every failover is refused, so no fault is of a kind that advises one.
	gone := FaultNone
	if f.anyGone() || len(f.primaryFailed)+len(f.held) > 0 {
		gone = FaultLink
	}
	switch {
	case r.FailedOver:
		// The old primary's AZ is expected to be away: only the serving side counts.
		if f.primary() {
			return ReplicationStopped, FaultLink
		}
		return ReplicationStopped, FaultNone
	case len(r.Members) == 0, r.Cause == protocol.CauseNew && r.State != protocol.StateCopying:
		return ReplicationInactive, gone
	case len(f.secondaryFailed) > 0,
		r.Cause == protocol.CauseSecondaryDisk && r.State == protocol.StateNormal && r.Intent == protocol.IntentRun:
		return ReplicationError, FaultLink
	case r.State == protocol.StateCopying:
		return ReplicationCopying, gone
	case r.Intent == protocol.IntentPaused && r.Drained:
		return ReplicationStopped, gone
	case r.Intent == protocol.IntentPaused:
		return ReplicationInactive, gone
	}
	return ReplicationInactive, FaultLink
}

// memberStatus gives the statuses of a group's member; f is what is wrong around its record. Unlike its
// group's, a pair's status after a stop comes from its dirty map.
func memberStatus(member protocol.Member, r protocol.Record, f faults, seen map[lockstep.NodeID]Sight) PairStatus {
	s := PairStatus{}
	s.ReplicationStatus, s.FaultLevel = replication(r, f)
	if s.ReplicationStatus == ReplicationStopped {
		here := member.In(r.Primary)
		dirty := seen[here.Node].Volumes[here.Volume].DirtyBytes
		if member.InSyncEpoch == 0 || dirty > 0 {
			s.ReplicationStatus = ReplicationInactive
		}
	}
	s.Progress = progress(r, []protocol.Member{member}, s.ReplicationStatus, seen)
	return s
}

// progress is nil for what was never synchronized and is not being so, "100" when equal, and else
// the share that need not be sent, at most "99".
func progress(r protocol.Record, members []protocol.Member, status string, seen map[lockstep.NodeID]Sight) *string {
	if r.InSync && len(members) > 0 {
		if status != ReplicationActive { // the record cannot be believed
			return nil
		}
		return ptr("100")
	}
	if len(members) == 0 {
		return nil
	}
	var left, total int64
	if r.State == protocol.StateCopying {
		left, total = toSend(r, members, seen)
	} else {
		for _, m := range members {
			if m.InSyncEpoch == 0 {
				return nil
			}
			here := m.In(r.Primary)
			left, total = left+seen[here.Node].Volumes[here.Volume].DirtyBytes, total+m.SizeBytes
		}
	}
	if left <= 0 && status != ReplicationCopying {
		return ptr("100")
	}
	return ptr(percent(total-left, total))
}

// toSend is what a synchronization has still to send, and what it had at its beginning.
func toSend(r protocol.Record, members []protocol.Member, seen map[lockstep.NodeID]Sight) (left, total int64) {
	for _, m := range members {
		here := m.In(r.Primary)
		v, ok := seen[here.Node].Volumes[here.Volume]
		if !ok || v.TotalBytes <= 0 && v.ToSendBytes <= 0 {
			// Nothing reported yet: as if all were still to be sent.
			v.ToSendBytes, v.TotalBytes = m.SizeBytes, m.SizeBytes
		}
		left, total = left+v.ToSendBytes, total+max(v.TotalBytes, v.ToSendBytes)
	}
	return left, total
}

// viewResync gives the synchronization that runs, or nil.
func viewResync(r protocol.Record, seen map[lockstep.NodeID]Sight) *ResyncView {
	if r.State != protocol.StateCopying || len(r.Members) == 0 {
		return nil
	}
	v := &ResyncView{}
	v.ToSendBytes, v.TotalBytes = toSend(r, r.Members, seen)
	for _, n := range r.PrimaryNodes() {
		v.BytesPerSecond += seen[n].ResyncRate
	}
	return v
}

// percent is done of total in whole percent, "0" to "99".
func percent(done, total int64) string {
	if total <= 0 || done <= 0 {
		return "0"
	}
	p := int(float64(done) / float64(total) * 100)
	return strconv.Itoa(min(max(p, 0), 99))
}

package protocol

import (
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-dr/lockstep"
)

// RefusedError says why a transition is not possible from this record; nothing was changed.
type RefusedError struct {
	Want string // the transition asked for
	Have string // what the record says instead
}

func (e *RefusedError) Error() string { return e.Want + " refused: " + e.Have }

func refuse(want, format string, args ...any) error {
	return &RefusedError{Want: want, Have: fmt.Sprintf(format, args...)}
}

// Describe names the record's condition for error texts.
func (r Record) Describe() string {
	s := string(r.State)
	if r.FailedOver {
		s += ", failed over"
	}
	if r.InSync {
		s += ", in sync"
	} else {
		s += ", not in sync"
	}
	if r.Intent == IntentPaused {
		s += ", paused"
	}
	return fmt.Sprintf("epoch %d is %s", r.Epoch, s)
}

// next is the common part of every transition: a deep copy with the epoch raised.
func (r Record) next() Record {
	n := r.Clone()
	n.Epoch++
	n.Off = nil
	return n
}

// NewGroup is the first record of a group: not in sync, everything dirty, no boot ids.
func NewGroup(id lockstep.GroupID, project lockstep.ProjectID, primary, secondary lockstep.AZ, members []Member) Record {
	for i := range members {
		members[i].InSyncEpoch = 0
	}
	return Record{
		Group: id, Project: project, Epoch: 1, State: StateNormal, Intent: IntentPaused,
		Primary: primary, Secondary: secondary, Members: members, Cause: CauseNew, Fenced: true,
	}
}

// Trip asks for the group-wide stop after a fault. It is void unless the record is still at epoch.
func (r Record) Trip(at lockstep.Epoch, cause Cause, reason string) (Record, error) {
	if r.Epoch != at {
		return r, refuse("trip", "asked for at epoch %d, but %s", at, r.Describe())
	}
	if r.State != StateNormal || !r.InSync {
		return r, refuse("trip", "%s", r.Describe())
	}
	n := r.next()
	n.State, n.Cause, n.Reason, n.Drained = StateTripping, cause, reason, false
	return n, nil
}

// Pause stops replication at one common point. It is idempotent on a group that is stopped: then
// the record comes back with Intent paused and, if nothing else changed, the same epoch.
func (r Record) Pause() (Record, error) {
	switch r.State {
	case StateNormal:
		if !r.InSync {
			n := r.Clone()
			n.Intent = IntentPaused // the data path is not concerned: no new epoch
			return n, nil
		}
		n := r.next()
		n.State, n.Intent, n.Cause, n.Reason, n.Drained = StateTripping, IntentPaused, CausePause, "paused by request", false
		return n, nil
	case StateCopying:
		n := r.next()
		n.State, n.Intent, n.Cause, n.Reason = StateNormal, IntentPaused, CausePause, "paused while copying"
		if r.FailedOver {
			n.Cause = CauseFailover
		}
		return n, nil
	case StateTripping:
		n := r.Clone()
		n.Intent = IntentPaused
		return n, nil
	case StateFailovering, StateReversing, StateDeleted:
		return r, refuse("pause", "%s", r.Describe())
	}
	return r, refuse("pause", "unknown state %q", r.State)
}

// Sync starts copying from the primary to the secondary. On a group that failed over it is the
// reprotect: the direction always comes from the record.
func (r Record) Sync() (Record, error) {
	if len(r.Members) == 0 {
		return r, refuse("sync", "the group has no pairs")
	}
	if r.State != StateNormal || r.InSync {
		return r, refuse("sync", "%s", r.Describe())
	}
	// Files may be larger than announced until an extend has ended. A copying that began before goes
	// on; one that began now would look at what is beyond the announced size.
	for _, m := range r.Members {
		if m.ExtendBytes != 0 {
			return r, refuse("sync", "pair %s is being extended", m.Pair)
		}
		if m.NoImage {
			return r, refuse("sync", "pair %s had no consistent image when the group was failed over by force: only the other side has its data, and would be overwritten; remove it from the group first", m.Pair)
		}
	}
	n := r.next()
	n.State, n.Intent, n.FailedOver, n.Drained = StateCopying, IntentRun, false, false
	n.Reason = ""
	return n, nil
}

// AbortCopy ends a copying epoch without result; the primary goes on one-sided.
func (r Record) AbortCopy(at lockstep.Epoch, cause Cause, reason string) (Record, error) {
	if r.State != StateCopying || r.Epoch != at {
		return r, refuse("abort of copying", "asked for at epoch %d, but %s", at, r.Describe())
	}
	n := r.next()
	n.State, n.Cause, n.Reason = StateNormal, cause, reason
	return n, nil
}

// Failover asks the secondaries to take over. Only an in-sync record allows it [F1].
func (r Record) Failover() (Record, error) {
	if !r.InSync || r.State != StateNormal && r.State != StateTripping {
		return r, refuse("failover", "%s", r.Describe())
	}
	n := r.next()
	n.State, n.Reason = StateFailovering, ""
	return n, nil
}

// BackOut ends a failover that was not committed; a forced one leaves the group as it was. intact: all boot ids known now are the
// record's; then in sync is kept [F17]. Otherwise it goes by way of tripping.
func (r Record) BackOut(intact bool, reason string) (Record, error) {
	if r.State != StateFailovering {
		return r, refuse("back-out", "%s", r.Describe())
	}
	if r.Forced != nil {
		return r.backOutForced(reason), nil
	}
	n := r.next()
	n.Reason = reason
	if intact {
		n.commitInSync()
		return n, nil
	}
	n.State, n.Cause, n.Drained = StateTripping, CauseBackOut, false
	return n, nil
}

// Reverse starts the planned switchover.
func (r Record) Reverse() (Record, error) {
	if !r.InSync || r.State != StateNormal {
		return r, refuse("switchover", "%s", r.Describe())
	}
	n := r.next()
	n.State, n.Reason = StateReversing, ""
	return n, nil
}

// UndoReverse gives a switchover up: roles unchanged, in sync and boot ids kept.
func (r Record) UndoReverse(reason string) (Record, error) {
	if r.State != StateReversing {
		return r, refuse("undo of the switchover", "%s", r.Describe())
	}
	n := r.next()
	n.Reason = reason
	n.commitInSync()
	return n, nil
}

// SetMembers changes the membership of a group that does not replicate. Pairs that were not
// members come in as never synchronized.
func (r Record) SetMembers(members []Member) (Record, error) {
	if r.State != StateNormal || r.InSync {
		return r, refuse("membership change", "%s", r.Describe())
	}
	old := map[lockstep.PairID]Member{}
	for _, m := range r.Members {
		old[m.Pair] = m
	}
	n := r.next()
	n.Members = make([]Member, 0, len(members))
	for _, m := range members {
		if o, ok := old[m.Pair]; ok {
			m = o
		} else {
			m.InSyncEpoch = 0
		}
		n.Members = append(n.Members, m)
	}
	if len(n.Members) == 0 {
		n.FailedOver, n.Forced = false, nil
		n.Cause, n.Reason, n.Intent = CauseNew, "", IntentPaused
	}
	n.leave(r.Nodes())
	return n, nil
}

// leave notes who of before has no volume in the group any more: what is known of such a node's boot
// and directory counts no more, and it is to be told.
func (r *Record) leave(before []lockstep.NodeID) {
	now := r.Nodes()
	for _, node := range before {
		if !slices.Contains(now, node) {
			r.Untold = append(r.Untold, node)
			delete(r.BootIDs, node)
			delete(r.Instances, node)
		}
	}
	r.Untold = slices.DeleteFunc(r.Untold, func(n lockstep.NodeID) bool { return slices.Contains(now, n) })
	slices.Sort(r.Untold)
	r.Untold = slices.Compact(r.Untold)
}

// Told takes a node off the list of those that left and do not know it; the epoch stays.
func (r Record) Told(node lockstep.NodeID) Record {
	n := r.Clone()
	n.Untold = slices.DeleteFunc(n.Untold, func(u lockstep.NodeID) bool { return u == node })
	return n
}

// SetSizes announces new sizes after both sides of each pair have grown their files and maps. A
// copying goes on at the new epoch: it is an abort and a sync in one, so it may begin anew.
func (r Record) SetSizes(sizes map[lockstep.PairID]int64) (Record, error) {
	if r.State != StateNormal && r.State != StateCopying {
		return r, refuse("extend", "%s", r.Describe())
	}
	n := r.next()
	for i, m := range n.Members {
		size, ok := sizes[m.Pair]
		if !ok {
			continue
		}
		if size < m.SizeBytes {
			return r, refuse("extend", "pair %s has %d bytes, asked for %d: a volume never shrinks", m.Pair, m.SizeBytes, size)
		}
		n.Members[i].SizeBytes, n.Members[i].ExtendBytes = size, 0
	}
	if n.InSync {
		n.commitInSync()
	}
	return n, nil
}

// Delete turns the record of an empty or abandoned group into a tombstone.
func (r Record) Delete() (Record, error) {
	if r.State == StateDeleted {
		return r, nil
	}
	if r.State != StateNormal || r.InSync {
		return r, refuse("delete", "%s", r.Describe())
	}
	n := r.next()
	n.State = StateDeleted
	return n, nil
}

// SetStrict chooses the policy for a primary without its secondary. It is a new epoch, so that no
// node serves by another policy than its record's.
func (r Record) SetStrict(strict bool) (Record, error) {
	if r.State != StateNormal {
		return r, refuse("change of the policy", "%s", r.Describe())
	}
	n := r.next()
	n.Strict, n.StrictAt = strict, 0
	if strict {
		n.StrictAt = n.Epoch
	}
	if n.InSync {
		n.commitInSync()
	}
	return n, nil
}

// Continue is an operator's statement that a trip may end although a primary node does not confirm:
// the secondaries of that node are asked to fence it. The epoch stays.
func (r Record) Continue() (Record, error) {
	if r.State != StateTripping {
		return r, refuse("continue", "%s; only a trip that waits for a primary node can be continued", r.Describe())
	}
	n := r.Clone()
	n.ContinueAt = r.Epoch
	return n, nil
}

// ConfirmOff is the statement of an operator or a fencing device that a primary node's host is powered
// off, so that it comes back under another boot id, and not without the store [F2]:
// a trip, or the lease wait of a failover, need not wait for its word [F10]. The epoch stays.
func (r Record) ConfirmOff(node lockstep.NodeID) (Record, error) {
	if r.State != StateTripping && r.State != StateFailovering {
		return r, refuse("confirmation that a node is off", "%s; only a trip or a failover waits for a primary node", r.Describe())
	}
	if !slices.Contains(r.PrimaryNodes(), node) {
		return r, refuse("confirmation that a node is off", "node %s is not a primary node of this group", node)
	}
	n := r.Clone()
	if n.Off == nil {
		n.Off = map[lockstep.NodeID]lockstep.Epoch{}
	}
	n.Off[node] = r.Epoch
	return n, nil
}

// AcceptDirectory is an operator's statement that the directory with that instance id, which is not
// the recorded one, counts as the primary's image of the volumes at that node. The epoch stays.
func (r Record) AcceptDirectory(node lockstep.NodeID, instance string) (Record, error) {
	if r.InSyncEpoch == 0 || r.State != StateNormal && r.State != StateTripping {
		return r, refuse("accepting a directory", "%s", r.Describe())
	}
	if !slices.Contains(r.PrimaryNodes(), node) {
		return r, refuse("accepting a directory", "node %s is not a primary node of this group", node)
	}
	if instance == "" || r.Instances[node] == "" || r.Instances[node] == instance {
		return r, refuse("accepting a directory", "the directory of node %s is the recorded one", node)
	}
	n := r.Clone()
	if n.Accepted == nil {
		n.Accepted = map[lockstep.NodeID]string{}
	}
	n.Accepted[node] = instance
	return n, nil
}

// AcceptLost is an operator's statement that a secondary node is gone for good: a primary that
// restarted its host keeps its own image of the volumes there, which may lack unflushed writes.
func (r Record) AcceptLost(node lockstep.NodeID) (Record, error) {
	if r.InSyncEpoch == 0 || r.State != StateNormal && r.State != StateTripping {
		return r, refuse("giving up a secondary", "%s", r.Describe())
	}
	if !slices.Contains(r.SecondaryNodes(), node) {
		return r, refuse("giving up a secondary", "node %s is not a secondary of this group", node)
	}
	n := r.Clone()
	if n.Lost == nil {
		n.Lost = map[lockstep.NodeID]lockstep.Epoch{}
	}
	n.Lost[node] = r.InSyncEpoch
	return n, nil
}

// Recovered is the record after the store was restored from an older copy. r is the newest that the
// store or a node has, above the highest epoch that a node reports. confirmed: every node of the
// group reports this very record, under its recorded boot id and directory; else it is not in sync,
// for what was decided after it is not known.
func (r Record) Recovered(above lockstep.Epoch, confirmed bool) Record {
	n := r.next()
	n.Epoch = max(r.Epoch, above) + 1
	n.ContinueAt, n.RecoveredAt = 0, n.Epoch
	if r.State == StateDeleted {
		return n
	}
	if r.State == StateFailovering && r.Forced != nil { // not committed: nothing was lost, and no pair is without its data
		n.Forced = nil
		for i := range n.Members {
			n.Members[i].NoImage = false
		}
	}
	n.State = StateNormal
	n.Reason = "the store was restored from an older copy"
	for i := range n.Members {
		n.Members[i].ExtendBytes = 0
	}
	if confirmed && r.InSync && r.State == StateNormal {
		n.commitInSync()
		return n
	}
	n.InSync, n.Drained, n.Fenced, n.Cause = false, false, false, CauseStore
	if r.InSyncEpoch == 0 {
		n.Cause = CauseNew
	}
	return n
}

// RenewBoot records a primary node's new boot id after it took its regions back [F2], or, with
// f5, after both sides rebooted and it keeps its own image by way of tripping [F5] [F18].
func (r Record) RenewBoot(at lockstep.Epoch, node lockstep.NodeID, boot lockstep.BootID, instance string, f5 bool) (Record, error) {
	if r.Epoch != at || r.State == StateFailovering || r.State == StateDeleted {
		return r, refuse("renewal of a boot id", "asked for at epoch %d, but %s", at, r.Describe())
	}
	n := r.next()
	if n.BootIDs == nil {
		n.BootIDs = map[lockstep.NodeID]lockstep.BootID{}
	}
	if n.Instances == nil {
		n.Instances = map[lockstep.NodeID]string{}
	}
	n.BootIDs[node], n.Instances[node] = boot, instance
	delete(n.Accepted, node)
	if f5 && n.InSync {
		n.State, n.Cause, n.Drained = StateTripping, CausePrimaryBoot, false
		n.Reason = fmt.Sprintf("node %s and its secondary both restarted with a new boot id", node)
	}
	return n, nil
}

// commitInSync makes n an in-sync record at rest at its own epoch.
func (r *Record) commitInSync() {
	r.State, r.InSync = StateNormal, true
	r.Intent = IntentRun // a pause that ends in sync has failed, whatever came between
	r.Cause, r.Drained = CauseNone, false
	r.ContinueAt, r.Lost, r.Accepted = 0, nil, nil
	r.Fenced, r.Forced, r.StoppedAtMs = true, nil, 0
	r.InSyncEpoch = r.Epoch
	for i := range r.Members {
		r.Members[i].InSyncEpoch = r.Epoch
	}
}

// Contradicts reports that r cannot be what became of was, the record that node has persisted last. The
// store was restored from an older copy then, and has gone on to make epochs of its own.
func (r Record) Contradicts(was Record, node lockstep.NodeID) bool {
	switch {
	case was.Epoch == 0 || r.Epoch < was.Epoch || r.RecoveredAt > was.Epoch:
		return false
	case r.Epoch == was.Epoch:
		return !r.sameConfiguration(was)
	case r.InSyncEpoch <= was.Epoch && r.InSyncEpoch != was.InSyncEpoch:
		return true // nothing came in sync meanwhile, and yet the last commit is another
	}
	// No volume of a node comes in sync unless it has persisted the copying epoch, and no node becomes
	// primary unless it has persisted the failover or the switchover.
	for _, m := range r.Members {
		if m.holds(node) && m.InSyncEpoch > was.Epoch && !was.InSync && was.State != StateCopying {
			return true
		}
	}
	return r.Primary != was.Primary && was.State != StateFailovering && was.State != StateReversing &&
		slices.Contains(was.SecondaryNodes(), node) && slices.Contains(r.PrimaryNodes(), node)
}

func (m Member) holds(node lockstep.NodeID) bool {
	return m.Replicas[0].Node == node || m.Replicas[1].Node == node
}

// sameConfiguration compares all that never changes within an epoch.
func (r Record) sameConfiguration(o Record) bool {
	if r.State != o.State || r.InSync != o.InSync || r.Primary != o.Primary || r.Secondary != o.Secondary ||
		r.FailedOver != o.FailedOver || r.Strict != o.Strict || r.StrictAt != o.StrictAt || r.Fenced != o.Fenced ||
		r.Drained != o.Drained || r.RecoveredAt != o.RecoveredAt || r.InSyncEpoch != o.InSyncEpoch ||
		r.forcedAt() != o.forcedAt() || !maps.Equal(r.BootIDs, o.BootIDs) || !maps.Equal(r.Instances, o.Instances) {
		return false
	}
	return slices.EqualFunc(r.Members, o.Members, func(a, b Member) bool {
		return a.Pair == b.Pair && a.Replicas == b.Replicas && a.SizeBytes == b.SizeBytes && a.InSyncEpoch == b.InSyncEpoch && a.NoImage == b.NoImage
	})
}

func (r Record) forcedAt() lockstep.Epoch {
	if r.Forced == nil {
		return 0
	}
	return r.Forced.Epoch
}

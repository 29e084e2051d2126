package protocol

import (
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
)

// Advance decides, from the answers of the nodes, whether a record in transition has reached its
// end, and gives the record that follows. It is run by the leading controller and by primary
// nodes alike; whoever commits compares the record and every answer it counted. used lists those.
// patience: the transition has lasted long enough that ways back may be taken.
func Advance(r Record, answers map[lockstep.NodeID]Answer, patience bool) (next Record, used []lockstep.NodeID, ok bool) {
	at := func(node lockstep.NodeID) (Answer, bool) {
		a, ok := answers[node]
		return a, ok && a.Epoch == r.Epoch && a.Group == r.Group
	}
	switch r.State {
	case StateTripping:
		return advanceTripping(r, at, patience)
	case StateCopying:
		return advanceCopying(r, at)
	case StateFailovering:
		if r.Forced != nil {
			return advanceForced(r, answers, at, patience)
		}
		return advanceFailovering(r, at)
	case StateReversing:
		return advanceReversing(r, at)
	case StateNormal, StateDeleted:
	}
	return r, nil, false
}

type answerAt func(lockstep.NodeID) (Answer, bool)

// advanceTripping: tripped once every primary node itself has confirmed with all its volumes
// healthy, is off by an operator's word or, on an operator's continue, is fenced by all its
// secondaries [F10]; else back to in sync [F21] when every node that holds reports its secondaries back.
func advanceTripping(r Record, at answerAt, patience bool) (Record, []lockstep.NodeID, bool) {
	nodes := r.PrimaryNodes()
	confirmed, back, drained := 0, 0, true
	var used []lockstep.NodeID
	for _, node := range nodes {
		a, ok := at(node)
		if !ok || a.Step != StepTripping || a.BootID == "" || !a.Healthy {
			if r.isOff(node) {
				confirmed++
				drained = false
				continue
			}
			if by, ok := fencedBy(r, node, at); ok {
				confirmed++
				drained = false
				used = append(used, by...)
				continue
			}
		}
		if !ok || a.Step != StepTripping || a.BootID == "" {
			continue
		}
		used = append(used, node)
		if a.Healthy {
			confirmed++
			drained = drained && a.Drained
		}
		if a.PeersBack && a.BootID == r.BootIDs[node] {
			back++
		}
	}
	if confirmed == len(nodes) {
		n := r.next()
		n.State, n.InSync = StateNormal, false
		n.Drained = n.Intent == IntentPaused && n.Cause == CausePause && drained
		if n.Intent == IntentPaused && !n.Drained && n.Cause == CausePause {
			n.Cause, n.Reason = CauseLink, "the pause could not bring every write to both sides"
		}
		n.ContinueAt = 0
		slices.Sort(used)
		return n, slices.Compact(used), true
	}
	var held []lockstep.NodeID
	for _, node := range nodes {
		if a, ok := at(node); ok && a.Step == StepTripping {
			held = append(held, node)
		}
	}
	if patience && len(held) > 0 && back == len(held) && r.Cause != CausePrimaryBoot {
		n := r.next()
		n.commitInSync()
		n.Reason = "the trip was taken back: a primary node did not confirm, and every secondary answers again"
		return n, held, true
	}
	return r, nil, false
}

// isOff: by a statement made at this very epoch.
func (r Record) isOff(node lockstep.NodeID) bool { return r.Off[node] == r.Epoch && r.Epoch != 0 }

// fencedBy lists the secondaries that have fenced a primary node on an operator's continue; ok only
// if that is every one that holds a volume of the group which the node serves.
func fencedBy(r Record, node lockstep.NodeID, at answerAt) (by []lockstep.NodeID, ok bool) {
	if r.ContinueAt != r.Epoch {
		return nil, false
	}
	peers := r.PeersOf(node, r.Primary)
	for _, peer := range peers {
		if a, ok := at(peer); !ok || a.Step != StepFenced {
			return nil, false
		}
	}
	return peers, len(peers) > 0
}

// advanceCopying: in sync when every primary node reports two-sided; the boot ids are those of the
// flush answers, never asked for at commit time [F6].
func advanceCopying(r Record, at answerAt) (Record, []lockstep.NodeID, bool) {
	nodes := r.PrimaryNodes()
	boots := map[lockstep.NodeID]lockstep.BootID{}
	instances := map[lockstep.NodeID]string{}
	for _, node := range nodes {
		a, ok := at(node)
		if !ok || a.Step != StepTwoSided || !a.Healthy {
			return r, nil, false
		}
		boots[node], instances[node] = a.BootID, a.Instance
		for _, peer := range r.PeersOf(node, r.Primary) {
			boot := a.PeerBoots[peer]
			if boot == "" {
				return r, nil, false
			}
			if have, seen := boots[peer]; seen && have != boot {
				return r, nil, false // two primaries flushed two lives of one secondary
			}
			boots[peer], instances[peer] = boot, a.PeerInstances[peer]
		}
	}
	n := r.next()
	n.BootIDs, n.Instances = boots, instances
	n.Reason = ""
	n.commitInSync()
	return n, nodes, true
}

// advanceFailovering: the secondary AZ becomes primary when all its nodes answered under their
// recorded boot ids. One with another boot id ends it by way of tripping; a failed one as it was.
func advanceFailovering(r Record, at answerAt) (Record, []lockstep.NodeID, bool) {
	nodes := r.SecondaryNodes()
	ready := 0
	for _, node := range nodes { // before all else: in sync must not be kept with one of these
		if a, ok := at(node); ok && a.Step == StepReady && a.BootID != r.BootIDs[node] {
			n, err := r.BackOut(false, fmt.Sprintf("secondary node %s has restarted its host since the last in-sync commit; it may lack writes", node))
			return n, []lockstep.NodeID{node}, err == nil
		}
	}
	for _, node := range nodes {
		a, ok := at(node)
		if !ok || a.Step != StepReady {
			continue
		}
		if !a.Healthy {
			n, err := r.BackOut(true, fmt.Sprintf("secondary node %s: %s", node, a.Error))
			return n, []lockstep.NodeID{node}, err == nil
		}
		ready++
	}
	if ready != len(nodes) {
		return r, nil, false
	}
	n := r.next()
	n.State, n.InSync, n.FailedOver = StateNormal, false, true
	n.Primary, n.Secondary = r.Secondary, r.Primary
	n.Cause, n.Reason, n.Drained = CauseFailover, "", false
	n.Fenced = true
	var held []lockstep.NodeID
	for _, node := range r.PrimaryNodes() {
		a, ok := at(node)
		switch {
		case ok && a.Step == StepHeld:
			held = append(held, node)
		case !r.isOff(node):
			n.Fenced = false
		}
	}
	if n.Fenced {
		nodes = append(nodes, held...)
	}
	return n, nodes, true
}

// advanceReversing: the roles swap when every primary node has drained, held and had both sides
// flushed under the recorded boot ids; otherwise it ends with the roles unchanged.
func advanceReversing(r Record, at answerAt) (Record, []lockstep.NodeID, bool) {
	nodes := r.PrimaryNodes()
	done := 0
	for _, node := range nodes {
		a, ok := at(node)
		if !ok {
			continue
		}
		switch {
		case a.Step == StepGaveUp:
			n, err := r.UndoReverse(fmt.Sprintf("node %s: %s", node, a.Error))
			return n, []lockstep.NodeID{node}, err == nil
		case a.Step != StepReversed:
			continue
		case a.BootID != r.BootIDs[node]:
			n, err := r.UndoReverse(fmt.Sprintf("node %s restarted its host during the switchover", node))
			return n, []lockstep.NodeID{node}, err == nil
		}
		for _, peer := range r.PeersOf(node, r.Primary) {
			if a.PeerBoots[peer] != r.BootIDs[peer] {
				n, err := r.UndoReverse(fmt.Sprintf("secondary node %s restarted its host during the switchover", peer))
				return n, []lockstep.NodeID{node}, err == nil
			}
		}
		done++
	}
	if done != len(nodes) {
		return r, nil, false
	}
	n := r.next()
	n.Primary, n.Secondary = r.Secondary, r.Primary
	n.Reason = ""
	n.commitInSync()
	return n, nodes, true
}

package protocol

import (
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
)

// Forced is a failover to an image that lacks writes. It stands in the record from when it is asked
// for until the sides are in sync again: meanwhile the side that lost holds what the group gave up.
type Forced struct {
	// Epoch is the failovering epoch; it names the divergence image of the side that lost.
	Epoch lockstep.Epoch `json:"epoch"`
	// Waived: a user gave the divergence image up; it need not be kept, or kept any longer.
	Waived bool `json:"waived,omitempty"`
	// FlushOnly are secondary nodes whose host had restarted since the last in-sync commit, as whoever
	// asked was told: their image is consistent as of what they had flushed.
	FlushOnly []lockstep.NodeID `json:"flush_only,omitempty"`
}

// ForceFailover asks the secondaries to take over with their last consistent image, although the
// record at epoch at says that it lacks writes. Pairs whose last in-sync commit was not the group's
// have no image: they stay unserved. flushOnly is what whoever asks was told; see Forced.
func (r Record) ForceFailover(at lockstep.Epoch, flushOnly []lockstep.NodeID) (Record, error) {
	const what = "forced failover"
	switch {
	case r.Epoch != at:
		return r, refuse(what, "asked for at epoch %d, but %s", at, r.Describe())
	case r.InSync:
		return r, refuse(what, "%s: a failover that loses nothing is possible, or under way", r.Describe())
	case r.State != StateNormal && r.State != StateCopying:
		return r, refuse(what, "%s", r.Describe())
	case r.FailedOver:
		return r, refuse(what, "%s: the other side is what was failed over from", r.Describe())
	case r.Forced != nil:
		return r, refuse(what, "%s: the other side lost the forced failover of epoch %d, and what it has is never failed over to", r.Describe(), r.Forced.Epoch)
	case r.InSyncEpoch == 0:
		return r, refuse(what, "%s: it was never synchronized, so the secondary has no consistent image", r.Describe())
	case !r.Fenced:
		// It may have written on without an acknowledgement, after others were given elsewhere.
		return r, refuse(what, "%s: the other side has not confirmed that it held before a failover, so its image is no consistent cut", r.Describe())
	}
	n := r.next()
	n.State, n.Forced = StateFailovering, &Forced{Epoch: n.Epoch, FlushOnly: slices.Clone(flushOnly)}
	images := 0
	for i, m := range n.Members {
		n.Members[i].ExtendBytes = 0 // a failover in between keeps the old size
		n.Members[i].NoImage = m.InSyncEpoch != r.InSyncEpoch
		if !n.Members[i].NoImage {
			images++
		}
	}
	if images == 0 {
		return r, refuse(what, "no pair of the group was in sync with it: there is no consistent image")
	}
	return n, nil
}

// backOutForced ends a forced failover that was not committed: the group is as it was, not in sync.
// What a secondary rolled back meanwhile is dirty there.
func (r Record) backOutForced(reason string) Record {
	n := r.next()
	n.State, n.Reason, n.Forced = StateNormal, reason, nil
	for i := range n.Members {
		n.Members[i].NoImage = false
	}
	return n
}

// advanceForced: the secondary AZ becomes primary when all its nodes hold the last consistent image,
// durably, and every old primary node has confirmed that it holds, or is off by an operator's word.
// Where the policy is strict it need not be waited for: what it served by ends by itself, and the
// new primary waits for that. A secondary whose host restarted without that whoever asked was told
// may lack what it had not flushed: that ends it.
func advanceForced(r Record, answers map[lockstep.NodeID]Answer, at answerAt, patience bool) (Record, []lockstep.NodeID, bool) {
	used := r.SecondaryNodes()
	ready := 0
	for _, node := range used {
		a, ok := at(node)
		if !ok || a.Step != StepReady {
			continue
		}
		if a.BootID != r.BootIDs[node] && !slices.Contains(r.Forced.FlushOnly, node) {
			return r.backOutForced(fmt.Sprintf("the forced failover was given up: the host of secondary node %s was restarted since the preview, so its image is consistent only as of what was flushed: look at a new preview", node)), []lockstep.NodeID{node}, true
		}
		if !a.Healthy {
			return r.backOutForced(fmt.Sprintf("the forced failover was given up: secondary node %s: %s", node, a.Error)), []lockstep.NodeID{node}, true
		}
		ready++
	}
	if ready != len(used) {
		return r, nil, false
	}
	fenced := true
	for _, node := range r.PrimaryNodes() {
		if a, ok := at(node); ok && a.Step == StepHeld {
			used = append(used, node)
			continue
		}
		if r.isOff(node) {
			continue
		}
		fenced = false
		if !patience || !r.boundByStore(node, answers) {
			return r, nil, false
		}
		used = append(used, node)
	}
	n := r.next()
	n.State, n.InSync, n.FailedOver = StateNormal, false, true
	n.Primary, n.Secondary = r.Secondary, r.Primary
	n.Cause, n.Reason, n.Drained = CauseFailover, "", false
	n.Fenced = fenced
	slices.Sort(used)
	return n, slices.Compact(used), true
}

// boundByStore: the node has persisted an epoch since which the policy is strict, so alone it serves
// only under a lease from the store [F16].
func (r Record) boundByStore(node lockstep.NodeID, answers map[lockstep.NodeID]Answer) bool {
	a, ok := answers[node]
	return r.Strict && r.StrictAt != 0 && ok && a.Group == r.Group && a.Epoch >= r.StrictAt
}

// DiscardImage is a user's word that the divergence image of that forced failover is not needed: the
// nodes that have it remove it, and one that has it still to make does not. The epoch stays.
func (r Record) DiscardImage(epoch lockstep.Epoch) Record {
	n := r.Clone()
	if n.Forced != nil && n.Forced.Epoch == epoch {
		n.Forced.Waived = true // of the clone
	}
	n.Discard = append(n.Discard, epoch)
	slices.Sort(n.Discard)
	n.Discard = slices.Compact(n.Discard)
	return n
}

// lostForced: this node belongs to the side that lost a forced failover, and must keep what it has
// before anything overwrites it. Another directory than the recorded one is not what lost.
func (c *Core) lostForced() bool {
	f := c.rec.Forced
	return f != nil && !f.Waived && c.rec.State != StateFailovering && !c.otherInstance(c.cfg.Node, c.cfg.Instance)
}

// keepImage is the step that does so. A pair without an image at the other side is not overwritten.
func (c *Core) keepImage() KeepImage {
	return KeepImage{Epoch: c.rec.Forced.Epoch, Pairs: c.rec.withImage()}
}

// rollBack is the step by which a secondary goes back to its last consistent image.
func (c *Core) rollBack() RollBack {
	return RollBack{InSyncEpoch: c.rec.InSyncEpoch, Pairs: c.rec.withImage()}
}

// withImage lists the pairs that a forced failover takes.
func (r Record) withImage() []lockstep.PairID {
	var pairs []lockstep.PairID
	for _, m := range r.Members {
		if !m.NoImage {
			pairs = append(pairs, m.Pair)
		}
	}
	return pairs
}

// StampStop gives next, which is about to be written in place of r, the time at which replication
// stopped, by the clock of whoever writes it: whatever was acknowledged before is in the secondary's
// image. Only the step that leaves in sync gets it.
func (r Record) StampStop(next Record, unixMs int64) Record {
	if r.InSync && r.State == StateNormal && (next.State == StateTripping || next.State == StateFailovering) {
		next.StoppedAtMs = unixMs
	}
	return next
}

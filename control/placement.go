package control

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// place chooses the AZ and the node of a new volume: the node that its metadata names, else the
// one of the AZ with the least allocated bytes, then the fewest volumes, then the first. A node
// counts only while it is alive and its pool has the space that volumes not yet made leave.
func (c *Controller) place(s *snapshot, v *store.Volume, az lockstep.AZ) error {
	zones := c.zones(s.nodes, s.alive)
	if az == "" && len(zones) > 0 {
		az = zones[0].Name
	}
	if !slices.ContainsFunc(zones, func(z Zone) bool { return z.Name == az }) {
		return badRequest("", "availability_zone %q is not known", az)
	}
	v.AZ = az
	var inAZ []lockstep.NodeID
	for _, n := range slices.Sorted(maps.Keys(s.nodes)) {
		if s.nodes[n].AZ == az {
			inAZ = append(inAZ, n)
		}
	}
	candidates := inAZ
	if want, pinned := v.Metadata[metadataNode]; pinned {
		node, err := pinnedNode(inAZ, az, want)
		if err != nil {
			return err
		}
		candidates = []lockstep.NodeID{node}
	}
	candidates = slices.DeleteFunc(slices.Clone(candidates), func(n lockstep.NodeID) bool {
		_, alive := s.alive[n]
		return !alive
	})
	if len(candidates) == 0 {
		return refusal(KindUnavailable, "", "no storage node that could hold the volume is alive in %s", az)
	}

	type load struct{ allocated, promised, count int64 }
	loads := map[lockstep.NodeID]*load{}
	for _, n := range candidates {
		loads[n] = &load{}
	}
	for id, other := range s.volumes {
		l := loads[other.Node]
		if l == nil {
			continue
		}
		l.allocated += other.SizeBytes
		l.count++
		if o, reported := s.observed[id]; !reported || o.State != observedPresent {
			l.promised += other.SizeBytes
		}
	}
	most := int64(0)
	fits := slices.DeleteFunc(candidates, func(n lockstep.NodeID) bool {
		free := s.nodes[n].FreeBytes - loads[n].promised
		most = max(most, free)
		return free < v.SizeBytes
	})
	if len(fits) == 0 {
		return refusal(KindQuota, codeNoRoom, "no pool of %s has %d GiB free; the emptiest has %d GiB",
			az, v.SizeBytes/lockstep.GiB, most/lockstep.GiB)
	}
	v.Node = slices.MinFunc(fits, func(a, b lockstep.NodeID) int {
		return cmp.Or(
			cmp.Compare(loads[a].allocated, loads[b].allocated),
			cmp.Compare(loads[a].count, loads[b].count),
			cmp.Compare(a, b))
	})
	return nil
}

// pinnedNode finds the node that metadata names: by its id, or as a number n, the n-th of its AZ
// in the order of ids, from 1.
func pinnedNode(inAZ []lockstep.NodeID, az lockstep.AZ, want string) (lockstep.NodeID, error) {
	if slices.Contains(inAZ, lockstep.NodeID(want)) {
		return lockstep.NodeID(want), nil
	}
	if n, err := strconv.Atoi(want); err == nil && n >= 1 && n <= len(inAZ) {
		return inAZ[n-1], nil
	}
	return "", badRequest("", "metadata key %q is %q; it must be the id of a node of %s, or its number from 1 to %d",
		metadataNode, want, az, len(inAZ))
}

// newestFirst orders by creation, the newest first, then by id.
func newestFirst(a, b time.Time, idA, idB string) int {
	return cmp.Or(b.Compare(a), cmp.Compare(idA, idB))
}

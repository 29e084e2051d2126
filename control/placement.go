package control

import (
	"cmp"
	"maps"
	"slices"
	"strconv"

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

	loads := s.loads
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

// nodeLoad is what the volumes of a node take, by their records: bytes of all, bytes of those whose file the node
// has not reported yet, and how many there are.
type nodeLoad struct{ allocated, promised, count int64 }

// weigh adds a volume to its node's load, or takes it off; before and after each change of it or its report.
func (s *snapshot) weigh(id lockstep.VolumeID, sign int64) {
	v, found := s.volumes[id]
	if !found {
		return
	}
	l := s.loads[v.Node]
	l.allocated += sign * v.SizeBytes
	l.count += sign
	if o, reported := s.observed[id]; !reported || o.State != observedPresent {
		l.promised += sign * v.SizeBytes
	}
	if s.loads[v.Node] = l; l.count == 0 {
		delete(s.loads, v.Node)
	}
}

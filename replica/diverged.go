package replica

import (
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk"
	"github.com/lockstep-dr/lockstep/protocol"
)

// memberOf gives the member that has the volume, or none.
func memberOf(r protocol.Record, id lockstep.VolumeID) protocol.Member {
	for _, m := range r.Members {
		if m.Replicas[0].Volume == id || m.Replicas[1].Volume == id {
			return m
		}
	}
	return protocol.Member{}
}

// withoutImage names the volume's pair if the group was failed over by force to a side that has no
// consistent image of it; owned by run.
func (g *Group) withoutImage(v *Volume) lockstep.PairID {
	r := g.core.Record()
	m := memberOf(r, v.id)
	if role, _, _ := g.core.Status(); role != protocol.RolePrimary || !m.NoImage || !r.FailedOver {
		return ""
	}
	return m.Pair
}

func noImage(pair lockstep.PairID) string {
	return fmt.Sprintf("pair %s had no consistent image here when the group was failed over by force; remove it from the group", pair)
}

// discardImages removes the divergence images that a user deleted, beside the loop: an open image
// may be large. What fails is tried again with the next life of the process. A volume that leaves the
// group with this very record is meant, too: no other group's epochs say what its images are.
func (g *Group) discardImages(v View) {
	if slices.Equal(v.Record.Discard, g.discarded) {
		return
	}
	g.discarded = slices.Clone(v.Record.Discard)
	epochs, vols := g.discarded, g.volumes()
	for id := range g.members(v.Saved.Record) {
		if left := g.host.volume(id); left != nil && !slices.Contains(vols, left) {
			vols = append(vols, left)
		}
	}
	g.jobs.Go(func() {
		for _, v := range vols {
			for _, e := range epochs {
				if err := v.disk.DropImage(e); err != nil {
					g.log.Error("drop divergence image", "volume", v.id, "epoch", e, "err", err)
				}
			}
		}
	})
}

// OpenImage opens a divergence image of the volume for reading.
func (v *Volume) OpenImage(epoch lockstep.Epoch) (*disk.Image, error) { return v.disk.OpenImage(epoch) }

// Images lists the epochs of the volume's divergence images.
func (v *Volume) Images() []lockstep.Epoch { return v.disk.Images() }

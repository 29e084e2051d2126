package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// DivergenceImage is what a side had when it lost a forced failover, read-only.
type DivergenceImage struct {
	Epoch   lockstep.Epoch // of the forced failover; names it
	At      time.Time      // when that was asked for; zero: the history does not go back so far
	Volumes []DivergedVolume
}

// DivergedVolume is one volume of a divergence image.
type DivergedVolume struct {
	Pair   lockstep.PairID
	Volume lockstep.VolumeID
	Node   lockstep.NodeID
	// Export is the image's name at the node's NBD server.
	Export string
	URI    string // empty: the node is not known
}

// DivergenceImages lists a group's divergence images, the oldest first, as their nodes report them.
func (c *Controller) DivergenceImages(ctx context.Context, caller Caller, id lockstep.GroupID) ([]DivergenceImage, error) {
	var out []DivergenceImage
	err := c.update(ctx, nil, func(t *tx) error {
		x, err := t.look(caller, id)
		if err != nil {
			return err
		}
		seen, err := x.reports()
		if err != nil {
			return err
		}
		byEpoch := map[lockstep.Epoch]*DivergenceImage{}
		for _, m := range x.r.Members {
			for _, rep := range m.Replicas {
				for _, e := range imagesOf(x.r, seen, rep) {
					i := byEpoch[e]
					if i == nil {
						i = &DivergenceImage{Epoch: e}
						byEpoch[e] = i
					}
					n, _, err := peek[store.Node](t, store.KeyNode(rep.Node))
					if err != nil {
						return err
					}
					export := imageExport(rep.Volume, e)
					i.Volumes = append(i.Volumes, DivergedVolume{
						Pair: m.Pair, Volume: rep.Volume, Node: rep.Node, Export: export, URI: nbdURI(n, export),
					})
				}
			}
		}
		out = out[:0]
		for e, i := range byEpoch {
			h, found, err := peek[store.HistoryEntry](t, keyHistoryEpoch(id, e))
			if err != nil {
				return err
			}
			if found {
				i.At = h.At
			}
			out = append(out, *i)
		}
		slices.SortFunc(out, func(a, b DivergenceImage) int { return int(int64(a.Epoch) - int64(b.Epoch)) })
		return nil
	})
	return out, asRefusal(err)
}

// imageExport is the export name of a divergence image at its node.
func imageExport(id lockstep.VolumeID, epoch lockstep.Epoch) string {
	return fmt.Sprintf("%s@diverged-%d", id, epoch)
}

// imagesOf lists the divergence images of a replica that are there and not deleted.
func imagesOf(r protocol.Record, seen map[lockstep.NodeID]store.GroupObserved, rep protocol.Replica) []lockstep.Epoch {
	var out []lockstep.Epoch
	for _, e := range seen[rep.Node].Volumes[rep.Volume].Images {
		if !slices.Contains(r.Discard, lockstep.Epoch(e)) {
			out = append(out, lockstep.Epoch(e))
		}
	}
	return out
}

// DeleteDivergenceImage removes a divergence image, for good; a node that is away removes it when it
// is back. The image of the last forced failover may be given up before it was made: then the
// reprotect overwrites what the side that lost had.
func (c *Controller) DeleteDivergenceImage(ctx context.Context, caller Caller, id lockstep.GroupID, epoch lockstep.Epoch) error {
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		x, err := t.begin(caller, id)
		if err != nil {
			return err
		}
		seen, err := x.reports()
		if err != nil {
			return err
		}
		known := x.r.Forced != nil && x.r.Forced.Epoch == epoch && !x.r.Forced.Waived && x.r.FailedOver
		for _, m := range x.r.Members {
			for _, rep := range m.Replicas {
				known = known || slices.Contains(imagesOf(x.r, seen, rep), epoch)
			}
		}
		if !known {
			return notFound("", "group %s has no divergence image %d", id, epoch)
		}
		next := x.r.DiscardImage(epoch)
		t.put(store.KeyRecord(id), next)
		t.event(next, fmt.Sprintf("divergence image %d deleted", epoch), caller.who(), caller.RequestID)
		return nil
	}))
}

// checkImagesKept refuses a reprotect before the side that lost a forced failover has kept what it
// alone had: it would be overwritten.
func (x *acting) checkImagesKept() error {
	f := x.r.Forced
	if f == nil || f.Waived {
		return nil
	}
	seen, err := x.reports()
	if err != nil {
		return err
	}
	for _, m := range x.r.Members {
		old := m.In(x.r.Secondary)
		kept, err := x.imageKept(x.r, m, seen[old.Node])
		if err != nil {
			return err
		}
		if !kept {
			why := seen[old.Node].Why
			if why != "" {
				why = " (" + why + ")"
			}
			return conflict("", "reprotect refused: node %s has not kept what volume %s alone had yet%s, and it would be overwritten; try again, make room in its pool, or give divergence image %d up by deleting it",
				old.Node, old.Volume, why, f.Epoch)
		}
	}
	return nil
}

// imageKept reports whether nothing is left to be kept of what a pair's side lost in the forced failover
// that stands in the record; o is the report of that side's node.
func (t *tx) imageKept(r protocol.Record, m protocol.Member, o store.GroupObserved) (bool, error) {
	if r.Forced == nil || r.Forced.Waived || m.NoImage {
		return true, nil
	}
	old := m.In(r.Secondary)
	n, _, err := peek[store.Node](t, store.KeyNode(old.Node))
	if err != nil {
		return false, err
	}
	if want := r.Instances[old.Node]; want != "" && n.Instance != want {
		return true, nil // another directory: what lost is not in it
	}
	return slices.Contains(o.Volumes[old.Volume].Images, uint64(r.Forced.Epoch)), nil
}

// checkNoImages refuses to let a pair go while a divergence image of it is kept, or is still to be made:
// nobody would find it, and in another group what it is of would be overwritten.
func (t *tx) checkNoImages(r protocol.Record, m protocol.Member) error {
	for _, rep := range m.Replicas {
		// The record is compared, and no image is made while it asks for none.
		o, _, err := peek[store.GroupObserved](t, store.KeyObservedGroup(r.Group, rep.Node))
		if err != nil {
			return err
		}
		if images := imagesOf(r, map[lockstep.NodeID]store.GroupObserved{rep.Node: o}, rep); len(images) > 0 {
			return conflict("", "replication pair %s has divergence image %d on node %s: export what is needed of it and delete it first", m.Pair, images[0], rep.Node)
		}
		if rep != m.In(r.Secondary) {
			continue
		}
		if kept, err := t.imageKept(r, m, o); err != nil {
			return err
		} else if !kept {
			return conflict("", "replication pair %s lost a forced failover, and node %s has not kept what it alone had yet: wait for it, or give divergence image %d up by deleting it", m.Pair, rep.Node, r.Forced.Epoch)
		}
	}
	return nil
}

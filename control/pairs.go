package control

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// CreatePair makes a production volume and a DR volume one pair. From then on the DR volume is
// not served; it replicates once the pair is in a group.
func (c *Controller) CreatePair(ctx context.Context, caller Caller, req PairCreate) (PairView, error) {
	if err := checkTexts(req.Name, req.Description); err != nil {
		return PairView{}, err
	}
	if err := checkModel(req.Model); err != nil {
		return PairView{}, err
	}
	if len(req.Volumes) != 2 || req.Volumes[0] == req.Volumes[1] {
		return PairView{}, badRequest("", "volume_ids names %d volumes; a pair needs two different ones", len(req.Volumes))
	}
	id := lockstep.PairID(newID())
	var pair store.Pair
	err := c.update(ctx, nil, func(t *tx) error {
		vols, err := t.pairVolumes(caller, req)
		if err != nil {
			return err
		}
		prod, dr := vols[0], vols[1]
		if prod.AZ != req.Priority {
			prod, dr = dr, prod
		}
		if err := c.checkPairable(t, prod, dr); err != nil {
			return err
		}
		pair = store.Pair{
			ID: id, Project: caller.Project, Name: req.Name, Description: req.Description,
			Volumes: [2]lockstep.VolumeID{vols[0].ID, vols[1].ID}, AZs: [2]lockstep.AZ{vols[0].AZ, vols[1].AZ},
			Primary: req.Priority, Model: req.Model, Status: StatusCreating,
			Meta: store.PairMeta{
				SizeGiB: prod.SizeBytes / lockstep.GiB, Type: prod.Type,
				Multiattach: prod.Multiattach,
			},
			CreatedAt: t.now,
		}
		for _, v := range vols {
			v.Pair, v.Access, v.UpdatedAt = id, serveInPair(pair, v.ID), ptr(t.now)
			t.put(store.KeyVolume(v.ID), v)
		}
		t.create(store.KeyPair(id), pair)
		return nil
	})
	if err != nil {
		return PairView{}, asRefusal(err)
	}
	return PairView{
		Pair: pair, Priority: pair.Primary,
		ReplicationStatus: ReplicationInactive, FaultLevel: FaultNone,
	}, nil
}

// pairVolumes reads the two volumes of a request and checks what does not depend on their roles.
func (t *tx) pairVolumes(caller Caller, req PairCreate) (vols [2]store.Volume, err error) {
	var there [2]bool
	for i, id := range req.Volumes {
		v, found, err := get[store.Volume](t, store.KeyVolume(id))
		if err != nil {
			return vols, err
		}
		vols[i], there[i] = v, found && caller.owns(v.Project) && !v.Deleted
	}
	for i := range vols {
		if there[i] {
			continue
		}
		// A missing volume has no AZ: what it would be follows from the other one, if that is there.
		other := 1 - i
		isProd := i == 0
		if there[other] {
			isProd = vols[other].AZ != req.Priority
		}
		if isProd {
			return vols, notFound(codeProdMissing, "production volume %s does not exist", req.Volumes[i])
		}
		return vols, notFound(codeDRMissing, "DR volume %s does not exist", req.Volumes[i])
	}
	if vols[0].AZ == vols[1].AZ {
		return vols, badRequest("", "both volumes are in %s; a pair needs two AZs", vols[0].AZ)
	}
	if req.Priority != vols[0].AZ && req.Priority != vols[1].AZ {
		return vols, badRequest("", "priority_station is %q; it must be the AZ of one of the volumes, %s or %s", req.Priority, vols[0].AZ, vols[1].AZ)
	}
	return vols, nil
}

func (c *Controller) checkPairable(t *tx, prod, dr store.Volume) error {
	for _, side := range []struct {
		v                     store.Volume
		role, paired, filling string
	}{
		{prod, "production", codeProdPaired, codeProdFilling},
		{dr, "DR", codeDRPaired, codeDRFilling},
	} {
		v := side.v
		switch {
		case v.Pair != "":
			return badRequest(side.paired, "%s volume %s is already in pair %s", side.role, v.ID, v.Pair)
		case v.Status == StatusCreating:
			return badRequest(side.filling, "%s volume %s is still being created", side.role, v.ID)
		case v.Status != StatusAvailable && v.Status != StatusInUse:
			return badRequest("", "%s volume %s must be available or in-use; it is %s", side.role, v.ID, v.Status)
		}
	}
	if prod.SizeBytes != dr.SizeBytes {
		return badRequest(codeSizesDiffer, "production volume %s has %d GiB, DR volume %s has %d GiB; both must be equal",
			prod.ID, prod.SizeBytes/lockstep.GiB, dr.ID, dr.SizeBytes/lockstep.GiB)
	}
	if prod.Type != dr.Type {
		return badRequest("", "production volume %s has type %s, DR volume %s has type %s; both must be equal", prod.ID, prod.Type, dr.ID, dr.Type)
	}
	if prod.Access.Mode == store.AccessRefused {
		return badRequest("", "volume %s was the DR disk of a pair and is not served: release it before it becomes a production disk", prod.ID)
	}
	return c.checkStopped(t.ctx, codeDRAttached, "DR volume", dr)
}

// checkStopped refuses a volume that a running server may be using. Where servers are not known, an
// attached one counts as running.
func (c *Controller) checkStopped(ctx context.Context, code, what string, v store.Volume) error {
	for _, a := range v.Attachments {
		server := "server " + a.Server
		if a.Server == "" {
			server = "host " + a.Host
		}
		if c.cfg.Servers == nil || a.Server == "" {
			return badRequest(code, "%s %s is attached to %s, which counts as running: stop it and detach the volume first", what, v.ID, server)
		}
		running, err := c.cfg.Servers.Running(ctx, a.Server)
		if err != nil {
			return fmt.Errorf("state of %s: %w", server, err)
		}
		if running {
			return badRequest(code, "%s %s is attached to running %s: stop it first", what, v.ID, server)
		}
	}
	return nil
}

// GetPair answers one pair.
func (c *Controller) GetPair(ctx context.Context, caller Caller, id lockstep.PairID) (PairView, error) {
	var view PairView
	found := false
	err := c.read(ctx, func(s *snapshot) {
		if p, ok := s.pairs[id]; ok && caller.owns(p.Project) {
			view, found = c.look(s).pair(p), true
		}
	})
	if err == nil && !found {
		err = notFound("", "replication pair %s does not exist", id)
	}
	return view, err
}

// later is the later one of two times, of which either may be missing.
func later(a, b *time.Time) *time.Time {
	if a == nil || b != nil && b.After(*a) {
		return b
	}
	return a
}

// DeletePair dissolves a pair that is in no group. Its production volume is an ordinary disk from
// then on; the other one is a copy and stays refused until it is released.
func (c *Controller) DeletePair(ctx context.Context, caller Caller, id lockstep.PairID) error {
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		p, err := seenPair(t, caller, id)
		if err != nil {
			return err
		}
		if p.Group != "" {
			return conflict("", "replication pair %s is in consistency group %s: remove it from there first", id, p.Group)
		}
		switch p.Status {
		case StatusAvailable, StatusError, StatusErrorDeleting:
		default:
			return conflict("", "replication pair %s must be available, error or error_deleting to be deleted; it is %s", id, p.Status)
		}
		prod, dr := pairRoles(p)
		for _, vid := range p.Volumes {
			v, found, err := get[store.Volume](t, store.KeyVolume(vid))
			if err != nil {
				return err
			}
			if !found || v.Pair != id {
				continue
			}
			v.Pair, v.Access, v.UpdatedAt = "", store.Access{Mode: store.AccessPlain}, ptr(t.now)
			if vid == dr {
				what := "is only a copy"
				if !p.Image {
					what = "was never in sync with it: it holds no consistent image"
				}
				v.Access = store.Access{Mode: store.AccessRefused, Reason: fmt.Sprintf(
					"volume %s was the DR disk of the deleted pair %s with production disk %s and %s; release the volume to use it",
					dr, id, prod, what)}
			}
			t.put(store.KeyVolume(vid), v)
		}
		p.Status, p.UpdatedAt = StatusDeleting, ptr(t.now)
		t.put(store.KeyPair(id), p)
		return nil
	}))
}

func seenPair(t *tx, caller Caller, id lockstep.PairID) (store.Pair, error) {
	p, found, err := get[store.Pair](t, store.KeyPair(id))
	if err != nil {
		return p, err
	}
	if !found || !caller.owns(p.Project) {
		return p, notFound("", "replication pair %s does not exist", id)
	}
	return p, nil
}

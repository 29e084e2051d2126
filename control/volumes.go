package control

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Limits of a volume.
const (
	minSizeGiB       = 1
	maxSizeGiB       = 65536
	maxMetadataKeys  = 64
	maxMetadataBytes = 255 // of a key, and of a value
)

// States a node reports of a volume.
const (
	observedPresent = "present"
	observedAbsent  = "absent"
	observedFailed  = "failed"
	observedNoSpace = "no-space"
)

// metadataNode is the metadata key that pins a new volume to a node.
const metadataNode = "node"

// CreateVolume records a new volume; its node then makes it, and status goes from creating to
// available, or to error with the reason.
func (c *Controller) CreateVolume(ctx context.Context, caller Caller, req VolumeCreate) (VolumeView, error) {
	vol := store.Volume{
		ID: lockstep.VolumeID(newID()), Project: caller.Project, User: caller.User,
		Name: req.Name, Description: req.Description, SizeBytes: req.SizeGiB * lockstep.GiB,
		Status: StatusCreating, Metadata: maps.Clone(req.Metadata), Multiattach: req.Multiattach,
		Access: store.Access{Mode: store.AccessPlain},
	}
	if req.SizeGiB < minSizeGiB || req.SizeGiB > maxSizeGiB {
		return VolumeView{}, badRequest(codeBadSize, "size is %d GiB; it must be %d to %d", req.SizeGiB, minSizeGiB, maxSizeGiB)
	}
	if err := checkTexts(req.Name, req.Description); err != nil {
		return VolumeView{}, err
	}
	if err := checkMetadata(req.Metadata); err != nil {
		return VolumeView{}, err
	}
	typ, ok := volumeType(req.Type)
	if !ok {
		return VolumeView{}, badRequest("", "volume_type %q is not known", req.Type)
	}
	vol.Type = typ
	vol.CreatedAt = c.stamp()

	var placed error
	err := c.read(ctx, func(s *snapshot) { placed = c.place(s, &vol, req.AZ) })
	if err == nil {
		err = placed
	}
	if err != nil {
		return VolumeView{}, err
	}
	err = c.update(ctx, nil, func(t *tx) error {
		alive, err := t.alive(vol.Node)
		if err != nil {
			return err
		}
		if !alive {
			return refusal(KindUnavailable, "", "node %s went away; try again", vol.Node)
		}
		t.create(store.KeyVolume(vol.ID), vol)
		return nil
	})
	if err != nil {
		return VolumeView{}, asRefusal(err)
	}
	return VolumeView{Volume: vol, ReplicationStatus: ReplicationDisabled}, nil
}

func checkMetadata(m map[string]string) error {
	if len(m) > maxMetadataKeys {
		return badRequest("", "metadata has %d keys; at most %d are allowed", len(m), maxMetadataKeys)
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k == "" || len(k) > maxMetadataBytes {
			return badRequest("", "a metadata key has %d bytes; it must have 1 to %d", len(k), maxMetadataBytes)
		}
		if len(m[k]) > maxMetadataBytes {
			return badRequest("", "the value of metadata key %q has %d bytes; at most %d are allowed", k, len(m[k]), maxMetadataBytes)
		}
	}
	return nil
}

// volumeType finds a type by id or name, in any case; "" is the default.
func volumeType(name string) (string, bool) {
	for _, t := range volumeTypes {
		if name == "" && t.Default || strings.EqualFold(name, t.ID) || strings.EqualFold(name, t.Name) {
			return t.Name, true
		}
	}
	return "", false
}

// seenVolume is the volume as the caller may know it.
func seenVolume(t *tx, caller Caller, id lockstep.VolumeID) (store.Volume, error) {
	v, found, err := get[store.Volume](t, store.KeyVolume(id))
	if err != nil {
		return v, err
	}
	if !found || !caller.owns(v.Project) {
		return v, notFound("", "volume %s does not exist", id)
	}
	return v, nil
}

// GetVolume answers one volume.
func (c *Controller) GetVolume(ctx context.Context, caller Caller, id lockstep.VolumeID) (VolumeView, error) {
	var view VolumeView
	found := false
	err := c.read(ctx, func(s *snapshot) {
		if v, ok := s.volumes[id]; ok && caller.owns(v.Project) {
			view, found = c.look(s).volume(v), true
		}
	})
	if err == nil && !found {
		err = notFound("", "volume %s does not exist", id)
	}
	return view, err
}

// UpdateVolume applies change to the volume and writes it if nobody else did meanwhile, else it
// calls change again with the newer one. Only name, description, metadata, status, attachments
// and the bootable and read-only flags may be changed.
func (c *Controller) UpdateVolume(ctx context.Context, caller Caller, id lockstep.VolumeID, change func(*store.Volume) error) (VolumeView, error) {
	err := c.update(ctx, nil, func(t *tx) error {
		v, err := seenVolume(t, caller, id)
		if err != nil {
			return err
		}
		if v.Deleted {
			return notFound("", "volume %s is being deleted", id)
		}
		n := v
		n.Metadata = maps.Clone(v.Metadata)
		n.Attachments = slices.Clone(v.Attachments)
		if err := change(&n); err != nil {
			return err
		}
		if err := checkTexts(n.Name, n.Description); err != nil {
			return err
		}
		if err := checkMetadata(n.Metadata); err != nil {
			return err
		}
		v.Name, v.Description, v.Metadata = n.Name, n.Description, n.Metadata
		v.Status, v.Attachments, v.Bootable, v.ReadOnly = n.Status, n.Attachments, n.Bootable, n.ReadOnly
		v.UpdatedAt = ptr(t.now)
		t.put(store.KeyVolume(id), v)
		return nil
	})
	if err != nil {
		return VolumeView{}, asRefusal(err)
	}
	return c.GetVolume(ctx, caller, id)
}

// ExtendVolume asks the node to grow a volume that is in no pair; status is extending until then.
func (c *Controller) ExtendVolume(ctx context.Context, caller Caller, id lockstep.VolumeID, sizeGiB int64) error {
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		v, err := seenVolume(t, caller, id)
		if err != nil {
			return err
		}
		if v.Pair != "" {
			return badRequest("", "volume %s is in pair %s and cannot be extended alone: extend the pair through its group", id, v.Pair)
		}
		if err := checkGrowth(fmt.Sprintf("volume %s", id), v.SizeBytes, sizeGiB); err != nil {
			return err
		}
		if v.Status != StatusAvailable && v.Status != StatusInUse {
			return badRequest("", "volume %s must be available or in-use to be extended; it is %s", id, v.Status)
		}
		size := sizeGiB * lockstep.GiB
		if err := t.room(v.Node, size-v.SizeBytes); err != nil {
			return err
		}
		v.SizeBytes, v.Status, v.UpdatedAt = size, StatusExtending, ptr(t.now)
		t.put(store.KeyVolume(id), v)
		return nil
	}))
}

// checkGrowth refuses sizes that shrink, stay or overflow. The comparison is made in GiB: the
// asked size may be any int64.
func checkGrowth(what string, haveBytes, wantGiB int64) error {
	if wantGiB > maxSizeGiB {
		return badRequest(codeTooLarge, "new_size of %s is %d GiB; at most %d are allowed", what, wantGiB, maxSizeGiB)
	}
	if wantGiB <= haveBytes/lockstep.GiB {
		return badRequest(codeNoShrink, "new_size of %s is %d GiB; it must be more than the present %d", what, wantGiB, haveBytes/lockstep.GiB)
	}
	return nil
}

// room refuses a growth for which the node's pool has no space.
func (t *tx) room(node lockstep.NodeID, more int64) error {
	n, found, err := peek[store.Node](t, store.KeyNode(node))
	if err != nil {
		return err
	}
	if !found || n.FreeBytes < more {
		return refusal(KindQuota, codeNoRoom, "the pool of node %s has %d bytes free; %d more are needed", node, n.FreeBytes, more)
	}
	return nil
}

// DeleteVolume asks the node to remove a volume that is neither attached nor in a pair.
func (c *Controller) DeleteVolume(ctx context.Context, caller Caller, id lockstep.VolumeID) error {
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		v, err := seenVolume(t, caller, id)
		if err != nil {
			return err
		}
		switch {
		case v.Pair != "":
			return badRequest("", "volume %s is in pair %s and cannot be deleted: delete the pair first", id, v.Pair)
		case len(v.Attachments) > 0:
			return badRequest("", "volume %s is attached to server %s and cannot be deleted: detach it first", id, v.Attachments[0].Server)
		}
		switch v.Status {
		case StatusAvailable, StatusError, StatusErrorDeleting:
		default:
			return badRequest("", "volume %s must be available, error or error_deleting to be deleted; it is %s", id, v.Status)
		}
		v.Deleted, v.Status, v.UpdatedAt = true, StatusDeleting, ptr(t.now)
		t.put(store.KeyVolume(id), v)
		return nil
	}))
}

// ReleaseVolume makes a volume that is refused, a former DR disk in no pair, an ordinary disk
// again. What is on it is the user's to judge. It is a no-op on an ordinary disk.
func (c *Controller) ReleaseVolume(ctx context.Context, caller Caller, id lockstep.VolumeID) error {
	return asRefusal(c.update(ctx, nil, func(t *tx) error {
		v, err := seenVolume(t, caller, id)
		if err != nil {
			return err
		}
		if v.Pair != "" {
			return badRequest("", "volume %s is in pair %s and cannot be released: delete the pair first", id, v.Pair)
		}
		if v.Deleted {
			return badRequest("", "volume %s is being deleted", id)
		}
		if v.Access.Mode == store.AccessPlain {
			return nil
		}
		v.Access, v.UpdatedAt = store.Access{Mode: store.AccessPlain}, ptr(t.now)
		t.put(store.KeyVolume(id), v)
		return nil
	}))
}

// ConnectionURI answers where a volume can be opened, in the form that qemu and libnbd take: the
// node's Unix socket where it has one, else its TCP address.
func (c *Controller) ConnectionURI(ctx context.Context, caller Caller, id lockstep.VolumeID) (string, error) {
	var uri string
	var refused error
	err := c.read(ctx, func(s *snapshot) {
		v, ok := s.volumes[id]
		if !ok || !caller.owns(v.Project) {
			refused = notFound("", "volume %s does not exist", id)
			return
		}
		n, ok := s.nodes[v.Node]
		switch {
		case v.Status == StatusCreating || v.Deleted:
			refused = conflict("", "volume %s is %s and cannot be opened", id, v.Status)
		case !ok:
			refused = refusal(KindUnavailable, "", "node %s of volume %s is not known", v.Node, id)
		default:
			if uri = nbdURI(n, string(id)); uri == "" {
				refused = refusal(KindUnavailable, "", "node %s serves no NBD address", v.Node)
			}
		}
	})
	if err == nil {
		err = refused
	}
	return uri, err
}

// nbdURI is where an export of a node can be opened; empty: nowhere.
func nbdURI(n store.Node, export string) string {
	switch {
	case n.NBDSocket != "":
		return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + url.QueryEscape(n.NBDSocket)
	case n.NBDAddress != "":
		return "nbd://" + n.NBDAddress + "/" + url.PathEscape(export)
	}
	return ""
}

// settleVolume takes the node's report into a volume that is being made or grown; changed says
// whether it says anything new.
func settleVolume(v store.Volume, o store.VolumeObserved) (next store.Volume, changed bool) {
	if v.Deleted || o.Node != v.Node {
		return v, false
	}
	rest := StatusAvailable
	if len(v.Attachments) > 0 {
		rest = StatusInUse
	}
	switch o.State {
	case observedPresent:
		if o.SizeBytes < v.SizeBytes {
			return v, false
		}
		if v.Status == StatusCreating || v.Status == StatusExtending || v.Status == StatusError && v.Failure != "" {
			v.Status, v.Failure = rest, ""
			return v, true
		}
	case observedFailed, observedNoSpace:
		if v.Status == StatusCreating || v.Status == StatusExtending {
			v.Status, v.Failure = StatusError, strings.TrimSuffix(o.State+": "+o.Error, ": ")
			return v, true
		}
	}
	return v, false
}

// gone reports that the node has removed a deleted volume.
func gone(v store.Volume, o store.VolumeObserved) bool {
	return v.Deleted && o.State == observedAbsent
}

// serveInPair is the Access of a pair's volume while the pair is in no group.
func serveInPair(p store.Pair, v lockstep.VolumeID) store.Access {
	prod, dr := pairRoles(p)
	if v == prod {
		return store.Access{Mode: store.AccessPlain}
	}
	return store.Access{Mode: store.AccessRefused, Reason: fmt.Sprintf(
		"volume %s is the DR disk of pair %s; its production disk is %s in %s; it opens after a failover of its group",
		dr, p.ID, prod, p.Primary)}
}

// pairRoles gives the production and the DR volume of a pair, by its Primary.
func pairRoles(p store.Pair) (prod, dr lockstep.VolumeID) {
	if p.AZs[0] == p.Primary {
		return p.Volumes[0], p.Volumes[1]
	}
	return p.Volumes[1], p.Volumes[0]
}

// memberOf is a pair as a member of a group's record.
func memberOf(p store.Pair, vols [2]store.Volume) protocol.Member {
	m := protocol.Member{Pair: p.ID, SizeBytes: vols[0].SizeBytes}
	for i, v := range vols {
		m.Replicas[i] = protocol.Replica{Volume: v.ID, Node: v.Node, AZ: v.AZ}
	}
	return m
}

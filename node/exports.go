package node

import (
	"context"
	"fmt"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/nbd"
)

// exports are the node's volumes by their ids.
type exports struct{ n *Node }

// List names the volumes that can be opened now.
func (e exports) List(context.Context) []string {
	var names []string
	for _, id := range e.n.host.Volumes() {
		if v := e.n.host.Volume(id); v != nil {
			if _, err := v.Opening(); err == nil {
				names = append(names, string(id))
			}
			for _, epoch := range v.Images() {
				names = append(names, imageExport(id, epoch))
			}
		}
	}
	return names
}

// Open gives a volume, or says why it is not served here.
func (e exports) Open(_ context.Context, name string) (nbd.Export, error) {
	if x, ok, err := e.openImage(name); ok {
		return x, err
	}
	v := e.n.host.Volume(lockstep.VolumeID(name))
	if v == nil {
		return nbd.Export{}, fmt.Errorf("volume %q is not on node %s: %w", name, e.n.cfg.ID, lockstep.ErrNotFound)
	}
	closed, err := v.Opening()
	if err != nil {
		return nbd.Export{}, err
	}
	return nbd.Export{Device: v, Description: "lockstep volume " + name, Closed: closed}, nil
}

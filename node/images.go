package node

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/nbd"
)

// imageMark stands between a volume's id and the epoch in the export name of a divergence image.
const imageMark = "@diverged-"

func imageExport(id lockstep.VolumeID, epoch lockstep.Epoch) string {
	return string(id) + imageMark + strconv.FormatUint(uint64(epoch), 10)
}

// openImage gives a divergence image, read-only; ok is false if the name is not of one.
func (e exports) openImage(name string) (x nbd.Export, ok bool, err error) {
	i := strings.LastIndex(name, imageMark)
	if i < 0 {
		return x, false, nil
	}
	epoch, err := strconv.ParseUint(name[i+len(imageMark):], 10, 64)
	if err != nil {
		return x, false, nil //nolint:nilerr // another volume's name, then
	}
	v := e.n.host.Volume(lockstep.VolumeID(name[:i]))
	if v == nil {
		return x, true, fmt.Errorf("volume %q is not on node %s: %w", name[:i], e.n.cfg.ID, lockstep.ErrNotFound)
	}
	image, err := v.OpenImage(lockstep.Epoch(epoch))
	if err != nil {
		return x, true, err
	}
	return nbd.Export{
		Device: image, ReadOnly: true, Description: "lockstep divergence image " + name,
		Release: func() {
			if err := image.Close(); err != nil {
				e.n.log.Warn("close divergence image", "export", name, "err", err)
			}
		},
	}, true, nil
}

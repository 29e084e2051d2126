package disk

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/lockstep-dr/lockstep"
)

// Names of the files of a pool. The part behind the last dot says what a file is, so an id may
// hold dots.
const (
	extRaw     = ".raw"      // the volume's bytes
	extMeta    = ".meta"     // write-intent log and dirty map
	extUndo    = ".undo"     // recovery point: header and old contents
	extPoint   = ".point"    // recovery point: a clone of the raw file
	extImage   = ".diverged" // behind ".<epoch>": what the volume held when it lost a forced failover
	extFailed  = ".failed"   // the volume failed for good; text for people
	extRemoved = ".removed"  // a removal that has begun; the former metadata file
	extTmp     = ".tmp"      // being written; means nothing
	extState   = ".state"    // a group's blob

	extPrimary   = ".primary"   // of a difference that was found: what the primary had
	extSecondary = ".secondary" // and what its secondary had

	groupsDir = "groups"
	foundDir  = "found"
	nodeFile  = "node.json"
	lockFile  = "lock"

	maxIDBytes = 200
)

// checkID refuses ids that cannot be a file name.
func checkID(kind, id string) error {
	if id == "" || len(id) > maxIDBytes || id[0] == '.' || strings.ContainsFunc(id, func(r rune) bool {
		return r == '/' || r == '\\' || r < 0x20 || r == 0x7f || r == '\ufffd'
	}) {
		return fmt.Errorf("%s id %q cannot be a file name", kind, id)
	}
	return nil
}

func (p *Pool) path(id lockstep.VolumeID, ext string) string {
	return filepath.Join(p.dir, string(id)+ext)
}

func (p *Pool) groupPath(id lockstep.GroupID) string {
	return filepath.Join(p.dir, groupsDir, string(id)+extState)
}

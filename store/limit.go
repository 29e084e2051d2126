package store

import (
	"time"

	"github.com/lockstep-dr/lockstep"
)

// ResyncLimit bounds what synchronizations read and send in a second: those of one group at each of its primary
// nodes, or all of which one node is the primary, together. No record: none for a group, a node's own configuration
// for a node.
type ResyncLimit struct {
	MiB int64     `json:"mib"` // in a second, 1 to MaxResyncLimitMiB
	By  string    `json:"by"`
	At  time.Time `json:"at"`
}

// MaxResyncLimitMiB is the highest limit that may be set, MiB/s.
const MaxResyncLimitMiB = 100_000

// KeyGroupLimit is where the limit of a group's synchronizations is.
func KeyGroupLimit(g lockstep.GroupID) string { return PrefixGroupLimits + string(g) }

// KeyNodeLimit is where the limit of a node's synchronizations is.
func KeyNodeLimit(n lockstep.NodeID) string { return PrefixNodeLimits + string(n) }

package faults

import (
	"flag"
	"testing"

	"github.com/lockstep-dr/lockstep/test/rig"
)

var (
	seedFlag       = flag.Uint64("seed", 1, "seed of the faults; 0: the time")
	killsFlag      = flag.Int("kills", 6, "rounds of killed, frozen and restarted processes")
	partitionsFlag = flag.Int("partitions", 6, "rounds of network faults")
	onlyFlag       = flag.String("only", "", "network faults whose name holds this alone")
	keepFlag       = flag.Bool("keep", false, "keep the directory of the run")
)

// lockstepBin is the lockstep under test; root holds the deployments and is unique to this run.
var lockstepBin, root string

func TestMain(m *testing.M) {
	rig.Run(m, "ls-faults-", keepFlag, func(dir, bin string) { root, lockstepBin = dir, bin })
}

package faults

import (
	"flag"
	"fmt"
	"os"
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
	if len(os.Args) > 1 && os.Args[1] == rig.EtcdWord {
		os.Exit(rig.EtcdMain(os.Args[2:]))
	}
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if root, err = rig.TempDir("ls-faults-"); err != nil {
		return 1, err
	}
	if lockstepBin, err = rig.Binary(root); err != nil {
		return 1, err
	}
	code = m.Run()
	if *keepFlag {
		fmt.Fprintln(os.Stderr, "kept:", root)
		return code, nil
	}
	return code, os.RemoveAll(root)
}

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/lockstep-dr/lockstep/test/proc"
)

var (
	roundsFlag = flag.Int("rounds", 20, "rounds of losing a zone under load")
	keepFlag   = flag.Bool("keep", false, "keep the directories of the deployments")
)

// lockstepBin is the lockstep under test; root holds the deployments and is unique to this run.
var lockstepBin, root string

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	// Short, because a Unix socket's path has 107 bytes at most.
	if root, err = os.MkdirTemp("/tmp", "ls-e2e-"); err != nil {
		return 1, err
	}
	if lockstepBin, err = proc.Binary(root); err != nil {
		return 1, err
	}
	stop, err := proc.Watchdog(root)
	if err != nil {
		return 1, err
	}
	done, probed := make(chan struct{}), make(chan error, 1)
	go func() { probed <- stalls.run(root, done) }()
	code = m.Run()
	close(done)
	if err := <-probed; err != nil {
		return 1, fmt.Errorf("probe the disk: %w", err)
	}
	if *keepFlag {
		fmt.Fprintln(os.Stderr, "kept:", root)
		return code, nil
	}
	return code, errors.Join(stop(), os.RemoveAll(root))
}

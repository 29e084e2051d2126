package clients

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/lockstep-dr/lockstep/test/proc"
)

// lockstepBin is the lockstep under test; root holds the deployments and is unique to this run.
var lockstepBin, root string

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == etcdWord {
		os.Exit(etcdMain(os.Args[2]))
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	// Short, because a Unix socket's path has 107 bytes at most.
	if root, err = os.MkdirTemp("/tmp", "ls-cl-"); err != nil {
		return 1, err
	}
	if lockstepBin, err = proc.Binary(root); err != nil {
		return 1, err
	}
	stop, err := proc.Watchdog(root)
	if err != nil {
		return 1, err
	}
	code = m.Run()
	return code, errors.Join(stop(), os.RemoveAll(root))
}

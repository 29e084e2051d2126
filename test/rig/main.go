package rig

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/lockstep-dr/lockstep/test/proc"
)

// Run is what a package's TestMain does with a rig: it plays the member of etcd if this process was
// started as one; else it finds the lockstep under test, makes a directory that is unique to this run,
// and runs the tests, which begin by taking both over from set. The directory goes, unless keep. It
// does not return.
func Run(m *testing.M, prefix string, keep *bool, set func(root, lockstep string)) {
	if len(os.Args) > 1 && os.Args[1] == EtcdWord {
		os.Exit(EtcdMain(os.Args[2:]))
	}
	flag.Parse()
	code, err := run(m, prefix, keep, set)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M, prefix string, keep *bool, set func(root, lockstep string)) (code int, err error) {
	root, err := TempDir(prefix)
	if err != nil {
		return 1, err
	}
	bin, err := proc.Binary(root)
	if err != nil {
		return 1, err
	}
	set(root, bin)
	code = m.Run()
	if *keep {
		fmt.Fprintln(os.Stderr, "kept:", root)
		return code, nil
	}
	return code, os.RemoveAll(root)
}

package power

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lockstep-dr/lockstep/test/rig"
)

var (
	seedFlag   = flag.Uint64("seed", 1, "seed of the load and of what is drawn; 0: the time")
	lossesFlag = flag.Int("losses", 2, "how many losses of power at least")
	keepFlag   = flag.Bool("keep", false, "keep the directory of the run")
)

// lockstepBin is the lockstep under test; root holds the deployments and is unique to this run.
var lockstepBin, root string

func TestMain(m *testing.M) {
	rig.Run(m, "ls-power-", keepFlag, func(dir, bin string) { root, lockstepBin = dir, bin })
}

// static builds a command that needs no library, as there is none in the machines, and gives its bytes.
func static(t *testing.T, pkg string) []byte {
	t.Helper()
	path := filepath.Join(root, filepath.Base(pkg)+".static")
	build := exec.Command("go", "build", "-trimpath", "-tags", "invariants", "-ldflags", "-s -w", "-o", path, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

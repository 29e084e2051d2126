//go:build simrun

package whole

import (
	"flag"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "the run to play")
	storyFlag = flag.Bool("story", false, "print what happens while it happens")
	logsFlag  = flag.Bool("logs", false, "print the logs of nodes and controllers as well")
)

// TestSeed plays one seed; simrun calls it, once in each instance.
func TestSeed(t *testing.T) {
	dir := t.TempDir()
	cryptotest.SetGlobalRandom(t, *seedFlag)
	synctest.Test(t, func(t *testing.T) {
		var story io.Writer
		if *storyFlag {
			story = os.Stdout
		}
		r := Run(*seedFlag, dir, story, *logsFlag)
		fmt.Printf("RESULT seed=%d hash=%016x events=%d virtual=%.1fs acks=%d reads=%d flushes=%d open=%d status=%s\n",
			r.Seed, r.Hash, r.Events, r.Virtual.Seconds(), r.Acks, r.Reads, r.Flushes, r.Given, r.Status)
		for what, n := range r.Stats {
			fmt.Printf("STAT %d %s\n", n, what)
		}
		if r.Err != nil {
			t.Errorf("seed %d: %v", r.Seed, r.Err)
		}
	})
}

package replica

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-dr/lockstep/protocol"
)

// Between the death of a link and the report of its reader the core announces again whenever it is told that an
// announcement failed. Told at once, it would do so without a pause for as long as the reader is held up.
func TestAnnouncementOverADeadLinkIsNotRepeatedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Group{host: &Host{}, wake: make(chan struct{}, 1), ctx: t.Context()}
		began := time.Now()
		g.announce(protocol.Announce{Peer: "b1"})
		if took := time.Since(began); took < tickEvery {
			t.Errorf("the core is told of the failure after %s, and asks again at once", took)
		}
		if len(g.box) != 1 {
			t.Errorf("the core is told %d times", len(g.box))
		}
	})
}

package replica

import (
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: a record that a restored, older store has gone on to make, and in which a volume is no member yet,
// does not take the volume out of its group: it would be served alone, its maps cleared, and be called in
// sync again by the recovery of the store.
func TestAnOlderStoreTakesNoVolumeOutOfItsGroup(t *testing.T) {
	p := newPair(t)
	p.sync(t)
	fork := p.st.get().Clone()
	fork.Epoch += 3
	fork.InSyncEpoch--
	fork.Members[0].Pair, fork.Members[0].InSyncEpoch = "before", fork.InSyncEpoch
	fork.Members[0].Replicas = [2]protocol.Replica{{Volume: "wa", Node: "a", AZ: "a"}, {Volume: "wb", Node: "b", AZ: "b"}}
	for _, h := range []*Host{p.a, p.b} {
		id := h.Volumes()[0]
		h.SetAccess(id, store.Access{Mode: store.AccessPlain}) // what the older store says of it
		if err := h.OnRecord(fork, false, true); err != nil {
			t.Fatal(err)
		}
		p.until(t, "the older store is noticed", func() bool {
			view, _ := h.View("g")
			return strings.Contains(view.Why, "store recover")
		})
		v := h.volume(id)
		v.mu.Lock()
		mode := v.mode
		v.mu.Unlock()
		if mode != protocol.ModeHeld && mode != protocol.ModeRefused || h.ownerOf(id) == nil {
			t.Errorf("volume %s is %s, in a group: %v", id, mode, h.ownerOf(id) != nil)
		}
	}
}

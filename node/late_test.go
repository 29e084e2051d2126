package node

import (
	"errors"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
	"github.com/lockstep-dr/lockstep/store/storetest"
)

// Goal: an answer that a frozen member of the store carries out after the node gave a newer one does not
// replace it: nobody would give that again, and the transition that waits for it would wait for ever.
func TestALateAnswerDoesNotReplaceANewerOne(t *testing.T) {
	mem := memstore.NewMem()
	defer mem.Close()
	checked := make(chan struct{})
	close(checked)
	s := &storetest.Late{Store: mem, Armed: true}
	r := &records{st: s, checked: checked}
	answer := func(e lockstep.Epoch, step protocol.Step) protocol.Answer {
		return protocol.Answer{Group: "g", Node: "n", Epoch: e, Step: step, Healthy: true}
	}
	if err := r.PutAnswer(t.Context(), answer(4, protocol.StepAdopted)); !errors.Is(err, lockstep.ErrStoreUnavailable) {
		t.Fatalf("an answer that the store does not confirm: %v", err)
	}
	if err := r.PutAnswer(t.Context(), answer(5, protocol.StepReady)); err != nil {
		t.Fatal(err)
	}
	if err := s.Deliver(); err != nil {
		t.Fatal(err)
	}
	got, _, err := store.GetT[protocol.Answer](t.Context(), mem, store.KeyAnswer("g", "n"))
	if err != nil || got.Epoch != 5 || got.Step != protocol.StepReady {
		t.Fatalf("the store has the answer of epoch %d, step %q, %v", got.Epoch, got.Step, err)
	}
}

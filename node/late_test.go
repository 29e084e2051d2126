package node

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

// late is a store that does not answer one transaction, and carries it out later.
type late struct {
	store.Store
	armed   bool
	deliver func() error
}

func (l *late) Txn(ctx context.Context, cmps []store.Cmp, ops []store.Op) (bool, int64, error) {
	if !l.armed {
		return l.Store.Txn(ctx, cmps, ops)
	}
	l.armed = false
	l.deliver = func() error {
		_, _, err := l.Store.Txn(context.WithoutCancel(ctx), cmps, ops)
		return err
	}
	return false, 0, fmt.Errorf("transaction: %w: no answer in time", lockstep.ErrStoreUnavailable)
}

// Goal: an answer that a frozen member of the store carries out after the node gave a newer one does not
// replace it: nobody would give that again, and the transition that waits for it would wait for ever.
func TestALateAnswerDoesNotReplaceANewerOne(t *testing.T) {
	mem := memstore.NewMem()
	defer mem.Close()
	checked := make(chan struct{})
	close(checked)
	s := &late{Store: mem, armed: true}
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
	if err := s.deliver(); err != nil {
		t.Fatal(err)
	}
	got, _, err := store.GetT[protocol.Answer](t.Context(), mem, store.KeyAnswer("g", "n"))
	if err != nil || got.Epoch != 5 || got.Step != protocol.StepReady {
		t.Fatalf("the store has the answer of epoch %d, step %q, %v", got.Epoch, got.Step, err)
	}
}

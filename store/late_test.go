package store_test

import (
	"errors"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/storetest"
)

// Goal: of a record with one writer, a write whose outcome was unknown never replaces a later one.
func TestPutOwnIsNotReplacedByALateWrite(t *testing.T) {
	for name, before := range map[string]bool{"a new key": false, "a key that is there": true} {
		t.Run(name, func(t *testing.T) {
			s := &storetest.Late{Store: open(t)}
			if before {
				if err := store.PutOwn(t.Context(), s, "answer", 1); err != nil {
					t.Fatal(err)
				}
			}
			s.Armed = true
			if err := store.PutOwn(t.Context(), s, "answer", 2); !errors.Is(err, lockstep.ErrStoreUnavailable) {
				t.Fatalf("a write without an answer: %v", err)
			}
			if err := store.PutOwn(t.Context(), s, "answer", 3); err != nil {
				t.Fatal(err)
			}
			if err := s.Deliver(); err != nil {
				t.Fatal(err)
			}
			if v, _, err := store.GetT[int](t.Context(), s, "answer"); err != nil || v != 3 {
				t.Fatalf("%d, %v after the late write, want 3", v, err)
			}
		})
	}
}

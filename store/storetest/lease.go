package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// shortTTL is the shortest that every store has.
const shortTTL = time.Second

func grant(ctx context.Context, t *testing.T, s store.Store) store.Lease {
	t.Helper()
	l, err := s.Grant(ctx, shortTTL)
	if err != nil {
		t.Fatal(err)
	}
	if l.ID() == 0 {
		t.Fatal("a lease without an id")
	}
	return l
}

func putLeased(ctx context.Context, t *testing.T, s store.Store, key string, id store.LeaseID) int64 {
	t.Helper()
	ok, rev, err := s.Txn(ctx, nil, []store.Op{{Key: key, Lease: id}})
	if err != nil || !ok {
		t.Fatalf("put %s: %v, %v", key, ok, err)
	}
	return rev
}

func isLost(l store.Lease) bool {
	select {
	case <-l.Lost():
		return true
	default:
		return false
	}
}

func testLeaseKept(ctx context.Context, t *testing.T, s store.Store) {
	l := grant(ctx, t, s)
	rev := putLeased(ctx, t, s, "l/a", l.ID())
	// Several times its TTL; a deletion would show in the watch.
	wctx, cancel := context.WithTimeout(ctx, 4*shortTTL)
	defer cancel()
	for batch := range s.Watch(wctx, "l/", rev) {
		t.Fatalf("a lease that is kept alive lost a key: %+v", batch)
	}
	if isLost(l) {
		t.Fatal("lost")
	}
	if _, err := s.Get(ctx, "l/a"); err != nil {
		t.Fatal(err)
	}
	if err := l.Revoke(ctx); err != nil {
		t.Fatal(err)
	}
}

func testLeaseExpires(ctx context.Context, t *testing.T, s store.Store) {
	lctx, cancel := context.WithCancel(ctx)
	l := grant(lctx, t, s)
	putLeased(ctx, t, s, "l/a", l.ID())
	rev := putLeased(ctx, t, s, "l/b", l.ID())
	put(ctx, t, s, "l/c", "stays")
	ch := s.Watch(ctx, "l/", rev)
	collect(t, ch, 1)
	cancel()
	closed(t, "lease was not lost after its context", l.Lost())
	for _, ev := range collect(t, ch, 2) {
		if !ev.Deleted {
			t.Errorf("%s was put", ev.Key)
		}
	}
	kvs, _, err := s.List(ctx, "l/")
	if err != nil || len(kvs) != 1 || kvs[0].Key != "l/c" {
		t.Fatalf("left: %v, %v", kvs, err)
	}
	if _, _, err := s.Txn(ctx, nil, []store.Op{{Key: "l/d", Lease: l.ID()}}); !errors.Is(err, store.ErrLeaseGone) {
		t.Fatalf("put with an expired lease: %v", err)
	}
}

func testLeaseRevoked(ctx context.Context, t *testing.T, s store.Store) {
	l := grant(ctx, t, s)
	putLeased(ctx, t, s, "l/a", l.ID())
	if isLost(l) {
		t.Fatal("lost")
	}
	if err := l.Revoke(ctx); err != nil {
		t.Fatal(err)
	}
	if !isLost(l) {
		t.Error("not lost after Revoke")
	}
	if _, err := s.Get(ctx, "l/a"); !errors.Is(err, lockstep.ErrNotFound) {
		t.Errorf("key of a revoked lease: %v", err)
	}
	if err := l.Revoke(ctx); err != nil {
		t.Errorf("revoked again: %v", err)
	}
}

func testLeaseReattach(ctx context.Context, t *testing.T, s store.Store) {
	first, second := grant(ctx, t, s), grant(ctx, t, s)
	if first.ID() == second.ID() {
		t.Fatal("two leases with one id")
	}
	for _, k := range []string{"l/a", "l/b", "l/c"} {
		putLeased(ctx, t, s, k, first.ID())
	}
	putLeased(ctx, t, s, "l/b", second.ID())
	put(ctx, t, s, "l/c", "without")
	if err := first.Revoke(ctx); err != nil {
		t.Fatal(err)
	}
	kvs, _, err := s.List(ctx, "l/")
	if err != nil || len(kvs) != 2 || kvs[0].Key != "l/b" || kvs[1].Key != "l/c" {
		t.Fatalf("left after the first: %v, %v", kvs, err)
	}
	if err := second.Revoke(ctx); err != nil {
		t.Fatal(err)
	}
	kvs, _, err = s.List(ctx, "l/")
	if err != nil || len(kvs) != 1 || kvs[0].Key != "l/c" {
		t.Fatalf("left after the second: %v, %v", kvs, err)
	}
}

// calls are all ways to ask a store something.
func calls(s store.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"get":  func(ctx context.Context) error { _, err := s.Get(ctx, "a"); return err },
		"list": func(ctx context.Context) error { _, _, err := s.List(ctx, ""); return err },
		"txn": func(ctx context.Context) error {
			_, _, err := s.Txn(ctx, nil, []store.Op{{Key: "a", Value: []byte("outage")}})
			return err
		},
		"grant": func(ctx context.Context) error { _, err := s.Grant(ctx, shortTTL); return err },
	}
}

func testCancelled(ctx context.Context, t *testing.T, s store.Store) {
	because := errors.New("the test says so")
	cctx, cancel := context.WithCancelCause(ctx)
	cancel(because)
	for name, call := range calls(s) {
		err := call(cctx)
		if !errors.Is(err, context.Canceled) || errors.Is(err, lockstep.ErrStoreUnavailable) {
			t.Errorf("%s with a cancelled context: %v", name, err)
		}
		if !errors.Is(err, because) {
			t.Errorf("%s does not tell the cause: %v", name, err)
		}
	}
}

func testClosed(ctx context.Context, t *testing.T, s store.Store) {
	l := grant(ctx, t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	closed(t, "lease of a closed store was not lost", l.Lost())
	for name, call := range calls(s) {
		if err := call(ctx); !errors.Is(err, lockstep.ErrStoreUnavailable) {
			t.Errorf("%s of a closed store: %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

// Outage checks what s does while it does not answer: every call ends within bound with
// lockstep.ErrStoreUnavailable, a lease is lost soon after its TTL, and after resume everything
// goes on, a watch without a gap. stop and resume end and begin the service that s uses; what was
// written must last.
func Outage(t *testing.T, s store.Store, bound time.Duration, stop, resume func()) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	rev := put(ctx, t, s, "a", "before")
	ch := s.Watch(ctx, "a", rev)
	put(ctx, t, s, "a", "seen")
	collect(t, ch, 1)
	l := grant(ctx, t, s)

	stop()
	for name, call := range calls(s) {
		began := time.Now()
		err := call(ctx)
		if !errors.Is(err, lockstep.ErrStoreUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s during an outage: %v", name, err)
		}
		if took := time.Since(began); took > bound {
			t.Errorf("%s took %v, bound is %v", name, took, bound)
		}
	}
	short, cancelShort := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancelShort()
	<-short.Done()
	if _, err := s.Get(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("get with the caller's own deadline: %v", err)
	}
	closed(t, "lease was not lost during an outage", l.Lost())

	resume()
	deadline := time.Now().Add(patience)
	var after int64
	for {
		ok, r, err := s.Txn(ctx, nil, []store.Op{{Key: "a", Value: []byte("after")}})
		if err == nil && ok {
			after = r
			break
		}
		if time.Now().After(deadline) || !errors.Is(err, lockstep.ErrStoreUnavailable) {
			t.Fatalf("put after the outage: %v, %v", ok, err)
		}
		// memstore fails at once; do not spin.
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	for {
		ev := collect(t, ch, 1)[0]
		// A put during the outage may have been carried out.
		if ev.ModRev == after {
			break
		}
		if ev.ModRev > after || string(ev.Value) != "outage" && string(ev.Value) != "after" {
			t.Fatalf("watch after the outage: %+v, wanted revision %d", ev, after)
		}
	}
}

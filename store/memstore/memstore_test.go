package memstore_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
	"github.com/lockstep-dr/lockstep/store/storetest"
)

func open(t *testing.T, opts ...memstore.Option) *memstore.Mem {
	m := memstore.NewMem(opts...)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t) })
}

func TestOutage(t *testing.T) {
	m := open(t)
	storetest.Outage(t, m, time.Second, func() { m.SetDown(true) }, func() { m.SetDown(false) })
}

// One client is cut off: it alone fails, and its lease ends for everybody.
func TestOutageOfOneClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memstore.NewMem()
		a, b := m.NewClient(), m.NewClient()
		defer closeAll(t, m, a, b)
		ctx := t.Context()
		l, err := a.Grant(ctx, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.Txn(ctx, nil, []store.Op{{Key: "k", Lease: l.ID()}}); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		if _, err := b.Get(ctx, "k"); err != nil {
			t.Fatalf("key of a kept lease: %v", err)
		}
		a.SetDown(true)
		if _, err := a.Get(ctx, "k"); err == nil {
			t.Fatal("a client that is cut off got an answer")
		}
		began := time.Now()
		<-l.Lost()
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("lost after %v", took)
		}
		if _, err := b.Get(ctx, "k"); err != nil {
			t.Errorf("the key went before its holder knew: %v", err)
		}
		<-time.After(3 * time.Second)
		if _, err := b.Get(ctx, "k"); err == nil {
			t.Error("the key outlived its lease")
		}
	})
}

func closeAll(t *testing.T, stores ...store.Store) {
	for _, s := range stores {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestManualClock(t *testing.T) {
	clock := memstore.NewManualClock(time.Unix(0, 0))
	m := open(t, memstore.WithClock(clock))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l, err := m.Grant(ctx, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Txn(ctx, nil, []store.Op{{Key: "k", Lease: l.ID()}}); err != nil {
		t.Fatal(err)
	}
	clock.Advance(time.Hour)
	if _, err := m.Get(ctx, "k"); err != nil {
		t.Fatalf("renewals within Advance: %v", err)
	}
	rev := m.Rev()
	m.ExpireLease(l.ID())
	if _, err := m.Get(ctx, "k"); err == nil || m.Rev() != rev+1 || len(m.Leases()) != 0 {
		t.Fatalf("after ExpireLease: %v, revision %d, leases %v", err, m.Rev(), m.Leases())
	}
	clock.Advance(time.Second)
	select {
	case <-l.Lost():
	default:
		t.Fatal("the holder did not find out at its renewal")
	}
}

func TestCompactedWatchIsClosed(t *testing.T) {
	m := open(t)
	ctx := t.Context()
	for range 3 {
		if _, _, err := m.Txn(ctx, nil, []store.Op{{Key: "k"}}); err != nil {
			t.Fatal(err)
		}
	}
	m.Compact(3)
	if _, ok := <-m.Watch(ctx, "k", 2); ok {
		t.Fatal("a watch from compacted history delivered something")
	}
	if batch := <-m.Watch(ctx, "k", 3); len(batch) != 1 || batch[0].ModRev != 4 {
		t.Fatalf("watch from the compacted revision: %+v", batch)
	}
}

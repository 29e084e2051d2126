package lease_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/lease"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/etcdstore"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

const (
	key = "leader"
	ttl = 4 * time.Second
)

// term is one call of lead.
type term struct {
	id    string
	ctx   context.Context
	fence lease.Fence
}

// candidate runs an election; each term begun is sent to terms and lasts until its context ends.
type candidate struct {
	stop context.CancelCauseFunc
	done chan error
}

func campaign(t *testing.T, s store.Store, id string, ttl time.Duration, terms chan<- term) *candidate {
	ctx, stop := context.WithCancelCause(t.Context())
	c := &candidate{stop: stop, done: make(chan error, 1)}
	l := lease.Leader{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	go func() {
		c.done <- l.Run(ctx, s, key, id, ttl, func(ctx context.Context, f lease.Fence) {
			terms <- term{id, ctx, f}
			<-ctx.Done()
		})
	}()
	return c
}

func commit(ctx context.Context, s store.Store, f lease.Fence, key string, v any) error {
	_, err := store.NewTx().Cmp(f.Cmp()).Put(key, v, store.AnyRev).Commit(ctx, s)
	return err
}

// await receives from ch, but not for ever; inside a bubble an hour costs nothing.
func await[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(time.Hour):
		t.Fatalf("waited an hour: %s", what)
	}
	panic("unreachable")
}

func closeAll(t *testing.T, stores ...store.Store) {
	for _, s := range stores {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A leader that is cut off steps down before anybody follows it, the next one leads within the
// TTL and a second, and the first cannot commit when it is back.
func TestTakeoverAfterCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memstore.NewMem()
		sa, sb := m.NewClient(), m.NewClient()
		defer closeAll(t, m, sa, sb)
		terms := make(chan term, 10)
		a := campaign(t, sa, "a", ttl, terms)
		first := <-terms
		b := campaign(t, sb, "b", ttl, terms)
		<-time.After(time.Hour)
		if len(terms) > 0 || first.ctx.Err() != nil {
			t.Fatal("leadership passed on although the leader is well")
		}
		if err := commit(t.Context(), sa, first.fence, "x", 1); err != nil {
			t.Fatal(err)
		}

		sa.SetDown(true)
		cut := time.Now()
		await(t, "the leader's context does not end", first.ctx.Done())
		if cause := context.Cause(first.ctx); !errors.Is(cause, lease.ErrLost) {
			t.Errorf("cause %v", cause)
		}
		if len(terms) > 0 {
			t.Error("the next leader came before the first one knew of its loss")
		}
		second := await(t, "nobody follows", terms)
		if took := time.Since(cut); second.id != "b" || took > ttl+time.Second {
			t.Errorf("%s leads after %v", second.id, took)
		}
		if second.fence.ModRev <= first.fence.ModRev {
			t.Errorf("fence %d after %d", second.fence.ModRev, first.fence.ModRev)
		}
		sa.SetDown(false)
		if err := commit(t.Context(), sa, first.fence, "x", 2); !errors.Is(err, lockstep.ErrConflict) {
			t.Errorf("commit of the deposed leader: %v", err)
		}
		if err := first.fence.Check(t.Context(), sa); !errors.Is(err, lease.ErrLost) {
			t.Errorf("check of the deposed leader: %v", err)
		}
		if err := commit(t.Context(), sb, second.fence, "x", 3); err != nil {
			t.Errorf("commit of the leader: %v", err)
		}
		if c, f, err := lease.Current(t.Context(), m, key); err != nil || c.ID != "b" || f != second.fence {
			t.Errorf("current %+v at %+v, %v", c, f, err)
		}

		// An orderly end passes leadership on at once.
		because := errors.New("shut down")
		b.stop(because)
		if err := <-b.done; !errors.Is(err, because) {
			t.Errorf("Run ended with %v", err)
		}
		if cause := context.Cause(second.ctx); !errors.Is(cause, because) || errors.Is(cause, lease.ErrLost) {
			t.Errorf("cause at the orderly end: %v", cause)
		}
		ended := time.Now()
		if third := await(t, "nobody follows", terms); third.id != "a" || time.Since(ended) > time.Second {
			t.Errorf("%s leads after %v", third.id, time.Since(ended))
		}
		a.stop(because)
		<-a.done
		if ids := m.Leases(); len(ids) != 0 {
			t.Errorf("leases left: %v", ids)
		}
	})
}

// The store takes the lease away from a leader that does not know and does not listen: two
// functions run as leaders, and only the later can commit.
func TestFenceAgainstUnawareLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memstore.NewMem()
		sa, sb := m.NewClient(), m.NewClient()
		defer closeAll(t, m, sa, sb)
		ctx, stop := context.WithCancel(t.Context())
		fences := make(chan lease.Fence)
		deaf := make(chan struct{})
		var wg sync.WaitGroup
		for _, s := range []store.Store{sa, sb} {
			wg.Go(func() {
				err := lease.Run(ctx, s, key, "same", ttl, func(_ context.Context, f lease.Fence) {
					fences <- f
					<-deaf
				})
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		first := await(t, "nobody leads", fences)
		synctest.Wait() // the second waits for the key
		m.ExpireLease(m.Leases()[0])
		second := await(t, "nobody follows", fences)
		// Without the fence the old leader's write goes through: this is what it protects against.
		if _, err := store.Put(ctx, m, "unfenced", 1, store.AnyRev); err != nil {
			t.Fatal(err)
		}
		if err := commit(ctx, m, first, "x", 1); !errors.Is(err, lockstep.ErrConflict) {
			t.Errorf("commit of the deposed leader: %v", err)
		}
		if err := commit(ctx, m, second, "x", 2); err != nil {
			t.Errorf("commit of the leader: %v", err)
		}
		stop()
		close(deaf)
		wg.Wait()
	})
}

// Candidates are cut off and connected at random, leaders go on for a while after their context
// has ended, and all of them commit all the time. In the order of the commits no fence may come
// back once a later one has committed, and in the end there is a leader.
func TestNoTwoLeadersCommit(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { chaos(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func chaos(t *testing.T, rng *rand.Rand) {
	m := memstore.NewMem()
	ctx, stop := context.WithCancel(t.Context())
	var clients []*memstore.Client
	var wg sync.WaitGroup
	for i := range 3 {
		s := m.NewClient()
		clients = append(clients, s)
		linger := rand.New(rand.NewPCG(rng.Uint64(), 2))
		wg.Go(func() {
			l := lease.Leader{Logger: slog.New(slog.DiscardHandler)}
			_ = l.Run(ctx, s, key, fmt.Sprint(i), ttl, func(lctx context.Context, f lease.Fence) {
				end := time.Now().Add(time.Duration(linger.IntN(120)) * time.Second)
				for late := 0; time.Now().Before(end) && late < 200; {
					_ = commit(context.WithoutCancel(ctx), s, f, "x", f.ModRev) // the outcome is judged below
					if lctx.Err() != nil {
						late++
					}
					<-time.After(50 * time.Millisecond)
				}
			})
		})
	}
	for range 200 {
		<-time.After(time.Duration(rng.IntN(3000)) * time.Millisecond)
		clients[rng.IntN(len(clients))].SetDown(rng.IntN(2) == 0)
		if ids := m.Leases(); len(ids) > 0 && rng.IntN(10) == 0 {
			m.ExpireLease(ids[rng.IntN(len(ids))])
		}
	}
	for _, c := range clients {
		c.SetDown(false)
	}
	quiet := m.Rev()
	<-time.After(5 * time.Minute)
	stop()
	wg.Wait()

	wctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last int64
	terms, late := 0, 0
	end := m.Rev()
	// Something after everything else, to know where to stop.
	if _, err := store.Put(wctx, m, "x", int64(1)<<62, store.AnyRev); err != nil {
		t.Fatal(err)
	}
	for batch := range m.Watch(wctx, "x", 0) {
		for _, ev := range batch {
			f, err := store.Decode[int64](ev.Value)
			if err != nil {
				t.Fatal(err)
			}
			if f < last {
				t.Fatalf("revision %d was committed by the leader of %d after one of the leader of %d", ev.ModRev, f, last)
			}
			if f > last {
				terms++
			}
			if last = f; ev.ModRev > quiet {
				late++
			}
			if ev.ModRev > end {
				cancel()
			}
		}
	}
	if terms < 10 || late < 100 {
		t.Errorf("%d leaderships, %d commits after the disturbances: that shows nothing", terms, late)
	}
	for _, c := range clients {
		closeAll(t, c)
	}
	closeAll(t, m)
}

// A lead that returns by itself gives way to a candidate that waits.
func TestLeaderGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memstore.NewMem()
		defer closeAll(t, m)
		ctx, stop := context.WithCancel(t.Context())
		order := make(chan string, 100)
		var wg sync.WaitGroup
		for _, id := range []string{"a", "b"} {
			wg.Go(func() {
				_ = lease.Run(ctx, m, key, id, ttl, func(context.Context, lease.Fence) { order <- id })
			})
		}
		// After that both have had their turn and pause, and either may be the next.
		first := await(t, "nobody leads", order)
		began := time.Now()
		if second := await(t, "nobody follows", order); second == first || time.Since(began) > time.Second {
			t.Errorf("after %s, %s leads after %v", first, second, time.Since(began))
		}
		stop()
		wg.Wait()
	})
}

// Somebody deletes the key: the leader learns it without waiting for its lease.
func TestLeaderSeesKeyTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memstore.NewMem()
		defer closeAll(t, m)
		terms := make(chan term, 10)
		a := campaign(t, m, "a", time.Hour, terms)
		first := <-terms
		began := time.Now()
		if err := store.Delete(t.Context(), m, key, store.AnyRev); err != nil {
			t.Fatal(err)
		}
		await(t, "the leader's context does not end", first.ctx.Done())
		if cause := context.Cause(first.ctx); !errors.Is(cause, lease.ErrLost) || time.Since(began) > time.Second {
			t.Errorf("%v after %v", cause, time.Since(began))
		}
		a.stop(nil)
		<-a.done
	})
}

// presence watches what stands under the key.
func present(t *testing.T, s store.Store, key string) (string, bool) {
	t.Helper()
	v, _, err := store.GetT[string](t.Context(), s, key)
	if err != nil && !errors.Is(err, lockstep.ErrNotFound) {
		t.Fatal(err)
	}
	return v, err == nil
}

func TestPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memstore.NewMem()
		sa, sb := m.NewClient(), m.NewClient()
		defer closeAll(t, m, sa, sb)
		p := lease.Presence{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
		k := lease.PresenceKey("node", "n1")
		if k != "alive/node/n1" {
			t.Fatal(k)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx, sa, "node", "n1", ttl, "first") }()
		<-time.After(time.Hour)
		if v, ok := present(t, m, k); !ok || v != "first" {
			t.Fatal(v, ok)
		}
		sa.SetDown(true)
		<-time.After(ttl + time.Second)
		if v, ok := present(t, m, k); ok {
			t.Fatalf("cut off, but %s is present", v)
		}
		<-time.After(time.Hour)
		sa.SetDown(false)
		<-time.After(5 * time.Second)
		if _, ok := present(t, m, k); !ok {
			t.Fatal("not announced again")
		}
		// Compaction of history takes nobody's presence away.
		rev := m.Rev()
		sa.SetDown(true)
		for range 3 {
			if _, err := store.Put(ctx, m, k+"0", 1, store.AnyRev); err != nil {
				t.Fatal(err)
			}
		}
		m.Compact(m.Rev())
		sa.SetDown(false)
		<-time.After(time.Minute)
		if kv, err := m.Get(ctx, k); err != nil || kv.ModRev > rev {
			t.Fatalf("after compaction %+v, %v", kv, err)
		}
		for name, take := range map[string]func(){
			"expired": func() { m.ExpireLease(m.Leases()[0]) },
			"deleted": func() {
				if err := store.Delete(ctx, m, k, store.AnyRev); err != nil {
					t.Fatal(err)
				}
			},
		} {
			take()
			<-time.After(5 * time.Second)
			if _, ok := present(t, m, k); !ok {
				t.Fatalf("%s: not announced again", name)
			}
		}

		// A later life of the same node takes over at once, and the earlier one gives up.
		ctx2, stop2 := context.WithCancel(t.Context())
		done2 := make(chan error, 1)
		go func() { done2 <- p.Run(ctx2, sb, "node", "n1", ttl, "second") }()
		if err := await(t, "the earlier one does not end", done); !errors.Is(err, lease.ErrReplaced) || !errors.Is(err, lockstep.ErrConflict) {
			t.Fatalf("the earlier one ended with %v", err)
		}
		if v, ok := present(t, m, k); !ok || v != "second" {
			t.Fatal(v, ok)
		}
		stop2()
		if err := await(t, "the later one does not end", done2); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if v, ok := present(t, m, k); ok {
			t.Errorf("%s is present after its end", v)
		}
		if ids := m.Leases(); len(ids) != 0 {
			t.Errorf("leases left: %v", ids)
		}
		stop()
	})
}

// The same with etcd: the first leader's client dies without a word.
func TestTakeoverEtcd(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	e, err := etcdstore.StartEmbedded(etcdstore.EmbedConfig{Dir: t.TempDir(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	open := func() *etcdstore.Store {
		s, err := etcdstore.Open(t.Context(), etcdstore.Config{Endpoints: e.Endpoints(), Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sa, sb := open(), open()
	defer closeAll(t, sa, sb)
	const ttl = 2 * time.Second
	terms := make(chan term, 10)
	next := func() term {
		t.Helper()
		select {
		case tm := <-terms:
			return tm
		case <-time.After(20 * time.Second):
			t.Fatal("nobody leads")
		}
		return term{}
	}
	a := campaign(t, sa, "a", ttl, terms)
	first := next()
	b := campaign(t, sb, "b", ttl, terms)
	if err := commit(t.Context(), sb, first.fence, "x", 1); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	closeAll(t, sa)
	second := next()
	if took := time.Since(began); second.id != "b" || took > ttl+time.Second {
		t.Errorf("%s leads after %v", second.id, took)
	}
	if cause := context.Cause(first.ctx); !errors.Is(cause, lease.ErrLost) {
		t.Errorf("cause %v", cause)
	}
	if err := commit(t.Context(), sb, first.fence, "x", 2); !errors.Is(err, lockstep.ErrConflict) {
		t.Errorf("commit of the deposed leader: %v", err)
	}
	if err := commit(t.Context(), sb, second.fence, "x", 3); err != nil {
		t.Errorf("commit of the leader: %v", err)
	}
	for _, c := range []*candidate{a, b} {
		c.stop(nil)
		<-c.done
	}
}

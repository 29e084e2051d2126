package etcdstore_test

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/internal/cable"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// A member that is frozen keeps its connections: its kernel still takes what is sent. gRPC notices that
// after 13 s. Until then a third of all requests would fail, and a watch there would say nothing.
func TestAFrozenMemberIsLeft(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for seconds; run without -short")
	}
	e := startEtcd(t, etcdstore.EmbedConfig{Dir: t.TempDir()})
	at, err := url.Parse(e.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	var members []*cable.Cable // two ways to one member stand for two members
	var endpoints []string
	for range 2 {
		c, err := cable.New(at.Host)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		members, endpoints = append(members, c), append(endpoints, "http://"+c.Addr())
	}
	direct := open(t, etcdstore.Config{Endpoints: e.Endpoints()})
	s := open(t, etcdstore.Config{Endpoints: endpoints})
	for range 10 { // both are connected
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rev, err := store.Create(t.Context(), direct, "x/before", "v")
	if err != nil {
		t.Fatal(err)
	}
	events := s.Watch(t.Context(), "x/", rev-1)
	await(t, events, 10*time.Second)
	for i, frozen := range members {
		frozen.Sever()
		began := time.Now()
		for good := 0; good < 10; good++ { // in turn they go to both, as long as both count
			ctx, cancel := context.WithTimeout(t.Context(), etcdstore.DefaultRequestTimeout)
			if err := s.Ping(ctx); err != nil {
				good = -1
			}
			cancel()
			if time.Since(began) > 9*time.Second {
				t.Fatalf("member %d: requests still fail after %s", i, time.Since(began))
			}
		}
		if _, err := store.Put(t.Context(), direct, "x/after", i, store.AnyRev); err != nil {
			t.Fatal(err)
		}
		await(t, events, time.Second)
		t.Logf("member %d was left after %s", i, time.Since(began))
		frozen.Join()
	back: // it counts again
		for began = time.Now(); ; time.Sleep(50 * time.Millisecond) {
			members[1-i].Sever()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := s.Ping(ctx)
			cancel()
			members[1-i].Join()
			if err == nil {
				break back
			}
			if time.Since(began) > 20*time.Second {
				t.Fatalf("member %d does not count again: %v", i, err)
			}
		}
	}
}

func await(t *testing.T, events <-chan []store.Event, within time.Duration) {
	t.Helper()
	select {
	case <-events:
	case <-time.After(within):
		t.Fatalf("the watch said nothing within %s", within)
	}
}

// A member that is slow to answer one request, but says other things meanwhile, is not frozen: to close its
// connection would cut off what it is about to answer, and make a slow store slower.
func TestASlowMemberIsKept(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for seconds; run without -short")
	}
	e := startEtcd(t, etcdstore.EmbedConfig{Dir: t.TempDir()})
	at, err := url.Parse(e.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	slow, err := cable.New(at.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(slow.Close)
	direct := open(t, etcdstore.Config{Endpoints: e.Endpoints()})
	s := open(t, etcdstore.Config{Endpoints: []string{"http://" + slow.Addr()}, RequestTimeout: 8 * time.Second})
	rev, err := store.Create(t.Context(), direct, "x/0", "v")
	if err != nil {
		t.Fatal(err)
	}
	events := s.Watch(t.Context(), "x/", rev-1)
	await(t, events, 10*time.Second)

	slow.Cut(true, false) // it is told nothing, and goes on telling
	answered := make(chan error, 1)
	go func() {
		_, err := store.Put(t.Context(), s, "y", "v", store.AnyRev)
		answered <- err
	}()
	impatient, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	given := make(chan struct{})
	go func() {
		defer close(given)
		if err := s.Ping(impatient); err == nil {
			t.Error("a request that nobody was told of was answered")
		}
	}()
	for done := false; !done; {
		if _, err := store.Put(t.Context(), direct, "x/0", "v", store.AnyRev); err != nil {
			t.Fatal(err)
		}
		await(t, events, 10*time.Second)
		select {
		case <-given:
			done = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	slow.Join()
	if err := <-answered; err != nil {
		t.Fatalf("a request that was answered in time: %v", err)
	}
}

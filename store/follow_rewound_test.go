package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/store"
)

// scripted is a store that gives one list after the other, and whose watches end at once.
type scripted struct {
	store.Store
	lists []listed
}

type listed struct {
	rev int64
	kvs []store.KV
}

func (s *scripted) List(context.Context, string) ([]store.KV, int64, error) {
	l := s.lists[0]
	if len(s.lists) > 1 {
		s.lists = s.lists[1:]
	}
	return l.kvs, l.rev, nil
}

func (s *scripted) Watch(context.Context, string, int64) <-chan []store.Event {
	ch := make(chan []store.Event)
	close(ch)
	return ch
}

// Goal: a store that was restored from an older copy, and has gone on, may give a key the revision that it
// had before with another value: a follower is told.
func TestFollowIsToldWhatARestoredStoreHas(t *testing.T) {
	at := func(rev int64, n int) store.KV {
		return store.KV{Key: "r/g", ModRev: rev, CreateRev: 3, Value: store.Encode(plain{N: n})}
	}
	s := &scripted{lists: []listed{{120, []store.KV{at(95, 7)}}, {100, []store.KV{at(95, 8)}}}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []store.Change[plain]
	synced := 0
	_ = store.Follow(ctx, s, "r/", func(batch []store.Change[plain]) {
		for _, c := range batch {
			if c.Kind == store.ChangeSynced {
				if synced++; synced == 3 {
					cancel()
				}
				continue
			}
			got = append(got, c)
		}
	})
	if len(got) != 2 || got[0].Value.N != 7 || got[0].Rewound || got[1].Value.N != 8 || !got[1].Rewound {
		t.Fatalf("told %+v", got)
	}
}

// rewinding is a store whose revision is seen to be lower by the look of a follower, and has grown beyond
// what the follower knew when it lists again.
type rewinding struct {
	store.Store
	listed int
}

func (s *rewinding) List(_ context.Context, prefix string) ([]store.KV, int64, error) {
	if prefix == store.KeyCluster {
		return nil, 119, nil
	}
	if s.listed++; s.listed == 1 {
		return []store.KV{{Key: "r/g", ModRev: 95, Value: store.Encode(plain{N: 7})}}, 120, nil
	}
	return []store.KV{{Key: "r/g", ModRev: 95, Value: store.Encode(plain{N: 8})}}, 121, nil
}

func (s *rewinding) Watch(ctx context.Context, _ string, _ int64) <-chan []store.Event {
	ch := make(chan []store.Event)
	go func() {
		defer close(ch)
		<-ctx.Done()
	}()
	return ch
}

// Goal: that the store went back is not forgotten because it has grown again until it is listed.
func TestFollowRemembersThatTheStoreWentBack(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for seconds; run without -short")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var last store.Change[plain]
	_ = store.Follow(ctx, &rewinding{}, "r/", func(batch []store.Change[plain]) {
		for _, c := range batch {
			if c.Kind == store.ChangePut {
				if last = c; c.Value.N == 8 {
					cancel()
				}
			}
		}
	})
	if last.Value.N != 8 || !last.Rewound {
		t.Fatalf("told last %+v", last)
	}
}

package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

type plain struct {
	N    int    `json:"n"`
	Name string `json:"name,omitempty"`
}

// ladder is at version 3: 2 renamed "count" to "n", 3 doubled it.
type ladder struct {
	N int `json:"n"`
}

func init() {
	store.RegisterFormat[ladder](3, func(from int, d json.RawMessage) (json.RawMessage, error) {
		var old struct{ Count, N int }
		if err := json.Unmarshal(d, &old); err != nil {
			return nil, err
		}
		if from == 1 {
			old.N = old.Count
		}
		return json.Marshal(ladder{N: 2 * old.N})
	})
}

func open(t *testing.T) *memstore.Mem {
	m := memstore.NewMem()
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestEncode(t *testing.T) {
	if got, want := string(store.Encode(plain{N: 1})), `{"v":1,"d":{"n":1}}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := string(store.Encode(&ladder{N: 1})), `{"v":3,"d":{"n":1}}`; got != want {
		t.Errorf("pointer to a registered type: %s, want %s", got, want)
	}
	if got, err := store.Decode[plain](store.Encode(plain{N: 7, Name: "x"})); err != nil || got != (plain{N: 7, Name: "x"}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     error
	}{
		{"newer version", `{"v":2,"d":{"n":1}}`, store.ErrNewerFormat},
		{"newer version of another shape", `{"v":2,"d":[1]}`, store.ErrNewerFormat},
		{"field that is not known", `{"v":1,"d":{"n":1,"m":2}}`, store.ErrNewerFormat},
		{"wrong type", `{"v":1,"d":{"n":"1"}}`, lockstep.ErrCorrupt},
		{"wrong type and unknown field", `{"v":1,"d":{"m":1,"n":"1"}}`, lockstep.ErrCorrupt},
		{"no version", `{"d":{"n":1}}`, lockstep.ErrCorrupt},
		{"version 0", `{"v":0,"d":{"n":1}}`, lockstep.ErrCorrupt},
		{"negative version", `{"v":-1,"d":{"n":1}}`, lockstep.ErrCorrupt},
		{"no data", `{"v":1}`, lockstep.ErrCorrupt},
		{"no envelope", `{"n":1}`, lockstep.ErrCorrupt},
		{"two values", `{"v":1,"d":{"n":1}} {"v":1,"d":{"n":1}}`, lockstep.ErrCorrupt},
		{"cut off", `{"v":1,"d":{"n"`, lockstep.ErrCorrupt},
		{"empty", ``, lockstep.ErrCorrupt},
	} {
		got, err := store.Decode[plain]([]byte(c.in))
		if !errors.Is(err, c.want) || got != (plain{}) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		for _, other := range []error{store.ErrNewerFormat, lockstep.ErrCorrupt} {
			if !errors.Is(c.want, other) && errors.Is(err, other) {
				t.Errorf("%s: matches %v as well", c.name, other)
			}
		}
	}
	for in, want := range map[string]int{
		`{"v":1,"d":{"count":4}}`: 8,
		`{"v":2,"d":{"n":4}}`:     8,
		`{"v":3,"d":{"n":4}}`:     4,
	} {
		if got, err := store.Decode[ladder]([]byte(in)); err != nil || got.N != want {
			t.Errorf("%s: %+v, %v, want %d", in, got, err, want)
		}
	}
	if _, err := store.Decode[ladder]([]byte(`{"v":4,"d":{"n":4}}`)); !errors.Is(err, store.ErrNewerFormat) {
		t.Errorf("above a registered version: %v", err)
	}
}

func TestPutCreateDelete(t *testing.T) {
	ctx, s := t.Context(), open(t)
	rev, err := store.Create(ctx, s, "k", plain{N: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(ctx, s, "k", plain{N: 2}); !errors.Is(err, lockstep.ErrExists) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := store.Put(ctx, s, "k", plain{N: 2}, rev+1); !errors.Is(err, lockstep.ErrConflict) || !strings.Contains(err.Error(), "k@") {
		t.Errorf("put with a wrong revision: %v", err)
	}
	if _, err := store.Put(ctx, s, "k", plain{N: 2}, 0); !errors.Is(err, lockstep.ErrConflict) {
		t.Errorf("put of a present key as absent: %v", err)
	}
	rev2, err := store.Put(ctx, s, "k", plain{N: 3}, rev)
	if err != nil || rev2 <= rev {
		t.Fatalf("put: %d, %v", rev2, err)
	}
	if v, at, err := store.GetT[plain](ctx, s, "k"); err != nil || v.N != 3 || at != rev2 {
		t.Errorf("got %+v at %d, %v", v, at, err)
	}
	if rev2, err = store.Put(ctx, s, "k", plain{N: 4}, store.AnyRev); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(ctx, s, "k", rev); !errors.Is(err, lockstep.ErrConflict) {
		t.Errorf("delete with an old revision: %v", err)
	}
	if err := store.Delete(ctx, s, "k", rev2); err != nil {
		t.Error(err)
	}
	if _, _, err := store.GetT[plain](ctx, s, "k"); !errors.Is(err, lockstep.ErrNotFound) {
		t.Errorf("get after delete: %v", err)
	}
	if err := store.Delete(ctx, s, "k", store.AnyRev); err != nil {
		t.Errorf("delete of nothing: %v", err)
	}
}

func TestListT(t *testing.T) {
	ctx, s := t.Context(), open(t)
	for i := range 3 {
		if _, err := store.Create(ctx, s, fmt.Sprint("p/", i), plain{N: i}); err != nil {
			t.Fatal(err)
		}
	}
	items, rev, err := store.ListT[plain](ctx, s, "p/")
	if err != nil || len(items) != 3 || rev != s.Rev() {
		t.Fatalf("%+v at %d, %v", items, rev, err)
	}
	for i, it := range items {
		if it.Value.N != i || it.Key != fmt.Sprint("p/", i) || it.ModRev != it.CreateRev || it.ModRev == 0 {
			t.Errorf("item %d: %+v", i, it)
		}
	}
	if _, _, err := s.Txn(ctx, nil, []store.Op{{Key: "p/9", Value: []byte(`{"v":9,"d":{}}`)}}); err != nil {
		t.Fatal(err)
	}
	if items, _, err := store.ListT[plain](ctx, s, "p/"); !errors.Is(err, store.ErrNewerFormat) || items != nil {
		t.Errorf("a list with a newer record: %v, %v", items, err)
	}
}

// Many writers of one key: each change is applied exactly once.
func TestUpdateUnderContention(t *testing.T) {
	ctx, s := t.Context(), open(t)
	if _, err := store.Create(ctx, s, "k", plain{}); err != nil {
		t.Fatal(err)
	}
	const writers, updates = 6, 20
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range updates {
				if _, err := store.Update(ctx, s, "k", func(p *plain) error { p.N++; return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if v, _, err := store.GetT[plain](ctx, s, "k"); err != nil || v.N != writers*updates {
		t.Errorf("%+v, %v, want %d", v, err, writers*updates)
	}
}

func TestUpdateEnds(t *testing.T) {
	ctx, s := t.Context(), open(t)
	if _, err := store.Update(ctx, s, "k", func(*plain) error { return nil }); !errors.Is(err, lockstep.ErrNotFound) {
		t.Errorf("update of nothing: %v", err)
	}
	if _, err := store.Create(ctx, s, "k", plain{}); err != nil {
		t.Fatal(err)
	}
	rev := s.Rev()
	no := errors.New("no")
	if _, err := store.Update(ctx, s, "k", func(p *plain) error { p.N++; return no }); !errors.Is(err, no) || err.Error() != "no" {
		t.Errorf("aborted: %v", err)
	}
	if v, err := store.Update(ctx, s, "k", func(p *plain) error { p.N = 0; return nil }); err != nil || v.N != 0 || s.Rev() != rev {
		t.Errorf("no change: %+v, %v, revision %d, was %d", v, err, s.Rev(), rev)
	}
	tries := 0
	_, err := store.Update(ctx, s, "k", func(p *plain) error {
		tries++
		_, err := store.Put(ctx, s, "k", plain{N: 100 + tries}, store.AnyRev) // somebody is always faster
		p.N++
		return err
	})
	if !errors.Is(err, lockstep.ErrConflict) || tries < 2 || tries > 100 {
		t.Errorf("lost for ever: %v after %d tries", err, tries)
	}
	_, err = store.Update(ctx, s, "k", func(p *plain) error { p.N++; s.SetDown(true); return nil })
	if !errors.Is(err, lockstep.ErrStoreUnavailable) {
		t.Errorf("during an outage: %v", err)
	}
}

func TestTx(t *testing.T) {
	ctx, s := t.Context(), open(t)
	rev, err := store.NewTx().Put("a", plain{N: 1}, 0).Put("b", &ladder{N: 2}, 0).Commit(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	fence := store.Cmp{Key: "a", ModRev: rev}
	tx := store.NewTx().Cmp(fence, fence).Put("c", plain{N: 3}, store.AnyRev).Delete("b", rev-1)
	if _, err := tx.Commit(ctx, s); !errors.Is(err, lockstep.ErrConflict) {
		t.Errorf("one wrong revision: %v", err)
	}
	if _, err := s.Get(ctx, "c"); !errors.Is(err, lockstep.ErrNotFound) {
		t.Errorf("a lost transaction wrote: %v", err)
	}
	if _, err := store.NewTx().Cmp(fence).Put("c", plain{N: 3}, store.AnyRev).Delete("b", rev).Commit(ctx, s); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "b"); !errors.Is(err, lockstep.ErrNotFound) {
		t.Errorf("not deleted: %v", err)
	}
	if _, err := store.NewTx().Put("x", func() {}, 0).Put("y", 1, 0).Commit(ctx, s); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("a value that is no record: %v", err)
	}
	if _, err := store.NewTx().Put("x", 1, 0).Delete("x", 0).Commit(ctx, s); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("a key twice: %v", err)
	}
}

// follower records what Follow tells as text.
type follower struct {
	told chan string
	done chan error
}

func follow(ctx context.Context, s store.Store) *follower {
	f := &follower{told: make(chan string, 1000), done: make(chan error, 1)}
	go func() {
		f.done <- store.Follow(ctx, s, "f/", func(batch []store.Change[plain]) {
			for _, c := range batch {
				line := fmt.Sprint(c.Kind, " ", c.Key)
				if c.Kind == store.ChangePut {
					line += fmt.Sprint("=", c.Value.N)
				}
				if (c.Err != nil) != (c.Kind == store.ChangeBad) {
					line += fmt.Sprint(" with error ", c.Err)
				}
				f.told <- strings.TrimSpace(line)
			}
		})
	}()
	return f
}

func (f *follower) expect(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	timeout := time.After(10 * time.Second)
	for range want {
		select {
		case line := <-f.told:
			got = append(got, line)
		case <-timeout:
			t.Fatalf("told %q, want %q", got, want)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("told %q, want %q", got, want)
	}
}

func TestFollow(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := open(t)
	put := func(key string, n int) {
		t.Helper()
		if _, err := store.Put(ctx, s, key, plain{N: n}, store.AnyRev); err != nil {
			t.Fatal(err)
		}
	}
	put("f/a", 1)
	put("f/b", 2)
	put("g/a", 3)
	reader := s.NewClient()
	defer reader.Close()
	f := follow(ctx, reader)
	f.expect(t, "put f/a=1", "put f/b=2", "synced")
	put("f/c", 4)
	f.expect(t, "put f/c=4")
	if err := store.Delete(ctx, s, "f/a", store.AnyRev); err != nil {
		t.Fatal(err)
	}
	f.expect(t, "deleted f/a")
	if _, _, err := s.Txn(ctx, nil, []store.Op{{Key: "f/bad", Value: []byte("?")}}); err != nil {
		t.Fatal(err)
	}
	f.expect(t, "bad f/bad")

	// Cut off while history is compacted: what is the same is not told again, what is gone is.
	reader.SetDown(true)
	put("f/b", 5)
	put("f/b", 6)
	put("f/d", 7)
	if err := store.Delete(ctx, s, "f/c", store.AnyRev); err != nil {
		t.Fatal(err)
	}
	s.Compact(s.Rev())
	put("f/d", 8)
	reader.SetDown(false)
	f.expect(t, "deleted f/c", "put f/b=6", "put f/d=8", "synced")
	put("f/a", 9)
	f.expect(t, "put f/a=9")

	cancel()
	select {
	case err := <-f.done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Follow ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Follow does not end with its context")
	}
}

func TestFollowWaitsForStore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := open(t)
	s.SetDown(true)
	f := follow(ctx, s)
	s.SetDown(false)
	f.expect(t, "synced")
	cancel()
	<-f.done
}

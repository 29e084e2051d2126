package etcdstore

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/store"
)

// Goal: a list has every key once, in order, however the keys are spread, and the store looks at no more
// than a few keys for each of them. Method: some thousands of keys in the shapes that there are, and in some
// that are meant to be hard; etcd tells how many keys it visited.
func TestListVisitsLittleMore(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	e, err := StartEmbedded(EmbedConfig{Dir: t.TempDir(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	s, err := Open(t.Context(), Config{Endpoints: e.Endpoints(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	random := rand.New(rand.NewPCG(1, 0))
	id := func() string { return fmt.Sprintf("%08x-%04x", random.Uint32(), random.IntN(1<<16)) }
	const many = 12000
	for name, row := range map[string]struct {
		key   func(i int) string
		bound int64 // keys visited for each key
	}{
		"ids":            {func(int) string { return id() }, 4},
		"two for an id":  {func(i int) string { return fmt.Sprintf("%08x/az%d-node", uint32(i/2)*2654435761, i%2) }, 4},
		"numbers":        {func(i int) string { return fmt.Sprintf("%020d", i) }, 4},
		"other letters":  {func(i int) string { return strings.Repeat(string(rune('!'+i%90)), 1+i/90) }, 4},
		"few then many":  {func(i int) string { return map[bool]string{true: "a", false: "b"}[i < 100] + id() }, 4},
		"a common start": {func(int) string { return "the-same-for-all-of-them-" + id() }, 4},
	} {
		t.Run(name, func(t *testing.T) {
			prefix := strings.ReplaceAll(name, " ", "-") + "/"
			n := many
			if name == "other letters" {
				n = 4000 // its keys are long
			}
			want := map[string]bool{}
			for i := 0; len(want) < n; {
				tx := store.NewTx()
				for j := 0; j < 120 && len(want) < n; i++ {
					if key := prefix + row.key(i); !want[key] {
						want[key] = true
						tx.Put(key, i, store.AnyRev)
						j++
					}
				}
				if _, err := tx.Commit(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			l := lister{s: s, prefix: prefix}
			if err := l.read(context.Background()); err != nil {
				t.Fatal(err)
			}
			if len(l.kvs) != n || !slices.IsSortedFunc(l.kvs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) }) {
				t.Fatalf("%d keys of %d, or not in order", len(l.kvs), n)
			}
			for _, kv := range l.kvs {
				if !want[kv.Key] {
					t.Fatalf("%q is there twice, or was never written", kv.Key)
				}
				delete(want, kv.Key)
			}
			t.Logf("%d keys visited for %d", l.visited, n)
			if l.visited > row.bound*int64(n) {
				t.Errorf("%d keys visited for %d, at most %d for each are expected", l.visited, n, row.bound)
			}
		})
	}
}

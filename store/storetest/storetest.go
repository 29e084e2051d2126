// Package storetest is the conformance suite of store.Store. Run checks everything that a store
// in service promises; Outage, with the means to stop one, what it promises when it does not
// answer.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// patience bounds every wait of the suite.
const patience = 20 * time.Second

// Run checks stores made by open, one for each subtest. open returns an empty store and closes it
// at the end of the test it is given.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(context.Context, *testing.T, store.Store)
	}{
		{"get", testGet},
		{"list in key order at one revision", testList},
		{"list of many keys", testListMany},
		{"txn compares revisions", testTxnCompares},
		{"txn that fails changes nothing", testTxnFails},
		{"txn is atomic under contention", testTxnContention},
		{"txn refuses impossible requests", testTxnInvalid},
		{"values come back as written", testValues},
		{"watch from a revision", testWatchFromRevision},
		{"watch sees one prefix only", testWatchPrefix},
		{"watch misses nothing and keeps order", testWatchOrder},
		{"watch with a slow reader", testWatchSlow},
		{"watch ends with its context", testWatchEnds},
		{"watch ends with the store", testWatchClosed},
		{"lease is kept alive", testLeaseKept},
		{"lease that is not renewed takes its keys along", testLeaseExpires},
		{"lease revoked", testLeaseRevoked},
		{"lease attaches to the last put", testLeaseReattach},
		{"cancelled context", testCancelled},
		{"closed store", testClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
			defer cancel()
			c.test(ctx, t, open(t))
		})
	}
}

func put(ctx context.Context, t *testing.T, s store.Store, key, value string) int64 {
	t.Helper()
	ok, rev, err := s.Txn(ctx, nil, []store.Op{{Key: key, Value: []byte(value)}})
	if err != nil || !ok {
		t.Fatalf("put %s: ok %v, %v", key, ok, err)
	}
	return rev
}

func remove(ctx context.Context, t *testing.T, s store.Store, key string) int64 {
	t.Helper()
	ok, rev, err := s.Txn(ctx, nil, []store.Op{{Key: key, Delete: true}})
	if err != nil || !ok {
		t.Fatalf("delete %s: ok %v, %v", key, ok, err)
	}
	return rev
}

func testGet(ctx context.Context, t *testing.T, s store.Store) {
	if _, err := s.Get(ctx, "a"); !errors.Is(err, lockstep.ErrNotFound) {
		t.Fatalf("get of a missing key: %v", err)
	}
	first := put(ctx, t, s, "a", "1")
	kv, err := s.Get(ctx, "a")
	if err != nil || kv.Key != "a" || string(kv.Value) != "1" || kv.ModRev != first || kv.CreateRev != first {
		t.Fatalf("after put at %d: %+v, %v", first, kv, err)
	}
	second := put(ctx, t, s, "a", "2")
	if second <= first {
		t.Fatalf("revisions %d, then %d", first, second)
	}
	kv, err = s.Get(ctx, "a")
	if err != nil || string(kv.Value) != "2" || kv.ModRev != second || kv.CreateRev != first {
		t.Fatalf("after put at %d: %+v, %v", second, kv, err)
	}
	remove(ctx, t, s, "a")
	if _, err := s.Get(ctx, "a"); !errors.Is(err, lockstep.ErrNotFound) {
		t.Fatalf("get of a deleted key: %v", err)
	}
	third := put(ctx, t, s, "a", "3")
	kv, err = s.Get(ctx, "a")
	if err != nil || kv.CreateRev != third {
		t.Fatalf("key made anew at %d: %+v, %v", third, kv, err)
	}
}

func testList(ctx context.Context, t *testing.T, s store.Store) {
	kvs, rev, err := s.List(ctx, "p/")
	if err != nil || len(kvs) != 0 || rev < 1 {
		t.Fatalf("empty list: %v at %d, %v", kvs, rev, err)
	}
	for _, k := range []string{"p/b", "p/a", "q/a", "p", "p/c/d", "p0"} {
		put(ctx, t, s, k, "of "+k)
	}
	last := put(ctx, t, s, "q/b", "")
	kvs, rev, err = s.List(ctx, "p/")
	if err != nil || rev != last {
		t.Fatalf("list at %d, last write at %d, %v", rev, last, err)
	}
	var keys []string
	for _, kv := range kvs {
		keys = append(keys, kv.Key)
		if string(kv.Value) != "of "+kv.Key || kv.ModRev == 0 || kv.CreateRev != kv.ModRev {
			t.Errorf("listed %+v", kv)
		}
	}
	if want := []string{"p/a", "p/b", "p/c/d"}; !slices.Equal(keys, want) {
		t.Fatalf("listed %q, want %q", keys, want)
	}
	if kvs, _, err = s.List(ctx, ""); err != nil || len(kvs) != 7 {
		t.Fatalf("list of everything: %d keys, %v", len(kvs), err)
	}
}

func testListMany(ctx context.Context, t *testing.T, s store.Store) {
	// More than any page; and a key whose name continues another's, at a page's border.
	const n = 2500
	var ops []store.Op
	for i := range n {
		ops = append(ops, store.Op{Key: fmt.Sprintf("many/%05d", i), Value: []byte("x")})
	}
	for part := range slices.Chunk(ops, store.MaxTxnOps) {
		if ok, _, err := s.Txn(ctx, nil, part); err != nil || !ok {
			t.Fatalf("write: %v, %v", ok, err)
		}
	}
	kvs, _, err := s.List(ctx, "many/")
	if err != nil || len(kvs) != n {
		t.Fatalf("listed %d of %d, %v", len(kvs), n, err)
	}
	for i, kv := range kvs {
		if kv.Key != fmt.Sprintf("many/%05d", i) {
			t.Fatalf("place %d is %s", i, kv.Key)
		}
	}
}

func testTxnCompares(ctx context.Context, t *testing.T, s store.Store) {
	create := func(value string) (bool, int64) {
		ok, rev, err := s.Txn(ctx, []store.Cmp{{Key: "k", ModRev: 0}}, []store.Op{{Key: "k", Value: []byte(value)}})
		if err != nil {
			t.Fatal(err)
		}
		return ok, rev
	}
	ok, rev := create("1")
	if !ok {
		t.Fatal("an absent key does not have revision 0")
	}
	if ok, _ := create("2"); ok {
		t.Fatal("a present key has revision 0")
	}
	ok, rev2, err := s.Txn(ctx, []store.Cmp{{Key: "k", ModRev: rev}}, []store.Op{{Key: "k", Value: []byte("3")}})
	if err != nil || !ok || rev2 <= rev {
		t.Fatalf("put with the right revision: %v at %d, %v", ok, rev2, err)
	}
	ok, _, err = s.Txn(ctx, []store.Cmp{{Key: "k", ModRev: rev}}, []store.Op{{Key: "k", Delete: true}})
	if err != nil || ok {
		t.Fatalf("delete with an old revision: %v, %v", ok, err)
	}
	ok, _, err = s.Txn(ctx, []store.Cmp{{Key: "k", ModRev: rev2}}, nil)
	if err != nil || !ok {
		t.Fatalf("comparison alone: %v, %v", ok, err)
	}
	ok, _, err = s.Txn(ctx, []store.Cmp{{Key: "k", ModRev: rev2}, {Key: "other", ModRev: 0}}, []store.Op{{Key: "k", Delete: true}})
	if err != nil || !ok {
		t.Fatalf("delete with the right revision: %v, %v", ok, err)
	}
	if ok, _ := create("4"); !ok {
		t.Fatal("a deleted key does not have revision 0")
	}
}

func testTxnFails(ctx context.Context, t *testing.T, s store.Store) {
	rev := put(ctx, t, s, "a", "1")
	ok, after, err := s.Txn(ctx,
		[]store.Cmp{{Key: "a", ModRev: rev}, {Key: "b", ModRev: 7}},
		[]store.Op{{Key: "a", Delete: true}, {Key: "b", Value: []byte("2")}, {Key: "c", Value: []byte("3")}})
	if err != nil || ok {
		t.Fatalf("one of two comparisons is wrong: %v, %v", ok, err)
	}
	kvs, listed, err := s.List(ctx, "")
	if err != nil || len(kvs) != 1 || kvs[0].ModRev != rev || listed != rev || after != rev {
		t.Fatalf("after the failed transaction (revision %d): %+v at %d, %v", after, kvs, listed, err)
	}
	// A delete of nothing is no change either.
	if again := remove(ctx, t, s, "nothing"); again != rev {
		t.Fatalf("revision %d after deleting nothing, was %d", again, rev)
	}
}

// testTxnContention: writers move units between two keys by compare-and-swap; readers must never
// see another sum, and no move may be lost.
func testTxnContention(ctx context.Context, t *testing.T, s store.Store) {
	const writers, moves = 4, 10
	encode := func(n int) []byte { return fmt.Append(nil, n) }
	if ok, _, err := s.Txn(ctx, nil, []store.Op{{Key: "x/a", Value: encode(100)}, {Key: "x/b", Value: encode(0)}}); err != nil || !ok {
		t.Fatal(ok, err)
	}
	read := func() (a, b store.KV, na, nb int, err error) {
		kvs, _, err := s.List(ctx, "x/")
		if err != nil {
			return a, b, 0, 0, err
		}
		if len(kvs) != 2 {
			return a, b, 0, 0, fmt.Errorf("%d keys", len(kvs))
		}
		if _, err := fmt.Sscan(string(kvs[0].Value), &na); err != nil {
			return a, b, 0, 0, err
		}
		if _, err := fmt.Sscan(string(kvs[1].Value), &nb); err != nil {
			return a, b, 0, 0, err
		}
		if na+nb != 100 || kvs[0].ModRev != kvs[1].ModRev {
			return a, b, 0, 0, fmt.Errorf("saw %d at %d and %d at %d", na, kvs[0].ModRev, nb, kvs[1].ModRev)
		}
		return kvs[0], kvs[1], na, nb, nil
	}
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < moves; {
				a, b, na, nb, err := read()
				if err != nil {
					t.Error(err)
					return
				}
				ok, _, err := s.Txn(ctx,
					[]store.Cmp{{Key: "x/a", ModRev: a.ModRev}, {Key: "x/b", ModRev: b.ModRev}},
					[]store.Op{{Key: "x/a", Value: encode(na - 1)}, {Key: "x/b", Value: encode(nb + 1)}})
				if err != nil {
					t.Error(err)
					return
				}
				if ok {
					done++
				}
			}
		})
	}
	wg.Wait()
	if _, _, _, nb, err := read(); err != nil || nb != writers*moves {
		t.Fatalf("%d moves of %d, %v", nb, writers*moves, err)
	}
}

func testTxnInvalid(ctx context.Context, t *testing.T, s store.Store) {
	many := make([]store.Op, store.MaxTxnOps+1)
	for i := range many {
		many[i] = store.Op{Key: fmt.Sprint("k", i)}
	}
	for name, ops := range map[string][]store.Op{
		"a key twice":         {{Key: "a", Value: []byte("1")}, {Key: "a", Value: []byte("2")}},
		"put and delete":      {{Key: "a", Value: []byte("1")}, {Key: "a", Delete: true}},
		"an empty key":        {{Value: []byte("1")}},
		"too many operations": many,
		"too large a value":   {{Key: "a", Value: make([]byte, store.MaxTxnBytes+1)}},
	} {
		ok, _, err := s.Txn(ctx, nil, ops)
		if ok || !errors.Is(err, store.ErrInvalid) || errors.Is(err, lockstep.ErrStoreUnavailable) {
			t.Errorf("%s: ok %v, %v", name, ok, err)
		}
	}
	ok, _, err := s.Txn(ctx, nil, []store.Op{{Key: "a", Value: []byte("1")}, {Key: "b", Lease: 0x1234567}})
	if ok || !errors.Is(err, store.ErrLeaseGone) {
		t.Errorf("unknown lease: ok %v, %v", ok, err)
	}
	if kvs, _, err := s.List(ctx, ""); err != nil || len(kvs) != 0 {
		t.Errorf("refused requests left %v, %v", kvs, err)
	}
	if ok, _, err := s.Txn(ctx, nil, many[:store.MaxTxnOps]); err != nil || !ok {
		t.Errorf("as many operations as allowed: %v, %v", ok, err)
	}
}

func testValues(ctx context.Context, t *testing.T, s store.Store) {
	for i, v := range []string{"", "\x00\xff\n", strings.Repeat("v", store.MaxTxnBytes-100)} {
		key := fmt.Sprintf("v/%d €", i)
		value := []byte(v)
		if ok, _, err := s.Txn(ctx, nil, []store.Op{{Key: key, Value: value}}); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if len(value) > 0 {
			value[0] ^= 1 // the store must have its own copy
		}
		kv, err := s.Get(ctx, key)
		if err != nil || string(kv.Value) != v {
			t.Errorf("value %d of %d bytes came back with %d, %v", i, len(v), len(kv.Value), err)
		}
	}
}

package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ChangeKind says what a Change tells.
type ChangeKind uint8

// Kinds of change.
const (
	// ChangePut: the record is there with this value.
	ChangePut ChangeKind = iota + 1
	// ChangeDeleted: the key is gone. Value is zero.
	ChangeDeleted
	// ChangeSynced is the marker: everything in the store at ModRev has been delivered. It comes
	// alone at the end of the batch of each complete list, the first one included. Key is empty.
	ChangeSynced
	// ChangeBad: the key is there but its value cannot be decoded; Err says why. Value is zero.
	ChangeBad
)

func (k ChangeKind) String() string {
	switch k {
	case ChangePut:
		return "put"
	case ChangeDeleted:
		return "deleted"
	case ChangeSynced:
		return "synced"
	case ChangeBad:
		return "bad"
	}
	return fmt.Sprintf("ChangeKind(%d)", uint8(k))
}

// Change is one step of what Follow tells.
type Change[T any] struct {
	Kind      ChangeKind
	Key       string
	ModRev    int64 // of the change; for ChangeSynced the list's revision
	CreateRev int64
	Value     T
	Err       error // for ChangeBad
	// Rewound: the revision of the store was lower than that of something told before, or a key was at a
	// lower one: it was restored from an older copy.
	Rewound bool
}

// Bounds of the pause between two lists.
const (
	relistFirst   = 50 * time.Millisecond
	relistLongest = 2 * time.Second
)

// Follow keeps a caller's picture of all records with the prefix current: it lists, then watches,
// and lists again when the watch ended because history was compacted. tell gets every change in
// order, in batches, from Follow's own goroutine; while it runs nothing else is delivered. After
// a list it is told only what differs from what it was told before, deletions included, and then
// ChangeSynced; of a store that went back, everything. Changes that were overtaken between two lists are
// left out.
//
// Follow waits out an unavailable store with a bounded back-off. It returns only when ctx has
// ended, with ctx's cause.
func Follow[T any](ctx context.Context, s Store, prefix string, tell func(batch []Change[T])) error {
	known := map[string]int64{} // key to the ModRev that was told
	failed := 0
	var newest atomic.Int64 // revision seen
	wentBack := false       // and it has not been listed since
	for {
		kvs, rev, err := s.List(ctx, prefix)
		if err == nil {
			rewound := wentBack || rev < newest.Load() || wentDown(known, kvs)
			if rewound { // its revisions are of another history: an equal one may be of another value
				for key := range known {
					known[key] = 0
				}
			}
			batch := diffList[T](known, kvs, rev)
			for i := range batch {
				batch[i].Rewound = rewound
			}
			newest.Store(rev)
			tell(batch)
			var told bool
			if told, wentBack = followWatch(ctx, s, prefix, &newest, known, tell); told {
				failed = 0
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// A closed watch is paused after as well: a store whose history is compacted faster than
		// it can be read, or that was closed, must not be asked in a tight loop.
		if err := sleep(ctx, jitter(relistFirst, relistLongest, failed)); err != nil {
			return err
		}
		failed++
	}
}

// wentDown reports whether a key is at a lower revision than one that was told. A store that was restored
// with its revision raised, so that no client misses a change, shows it by that alone.
func wentDown(known map[string]int64, kvs []KV) bool {
	return slices.ContainsFunc(kvs, func(kv KV) bool { return kv.ModRev < known[kv.Key] })
}

// rewindEvery is how often a follower looks whether the store's revision went back.
const rewindEvery = 5 * time.Second

// Rewinds calls stop when the store's revision is below newest: it was restored from an older copy,
// and a watch from the newest revision would stay silent until that is reached again.
func Rewinds(ctx context.Context, s Store, newest func() int64, stop func()) {
	tick := time.NewTicker(rewindEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		seen := newest() // before the read, which is linearizable
		if _, rev, err := s.List(ctx, KeyCluster); err == nil && rev < seen {
			stop()
			return
		}
	}
}

// followWatch tells the changes after the newest revision until the watch ends, whether there were any,
// and whether it ended because the store went back.
func followWatch[T any](ctx context.Context, s Store, prefix string, newest *atomic.Int64, known map[string]int64, tell func([]Change[T])) (told, wentBack bool) {
	// The watch must not outlive this call, whatever ended it.
	ctx, cancel := context.WithCancel(ctx)
	var looks sync.WaitGroup
	var back atomic.Bool
	defer func() {
		cancel()
		looks.Wait()
		wentBack = back.Load()
	}()
	looks.Go(func() {
		Rewinds(ctx, s, newest.Load, func() {
			back.Store(true)
			cancel()
		})
	})
	for events := range s.Watch(ctx, prefix, newest.Load()) {
		if ctx.Err() != nil {
			break // before they count as told
		}
		batch := make([]Change[T], 0, len(events))
		for _, ev := range events {
			newest.Store(max(newest.Load(), ev.ModRev))
			if ev.Deleted {
				delete(known, ev.Key)
				batch = append(batch, Change[T]{Kind: ChangeDeleted, Key: ev.Key, ModRev: ev.ModRev})
				continue
			}
			known[ev.Key] = ev.ModRev
			batch = append(batch, decodeChange[T](ev.KV))
		}
		told = true
		tell(batch)
	}
	return told, false
}

// diffList gives what a list tells beyond what is known, ends it with the marker and updates known.
func diffList[T any](known map[string]int64, kvs []KV, rev int64) []Change[T] {
	var batch []Change[T]
	present := make(map[string]struct{}, len(kvs))
	for _, kv := range kvs {
		present[kv.Key] = struct{}{}
	}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		if _, ok := present[key]; !ok {
			delete(known, key)
			batch = append(batch, Change[T]{Kind: ChangeDeleted, Key: key, ModRev: rev})
		}
	}
	for _, kv := range kvs {
		if known[kv.Key] == kv.ModRev {
			continue
		}
		known[kv.Key] = kv.ModRev
		batch = append(batch, decodeChange[T](kv))
	}
	return append(batch, Change[T]{Kind: ChangeSynced, ModRev: rev})
}

func decodeChange[T any](kv KV) Change[T] {
	c := Change[T]{Kind: ChangePut, Key: kv.Key, ModRev: kv.ModRev, CreateRev: kv.CreateRev}
	v, err := Decode[T](kv.Value)
	if err != nil {
		c.Kind, c.Err = ChangeBad, fmt.Errorf("record %s: %w", kv.Key, err)
		return c
	}
	c.Value = v
	return c
}

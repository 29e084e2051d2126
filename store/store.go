// Package store is the only channel between controllers and nodes: typed, versioned records with
// compare-and-swap and watches. etcdstore/ keeps them in etcd (embedded or external, one code
// path), memstore/ in memory for unit tests and simulation; storetest/ is the conformance suite.
package store

import (
	"context"
	"time"
)

// KV is one key with its value and the revisions of its last change and its creation.
type KV struct {
	Key       string
	Value     []byte
	ModRev    int64
	CreateRev int64
}

// Event is one change seen by a watch. For a deletion Value is nil and ModRev the deletion's.
type Event struct {
	KV
	Deleted bool
}

// Cmp holds in a transaction if the key's ModRev is exactly this one; 0 means "does not exist".
type Cmp struct {
	Key    string
	ModRev int64
}

// Op is one write of a transaction: a put, or a delete if Delete is set.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
	Lease  LeaseID // 0: none; else the key goes with the lease
}

// LeaseID names a lease of the store.
type LeaseID int64

// Store is a linearizable key-value store. Every error that is not ctx's own wraps
// lockstep.ErrStoreUnavailable; after such an error a write may or may not have happened, so a
// caller reads the key again instead of assuming.
type Store interface {
	// Get reads one key, linearizably. A missing key is lockstep.ErrNotFound.
	Get(ctx context.Context, key string) (KV, error)
	// List reads all keys with the prefix, linearizably and at one revision, in key order.
	List(ctx context.Context, prefix string) (kvs []KV, rev int64, err error)
	// Txn applies all ops if all cmps hold, and else nothing (ok = false). rev is the store's
	// revision after it.
	Txn(ctx context.Context, cmps []Cmp, ops []Op) (ok bool, rev int64, err error)
	// Watch sends every change of keys with the prefix after fromRev, in order, in batches. It
	// survives lost connections; the channel is closed when ctx ends, or when history was
	// compacted away: then list again and watch anew.
	Watch(ctx context.Context, prefix string, fromRev int64) <-chan []Event
	// Grant makes a lease and keeps it alive until ctx ends or Revoke; Lost is closed when the
	// lease is known or must be assumed to have run out.
	Grant(ctx context.Context, ttl time.Duration) (Lease, error)
	// Close releases the client; an embedded member goes on until its own Close.
	Close() error
}

// Lease is a right that expires unless it is kept alive.
type Lease interface {
	ID() LeaseID
	Lost() <-chan struct{}
	Revoke(ctx context.Context) error
}

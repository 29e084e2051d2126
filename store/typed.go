package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/lockstep-dr/lockstep"
)

// AnyRev as the expected revision of a write means "whatever is there, if anything".
const AnyRev int64 = -1

// Item is one typed record with its key and revisions.
type Item[T any] struct {
	Key       string
	ModRev    int64
	CreateRev int64
	Value     T
}

// GetT reads one record, linearizably. A missing key is lockstep.ErrNotFound.
func GetT[T any](ctx context.Context, s Store, key string) (value T, modRev int64, err error) {
	kv, err := s.Get(ctx, key)
	if err != nil {
		return value, 0, err
	}
	value, err = Decode[T](kv.Value)
	if err != nil {
		return value, kv.ModRev, fmt.Errorf("record %s: %w", key, err)
	}
	return value, kv.ModRev, nil
}

// ListT reads all records with the prefix, linearizably and at one revision, in key order. One
// record that cannot be decoded fails the whole call: a caller that decides by a list must not
// decide by a part of it. Follow goes on past such records.
func ListT[T any](ctx context.Context, s Store, prefix string) (items []Item[T], rev int64, err error) {
	kvs, rev, err := s.List(ctx, prefix)
	if err != nil {
		return nil, 0, err
	}
	items = make([]Item[T], 0, len(kvs))
	for _, kv := range kvs {
		v, err := Decode[T](kv.Value)
		if err != nil {
			return nil, rev, fmt.Errorf("record %s: %w", kv.Key, err)
		}
		items = append(items, Item[T]{Key: kv.Key, ModRev: kv.ModRev, CreateRev: kv.CreateRev, Value: v})
	}
	return items, rev, nil
}

// Put writes a record if the key's revision is expectModRev (0: absent, AnyRev: no condition) and
// returns the new one. Otherwise it is lockstep.ErrConflict and nothing was written. After
// lockstep.ErrStoreUnavailable or the end of ctx the outcome is unknown. The record is durable
// when Put returns without an error.
func Put[T any](ctx context.Context, s Store, key string, v T, expectModRev int64) (rev int64, err error) {
	return NewTx().Put(key, v, expectModRev).Commit(ctx, s)
}

// PutOwn writes a record of which the caller is the only writer, whatever is there. A write that got no
// answer may be carried out long after, by a member that was frozen for example: unlike Put with AnyRev,
// it then changes nothing if a later one was made meanwhile. lockstep.ErrConflict says that such a write
// has just come: the caller tries again. Outcome and durability are those of Put.
func PutOwn[T any](ctx context.Context, s Store, key string, v T) error {
	kv, err := s.Get(ctx, key)
	if err != nil && !errors.Is(err, lockstep.ErrNotFound) {
		return err
	}
	_, err = Put(ctx, s, key, v, kv.ModRev)
	return err
}

// Create writes a record that must not be there yet; else it is lockstep.ErrExists.
func Create[T any](ctx context.Context, s Store, key string, v T) (rev int64, err error) {
	rev, err = Put(ctx, s, key, v, 0)
	if errors.Is(err, lockstep.ErrConflict) {
		return 0, fmt.Errorf("create %s: %w", key, lockstep.ErrExists)
	}
	return rev, err
}

// Delete removes a key if its revision is expectModRev, as in Put. With AnyRev a missing key is
// no error.
func Delete(ctx context.Context, s Store, key string, expectModRev int64) error {
	_, err := NewTx().Delete(key, expectModRev).Commit(ctx, s)
	return err
}

// Bounds of Update's loop: with this back-off a dozen writers of one key all come through, and a
// call that loses every time ends within about two seconds.
const (
	updateTries        = 16
	updateFirstPause   = 2 * time.Millisecond
	updateLongestPause = 250 * time.Millisecond
)

// Update reads a record, lets change alter it and writes it back if nobody else did meanwhile;
// else it begins anew with the newer record, so change may be called several times. An error of
// change ends Update and is returned as it is; nothing was written then. If change alters
// nothing, nothing is written. A missing key is lockstep.ErrNotFound; losing every time is
// lockstep.ErrConflict. After lockstep.ErrStoreUnavailable the outcome of the last write is
// unknown and Update does not try again, as change might then be applied twice.
func Update[T any](ctx context.Context, s Store, key string, change func(*T) error) (T, error) {
	var zero T
	for try := range updateTries {
		if try > 0 {
			if err := sleep(ctx, jitter(updateFirstPause, updateLongestPause, try-1)); err != nil {
				return zero, fmt.Errorf("update %s: %w", key, err)
			}
		}
		v, modRev, err := GetT[T](ctx, s, key)
		if err != nil {
			return zero, err
		}
		before, err := encodeAny(v)
		if err != nil {
			return zero, fmt.Errorf("update %s: %w", key, err)
		}
		if err := change(&v); err != nil {
			return zero, err
		}
		after, err := encodeAny(v)
		if err != nil {
			return zero, fmt.Errorf("update %s: %w", key, err)
		}
		if bytes.Equal(before, after) {
			return v, nil
		}
		_, err = Put(ctx, s, key, v, modRev)
		switch {
		case err == nil:
			return v, nil
		case !errors.Is(err, lockstep.ErrConflict):
			return zero, fmt.Errorf("update %s: %w", key, err)
		}
	}
	return zero, fmt.Errorf("update %s: lost %d times: %w", key, updateTries, lockstep.ErrConflict)
}

// jitter gives a random part, at least half, of low doubled attempt times, capped at high.
func jitter(low, high time.Duration, attempt int) time.Duration {
	d := high
	if attempt < 16 {
		d = min(high, low<<attempt)
	}
	return d/2 + rand.N(d/2+1)
}

// sleep waits for d or the end of ctx, whose cause it then returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

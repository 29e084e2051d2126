package store

import (
	"context"
	"errors"
	"fmt"
)

// Errors that tell a definite outcome: nothing was written. They do not wrap
// lockstep.ErrStoreUnavailable, because trying the same thing again cannot help.
var (
	// ErrNewerFormat: the record was written by a newer program; it is never guessed at.
	ErrNewerFormat = errors.New("record has a newer format than this program knows")
	// ErrLeaseGone: an op names a lease that has expired or was revoked.
	ErrLeaseGone = errors.New("lease is gone")
	// ErrInvalid: the request can never be carried out: a key written twice in one transaction,
	// an empty key, too many operations or too large a value.
	ErrInvalid = errors.New("invalid store request")
)

// Limits of one transaction, the same for every implementation. They are etcd's defaults.
const (
	MaxTxnOps   = 128     // comparisons, and likewise operations
	MaxTxnBytes = 1 << 20 // all keys and values of a transaction together
	MaxKeyBytes = 4 << 10 // one key
)

// CheckTxn reports whether a transaction keeps the limits and writes no key twice. Every
// implementation calls it first, so that they refuse the same things.
func CheckTxn(cmps []Cmp, ops []Op) error {
	if len(cmps) > MaxTxnOps || len(ops) > MaxTxnOps {
		return wrapInvalid("%d comparisons and %d operations, at most %d of each", len(cmps), len(ops), MaxTxnOps)
	}
	total := 0
	for _, c := range cmps {
		if c.Key == "" || len(c.Key) > MaxKeyBytes {
			return wrapInvalid("comparison with a key of %d bytes", len(c.Key))
		}
		if c.ModRev < 0 {
			return wrapInvalid("comparison of %s with revision %d", c.Key, c.ModRev)
		}
		total += len(c.Key)
	}
	written := make(map[string]struct{}, len(ops))
	for _, op := range ops {
		if op.Key == "" || len(op.Key) > MaxKeyBytes {
			return wrapInvalid("operation on a key of %d bytes", len(op.Key))
		}
		if _, twice := written[op.Key]; twice {
			return wrapInvalid("key %s is written twice", op.Key)
		}
		written[op.Key] = struct{}{}
		total += len(op.Key) + len(op.Value)
	}
	if total > MaxTxnBytes {
		return wrapInvalid("%d bytes of keys and values, at most %d", total, MaxTxnBytes)
	}
	return nil
}

// ContextError is the error of a call that ended because its caller's ctx did: it matches both
// ctx.Err() and, where it says more, the cause.
func ContextError(ctx context.Context, what string) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return fmt.Errorf("%s: %w", what, cause)
	}
	return fmt.Errorf("%s: %w: %w", what, err, cause)
}

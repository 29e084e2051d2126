package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/store"
)

// ErrNoToken says that a token is missing, malformed, unknown, expired or revoked, or its user, project or
// roles are gone.
var ErrNoToken = errors.New("no valid token")

// tokenBytes is the randomness of a token.
const tokenBytes = 32

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// wellFormed spares the store a look for what cannot be a token.
func wellFormed(secret string) bool {
	b, err := base64.RawURLEncoding.DecodeString(secret)
	return err == nil && len(b) == tokenBytes
}

// issue stores a new token and returns what the client is to hold. t names user, methods, scope
// and, if it stems from another token, that one's end.
func (s *Service) issue(ctx context.Context, t Token) (string, *Token, error) {
	raw := make([]byte, tokenBytes)
	if _, err := rand.Read(raw); err != nil {
		return "", nil, fmt.Errorf("read random bytes: %w", err)
	}
	secret := base64.RawURLEncoding.EncodeToString(raw)
	t.AuditID = hash("audit " + secret)[:22]
	t.IssuedAt = s.cfg.Now().UTC().Truncate(time.Microsecond)
	if t.ExpiresAt.IsZero() {
		t.ExpiresAt = t.IssuedAt.Add(s.cfg.TokenTTL)
	}
	full, err := s.resolve(ctx, t)
	if err != nil {
		return "", nil, err
	}
	if err := create(ctx, s.cfg.Store, map[string]any{key("tokens", hash(secret)): t}); err != nil {
		return "", nil, fmt.Errorf("store token: %w", err)
	}
	return secret, full, nil
}

// Validate tells what a token stands for. ErrNoToken if it does not stand for anything; any other
// error is the store's. The answer may be up to 3 seconds old.
func (s *Service) Validate(ctx context.Context, secret string) (*Token, error) {
	if !wellFormed(secret) {
		return nil, ErrNoToken
	}
	h, now := hash(secret), s.cfg.Now()
	s.mu.Lock()
	c, ok := s.cache[h]
	s.mu.Unlock()
	if ok && now.Before(c.until) && now.Before(c.token.ExpiresAt) {
		return c.token, nil
	}
	stored, found, err := get[Token](ctx, s.cfg.Store, key("tokens", h))
	if err != nil {
		return nil, err
	}
	if !found || !now.Before(stored.ExpiresAt) {
		s.drop(h)
		return nil, ErrNoToken
	}
	t, err := s.resolve(ctx, stored)
	if err != nil {
		s.drop(h)
		return nil, err
	}
	s.mu.Lock()
	if len(s.cache) >= cacheMax {
		clear(s.cache)
	}
	s.cache[h] = cached{token: t, until: now.Add(cacheTTL)}
	s.mu.Unlock()
	return t, nil
}

func (s *Service) drop(h string) {
	s.mu.Lock()
	delete(s.cache, h)
	s.mu.Unlock()
}

func (s *Service) forget() {
	s.mu.Lock()
	clear(s.cache)
	s.mu.Unlock()
}

// resolve fills in user, scope and roles as they are now. ErrNoToken if one of them is gone.
func (s *Service) resolve(ctx context.Context, t Token) (*Token, error) {
	u, found, err := s.user(ctx, t.UserID)
	if err != nil {
		return nil, err
	}
	if !found || !u.Enabled {
		return nil, ErrNoToken
	}
	if t.Generation != u.Generation {
		return nil, ErrNoToken
	}
	t.User = u
	if t.UserDomain, found, err = s.domain(ctx, u.Domain); err != nil || !found || !t.UserDomain.Enabled {
		return nil, gone(err)
	}
	switch {
	case t.ProjectID != "":
		p, found, err := s.project(ctx, t.ProjectID)
		if err != nil || !found || !p.Enabled {
			return nil, gone(err)
		}
		t.Project = &p
		if t.ProjectDomain, found, err = s.domain(ctx, p.Domain); err != nil || !found || !t.ProjectDomain.Enabled {
			return nil, gone(err)
		}
		if t.Roles, err = s.roles(ctx, u.ID, p.ID); err != nil || len(t.Roles) == 0 {
			return nil, gone(err)
		}
	case t.DomainID != "":
		d, found, err := s.domain(ctx, t.DomainID)
		if err != nil || !found || !d.Enabled {
			return nil, gone(err)
		}
		t.Domain = &d
		if t.Roles, err = s.roles(ctx, u.ID, d.ID); err != nil || len(t.Roles) == 0 {
			return nil, gone(err)
		}
	}
	t.Roles = policy.Expand(t.Roles)
	if (t.Project != nil || t.Domain != nil) && len(t.Roles) == 0 {
		return nil, ErrNoToken // what is assigned is no role that this build knows
	}
	if t.AppCred != "" {
		if err := s.restrict(ctx, &t); err != nil {
			return nil, err
		}
	}
	return &t, nil
}

func gone(err error) error {
	if err != nil {
		return err
	}
	return ErrNoToken
}

// Revoke deletes a token. Other controllers may take it for up to 3 seconds more.
func (s *Service) Revoke(ctx context.Context, secret string) error {
	if !wellFormed(secret) {
		return ErrNoToken
	}
	h := hash(secret)
	_, _, err := s.cfg.Store.Txn(ctx, nil, []store.Op{{Key: key("tokens", h), Delete: true}})
	s.drop(h)
	if err != nil {
		return fmt.Errorf("revoke token: %w", err)
	}
	return nil
}

// sweepBatch bounds the deletions of one transaction.
const sweepBatch = 64

// Sweep deletes expired tokens and tells how many.
func (s *Service) Sweep(ctx context.Context) (int, error) {
	kvs, _, err := s.cfg.Store.List(ctx, key("tokens")+"/")
	if err != nil {
		return 0, fmt.Errorf("list tokens: %w", err)
	}
	now, n := s.cfg.Now(), 0
	var ops []store.Op
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		// A token is written once, so the one read is the one deleted.
		if _, _, err := s.cfg.Store.Txn(ctx, nil, ops); err != nil {
			return fmt.Errorf("delete expired tokens: %w", err)
		}
		n += len(ops)
		ops = ops[:0]
		return nil
	}
	for _, kv := range kvs {
		t, err := store.Decode[Token](kv.Value)
		if err != nil {
			return n, fmt.Errorf("decode %s: %w", kv.Key, err)
		}
		if now.Before(t.ExpiresAt) {
			continue
		}
		if ops = append(ops, store.Op{Key: kv.Key, Delete: true}); len(ops) == sweepBatch {
			if err := flush(); err != nil {
				return n, err
			}
		}
	}
	return n, flush()
}

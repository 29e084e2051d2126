package identity

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/store"
)

// AppCred is an application credential: a secret by which programs log in as a user, in one project,
// with some of the user's roles there.
type AppCred struct {
	ID           string     `json:"id"`
	Name         string     `json:"name"`
	User         string     `json:"user"`
	Project      string     `json:"project"`
	Description  string     `json:"description"`
	Roles        []string   `json:"roles"`
	Secret       string     `json:"secret"` // argon2id, PHC string
	Unrestricted bool       `json:"unrestricted"`
	ExpiresAt    *time.Time `json:"expires_at,omitempty"`
}

// maxAppCreds bounds the credentials of one user: all of them can end in one transaction of the store.
const maxAppCreds = 20

func (c AppCred) keys() []string {
	return []string{
		key("appcreds", c.User, c.ID), key("appcredusers", c.ID), key("names", "appcred", c.User, hexName(c.Name)),
	}
}

func (c AppCred) ended(now time.Time) bool { return c.ExpiresAt != nil && !now.Before(*c.ExpiresAt) }

func (s *Service) appCreds(ctx context.Context, user string) ([]AppCred, error) {
	if !validID(user) {
		return nil, nil
	}
	return list[AppCred](ctx, s.cfg.Store, key("appcreds", user)+"/")
}

func (s *Service) appCred(ctx context.Context, user, id string) (AppCred, bool, error) {
	if !validID(user) || !validID(id) {
		return AppCred{}, false, nil
	}
	return get[AppCred](ctx, s.cfg.Store, key("appcreds", user, id))
}

// createAppCred stores a credential and returns it with its secret in clear, which is never seen again.
func (s *Service) createAppCred(ctx context.Context, c AppCred, secret string) (AppCred, string, error) {
	if err := checkName("application credential", c.Name); err != nil {
		return AppCred{}, "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if secret == "" {
		raw := make([]byte, 48)
		if _, err := rand.Read(raw); err != nil {
			return AppCred{}, "", fmt.Errorf("read random bytes: %w", err)
		}
		secret = base64.RawURLEncoding.EncodeToString(raw)
	}
	var err error
	if c.Secret, err = HashPassword(secret); err != nil {
		return AppCred{}, "", fmt.Errorf("%w: the secret: %w", ErrInvalid, err)
	}
	c.ID = newID()
	for range 2 * maxAppCreds { // each conflict is a change of the same user that succeeded
		if err = s.addAppCred(ctx, c); !errors.Is(err, lockstep.ErrConflict) {
			break
		}
	}
	if err != nil {
		return AppCred{}, "", fmt.Errorf("create application credential %s: %w", c.Name, err)
	}
	return c, secret, nil
}

// addAppCred writes a credential, and its user's record as it was: what is created or deleted of one user at
// once conflicts, so the bound holds and nothing is left of a user that is gone. lockstep.ErrConflict: try again.
func (s *Service) addAppCred(ctx context.Context, c AppCred) error {
	u, onUser, err := stored[User](ctx, s.cfg.Store, "users", c.User)
	if err != nil {
		return err
	}
	have, err := s.appCreds(ctx, c.User)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(have, func(x AppCred) bool { return x.Name == c.Name }) {
		return lockstep.ErrExists
	}
	if len(have) >= maxAppCreds {
		return fmt.Errorf("a user can have %d application credentials; delete one first: %w", maxAppCreds, ErrInUse)
	}
	// The assignment must be the one whose roles were looked at: else one that is taken away meanwhile would stay.
	a, onRoles, err := stored[Assignment](ctx, s.cfg.Store, "roles/"+c.User, c.Project)
	if err != nil {
		return err
	}
	if len(c.Roles) == 0 || !subset(c.Roles, policy.Expand(a.Roles)) {
		return fmt.Errorf("%w: roles %v are not among the user's roles in the project", ErrInvalid, c.Roles)
	}
	k := c.keys()
	ok, _, err := s.cfg.Store.Txn(ctx, []store.Cmp{onUser, onRoles, {Key: k[2]}}, []store.Op{
		{Key: onUser.Key, Value: store.Encode(u)},
		{Key: k[0], Value: store.Encode(c)},
		{Key: k[1], Value: store.Encode(c.User)},
		{Key: k[2], Value: store.Encode(c.ID)},
	})
	if err == nil && !ok {
		err = lockstep.ErrConflict
	}
	return err
}

// deleteCredential deletes a credential, unless another call has done so meanwhile: its name may be another's then.
func (s *Service) deleteCredential(ctx context.Context, c AppCred) (deleted bool, err error) {
	_, cmp, err := stored[AppCred](ctx, s.cfg.Store, "appcreds/"+c.User, c.ID)
	if errors.Is(err, lockstep.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var ops []store.Op
	for _, k := range c.keys() {
		ops = append(ops, store.Op{Key: k, Delete: true})
	}
	err = s.commit(ctx, []store.Cmp{cmp}, ops)
	if errors.Is(err, lockstep.ErrConflict) { // a credential never changes: it is gone
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete application credential %s: %w", c.ID, err)
	}
	return true, nil
}

// SweepCredentials deletes application credentials whose time is over and tells how many.
func (s *Service) SweepCredentials(ctx context.Context) (int, error) {
	cs, err := list[AppCred](ctx, s.cfg.Store, key("appcreds")+"/")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, c := range cs {
		if !c.ended(s.cfg.Now()) {
			continue
		}
		deleted, err := s.deleteCredential(ctx, c)
		if err != nil {
			return n, err
		}
		if deleted {
			n++
		}
	}
	return n, nil
}

// loginByCredential issues a token in the project of an application credential. All refusals look alike.
func (s *Service) loginByCredential(ctx context.Context, l login) (string, *Token, error) {
	if l.scope.hasProject || l.scope.hasDomain {
		return "", nil, errUnauthorized() // its scope is its own
	}
	id, user, who, err := s.findCredential(ctx, l)
	if err != nil {
		return "", nil, err
	}
	c, found, err := s.appCred(ctx, user, id)
	if err != nil {
		return "", nil, err
	}
	u, isUser, err := s.user(ctx, user)
	if err != nil {
		return "", nil, err
	}
	var candidate *User
	if found && isUser {
		candidate = &User{Password: c.Secret, Enabled: u.Enabled}
	}
	if err := s.verify(ctx, who, l.remote, candidate, l.secret); err != nil {
		return "", nil, err
	}
	t := Token{
		Methods: []string{l.method}, UserID: u.ID, Generation: u.Generation, ProjectID: c.Project, AppCred: c.ID,
	}
	if end := s.cfg.Now().UTC().Add(s.cfg.TokenTTL); c.ExpiresAt != nil && c.ExpiresAt.Before(end) {
		t.ExpiresAt = *c.ExpiresAt // a token does not outlive its credential
	}
	secret, full, err := s.issue(ctx, t)
	return secret, full, unauthorizedUnless(err)
}

// findCredential resolves a credential by its id, or by name and user; both "" if there is none. Failures
// are counted under who, which is the same whichever way an existing credential is named.
func (s *Service) findCredential(ctx context.Context, l login) (id, user, who string, err error) {
	if id = l.cred.id; id != "" { // a name beside it says nothing
		if validID(id) {
			user, _, err = get[string](ctx, s.cfg.Store, key("appcredusers", id))
		}
		return id, user, hash("credential " + id), err
	}
	user, whose, err := s.loginUser(ctx, l)
	if err == nil && validID(user) {
		id, err = s.idByName(ctx, "appcred", user, l.cred.name)
	}
	if id == "" {
		return "", "", hash("credential of " + whose + "/" + l.cred.name), err
	}
	return id, user, hash("credential " + id), err
}

// restrict cuts a token down to its application credential. ErrNoToken if that is gone or has ended.
func (s *Service) restrict(ctx context.Context, t *Token) error {
	c, found, err := s.appCred(ctx, t.UserID, t.AppCred)
	if err != nil || !found || c.ended(s.cfg.Now()) || c.Project != t.ProjectID || !subset(c.Roles, t.Roles) {
		return gone(err)
	}
	t.Roles, t.Credential = policy.Expand(c.Roles), &c
	return nil
}

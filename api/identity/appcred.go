package identity

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-dr/lockstep"
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
	have, err := s.appCreds(ctx, c.User)
	if err != nil {
		return AppCred{}, "", err
	}
	if len(have) >= maxAppCreds {
		return AppCred{}, "", fmt.Errorf("a user can have %d application credentials; delete one first: %w", maxAppCreds, ErrInUse)
	}
	if secret == "" {
		raw := make([]byte, 48)
		if _, err := rand.Read(raw); err != nil {
			return AppCred{}, "", fmt.Errorf("read random bytes: %w", err)
		}
		secret = base64.RawURLEncoding.EncodeToString(raw)
	}
	if c.Secret, err = HashPassword(secret); err != nil {
		return AppCred{}, "", fmt.Errorf("%w: the secret: %w", ErrInvalid, err)
	}
	c.ID = newID()
	// The assignment must be the one whose roles were looked at: else one that is taken away meanwhile would stay.
	a, onRoles, err := stored[Assignment](ctx, s.cfg.Store, "roles/"+c.User, c.Project)
	if err != nil {
		return AppCred{}, "", err
	}
	if len(c.Roles) == 0 || !subset(c.Roles, a.Roles) {
		return AppCred{}, "", fmt.Errorf("%w: roles %v are not among the user's roles in the project", ErrInvalid, c.Roles)
	}
	k := c.keys()
	ok, _, err := s.cfg.Store.Txn(ctx, []store.Cmp{onRoles, {Key: k[2]}}, []store.Op{
		{Key: k[0], Value: store.Encode(c)}, {Key: k[1], Value: store.Encode(c.User)}, {Key: k[2], Value: store.Encode(c.ID)},
	})
	if err == nil && !ok {
		err = lockstep.ErrExists
	}
	if err != nil {
		return AppCred{}, "", fmt.Errorf("create application credential %s: %w", c.Name, err)
	}
	return c, secret, nil
}

// loginByCredential issues a token in the project of an application credential. All refusals look alike.
func (s *Service) loginByCredential(ctx context.Context, l login) (string, *Token, error) {
	if l.scope.hasProject || l.scope.hasDomain {
		return "", nil, errUnauthorized() // its scope is its own
	}
	id, user, err := s.findCredential(ctx, l)
	if err != nil {
		return "", nil, err
	}
	who := "credential " + l.cred.id + " " + hash(l.cred.name+"/"+user+"/"+l.userName)
	if err := s.limit.admit(who, l.remote); err != nil {
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
	ok, err := s.hasher.check(ctx, candidate, l.secret)
	if err != nil {
		return "", nil, err
	}
	if !ok {
		s.limit.failed(who, l.remote)
		return "", nil, errUnauthorized()
	}
	s.limit.passed(who, l.remote)
	t := Token{
		Methods: []string{l.method}, UserID: u.ID, Generation: u.Generation, ProjectID: c.Project, AppCred: c.ID,
	}
	if end := s.cfg.Now().UTC().Add(s.cfg.TokenTTL); c.ExpiresAt != nil && c.ExpiresAt.Before(end) {
		t.ExpiresAt = *c.ExpiresAt // a token does not outlive its credential
	}
	secret, full, err := s.issue(ctx, t)
	return secret, full, unauthorizedUnless(err)
}

// findCredential resolves a credential by its id, or by name and user; both "" if there is none.
func (s *Service) findCredential(ctx context.Context, l login) (id, user string, err error) {
	if l.cred.id != "" {
		if !validID(l.cred.id) {
			return "", "", nil
		}
		user, _, err = get[string](ctx, s.cfg.Store, key("appcredusers", l.cred.id))
		return l.cred.id, user, err
	}
	if user, _, err = s.loginUser(ctx, l); err != nil || !validID(user) {
		return "", "", err
	}
	id, err = s.idByName(ctx, "appcred", user, l.cred.name)
	return id, user, err
}

// restrict cuts a token down to its application credential. ErrNoToken if that is gone or has ended.
func (s *Service) restrict(ctx context.Context, t *Token) error {
	c, found, err := s.appCred(ctx, t.UserID, t.AppCred)
	if err != nil || !found || c.ended(s.cfg.Now()) || c.Project != t.ProjectID || !subset(c.Roles, t.Roles) {
		return gone(err)
	}
	t.Roles, t.Credential = slices.Clone(c.Roles), &c
	return nil
}

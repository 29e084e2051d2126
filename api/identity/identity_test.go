package identity

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

const secret = "correct horse"

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	c.t = c.t.Add(d)
	c.mu.Unlock()
}

func setup(t *testing.T) (*memstore.Mem, *Service, Bootstrapped, *clock) {
	t.Helper()
	st := memstore.NewMem()
	t.Cleanup(func() { _ = st.Close() })
	b, err := Bootstrap(t.Context(), st, BootstrapConfig{Password: secret})
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{t: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	s, err := New(Config{Store: st, Now: c.now, TokenTTL: 2 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return st, s, b, c
}

func byPassword(user, pass, project string) login {
	l := login{method: "password", userName: user, userDom: named{id: "default"}, password: pass}
	if project != "" {
		l.scope = scope{hasProject: true, project: named{id: project}}
	}
	return l
}

// TestBootstrapOnce: any number of first starts at once make one set of ids, later ones need no
// password and change nothing.
func TestBootstrapOnce(t *testing.T) {
	st := memstore.NewMem()
	defer func() { _ = st.Close() }()
	const starts = 4
	got := make([]Bootstrapped, starts)
	errs := make([]error, starts)
	var wg sync.WaitGroup
	for i := range starts {
		wg.Go(func() { got[i], errs[i] = Bootstrap(t.Context(), st, BootstrapConfig{Password: secret}) })
	}
	wg.Wait()
	created := 0
	for i := range got {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if got[i].Created {
			created++
		}
		got[i].Created = false
		if got[i] != got[0] {
			t.Errorf("start %d: %+v, want %+v", i, got[i], got[0])
		}
	}
	if created != 1 {
		t.Errorf("%d starts created", created)
	}
	rev := st.Rev()
	again, err := Bootstrap(t.Context(), st, BootstrapConfig{Project: "other"})
	if err != nil || again != got[0] || st.Rev() != rev {
		t.Errorf("second start: %+v, %v, revision %d after %d", again, err, st.Rev(), rev)
	}
	if _, err := Bootstrap(t.Context(), memstore.NewMem(), BootstrapConfig{}); err == nil {
		t.Error("a first start without a password was taken")
	}
}

// TestNothingInClear looks through the whole store for the password and the token.
func TestNothingInClear(t *testing.T) {
	st, s, b, _ := setup(t)
	tok, _, err := s.login(t.Context(), byPassword("admin", secret, b.ProjectID))
	if err != nil {
		t.Fatal(err)
	}
	kvs, _, err := st.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	tokens := 0
	for _, kv := range kvs {
		if !strings.HasPrefix(kv.Key, store.PrefixIdentity) {
			t.Errorf("key %s lies outside", kv.Key)
		}
		if strings.HasPrefix(kv.Key, store.PrefixIdentity+"tokens/") {
			tokens++
		}
		for _, s := range []string{secret, tok} {
			if strings.Contains(kv.Key+string(kv.Value), s) {
				t.Errorf("%s holds a secret in clear", kv.Key)
			}
		}
	}
	if tokens != 1 || len(tok) != 43 {
		t.Errorf("%d tokens stored, one of %d characters held", tokens, len(tok))
	}
}

// TestLoginRefusals: all of them look alike.
func TestLoginRefusals(t *testing.T) {
	_, s, b, _ := setup(t)
	stranger, err := s.CreateProject(t.Context(), "default", "stranger")
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]login{
		"wrong password":     byPassword("admin", "wrong", ""),
		"empty password":     byPassword("admin", "", ""),
		"huge password":      byPassword("admin", strings.Repeat("x", 5000), ""),
		"no such user":       byPassword("nobody", secret, ""),
		"no such user id":    {method: "password", userID: "nope", password: secret},
		"id with a slash":    {method: "password", userID: "a/b", password: secret},
		"no such domain":     {method: "password", userName: "admin", userDom: named{name: "x"}, password: secret},
		"no such project":    byPassword("admin", secret, "nope"),
		"no role on project": byPassword("admin", secret, stranger.ID),
		"no such scope":      {method: "password", userID: b.UserID, password: secret, scope: scope{hasDomain: true, domain: named{name: "x"}}},
		"bad token":          {method: "token", token: "x"},
	} {
		_, _, err := s.login(t.Context(), l)
		var e *rest.Error
		if !errors.As(err, &e) || e.Status != 401 || e.Error() != errUnauthorized().Error() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTokenLife: expiry, inheritance by rescoping, revocation, roles taken away, sweeping.
func TestTokenLife(t *testing.T) {
	st, s, b, c := setup(t)
	ctx := t.Context()
	tok, full, err := s.login(ctx, byPassword("admin", secret, b.ProjectID))
	if err != nil {
		t.Fatal(err)
	}
	if full.Project.ID != b.ProjectID || !full.Admin() || full.ExpiresAt.Sub(full.IssuedAt) != 2*time.Hour {
		t.Errorf("token: %+v", full)
	}
	c.advance(time.Hour)
	child, cf, err := s.login(ctx, login{method: "token", token: tok, scope: scope{hasDomain: true, domain: named{name: "Default"}}})
	if err != nil {
		t.Fatal(err)
	}
	if !cf.ExpiresAt.Equal(full.ExpiresAt) || cf.Domain == nil || cf.Domain.ID != "default" {
		t.Errorf("a token from a token: %+v", cf)
	}
	if err := s.Revoke(ctx, child); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Validate(ctx, child); !errors.Is(err, ErrNoToken) {
		t.Errorf("revoked: %v", err)
	}

	// A second controller learns of a revocation when its cache has run out.
	other, err := New(Config{Store: st, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Validate(ctx, tok); err != nil {
		t.Fatal(err)
	}
	if err := s.Revoke(ctx, tok); err != nil {
		t.Fatal(err)
	}
	c.advance(cacheTTL)
	if _, err := other.Validate(ctx, tok); !errors.Is(err, ErrNoToken) {
		t.Errorf("revoked elsewhere: %v", err)
	}

	// Roles count as they are now.
	u, err := s.CreateUser(ctx, "default", "bob", secret)
	if err != nil {
		t.Fatal(err)
	}
	give := Assignment{User: u.ID, Project: b.ProjectID, Roles: []string{RoleMember}}
	if err := s.Assign(ctx, give); err != nil {
		t.Fatal(err)
	}
	bob, bf, err := s.login(ctx, byPassword("bob", secret, b.ProjectID))
	if err != nil || bf.Admin() {
		t.Fatalf("bob: %+v, %v", bf, err)
	}
	give.Roles = nil
	if err := s.Assign(ctx, give); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Validate(ctx, bob); !errors.Is(err, ErrNoToken) {
		t.Errorf("without roles: %v", err)
	}

	// Expiry and sweeping, more than one transaction's worth.
	for range 70 {
		if _, _, err := s.issue(ctx, Token{UserID: b.UserID, Methods: []string{"password"}}); err != nil {
			t.Fatal(err)
		}
	}
	keep, _, err := s.issue(ctx, Token{UserID: b.UserID, Methods: []string{"password"}, ExpiresAt: c.now().Add(100 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	c.advance(2 * time.Hour)
	n, err := s.Sweep(ctx)
	if err != nil || n != 71 { // the 70 and bob's
		t.Errorf("swept %d, %v", n, err)
	}
	if _, err := s.Validate(ctx, keep); err != nil {
		t.Errorf("a token that has not expired: %v", err)
	}
	if n, err := s.Sweep(ctx); n != 0 || err != nil {
		t.Errorf("swept again %d, %v", n, err)
	}
}

func TestNames(t *testing.T) {
	_, s, b, _ := setup(t)
	ctx := t.Context()
	if _, err := s.CreateProject(ctx, "default", b.ProjectName); !errors.Is(err, lockstep.ErrExists) {
		t.Errorf("project of the same name: %v", err)
	}
	if _, err := s.CreateUser(ctx, "default", "admin", secret); !errors.Is(err, lockstep.ErrExists) {
		t.Errorf("user of the same name: %v", err)
	}
	if _, err := s.CreateProject(ctx, "nope", "x"); !errors.Is(err, lockstep.ErrNotFound) {
		t.Errorf("project in no domain: %v", err)
	}
	for _, name := range []string{"", strings.Repeat("x", 256)} {
		if _, err := s.CreateUser(ctx, "default", name, secret); err == nil {
			t.Errorf("user named %q was taken", name)
		}
	}
	odd := "a/b é\x00"
	p, err := s.CreateProject(ctx, "default", odd)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := s.idByName(ctx, "project", "default", odd); err != nil || id != p.ID {
		t.Errorf("odd name resolves to %q, %v", id, err)
	}
}

func TestPasswords(t *testing.T) {
	_, s, b, _ := setup(t)
	ctx := t.Context()
	if err := s.SetPassword(ctx, b.UserID, "new one"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.login(ctx, byPassword("admin", secret, "")); err == nil {
		t.Error("the old password still works")
	}
	if _, _, err := s.login(ctx, byPassword("admin", "new one", "")); err != nil {
		t.Errorf("the new password: %v", err)
	}
	for _, phc := range []string{
		"", "$argon2i$v=19$m=64,t=1,p=1$AAAA$AAAA", "$argon2id$v=18$m=64,t=1,p=1$AAAA$AAAA", "$argon2id$v=19$m=x$AAAA$AAAA",
		"$argon2id$v=19$m=4194304,t=1,p=1$AAAA$AAAA", "$argon2id$v=19$m=64,t=1,p=1$!$AAAA", "$argon2id$v=19$m=64,t=1,p=1$AAAA$",
	} {
		if ok, err := verifyPassword(phc, ""); ok || err == nil {
			t.Errorf("%q: %v, %v", phc, ok, err)
		}
	}
}

// TestLoginsAreBounded: no more than the bound are checked at once; beyond the queue is a 503, and
// a client that gives up leaves it. Neither counts as a failed login.
func TestLoginsAreBounded(t *testing.T) {
	_, s, _, _ := setup(t)
	s.hasher = newHasher(1)
	s.hasher.turns <- struct{}{} // one check is running
	for range cap(s.hasher.waiting) - 1 {
		s.hasher.waiting <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.verify(ctx, "u", "r", nil, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("the last place of the queue: %v", err)
	}
	s.hasher.waiting <- struct{}{}
	var e *rest.Error
	if err := s.verify(t.Context(), "u", "r", nil, "x"); !errors.As(err, &e) || e.Status != 503 {
		t.Errorf("beyond the queue: %v", err)
	}
	if n := len(s.limit.counts); n != 0 {
		t.Errorf("%d counts are left of logins that told nothing", n)
	}
}

func TestConfig(t *testing.T) {
	st := memstore.NewMem()
	defer func() { _ = st.Close() }()
	if _, err := New(Config{Store: st, TokenTTL: time.Minute}); err == nil {
		t.Error("a token life of a minute was taken")
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no store was taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, err := New(Config{Store: st})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

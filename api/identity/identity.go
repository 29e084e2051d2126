package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/store"
)

// Domain owns users and projects.
type Domain struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Enabled     bool   `json:"enabled"`
}

// Project is a tenant; its id is the lockstep.ProjectID of volumes, pairs and groups.
type Project struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Domain      string `json:"domain"`
	Description string `json:"description"`
	Enabled     bool   `json:"enabled"`
}

// User can log in.
type User struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Domain   string `json:"domain"`
	Password string `json:"password"` // argon2id, PHC string
	Enabled  bool   `json:"enabled"`

	Description    string `json:"description,omitempty"`
	Email          string `json:"email,omitempty"`
	DefaultProject string `json:"default_project,omitempty"`
	// Generation counts the changes that end all tokens of the user: a new password, a disabling.
	Generation int64 `json:"generation,omitempty"`
}

// Assignment gives a user roles on one project or domain.
type Assignment struct {
	User    string   `json:"user"`
	Project string   `json:"project,omitempty"`
	Domain  string   `json:"domain,omitempty"`
	Roles   []string `json:"roles"`
}

// Names of roles; what each may do, and what it implies, is in package policy. RoleAdmin on a domain manages its
// users and projects, RoleAdmin on the domain default everything.
const (
	RoleAdmin    = string(policy.Admin)
	RoleOperator = string(policy.Operator)
	RoleMember   = string(policy.Member)
	RoleReader   = string(policy.Reader)
)

// Token is what the store keeps of a token, and what a valid one tells.
type Token struct {
	User      User      `json:"-"`
	UserID    string    `json:"user_id"`
	Methods   []string  `json:"methods"`
	AuditID   string    `json:"audit_id"`
	ProjectID string    `json:"project_id,omitempty"`
	DomainID  string    `json:"domain_id,omitempty"`
	IssuedAt  time.Time `json:"issued_at"`
	ExpiresAt time.Time `json:"expires_at"`
	// Generation is the user's when the password or secret was checked; the token ends with it.
	Generation int64 `json:"generation,omitempty"`
	// AppCred is the id of the application credential the token stems from, if one.
	AppCred string `json:"app_cred,omitempty"`

	// Filled in when a token is validated, so that a role taken away counts at once.
	UserDomain    Domain   `json:"-"`
	Project       *Project `json:"-"`
	ProjectDomain Domain   `json:"-"`
	Domain        *Domain  `json:"-"`
	Roles         []string `json:"-"` // with those that they imply
	Credential    *AppCred `json:"-"` // of AppCred
}

// Admin reports whether the token carries the admin role in its scope.
func (t *Token) Admin() bool { return slices.Contains(t.Roles, RoleAdmin) }

// MinTokenTTL is the shortest life of tokens: clients log in once per run and never again.
const MinTokenTTL = time.Hour

// Config of a Service. The zero value of every field but Store is a sensible default.
type Config struct {
	Store    store.Store
	TokenTTL time.Duration // default 24 h, at least MinTokenTTL
	Region   string        // default "RegionOne"
	Logger   *slog.Logger
	// Logins is how many passwords are checked at once; each takes one core for some tens of
	// milliseconds and 19 MiB. Default 2.
	Logins int
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Service checks and issues tokens. It is safe for concurrent use.
type Service struct {
	cfg    Config
	hasher *hasher
	limit  *throttle

	mu    sync.Mutex // guards cache; never held across I/O
	cache map[string]cached
}

type cached struct {
	token *Token
	until time.Time
}

const (
	// cacheTTL bounds how long a token goes on to work at a controller that did not revoke it.
	cacheTTL = 3 * time.Second
	// cacheMax bounds the cache's entries; beyond it the cache is emptied.
	cacheMax = 10000
)

// New makes a Service. A TokenTTL under MinTokenTTL is an error.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil {
		return nil, errors.New("identity needs a store")
	}
	if cfg.TokenTTL == 0 {
		cfg.TokenTTL = 24 * time.Hour
	}
	if cfg.TokenTTL < MinTokenTTL {
		return nil, fmt.Errorf("token lifetime %v is under the minimum of %v", cfg.TokenTTL, MinTokenTTL)
	}
	if cfg.Region == "" {
		cfg.Region = "RegionOne"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Logins <= 0 {
		cfg.Logins = 2
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, hasher: newHasher(cfg.Logins), limit: newThrottle(cfg.Now), cache: map[string]cached{}}, nil
}

// Region is the region's name in the catalog.
func (s *Service) Region() string { return s.cfg.Region }

// sweepEvery is the time between two looks for what has expired.
const sweepEvery = 10 * time.Minute

// Run deletes expired tokens and application credentials from time to time until ctx ends. Any number of
// controllers may run it at once.
func (s *Service) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		s.sweep(ctx, "tokens", s.Sweep)
		s.sweep(ctx, "application credentials", s.SweepCredentials)
	}
}

func (s *Service) sweep(ctx context.Context, what string, sweep func(context.Context) (int, error)) {
	n, err := sweep(ctx)
	if err != nil {
		s.cfg.Logger.Warn("sweep of expired "+what+" failed", "error", err)
	}
	if n > 0 {
		s.cfg.Logger.Info("expired "+what+" deleted", "count", n)
	}
}

// errUnauthorized is the one answer to every login that fails, whatever the reason.
func errUnauthorized() error {
	return &rest.Error{Status: http.StatusUnauthorized, Message: "The request you have made requires authentication."}
}

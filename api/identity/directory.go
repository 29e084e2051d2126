package identity

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/store"
)

func key(parts ...string) string { return store.PrefixIdentity + strings.Join(parts, "/") }

func hexName(name string) string { return hex.EncodeToString([]byte(name)) }

// newID is a random id as Keystone makes them: 32 hexadecimal digits.
func newID() string {
	id := uuid.New()
	return hex.EncodeToString(id[:])
}

// validID reports whether an id can be part of a key; nothing else is ever stored under one.
func validID(id string) bool {
	return id != "" && len(id) <= 128 && !strings.ContainsAny(id, "/\x00")
}

// get reads one value; found is false if it is not there.
func get[T any](ctx context.Context, st store.Store, k string) (v T, found bool, err error) {
	kv, err := st.Get(ctx, k)
	if errors.Is(err, lockstep.ErrNotFound) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("read %s: %w", k, err)
	}
	if v, err = store.Decode[T](kv.Value); err != nil {
		return v, false, fmt.Errorf("decode %s: %w", k, err)
	}
	return v, true, nil
}

func list[T any](ctx context.Context, st store.Store, prefix string) ([]T, error) {
	kvs, _, err := st.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	out := make([]T, 0, len(kvs))
	for _, kv := range kvs {
		v, err := store.Decode[T](kv.Value)
		if err != nil {
			return nil, fmt.Errorf("decode %s: %w", kv.Key, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// create writes new keys in one transaction; lockstep.ErrExists if one is there.
func create(ctx context.Context, st store.Store, values map[string]any) error {
	var cmps []store.Cmp
	var ops []store.Op
	for k, v := range values {
		cmps = append(cmps, store.Cmp{Key: k})
		ops = append(ops, store.Op{Key: k, Value: store.Encode(v)})
	}
	ok, _, err := st.Txn(ctx, cmps, ops)
	if err != nil {
		return err
	}
	if !ok {
		return lockstep.ErrExists
	}
	return nil
}

func byID[T any](ctx context.Context, s *Service, kind, id string) (v T, found bool, err error) {
	if !validID(id) {
		return v, false, nil
	}
	return get[T](ctx, s.cfg.Store, key(kind, id))
}

func (s *Service) domain(ctx context.Context, id string) (Domain, bool, error) {
	return byID[Domain](ctx, s, "domains", id)
}

func (s *Service) project(ctx context.Context, id string) (Project, bool, error) {
	return byID[Project](ctx, s, "projects", id)
}

func (s *Service) user(ctx context.Context, id string) (User, bool, error) {
	return byID[User](ctx, s, "users", id)
}

// idByName resolves a name; "" if there is none. Domains have no domain.
func (s *Service) idByName(ctx context.Context, kind, domain, name string) (string, error) {
	k := key("names", kind, domain, hexName(name))
	if kind == "domain" {
		k = key("names", kind, hexName(name))
	}
	if name == "" || len(name) > 255 || kind != "domain" && !validID(domain) {
		return "", nil
	}
	id, _, err := get[string](ctx, s.cfg.Store, k)
	return id, err
}

// roles of a user on a project or a domain; none if there is no assignment.
func (s *Service) roles(ctx context.Context, user, target string) ([]string, error) {
	if !validID(user) || !validID(target) {
		return nil, nil
	}
	a, _, err := get[Assignment](ctx, s.cfg.Store, key("roles", user, target))
	return a.Roles, err
}

// assignments of a user.
func (s *Service) assignments(ctx context.Context, user string) ([]Assignment, error) {
	return list[Assignment](ctx, s.cfg.Store, key("roles", user)+"/")
}

// projectsOf a user: the enabled ones it has a role on.
func (s *Service) projectsOf(ctx context.Context, user string) ([]Project, error) {
	as, err := s.assignments(ctx, user)
	if err != nil {
		return nil, err
	}
	out := []Project{}
	for _, a := range as {
		if a.Project == "" || len(a.Roles) == 0 {
			continue
		}
		p, found, err := s.project(ctx, a.Project)
		if err != nil {
			return nil, err
		}
		if found && p.Enabled {
			out = append(out, p)
		}
	}
	return out, nil
}

// domainsOf a user: the enabled ones it has a role on.
func (s *Service) domainsOf(ctx context.Context, user string) ([]Domain, error) {
	as, err := s.assignments(ctx, user)
	if err != nil {
		return nil, err
	}
	out := []Domain{}
	for _, a := range as {
		if a.Domain == "" || len(a.Roles) == 0 {
			continue
		}
		d, found, err := s.domain(ctx, a.Domain)
		if err != nil {
			return nil, err
		}
		if found && d.Enabled {
			out = append(out, d)
		}
	}
	return out, nil
}

func checkName(kind, name string) error {
	if name == "" || len(name) > 255 {
		return fmt.Errorf("the name of a %s must have 1 to 255 bytes", kind)
	}
	return nil
}

// CreateProject adds a project to a domain. lockstep.ErrExists if the domain has one of that name,
// lockstep.ErrNotFound if there is no such domain.
func (s *Service) CreateProject(ctx context.Context, domain, name string) (Project, error) {
	if err := checkName("project", name); err != nil {
		return Project{}, err
	}
	if _, found, err := s.domain(ctx, domain); err != nil || !found {
		return Project{}, missing(err, "domain", domain)
	}
	p := Project{ID: newID(), Name: name, Domain: domain, Enabled: true}
	return p, s.addProject(ctx, p)
}

// CreateUser adds a user to a domain; it has no role yet. lockstep.ErrExists if the domain has one
// of that name, lockstep.ErrNotFound if there is no such domain.
func (s *Service) CreateUser(ctx context.Context, domain, name, password string) (User, error) {
	if err := checkName("user", name); err != nil {
		return User{}, err
	}
	if _, found, err := s.domain(ctx, domain); err != nil || !found {
		return User{}, missing(err, "domain", domain)
	}
	hash, err := HashPassword(password)
	if err != nil {
		return User{}, err
	}
	u := User{ID: newID(), Name: name, Domain: domain, Password: hash, Enabled: true}
	return u, s.addUser(ctx, u)
}

func missing(err error, kind, id string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%s %s: %w", kind, id, lockstep.ErrNotFound)
}

// BootstrapConfig names what the first start creates.
type BootstrapConfig struct {
	Project  string // name, default "lockstep"
	User     string // name, default "admin"
	Password string // needed at the first start only
}

// Bootstrapped are the ids of what the first start created.
type Bootstrapped struct {
	DomainID    string `json:"domain_id"`
	DomainName  string `json:"domain_name"`
	ProjectID   string `json:"project_id"`
	ProjectName string `json:"project_name"`
	UserID      string `json:"user_id"`
	UserName    string `json:"user_name"`
	Created     bool   `json:"-"` // by this call
	Upgraded    int    `json:"-"` // assignments and credentials that got the role operator by this call
}

// Bootstrap creates the domain Default, a project and a user with all roles on both, in one transaction. If that
// was ever done, by any controller, it tells the ids of then, and changes nothing but what an older version left
// to be brought up to date: see upgradeRoles.
func Bootstrap(ctx context.Context, st store.Store, cfg BootstrapConfig) (Bootstrapped, error) {
	b, found, err := get[Bootstrapped](ctx, st, key("bootstrap"))
	if err != nil {
		return b, err
	}
	if !found {
		if b, err = firstStart(ctx, st, cfg); err != nil || b.Created {
			return b, err
		}
	}
	b.Upgraded, err = upgradeRoles(ctx, st)
	return b, err
}

// firstStart makes what Bootstrap says, unless another controller was first.
func firstStart(ctx context.Context, st store.Store, cfg BootstrapConfig) (Bootstrapped, error) {
	marker := key("bootstrap")
	if cfg.Project == "" {
		cfg.Project = "lockstep"
	}
	if cfg.User == "" {
		cfg.User = "admin"
	}
	if err := errors.Join(checkName("project", cfg.Project), checkName("user", cfg.User)); err != nil {
		return Bootstrapped{}, err
	}
	hash, err := HashPassword(cfg.Password)
	if err != nil {
		return Bootstrapped{}, fmt.Errorf("bootstrap user %s: %w", cfg.User, err)
	}
	d := Domain{ID: "default", Name: "Default", Description: "The default domain", Enabled: true}
	p := Project{ID: newID(), Name: cfg.Project, Domain: d.ID, Enabled: true}
	u := User{ID: newID(), Name: cfg.User, Domain: d.ID, Password: hash, Enabled: true}
	roles := policy.Names()
	b := Bootstrapped{
		DomainID: d.ID, DomainName: d.Name, ProjectID: p.ID, ProjectName: p.Name,
		UserID: u.ID, UserName: u.Name, Created: true,
	}
	err = create(ctx, st, map[string]any{
		marker:                                  b,
		key("roles_version"):                    rolesVersion,
		key("domains", d.ID):                    d,
		key("names", "domain", hexName(d.Name)): d.ID,
		key("projects", p.ID):                   p,
		key("names", "project", d.ID, hexName(p.Name)): p.ID,
		key("users", u.ID):                          u,
		key("names", "user", d.ID, hexName(u.Name)): u.ID,
		key("roles", u.ID, p.ID):                    Assignment{User: u.ID, Project: p.ID, Roles: roles},
		key("roles", u.ID, d.ID):                    Assignment{User: u.ID, Domain: d.ID, Roles: roles},
	})
	if errors.Is(err, lockstep.ErrExists) { // another controller was first
		other, found, err := get[Bootstrapped](ctx, st, marker)
		if err == nil && !found {
			err = errors.New("identity data exists without its bootstrap marker")
		}
		return other, err
	}
	if err != nil {
		return Bootstrapped{}, fmt.Errorf("bootstrap identity: %w", err)
	}
	return b, nil
}

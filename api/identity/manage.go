package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/store"
)

// rootDomain is the domain whose administrators manage everything. It cannot be disabled or deleted.
const rootDomain = "default"

// ErrInvalid says that a change was asked for that makes no sense; its text says why.
var ErrInvalid = errors.New("invalid")

// authority is what a caller manages.
type authority struct {
	all     bool
	domains map[string]bool
}

func (a authority) manages(domain string) bool { return a.all || a.domains[domain] }

// Manages reports whether a token manages some domain.
func (s *Service) Manages(ctx context.Context, t *Token) (bool, error) {
	a, err := s.authority(ctx, t)
	return len(a.domains) > 0, err
}

// authority of a token: it must carry the role admin in its own scope, and its user must have that
// role on a domain. The administrator of a mere project manages nobody. An application credential
// manages only if it is unrestricted.
func (s *Service) authority(ctx context.Context, t *Token) (authority, error) {
	a := authority{domains: map[string]bool{}}
	if !t.Admin() || t.Credential != nil && !t.Credential.Unrestricted {
		return a, nil
	}
	as, err := s.assignments(ctx, t.UserID)
	if err != nil {
		return a, err
	}
	for _, x := range as {
		if x.Domain != "" && slices.Contains(x.Roles, RoleAdmin) {
			a.domains[x.Domain] = true
		}
	}
	a.all = a.domains[rootDomain]
	return a, nil
}

// stored reads a record with the comparison that a change of it needs. lockstep.ErrNotFound if it is not there.
func stored[T any](ctx context.Context, st store.Store, kind, id string) (v T, cmp store.Cmp, err error) {
	if !validID(id) {
		return v, cmp, fmt.Errorf("%s %.80q: %w", kind, id, lockstep.ErrNotFound)
	}
	kv, err := st.Get(ctx, key(kind, id))
	if err != nil {
		return v, cmp, fmt.Errorf("read %s %s: %w", kind, id, err)
	}
	if v, err = store.Decode[T](kv.Value); err != nil {
		return v, cmp, fmt.Errorf("decode %s: %w", kv.Key, err)
	}
	return v, store.Cmp{Key: kv.Key, ModRev: kv.ModRev}, nil
}

// commit applies a change whole, or not at all with lockstep.ErrConflict if something it rests on changed.
func (s *Service) commit(ctx context.Context, cmps []store.Cmp, ops []store.Op) error {
	ok, _, err := s.cfg.Store.Txn(ctx, cmps, ops)
	s.forget()
	if err == nil && !ok {
		err = lockstep.ErrConflict
	}
	return err
}

func (s *Service) addUser(ctx context.Context, u User) error {
	err := create(ctx, s.cfg.Store, map[string]any{
		key("users", u.ID): u, key("names", "user", u.Domain, hexName(u.Name)): u.ID,
	})
	if err != nil {
		return fmt.Errorf("create user %s: %w", u.Name, err)
	}
	return nil
}

func (s *Service) addProject(ctx context.Context, p Project) error {
	err := create(ctx, s.cfg.Store, map[string]any{
		key("projects", p.ID): p, key("names", "project", p.Domain, hexName(p.Name)): p.ID,
	})
	if err != nil {
		return fmt.Errorf("create project %s: %w", p.Name, err)
	}
	return nil
}

// rename moves a name to another one that must be free.
func rename(from, to, id string) ([]store.Cmp, []store.Op) {
	if from == to {
		return nil, nil
	}
	return []store.Cmp{{Key: to}}, []store.Op{{Key: from, Delete: true}, {Key: to, Value: store.Encode(id)}}
}

// UpdateUser changes a user. A new password and a disabling end all tokens of the user, for good.
func (s *Service) UpdateUser(ctx context.Context, id string, change func(*User) error) (User, error) {
	old, cmp, err := stored[User](ctx, s.cfg.Store, "users", id)
	if err != nil {
		return User{}, err
	}
	u := old
	if err := change(&u); err != nil {
		return User{}, err
	}
	if err := checkName("user", u.Name); err != nil {
		return User{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if u.Password != old.Password || old.Enabled && !u.Enabled {
		u.Generation = old.Generation + 1
	}
	cmps, ops := rename(key("names", "user", u.Domain, hexName(old.Name)), key("names", "user", u.Domain, hexName(u.Name)), id)
	err = s.commit(ctx, append(cmps, cmp), append(ops, store.Op{Key: cmp.Key, Value: store.Encode(u)}))
	if err != nil {
		return User{}, fmt.Errorf("change user %s: %w", id, err)
	}
	return u, nil
}

// SetPassword replaces a user's password and ends all tokens of the user.
func (s *Service) SetPassword(ctx context.Context, user, password string) error {
	hash, err := HashPassword(password)
	if err != nil {
		return err
	}
	_, err = s.UpdateUser(ctx, user, func(u *User) error { u.Password = hash; return nil })
	return err
}

// UpdateProject changes a project. Nobody can work in a disabled one.
func (s *Service) UpdateProject(ctx context.Context, id string, change func(*Project) error) (Project, error) {
	old, cmp, err := stored[Project](ctx, s.cfg.Store, "projects", id)
	if err != nil {
		return Project{}, err
	}
	p := old
	if err := change(&p); err != nil {
		return Project{}, err
	}
	if err := checkName("project", p.Name); err != nil {
		return Project{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	cmps, ops := rename(key("names", "project", p.Domain, hexName(old.Name)), key("names", "project", p.Domain, hexName(p.Name)), id)
	err = s.commit(ctx, append(cmps, cmp), append(ops, store.Op{Key: cmp.Key, Value: store.Encode(p)}))
	if err != nil {
		return Project{}, fmt.Errorf("change project %s: %w", id, err)
	}
	return p, nil
}

// deleteAll deletes keys that nothing rests on any more, in batches.
func (s *Service) deleteAll(ctx context.Context, keys []string) error {
	for part := range slices.Chunk(keys, sweepBatch) {
		var ops []store.Op
		for _, k := range part {
			ops = append(ops, store.Op{Key: k, Delete: true})
		}
		if err := s.commit(ctx, nil, ops); err != nil {
			return err
		}
	}
	return nil
}

// DeleteUser deletes a user; its tokens and application credentials end with it. Cut off in the
// middle, it has taken roles and credentials away and can be called again.
func (s *Service) DeleteUser(ctx context.Context, id string) error {
	u, cmp, err := stored[User](ctx, s.cfg.Store, "users", id)
	if err != nil {
		return err
	}
	cs, err := s.appCreds(ctx, id)
	if err != nil {
		return err
	}
	var keys []string
	for _, c := range cs {
		keys = append(keys, c.keys()...)
	}
	kvs, _, err := s.cfg.Store.List(ctx, key("roles", id)+"/")
	if err != nil {
		return fmt.Errorf("list roles of user %s: %w", id, err)
	}
	for _, kv := range kvs {
		keys = append(keys, kv.Key)
	}
	if err := s.deleteAll(ctx, keys); err != nil {
		return fmt.Errorf("delete user %s: %w", id, err)
	}
	err = s.commit(ctx, []store.Cmp{cmp}, []store.Op{
		{Key: cmp.Key, Delete: true}, {Key: key("names", "user", u.Domain, hexName(u.Name)), Delete: true},
	})
	if err != nil {
		return fmt.Errorf("delete user %s: %w", id, err)
	}
	return nil
}

// ErrInUse says that something cannot be deleted for what it still holds.
var ErrInUse = errors.New("still in use")

// owns reports whether a project has a volume, pair or group.
func (s *Service) owns(ctx context.Context, project string) (bool, error) {
	id := lockstep.ProjectID(project)
	vs, err := list[store.Volume](ctx, s.cfg.Store, store.PrefixVolumes)
	if err != nil || slices.ContainsFunc(vs, func(v store.Volume) bool { return v.Project == id }) {
		return true, err
	}
	ps, err := list[store.Pair](ctx, s.cfg.Store, store.PrefixPairs)
	if err != nil || slices.ContainsFunc(ps, func(p store.Pair) bool { return p.Project == id }) {
		return true, err
	}
	gs, err := list[store.Group](ctx, s.cfg.Store, store.PrefixGroups)
	return slices.ContainsFunc(gs, func(g store.Group) bool { return g.Project == id }), err
}

// DeleteProject deletes a project that owns nothing; else ErrInUse. It is disabled first, and what it
// owns is looked at then. (A controller may take its tokens for up to 3 s more: what is made through that
// one meanwhile is left without a project. Disable a project in use before its deletion.)
func (s *Service) DeleteProject(ctx context.Context, id string) error {
	before, _, err := stored[Project](ctx, s.cfg.Store, "projects", id)
	if err != nil {
		return err
	}
	if b, found, err := get[Bootstrapped](ctx, s.cfg.Store, key("bootstrap")); err != nil || found && b.ProjectID == id {
		return orInUse(err, "project %s is the one of the first start and stays", id)
	}
	if _, err = s.UpdateProject(ctx, id, func(p *Project) error { p.Enabled = false; return nil }); err != nil {
		return err
	}
	if err := s.deleteDisabled(ctx, id); err != nil {
		_, undo := s.UpdateProject(ctx, id, func(p *Project) error { p.Enabled = before.Enabled; return nil })
		if errors.Is(undo, lockstep.ErrNotFound) {
			undo = nil // it is deleted; what is left are roles in no project, which count for nothing
		}
		return errors.Join(err, undo)
	}
	return nil
}

func (s *Service) deleteDisabled(ctx context.Context, id string) error {
	p, cmp, err := stored[Project](ctx, s.cfg.Store, "projects", id)
	if err != nil {
		return err
	}
	busy, err := s.owns(ctx, id)
	if err != nil {
		return err
	}
	if busy {
		return fmt.Errorf("project %s has volumes, pairs or groups; delete them first: %w", id, ErrInUse)
	}
	as, err := list[Assignment](ctx, s.cfg.Store, key("roles")+"/")
	if err != nil {
		return err
	}
	var keys []string
	for _, a := range as {
		if a.Project == id {
			keys = append(keys, key("roles", a.User, id))
		}
	}
	cs, err := list[AppCred](ctx, s.cfg.Store, key("appcreds")+"/")
	if err != nil {
		return err
	}
	for _, c := range cs {
		if c.Project == id {
			keys = append(keys, c.keys()...)
		}
	}
	err = s.commit(ctx, []store.Cmp{cmp}, []store.Op{
		{Key: cmp.Key, Delete: true}, {Key: key("names", "project", p.Domain, hexName(p.Name)), Delete: true},
	})
	if err == nil {
		err = s.deleteAll(ctx, keys)
	}
	if err != nil {
		return fmt.Errorf("delete project %s: %w", id, err)
	}
	return nil
}

func orInUse(err error, format string, args ...any) error {
	if err != nil {
		return err
	}
	return fmt.Errorf(format+": %w", append(args, ErrInUse)...)
}

// Assign sets the roles of a user on a project or a domain (exactly one of the two is named); no
// roles takes them all away. Tokens in that scope follow within seconds; application credentials
// with a role that is taken away, and implied by none that stays, are deleted with it.
func (s *Service) Assign(ctx context.Context, a Assignment) error {
	return s.assign(ctx, a.User, a.Project, a.Domain, func([]string) []string { return a.Roles })
}

func (s *Service) assign(ctx context.Context, user, project, domain string, change func([]string) []string) error {
	target := project
	if target == "" {
		target = domain
	}
	if (project == "") == (domain == "") || !validID(target) || !validID(user) {
		return fmt.Errorf("%w: an assignment needs a user and either a project or a domain", ErrInvalid)
	}
	_, onUser, err := stored[User](ctx, s.cfg.Store, "users", user)
	if err != nil {
		return err
	}
	var onTarget store.Cmp
	if project != "" {
		_, onTarget, err = stored[Project](ctx, s.cfg.Store, "projects", target)
	} else {
		_, onTarget, err = stored[Domain](ctx, s.cfg.Store, "domains", target)
	}
	if err != nil {
		return err
	}
	old, onRoles, err := stored[Assignment](ctx, s.cfg.Store, "roles/"+user, target)
	if errors.Is(err, lockstep.ErrNotFound) {
		old, onRoles = Assignment{}, store.Cmp{Key: key("roles", user, target)}
	} else if err != nil {
		return err
	}
	now := Assignment{User: user, Project: project, Domain: domain, Roles: change(slices.Clone(old.Roles))}
	for _, r := range now.Roles {
		if !policy.Known(r) {
			return fmt.Errorf("%w: there is no role %.80q; roles are %s", ErrInvalid, r, policy.List(policy.Names()))
		}
	}
	ops := []store.Op{{Key: onRoles.Key, Value: store.Encode(now)}}
	if len(now.Roles) == 0 {
		if onRoles.ModRev == 0 {
			return nil
		}
		ops = []store.Op{{Key: onRoles.Key, Delete: true}}
	}
	cs, err := s.appCreds(ctx, user)
	if err != nil {
		return err
	}
	for _, c := range cs {
		if c.Project != target || subset(c.Roles, policy.Expand(now.Roles)) {
			continue
		}
		for _, k := range c.keys() {
			ops = append(ops, store.Op{Key: k, Delete: true})
		}
	}
	if err := s.commit(ctx, []store.Cmp{onUser, onTarget, onRoles}, ops); err != nil {
		return fmt.Errorf("assign roles to user %s: %w", user, err)
	}
	return nil
}

func subset(part, whole []string) bool {
	return !slices.ContainsFunc(part, func(r string) bool { return !slices.Contains(whole, r) })
}

package identity

import (
	"slices"

	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
)

// rolesOn lists a user's roles on a project or domain, for those who manage it and for the user.
func (s *Service) rolesOn(kind string) func(*rest.Request, *Token) (any, error) {
	return func(r *rest.Request, t *Token) (any, error) {
		names, err := s.rolesOf(r, t, kind)
		if err != nil {
			return nil, err
		}
		out := []any{}
		for _, name := range names {
			out = append(out, roleView(r, name))
		}
		return listBody(r, "roles", out), nil
	}
}

func (s *Service) rolesOf(r *rest.Request, t *Token, kind string) ([]string, error) {
	user, target := r.PathValue("user_id"), r.PathValue("id")
	if user != t.UserID {
		if err := s.managedTarget(r, t, kind, target); err != nil {
			return nil, err
		}
	}
	return s.roles(r.Context(), user, target)
}

// hasRole answers 204 if the user has the role, else 404.
func (s *Service) hasRole(kind string) func(*rest.Request, *Token) (any, error) {
	return func(r *rest.Request, t *Token) (any, error) {
		names, err := s.rolesOf(r, t, kind)
		if err != nil {
			return nil, err
		}
		role, err := roleOf(r.PathValue("role_id"))
		if err == nil && !slices.Contains(names, role) {
			err = rest.NotFound("the user has no role %s there", role)
		}
		return nil, err
	}
}

// assignmentFilters are the parameters of the list of role assignments.
var assignmentFilters = []string{
	"user.id", "role.id", "scope.project.id", "scope.domain.id", "group.id", "scope.system",
	"effective", "include_names", "include_subtree", "scope.OS-INHERIT:inherited_to",
}

// roleAssignments lists who has which role where: one's own, and those on what one manages.
func (s *Service) roleAssignments(r *rest.Request, t *Token) (any, error) {
	q := r.URL.Query()
	for k := range q {
		if !slices.Contains(assignmentFilters, k) {
			return nil, rest.BadRequest("there is no filter %.80q; filters are %v", k, assignmentFilters)
		}
	}
	a, err := s.authority(r.Context(), t)
	if err != nil {
		return nil, err
	}
	prefix := key("roles") + "/"
	if u := q.Get("user.id"); validID(u) {
		prefix += u + "/"
	}
	all, err := list[Assignment](r.Context(), s.cfg.Store, prefix)
	if err != nil {
		return nil, err
	}
	// There are no groups, no system and no inheritance: nothing is assigned to or by one.
	none := q.Get("group.id") != "" || q.Get("scope.system") != "" || q.Get("scope.OS-INHERIT:inherited_to") != ""
	on := func(flag string) bool { return q.Has(flag) && q.Get(flag) != "0" && q.Get(flag) != "false" }
	names, effective := on("include_names"), on("effective")
	differs := func(filter, value string) bool { f := q.Get(filter); return f != "" && f != value }
	out := []any{}
	for _, x := range all {
		if none || differs("user.id", x.User) || differs("scope.project.id", x.Project) || differs("scope.domain.id", x.Domain) {
			continue
		}
		u, isUser, err := s.user(r.Context(), x.User)
		if err != nil {
			return nil, err
		}
		scope, domain, err := s.assignmentScope(r, x, names)
		if err != nil {
			return nil, err
		}
		if !isUser || scope == nil || x.User != t.UserID && !a.manages(domain) {
			continue
		}
		user, err := s.named(r, u.ID, u.Name, u.Domain, names)
		if err != nil {
			return nil, err
		}
		roles := x.Roles
		if effective {
			roles = policy.Expand(roles)
		}
		for _, role := range roles {
			id := stableID("role", role)
			if differs("role.id", id) {
				continue
			}
			rv := map[string]any{"id": id}
			if names {
				rv["name"] = role
			}
			kind, target := "projects", x.Project
			if target == "" {
				kind, target = "domains", x.Domain
			}
			out = append(out, map[string]any{"role": rv, "user": user, "scope": scope, "links": map[string]string{
				"assignment": r.Base + Prefix + "/v3/" + kind + "/" + target + "/users/" + x.User + "/roles/" + id,
			}})
		}
	}
	return listBody(r, "role_assignments", out), nil
}

// assignmentScope is where an assignment holds, and the domain that manages it; nil if that is gone.
func (s *Service) assignmentScope(r *rest.Request, x Assignment, names bool) (scope map[string]any, domain string, err error) {
	if x.Project != "" {
		p, found, err := s.project(r.Context(), x.Project)
		if err != nil || !found {
			return nil, "", err
		}
		v, err := s.named(r, p.ID, p.Name, p.Domain, names)
		return map[string]any{"project": v}, p.Domain, err
	}
	d, found, err := s.domain(r.Context(), x.Domain)
	if err != nil || !found {
		return nil, "", err
	}
	v, err := s.named(r, d.ID, d.Name, "", names)
	return map[string]any{"domain": v}, d.ID, err
}

// named is a reference by id, with names if these are wanted.
func (s *Service) named(r *rest.Request, id, name, domain string, names bool) (map[string]any, error) {
	v := map[string]any{"id": id}
	if !names {
		return v, nil
	}
	v["name"] = name
	if domain != "" {
		d, _, err := s.domain(r.Context(), domain)
		if err != nil {
			return nil, err
		}
		v["domain"] = map[string]any{"id": domain, "name": d.Name}
	}
	return v, nil
}

func credentialView(r *rest.Request, c AppCred) map[string]any {
	roles := []any{}
	for _, name := range c.Roles {
		roles = append(roles, map[string]any{"id": stableID("role", name), "name": name, "domain_id": nil})
	}
	v := map[string]any{
		"id": c.ID, "name": c.Name, "description": c.Description, "project_id": c.Project, "user_id": c.User,
		"unrestricted": c.Unrestricted, "roles": roles, "expires_at": nil, "system": nil,
		"links": self(r, "users", c.User+"/application_credentials/"+c.ID),
	}
	if c.ExpiresAt != nil {
		v["expires_at"] = timeZ(*c.ExpiresAt)
	}
	return v
}

// ownCredentials refuses all but the user of the path itself, and restricted credentials where
// something changes.
func ownCredentials(r *rest.Request, t *Token, change bool) error {
	if r.PathValue("id") != t.UserID {
		return rest.Forbidden("application credentials are their user's own business")
	}
	if change && t.Credential != nil && !t.Credential.Unrestricted {
		return rest.Forbidden("the token stems from a restricted application credential, which cannot make or delete others")
	}
	return nil
}

func (s *Service) postAppCred(r *rest.Request, t *Token) (any, error) {
	if err := ownCredentials(r, t, true); err != nil {
		return nil, err
	}
	o, err := bodyOf(r, "application_credential")
	if err != nil {
		return nil, err
	}
	o.Only("name", "description", "secret", "expires_at", "roles", "unrestricted", "access_rules", "project_id")
	c := AppCred{Name: o.String("name"), User: t.UserID, Unrestricted: o.Bool("unrestricted")}
	if d := o.OptString("description"); d != nil {
		c.Description = *d
	}
	if o.Has("access_rules") && !o.Null("access_rules") && len(o.Objects("access_rules")) > 0 {
		o.Fail(rest.BadRequest("access_rules are not supported"))
	}
	secret := ""
	if v := o.OptString("secret"); v != nil {
		if secret = *v; secret == "" {
			o.Fail(rest.BadRequest("the secret is empty"))
		}
	}
	if e := o.OptString("expires_at"); e != nil {
		at, ok := rest.ParseTime(*e)
		if !ok || !s.cfg.Now().Before(at) {
			o.Fail(rest.BadRequest("expires_at must be a time in the future, not %.40q", *e))
		}
		c.ExpiresAt = &at
	}
	if o.Has("roles") && !o.Null("roles") {
		for _, ro := range o.Objects("roles") {
			n := readNamed(ro)
			if n.id != "" {
				if n.name, err = roleOf(n.id); err != nil {
					o.Fail(err)
				}
			}
			if !slices.Contains(c.Roles, n.name) {
				c.Roles = append(c.Roles, n.name)
			}
		}
	}
	if err := o.Err(); err != nil {
		return nil, err
	}
	if t.Project == nil {
		return nil, rest.Forbidden("an application credential belongs to a project; the token is scoped to none")
	}
	if p := o.OptString("project_id"); p != nil && *p != t.Project.ID {
		return nil, rest.Forbidden("the token is scoped to another project")
	}
	c.Project = t.Project.ID
	if len(c.Roles) == 0 {
		c.Roles = slices.Clone(t.Roles)
	}
	if !subset(c.Roles, t.Roles) {
		return nil, rest.BadRequest("roles %v are not among those of the token, %v", c.Roles, t.Roles)
	}
	c, secret, err = s.createAppCred(r.Context(), c, secret)
	if err != nil {
		return nil, err
	}
	r.Made = c.ID
	v := credentialView(r, c)
	v["secret"] = secret
	return map[string]any{"application_credential": v}, nil
}

func (s *Service) listAppCreds(r *rest.Request, t *Token) (any, error) {
	if err := ownCredentials(r, t, false); err != nil {
		return nil, err
	}
	cs, err := s.appCreds(r.Context(), t.UserID)
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, c := range cs {
		if name := r.URL.Query().Get("name"); name == "" || name == c.Name {
			out = append(out, credentialView(r, c))
		}
	}
	return listBody(r, "application_credentials", out), nil
}

func (s *Service) pathCredential(r *rest.Request, t *Token, change bool) (AppCred, error) {
	if err := ownCredentials(r, t, change); err != nil {
		return AppCred{}, err
	}
	c, found, err := s.appCred(r.Context(), t.UserID, r.PathValue("cred_id"))
	if err == nil && !found {
		err = rest.NotFound("Could not find application credential: %.80s.", r.PathValue("cred_id"))
	}
	return c, err
}

func (s *Service) showAppCred(r *rest.Request, t *Token) (any, error) {
	c, err := s.pathCredential(r, t, false)
	if err != nil {
		return nil, err
	}
	return map[string]any{"application_credential": credentialView(r, c)}, nil
}

func (s *Service) deleteAppCred(r *rest.Request, t *Token) (any, error) {
	c, err := s.pathCredential(r, t, true)
	if err != nil {
		return nil, err
	}
	_, err = s.deleteCredential(r.Context(), c)
	return nil, err
}

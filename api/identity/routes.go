package identity

import (
	"net/http"
	"slices"
	"strings"

	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
)

// Prefix of all paths of this package.
const Prefix = "/identity"

// Routes are the calls of the identity API, with version documents.
func (s *Service) Routes() []rest.Route {
	route := func(rule policy.Rule, method, path string, h rest.Handler) rest.Route {
		return rest.Route{Method: method, Path: Prefix + path, Rule: rule, Handle: h}
	}
	// with hands the caller's token to a handler that only reads.
	with := func(owner, path string, h func(r *rest.Request, t *Token) (any, error)) rest.Route {
		return route(policy.Token(owner), http.MethodGet, path, func(w http.ResponseWriter, r *rest.Request) error {
			t, err := s.caller(r)
			if err != nil {
				return err
			}
			body, err := h(r, t)
			if err != nil {
				return err
			}
			return rest.WriteJSON(w, http.StatusOK, body)
		})
	}
	const (
		all   = "the same for everybody"
		own   = "one's own"
		users = "oneself, and the users of domains that one manages"
		mine  = "where one has a role, and what one manages"
	)
	open := policy.Open("tells which versions are spoken")
	token := policy.Token("one's own token, and those of users of domains that one manages")
	return append(s.changes(), []rest.Route{
		route(open, http.MethodGet, "", s.versions),
		route(open, http.MethodGet, "/v3", s.version),
		route(policy.Open("the body holds a password, a secret or a token"), http.MethodPost, "/v3/auth/tokens", s.postToken),
		route(token, http.MethodGet, "/v3/auth/tokens", s.getToken), // HEAD as well
		route(token, http.MethodDelete, "/v3/auth/tokens", s.deleteToken),
		with(own, "/v3/auth/catalog", s.authCatalog),
		with(own, "/v3/auth/projects", s.authProjects),
		with(own, "/v3/auth/domains", s.authDomains),
		with(users, "/v3/users", s.users),
		with(users, "/v3/users/{id}", s.showUser),
		with(users, "/v3/users/{id}/projects", s.userProjects),
		with(mine, "/v3/projects", s.projects),
		with(mine, "/v3/projects/{id}", s.showProject),
		with("one's own, and those that one manages", "/v3/domains", s.domains),
		with("one's own, and those that one manages", "/v3/domains/{id}", s.showDomain),
		with(all, "/v3/roles", s.listRoles),
		with(all, "/v3/roles/{id}", s.showRole),
		with(all, "/v3/regions", s.regions),
		with(all, "/v3/regions/{id}", s.showRegion),
		with(all, "/v3/services", s.services),
		with(all, "/v3/endpoints", s.endpoints),
	}...)
}

func versionDoc(base string) map[string]any {
	return map[string]any{
		"id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
		"links":       []map[string]string{{"rel": "self", "href": base + Prefix + "/v3/"}},
		"media-types": []map[string]string{{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}},
	}
}

func (s *Service) versions(w http.ResponseWriter, r *rest.Request) error {
	return rest.WriteJSON(w, http.StatusMultipleChoices, map[string]any{
		"versions": map[string]any{"values": []any{versionDoc(r.Base)}},
	})
}

func (s *Service) version(w http.ResponseWriter, r *rest.Request) error {
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"version": versionDoc(r.Base)})
}

// listBody is a list as Keystone writes it.
func listBody(r *rest.Request, name string, items any) any {
	return map[string]any{name: items, "links": map[string]any{
		"self": r.Base + r.URL.Path, "next": nil, "previous": nil,
	}}
}

func self(r *rest.Request, kind, id string) map[string]string {
	return map[string]string{"self": r.Base + Prefix + "/v3/" + kind + "/" + id}
}

func projectView(r *rest.Request, p Project) map[string]any {
	return map[string]any{
		"id": p.ID, "name": p.Name, "domain_id": p.Domain, "parent_id": p.Domain, "is_domain": false,
		"description": p.Description, "enabled": p.Enabled, "tags": []string{},
		"options": map[string]any{}, "links": self(r, "projects", p.ID),
	}
}

func domainView(r *rest.Request, d Domain) map[string]any {
	return map[string]any{
		"id": d.ID, "name": d.Name, "description": d.Description, "enabled": d.Enabled,
		"tags": []string{}, "options": map[string]any{}, "links": self(r, "domains", d.ID),
	}
}

func userView(r *rest.Request, u User) map[string]any {
	v := map[string]any{
		"id": u.ID, "name": u.Name, "domain_id": u.Domain, "enabled": u.Enabled,
		"password_expires_at": nil, "options": map[string]any{}, "links": self(r, "users", u.ID),
		"description": u.Description,
	}
	if u.Email != "" {
		v["email"] = u.Email
	}
	if u.DefaultProject != "" {
		v["default_project_id"] = u.DefaultProject
	}
	return v
}

func (s *Service) authCatalog(r *rest.Request, t *Token) (any, error) {
	if t.Project == nil && t.Domain == nil {
		return nil, rest.Forbidden("an unscoped token has no catalog")
	}
	return listBody(r, "catalog", s.catalog(r.Base, t)), nil
}

// skips reports whether the filter asks for another value.
func skips(r *rest.Request, filter, value string) bool {
	f := r.URL.Query().Get(filter)
	return f != "" && f != value
}

func projectPage(r *rest.Request, ps []Project) (any, error) {
	ps = slices.DeleteFunc(ps, func(p Project) bool { return skips(r, "name", p.Name) || skips(r, "domain_id", p.Domain) })
	return page(r, "projects", ps, func(p Project) string { return p.ID }, projectView)
}

func domainPage(r *rest.Request, ds []Domain) (any, error) {
	ds = slices.DeleteFunc(ds, func(d Domain) bool { return skips(r, "name", d.Name) })
	return page(r, "domains", ds, func(d Domain) string { return d.ID }, domainView)
}

func (s *Service) authProjects(r *rest.Request, t *Token) (any, error) {
	ps, err := s.projectsOf(r.Context(), t.UserID)
	if err != nil {
		return nil, err
	}
	return projectPage(r, ps)
}

func (s *Service) authDomains(r *rest.Request, t *Token) (any, error) {
	ds, err := s.domainsOf(r.Context(), t.UserID)
	if err != nil {
		return nil, err
	}
	return domainPage(r, ds)
}

// projects lists those the caller manages or has a role on.
func (s *Service) projects(r *rest.Request, t *Token) (any, error) {
	a, err := s.authority(r.Context(), t)
	if err != nil {
		return nil, err
	}
	out, err := s.projectsOf(r.Context(), t.UserID)
	if err != nil {
		return nil, err
	}
	if len(a.domains) > 0 {
		own := map[string]bool{}
		for _, p := range out {
			own[p.ID] = true
		}
		all, err := list[Project](r.Context(), s.cfg.Store, key("projects")+"/")
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			if !own[p.ID] && a.manages(p.Domain) {
				out = append(out, p)
			}
		}
	}
	return projectPage(r, out)
}

func (s *Service) showProject(r *rest.Request, t *Token) (any, error) {
	id := r.PathValue("id")
	p, found, err := s.project(r.Context(), id)
	if err != nil {
		return nil, err
	}
	a, err := s.authority(r.Context(), t)
	if err != nil {
		return nil, err
	}
	if found && !a.manages(p.Domain) {
		roles, err := s.roles(r.Context(), t.UserID, id)
		if err != nil {
			return nil, err
		}
		found = len(roles) > 0 // a stranger's project looks like none
	}
	if !found {
		return nil, rest.NotFound("Could not find project: %.80s.", id)
	}
	return map[string]any{"project": projectView(r, p)}, nil
}

// domains lists the caller's own and those it manages.
func (s *Service) domains(r *rest.Request, t *Token) (any, error) {
	a, err := s.authority(r.Context(), t)
	if err != nil {
		return nil, err
	}
	ds, err := list[Domain](r.Context(), s.cfg.Store, key("domains")+"/")
	if err != nil {
		return nil, err
	}
	ds = slices.DeleteFunc(ds, func(d Domain) bool { return d.ID != t.UserDomain.ID && !a.manages(d.ID) })
	return domainPage(r, ds)
}

func (s *Service) showDomain(r *rest.Request, t *Token) (any, error) {
	id := r.PathValue("id")
	a, err := s.authority(r.Context(), t)
	if err != nil {
		return nil, err
	}
	d, found, err := s.domain(r.Context(), id)
	if err != nil {
		return nil, err
	}
	if !found || !a.manages(id) && id != t.UserDomain.ID {
		return nil, rest.NotFound("Could not find domain: %.80s.", id)
	}
	return map[string]any{"domain": domainView(r, d)}, nil
}

func (s *Service) users(r *rest.Request, t *Token) (any, error) {
	a, err := s.authority(r.Context(), t)
	if err != nil {
		return nil, err
	}
	us := []User{t.User}
	if len(a.domains) > 0 {
		if us, err = list[User](r.Context(), s.cfg.Store, key("users")+"/"); err != nil {
			return nil, err
		}
	}
	us = slices.DeleteFunc(us, func(u User) bool {
		return u.ID != t.UserID && !a.manages(u.Domain) || skips(r, "name", u.Name) || skips(r, "domain_id", u.Domain)
	})
	return page(r, "users", us, func(u User) string { return u.ID }, userView)
}

// findUser is the user of the path; one may look at oneself, an admin at those of the domains it manages.
func (s *Service) findUser(r *rest.Request, t *Token) (User, error) {
	id := r.PathValue("id")
	u, found, err := s.user(r.Context(), id)
	if err != nil {
		return User{}, err
	}
	if id == t.UserID {
		return u, nil
	}
	a, err := s.authority(r.Context(), t)
	if err != nil {
		return User{}, err
	}
	if len(a.domains) == 0 || found && !a.manages(u.Domain) {
		return User{}, rest.Forbidden("You are not authorized to look at another user.")
	}
	if !found {
		return User{}, rest.NotFound("Could not find user: %.80s.", id)
	}
	return u, nil
}

func (s *Service) showUser(r *rest.Request, t *Token) (any, error) {
	u, err := s.findUser(r, t)
	if err != nil {
		return nil, err
	}
	return map[string]any{"user": userView(r, u)}, nil
}

func (s *Service) userProjects(r *rest.Request, t *Token) (any, error) {
	u, err := s.findUser(r, t)
	if err != nil {
		return nil, err
	}
	ps, err := s.projectsOf(r.Context(), u.ID)
	if err != nil {
		return nil, err
	}
	return projectPage(r, ps)
}

func roleView(r *rest.Request, name string) map[string]any {
	id := stableID("role", name)
	return map[string]any{"id": id, "name": name, "domain_id": nil, "links": self(r, "roles", id)}
}

func (s *Service) listRoles(r *rest.Request, _ *Token) (any, error) {
	out := []any{}
	for _, name := range policy.Names() {
		if q := r.URL.Query().Get("name"); q == "" || q == name {
			out = append(out, roleView(r, name))
		}
	}
	return listBody(r, "roles", out), nil
}

// roleOf is the role with an id.
func roleOf(id string) (string, error) {
	for _, name := range policy.Names() {
		if id == stableID("role", name) {
			return name, nil
		}
	}
	return "", rest.NotFound("Could not find role: %.80s.", id)
}

func (s *Service) showRole(r *rest.Request, _ *Token) (any, error) {
	name, err := roleOf(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return map[string]any{"role": roleView(r, name)}, nil
}

func (s *Service) regionView(r *rest.Request) map[string]any {
	return map[string]any{
		"id": s.cfg.Region, "description": "", "parent_region_id": nil, "links": self(r, "regions", s.cfg.Region),
	}
}

func (s *Service) regions(r *rest.Request, _ *Token) (any, error) {
	return listBody(r, "regions", []any{s.regionView(r)}), nil
}

func (s *Service) showRegion(r *rest.Request, _ *Token) (any, error) {
	if id := r.PathValue("id"); id != s.cfg.Region {
		return nil, rest.NotFound("Could not find region: %.80s.", id)
	}
	return map[string]any{"region": s.regionView(r)}, nil
}

func (s *Service) services(r *rest.Request, _ *Token) (any, error) {
	out := []any{}
	for _, sv := range services {
		id := stableID("service", sv.kind)
		out = append(out, map[string]any{
			"id": id, "type": sv.kind, "name": sv.name, "enabled": true, "description": "",
			"links": self(r, "services", id),
		})
	}
	return listBody(r, "services", out), nil
}

func (s *Service) endpoints(r *rest.Request, _ *Token) (any, error) {
	out := []any{}
	for _, sv := range services {
		url := r.Base + strings.TrimSuffix(sv.path, "/")
		if sv.perProject {
			url += "/%(project_id)s"
		}
		id := stableID("endpoint", sv.kind, s.cfg.Region)
		out = append(out, map[string]any{
			"id": id, "service_id": stableID("service", sv.kind), "interface": "public", "enabled": true,
			"region": s.cfg.Region, "region_id": s.cfg.Region, "url": url, "links": self(r, "endpoints", id),
		})
	}
	return listBody(r, "endpoints", out), nil
}

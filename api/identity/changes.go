package identity

import (
	"errors"
	"net/http"
	"slices"

	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
)

// changes are the calls that change users, projects, roles and application credentials, and look at the latter two.
func (s *Service) changes() []rest.Route {
	// call hands the caller's token to a handler; a nil body is an answer without one.
	call := func(rule policy.Rule, method, path string, status int, h func(r *rest.Request, t *Token) (any, error)) rest.Route {
		return rest.Route{Method: method, Path: Prefix + "/v3" + path, Rule: rule, Handle: func(w http.ResponseWriter, r *rest.Request) error {
			t, err := s.caller(r)
			if err != nil {
				return err
			}
			body, err := h(r, t)
			if err != nil {
				return refused(err)
			}
			if body == nil {
				return rest.WriteEmpty(w, status)
			}
			return rest.WriteJSON(w, status, body)
		}}
	}
	const get, post, put, patch, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete
	users := policy.Manager("the domain of the user; nobody changes who manages another domain")
	projects := policy.Manager("the domain of the project")
	domains := policy.Manager("the domain " + rootDomain)
	grants := policy.Manager("the domain of the user, and the domain or that of the project")
	self := policy.Token("oneself")
	creds := policy.Token("oneself; a token of a restricted application credential changes none")
	out := []rest.Route{
		call(users, post, "/users", 201, s.postUser),
		call(users, patch, "/users/{id}", 200, s.patchUser),
		call(users, del, "/users/{id}", 204, s.deleteUser),
		call(self, post, "/users/{id}/password", 204, s.ownPassword),
		call(projects, post, "/projects", 201, s.postProject),
		call(projects, patch, "/projects/{id}", 200, s.patchProject),
		call(projects, del, "/projects/{id}", 204, s.deleteProject),
		call(domains, post, "/domains", 201, s.postDomain),
		call(domains, patch, "/domains/{id}", 200, s.patchDomain),
		call(domains, del, "/domains/{id}", 204, s.deleteDomain),
		call(policy.Token("one's own, and those where one manages"), get, "/role_assignments", 200, s.roleAssignments),
		call(creds, post, "/users/{id}/application_credentials", 201, s.postAppCred),
		call(self, get, "/users/{id}/application_credentials", 200, s.listAppCreds),
		call(self, get, "/users/{id}/application_credentials/{cred_id}", 200, s.showAppCred),
		call(creds, del, "/users/{id}/application_credentials/{cred_id}", 204, s.deleteAppCred),
	}
	for _, kind := range []string{"projects", "domains"} {
		path := "/" + kind + "/{id}/users/{user_id}/roles"
		look := policy.Token("oneself, and where one manages")
		out = append(out,
			call(look, get, path, 200, s.rolesOn(kind)),
			call(look, get, path+"/{role_id}", 204, s.hasRole(kind)), // HEAD as well
			call(grants, put, path+"/{role_id}", 204, s.changeRole(kind, true)),
			call(grants, del, path+"/{role_id}", 204, s.changeRole(kind, false)),
		)
	}
	return out
}

// refused gives this package's refusals their status.
func refused(err error) error {
	switch {
	case errors.Is(err, ErrInvalid):
		return rest.BadRequest("%s", err.Error())
	case errors.Is(err, ErrInUse):
		return &rest.Error{Status: http.StatusConflict, Message: err.Error()}
	}
	return err
}

// manage refuses a caller that does not manage the domain.
func (s *Service) manage(r *rest.Request, t *Token, domain string) error {
	a, err := s.authority(r.Context(), t)
	if err == nil && !a.manages(domain) {
		err = rest.Forbidden("this needs the role admin on domain %.80s or on domain %s, and in the token's scope", domain, rootDomain)
	}
	return err
}

// readUser reads what a client sets of a user. password is in clear.
func readUser(o *rest.Object, u *User) (password *string) {
	o.Only("id", "name", "domain_id", "password", "enabled", "description", "email", "default_project_id", "options")
	set := func(key string, to *string) {
		if s := o.OptString(key); s != nil {
			*to = *s
		} else if o.Null(key) {
			*to = ""
		}
	}
	if s := o.OptString("name"); s != nil {
		u.Name = *s
	}
	for _, key := range []string{"description", "email", "default_project_id"} {
		if s := o.OptString(key); s != nil && len(*s) > rest.MaxNameBytes {
			o.Fail(rest.BadRequest("%s has more than %d bytes", key, rest.MaxNameBytes))
		}
	}
	set("description", &u.Description)
	set("email", &u.Email)
	set("default_project_id", &u.DefaultProject)
	if o.Has("enabled") && !o.Null("enabled") {
		u.Enabled = o.NeedBool("enabled")
	}
	noOptions(o)
	return o.OptString("password")
}

func noOptions(o *rest.Object) {
	if len(o.OptObject("options").Keys()) > 0 {
		o.Fail(rest.BadRequest("options are not supported"))
	}
}

// bodyOf reads the one object of a body.
func bodyOf(r *rest.Request, name string) (*rest.Object, error) {
	body, err := rest.ReadObject(r)
	if err != nil {
		return nil, err
	}
	body.Only(name)
	o := body.Object(name)
	return o, body.Err()
}

// newDomain is the domain a new user or project is to be in: the one named, or the caller's.
func newDomain(o *rest.Object, t *Token) string {
	if d := o.OptString("domain_id"); d != nil {
		return *d
	}
	if t.Domain != nil {
		return t.Domain.ID
	}
	return t.User.Domain
}

func (s *Service) postUser(r *rest.Request, t *Token) (any, error) {
	o, err := bodyOf(r, "user")
	if err != nil {
		return nil, err
	}
	u := User{ID: newID(), Enabled: true}
	password := readUser(o, &u)
	u.Domain = newDomain(o, t)
	if o.Has("id") {
		o.Fail(rest.BadRequest("the id of a user is chosen by the server"))
	}
	if err := o.Err(); err != nil {
		return nil, err
	}
	if err := s.manage(r, t, u.Domain); err != nil {
		return nil, err
	}
	if err := checkName("user", u.Name); err != nil {
		return nil, rest.BadRequest("%s", err.Error())
	}
	if _, found, err := s.domain(r.Context(), u.Domain); err != nil || !found {
		return nil, missing(err, "domain", u.Domain)
	}
	if password != nil { // a user without one cannot log in until it gets one
		if u.Password, err = HashPassword(*password); err != nil {
			return nil, rest.BadRequest("%s", err.Error())
		}
	}
	if err := s.addUser(r.Context(), u); err != nil {
		return nil, err
	}
	r.Made = u.ID
	return map[string]any{"user": userView(r, u)}, nil
}

// managedUser is the user of the path, whom the caller must manage.
func (s *Service) managedUser(r *rest.Request, t *Token, id string) (User, error) {
	a, err := s.authority(r.Context(), t)
	if err != nil {
		return User{}, err
	}
	u, found, err := s.user(r.Context(), id)
	switch {
	case err != nil:
		return User{}, err
	case len(a.domains) == 0 || found && !a.manages(u.Domain):
		return User{}, rest.Forbidden("this needs the role admin on the domain of the user, or on domain %s, and in the token's scope", rootDomain)
	case !found:
		return User{}, rest.NotFound("Could not find user: %.80s.", id)
	}
	if a.all {
		return u, nil
	}
	as, err := s.assignments(r.Context(), id)
	if err != nil {
		return User{}, err
	}
	for _, x := range as { // who sets the password of somebody mightier becomes that one
		if x.Domain != "" && !a.manages(x.Domain) && slices.Contains(x.Roles, RoleAdmin) {
			return User{}, rest.Forbidden("the user manages a domain that you do not")
		}
	}
	return u, nil
}

func (s *Service) patchUser(r *rest.Request, t *Token) (any, error) {
	u, err := s.managedUser(r, t, r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	o, err := bodyOf(r, "user")
	if err != nil {
		return nil, err
	}
	probe := u
	password := readUser(o, &probe)
	if d := o.OptString("domain_id"); d != nil && *d != u.Domain {
		o.Fail(rest.BadRequest("a user stays in its domain"))
	}
	if id := o.OptString("id"); id != nil && *id != u.ID {
		o.Fail(rest.BadRequest("a user keeps its id"))
	}
	if err := o.Err(); err != nil {
		return nil, err
	}
	if u.ID == t.UserID && !probe.Enabled {
		return nil, rest.Forbidden("you cannot disable yourself")
	}
	hash := ""
	if password != nil {
		if hash, err = HashPassword(*password); err != nil {
			return nil, rest.BadRequest("%s", err.Error())
		}
	}
	u, err = s.UpdateUser(r.Context(), u.ID, func(u *User) error {
		readUser(o, u)
		if hash != "" {
			u.Password = hash
		}
		return o.Err()
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"user": userView(r, u)}, nil
}

func (s *Service) deleteUser(r *rest.Request, t *Token) (any, error) {
	u, err := s.managedUser(r, t, r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if u.ID == t.UserID {
		return nil, rest.Forbidden("you cannot delete yourself")
	}
	return nil, s.DeleteUser(r.Context(), u.ID)
}

// ownPassword changes the caller's own password, for which it must know the old one.
func (s *Service) ownPassword(r *rest.Request, t *Token) (any, error) {
	if r.PathValue("id") != t.UserID {
		return nil, rest.Forbidden("one changes one's own password here; an administrator sets others with PATCH")
	}
	o, err := bodyOf(r, "user")
	if err != nil {
		return nil, err
	}
	o.Only("password", "original_password")
	password, original := o.String("password"), o.String("original_password")
	if err := o.Err(); err != nil {
		return nil, err
	}
	if _, err := s.checkPassword(r.Context(), login{userID: t.UserID, password: original, remote: r.RemoteHost()}); err != nil {
		return nil, err
	}
	hash, err := HashPassword(password)
	if err != nil {
		return nil, rest.BadRequest("%s", err.Error())
	}
	_, err = s.UpdateUser(r.Context(), t.UserID, func(u *User) error { u.Password = hash; return nil })
	return nil, err
}

func readProject(o *rest.Object, p *Project) {
	o.Only("id", "name", "domain_id", "description", "enabled", "is_domain", "parent_id", "tags", "options")
	if s := o.OptString("name"); s != nil {
		p.Name = *s
	}
	if s := o.OptString("description"); s != nil {
		if len(*s) > rest.MaxNameBytes {
			o.Fail(rest.BadRequest("description has more than %d bytes", rest.MaxNameBytes))
		}
		p.Description = *s
	}
	if o.Has("enabled") && !o.Null("enabled") {
		p.Enabled = o.NeedBool("enabled")
	}
	if o.Bool("is_domain") {
		o.Fail(rest.BadRequest("a project cannot act as a domain"))
	}
	if o.Has("tags") && len(o.Strings("tags")) > 0 {
		o.Fail(rest.BadRequest("tags are not supported"))
	}
	noOptions(o)
}

func (s *Service) postProject(r *rest.Request, t *Token) (any, error) {
	o, err := bodyOf(r, "project")
	if err != nil {
		return nil, err
	}
	p := Project{ID: newID(), Enabled: true}
	readProject(o, &p)
	p.Domain = newDomain(o, t)
	if parent := o.OptString("parent_id"); parent != nil && *parent != p.Domain {
		o.Fail(rest.BadRequest("projects have no projects below them: parent_id must be the domain"))
	}
	if o.Has("id") {
		o.Fail(rest.BadRequest("the id of a project is chosen by the server"))
	}
	if err := o.Err(); err != nil {
		return nil, err
	}
	if err := s.manage(r, t, p.Domain); err != nil {
		return nil, err
	}
	if err := checkName("project", p.Name); err != nil {
		return nil, rest.BadRequest("%s", err.Error())
	}
	if _, found, err := s.domain(r.Context(), p.Domain); err != nil || !found {
		return nil, missing(err, "domain", p.Domain)
	}
	if err := s.addProject(r.Context(), p); err != nil {
		return nil, err
	}
	r.Made = p.ID
	return map[string]any{"project": projectView(r, p)}, nil
}

// managedTarget is the domain of a project or domain that the caller must manage.
func (s *Service) managedTarget(r *rest.Request, t *Token, kind, id string) error {
	a, err := s.authority(r.Context(), t)
	if err != nil {
		return err
	}
	domain, found := id, false
	if kind == "projects" {
		var p Project
		p, found, err = s.project(r.Context(), id)
		domain = p.Domain
	} else {
		_, found, err = s.domain(r.Context(), id)
	}
	switch {
	case err != nil:
		return err
	case len(a.domains) == 0 || found && !a.manages(domain):
		return rest.Forbidden("this needs the role admin on the domain, or on domain %s, and in the token's scope", rootDomain)
	case !found:
		return rest.NotFound("Could not find %s: %.80s.", kind[:len(kind)-1], id)
	}
	return nil
}

func (s *Service) patchProject(r *rest.Request, t *Token) (any, error) {
	id := r.PathValue("id")
	if err := s.managedTarget(r, t, "projects", id); err != nil {
		return nil, err
	}
	o, err := bodyOf(r, "project")
	if err != nil {
		return nil, err
	}
	p, err := s.UpdateProject(r.Context(), id, func(p *Project) error {
		readProject(o, p)
		for key, want := range map[string]string{"id": p.ID, "domain_id": p.Domain, "parent_id": p.Domain} {
			if v := o.OptString(key); v != nil && *v != want {
				o.Fail(rest.BadRequest("%s cannot change", key))
			}
		}
		return o.Err()
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"project": projectView(r, p)}, nil
}

func (s *Service) deleteProject(r *rest.Request, t *Token) (any, error) {
	if err := s.managedTarget(r, t, "projects", r.PathValue("id")); err != nil {
		return nil, err
	}
	return nil, s.DeleteProject(r.Context(), r.PathValue("id"))
}

// changeRole gives a role to a user on a project or domain, or takes it away. The caller must manage both.
func (s *Service) changeRole(kind string, give bool) func(*rest.Request, *Token) (any, error) {
	return func(r *rest.Request, t *Token) (any, error) {
		target := r.PathValue("id")
		if err := s.managedTarget(r, t, kind, target); err != nil {
			return nil, err
		}
		u, err := s.managedUser(r, t, r.PathValue("user_id"))
		if err != nil {
			return nil, err
		}
		role, err := roleOf(r.PathValue("role_id"))
		if err != nil {
			return nil, err
		}
		if !give && u.ID == t.UserID && kind == "domains" && role == RoleAdmin {
			return nil, rest.Forbidden("you cannot take the role admin on a domain from yourself")
		}
		project, domain := target, ""
		if kind == "domains" {
			project, domain = "", target
		}
		had := false
		err = s.assign(r.Context(), u.ID, project, domain, func(roles []string) []string {
			had = slices.Contains(roles, role)
			roles = slices.DeleteFunc(roles, func(x string) bool { return x == role })
			if give {
				roles = append(roles, role)
			}
			return roles
		})
		if err == nil && !give && !had {
			err = rest.NotFound("the user has no role %s there", role)
		}
		return nil, err
	}
}

package identity

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
)

// login is what a client asks a token for.
type login struct {
	method   string // password, token, application_credential
	remote   string // the client's address without its port
	userID   string
	userName string
	userDom  named
	password string
	token    string
	cred     named // application credential
	secret   string
	scope    scope
}

// named is a thing by id or by name.
type named struct{ id, name string }

func (n named) empty() bool { return n.id == "" && n.name == "" }

type scope struct {
	project, domain       named
	projectDomain         named
	hasProject, hasDomain bool
}

func readNamed(o *rest.Object) named {
	var n named
	if s := o.OptString("id"); s != nil {
		n.id = *s
	}
	if s := o.OptString("name"); s != nil {
		n.name = *s
	}
	return n
}

// readLogin reads the body of POST /v3/auth/tokens.
func readLogin(r *rest.Request) (login, error) {
	l := login{remote: r.RemoteHost()}
	body, err := rest.ReadObject(r)
	if err != nil {
		return l, err
	}
	auth := body.Object("auth")
	ident := auth.Object("identity")
	methods := ident.Strings("methods")
	if ident.Err() == nil && len(methods) != 1 {
		ident.Fail(rest.BadRequest(`"auth.identity.methods" must name one method: "password", "token" or "application_credential"`))
	}
	if err := body.Err(); err != nil {
		return l, err
	}
	switch l.method = methods[0]; l.method {
	case "password":
		user := ident.Object("password").Object("user")
		n := readNamed(user)
		l.userID, l.userName = n.id, n.name
		l.userDom = readNamed(user.OptObject("domain"))
		if p := user.OptString("password"); p != nil {
			l.password = *p
		} else {
			user.Fail(rest.BadRequest(`"auth.identity.password.user.password" is missing`))
		}
		if l.userID == "" && (l.userName == "" || l.userDom.empty()) {
			user.Fail(rest.BadRequest(`"auth.identity.password.user" needs an id, or a name and a domain`))
		}
	case "application_credential":
		cred := ident.Object("application_credential")
		l.cred, l.secret = readNamed(cred), cred.String("secret")
		switch {
		case l.cred.id != "":
		case l.cred.name == "":
			cred.Fail(rest.BadRequest(`"auth.identity.application_credential" needs an id, or a name and a user`))
		default:
			user := cred.Object("user")
			n := readNamed(user)
			l.userID, l.userName = n.id, n.name
			l.userDom = readNamed(user.OptObject("domain"))
			if l.userID == "" && (l.userName == "" || l.userDom.empty()) {
				user.Fail(rest.BadRequest(`"auth.identity.application_credential.user" needs an id, or a name and a domain`))
			}
		}
	case "token":
		l.token = ident.Object("token").String("id")
	default:
		return l, &rest.Error{Status: http.StatusUnauthorized, Message: "Attempted to authenticate with an unsupported method."}
	}
	readScope(auth, &l.scope)
	return l, body.Err()
}

func readScope(auth *rest.Object, sc *scope) {
	switch auth.Type("scope") {
	case "nothing", "null":
		return
	case "string":
		if s := auth.OptString("scope"); s != nil && *s != "unscoped" {
			auth.Fail(rest.BadRequest(`"auth.scope" must be an object or "unscoped"`))
		}
		return
	}
	o := auth.Object("scope")
	if auth.Err() == nil && len(o.Keys()) != 1 {
		o.Fail(rest.BadRequest(`"auth.scope" must hold one of project, domain and unscoped`))
		return
	}
	for _, k := range o.Keys() {
		switch k {
		case "project":
			in := o.Object("project")
			sc.hasProject, sc.project = true, readNamed(in)
			sc.projectDomain = readNamed(in.OptObject("domain"))
			if sc.project.empty() {
				in.Fail(rest.BadRequest(`"auth.scope.project" needs an id, or a name and a domain`))
			}
		case "domain":
			in := o.Object("domain")
			sc.hasDomain, sc.domain = true, readNamed(in)
			if sc.domain.empty() {
				in.Fail(rest.BadRequest(`"auth.scope.domain" needs an id or a name`))
			}
		case "unscoped":
		default:
			o.Fail(rest.BadRequest(`"auth.scope" must hold one of project, domain and unscoped, not %q`, k))
		}
	}
}

// domainID resolves a domain by id or name; "" if there is none.
func (s *Service) domainID(ctx context.Context, n named) (string, error) {
	if n.id != "" {
		return n.id, nil
	}
	return s.idByName(ctx, "domain", "", n.name)
}

// login checks what the client offered and issues a token in the scope asked for.
func (s *Service) login(ctx context.Context, l login) (string, *Token, error) {
	t := Token{Methods: []string{l.method}}
	var home string // the user's domain, for a project's name without one
	switch l.method {
	case "application_credential":
		return s.loginByCredential(ctx, l)
	case "token":
		old, err := s.Validate(ctx, l.token)
		if err != nil {
			return "", nil, unauthorizedUnless(err)
		}
		// A token from a token ends with it: else one login would last for ever.
		t.UserID, t.ExpiresAt, home = old.UserID, old.ExpiresAt, old.User.Domain
		t.Methods = append(t.Methods, old.Methods...)
		t.Generation, t.AppCred = old.Generation, old.AppCred
		if old.AppCred != "" { // it cannot leave the project of its credential
			if l.scope.hasDomain || l.scope.hasProject && l.scope.project.id != old.ProjectID {
				return "", nil, errUnauthorized()
			}
			t.ProjectID = old.ProjectID
		}
		if len(t.Methods) > 2 {
			t.Methods = t.Methods[:2]
		}
	default:
		u, err := s.checkPassword(ctx, l)
		if err != nil {
			return "", nil, err
		}
		t.UserID, t.Generation, home = u.ID, u.Generation, u.Domain
	}
	var err error
	switch {
	case l.scope.hasProject:
		t.ProjectID = l.scope.project.id
		if t.ProjectID == "" {
			dom := home
			if !l.scope.projectDomain.empty() {
				if dom, err = s.domainID(ctx, l.scope.projectDomain); err != nil {
					return "", nil, err
				}
			}
			if t.ProjectID, err = s.idByName(ctx, "project", dom, l.scope.project.name); err != nil {
				return "", nil, err
			}
		}
		if t.ProjectID == "" {
			return "", nil, errUnauthorized()
		}
	case l.scope.hasDomain:
		if t.DomainID, err = s.domainID(ctx, l.scope.domain); err != nil {
			return "", nil, err
		}
		if t.DomainID == "" {
			return "", nil, errUnauthorized()
		}
	}
	secret, full, err := s.issue(ctx, t)
	if err != nil {
		return "", nil, unauthorizedUnless(err)
	}
	return secret, full, nil
}

// checkPassword finds the user and compares the password. A user that does not exist takes as long
// and gets the same answer.
func (s *Service) checkPassword(ctx context.Context, l login) (User, error) {
	id, who, err := s.loginUser(ctx, l)
	if err != nil {
		return User{}, err
	}
	u, found, err := s.user(ctx, id)
	if err != nil {
		return User{}, err
	}
	candidate := &u
	if !found || u.Password == "" {
		candidate = nil
	}
	return u, s.verify(ctx, who, l.remote, candidate, l.password)
}

// verify compares a secret with the one in candidate (nil if there is none), within the bounds of logins.
// All failures of who from remote count together.
func (s *Service) verify(ctx context.Context, who, remote string, candidate *User, secret string) error {
	leave, err := s.hasher.enter()
	if err != nil {
		return err
	}
	defer leave()
	a, err := s.limit.begin(ctx, who, remote)
	if err != nil {
		return err
	}
	ok, err := s.hasher.check(ctx, candidate, secret)
	switch {
	case err != nil:
		a.dropped()
		return err
	case !ok:
		a.failed()
		return errUnauthorized()
	}
	a.passed()
	return nil
}

// loginUser resolves the user a login names: its id, "" if there is none, and the word under which
// failures are counted, which is there either way and never long.
func (s *Service) loginUser(ctx context.Context, l login) (id, who string, err error) {
	if id = l.userID; id != "" {
		return id, hash("user " + id), nil
	}
	dom, err := s.domainID(ctx, l.userDom)
	if err != nil {
		return "", "", err
	}
	if id, err = s.idByName(ctx, "user", dom, l.userName); err != nil {
		return "", "", err
	}
	if id == "" {
		return "", hash("name " + dom + "/" + l.userName), nil
	}
	return id, hash("user " + id), nil
}

func unauthorizedUnless(err error) error {
	if errors.Is(err, ErrNoToken) {
		return errUnauthorized()
	}
	return err
}

// timeLayoutZ is Keystone's: UTC, microseconds and a Z, which its clients insist on.
const timeLayoutZ = "2006-01-02T15:04:05.000000Z"

func timeZ(t time.Time) string { return t.UTC().Format(timeLayoutZ) }

type ref struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

type scopedRef struct {
	Domain ref    `json:"domain"`
	ID     string `json:"id"`
	Name   string `json:"name"`
}

type userRef struct {
	scopedRef
	PasswordExpiresAt *string `json:"password_expires_at"`
}

type tokenBody struct {
	Methods   []string       `json:"methods"`
	User      userRef        `json:"user"`
	AuditIDs  []string       `json:"audit_ids"`
	IssuedAt  string         `json:"issued_at"`
	ExpiresAt string         `json:"expires_at"`
	Project   *scopedRef     `json:"project,omitempty"`
	Domain    *ref           `json:"domain,omitempty"`
	IsDomain  *bool          `json:"is_domain,omitempty"`
	Roles     []ref          `json:"roles,omitempty"`
	Catalog   []catalogEntry `json:"catalog,omitempty"`

	Credential *credentialRef `json:"application_credential,omitempty"`
}

// credentialRef tells a client which application credential its token stems from.
type credentialRef struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Restricted bool   `json:"restricted"`
}

// tokenView is the answer to a login and to a validation.
func (s *Service) tokenView(r *rest.Request, t *Token) any {
	b := tokenBody{
		Methods: t.Methods,
		User: userRef{scopedRef: scopedRef{
			ID: t.User.ID, Name: t.User.Name, Domain: ref{t.UserDomain.ID, t.UserDomain.Name},
		}},
		AuditIDs: []string{t.AuditID}, IssuedAt: timeZ(t.IssuedAt), ExpiresAt: timeZ(t.ExpiresAt),
	}
	for _, name := range t.Roles {
		b.Roles = append(b.Roles, ref{ID: stableID("role", name), Name: name})
	}
	if c := t.Credential; c != nil {
		b.Credential = &credentialRef{ID: c.ID, Name: c.Name, Restricted: !c.Unrestricted}
	}
	switch {
	case t.Project != nil:
		no := false
		b.IsDomain = &no
		b.Project = &scopedRef{
			ID: t.Project.ID, Name: t.Project.Name, Domain: ref{t.ProjectDomain.ID, t.ProjectDomain.Name},
		}
	case t.Domain != nil:
		b.Domain = &ref{t.Domain.ID, t.Domain.Name}
	}
	if _, no := r.URL.Query()["nocatalog"]; !no && (t.Project != nil || t.Domain != nil) {
		b.Catalog = s.catalog(r.Base, t)
	}
	return map[string]any{"token": b}
}

// tried is the id of the user that a failed login named; "" if there is no such user: what stands in the place of a
// name may be a password.
func (s *Service) tried(ctx context.Context, l login) string {
	var id string
	var err error
	switch l.method {
	case "password":
		id, _, err = s.loginUser(ctx, l)
	case "application_credential":
		_, id, _, err = s.findCredential(ctx, l)
	}
	if err != nil {
		return ""
	}
	if _, found, err := s.user(ctx, id); err != nil || !found {
		return ""
	}
	return id
}

func (s *Service) postToken(w http.ResponseWriter, r *rest.Request) error {
	l, err := readLogin(r)
	if err != nil {
		return err
	}
	secret, t, err := s.login(r.Context(), l)
	if err != nil {
		r.Caller.User = s.tried(r.Context(), l)
		return err
	}
	r.Caller.User, r.Credential = t.UserID, t.AppCred
	if t.Project != nil {
		r.Caller.Project = lockstep.ProjectID(t.Project.ID)
	}
	w.Header().Set("X-Subject-Token", secret)
	w.Header().Set("Vary", "X-Auth-Token")
	return rest.WriteJSON(w, http.StatusCreated, s.tokenView(r, t))
}

// caller validates the X-Auth-Token of a call to this API.
func (s *Service) caller(r *rest.Request) (*Token, error) {
	t, err := s.Validate(r.Context(), strings.TrimSpace(r.Header.Get("X-Auth-Token")))
	if err != nil {
		return nil, unauthorizedUnless(err)
	}
	return t, nil
}

// subject finds the token a call is about; only its own user and admins may ask.
func (s *Service) subject(r *rest.Request) (string, *Token, error) {
	caller, err := s.caller(r)
	if err != nil {
		return "", nil, err
	}
	secret := strings.TrimSpace(r.Header.Get("X-Subject-Token"))
	if secret == "" {
		return "", nil, rest.BadRequest("the header X-Subject-Token is missing")
	}
	t, err := s.Validate(r.Context(), secret)
	if errors.Is(err, ErrNoToken) {
		return "", nil, rest.NotFound("This is not a recognized token.")
	}
	if err != nil {
		return "", nil, err
	}
	if a, err := s.authority(r.Context(), caller); err != nil {
		return "", nil, err
	} else if t.UserID != caller.UserID && !a.manages(t.User.Domain) {
		return "", nil, rest.Forbidden("You are not authorized to look at another user's token.")
	}
	return secret, t, nil
}

func (s *Service) getToken(w http.ResponseWriter, r *rest.Request) error {
	secret, t, err := s.subject(r)
	if err != nil {
		return err
	}
	w.Header().Set("X-Subject-Token", secret)
	w.Header().Set("Vary", "X-Auth-Token")
	return rest.WriteJSON(w, http.StatusOK, s.tokenView(r, t))
}

func (s *Service) deleteToken(w http.ResponseWriter, r *rest.Request) error {
	secret, _, err := s.subject(r)
	if err != nil {
		return err
	}
	if err := s.Revoke(r.Context(), secret); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusNoContent)
}

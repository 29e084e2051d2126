package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/store"
)

const v3 = "/identity/v3"

// roleID is the id of a role as the API lists it.
func (r *rig) roleID(name string) string {
	r.t.Helper()
	a := r.do("GET", v3+"/roles?name="+name, "")
	_, rest, ok := strings.Cut(a.body, `"id":"`)
	if !ok {
		r.t.Fatalf("no role %s: %s", name, a.body)
	}
	return rest[:32]
}

func (r *rig) is(a answer, status int, texts ...string) {
	r.t.Helper()
	for _, text := range texts {
		if !strings.Contains(a.body, text) {
			r.t.Errorf("%s %s: %s is not in %s", a.Request.Method, a.Request.URL, text, a.body)
		}
	}
	if a.StatusCode != status {
		r.t.Errorf("%s %s: %d %s, want %d", a.Request.Method, a.Request.URL, a.StatusCode, a.body, status)
	}
}

// enter is a login that may fail.
func (r *rig) enter(ident, scope string) (answer, string) {
	r.t.Helper()
	if scope != "" {
		scope = `,"scope":` + scope
	}
	a := r.do("POST", v3+"/auth/tokens", `{"auth":{"identity":`+ident+scope+`}}`)
	return a, a.Header.Get("X-Subject-Token")
}

func pwIdent(user, pw string) string {
	return `{"methods":["password"],"password":{"user":{"id":"` + user + `","password":"` + pw + `"}}}`
}

func credIdent(cred, secret string) string {
	return `{"methods":["application_credential"],"application_credential":{` + cred + `,"secret":"` + secret + `"}}`
}

// TestUserLife: a user is made, gets a role, works, and every way to end its access ends its tokens at
// once and for good.
func TestUserLife(t *testing.T) {
	r := newRig(t)
	a := r.do("POST", v3+"/users", `{"user":{"name":"bob","password":"first","email":"b@x","domain_id":"default"}}`)
	r.is(a, 201, `"name":"bob"`, `"email":"b@x"`)
	if strings.Contains(a.body, "argon2") || strings.Contains(a.body, "first") {
		t.Error("the answer holds the password")
	}
	bob := a.str(t, "user.id")
	r.is(r.do("POST", v3+"/users", `{"user":{"name":"bob","password":"x"}}`), 409)
	r.is(r.do("POST", v3+"/users", `{"user":{"name":"eve","passwort":"x"}}`), 400, "passwort")
	a = r.do("POST", v3+"/projects", `{"project":{"name":"p9","description":"d","is_domain":false,"tags":[],"parent_id":"default"}}`)
	r.is(a, 201, `"description":"d"`)
	p9 := a.str(t, "project.id")
	scope := `{"project":{"id":"` + p9 + `"}}`
	in := func(pw string) (answer, string) { return r.enter(pwIdent(bob, pw), scope) }
	works := func(tok string) bool {
		return r.do("GET", "/v2/"+p9+"/volumes", "", "X-Auth-Token: "+tok).StatusCode == 200
	}
	a, _ = in("first")
	r.is(a, 401)
	grant := v3 + "/projects/" + p9 + "/users/" + bob + "/roles"
	member := grant + "/" + r.roleID("member")
	r.is(r.do("GET", member, ""), 404)
	r.is(r.do("PUT", member, ""), 204)
	r.is(r.do("PUT", member, ""), 204)
	r.is(r.do("HEAD", member, ""), 204)
	r.is(r.do("GET", grant, ""), 200, `"name":"member"`)
	r.is(r.do("PUT", grant+"/nope", ""), 404)
	r.is(r.do("GET", v3+"/role_assignments?include_names=1&user.id="+bob, ""), 200, `"name":"bob"`, `"name":"p9"`, `"name":"member"`)
	r.is(r.do("GET", v3+"/role_assignments?scope.project.id=none", ""), 200, `"role_assignments":[]`)
	r.is(r.do("GET", v3+"/role_assignments?nope=1", ""), 400)
	_, tok := in("first")
	if !works(tok) {
		t.Fatal("bob cannot work")
	}
	// What a member may not do.
	as := "X-Auth-Token: " + tok
	r.is(r.do("POST", v3+"/users", `{"user":{"name":"m","password":"x"}}`, as), 403)
	r.is(r.do("PATCH", v3+"/users/"+bob, `{"user":{"email":"m"}}`, as), 403)
	r.is(r.do("PUT", grant+"/"+r.roleID("admin"), "", as), 403)
	r.is(r.do("DELETE", v3+"/users/"+r.boot.UserID, "", as), 403)
	r.is(r.do("POST", v3+"/users/"+r.boot.UserID+"/password", `{"user":{"password":"x","original_password":"first"}}`, as), 403)

	// The own password: the old one is needed, and the tokens end.
	own := v3 + "/users/" + bob + "/password"
	r.is(r.do("POST", own, `{"user":{"password":"second","original_password":"no"}}`, as), 401)
	r.is(r.do("POST", own, `{"user":{"password":"second","original_password":"first"}}`, as), 204)
	if works(tok) {
		t.Error("a token outlived the password")
	}
	_, tok = in("second")
	r.is(r.do("PATCH", v3+"/users/"+bob, `{"user":{"enabled":false}}`), 200, `"enabled":false`)
	a, _ = in("second")
	r.is(a, 401)
	r.is(r.do("PATCH", v3+"/users/"+bob, `{"user":{"enabled":true,"name":"rob"}}`), 200, `"name":"rob"`)
	if works(tok) {
		t.Error("a token came back with its user")
	}
	r.is(r.do("GET", v3+"/users?name=rob", ""), 200, bob)
	r.is(r.do("POST", v3+"/users", `{"user":{"name":"bob","password":"x"}}`), 201) // the name is free
	_, tok = in("second")
	if !works(tok) {
		t.Fatal("bob cannot work again")
	}
	r.is(r.do("DELETE", member, ""), 204)
	r.is(r.do("DELETE", member, ""), 404)
	if works(tok) {
		t.Error("a token outlived the role")
	}
	r.is(r.do("PUT", member, ""), 204)
	_, tok = in("second")
	r.is(r.do("DELETE", v3+"/users/"+bob, ""), 204)
	r.is(r.do("DELETE", v3+"/users/"+bob, ""), 404)
	if works(tok) {
		t.Error("a token outlived its user")
	}
	r.is(r.do("DELETE", v3+"/users/"+r.boot.UserID, ""), 403) // oneself
	r.is(r.do("PATCH", v3+"/users/"+r.boot.UserID, `{"user":{"enabled":false}}`), 403)
	r.is(r.do("DELETE", v3+"/projects/"+r.project, ""), 409)
	r.is(r.v2("GET", "/volumes", ""), 200) // and is enabled as before
	r.is(r.do("PATCH", v3+"/projects/"+p9, `{"project":{"name":"p10"}}`), 200, `"name":"p10"`)
	r.is(r.do("DELETE", v3+"/projects/"+p9, ""), 204)
	r.is(r.do("GET", v3+"/projects/"+p9, ""), 404)
}

// TestDomainsApart: an administrator of a project manages nobody, one of a domain manages that alone.
func TestDomainsApart(t *testing.T) {
	r := newRig(t)
	a := r.do("POST", v3+"/domains", `{"domain":{"name":"Two"}}`)
	r.is(a, 201)
	two := a.str(t, "domain.id")
	user := func(name, domain string) string {
		a := r.do("POST", v3+"/users", `{"user":{"name":"`+name+`","password":"`+name+`","domain_id":"`+domain+`"}}`)
		r.is(a, 201)
		return a.str(t, "user.id")
	}
	dora, pete, root2 := user("dora", two), user("pete", "default"), user("root2", two)
	admin := r.roleID("admin")
	r.is(r.do("PUT", v3+"/domains/"+two+"/users/"+dora+"/roles/"+admin, ""), 204)
	r.is(r.do("PUT", v3+"/domains/default/users/"+root2+"/roles/"+admin, ""), 204)
	r.is(r.do("PUT", v3+"/projects/"+r.project+"/users/"+pete+"/roles/"+admin, ""), 204)
	_, pt := r.enter(pwIdent(pete, "pete"), `{"project":{"id":"`+r.project+`"}}`)
	_, dt := r.enter(pwIdent(dora, "dora"), `{"domain":{"id":"`+two+`"}}`)
	p, d := "X-Auth-Token: "+pt, "X-Auth-Token: "+dt
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/users", `{"user":{"name":"x","password":"x"}}`},
		{"PATCH", "/users/" + dora, `{"user":{"password":"x"}}`},
		{"DELETE", "/users/" + dora, ""},
		{"POST", "/projects", `{"project":{"name":"x"}}`},
		{"PATCH", "/projects/" + r.project, `{"project":{"name":"x"}}`},
		{"DELETE", "/projects/" + r.project, ""},
		{"PUT", "/projects/" + r.project + "/users/" + dora + "/roles/" + admin, ""},
		{"PUT", "/domains/default/users/" + pete + "/roles/" + admin, ""},
		{"POST", "/domains", `{"domain":{"name":"x"}}`},
		{"PATCH", "/domains/" + two, `{"domain":{"name":"x"}}`},
		{"DELETE", "/domains/" + two, ""},
	} {
		r.is(r.do(c.method, v3+c.path, c.body, p), 403)
	}
	a = r.do("GET", v3+"/users", "", p)
	r.is(a, 200, pete)
	if strings.Contains(a.body, dora) {
		t.Error("a project's administrator sees all users")
	}
	a = r.do("POST", v3+"/users", `{"user":{"name":"new","password":"x"}}`, d) // her own domain by default
	r.is(a, 201, two)
	created := a.str(t, "user.id")
	r.is(r.do("DELETE", v3+"/users/"+created, "", d), 204)
	r.is(r.do("POST", v3+"/users", `{"user":{"name":"new","password":"x","domain_id":"default"}}`, d), 403)
	r.is(r.do("PATCH", v3+"/users/"+r.boot.UserID, `{"user":{"password":"x"}}`, d), 403)
	r.is(r.do("PATCH", v3+"/users/"+root2, `{"user":{"password":"x"}}`, d), 403, "manages a domain")
	r.is(r.do("PUT", v3+"/projects/"+r.project+"/users/"+dora+"/roles/"+admin, "", d), 403)
	r.is(r.do("PUT", v3+"/domains/default/users/"+dora+"/roles/"+admin, "", d), 403)
	r.is(r.do("DELETE", v3+"/domains/"+two+"/users/"+dora+"/roles/"+admin, "", d), 403, "yourself")
	r.is(r.do("DELETE", v3+"/domains/"+two, ""), 403, "disable it")
	r.is(r.do("PATCH", v3+"/domains/"+two, `{"domain":{"enabled":false}}`), 200)
	a, _ = r.enter(pwIdent(dora, "dora"), "")
	r.is(a, 401)
	r.is(r.do("DELETE", v3+"/domains/"+two, ""), 409, "2 users")
	r.is(r.do("PATCH", v3+"/domains/default", `{"domain":{"enabled":false}}`), 403)
}

// TestApplicationCredentials: made, used in both ways, a subset of roles, ended by everything that must end them.
func TestApplicationCredentials(t *testing.T) {
	r := newRig(t)
	creds := v3 + "/users/" + r.boot.UserID + "/application_credentials"
	issue := func(body string, headers ...string) (answer, string, string) {
		a := r.do("POST", creds, `{"application_credential":`+body+`}`, headers...)
		if a.StatusCode != 201 {
			return a, "", ""
		}
		return a, a.str(t, "application_credential.id"), a.str(t, "application_credential.secret")
	}
	a, id, secret := issue(`{"name":"ci","roles":[{"name":"member"}]}`)
	r.is(a, 201, `"unrestricted":false`)
	if len(secret) < 64 {
		t.Errorf("secret of %d characters", len(secret))
	}
	a, _, _ = issue(`{"name":"ci"}`)
	r.is(a, 409)
	a, _, _ = issue(`{"name":"r","roles":[{"name":"nobody"}]}`)
	r.is(a, 400, "not among")
	a, _, _ = issue(`{"name":"past","expires_at":"2001-01-01T00:00:00Z"}`)
	r.is(a, 400, "future")
	a, tok := r.enter(credIdent(`"id":"`+id+`"`, secret), "")
	r.is(a, 201, `"restricted":true`, `"id":"`+r.project+`"`)
	if !strings.Contains(a.body, `"roles":[{"id":"`+r.roleID("member")+`","name":"member"},{"id":"`+r.roleID("reader")+`","name":"reader"}]`) {
		t.Errorf("roles: %s", a.body)
	}
	a, _ = r.enter(credIdent(`"name":"ci","user":{"name":"admin","domain":{"id":"default"}}`, secret), "")
	r.is(a, 201)
	for _, bad := range []string{credIdent(`"id":"`+id+`"`, "no"), credIdent(`"id":"none"`, secret), credIdent(`"name":"ci","user":{"id":"none"}`, secret)} {
		a, _ = r.enter(bad, "")
		r.is(a, 401)
	}
	a, _ = r.enter(credIdent(`"id":"`+id+`"`, secret), `{"domain":{"id":"default"}}`)
	r.is(a, 401)
	as := "X-Auth-Token: " + tok
	r.is(r.v2("GET", "/volumes", "", as), 200)
	r.is(r.do("POST", v3+"/users", `{"user":{"name":"x","password":"x"}}`, as), 403)
	a, _, _ = issue(`{"name":"child"}`, as)
	r.is(a, 403, "restricted")
	r.is(r.do("DELETE", creds+"/"+id, "", as), 403)
	a, child := r.enter(`{"methods":["token"],"token":{"id":"`+tok+`"}}`, `{"project":{"id":"`+r.project+`"}}`)
	r.is(a, 201, `"restricted":true`)
	a, _ = r.enter(`{"methods":["token"],"token":{"id":"`+tok+`"}}`, `{"domain":{"id":"default"}}`)
	r.is(a, 401)
	a = r.do("GET", creds, "")
	r.is(a, 200, id)
	if strings.Contains(a.body, "argon2") || strings.Contains(r.log.String(), secret) {
		t.Error("the secret is shown")
	}
	r.is(r.do("GET", creds+"/"+id, ""), 200, `"name":"ci"`)
	r.is(r.do("DELETE", creds+"/"+id, ""), 204)
	for _, x := range []string{tok, child} {
		r.is(r.v2("GET", "/volumes", "", "X-Auth-Token: "+x), 401)
	}

	// It ends by its time, and its token with it.
	a, id, secret = issue(`{"name":"short","expires_at":"` + r.now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05.000000") + `"}`)
	r.is(a, 201)
	_, tok = r.enter(credIdent(`"id":"`+id+`"`, secret), "")
	r.is(r.v2("GET", "/volumes", "", "X-Auth-Token: "+tok), 200)
	r.advance(61 * time.Minute)
	r.is(r.v2("GET", "/volumes", "", "X-Auth-Token: "+tok), 401)
	a, _ = r.enter(credIdent(`"id":"`+id+`"`, secret), "")
	r.is(a, 401)

	// It stays with a role that another one implies, and ends with the last of these, for good.
	w := r.person("w", "default", map[string]string{r.project: "member"}, inProject(r.project))
	creds = v3 + "/users/" + w.id + "/application_credentials"
	a, _, _ = issue(`{"name":"more","roles":[{"name":"operator"}]}`, w.as) // a role that the user has not, and no other implies
	r.is(a, 400, "not among")
	a, id, secret = issue(`{"name":"role","roles":[{"name":"reader"}]}`, w.as)
	r.is(a, 201)
	on := v3 + "/projects/" + r.project + "/users/" + w.id + "/roles/"
	r.is(r.do("PUT", on+r.roleID("operator"), ""), 204)
	r.is(r.do("DELETE", on+r.roleID("member"), ""), 204)
	a, _ = r.enter(credIdent(`"id":"`+id+`"`, secret), "")
	r.is(a, 201)
	r.is(r.do("DELETE", on+r.roleID("operator"), ""), 204)
	r.is(r.do("PUT", on+r.roleID("operator"), ""), 204)
	a, _ = r.enter(credIdent(`"id":"`+id+`"`, secret), "")
	r.is(a, 401)
}

// TestLoginThrottle: failures of one user from one address are bounded, successes are not, and another user
// is not concerned.
func TestLoginThrottle(t *testing.T) {
	r := newRig(t)
	u, err := r.users.CreateUser(t.Context(), "default", "bob", "bob")
	ok(t, err)
	for i := range 25 {
		a, _ := r.enter(pwIdent(u.ID, "bob"), "")
		if a.StatusCode != 201 {
			t.Fatalf("login %d: %d", i, a.StatusCode)
		}
	}
	for i := range 10 {
		a, _ := r.enter(pwIdent(u.ID, fmt.Sprint(i)), "")
		r.is(a, 401)
	}
	a, _ := r.enter(pwIdent(u.ID, "bob"), "")
	r.is(a, 429, "too many failed logins")
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	a, _ = r.enter(pwIdent(r.boot.UserID, password), "")
	r.is(a, 201)
	r.advance(5*time.Minute + time.Second)
	a, _ = r.enter(pwIdent(u.ID, "bob"), "")
	r.is(a, 201)
	a, _ = r.enter(pwIdent(u.ID, ""), "")
	r.is(a, 401)
	ok(t, r.users.Assign(t.Context(), identity.Assignment{User: u.ID, Project: r.project, Roles: []string{identity.RoleMember}}))
	// A role that no rule knows would look like a bound and be none.
	err = r.users.Assign(t.Context(), identity.Assignment{User: u.ID, Project: r.project, Roles: []string{"auditor"}})
	if !errors.Is(err, identity.ErrInvalid) {
		t.Errorf("the role auditor was given: %v", err)
	}
}

// TestLoginThrottleOfCredentials: guesses at the secret of one credential count together, whatever else the
// login says and whichever way the credential is named.
func TestLoginThrottleOfCredentials(t *testing.T) {
	r := newRig(t)
	a := r.do("POST", v3+"/users/"+r.boot.UserID+"/application_credentials", `{"application_credential":{"name":"ci","secret":"short"}}`)
	r.is(a, 201)
	id := a.str(t, "application_credential.id")
	for i := range 10 {
		cred := fmt.Sprintf(`"id":"%s","name":"n%d"`, id, i)
		if i%2 == 0 {
			cred = `"name":"ci","user":{"id":"` + r.boot.UserID + `"}`
		}
		a, _ := r.enter(credIdent(cred, "guess"), "")
		r.is(a, 401)
	}
	for _, cred := range []string{`"id":"` + id + `","name":"new"`, `"name":"ci","user":{"name":"admin","domain":{"id":"default"}}`} {
		a, _ := r.enter(credIdent(cred, "short"), "")
		r.is(a, 429)
	}
}

// TestIdentityPages: lists come in pages by id with links that lead through them; without a limit in one.
func TestIdentityPages(t *testing.T) {
	r := newRig(t)
	want := map[string]bool{r.boot.UserID: true}
	for i := range 4 {
		u, err := r.users.CreateUser(t.Context(), "default", fmt.Sprint("u", i), "x")
		ok(t, err)
		want[u.ID] = true
		p, err := r.users.CreateProject(t.Context(), "default", fmt.Sprint("q", i))
		ok(t, err)
		ok(t, r.users.Assign(t.Context(), identity.Assignment{User: r.boot.UserID, Project: p.ID, Roles: []string{"member"}}))
	}
	type list struct {
		Users    []struct{ ID string }
		Projects []struct{ ID string }
		Domains  []struct{ ID string }
		Links    struct{ Next, Previous *string }
	}
	get := func(path string) (l list) {
		t.Helper()
		a := r.do("GET", path, "")
		r.is(a, 200)
		ok(t, json.Unmarshal([]byte(a.body), &l))
		return l
	}
	var ids []string
	path := v3 + "/users?limit=2&domain_id=default"
	for n := 0; path != ""; n++ {
		l := get(path)
		for _, u := range l.Users {
			ids = append(ids, u.ID)
		}
		if last := l.Links.Next == nil; last != (n == 2) || len(l.Users) > 2 {
			t.Fatalf("page %d of %s: %+v", n, path, l)
		}
		if path = ""; l.Links.Next != nil {
			u, err := url.Parse(*l.Links.Next)
			ok(t, err)
			if u.Host == "" || u.Query().Get("domain_id") != "default" {
				t.Errorf("next: %s", u)
			}
			path = u.RequestURI()
		}
	}
	if len(ids) != len(want) || !slices.IsSorted(ids) {
		t.Errorf("pages held %v, want %v", ids, want)
	}
	for _, id := range ids {
		if !want[id] {
			t.Errorf("user %s came twice, or is none", id)
		}
		delete(want, id)
	}
	if l := get(v3 + "/users"); len(l.Users) != 5 || l.Links.Next != nil {
		t.Errorf("without a limit: %+v", l)
	}
	// The last item seen may be gone when the next page is asked for.
	if ids[1] != r.boot.UserID {
		r.is(r.do("DELETE", v3+"/users/"+ids[1], ""), 204)
		if l := get(v3 + "/users?limit=2&marker=" + ids[1]); len(l.Users) != 2 || l.Users[0].ID != ids[2] {
			t.Errorf("after a marker that is gone: %+v", l)
		}
	}
	for _, path := range []string{"/projects", "/auth/projects", "/users/" + r.boot.UserID + "/projects"} {
		first := get(v3 + path + "?limit=4")
		if len(first.Projects) != 4 || first.Links.Next == nil {
			t.Fatalf("%s: %+v", path, first)
		}
		rest := get(v3 + path + "?limit=4&marker=" + first.Projects[3].ID)
		if len(rest.Projects) != 1 || rest.Links.Next != nil || rest.Projects[0].ID <= first.Projects[3].ID {
			t.Errorf("%s: %+v", path, rest)
		}
	}
	for _, path := range []string{"/domains", "/auth/domains"} {
		if l := get(v3 + path + "?marker=default"); len(l.Domains) != 0 {
			t.Errorf("%s after the last: %+v", path, l)
		}
	}
	// More than the largest page are given to who asks for no pages only.
	for i := range 1001 {
		id := fmt.Sprintf("d%04d", i)
		_, _, err := r.store.Txn(t.Context(), nil, []store.Op{{Key: "identity/domains/" + id, Value: store.Encode(identity.Domain{ID: id})}})
		ok(t, err)
	}
	if l := get(v3 + "/domains?limit=5000"); len(l.Domains) != 1000 || l.Links.Next == nil || !strings.Contains(*l.Links.Next, "marker=d0999") {
		t.Errorf("a limit of 5000 gives %d domains, next %v", len(l.Domains), l.Links.Next)
	}
	if l := get(v3 + "/domains"); len(l.Domains) != 1002 || l.Links.Next != nil {
		t.Errorf("no limit gives %d domains, next %v", len(l.Domains), l.Links.Next)
	}
	for _, bad := range []string{"0", "-1", "x"} {
		r.is(r.do("GET", v3+"/users?limit="+bad, ""), 400, "limit")
	}
}

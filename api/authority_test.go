package api_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/store"
)

// person is a user with a token.
type person struct{ id, as string }

// person makes a user of a domain with roles (targets by id) and logs it in at scope.
func (r *rig) person(name, domain string, roles map[string]string, scope string) person {
	r.t.Helper()
	u, err := r.users.CreateUser(r.t.Context(), domain, name, name)
	ok(r.t, err)
	for target, role := range roles {
		a := identity.Assignment{User: u.ID, Project: target, Roles: []string{role}}
		if r.do("GET", v3+"/domains/"+target, "").StatusCode == 200 {
			a.Project, a.Domain = "", target
		}
		ok(r.t, r.users.Assign(r.t.Context(), a))
	}
	a, tok := r.enter(pwIdent(u.ID, name), scope)
	r.is(a, 201)
	return person{u.ID, "X-Auth-Token: " + tok}
}

func inProject(id string) string { return `{"project":{"id":"` + id + `"}}` }
func inDomain(id string) string  { return `{"domain":{"id":"` + id + `"}}` }

func sorted(words string) string {
	all := strings.Fields(words)
	slices.Sort(all)
	return strings.Join(all, " ")
}

// ids are those in a list, sorted; of role assignments those of the users.
func (r *rig) ids(path, as string) string {
	r.t.Helper()
	a := r.do("GET", v3+path, "", as)
	r.is(a, 200)
	var lists map[string]json.RawMessage
	ok(r.t, json.Unmarshal([]byte(a.body), &lists))
	delete(lists, "links")
	var out []string
	for _, list := range lists {
		var items []struct {
			ID   string
			User struct{ ID string }
		}
		ok(r.t, json.Unmarshal(list, &items))
		for _, x := range items {
			out = append(out, x.ID+x.User.ID)
		}
	}
	return sorted(strings.Join(out, " "))
}

// TestWhoManages: the role admin on a domain counts, in a token that carries it, and nothing less.
func TestWhoManages(t *testing.T) {
	r := newRig(t)
	n := 0
	manages := func(p person, want bool) {
		t.Helper()
		n++
		a := r.do("POST", v3+"/users", fmt.Sprintf(`{"user":{"name":"made%d","domain_id":"default"}}`, n), p.as)
		if got := a.StatusCode == 201; got != want || !got && a.StatusCode != 403 {
			t.Errorf("creates a user: %d %s", a.StatusCode, a.body)
		}
	}
	manages(r.person("project admin", "default", map[string]string{r.project: "admin"}, inProject(r.project)), false)
	manages(r.person("domain member", "default", map[string]string{r.project: "admin", "default": "member"}, inProject(r.project)), false)
	roles := map[string]string{r.project: "member", "default": "admin"}
	manages(r.person("as a member", "default", roles, inProject(r.project)), false)
	manages(r.person("of the domain", "default", roles, inDomain("default")), true)
	manages(r.person("unscoped", "default", roles, ""), false)

	// An application credential with the role admin manages only if it is unrestricted.
	for _, unrestricted := range []bool{false, true} {
		a := r.do("POST", v3+"/users/"+r.boot.UserID+"/application_credentials",
			fmt.Sprintf(`{"application_credential":{"name":"c%v","unrestricted":%v}}`, unrestricted, unrestricted))
		r.is(a, 201, `"name":"admin"`)
		a, tok := r.enter(credIdent(`"id":"`+a.str(t, "application_credential.id")+`"`, a.str(t, "application_credential.secret")), "")
		r.is(a, 201)
		manages(person{"", "X-Auth-Token: " + tok}, unrestricted)
	}
}

// TestStrangersSeeNothing: a domain's administrator sees and changes its own domain only; users see themselves.
func TestStrangersSeeNothing(t *testing.T) {
	r := newRig(t)
	two := r.do("POST", v3+"/domains", `{"domain":{"name":"Two"}}`).str(t, "domain.id")
	p2, err := r.users.CreateProject(t.Context(), two, "p2")
	ok(t, err)
	plain := r.person("plain", "default", map[string]string{r.project: "member"}, inProject(r.project))
	member2 := r.person("member2", two, map[string]string{p2.ID: "member"}, inProject(p2.ID))
	dora := r.person("dora", two, map[string]string{two: "admin"}, inDomain(two))
	admin, member := r.roleID("admin"), r.roleID("member")

	// What dora and a plain user may look at, and what they may not.
	for path, want := range map[string][2]int{
		"/users/" + plain.id:               {403, 200},
		"/users/" + member2.id:             {200, 403},
		"/users/" + plain.id + "/projects": {403, 200},
		"/users/none":                      {404, 403},
		"/projects/" + r.project:           {404, 200},
		"/projects/" + p2.ID:               {200, 404},
		"/domains/" + two:                  {200, 404},
		"/domains/default":                 {404, 200},
		"/projects/" + r.project + "/users/" + plain.id + "/roles":                       {403, 200},
		"/projects/" + p2.ID + "/users/" + member2.id + "/roles":                         {200, 403},
		"/projects/" + p2.ID + "/users/" + member2.id + "/roles/" + member:               {204, 403},
		"/projects/" + p2.ID + "/users/" + member2.id + "/roles/" + admin:                {404, 403},
		"/domains/" + two + "/users/" + dora.id + "/roles/" + admin:                      {204, 403},
		"/users/" + plain.id + "/application_credentials":                                {403, 200},
		"/users/" + plain.id + "/application_credentials/none":                           {403, 404},
		"/domains/default/users/" + r.boot.UserID + "/roles":                             {403, 403},
		"/projects/" + r.project + "/users/" + r.boot.UserID + "/roles/" + r.boot.UserID: {403, 403},
	} {
		for i, p := range []person{dora, plain} {
			if a := r.do("GET", v3+path, "", p.as); a.StatusCode != want[i] {
				t.Errorf("GET %s by %s: %d, want %d: %s", path, []string{"dora", "plain"}[i], a.StatusCode, want[i], a.body)
			}
		}
	}
	// Lists hold what is one's own, and filters filter.
	for query, want := range map[string][2]string{
		"/users":                                      {dora.id + " " + member2.id, plain.id},
		"/users?name=plain":                           {"", plain.id},
		"/users?domain_id=default":                    {"", plain.id},
		"/projects":                                   {p2.ID, r.project},
		"/projects?domain_id=" + two:                  {p2.ID, ""},
		"/domains":                                    {two, "default"},
		"/domains?name=Default":                       {"", "default"},
		"/auth/projects":                              {"", r.project},
		"/auth/domains":                               {two, ""},
		"/role_assignments":                           {dora.id + " " + member2.id, plain.id},
		"/role_assignments?role.id=" + admin:          {dora.id, ""},
		"/role_assignments?role.id=" + member:         {member2.id, plain.id},
		"/role_assignments?user.id=" + dora.id:        {dora.id, ""},
		"/role_assignments?user.id=" + plain.id:       {"", plain.id},
		"/role_assignments?scope.domain.id=" + two:    {dora.id, ""},
		"/role_assignments?scope.project.id=" + p2.ID: {member2.id, ""},
		"/role_assignments?group.id=g":                {"", ""},
		"/role_assignments?scope.system=all":          {"", ""},
	} {
		for i, p := range []person{dora, plain} {
			if got := r.ids(query, p.as); got != sorted(want[i]) {
				t.Errorf("GET %s by %s: %s, want %s", query, []string{"dora", "plain"}[i], got, want[i])
			}
		}
	}

	// What dora may not change: users, projects and domains of others, and her users in others' projects.
	before := r.do("GET", v3+"/role_assignments", "").body
	for _, c := range []struct{ method, path, body string }{
		{"PATCH", "/users/" + plain.id, `{"user":{"password":"x"}}`},
		{"DELETE", "/users/" + plain.id, ""},
		{"PATCH", "/projects/" + r.project, `{"project":{"name":"x"}}`},
		{"DELETE", "/projects/" + r.project, ""},
		{"POST", "/projects", `{"project":{"name":"x","domain_id":"default"}}`},
		{"PUT", "/projects/" + p2.ID + "/users/" + plain.id + "/roles/" + member, ""},
		{"PUT", "/projects/" + r.project + "/users/" + member2.id + "/roles/" + member, ""},
		{"DELETE", "/projects/" + r.project + "/users/" + plain.id + "/roles/" + member, ""},
		{"POST", "/domains", `{"domain":{"name":"x"}}`},
		{"PATCH", "/domains/" + two, `{"domain":{"name":"x"}}`},
		{"DELETE", "/domains/" + two, ""},
		{"POST", "/users/" + member2.id + "/password", `{"user":{"password":"x","original_password":"member2"}}`},
		{"POST", "/users/" + member2.id + "/application_credentials", `{"application_credential":{"name":"x"}}`},
	} {
		r.is(r.do(c.method, v3+c.path, c.body, dora.as), 403)
	}
	off := r.do("POST", v3+"/domains", `{"domain":{"name":"Off","enabled":false}}`).str(t, "domain.id")
	r.is(r.do("DELETE", v3+"/domains/"+off, "", dora.as), 403)
	r.is(r.do("GET", v3+"/domains/"+off, ""), 200)
	if after := r.do("GET", v3+"/role_assignments", "").body; after != before {
		t.Errorf("roles changed:\n%s\n%s", before, after)
	}
	// And what she may.
	r.is(r.do("PATCH", v3+"/users/"+member2.id, `{"user":{"description":"x"}}`, dora.as), 200)
	r.is(r.do("POST", v3+"/projects", `{"project":{"name":"p3"}}`, dora.as), 201, two)
	r.is(r.do("PUT", v3+"/projects/"+p2.ID+"/users/"+member2.id+"/roles/"+admin, "", dora.as), 204)
}

// TestDomainsStay: the domain default cannot be deleted either way, and a domain in use neither.
func TestDomainsStay(t *testing.T) {
	r := newRig(t)
	r.is(r.do("DELETE", v3+"/domains/default", ""), 403)
	two := r.do("POST", v3+"/domains", `{"domain":{"name":"Two","enabled":false}}`).str(t, "domain.id")
	p, err := r.users.CreateProject(t.Context(), two, "p")
	ok(t, err)
	r.is(r.do("DELETE", v3+"/domains/"+two, ""), 409, "1 projects")
	r.is(r.do("DELETE", v3+"/projects/"+p.ID, ""), 204)
	r.is(r.do("PATCH", v3+"/domains/"+two, `{"domain":{"name":"Default"}}`), 409) // the name is taken
	r.is(r.do("PATCH", v3+"/domains/"+two, `{"domain":{"name":""}}`), 400)
	r.is(r.do("PATCH", v3+"/domains/"+two, `{"domain":{"name":"Drei"}}`), 200)
	r.is(r.do("POST", v3+"/domains", `{"domain":{"name":"Two"}}`), 201) // the old name is free
	r.is(r.do("DELETE", v3+"/domains/"+two, ""), 204)
	r.is(r.do("DELETE", v3+"/domains/"+two, ""), 404)
	r.is(r.do("POST", v3+"/domains", `{"domain":{"name":"Drei"}}`), 201)
}

// TestProjectInUse: a project that owns a volume, a pair or a group stays, and is enabled or disabled as before;
// with a project go its roles and application credentials.
func TestProjectInUse(t *testing.T) {
	r := newRig(t)
	p, err := r.users.CreateProject(t.Context(), "default", "p")
	ok(t, err)
	id := lockstep.ProjectID(p.ID)
	for k, v := range map[string]any{
		store.PrefixVolumes + "v": store.Volume{ID: "v", Project: id},
		store.PrefixPairs + "p":   store.Pair{ID: "p", Project: id},
		store.PrefixGroups + "g":  store.Group{ID: "g", Project: id},
	} {
		_, _, err := r.store.Txn(t.Context(), nil, []store.Op{{Key: k, Value: store.Encode(v)}})
		ok(t, err)
		r.is(r.do("DELETE", v3+"/projects/"+p.ID, ""), 409, "delete them first")
		r.is(r.do("GET", v3+"/projects/"+p.ID, ""), 200, `"enabled":true`)
		_, _, err = r.store.Txn(t.Context(), nil, []store.Op{{Key: k, Delete: true}})
		ok(t, err)
	}
	worker := r.person("worker", "default", map[string]string{p.ID: "member"}, inProject(p.ID))
	a := r.do("POST", v3+"/users/"+worker.id+"/application_credentials", `{"application_credential":{"name":"c"}}`, worker.as)
	r.is(a, 201)
	r.is(r.do("PATCH", v3+"/projects/"+p.ID, `{"project":{"name":""}}`), 400)
	r.is(r.do("PATCH", v3+"/projects/"+p.ID, `{"project":{"enabled":false}}`), 200)
	r.is(r.do("GET", "/v2/"+p.ID+"/volumes", "", worker.as), 401)
	r.is(r.do("DELETE", v3+"/projects/"+p.ID, ""), 204)
	for _, prefix := range []string{"identity/roles/" + worker.id + "/", "identity/appcreds/", "identity/appcredusers/", "identity/names/appcred/"} {
		kvs, _, err := r.store.List(t.Context(), prefix)
		ok(t, err)
		if len(kvs) > 0 {
			t.Errorf("%s is left of the project", kvs[0].Key)
		}
	}
	r.is(r.do("POST", v3+"/projects", `{"project":{"name":"p"}}`), 201) // the name is free
}

// TestCredentialsEnd: by what ends their user, and by its own bounds.
func TestCredentialsEnd(t *testing.T) {
	r := newRig(t)
	p, err := r.users.CreateProject(t.Context(), "default", "p")
	ok(t, err)
	w := r.person("w", "default", map[string]string{r.project: "member", p.ID: "member"}, inProject(r.project))
	creds := v3 + "/users/" + w.id + "/application_credentials"
	issue := func(body string) (id, secret string) {
		t.Helper()
		a := r.do("POST", creds, `{"application_credential":`+body+`}`, w.as)
		r.is(a, 201)
		return a.str(t, "application_credential.id"), a.str(t, "application_credential.secret")
	}
	enters := func(id, secret string, want int) string {
		t.Helper()
		a, tok := r.enter(credIdent(`"id":"`+id+`"`, secret), "")
		r.is(a, want)
		return "X-Auth-Token: " + tok
	}
	// Roles that the user has, but not in this token's project, are no roles.
	r.is(r.do("POST", creds, `{"application_credential":{"name":"a","roles":[{"name":"admin"}]}}`, w.as), 400)
	r.is(r.do("POST", creds, `{"application_credential":{"name":"a","project_id":"`+p.ID+`"}}`, w.as), 403)

	// Nor are those that the user has and the token's credential has not, be that unrestricted.
	own := v3 + "/users/" + r.boot.UserID + "/application_credentials"
	a := r.do("POST", own, `{"application_credential":{"name":"m","unrestricted":true,"roles":[{"name":"member"}]}}`)
	r.is(a, 201)
	as := enters(a.str(t, "application_credential.id"), a.str(t, "application_credential.secret"), 201)
	r.is(r.do("POST", own, `{"application_credential":{"name":"more","roles":[{"name":"admin"}]}}`, as), 400, "not among those of the token")
	r.is(r.do("POST", own, `{"application_credential":{"name":"same"}}`, as), 201)

	// A token from a credential's token ends with the user's password, as the first does.
	id, secret := issue(`{"name":"one"}`)
	first := enters(id, secret, 201)
	a, tok := r.enter(`{"methods":["token"],"token":{"id":"`+strings.TrimPrefix(first, "X-Auth-Token: ")+`"}}`, inProject(r.project))
	r.is(a, 201)
	ok(t, r.users.SetPassword(t.Context(), w.id, "other"))
	for _, as := range []string{first, "X-Auth-Token: " + tok} {
		r.is(r.v2("GET", "/volumes", "", as), 401)
	}
	enters(id, secret, 201) // the credential itself stays
	_, again := r.enter(pwIdent(w.id, "other"), inProject(r.project))
	w.as = "X-Auth-Token: " + again
	a, _ = r.enter(`{"methods":["token"],"token":{"id":"`+again+`"}}`, inProject(p.ID))
	r.is(a, 201)

	// A role that goes in another project leaves the credential alone.
	ok(t, r.users.Assign(t.Context(), identity.Assignment{User: w.id, Project: p.ID}))
	enters(id, secret, 201)

	// A token lasts no longer than its credential.
	end := r.now().Add(time.Hour).UTC()
	short, shortSecret := issue(`{"name":"short","expires_at":"` + end.Format(time.RFC3339) + `"}`)
	a, _ = r.enter(credIdent(`"id":"`+short+`"`, shortSecret), "")
	r.is(a, 201, `"expires_at":"`+end.Format("2006-01-02T15:04:05")+`.000000Z"`)

	for i := range 18 {
		issue(fmt.Sprintf(`{"name":"n%d"}`, i))
	}
	r.is(r.do("POST", creds, `{"application_credential":{"name":"too many"}}`, w.as), 409, "20")

	r.is(r.do("PATCH", v3+"/users/"+w.id, `{"user":{"enabled":false}}`), 200)
	enters(id, secret, 401)
	r.is(r.do("DELETE", v3+"/users/"+w.id, ""), 204)
	kvs, _, err := r.store.List(t.Context(), "identity/")
	ok(t, err)
	for _, kv := range kvs {
		if strings.Contains(kv.Key, w.id) && !strings.Contains(kv.Key, "tokens/") || strings.Contains(kv.Key, id) {
			t.Errorf("%s is left of the user", kv.Key)
		}
	}
}

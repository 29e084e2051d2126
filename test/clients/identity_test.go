package clients

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/applicationcredentials"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/domains"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/projects"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/roles"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/users"
	"github.com/gophercloud/gophercloud/v2/pagination"

	"github.com/lockstep-dr/lockstep/test/need"
)

// TestUsersByOpenStackCommandLine: a user gets a project, a role and an application credential, works with
// each, and loses everything, by python3-openstackclient alone.
func TestUsersByOpenStackCommandLine(t *testing.T) {
	t.Parallel()
	need.Programs(t, "openstack")
	d := deploy(t)
	admin := openstackCLI{t: t, dir: t.TempDir(), env: environ(d.env)}
	type object = map[string]any

	project := rows[object](admin, "project", "create", "--description", "d", "team")
	bob := rows[object](admin, "user", "create", "--password", "first", "--email", "b@example.org", "--project", "team", "bob")
	if project["name"] != "team" || bob["name"] != "bob" || bob["email"] != "b@example.org" || bob["default_project_id"] != project["id"] {
		t.Errorf("made: %v, %v", project, bob)
	}
	as := func(env map[string]string) openstackCLI {
		env["OS_AUTH_URL"], env["OS_REGION_NAME"], env["OS_IDENTITY_API_VERSION"] = d.env["OS_AUTH_URL"], d.env["OS_REGION_NAME"], "3"
		return openstackCLI{t: t, dir: admin.dir, env: environ(env)}
	}
	with := func(password string) openstackCLI {
		return as(map[string]string{
			"OS_USERNAME": "bob", "OS_PASSWORD": password, "OS_USER_DOMAIN_NAME": "Default",
			"OS_PROJECT_NAME": "team", "OS_PROJECT_DOMAIN_NAME": "Default",
		})
	}
	refused := func(o openstackCLI, why string, args ...string) {
		t.Helper()
		if _, err := o.try(args...); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("openstack %s: %v, want %s", strings.Join(args, " "), err, why)
		}
	}
	refused(with("first"), "HTTP 401", "token", "issue") // no role yet
	admin.run("role", "add", "--user", "bob", "--project", "team", "member")
	if list := rows[[]object](admin, "role", "assignment", "list", "--names", "--user", "bob"); len(list) != 1 || list[0]["Role"] != "member" || list[0]["Project"] != "team@Default" {
		t.Errorf("assignments: %v", list)
	}
	if list := rows[[]object](admin, "user", "list", "--project", "team"); len(list) != 1 || list[0]["Name"] != "bob" {
		t.Errorf("users of the project: %v", list)
	}
	if list := rows[[]object](admin, "user", "list"); len(list) != 2 {
		t.Errorf("users: %v", list)
	}
	if token := rows[object](with("first"), "token", "issue"); token["project_id"] != project["id"] {
		t.Errorf("token: %v", token)
	}
	refused(with("first"), "HTTP 403", "user", "create", "--password", "x", "eve")

	// A role that another one implies can be the only one of a credential, which then only looks.
	look := rows[object](with("first"), "application", "credential", "create", "--role", "reader", "look")
	reader := as(map[string]string{
		"OS_AUTH_TYPE": "v3applicationcredential", "OS_APPLICATION_CREDENTIAL_ID": look["id"].(string), "OS_APPLICATION_CREDENTIAL_SECRET": look["secret"].(string),
	})
	if list := rows[[]object](reader, "volume", "list"); len(list) != 0 {
		t.Errorf("volumes: %v", list)
	}
	refused(reader, "HTTP 403", "volume", "create", "--size", "1", "x")
	with("first").run("application", "credential", "delete", "look")
	if list := rows[[]object](admin, "role", "list"); len(list) != 4 {
		t.Errorf("roles: %v", list)
	}

	cred := rows[object](with("first"), "application", "credential", "create", "--role", "member", "ci")
	program := as(map[string]string{
		"OS_AUTH_TYPE": "v3applicationcredential", "OS_APPLICATION_CREDENTIAL_ID": cred["id"].(string), "OS_APPLICATION_CREDENTIAL_SECRET": cred["secret"].(string),
	})
	if list := rows[[]object](program, "volume", "list"); len(list) != 0 {
		t.Errorf("volumes: %v", list)
	}
	if list := rows[[]object](with("first"), "application", "credential", "list"); len(list) != 1 || list[0]["Name"] != "ci" {
		t.Errorf("application credentials: %v", list)
	}
	with("first").run("application", "credential", "delete", "ci")
	refused(program, "HTTP 401", "volume", "list")

	with("first").run("user", "password", "set", "--original-password", "first", "--password", "second")
	refused(with("first"), "HTTP 401", "token", "issue")
	admin.run("user", "set", "--name", "rob", "--password", "third", "bob")
	admin.run("role", "remove", "--user", "rob", "--project", "team", "member")
	admin.run("user", "delete", "rob")
	admin.run("project", "delete", "team")
	refused(admin, "No user", "user", "show", "rob")
	refused(admin, "No project", "project", "show", "team")
}

// TestUsersByGophercloud: the SDK that Terraform uses manages domains, projects, users, roles and
// application credentials, and follows the links of pages.
func TestUsersByGophercloud(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	ctx, region := d.ctx, d.env["OS_REGION_NAME"]
	provider := must[*gophercloud.ProviderClient](t)(openstack.AuthenticatedClient(ctx, d.gophercloudAuth()))
	ident := must[*gophercloud.ServiceClient](t)(openstack.NewIdentityV3(provider, gophercloud.EndpointOpts{Region: region}))

	dom := must[*domains.Domain](t)(domains.Create(ctx, ident, domains.CreateOpts{Name: "team", Description: "d"}).Extract())
	p := must[*projects.Project](t)(projects.Create(ctx, ident, projects.CreateOpts{Name: "p", DomainID: dom.ID}).Extract())
	made := map[string]bool{}
	var last users.User
	for _, name := range []string{"a", "b", "c"} {
		u := must[*users.User](t)(users.Create(ctx, ident, users.CreateOpts{Name: name, DomainID: dom.ID, Password: "pw " + name}).Extract())
		made[u.ID], last = true, *u
	}
	pages := 0
	first := ident.ServiceURL("users") + "?limit=1&domain_id=" + dom.ID
	err := pagination.NewPager(ident, first, func(r pagination.PageResult) pagination.Page {
		return users.UserPage{LinkedPageBase: pagination.LinkedPageBase{PageResult: r}}
	}).EachPage(ctx, func(_ context.Context, page pagination.Page) (bool, error) {
		pages++
		for _, u := range must[[]users.User](t)(users.ExtractUsers(page)) {
			if !made[u.ID] {
				t.Errorf("user %s came twice, or is none of the domain", u.ID)
			}
			delete(made, u.ID)
		}
		return true, nil
	})
	if err != nil || pages != 3 || len(made) != 0 {
		t.Errorf("%d pages, %v; not seen: %v", pages, err, made)
	}

	member := func() string {
		all := must[pagination.Page](t)(roles.List(ident, roles.ListOpts{Name: "member"}).AllPages(ctx))
		rs := must[[]roles.Role](t)(roles.ExtractRoles(all))
		if len(rs) != 1 {
			t.Fatalf("roles: %+v", rs)
		}
		return rs[0].ID
	}()
	ok(t, roles.Assign(ctx, ident, member, roles.AssignOpts{UserID: last.ID, ProjectID: p.ID}).ExtractErr())
	all := must[pagination.Page](t)(roles.ListAssignments(ident, roles.ListAssignmentsOpts{UserID: last.ID}).AllPages(ctx))
	if as := must[[]roles.RoleAssignment](t)(roles.ExtractRoleAssignments(all)); len(as) != 1 || as[0].Scope.Project.ID != p.ID || as[0].Role.ID != member {
		t.Errorf("assignments: %+v", as)
	}

	login := func(o gophercloud.AuthOptions) (*gophercloud.ProviderClient, error) {
		o.IdentityEndpoint = d.env["OS_AUTH_URL"]
		return openstack.AuthenticatedClient(ctx, o)
	}
	mine := gophercloud.AuthOptions{UserID: last.ID, Password: "pw c", TenantID: p.ID}
	own := must[*gophercloud.ServiceClient](t)(openstack.NewIdentityV3(must[*gophercloud.ProviderClient](t)(login(mine)), gophercloud.EndpointOpts{Region: region}))
	cred := must[*applicationcredentials.ApplicationCredential](t)(applicationcredentials.Create(ctx, own, last.ID, applicationcredentials.CreateOpts{Name: "ci"}).Extract())
	program := gophercloud.AuthOptions{ApplicationCredentialID: cred.ID, ApplicationCredentialSecret: cred.Secret}
	disks := must[*gophercloud.ServiceClient](t)(openstack.NewBlockStorageV3(must[*gophercloud.ProviderClient](t)(login(program)), gophercloud.EndpointOpts{Region: region}))
	if _, err := volumes.List(disks, nil).AllPages(ctx); err != nil {
		t.Errorf("by the application credential: %v", err)
	}

	status := func(err error, want int) {
		t.Helper()
		if !gophercloud.ResponseCodeIs(err, want) {
			t.Errorf("%v, want status %d", err, want)
		}
	}
	status(domains.Delete(ctx, ident, dom.ID).ExtractErr(), http.StatusForbidden) // it is enabled
	ok(t, roles.Unassign(ctx, ident, member, roles.UnassignOpts{UserID: last.ID, ProjectID: p.ID}).ExtractErr())
	_, err = login(program)
	status(err, http.StatusUnauthorized)
	_, err = login(mine)
	status(err, http.StatusUnauthorized)
	on, off := true, false
	changed := must[*users.User](t)(users.Update(ctx, ident, last.ID, users.UpdateOpts{Name: "d", Enabled: &off}).Extract())
	if changed.Name != "d" || changed.Enabled {
		t.Errorf("changed: %+v", changed)
	}
	_, err = login(gophercloud.AuthOptions{UserID: last.ID, Password: "pw c"})
	status(err, http.StatusUnauthorized)
	_ = must[*users.User](t)(users.Update(ctx, ident, last.ID, users.UpdateOpts{Enabled: &on, Password: "new"}).Extract())
	if _, err = login(gophercloud.AuthOptions{UserID: last.ID, Password: "new"}); err != nil {
		t.Errorf("with the new password: %v", err)
	}
	ok(t, projects.Delete(ctx, ident, p.ID).ExtractErr())
	_ = must[*domains.Domain](t)(domains.Update(ctx, ident, dom.ID, domains.UpdateOpts{Enabled: &off}).Extract())
	status(domains.Delete(ctx, ident, dom.ID).ExtractErr(), http.StatusConflict) // it has users
	all = must[pagination.Page](t)(users.List(ident, users.ListOpts{DomainID: dom.ID}).AllPages(ctx))
	for _, u := range must[[]users.User](t)(users.ExtractUsers(all)) {
		ok(t, users.Delete(ctx, ident, u.ID).ExtractErr())
	}
	ok(t, domains.Delete(ctx, ident, dom.ID).ExtractErr())
	status(domains.Get(ctx, ident, dom.ID).Err, http.StatusNotFound)
}

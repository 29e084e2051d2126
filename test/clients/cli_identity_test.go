package clients

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// users is the part of TestCommandLine about users, projects and roles: a new user can work with a role, and
// with nothing else.
func (c *cli) users() {
	c.t.Helper()
	secret := func(name, password string) string {
		path := filepath.Join(c.dir, name)
		ok(c.t, os.WriteFile(path, []byte(password+"\nnot this\n"), 0o600))
		return path
	}
	first, second, third := secret("first", "first"), secret("second", "second"), secret("third", "third")

	team := c.object("project", "create", "--name", "team", "--description", "d", "--domain", "Default")
	c.want(team, "name", "team", "description", "d", "domain_id", "default", "enabled", "true")
	bob := c.object("user", "create", "--name", "bob", "--password-file", first, "--email", "b@example.org")
	c.want(bob, "name", "bob", "email", "b@example.org", "domain_id", "default")
	c.run(done, "user", "create", "--name", "idle", "--domain", "default", "--description", "without a password")
	c.run(conflict, "user", "create", "--name", "bob")
	c.run(conflict, "project", "create", "--name", "team")
	if got := c.list("user", "list"); len(got) != 3 {
		c.t.Errorf("users: %v", got)
	}
	if got := c.list("user", "list", "--name", "bob"); len(got) != 1 || got[0]["id"] != bob["id"] {
		c.t.Errorf("users called bob: %v", got)
	}
	if got := c.list("project", "list", "--name", "team"); len(got) != 1 || got[0]["id"] != team["id"] {
		c.t.Errorf("projects called team: %v", got)
	}

	// as runs a command as bob.
	admin := c.env
	as := func(password string, code int, args ...string) {
		c.t.Helper()
		c.env = environ(map[string]string{
			"OS_AUTH_URL": c.deployment.env["OS_AUTH_URL"], "OS_USERNAME": "bob", "OS_PASSWORD": password, "OS_PROJECT_NAME": "team",
		})
		defer func() { c.env = admin }()
		c.run(code, args...)
	}
	as("first", failed, "volume", "list") // no role
	c.run(done, "role", "grant", "reader", "--user", "bob", "--project", "team")
	as("first", done, "volume", "list")
	as("first", failed, "volume", "create", "--size", "1", "--availability-zone", "az1") // a reader changes nothing
	c.run(done, "role", "revoke", "reader", "--user", "bob", "--project", "team", "--yes")
	c.run(done, "role", "grant", "member", "--user", "bob", "--project", "team")
	c.run(done, "role", "grant", "member", "--user", "bob", "--project", "team")
	c.run(done, "role", "grant", "admin", "--user", "bob", "--domain", "Default")
	as("first", done, "volume", "list")
	as("first", failed, "user", "create", "--name", "eve") // admin of the domain, but not in this token
	if got := c.list("role", "list", "--user", "bob"); len(got) != 2 {
		c.t.Errorf("roles of bob: %v", got)
	}
	if got := c.list("role", "list", "--project", "team"); len(got) != 1 || fmt.Sprint(got[0]["role"].(object)["name"], got[0]["user"].(object)["name"], got[0]["project"].(object)["name"]) != "memberbobteam" {
		c.t.Errorf("roles in the project: %v", got)
	}
	if got := c.list("role", "list", "--domain", "default", "--user", "bob"); len(got) != 1 || got[0]["role"].(object)["name"] != "admin" {
		c.t.Errorf("roles on the domain: %v", got)
	}
	for _, args := range [][]string{{"user", "list"}, {"project", "list"}, {"role", "list"}} {
		if table, _ := c.run(done, args...); !strings.Contains(table, "bob") && !strings.Contains(table, "team") {
			c.t.Errorf("lockstep %s prints\n%s", strings.Join(args, " "), table)
		}
	}

	c.run(done, "user", "set-password", "bob", "--password-file", second)
	as("first", failed, "volume", "list")
	as("second", failed, "user", "set-password", "bob", "--password-file", third, "--original-password-file", first)
	as("second", done, "user", "set-password", "bob", "--password-file", third, "--original-password-file", second)
	as("third", done, "volume", "list")

	for _, args := range [][]string{
		{"user", "create"},
		{"user", "create", "--name", "x", "--password-file", filepath.Join(c.dir, "none")},
		{"user", "create", "--name", "x", "--password-file", "-"}, // nothing comes by standard input
		{"user", "set-password", "bob"},
		{"user", "set-password", "bob", "--password-file", "-", "--original-password-file", "-"},
		{"user", "delete", "bob"},
		{"project", "create"},
		{"project", "delete", "team"},
		{"role", "grant", "member", "--user", "bob"},
		{"role", "grant", "member", "--project", "team"},
		{"role", "grant", "member", "--user", "bob", "--project", "team", "--domain", "default"},
		{"role", "revoke", "member", "--user", "bob", "--project", "team"},
	} {
		c.run(usage, args...)
	}
	for _, args := range [][]string{
		{"user", "delete", "none", "--yes"},
		{"user", "set-password", "none", "--password-file", first},
		{"user", "create", "--name", "x", "--domain", "none"},
		{"project", "delete", "none", "--yes"},
		{"project", "create", "--name", "x", "--domain", "none"},
		{"role", "grant", "auditor", "--user", "bob", "--project", "team"},
		{"role", "grant", "member", "--user", "none", "--project", "team"},
		{"role", "revoke", "admin", "--user", "bob", "--project", "team", "--yes"}, // it has no such role there
		{"role", "list", "--project", "none"},
	} {
		c.run(notFound, args...)
	}
	c.run(conflict, "project", "delete", c.deployment.env["OS_PROJECT_ID"], "--yes")

	c.run(done, "role", "revoke", "member", "--user", "bob", "--project", "team", "--yes")
	as("third", failed, "volume", "list")
	c.run(done, "user", "delete", "bob", "idle", "--yes")
	c.run(done, "project", "delete", "team", "--yes")
	if got := c.list("role", "list", "--project", c.deployment.env["OS_PROJECT_ID"]); len(got) == 0 {
		c.t.Error("the first user has lost its roles")
	}
	if got := c.list("user", "list"); len(got) != 1 {
		c.t.Errorf("users in the end: %v", got)
	}
}

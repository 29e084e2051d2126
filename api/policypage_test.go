package api_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/api"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

//go:generate go test -count=1 -run ^TestPolicyPage$ -update-policy .

var updatePolicy = flag.Bool("update-policy", false, "write docs/reference/policy.md anew; explain every difference")

const policyPage = "../docs/reference/policy.md"

func allRoutes(t *testing.T) []rest.Route {
	t.Helper()
	users, err := identity.New(identity.Config{Store: memstore.NewMem()})
	ok(t, err)
	return api.AllRoutes(users)
}

// TestPolicyPage compares the page with the rules that the routes declare.
func TestPolicyPage(t *testing.T) {
	want := renderPolicy(allRoutes(t))
	if *updatePolicy {
		ok(t, os.WriteFile(policyPage, []byte(want), 0o644))
		return
	}
	have, err := os.ReadFile(policyPage)
	ok(t, err)
	if string(have) != want {
		t.Error("docs/reference/policy.md is not what the routes declare; look at every difference, then run: go generate ./api")
	}
}

// ruleRow is a line of the page: one call, or one action of one.
type ruleRow struct{ method, path, action, rule string }

const projectPart = "/{project_id}"

// rulesOf are the rows of some routes, in the order of the routes.
func rulesOf(routes []rest.Route) []ruleRow {
	var out []ruleRow
	for _, rt := range routes {
		switch {
		case rt.Rule.Scope != policy.ScopeProject:
			out = append(out, ruleRow{rt.Method, rt.Path, "", rt.Rule.Scope.String() + ": " + rt.Rule.Owner})
		case rt.Rule.Actions == nil:
			out = append(out, ruleRow{rt.Method, rt.Path, "", string(rt.Rule.Role)})
		default:
			for _, key := range rt.Rule.Keys() {
				out = append(out, ruleRow{rt.Method, rt.Path, key, string(rt.Rule.Actions[key])})
			}
		}
	}
	return out
}

func renderPolicy(routes []rest.Route) string {
	var b strings.Builder
	b.WriteString(`# Who may make which call

<!-- Written from the rules in the code by ` + "`go generate ./api`" + `. -->

What the roles are for, and how to give them: [users and roles](../operating/roles.md). Each role implies those after it: ` +
		strings.Join(policy.Names(), ", ") + `.
A rule is enforced before anything else looks at the call: 401 without a valid token, 403 where it is not enough, and nothing changes.

## Below a project

The token must be scoped to the project of the path, else 403, for administrators as well. What belongs to another project does not
exist: 404. The role is the least one, in that project. Where it says *operator*, the configuration key ` + "`failover_role`" + ` can say
*member* instead. An action that is not listed is refused with 400. ` + "`os-sync-replication-consistency-group`" + ` of a group in status
` + "`failovered`" + ` is a reprotect and needs the role of that. ` + "`…/os-quota-sets/{id}`" + ` shows the quota of the token's own project alone.

| method | path | action | below | least role |
|---|---|---|---|---|
`)
	rows := rulesOf(routes)
	type line struct {
		ruleRow
		prefixes []string
	}
	var lines []*line
	for _, row := range rows {
		prefix, path, below := strings.Cut(row.path, projectPart)
		if !below {
			continue
		}
		row.path = path
		i := slices.IndexFunc(lines, func(l *line) bool { return l.ruleRow == row })
		if i < 0 {
			lines, i = append(lines, &line{ruleRow: row}), len(lines)
		}
		lines[i].prefixes = append(lines[i].prefixes, "`"+prefix+"`")
	}
	for _, l := range lines {
		action := ""
		if l.action != "" {
			action = "`" + l.action + "`"
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %s |\n", l.method, l.path, action, strings.Join(l.prefixes, " "), l.rule)
	}
	b.WriteString(`
## Identity, and calls without a project

Roles in a project mean nothing here. *Manages a domain*: the token carries the role admin in its scope, and its user has that role on a
domain; on the domain ` + "`default`" + ` it manages all. A token of an application credential manages only if that is unrestricted. After the
colon is what is decided by the thing itself.

| method | path | needs |
|---|---|---|
`)
	for _, row := range rows {
		if !strings.Contains(row.path, projectPart) {
			fmt.Fprintf(&b, "| %s | `%s` | %s |\n", row.method, row.path, row.rule)
		}
	}
	return b.String()
}

// readPolicy reads the page back: the rule of each row by method, path and action.
func readPolicy(t *testing.T) map[ruleRow]string {
	t.Helper()
	text, err := os.ReadFile(policyPage)
	ok(t, err)
	out := map[ruleRow]string{}
	for _, l := range strings.Split(string(text), "\n") {
		cells := strings.Split(l, " | ")
		if !strings.HasPrefix(l, "| ") || cells[0] == "| method" {
			continue
		}
		last := len(cells) - 1
		cells[0], cells[last] = strings.TrimPrefix(cells[0], "| "), strings.TrimSuffix(cells[last], " |")
		path, rule := strings.Trim(cells[1], "`"), cells[last]
		if len(cells) == 3 {
			out[ruleRow{method: cells[0], path: path}] = rule
			continue
		}
		for _, prefix := range strings.Fields(cells[3]) {
			row := ruleRow{cells[0], strings.Trim(prefix, "`") + projectPart + path, strings.Trim(cells[2], "`"), ""}
			if out[row] != "" {
				t.Errorf("%v is there twice", row)
			}
			out[row] = rule
		}
	}
	return out
}

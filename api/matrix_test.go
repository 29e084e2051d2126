package api_test

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// matrix is the real API over the real controller, with things of a project that calls are about, and tokens.
type matrix struct {
	*live
	ids    map[string]string // by the segment of the path before {id}
	as     map[string]string // token headers by whose they are
	p2     string            // another project
	victim string            // a user of it
}

// callers are those whose tokens calls are tried with; the last five are nobody in the project.
var callers = []string{"reader", "member", "operator", "admin", "none", "garbage", "unscoped", "manager", "foreign"}

func newMatrix(t *testing.T) *matrix {
	r := newLive(t)
	m := &matrix{live: r, as: map[string]string{"none": "X-Auth-Token: ", "garbage": "X-Auth-Token: " + strings.Repeat("A", 43)}}
	pair := r.madePair(r.madeVolume("az1"), r.madeVolume("az2"), "az1")
	m.ids = map[string]string{
		"volumes": r.madeVolume("az1"), "os-vendor-replications": r.madePair(r.madeVolume("az1"), r.madeVolume("az2"), "az1"),
		"os-vendor-replication-consistency-groups": r.madeGroup(pair), "os-lockstep-nodes": "node1", "types": "ssd",
		"os-quota-sets": r.project, "divergence-images": "1", "metadata": "k", "free": r.madeVolume("az2"),
		"roles": r.roleID("member"), "application_credentials": "c", "regions": region, "domains": "default",
	}
	m.ids["cloudvolumes"], m.ids["os-vendor-volumes"] = m.ids["volumes"], m.ids["volumes"]
	r.want(r.v2("POST", "/volumes/"+m.ids["volumes"]+"/metadata", `{"metadata":{"k":"v"}}`), 200, "")
	m.ids["jobs"] = r.do("POST", "/v2/"+r.project+"/cloudvolumes", `{"volume":{"size":1,"availability_zone":"az1","volume_type":"ssd"}}`).str(t, "job_id")

	p2, err := r.users.CreateProject(t.Context(), "default", "p2")
	ok(t, err)
	m.p2 = p2.ID
	for _, role := range policy.Names() {
		m.as[role] = r.person("a "+role, "default", map[string]string{r.project: role}, inProject(r.project)).as
	}
	m.as["unscoped"] = r.person("unscoped", "default", map[string]string{r.project: "admin"}, "").as
	m.as["manager"] = r.person("manager", "default", map[string]string{"default": "admin"}, inDomain("default")).as
	m.as["foreign"] = r.person("foreign", "default", map[string]string{p2.ID: "admin"}, inProject(p2.ID)).as
	m.victim = r.person("victim", "default", map[string]string{p2.ID: "member"}, inProject(p2.ID)).id
	m.ids["users"], m.ids["projects"] = m.victim, p2.ID
	r.stop() // so that nothing but the calls can change the store
	return m
}

// url fills a path in: what is there, or the id of nothing.
func (m *matrix) url(path, project string, nothing bool) string {
	parts := strings.Split(strings.TrimSuffix(path, "{$}"), "/")
	for i, p := range parts {
		switch {
		case p == "{project_id}":
			parts[i] = project
		case strings.HasPrefix(p, "{") && nothing:
			parts[i] = "none"
		case strings.HasPrefix(p, "{"):
			id, known := m.ids[parts[i-1]]
			if !known {
				m.t.Fatalf("%s: what %s is the test does not know", path, p)
			}
			parts[i] = id
		}
	}
	return strings.Join(parts, "/")
}

// body is one that would be obeyed if the call were admitted.
func (m *matrix) body(row ruleRow) string {
	if row.method == http.MethodGet || row.method == http.MethodDelete {
		return ""
	}
	const reason = `{"reason":"r"}`
	const onNode = `{"reason":"r","node":"node2"}`
	if row.action != "" {
		value := map[string]string{
			"os-extend": `{"new_size":20}`, "os-attach": `{"instance_uuid":"s"}`, "os-initialize_connection": `{"connector":{}}`,
			"os-set_bootable": `{"bootable":true}`, "os-update_readonly_flag": `{"readonly":true}`,
			"os-extend-replication-volumes": `{"id":"` + m.ids["os-vendor-replications"] + `","new_size":20}`,
			"lockstep-continue":             reason, "lockstep-back-out": reason, "lockstep-confirm-node-off": onNode,
			"lockstep-accept-directory": onNode, "lockstep-accept-lost-secondary": onNode,
			"lockstep-one-sided": `{"policy":"strict"}`, "lockstep-resync-limit": `{"mib":7}`,
		}[row.action]
		if value == "" {
			value = "null"
		}
		return `{"` + row.action + `":` + value + `}`
	}
	_, path, _ := strings.Cut(row.path, projectPart)
	if path == "" {
		path = strings.TrimPrefix(row.path, "/identity/v3")
	}
	body, known := map[string]string{
		"POST /volumes":               `{"volume":{"size":1,"availability_zone":"az1"}}`,
		"PUT /volumes/{id}":           `{"volume":{"name":"changed"}}`,
		"POST /volumes/{id}/metadata": `{"metadata":{"a":"b"}}`, "PUT /volumes/{id}/metadata": `{"metadata":{"c":"d"}}`,
		"PUT /volumes/{id}/metadata/{key}": `{"meta":{"k":"w"}}`,
		"POST /snapshots":                  `{"snapshot":{"volume_id":"` + m.ids["volumes"] + `"}}`,
		"POST /os-volume-transfer":         `{"transfer":{"volume_id":"` + m.ids["volumes"] + `"}}`,
		"POST /cloudvolumes":               `{"volume":{"size":1,"availability_zone":"az1","volume_type":"ssd"}}`,
		"PUT /cloudvolumes/{id}":           `{"volume":{"name":"changed"}}`,
		"POST /os-vendor-replications":     pairOf(m.ids["volumes"], m.ids["free"], "az1"),
		"POST " + groupsPath:               `{"replication_consistency_group":{"replication_ids":["` + m.ids["os-vendor-replications"] + `"],"priority_station":"az1","replication_model":"hypermetro"}}`,
		"PUT " + groupsPath + "/{id}":      `{"replication_consistency_group":{"name":"changed"}}`,
		"PUT /os-lockstep-nodes/{id}":      `{"node":{"resync_limit_mib":7}}`,
		"POST /os-lockstep-store-recovery": `{"recovery":{"reason":"r"}}`,

		"POST /auth/tokens": `{"auth":{"identity":{"methods":["password"],"password":{"user":{"id":"none","password":"x"}}}}}`,
		"POST /users":       `{"user":{"name":"made","domain_id":"default"}}`, "PATCH /users/{id}": `{"user":{"description":"changed"}}`,
		"POST /users/{id}/password":                          `{"user":{"password":"other","original_password":"victim"}}`,
		"POST /projects":                                     `{"project":{"name":"made","domain_id":"default"}}`,
		"PATCH /projects/{id}":                               `{"project":{"description":"changed"}}`,
		"POST /domains":                                      `{"domain":{"name":"made"}}`,
		"PATCH /domains/{id}":                                `{"domain":{"description":"changed"}}`,
		"POST /users/{id}/application_credentials":           `{"application_credential":{"name":"made"}}`,
		"PUT /projects/{id}/users/{user_id}/roles/{role_id}": "", "PUT /domains/{id}/users/{user_id}/roles/{role_id}": "",
	}[row.method+" "+path]
	if !known {
		m.t.Fatalf("%s %s: the test knows no body for it", row.method, row.path)
	}
	return body
}

// everything is all of the store, users and tokens included.
func (m *matrix) everything() map[string]string {
	m.t.Helper()
	kvs, _, err := m.store.List(m.t.Context(), "")
	ok(m.t, err)
	out := map[string]string{}
	for _, kv := range kvs {
		out[kv.Key] = fmt.Sprintf("%d %s", kv.ModRev, kv.Value)
	}
	return out
}

// refusal is the status with which a call of a row is refused to a caller; 0: it is admitted. It goes by what the
// page says, not by the code.
func refusal(rule, who, failover string) int {
	if who == "none" || who == "garbage" {
		if strings.HasPrefix(rule, "no token") {
			return 0
		}
		return 401
	}
	switch {
	case strings.HasPrefix(rule, "no token"), strings.HasPrefix(rule, "a token:"):
		return 0
	case strings.HasPrefix(rule, "a token that manages"):
		if who == "manager" {
			return 0
		}
		return 403
	}
	order := []string{"reader", "member", "operator", "admin"}
	if rule == "operator" {
		rule = failover
	}
	if slices.Contains(order, who) && slices.Index(order, who) >= slices.Index(order, rule) {
		return 0
	}
	return 403
}

// TestPolicyMatrix makes every call, and every action of it, as everybody: the answer is a refusal exactly where
// docs/reference/policy.md says so, and a refused call changes nothing at all.
func TestPolicyMatrix(t *testing.T) {
	m := newMatrix(t)
	rules := readPolicy(t)
	var rows []ruleRow
	for _, row := range rulesOf(allRoutes(t)) {
		declared := row.rule
		row.rule = ""
		if rules[row] != declared {
			t.Errorf("%v: the page says %q, the route %q", row, rules[row], declared)
		}
		rows = append(rows, row)
	}
	if len(rows) != len(rules) || len(rows) < 150 {
		t.Errorf("%d calls, and %d rules on the page", len(rows), len(rules))
	}
	for _, failover := range []policy.Role{policy.Operator, policy.Member} {
		m.serveWith(policy.Policy{Failover: failover})
		before, refused, admitted := m.everything(), 0, 0
		for _, row := range rows {
			for _, who := range callers {
				want := refusal(rules[row], who, string(failover))
				if want == 0 {
					continue
				}
				refused++
				a := m.do(row.method, m.url(row.path, m.project, false), m.body(row), m.as[who])
				if a.StatusCode != want {
					t.Errorf("%s %s %s as %s with failover_role %s: %d, want %d: %s", row.method, row.path, row.action, who, failover, a.StatusCode, want, a.body)
				}
				if after := m.everything(); !reflect.DeepEqual(before, after) {
					t.Fatalf("%s %s %s as %s: refused, and the store changed", row.method, row.path, row.action, who)
				}
			}
		}
		for _, row := range rows { // on what is not there, so that one call does not spoil the next
			for _, who := range callers {
				if refusal(rules[row], who, string(failover)) != 0 {
					continue
				}
				admitted++
				m.admitted(row, who)
			}
		}
		t.Logf("failover_role %s: %d calls refused, %d admitted", failover, refused, admitted)
	}
}

// admitted makes a call that the rule admits: whatever is said of the thing, the role is enough.
func (m *matrix) admitted(row ruleRow, who string) {
	m.t.Helper()
	look := row.method == http.MethodGet && strings.Contains(row.path, projectPart)
	a := m.do(row.method, m.url(row.path, m.project, !look), m.body(row), m.as[who])
	identityCall := strings.HasPrefix(row.path, "/identity")
	switch {
	case identityCall && !strings.HasPrefix(row.path, "/identity/v3/auth/tokens") && a.StatusCode == 401,
		!identityCall && (a.StatusCode == 401 || a.StatusCode == 403),
		a.StatusCode >= 500 && a.StatusCode != 501,
		look && a.StatusCode != 200 && !strings.Contains(row.path, "failover-preview"):
		m.t.Errorf("%s %s %s as %s: %d %s", row.method, row.path, row.action, who, a.StatusCode, a.body)
	}
}

// serveWith starts the API anew with a policy, over the same store and controller.
func (m *matrix) serveWith(p policy.Policy) {
	m.srv.Close()
	m.srv = serve(m.t, api.New(api.Config{Service: m.ctrl, Store: m.store, Identity: m.users, Policy: p}), nil)
}

// TestPolicyForeign: below the path of its own project an administrator finds nothing of another one by any call.
func TestPolicyForeign(t *testing.T) {
	m := newMatrix(t)
	before, n := m.everything(), 0
	shared := []string{"/types/", "/os-lockstep-nodes/", "/os-quota-sets/"}
	for _, row := range rulesOf(allRoutes(t)) {
		if !strings.Contains(row.path, projectPart) || !strings.Contains(row.path, "{id}") ||
			slices.ContainsFunc(shared, func(s string) bool { return strings.Contains(row.path, s) }) {
			continue
		}
		n++
		a := m.do(row.method, m.url(row.path, m.p2, false), m.body(row), m.as["foreign"])
		if unsupported := a.StatusCode == 501; a.StatusCode != 404 && !unsupported {
			t.Errorf("%s %s %s: %d %s", row.method, row.path, row.action, a.StatusCode, a.body)
		}
	}
	if !reflect.DeepEqual(before, m.everything()) {
		t.Error("the store changed")
	}
	if n < 80 {
		t.Errorf("only %d calls", n)
	}
}

// TestRulesAreDeliberate holds what the page of rules could be made to say by mistake: it lists by hand all that
// needs more than daily work, and every call that needs no token.
func TestRulesAreDeliberate(t *testing.T) {
	got := map[string][]string{}
	for _, row := range rulesOf(allRoutes(t)) {
		what := row.method + " " + row.path
		if row.action != "" {
			what = row.action
		}
		kind, _, _ := strings.Cut(row.rule, ":")
		if (kind == "member") == (row.method == http.MethodGet) && kind != "operator" && kind != "admin" && strings.Contains(row.path, projectPart) {
			t.Errorf("%s needs %s", what, kind)
		}
		if kind != "reader" && kind != "member" && kind != "a token" && !slices.Contains(got[kind], what) {
			got[kind] = append(got[kind], what)
		}
	}
	onRoles := func(method string) string { return " " + method + " /identity/v3/" }
	for kind, words := range map[string]string{
		"operator": "DELETE /v2/{project_id}/os-vendor-replication-consistency-groups/{id}/divergence-images/{image_id} lockstep-release lockstep-one-sided os-failover-replication-consistency-group os-reprotect-replication-consistency-group os-reverse-replication-consistency-group",
		"admin":    "lockstep-accept-directory lockstep-accept-lost-secondary lockstep-back-out lockstep-confirm-node-off lockstep-continue os-force_detach os-migrate_volume os-reset_status os-unmanage PUT /v2/{project_id}/os-lockstep-nodes/{id} POST /v2/{project_id}/os-lockstep-store-recovery",
		"no token": "GET / GET /v2 GET /v3 GET /image GET /healthz GET /readyz GET /metrics GET /identity GET /identity/v3 POST /identity/v3/auth/tokens",
		"a token that manages a domain": "POST /identity/v3/users PATCH /identity/v3/users/{id} DELETE /identity/v3/users/{id} POST /identity/v3/projects PATCH /identity/v3/projects/{id} DELETE /identity/v3/projects/{id} POST /identity/v3/domains PATCH /identity/v3/domains/{id} DELETE /identity/v3/domains/{id}" +
			onRoles("PUT") + "projects/{id}/users/{user_id}/roles/{role_id}" + onRoles("DELETE") + "projects/{id}/users/{user_id}/roles/{role_id}" +
			onRoles("PUT") + "domains/{id}/users/{user_id}/roles/{role_id}" + onRoles("DELETE") + "domains/{id}/users/{user_id}/roles/{role_id}",
	} {
		if have := strings.ReplaceAll(strings.Join(got[kind], " "), "{$}", ""); sorted(have) != sorted(words) {
			t.Errorf("%s:\n%s\nwant\n%s", kind, sorted(have), sorted(words))
		}
		delete(got, kind)
	}
	if len(got) > 0 {
		t.Errorf("other rules: %v", got)
	}
}

// TestRouteWithoutRule: the API does not start with a route whose rule is missing or says nothing sound.
func TestRouteWithoutRule(t *testing.T) {
	const below = "/v2/{project_id}/x"
	for name, rt := range map[string]rest.Route{
		"has no rule":      {Method: "GET", Path: below},
		"asks for no tok":  {Method: "GET", Path: below, Rule: policy.Open("why")},
		"asks for a token": {Method: "GET", Path: "/x", Rule: policy.Project(policy.Reader)},
		"admits the role":  {Method: "POST", Path: below, Rule: policy.Project(policy.Reader)},
		"no role \"boss\"": {Method: "GET", Path: below, Rule: policy.Project("boss")},
		"what decides":     {Method: "GET", Path: "/x", Rule: policy.Token("")},
		"a role each":      {Method: "POST", Path: below + "/action", Rule: policy.Project(policy.Member)},
		"the role reader":  {Method: "POST", Path: below + "/action", Rule: policy.Actions(map[string]policy.Role{"a": policy.Member, "b": policy.Reader})},
	} {
		func() {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, name) {
					t.Errorf("%+v: %s, want %s", rt.Rule, p, name)
				}
			}()
			api.AddRoute(rt)
		}()
	}
}

// TestHiddenAction: an action that has no rule does not reach its handler, and a second one in the body needs its
// own role.
func TestHiddenAction(t *testing.T) {
	m := newMatrix(t)
	act := "/v2/" + m.project + groupsPath + "/" + m.ids["os-vendor-replication-consistency-groups"] + "/action"
	m.want(m.do("POST", act, `{"lockstep-new":{}}`, m.as["admin"]), 400, "no action")
	m.want(m.do("POST", act, `{"lockstep-new":{}}`, m.as["reader"]), 403, "role member")
	m.want(m.do("POST", "/v3/"+m.project+"/volumes/"+m.ids["volumes"]+"/action", `{"os-new":{}}`, m.as["admin"]), 400, "no action")
	m.want(m.do("POST", act, `{"os-extend":{},"os-failover-replication-consistency-group":null}`, m.as["member"]), 403, "needs the role operator")
	m.want(m.do("POST", act, `{"os-failover-replication-consistency-group":{"force":true,"token":"t"}}`, m.as["member"]), 403, "needs the role operator")
	m.want(m.do("POST", act, `{`, m.as["reader"]), 403, "role member")
	m.want(m.do("POST", act, `{`, m.as["member"]), 400, "malformed")
}

// TestSyncIsReprotect: of a group that was failed over a sync overwrites the old primary, and needs who may fail over.
func TestSyncIsReprotect(t *testing.T) {
	m := newMatrix(t)
	id := lockstep.GroupID(m.ids["os-vendor-replication-consistency-groups"])
	sync := func(who string) answer {
		t.Helper()
		return m.do("POST", "/v2/"+m.project+groupsPath+"/"+string(id)+"/action", `{"os-sync-replication-consistency-group":null}`, m.as[who])
	}
	m.want(sync("reader"), 403, "role member")
	m.want(sync("member"), 200, "")
	rec, rev, err := store.GetT[protocol.Record](t.Context(), m.store, store.KeyRecord(id))
	ok(t, err)
	rec.State, rec.FailedOver = protocol.StateNormal, true
	done, _, err := m.store.Txn(t.Context(), []store.Cmp{{Key: store.KeyRecord(id), ModRev: rev}}, []store.Op{{Key: store.KeyRecord(id), Value: store.Encode(rec)}})
	if ok(t, err); !done {
		t.Fatal("the record was changed meanwhile")
	}
	m.serveWith(policy.Policy{})
	before := m.everything()
	m.want(sync("member"), 403, "needs the role operator")
	for _, who := range []string{"reader", "member", "operator"} { // explain rehearses a sync, too
		a := m.do("GET", "/v2/"+m.project+groupsPath+"/"+string(id)+"/explain", "", m.as[who])
		m.want(a, 200, `"action":"sync"`)
	}
	if !reflect.DeepEqual(before, m.everything()) {
		t.Error("the store changed")
	}
	if a := sync("operator"); a.StatusCode == 403 {
		t.Errorf("as operator: %d %s", a.StatusCode, a.body)
	}
	m.serveWith(policy.Policy{Failover: policy.Member})
	if a := sync("member"); a.StatusCode == 403 {
		t.Errorf("where members may fail over: %d %s", a.StatusCode, a.body)
	}
}

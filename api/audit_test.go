package api_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-dr/lockstep/api"
	"github.com/lockstep-dr/lockstep/api/audit"
)

// audited is a rig with an audit log at path.
func newAudited(t *testing.T, path string) (*rig, *prometheus.Registry) {
	t.Helper()
	r := newRig(t)
	l, err := audit.Open(path)
	ok(t, err)
	t.Cleanup(func() { ok(t, l.Close()) })
	reg := prometheus.NewRegistry()
	r.srv.Close()
	logger := slog.New(slog.NewJSONHandler(r.log, nil))
	r.srv = serve(t, api.New(api.Config{Service: r.svc, Store: r.store, Identity: r.users, Logger: logger, Audit: l, Registry: reg}), logger)
	return r, reg
}

func counted(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := reg.Gather()
	ok(t, err)
	for _, f := range all {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// TestAuditLog: what may change something, what was refused for lack of a right, and logins leave one line each, with
// who, what, on what, from where and what came of it; nothing else does, and no secret is in any.
func TestAuditLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	r, reg := newAudited(t, path)
	seen := 0
	// next are the records since the last call.
	next := func() (out []audit.Record) {
		t.Helper()
		data, err := os.ReadFile(path)
		ok(t, err)
		all := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
		for _, text := range all[seen:] {
			if text == "" {
				continue
			}
			var rec audit.Record
			dec := json.NewDecoder(strings.NewReader(text))
			dec.DisallowUnknownFields()
			ok(t, dec.Decode(&rec))
			out = append(out, rec)
		}
		seen += len(out)
		return out
	}
	want := func(a answer, w audit.Record) {
		t.Helper()
		got := next()
		if len(got) != 1 {
			t.Fatalf("%s %s: %d lines: %+v", a.Request.Method, a.Request.URL.Path, len(got), got)
		}
		if d := time.Since(got[0].Time); d < 0 || d > time.Minute {
			t.Errorf("time %v", got[0].Time)
		}
		w.Time, w.RequestID, w.Remote, w.Method, w.Status = got[0].Time, a.Header.Get("X-Request-Id"), "127.0.0.1", a.Request.Method, a.StatusCode
		if w.On == nil {
			w.On = got[0].On
			if len(w.On) > 0 {
				t.Errorf("on %v", w.On)
			}
		}
		if !reflect.DeepEqual(got[0], w) {
			t.Errorf("%s %s:\n%+v, want\n%+v", a.Request.Method, a.Request.URL.Path, got[0], w)
		}
	}
	bob := r.person("bob", "default", map[string]string{r.project: "reader"}, inProject(r.project))
	next()
	admin := r.boot.UserID
	const vol, act = "/v2/{project_id}/volumes", "/v2/{project_id}/volumes/{id}/action"

	a := r.v2("POST", "/volumes", `{"volume":{"size":10,"availability_zone":"az1"}}`)
	id := a.str(t, "volume.id")
	on := map[string]string{"id": id}
	want(a, audit.Record{User: admin, Project: r.project, Route: vol, Action: "create", Made: id, Result: "taken"})
	want(r.v2("POST", "/volumes/"+id+"/action", `{"os-extend":{"new_size":1}}`),
		audit.Record{User: admin, Project: r.project, Route: act, Action: "os-extend", On: on, Result: "refused", Code: "EVS.1014"})
	want(r.v2("DELETE", "/volumes/"+id, "", bob.as), audit.Record{User: bob.id, Project: r.project, Route: vol + "/{id}", Action: "delete", On: on, Result: "refused"})
	want(r.v2("POST", "/volumes/"+id+"/action", `{"lockstep-release":null}`, bob.as), audit.Record{User: bob.id, Project: r.project, Route: act, Action: "action", On: on, Result: "refused"})
	want(r.v2("GET", "/volumes/"+id, "", "X-Auth-Token: "), audit.Record{Route: vol + "/{id}", Action: "look", On: map[string]string{"id": id, "project_id": r.project}, Result: "refused"})
	want(r.do("GET", "/v2/other/volumes", "", bob.as), audit.Record{User: bob.id, Project: r.project, Route: vol, Action: "look", On: map[string]string{"project_id": "other"}, Result: "refused"})
	want(r.do("POST", v3+"/users", `{"user":{"name":"x","password":"hidden-one"}}`, bob.as), audit.Record{User: bob.id, Project: r.project, Route: v3 + "/users", Action: "create", Result: "refused"})
	a = r.do("POST", v3+"/users", `{"user":{"name":"x","password":"hidden-two"}}`)
	want(a, audit.Record{User: admin, Project: r.project, Route: v3 + "/users", Action: "create", Made: a.str(t, "user.id"), Result: "taken"})
	long := strings.Repeat("x", 3000)
	a = r.v2("DELETE", "/volumes/"+long, "")
	want(a, audit.Record{User: admin, Project: r.project, Route: vol + "/{id}", Action: "delete", On: map[string]string{"id": long[:255]}, Result: "refused"})

	// Logins.
	login := audit.Record{Route: v3 + "/auth/tokens", Action: "login"}
	with := func(user, project, cred, result string) audit.Record {
		rec := login
		rec.User, rec.Project, rec.Credential, rec.Result = user, project, cred, result
		return rec
	}
	a, tok := r.enter(pwIdent(admin, password), inProject(r.project))
	want(a, with(admin, r.project, "", "taken"))
	a, _ = r.enter(pwIdent(admin, "hidden-three"), "")
	want(a, with(admin, "", "", "refused"))
	want(r.tryLogin("admin", "hidden-four", ""), with(admin, "", "", "refused"))
	want(r.tryLogin("hidden-five", "x", ""), with("", "", "", "refused")) // a password in the place of the name
	a, _ = r.enter(pwIdent("hidden-six", "x"), "")
	want(a, with("", "", "", "refused"))
	a = r.do("POST", v3+"/users/"+admin+"/application_credentials", `{"application_credential":{"name":"c","secret":"hidden-seven"}}`)
	cred := a.str(t, "application_credential.id")
	want(a, audit.Record{User: admin, Project: r.project, Route: v3 + "/users/{id}/application_credentials", Action: "create", On: map[string]string{"id": admin}, Made: cred, Result: "taken"})
	a, _ = r.enter(credIdent(`"id":"`+cred+`"`, "hidden-eight"), "")
	want(a, with(admin, "", "", "refused"))
	a, credTok := r.enter(credIdent(`"id":"`+cred+`"`, "hidden-seven"), "")
	want(a, with(admin, r.project, cred, "taken"))
	want(r.v2("DELETE", "/volumes/"+id, "", "X-Auth-Token: "+credTok),
		audit.Record{User: admin, Project: r.project, Credential: cred, Route: vol + "/{id}", Action: "delete", On: on, Result: "taken"})

	// What only looks, and finds or does not, leaves nothing; nor what is no call.
	for _, p := range []string{"/volumes", "/volumes/none", "/volumes?limit=x"} {
		r.v2("GET", p, "")
	}
	r.do("GET", "/healthz", "")
	r.do("POST", "/nothing/here", "{}")
	if got := next(); got != nil {
		t.Errorf("%+v", got)
	}
	data, err := os.ReadFile(path)
	ok(t, err)
	for _, secret := range []string{"hidden", password, tok, credTok, strings.TrimPrefix(bob.as, "X-Auth-Token: ")} {
		if strings.Contains(string(data), secret) {
			t.Errorf("the audit log has %s", secret)
		}
	}
	if n := counted(t, reg, "lockstep_audit_lines_total"); n != float64(seen) || counted(t, reg, "lockstep_audit_failures_total") != 0 {
		t.Errorf("%v lines counted, %d written", n, seen)
	}
}

// TestAuditLogFull: a line that cannot be written refuses nothing, and is seen.
func TestAuditLogFull(t *testing.T) {
	r, reg := newAudited(t, "/dev/full")
	a := r.v2("POST", "/volumes", `{"volume":{"size":10,"availability_zone":"az1"}}`)
	r.is(a, 202)
	if n := counted(t, reg, "lockstep_audit_failures_total"); n != 1 || counted(t, reg, "lockstep_audit_lines_total") != 0 {
		t.Errorf("%v failures", n)
	}
	if log := r.log.String(); !strings.Contains(log, `"the audit log lacks a line","request_id":"`+a.Header.Get("X-Request-Id")) || !strings.Contains(log, "no space left") {
		t.Errorf("log: %s", log)
	}
}

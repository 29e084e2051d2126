package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/api"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

const (
	password = "correct horse"
	region   = "eu-west-0"
)

// rig is the API over an in-memory store and the fake service, on a real listener.
type rig struct {
	t       *testing.T
	svc     *fakeService
	store   *memstore.Mem
	users   *identity.Service
	boot    identity.Bootstrapped
	srv     *httptest.Server
	log     *syncBuffer
	token   string // of the bootstrap user, scoped to its project
	project string
	mu      sync.Mutex
	ahead   time.Duration // of the identity service's clock
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (r *rig) advance(d time.Duration) {
	r.mu.Lock()
	r.ahead += d
	r.mu.Unlock()
}

func (r *rig) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Add(r.ahead)
}

func newRig(t *testing.T) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	r := &rig{t: t, svc: newFake(), store: memstore.NewMem(), log: &syncBuffer{}}
	t.Cleanup(func() { _ = r.store.Close() })
	var err error
	if r.boot, err = identity.Bootstrap(ctx, r.store, identity.BootstrapConfig{Project: "p1", User: "admin", Password: password}); err != nil {
		t.Fatal(err)
	}
	if r.users, err = identity.New(identity.Config{Store: r.store, Region: region, Now: r.now}); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewJSONHandler(r.log, nil))
	r.srv = serve(t, api.New(api.Config{Service: r.svc, Store: r.store, Identity: r.users, Logger: logger}), logger)
	r.project = r.boot.ProjectID
	r.token = r.login("admin", password, `{"project":{"id":"`+r.project+`"}}`)
	return r
}

// serve runs a handler as the controller does.
func serve(t *testing.T, h http.Handler, logger *slog.Logger) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config = api.NewHTTPServer("", h, logger)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

// answer is a response with its body read.
type answer struct {
	*http.Response
	body string
}

// do sends a request with the rig's token; headers are "Name: value". A header with an empty value
// is left out.
func (r *rig) do(method, path, body string, headers ...string) answer {
	r.t.Helper()
	req, err := http.NewRequest(method, r.srv.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", r.token)
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Del(k)
		if v != "" {
			req.Header.Set(k, v)
		}
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{res, string(b)}
}

// v2 is do below the rig's project.
func (r *rig) v2(method, path, body string, headers ...string) answer {
	r.t.Helper()
	return r.do(method, "/v2/"+r.project+path, body, headers...)
}

// login asks for a token; scope is the JSON of the scope, or empty.
func (r *rig) login(user, pass, scope string) string {
	r.t.Helper()
	a := r.tryLogin(user, pass, scope)
	if a.StatusCode != http.StatusCreated {
		r.t.Fatalf("login of %s: %d %s", user, a.StatusCode, a.body)
	}
	return a.Header.Get("X-Subject-Token")
}

func (r *rig) tryLogin(user, pass, scope string) answer {
	r.t.Helper()
	if scope != "" {
		scope = `,"scope":` + scope
	}
	return r.do("POST", "/identity/v3/auth/tokens", `{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"`+
		user+`","domain":{"id":"default"},"password":"`+pass+`"}}}`+scope+`}}`, "X-Auth-Token: ")
}

// tree decodes a JSON answer and walks to a member by keys with dots between.
func (a answer) at(t *testing.T, path string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("answer is not JSON: %q", a.body)
	}
	for _, k := range strings.Split(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			t.Fatalf("%s: no object at %q in %s", path, k, a.body)
		}
		v = m[k]
	}
	return v
}

func (a answer) str(t *testing.T, path string) string {
	t.Helper()
	s, ok := a.at(t, path).(string)
	if !ok {
		t.Fatalf("%s is no string in %s", path, a.body)
	}
	return s
}

// volume creates one and returns its id.
func (r *rig) volume(az string) string {
	r.t.Helper()
	a := r.v2("POST", "/volumes", `{"volume":{"size":10,"availability_zone":"`+az+`","name":"d"}}`)
	if a.StatusCode != 202 {
		r.t.Fatalf("create volume: %d %s", a.StatusCode, a.body)
	}
	return a.str(r.t, "volume.id")
}

func (r *rig) pair() string {
	r.t.Helper()
	body := `{"replication":{"volume_ids":["` + r.volume("az1") + `","` + r.volume("az2") +
		`"],"priority_station":"az1","replication_model":"hypermetro"}}`
	a := r.v2("POST", "/os-vendor-replications", body)
	if a.StatusCode != 202 {
		r.t.Fatalf("create pair: %d %s", a.StatusCode, a.body)
	}
	return a.str(r.t, "replication.id")
}

func (r *rig) group(pairs ...string) string {
	r.t.Helper()
	ids, err := json.Marshal(pairs)
	if err != nil {
		r.t.Fatal(err)
	}
	a := r.v2("POST", groupsPath, `{"replication_consistency_group":{"replication_ids":`+string(ids)+
		`,"priority_station":"az1","replication_model":"hypermetro"}}`)
	if a.StatusCode != 202 {
		r.t.Fatalf("create group: %d %s", a.StatusCode, a.body)
	}
	return a.str(r.t, "replication_consistency_group.id")
}

const groupsPath = "/os-vendor-replication-consistency-groups"

func assignment(user, project string) identity.Assignment {
	return identity.Assignment{User: user, Project: project, Roles: []string{identity.RoleMember}}
}

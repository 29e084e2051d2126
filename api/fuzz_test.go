package api_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/api"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

// FuzzBodies sends arbitrary bodies to every call that reads one. Nothing a client sends may
// panic or be answered with a 5xx other than 501, and every error is a fault in JSON.
func FuzzBodies(f *testing.F) {
	const id = "00000000-0000-4000-8000-000000000001"
	calls := []struct{ method, path string }{
		{"POST", "/v2/$P/volumes"},
		{"PUT", "/v3/$P/volumes/" + id},
		{"POST", "/v3/$P/volumes/" + id + "/action"},
		{"POST", "/v2/$P/volumes/" + id + "/metadata"},
		{"PUT", "/v2/$P/volumes/" + id + "/metadata/k"},
		{"POST", "/v2/$P/os-vendor-replications"},
		{"POST", "/v2/$P/os-vendor-replication-consistency-groups"},
		{"PUT", "/v2/$P/os-vendor-replication-consistency-groups/" + id},
		{"POST", "/v2/$P/os-vendor-replication-consistency-groups/" + id + "/action"},
		{"POST", "/v2.1/$P/cloudvolumes"},
		{"POST", "/v2.1/$P/cloudvolumes/" + id + "/action"},
		{"POST", "/identity/v3/auth/tokens"},
	}
	for i := range calls {
		for _, body := range []string{
			"", "{}", "null", "[", `{"a":1,"a":2}`, `{"volume":{"size":1e3,"metadata":{"":"x"}}}`,
			`{"os-extend":{"new_size":9223372036854775807}}`, `{"os-attach":{"instance_uuid":"\ud800","mode":null}}`,
			`{"replication":{"volume_ids":",","priority_station":[],"replication_model":{}}}`,
			`{"replication_consistency_group":{"add_replication_ids":[null]}}`, `{"meta":{"k":"v"}}`, `{"metadata":{"k":"v"}}`,
			`{"os-extend-replication-volumes":{"replications":[{"id":{},"new_size":-0}]}}`,
			`{"os-failover-replication-consistency-group":{"force":1}}`,
			`{"auth":{"identity":{"methods":["token"],"token":{"id":"x"}},"scope":{"project":{"name":"p","domain":null}}}}`,
			`{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"` + strings.Repeat("x", 300) + `","domain":{"name":"/"},"password":""}}},"scope":[]}}`,
		} {
			f.Add(uint8(i), body)
		}
	}
	st := memstore.NewMem()
	f.Cleanup(func() { _ = st.Close() })
	boot, err := identity.Bootstrap(f.Context(), st, identity.BootstrapConfig{Password: password})
	if err != nil {
		f.Fatal(err)
	}
	users, err := identity.New(identity.Config{Store: st})
	if err != nil {
		f.Fatal(err)
	}
	h := api.New(api.Config{Service: newFake(), Store: st, Identity: users})
	send := func(method, path, token, body string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(method, strings.ReplaceAll(path, "$P", boot.ProjectID), strings.NewReader(body))
		req.Header.Set("X-Auth-Token", token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w
	}
	token := send("POST", "/identity/v3/auth/tokens", "", `{"auth":{"identity":{"methods":["password"],"password":{"user":{"id":"`+
		boot.UserID+`","password":"`+password+`"}}},"scope":{"project":{"id":"`+boot.ProjectID+`"}}}}`).Header().Get("X-Subject-Token")
	if w := send("POST", "/v2/$P/volumes", token, `{"volume":{"size":1}}`); w.Code != http.StatusAccepted || !strings.Contains(w.Body.String(), id) {
		f.Fatalf("create volume: %d %s", w.Code, w.Body)
	}
	f.Fuzz(func(t *testing.T, call uint8, body string) {
		c := calls[int(call)%len(calls)]
		w := send(c.method, c.path, token, body)
		if w.Code >= 500 && w.Code != http.StatusNotImplemented {
			t.Errorf("%s %s with %q: %d %s", c.method, c.path, body, w.Code, w.Body)
		}
		if w.Code >= 400 && !strings.HasPrefix(w.Body.String(), `{"`) {
			t.Errorf("%s %s with %q: %d without a fault: %s", c.method, c.path, body, w.Code, w.Body)
		}
	})
}

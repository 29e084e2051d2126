package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
)

// serve makes a client of a server that answers with handle.
func serve(t *testing.T, handle http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(handle)
	t.Cleanup(srv.Close)
	provider := &gophercloud.ProviderClient{TokenID: "t", HTTPClient: http.Client{Timeout: 5 * time.Second}}
	return New(&gophercloud.ServiceClient{ProviderClient: provider, Endpoint: srv.URL + "/v2/p1/"})
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestRequests checks method, path, body and success code of the calls that change something.
func TestRequests(t *testing.T) {
	name := "n"
	for want, c := range map[string]struct {
		status int
		call   func(context.Context, *Client) error
	}{
		`POST /v2/p1/os-vendor-replications {"replication":{"name":"n","volume_ids":["a","b"],"priority_station":"az1","replication_model":"hypermetro"}}`: {202, func(ctx context.Context, c *Client) error {
			_, err := c.CreatePair(ctx, PairCreate{Name: &name, VolumeIDs: []string{"a", "b"}, PriorityStation: "az1"})
			return err
		}},
		`PUT /v2/p1/os-vendor-replication-consistency-groups/g {"replication_consistency_group":{}}`: {202, func(ctx context.Context, c *Client) error {
			_, err := c.UpdateGroup(ctx, "g", GroupUpdate{})
			return err
		}},
		`POST /v2/p1/os-vendor-replication-consistency-groups/g/action {"os-failover-replication-consistency-group":null}`: {200, func(ctx context.Context, c *Client) error {
			return c.Act(ctx, "g", ActionFailover)
		}},
		`POST /v2/p1/os-vendor-replication-consistency-groups/g/action {"os-failover-replication-consistency-group":{"force":true,"token":"7-1-ab"}}`: {200, func(ctx context.Context, c *Client) error {
			return c.ForceFailover(ctx, "g", "7-1-ab")
		}},
		`GET /v2/p1/os-vendor-replication-consistency-groups/g/failover-preview `: {200, func(ctx context.Context, c *Client) error {
			_, err := c.FailoverPreview(ctx, "g")
			return err
		}},
		`DELETE /v2/p1/os-vendor-replication-consistency-groups/g/divergence-images/7 `: {202, func(ctx context.Context, c *Client) error {
			return c.DeleteDivergenceImage(ctx, "g", "7")
		}},
		`POST /v2/p1/os-vendor-replication-consistency-groups/g/action {"os-extend-replication-volumes":{"replications":[{"id":"p","new_size":3}]}}`: {200, func(ctx context.Context, c *Client) error {
			return c.ExtendPairs(ctx, "g", []Growth{{"p", 3}})
		}},
		`DELETE /v2/p1/volumes/a%2Fb `: {202, func(ctx context.Context, c *Client) error { return c.DeleteVolume(ctx, "a/b") }},
	} {
		var got string
		status := c.status
		cl := serve(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got = r.Method + " " + r.URL.EscapedPath() + " " + string(body)
			w.WriteHeader(status)
			fmt.Fprint(w, "{}")
		})
		if err := c.call(bounded(t), cl); err != nil || got != want {
			t.Errorf("sent %s, want %s: %v", got, want, err)
		}
		// Any other code is no success, however friendly.
		status = 204
		var refusal *Error
		if err := c.call(bounded(t), cl); !errors.As(err, &refusal) || refusal.Status != 204 {
			t.Errorf("%s: 204 was taken: %v", want, err)
		}
	}
}

// TestListReadsAllPages checks that a full page leads to the next one, after its last id.
func TestListReadsAllPages(t *testing.T) {
	cl := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("status") != "active" {
			t.Errorf("the filter is lost: %s", r.URL)
		}
		n, from := pageLimit, 0
		if m := r.URL.Query().Get("marker"); m != "" {
			if m != fmt.Sprint(pageLimit-1) {
				t.Errorf("marker %s", m)
			}
			n, from = 2, pageLimit
		}
		groups := make([]map[string]any, n)
		for i := range groups {
			groups[i] = map[string]any{"id": fmt.Sprint(from + i)}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"replication_consistency_groups": groups})
	})
	all, err := cl.Groups(bounded(t), Filter{Status: "active"})
	if err != nil || len(all) != pageLimit+2 || all[pageLimit+1].ID != fmt.Sprint(pageLimit+1) {
		t.Fatalf("%d groups, %v", len(all), err)
	}
}

func TestErrors(t *testing.T) {
	cl := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-openstack-request-id", "req-7")
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"conflictingRequest": {"code": 409, "message": "failover refused"}}`)
	})
	err := cl.Act(bounded(t), "g", ActionFailover)
	if !IsConflict(err) || IsNotFound(err) || err.Error() != "failover refused (HTTP 409, request req-7)" {
		t.Errorf("%v", err)
	}
	gone := serve(t, nil)
	gone.sc.Endpoint = "http://127.0.0.1:1/v2/p1/"
	if _, err := gone.Group(bounded(t), "g"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
	for body, want := range map[string]string{
		`{"error": {"message": "bad token", "code": "401"}}`: "bad token",
		`<html>no</html>`: "Bad Gateway",
		``:                "Bad Gateway",
		`plain`:           "plain",
	} {
		if got := faultMessage(http.StatusBadGateway, []byte(body)); got != want {
			t.Errorf("%q reads as %q, want %q", body, got, want)
		}
	}
}

func TestTypes(t *testing.T) {
	var p Pair
	text := `{"volume_ids": "a, b", "progress": null, "created_at": "2017-09-28T05:08:32.839953", "updated_at": null, "name": null}`
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	if strings.Join(p.VolumeIDs, "|") != "a|b" || p.Progress != nil || p.CreatedAt.Nanosecond() != 839953000 || !p.UpdatedAt.IsZero() {
		t.Errorf("%+v", p)
	}
	// What the server answers null stays null where it is shown, and "" stays "".
	var g Group
	var v Volume
	for _, thing := range []any{&p, &g, &v} {
		if err := json.Unmarshal([]byte(`{"name": null, "description": "", "updated_at": null}`), thing); err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(thing)
		if err != nil || !strings.Contains(string(out), `"name":null,"description":""`) || !strings.Contains(string(out), `"updated_at":null`) {
			t.Errorf("%s, %v", out, err)
		}
	}
	for _, bad := range []string{`{"volume_ids": 3}`, `{"created_at": "yesterday"}`, `{"created_at": 4}`} {
		if err := json.Unmarshal([]byte(bad), &p); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func TestEnvironment(t *testing.T) {
	vars := map[string]string{
		"OS_AUTH_URL": "http://h/identity/v3", "OS_USERNAME": "u", "OS_PASSWORD": "p", "OS_PROJECT_NAME": "n",
		"OS_PROJECT_ID": "i", "OS_USER_DOMAIN_NAME": "D", "OS_PROJECT_DOMAIN_NAME": "E", "OS_REGION_NAME": "r",
	}
	env := func(k string) string { return vars[k] }
	auth, endpoint, _, err := fromEnvironment(Options{}, env)
	if err != nil || auth.DomainName != "D" || auth.Scope == nil || auth.Scope.ProjectID != "i" || auth.Scope.DomainName != "" || endpoint.Region != "r" {
		t.Errorf("%+v %+v %v", auth, endpoint, err)
	}
	delete(vars, "OS_PROJECT_ID")
	auth, endpoint, _, err = fromEnvironment(Options{Region: "s"}, env)
	if err != nil || auth.Scope.ProjectName != "n" || auth.Scope.DomainName != "E" || endpoint.Region != "s" {
		t.Errorf("%+v %+v %v", auth.Scope, endpoint, err)
	}
	if _, _, _, err := fromEnvironment(Options{}, func(string) string { return "" }); !errors.Is(err, ErrNoCredentials) {
		t.Errorf("nothing set: %v", err)
	}
}

package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
)

// serveIdentity is serve for a client whose catalog has the identity API below /identity/v3.
func serveIdentity(t *testing.T, handle http.HandlerFunc) *Client {
	t.Helper()
	c := serve(t, handle)
	c.region = "r"
	base := strings.TrimSuffix(c.sc.Endpoint, "v2/p1/") + "identity/v3/"
	c.sc.EndpointLocator = func(o gophercloud.EndpointOpts) (string, error) {
		if o.Type != "identity" || o.Region != "r" {
			return "", fmt.Errorf("asked for %+v", o)
		}
		return base, nil
	}
	return c
}

// TestIdentityRequests checks method, path, body and success code of the calls that change something.
func TestIdentityRequests(t *testing.T) {
	for want, c := range map[string]struct {
		status int
		call   func(context.Context, *Client) error
	}{
		`POST users {"user":{"name":"n","password":"p"}}`: {201, func(ctx context.Context, c *Client) error {
			_, err := c.CreateUser(ctx, UserCreate{Name: "n", Password: "p"})
			return err
		}},
		`PATCH users/a%2Fb {"user":{"password":"p"}}`: {200, func(ctx context.Context, c *Client) error {
			return c.SetPassword(ctx, "a/b", "p")
		}},
		`POST users/u/password {"user":{"original_password":"o","password":"p"}}`: {204, func(ctx context.Context, c *Client) error {
			return c.ChangePassword(ctx, "u", "o", "p")
		}},
		`DELETE users/u `: {204, func(ctx context.Context, c *Client) error { return c.DeleteUser(ctx, "u") }},
		`POST projects {"project":{"name":"n","domain_id":"d"}}`: {201, func(ctx context.Context, c *Client) error {
			_, err := c.CreateProject(ctx, ProjectCreate{Name: "n", DomainID: "d"})
			return err
		}},
		`DELETE projects/p `: {204, func(ctx context.Context, c *Client) error { return c.DeleteProject(ctx, "p") }},
		`PUT projects/p/users/u/roles/r `: {204, func(ctx context.Context, c *Client) error {
			return c.GrantRole(ctx, Grant{RoleID: "r", UserID: "u", ProjectID: "p"})
		}},
		`DELETE domains/d/users/u/roles/r `: {204, func(ctx context.Context, c *Client) error {
			return c.RevokeRole(ctx, Grant{RoleID: "r", UserID: "u", DomainID: "d"})
		}},
	} {
		var got string
		status := c.status
		cl := serveIdentity(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got = r.Method + " " + strings.TrimPrefix(r.URL.EscapedPath(), "/identity/v3/") + " " + string(body)
			w.WriteHeader(status)
			if status != http.StatusNoContent {
				fmt.Fprint(w, `{"user":{},"project":{}}`)
			}
		})
		if err := c.call(bounded(t), cl); err != nil || got != want {
			t.Errorf("sent %s, want %s: %v", got, want, err)
		}
		status = http.StatusForbidden
		if err := c.call(bounded(t), cl); !IsForbidden(err) {
			t.Errorf("%s: 403 was taken: %v", want, err)
		}
	}
}

// TestIdentityLists: a full page leads to the next one, an empty list is none that is nil, and an
// assignment knows where it holds.
func TestIdentityLists(t *testing.T) {
	cl := serveIdentity(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case strings.HasSuffix(r.URL.Path, "/role_assignments"):
			if q.Get("user.id") != "u" || q.Has("scope.domain.id") || q.Get("include_names") != "true" {
				t.Errorf("query: %v", q)
			}
			fmt.Fprint(w, `{"role_assignments":[{"role":{"id":"r","name":"member"},"user":{"id":"u","name":"bob"},
				"scope":{"project":{"id":"p","name":"team"}},"links":{}}],"links":{"next":null}}`)
			return
		case strings.HasSuffix(r.URL.Path, "/projects"):
			fmt.Fprint(w, `{"projects":[],"links":{}}`)
			return
		}
		n, from := identityPage, 0
		if m := q.Get("marker"); m != "" {
			if m != fmt.Sprint(identityPage-1) {
				t.Errorf("marker %s", m)
			}
			n, from = 2, identityPage
		}
		if q.Get("limit") != fmt.Sprint(identityPage) || q.Get("name") != "n" {
			t.Errorf("query: %v", q)
		}
		users := make([]User, n)
		for i := range users {
			users[i].ID = fmt.Sprint(from + i)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"users": users, "links": map[string]any{"next": nil}})
	})
	all, err := cl.Users(bounded(t), Filter{Name: "n"})
	if err != nil || len(all) != identityPage+2 || all[identityPage+1].ID != fmt.Sprint(identityPage+1) {
		t.Errorf("%d users, %v", len(all), err)
	}
	if ps, err := cl.Projects(bounded(t), Filter{}); ps == nil || len(ps) != 0 || err != nil {
		t.Errorf("projects: %v, %v", ps, err)
	}
	as, err := cl.Assignments(bounded(t), Grant{UserID: "u"})
	if err != nil || len(as) != 1 || as[0] != (Assignment{Role: Ref{"r", "member"}, User: Ref{"u", "bob"}, Project: Ref{"p", "team"}}) {
		t.Errorf("assignments: %+v, %v", as, err)
	}
	// A client that did not log in knows no other endpoint.
	if _, err := serve(t, nil).Users(bounded(t), Filter{}); err == nil || !strings.Contains(err.Error(), "log-in") {
		t.Errorf("without a catalog: %v", err)
	}
}

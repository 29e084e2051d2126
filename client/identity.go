package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/gophercloud/gophercloud/v2"
)

// User can log in, in the projects and domains in which it has a role.
type User struct {
	ID             string `json:"id"`
	Name           string `json:"name"`
	DomainID       string `json:"domain_id"`
	Enabled        bool   `json:"enabled"`
	Description    string `json:"description"`
	Email          string `json:"email"`
	DefaultProject string `json:"default_project_id"`
}

// Project owns volumes, pairs and groups.
type Project struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	DomainID    string `json:"domain_id"`
	Enabled     bool   `json:"enabled"`
	Description string `json:"description"`
}

// Domain owns users and projects.
type Domain struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Enabled bool   `json:"enabled"`
}

// Role is one of the server's fixed roles.
type Role struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// UserCreate is what a new user needs. An empty domain is the caller's. A user without a password cannot
// log in until it gets one.
type UserCreate struct {
	Name        string `json:"name"`
	DomainID    string `json:"domain_id,omitempty"`
	Password    string `json:"password,omitempty"`
	Description string `json:"description,omitempty"`
	Email       string `json:"email,omitempty"`
}

// ProjectCreate is what a new project needs. An empty domain is the caller's.
type ProjectCreate struct {
	Name        string `json:"name"`
	DomainID    string `json:"domain_id,omitempty"`
	Description string `json:"description,omitempty"`
}

// Grant names a role of a user on a project or on a domain, exactly one of the two; all by id.
type Grant struct{ RoleID, UserID, ProjectID, DomainID string }

// Assignment is a role that a user has on a project or a domain; the other of the two is empty.
type Assignment struct {
	Role    Ref `json:"role"`
	User    Ref `json:"user"`
	Project Ref `json:"project,omitzero"`
	Domain  Ref `json:"domain,omitzero"`
}

// Ref names a thing of the identity API.
type Ref struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// identityPage is the size of the pages asked for; lists that are longer are read page by page.
const identityPage = 1000

// identity is a client of the identity API of the same deployment, with the same token.
func (c *Client) identity() (*Client, error) {
	if c.sc.ProviderClient.EndpointLocator == nil {
		return nil, errors.New("the client was not made by a log-in, which finds the identity API")
	}
	o := gophercloud.EndpointOpts{Type: "identity", Region: c.region, Availability: gophercloud.AvailabilityPublic}
	base, err := c.sc.ProviderClient.EndpointLocator(o)
	if err != nil {
		return nil, fmt.Errorf("find the identity API of region %q in the catalog: %w", c.region, err)
	}
	return New(&gophercloud.ServiceClient{ProviderClient: c.sc.ProviderClient, Endpoint: base, Type: o.Type}), nil
}

// identityCall is one call of the identity API; the answer's one object, under key, goes into out.
func identityCall[T any](ctx context.Context, c *Client, method, path string, want int, body any, key string) (out T, err error) {
	id, err := c.identity()
	if err != nil {
		return out, err
	}
	if key == "" {
		return out, id.call(ctx, method, path, want, body, nil)
	}
	var answer map[string]json.RawMessage
	if err := id.call(ctx, method, path, want, body, &answer); err != nil {
		return out, err
	}
	if err := json.Unmarshal(answer[key], &out); err != nil {
		return out, fmt.Errorf("read %q of the answer to %s %s: %w", key, method, path, err)
	}
	return out, nil
}

// identityList reads all pages of a list, each after the last id of the one before.
func identityList[T any](ctx context.Context, c *Client, path, key string, q url.Values, id func(T) string) ([]T, error) {
	all := []T{}
	for {
		q.Set("limit", strconv.Itoa(identityPage))
		page, err := identityCall[[]T](ctx, c, http.MethodGet, path+"?"+q.Encode(), http.StatusOK, nil, key)
		if err != nil {
			return nil, err
		}
		if all = append(all, page...); len(page) < identityPage {
			return all, nil
		}
		q.Set("marker", id(page[len(page)-1]))
	}
}

func named(name string) url.Values {
	q := url.Values{}
	if name != "" {
		q.Set("name", name)
	}
	return q
}

// Users lists oneself and the users of the domains that one manages, by id; only those of the name unless it is empty.
func (c *Client) Users(ctx context.Context, f Filter) ([]User, error) {
	return identityList(ctx, c, "users", "users", named(f.Name), func(u User) string { return u.ID })
}

// User shows one user.
func (c *Client) User(ctx context.Context, id string) (User, error) {
	return identityCall[User](ctx, c, http.MethodGet, "users/"+url.PathEscape(id), http.StatusOK, nil, "user")
}

// CreateUser makes a user, which has no role yet.
func (c *Client) CreateUser(ctx context.Context, u UserCreate) (User, error) {
	return identityCall[User](ctx, c, http.MethodPost, "users", http.StatusCreated, map[string]any{"user": u}, "user")
}

// SetPassword gives a user another password, as one who manages it. All tokens of the user end.
func (c *Client) SetPassword(ctx context.Context, id, password string) error {
	body := map[string]any{"user": map[string]string{"password": password}}
	_, err := identityCall[User](ctx, c, http.MethodPatch, "users/"+url.PathEscape(id), http.StatusOK, body, "user")
	return err
}

// ChangePassword changes the caller's own password, by the old one. All tokens of the caller end, this client's too.
func (c *Client) ChangePassword(ctx context.Context, id, original, password string) error {
	body := map[string]any{"user": map[string]string{"password": password, "original_password": original}}
	_, err := identityCall[User](ctx, c, http.MethodPost, "users/"+url.PathEscape(id)+"/password", http.StatusNoContent, body, "")
	return err
}

// DeleteUser deletes a user with its tokens, roles and application credentials.
func (c *Client) DeleteUser(ctx context.Context, id string) error {
	_, err := identityCall[User](ctx, c, http.MethodDelete, "users/"+url.PathEscape(id), http.StatusNoContent, nil, "")
	return err
}

// Projects lists those that one has a role on or manages, by id; only those of the name unless it is empty.
func (c *Client) Projects(ctx context.Context, f Filter) ([]Project, error) {
	return identityList(ctx, c, "projects", "projects", named(f.Name), func(p Project) string { return p.ID })
}

// Project shows one project.
func (c *Client) Project(ctx context.Context, id string) (Project, error) {
	return identityCall[Project](ctx, c, http.MethodGet, "projects/"+url.PathEscape(id), http.StatusOK, nil, "project")
}

// CreateProject makes an empty project; nobody has a role in it yet.
func (c *Client) CreateProject(ctx context.Context, p ProjectCreate) (Project, error) {
	return identityCall[Project](ctx, c, http.MethodPost, "projects", http.StatusCreated, map[string]any{"project": p}, "project")
}

// DeleteProject deletes a project that owns nothing; IsConflict if it does.
func (c *Client) DeleteProject(ctx context.Context, id string) error {
	_, err := identityCall[Project](ctx, c, http.MethodDelete, "projects/"+url.PathEscape(id), http.StatusNoContent, nil, "")
	return err
}

// Domains lists one's own domain and those that one manages; only those of the name unless it is empty.
func (c *Client) Domains(ctx context.Context, f Filter) ([]Domain, error) {
	return identityList(ctx, c, "domains", "domains", named(f.Name), func(d Domain) string { return d.ID })
}

// Domain shows one domain.
func (c *Client) Domain(ctx context.Context, id string) (Domain, error) {
	return identityCall[Domain](ctx, c, http.MethodGet, "domains/"+url.PathEscape(id), http.StatusOK, nil, "domain")
}

// Roles lists the roles that there are.
func (c *Client) Roles(ctx context.Context) ([]Role, error) {
	return identityCall[[]Role](ctx, c, http.MethodGet, "roles", http.StatusOK, nil, "roles")
}

func (g Grant) path() string {
	target := "domains/" + url.PathEscape(g.DomainID)
	if g.ProjectID != "" {
		target = "projects/" + url.PathEscape(g.ProjectID)
	}
	return target + "/users/" + url.PathEscape(g.UserID) + "/roles/" + url.PathEscape(g.RoleID)
}

// GrantRole gives a role. To give one that is there already is no error.
func (c *Client) GrantRole(ctx context.Context, g Grant) error {
	_, err := identityCall[Role](ctx, c, http.MethodPut, g.path(), http.StatusNoContent, nil, "")
	return err
}

// RevokeRole takes a role away, and deletes the user's application credentials that hold it there.
// IsNotFound if the user does not have it.
func (c *Client) RevokeRole(ctx context.Context, g Grant) error {
	_, err := identityCall[Role](ctx, c, http.MethodDelete, g.path(), http.StatusNoContent, nil, "")
	return err
}

// Assignments lists who has which role where: one's own, and those one manages. Empty fields of the filter
// select everything; RoleID is not looked at.
func (c *Client) Assignments(ctx context.Context, g Grant) ([]Assignment, error) {
	q := url.Values{"include_names": {"true"}}
	for key, value := range map[string]string{"user.id": g.UserID, "scope.project.id": g.ProjectID, "scope.domain.id": g.DomainID} {
		if value != "" {
			q.Set(key, value)
		}
	}
	type answer struct {
		Assignment
		Scope struct {
			Project, Domain Ref
		} `json:"scope"`
	}
	all, err := identityCall[[]answer](ctx, c, http.MethodGet, "role_assignments?"+q.Encode(), http.StatusOK, nil, "role_assignments")
	out := make([]Assignment, 0, len(all))
	for _, a := range all {
		a.Project, a.Domain = a.Scope.Project, a.Scope.Domain
		out = append(out, a.Assignment)
	}
	return out, err
}

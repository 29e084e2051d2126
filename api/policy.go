package api

import (
	"bytes"
	"io"
	"net/http"
	"strings"

	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
)

// admit is the one place where a route's rule is enforced, before anything else looks at the call: the token, its
// scope, its roles and, of an action, the role that its key needs. Handlers decide only what depends on the thing.
func (s *server) admit(req *rest.Request, rule policy.Rule) error {
	switch rule.Scope {
	case policy.ScopeNone:
		return nil
	case policy.ScopeToken, policy.ScopeManager:
		return s.admitUser(req, rule)
	case policy.ScopeProject:
		return s.admitProject(req, rule)
	}
	return errNoRule
}

func (s *server) validate(req *rest.Request) (*identity.Token, error) {
	t, err := s.cfg.Identity.Validate(req.Context(), strings.TrimSpace(req.Header.Get("X-Auth-Token")))
	if err != nil {
		return nil, err
	}
	req.Credential = t.AppCred
	req.Caller = s.caller(req, t) // also of a call that is refused: the log tells who it was
	return t, nil
}

func (s *server) admitUser(req *rest.Request, rule policy.Rule) error {
	t, err := s.validate(req)
	if err != nil || rule.Scope != policy.ScopeManager {
		return err
	}
	manages, err := s.cfg.Identity.Manages(req.Context(), t)
	if err == nil && !manages {
		err = rest.Forbidden("this needs the role %s on a domain, and in the token's scope", policy.Admin)
	}
	return err
}

// notProjects are words that stand where a project's id does in paths of other services.
var notProjects = map[string]bool{"images": true, "extensions": true}

func (s *server) admitProject(req *rest.Request, rule policy.Rule) error {
	project := req.PathValue("project_id")
	if notProjects[project] {
		return rest.NotFound("there is nothing at this path")
	}
	t, err := s.validate(req)
	if err != nil {
		return err
	}
	if t.Project == nil {
		return rest.Forbidden("the token is not scoped to a project; this call needs one scoped to project %.80s", project)
	}
	if t.Project.ID != project {
		return rest.Forbidden("the token is scoped to project %s, the path names %.80s", t.Project.ID, project)
	}
	if err := s.needRole(t, rule.Role, "this call"); err != nil || rule.Actions == nil {
		return err
	}
	return s.admitAction(req, t, rule)
}

func (s *server) needRole(t *identity.Token, role policy.Role, what string) error {
	if s.cfg.Policy.Admits(t.Roles, role) {
		return nil
	}
	return rest.Forbidden("%s needs the role %s in the project; the token has %s", what, s.cfg.Policy.Least(role), policy.List(t.Roles))
}

// admitAction reads the body, which the handler reads again: the same bytes with the same reader.
func (s *server) admitAction(req *rest.Request, t *identity.Token, rule policy.Rule) error {
	raw, body, err := rest.ReadBody(req)
	if err != nil {
		return err
	}
	req.Body = io.NopCloser(bytes.NewReader(raw))
	keys := body.Keys()
	needs, unknown := rule.Needs(keys)
	if unknown != "" && len(keys) == 1 { // beside others the handler refuses it
		return rest.BadRequest("there is no action %.80q", unknown)
	}
	if len(keys) == 1 {
		req.Action = keys[0]
	}
	return s.needRole(t, needs, "action "+strings.Join(clipped(keys), ", "))
}

// clipped bounds the keys of a body for a text.
func clipped(keys []string) []string {
	out := make([]string, 0, min(len(keys), 5))
	for _, k := range keys[:min(len(keys), 5)] {
		out = append(out, k[:min(len(k), 80)])
	}
	return out
}

// errNoRule cannot be met: add refuses routes without a rule.
var errNoRule = &rest.Error{Status: http.StatusForbidden, Message: "there is no rule for this call"}

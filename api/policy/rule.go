package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Scope is what a call asks of the token before any role.
type Scope int

// Scopes. The zero value is no rule: a route with it is refused at start.
const (
	unruled Scope = iota
	// ScopeNone: no token is looked at.
	ScopeNone
	// ScopeToken: a valid token, of whatever scope.
	ScopeToken
	// ScopeManager: a valid token that manages a domain: it carries the role admin in its scope, and its user has
	// that role on a domain.
	ScopeManager
	// ScopeProject: a valid token that is scoped to the project of the path.
	ScopeProject
)

func (s Scope) String() string {
	switch s {
	case ScopeNone:
		return "no token"
	case ScopeToken:
		return "a token"
	case ScopeManager:
		return "a token that manages a domain"
	case ScopeProject:
		return "a token of the path's project"
	case unruled:
	}
	return "no rule"
}

// Rule says who may make a call. The functions below make one.
type Rule struct {
	Scope Scope
	// Role is the least one in the token's scope; of a call with Actions it is the least of theirs.
	Role Role
	// Actions are the keys that a body may hold, each with the least role for it; a key that is not among them is
	// refused before the handler sees it. nil: the call is no action.
	Actions map[string]Role
	// Owner says, for the page of rules, what the handler decides in addition by the thing itself; "": nothing.
	Owner string
}

// Open is the rule of a call that needs no token; why says what it tells or asks instead.
func Open(why string) Rule { return Rule{Scope: ScopeNone, Owner: why} }

// Token is the rule of a call that any valid token may make; the handler decides by the thing.
func Token(owner string) Rule { return Rule{Scope: ScopeToken, Owner: owner} }

// Manager is the rule of a call for who manages a domain; the handler decides by the domain of the thing.
func Manager(owner string) Rule { return Rule{Scope: ScopeManager, Owner: owner} }

// Project is the rule of a call below a project.
func Project(least Role) Rule { return Rule{Scope: ScopeProject, Role: least} }

// Actions is the rule of a call below a project whose body names an action.
func Actions(by map[string]Role) Rule {
	r := Rule{Scope: ScopeProject, Actions: by}
	for _, role := range by {
		if r.Role == "" || r.Role.Implies(role) {
			r.Role = role
		}
	}
	return r
}

// Keys are the rule's action keys, sorted.
func (r Rule) Keys() []string { return slices.Sorted(maps.Keys(r.Actions)) }

// Needs is the least role for a body with these keys, the highest of all that they name. unknown is the first key
// that is no action.
func (r Rule) Needs(keys []string) (needs Role, unknown string) {
	needs = r.Role
	for _, k := range keys {
		role, ok := r.Actions[k]
		switch {
		case !ok && unknown == "":
			unknown = k
		case ok && role.Implies(needs):
			needs = role
		}
	}
	return needs, unknown
}

// Check tells what is wrong with the rule of a route. A rule that lets a mere reader change something is wrong.
func (r Rule) Check(method, path string) error {
	below := strings.Contains(path, "{project_id}")
	switch {
	case r.Scope == unruled:
		return errors.New("it has no rule")
	case below != (r.Scope == ScopeProject):
		return fmt.Errorf("its rule asks for %s", r.Scope)
	case !below && (r.Role != "" || r.Actions != nil):
		return errors.New("its rule names a role, which counts below a project only")
	case !below && r.Owner == "":
		return errors.New("its rule does not say what decides instead of a role")
	case !below:
		return nil
	}
	if strings.HasSuffix(path, "/action") != (len(r.Actions) > 0) {
		return errors.New("actions have a role each, and other calls have none")
	}
	roles := append(slices.Collect(maps.Values(r.Actions)), r.Role)
	for _, role := range roles {
		if !Known(string(role)) {
			return fmt.Errorf("there is no role %q", role)
		}
		if method != http.MethodGet && !role.Implies(Member) {
			return fmt.Errorf("it changes something, and its rule admits the role %s", role)
		}
	}
	return nil
}

// Package policy says who may make which call: the roles with what each implies, and the rule that every route
// declares. It is pure: it reads no token, no request and no store. Package api enforces it, in one place, before a
// handler runs; docs/reference/policy.md is written from it.
package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Role is what a user has on a project or a domain.
type Role string

// The roles; there are no others. Each implies those after it in Roles.
const (
	// Admin also makes the statements that no machine can check, and changes what all projects share.
	Admin Role = "admin"
	// Operator also decides which side of a group serves.
	Operator Role = "operator"
	// Member does the daily work of a project: makes, changes and deletes what belongs to it.
	Member Role = "member"
	// Reader looks, and changes nothing of a project.
	Reader Role = "reader"
)

// Roles are all roles, the mightiest first. This order is the chain of implication, and its only place.
var Roles = []Role{Admin, Operator, Member, Reader}

// Known reports whether there is a role of that name.
func Known(name string) bool { return slices.Contains(Roles, Role(name)) }

// Names are the roles' names, the mightiest first.
func Names() []string {
	out := make([]string, len(Roles))
	for i, r := range Roles {
		out[i] = string(r)
	}
	return out
}

// Implies reports whether who has r may do what needs the other role.
func (r Role) Implies(needs Role) bool {
	have, want := slices.Index(Roles, r), slices.Index(Roles, needs)
	return have >= 0 && want >= 0 && have <= want
}

// Expand adds what the roles imply; the mightiest comes first. Names that are no role imply nothing and are left out.
func Expand(names []string) []string {
	var out []string
	for _, r := range Roles {
		if slices.ContainsFunc(names, func(n string) bool { return Role(n).Implies(r) }) {
			out = append(out, string(r))
		}
	}
	return out
}

// Policy is what a deployment can choose. The zero value is the default.
type Policy struct {
	// Failover is the least role for what needs Operator: Operator, the default, or Member.
	Failover Role
}

// ParseFailover reads the setting failover_role.
func ParseFailover(name string) (Policy, error) {
	switch r := Role(name); r {
	case Operator, Member:
		return Policy{Failover: r}, nil
	default:
		return Policy{}, fmt.Errorf("%q is neither %s nor %s", name, Operator, Member)
	}
}

// Least is the least role that is enough where a rule says needs.
func (p Policy) Least(needs Role) Role {
	if needs == Operator && p.Failover == Member {
		return Member
	}
	return needs
}

// Admits reports whether a token with these roles may do what needs that role.
func (p Policy) Admits(names []string, needs Role) bool {
	least := p.Least(needs)
	return slices.ContainsFunc(names, func(n string) bool { return Role(n).Implies(least) })
}

// List joins role names for a text.
func List(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

package policy

import (
	"slices"
	"strings"
	"testing"
)

// TestChain: each role implies itself and those after it, no others; a name that is no role implies nothing.
func TestChain(t *testing.T) {
	order := []Role{Reader, Member, Operator, Admin} // the weakest first, by hand
	for i, has := range order {
		for j, needs := range order {
			if has.Implies(needs) != (i >= j) {
				t.Errorf("%s implies %s: %v", has, needs, has.Implies(needs))
			}
		}
	}
	for _, pair := range [][2]Role{{"root", Reader}, {Admin, "root"}, {"", ""}, {Admin, ""}, {"", Reader}} {
		if pair[0].Implies(pair[1]) {
			t.Errorf("%q implies %q", pair[0], pair[1])
		}
	}
	for names, want := range map[string]string{
		"": "", "root": "", "reader": "reader", "member": "member reader", "reader operator": "operator member reader",
		"member admin": "admin operator member reader", "member member": "member reader",
	} {
		if got := strings.Join(Expand(strings.Fields(names)), " "); got != want {
			t.Errorf("%q becomes %q, want %q", names, got, want)
		}
	}
}

// TestFailoverRole: the setting changes what an operator's call needs, and nothing else.
func TestFailoverRole(t *testing.T) {
	for _, bad := range []string{"", "admin", "reader", "Member", "root"} {
		if _, err := ParseFailover(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	open, err := ParseFailover("member")
	if err != nil {
		t.Fatal(err)
	}
	for _, needs := range Roles {
		for _, has := range Roles {
			closed := has.Implies(needs)
			if (Policy{}).Admits([]string{string(has)}, needs) != closed {
				t.Errorf("by default %s may do what needs %s: %v", has, needs, !closed)
			}
			if want := closed || has == Member && needs == Operator; open.Admits([]string{string(has)}, needs) != want {
				t.Errorf("with failover_role member %s may do what needs %s: %v", has, needs, !want)
			}
		}
	}
	if open.Admits(nil, Reader) || (Policy{}).Admits([]string{"root"}, Reader) {
		t.Error("nobody may do something")
	}
}

// TestActionNeeds: a body needs the highest role of all its keys, and at least the lowest of the rule.
func TestActionNeeds(t *testing.T) {
	r := Actions(map[string]Role{"low": Member, "high": Operator, "top": Admin})
	if r.Role != Member {
		t.Errorf("the least role is %s", r.Role)
	}
	for keys, want := range map[string]string{
		"": "member ", "low": "member ", "high": "operator ", "low high": "operator ", "top low": "admin ", "new": "member new", "high new": "operator new",
	} {
		role, unknown := r.Needs(strings.Fields(keys))
		if got := string(role) + " " + unknown; got != want {
			t.Errorf("%q needs %q, want %q", keys, got, want)
		}
	}
	if !slices.Equal(r.Keys(), []string{"high", "low", "top"}) {
		t.Errorf("keys %v", r.Keys())
	}
}

package control

import (
	"fmt"
	"slices"
	"strings"
)

// Verdict is what an action does in a status.
type Verdict int

// Verdicts. Refused is the zero value: what a table does not name is refused.
const (
	Refused Verdict = iota // 409, nothing changes
	Allowed                // goes on to the checks of the record
	NoOp                   // 200, nothing changes
)

func (v Verdict) String() string {
	switch v {
	case Allowed:
		return "yes"
	case NoOp:
		return "no-op"
	case Refused:
	}
	return "409"
}

// GroupStatuses lists every status a group can show.
var GroupStatuses = []string{
	StatusCreating, StatusAvailable, StatusError, StatusDeleting, StatusErrorDeleting, StatusUpdating,
	StatusReversing, StatusErrorReversing, StatusFailovering, StatusFailovered, StatusErrorFailovered,
}

// Actions lists every group action.
var Actions = []Action{ActionFailover, ActionSync, ActionReverse, ActionStop, ActionReprotect, ActionExtend}

// ActionTable says in which status a group takes which action. What an allowed action needs
// beyond it is in ActionNeeds.
var ActionTable = map[Action]map[string]Verdict{
	ActionFailover: {
		StatusAvailable: Allowed, StatusError: Allowed,
		StatusErrorReversing: Allowed, StatusErrorFailovered: Allowed,
	},
	ActionSync: {
		StatusAvailable: Allowed, StatusFailovered: Allowed, StatusError: Allowed,
		StatusErrorReversing: Allowed, StatusErrorFailovered: Allowed,
	},
	ActionReverse: {
		StatusAvailable: Allowed, StatusErrorReversing: Allowed, StatusErrorFailovered: Allowed,
	},
	ActionStop: {
		StatusAvailable: Allowed, StatusUpdating: Allowed, StatusError: Allowed, StatusErrorDeleting: Allowed,
		StatusErrorReversing: Allowed, StatusErrorFailovered: Allowed, StatusFailovered: NoOp,
	},
	ActionReprotect: {StatusFailovered: Allowed},
	ActionExtend:    {StatusAvailable: Allowed},
}

// ActionNeeds says what an allowed action needs of the record and the nodes, and when it is a
// no-op.
var ActionNeeds = map[Action]string{
	ActionFailover:  "in sync (replication_status `active`), and every secondary node alive; else 409 with the fault_level",
	ActionSync:      "all nodes of both AZs alive, else 409 with code 37100043; a no-op while `active` or `copying`, and without pairs; in `failovered` the same as reprotect",
	ActionReverse:   "replication_status `active`, all nodes of both AZs alive, no other operation, and no running server on a production disk (an attached server counts as running), else 409 with its id",
	ActionStop:      "all primary nodes alive while in sync; a no-op when paused already; in an error status it pauses a group that still replicates, so that its pairs can be removed; it answers when it is effective",
	ActionReprotect: "all nodes of both AZs alive, else 409 with code 37100043; no running server on a returned disk (an attached server counts as running), else 409 with its id",
	ActionExtend:    "replication_status not `error`, all nodes of both AZs alive, no other operation; it answers when both sides are grown; a copying goes on, and its progress may start again",
}

// verdict refuses an action that the status does not take, naming the statuses that do.
func verdict(a Action, status string) (Verdict, error) {
	v := ActionTable[a][status]
	if v != Refused {
		return v, nil
	}
	var want []string
	for _, s := range GroupStatuses {
		if ActionTable[a][s] != Refused {
			want = append(want, s)
		}
	}
	return v, conflict("", "%s needs a group in status %s; it is %s", a, strings.Join(want, ", "), status)
}

// ActionsPage renders the table as the reference page docs/reference/actions.md.
func ActionsPage() string {
	var b strings.Builder
	b.WriteString("# Group actions and statuses\n\n")
	b.WriteString("<!-- Written by `go test ./control -run TestActionsPage -update` from control/table.go. -->\n\n")
	b.WriteString("What `POST …/os-vendor-replication-consistency-groups/{id}/action` does in each status of the group:\n")
	b.WriteString("*yes*: taken, if the needs below are met; *no-op*: 200 and nothing changes; *409*: refused and nothing changes.\n\n")
	b.WriteString("| status |")
	for _, a := range Actions {
		fmt.Fprintf(&b, " %s |", a)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(Actions)) + "\n")
	for _, s := range GroupStatuses {
		fmt.Fprintf(&b, "| `%s` |", s)
		for _, a := range Actions {
			fmt.Fprintf(&b, " %s |", ActionTable[a][s])
		}
		b.WriteString("\n")
	}
	b.WriteString("\n## What an action needs besides\n\n| action | API key | needs |\n|---|---|---|\n")
	for _, a := range Actions {
		fmt.Fprintf(&b, "| %s | `%s` | %s |\n", a, apiKeys[slices.Index(Actions, a)], ActionNeeds[a])
	}
	return b.String()
}

// apiKeys are the actions' keys at the API, in the order of Actions, for the page.
var apiKeys = []string{
	"os-failover-replication-consistency-group", "os-sync-replication-consistency-group",
	"os-reverse-replication-consistency-group", "os-stop-replication-consistency-group",
	"os-reprotect-replication-consistency-group", "os-extend-replication-volumes",
}

package evs

import (
	"net/http"

	"github.com/lockstep-dr/lockstep/api/rest"
)

type explainView struct {
	ID                string       `json:"id"`
	Name              *string      `json:"name"`
	Status            string       `json:"status"`
	ReplicationStatus string       `json:"replication_status"`
	FaultLevel        string       `json:"fault_level"`
	PriorityStation   string       `json:"priority_station"`
	Secondary         string       `json:"secondary"`
	Epoch             uint64       `json:"epoch"`
	Condition         string       `json:"condition"`
	Since             *string      `json:"since"`  // null: from before the group's history begins
	Reason            *string      `json:"reason"` // null: nothing is known
	BehindBytes       int64        `json:"behind_bytes"`
	Held              []string     `json:"held"`
	Waiting           []string     `json:"waiting_for"`
	Warnings          []string     `json:"warnings"`
	Actions           []optionView `json:"actions"`
}

type optionView struct {
	Action  string  `json:"action"`
	Node    string  `json:"node,omitempty"`
	Allowed bool    `json:"allowed"`
	Effect  *string `json:"effect"`  // what it would do; null: it is refused
	Refusal *string `json:"refusal"` // why it is refused; null: it is not
}

// explain is an extension: what a group does, since when and why, what is held, and what every
// action would do now.
func (a *api) explain(w http.ResponseWriter, r *rest.Request) error {
	e, err := a.svc.Explain(r.Context(), r.Caller, groupID(r))
	if err != nil {
		return err
	}
	text := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	v := explainView{
		ID: string(e.ID), Name: e.Name, Status: e.Status, ReplicationStatus: e.ReplicationStatus, FaultLevel: e.FaultLevel,
		PriorityStation: string(e.Priority), Secondary: string(e.Secondary), Epoch: uint64(e.Epoch), Condition: e.Condition,
		Reason: text(e.Reason), BehindBytes: e.Behind, Held: append([]string{}, e.Held...), Waiting: append([]string{}, e.Waiting...),
		Warnings: append([]string{}, e.Warnings...), Actions: make([]optionView, 0, len(e.Options)),
	}
	if !e.Since.IsZero() {
		v.Since = text(zoned(e.Since))
	}
	for _, o := range e.Options {
		v.Actions = append(v.Actions, optionView{o.Action, string(o.Node), o.Allowed, text(o.Effect), text(o.Refusal)})
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"explanation": v})
}

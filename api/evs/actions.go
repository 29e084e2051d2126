package evs

import (
	"net/http"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

// actions by their key in the body.
var actions = map[string]control.Action{
	keyFailover:                                  control.ActionFailover,
	"os-sync-replication-consistency-group":      control.ActionSync,
	"os-reverse-replication-consistency-group":   control.ActionReverse,
	"os-stop-replication-consistency-group":      control.ActionStop,
	"os-reprotect-replication-consistency-group": control.ActionReprotect,
	"os-extend-replication-volumes":              control.ActionExtend,
}

// readAction reads the body of an action: one known key, its value null, an empty object or, for
// extend, what to extend.
func readAction(body *rest.Object) (control.Action, []control.Extend, error) {
	if len(body.Keys()) != 1 {
		return "", nil, rest.BadRequest("an action body holds exactly one action, this one holds %d members", len(body.Keys()))
	}
	key := body.Keys()[0]
	action, ok := actions[key]
	if !ok {
		return "", nil, rest.BadRequest("there is no action %.80q", key)
	}
	if action == control.ActionExtend {
		ext := readExtend(body.Object(key))
		return action, ext, body.Err()
	}
	o := body.OptObject(key)
	if action == control.ActionFailover && o.Err() == nil && o.Has("force") { // false: see readForce
		o.Only("force")
	} else {
		o.Only()
	}
	return action, nil, body.Err()
}

// readExtend takes the documented list and the bare object that the Go SDK sends.
func readExtend(o *rest.Object) []control.Extend {
	items := []*rest.Object{o}
	if o.Has("replications") {
		o.Only("replications")
		items = o.Objects("replications")
		if o.Err() == nil && len(items) == 0 {
			o.Fail(rest.BadRequest("replications must name at least one replication pair"))
		}
	}
	var out []control.Extend
	var ids []string
	for _, it := range items {
		it.Only("id", "new_size")
		e := control.Extend{Pair: lockstep.PairID(it.String("id")), SizeGiB: it.GiB("new_size")}
		if it.Err() != nil {
			return nil
		}
		out, ids = append(out, e), append(ids, string(e.Pair))
	}
	checkIDs(o, "replications", ids)
	return out
}

// statements of operators by their key in an action's body: extensions.
var statements = map[string]control.Statement{
	"lockstep-continue":              control.StateContinue,
	"lockstep-confirm-node-off":      control.StateNodeOff,
	"lockstep-accept-directory":      control.StateDirectory,
	"lockstep-back-out":              control.StateBackOut,
	"lockstep-accept-lost-secondary": control.StateLostSecondary,
}

// keyOneSided chooses the policy for a primary without its secondary.
const keyOneSided = "lockstep-one-sided"

// declare takes a body with one of Lockstep's own actions; ok is false if it holds none.
func (a *api) declare(r *rest.Request, body *rest.Object) (ok bool, err error) {
	if len(body.Keys()) != 1 {
		return false, nil
	}
	key := body.Keys()[0]
	if key == keyResyncLimit {
		return true, a.limitGroup(r, body)
	}
	if key == keyOneSided {
		o := body.Object(key)
		o.Only("policy")
		policy := o.String("policy")
		if err := body.Err(); err != nil {
			return true, err
		}
		if policy != "strict" && policy != "available" {
			return true, rest.BadRequest("policy must be strict or available, not %.80q", policy)
		}
		return true, a.svc.SetStrict(r.Context(), r.Caller, groupID(r), policy == "strict")
	}
	statement, ok := statements[key]
	if !ok {
		return false, nil
	}
	o := body.Object(key)
	node := ""
	if statement.NamesNode() {
		o.Only("reason", "node")
		node = o.String("node")
	} else {
		o.Only("reason")
	}
	reason := o.String("reason")
	if err := body.Err(); err != nil {
		return true, err
	}
	return true, a.svc.Declare(r.Context(), r.Caller, groupID(r), statement, lockstep.NodeID(node), reason)
}

// action answers 200 with an empty body, the one success that clients know, but for a verification.
func (a *api) action(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	if ok, err := a.verify(w, r, body); ok {
		return err
	}
	if ok, err := a.declare(r, body); ok {
		if err != nil {
			return err
		}
		return rest.WriteEmpty(w, http.StatusOK)
	}
	if token, ok, err := readForce(body); ok || err != nil {
		if err != nil {
			return err
		}
		r.Action = keyFailover + " by force"
		if err := a.svc.ForceFailover(r.Context(), r.Caller, groupID(r), token); err != nil {
			return err
		}
		return rest.WriteEmpty(w, http.StatusOK)
	}
	action, ext, err := readAction(body)
	if err != nil {
		return err
	}
	if err := a.svc.Act(r.Context(), r.Caller, groupID(r), action, ext); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusOK)
}

// zoned is the time of the extensions: unlike the vendor's calls they have no old clients to spare.
func zoned(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

type historyView struct {
	At        string `json:"at"`
	Epoch     uint64 `json:"epoch"`
	What      string `json:"what"`
	By        string `json:"by"`
	RequestID string `json:"request_id,omitempty"`
	// Receipt is what a forced failover was told to lose, or lost.
	Receipt *receiptView `json:"receipt,omitempty"`
}

// history is an extension: what happened to a group.
func (a *api) history(w http.ResponseWriter, r *rest.Request) error {
	entries, err := a.svc.History(r.Context(), r.Caller, groupID(r))
	if err != nil {
		return err
	}
	out := make([]historyView, 0, len(entries))
	for _, e := range entries {
		v := historyView{At: zoned(e.At), Epoch: uint64(e.Epoch), What: e.What, By: e.By, RequestID: e.RequestID}
		if e.Receipt != nil {
			receipt := viewReceipt(*e.Receipt)
			v.Receipt = &receipt
		}
		out = append(out, v)
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"history": out})
}

type recoveredView struct {
	ID          string   `json:"id"`
	Was         uint64   `json:"epoch_before"`
	Epoch       uint64   `json:"epoch"`
	Primary     string   `json:"priority_station"`
	InSync      bool     `json:"in_sync"`
	Unconfirmed []string `json:"unconfirmed"` // why it is not known to be in sync
}

// recoverStore is an extension: {"recovery": {"reason": "…", "off": ["az1"]}}, for the role admin.
func (a *api) recoverStore(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	r.Action = "recover"
	body.Only("recovery")
	o := body.Object("recovery")
	o.Only("reason", "off")
	reason := o.String("reason")
	var off []lockstep.AZ
	if o.Has("off") {
		for _, az := range o.Strings("off") {
			off = append(off, lockstep.AZ(az))
		}
	}
	if err := body.Err(); err != nil {
		return err
	}
	done, err := a.svc.RecoverStore(r.Context(), r.Caller, off, reason)
	if err != nil {
		return err
	}
	groups := make([]recoveredView, 0, len(done.Groups))
	for _, g := range done.Groups {
		groups = append(groups, recoveredView{string(g.Group), uint64(g.Was), uint64(g.Epoch), string(g.Primary), g.InSync, append([]string{}, g.Unconfirmed...)})
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"groups": groups, "unknown_groups": append([]lockstep.GroupID{}, done.Unknown...)})
}

type nodeView struct {
	ID         string  `json:"id"`
	AZ         string  `json:"availability_zone"`
	Alive      bool    `json:"alive"`
	Since      *string `json:"since"` // of its being alive; null while it is not
	TotalBytes int64   `json:"total_bytes"`
	FreeBytes  int64   `json:"free_bytes"`
	Version    string  `json:"version"`
	// ResyncLimit is how much its synchronizations may read and send in a second, MiB; null: as its configuration says.
	ResyncLimit *int64 `json:"resync_limit_mib"`
}

// nodes is an extension: the storage nodes without their addresses.
func (a *api) nodes(w http.ResponseWriter, r *rest.Request) error {
	nodes, err := a.svc.Nodes(r.Context())
	if err != nil {
		return err
	}
	out := make([]nodeView, 0, len(nodes))
	for _, n := range nodes {
		v := nodeView{
			ID: string(n.ID), AZ: string(n.AZ), Alive: n.Alive,
			TotalBytes: n.TotalBytes, FreeBytes: n.FreeBytes, Version: n.Version, ResyncLimit: limitOrNull(n.ResyncLimitMiB),
		}
		if n.Alive && !n.Since.IsZero() {
			since := zoned(n.Since)
			v.Since = &since
		}
		out = append(out, v)
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"nodes": out})
}

package evs

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

// groupShort is the answer to create and update.
type groupShort struct {
	ID              string  `json:"id"`
	Name            *string `json:"name"`
	Description     *string `json:"description"`
	Status          string  `json:"status"`
	PriorityStation string  `json:"priority_station"`
	CreatedAt       string  `json:"created_at"`
	UpdatedAt       *string `json:"updated_at"`
}

// groupFull is the answer to show and list.
type groupFull struct {
	groupShort
	Model             string   `json:"replication_model"`
	ReplicationStatus string   `json:"replication_status"`
	ReplicationIDs    []string `json:"replication_ids"`
	FailureDetail     *string  `json:"failure_detail"`
	FaultLevel        string   `json:"fault_level"` // "0", "2", "5"
	// OneSided is an extension: how a primary serves without its secondary, available or strict.
	OneSided string `json:"lockstep_one_sided"`
	// Reason and Warnings are extensions, for people: why the group is as it is (null: nothing is
	// known), and what threatens it.
	Reason   *string  `json:"lockstep_reason"`
	Warnings []string `json:"lockstep_warnings"`
	// Resync and ResyncLimit are extensions: how a synchronization gets on (null: none runs), and how much
	// it may read and send in a second at each primary node, MiB (null: no limit of the group's).
	Resync      *resyncView `json:"lockstep_resync"`
	ResyncLimit *int64      `json:"lockstep_resync_limit_mib"`
	// Verified and Verification are extensions: the last proof that both sides are equal, and the
	// verification that runs, or ran last.
	Verified     *proofView        `json:"lockstep_verified"`
	Verification *verificationView `json:"lockstep_verification"`
}

func shortGroup(g control.GroupView) groupShort {
	return groupShort{
		ID: string(g.ID), Name: g.Name, Description: g.Description, Status: g.Status,
		PriorityStation: string(g.Priority), CreatedAt: rest.Time(g.CreatedAt), UpdatedAt: rest.TimePtr(g.UpdatedAt),
	}
}

func fullGroup(g control.GroupView) groupFull {
	out := groupFull{
		groupShort: shortGroup(g), Model: g.Model, ReplicationStatus: g.ReplicationStatus,
		ReplicationIDs: []string{}, FailureDetail: g.Failure, FaultLevel: g.FaultLevel,
	}
	out.Warnings = append([]string{}, g.Warnings...)
	if g.Reason != "" {
		out.Reason = &g.Reason
	}
	if out.Verification = viewVerification(g.Verification); g.Verification != nil {
		out.Verified = viewProof(g.Verification.Proof)
	}
	out.Resync, out.ResyncLimit = viewResync(g.Resync), limitOrNull(g.ResyncLimitMiB)
	out.OneSided = "available"
	if g.Strict {
		out.OneSided = "strict"
	}
	for _, p := range g.Pairs {
		out.ReplicationIDs = append(out.ReplicationIDs, string(p))
	}
	return out
}

const groupKey = "replication_consistency_group"

func pairIDs(ids []string) []lockstep.PairID {
	out := make([]lockstep.PairID, 0, len(ids))
	for _, id := range ids {
		out = append(out, lockstep.PairID(id))
	}
	return out
}

func (a *api) createGroup(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	o := body.Object(groupKey)
	only(body, o, groupKey, "name", "description", "replication_ids", "priority_station", "replication_model")
	c := control.GroupCreate{Name: o.Name("name"), Description: o.Name("description")}
	c.Pairs = pairIDs(readIDs(o, "replication_ids"))
	if o.Err() == nil && len(c.Pairs) == 0 {
		o.Fail(rest.BadRequest("replication_ids must name at least one replication pair"))
	}
	c.Priority = lockstep.AZ(o.String("priority_station"))
	c.Model = *readModel(o, true)
	if err := o.Err(); err != nil {
		return err
	}
	g, err := a.svc.CreateGroup(r.Context(), r.Caller, c)
	if err != nil {
		return err
	}
	r.Made = string(g.ID)
	return rest.WriteJSON(w, http.StatusAccepted, map[string]any{groupKey: shortGroup(g)})
}

func groupID(r *rest.Request) lockstep.GroupID { return lockstep.GroupID(r.PathValue("id")) }

func (a *api) showGroup(w http.ResponseWriter, r *rest.Request) error {
	g, err := a.svc.GetGroup(r.Context(), r.Caller, groupID(r))
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{groupKey: fullGroup(g)})
}

// fixedBy says what changes the members of a group that its update does not take.
var fixedBy = map[string]string{
	"priority_station": "it is the zone of the primary, which a failover or a switchover moves",
	"replication_ids":  "pairs come in and go out by add_replication_ids and remove_replication_ids",
}

// updateGroup takes an empty object as well: Terraform sends one.
func (a *api) updateGroup(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	o := body.Object(groupKey)
	for _, fixed := range []string{"priority_station", "replication_ids"} {
		if o.Has(fixed) {
			o.Fail(rest.BadRequest("%q cannot be changed by an update: %s", groupKey+"."+fixed, fixedBy[fixed]))
		}
	}
	only(body, o, groupKey, "name", "description", "replication_model", "add_replication_ids", "remove_replication_ids")
	u := control.GroupUpdate{
		Name: o.Name("name"), SetName: o.Has("name"),
		Description: o.Name("description"), SetDesc: o.Has("description"),
		Model:  readModel(o, false),
		Add:    pairIDs(readIDs(o, "add_replication_ids")),
		Remove: pairIDs(readIDs(o, "remove_replication_ids")),
	}
	for _, add := range u.Add {
		for _, remove := range u.Remove {
			if add == remove {
				o.Fail(rest.BadRequest("replication pair %s is to be added and removed", add))
			}
		}
	}
	if err := o.Err(); err != nil {
		return err
	}
	g, err := a.svc.UpdateGroup(r.Context(), r.Caller, groupID(r), u)
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusAccepted, map[string]any{groupKey: shortGroup(g)})
}

func (a *api) deleteGroup(w http.ResponseWriter, r *rest.Request) error {
	if err := a.svc.DeleteGroup(r.Context(), r.Caller, groupID(r)); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusAccepted)
}

var groupOrder = rest.Order[control.GroupView]{
	ID:    func(g control.GroupView) string { return string(g.ID) },
	Codes: codes, MinLimit: 1,
	Keys: map[string]func(a, b control.GroupView) int{
		"id":                 func(a, b control.GroupView) int { return cmp.Compare(a.ID, b.ID) },
		"name":               func(a, b control.GroupView) int { return rest.CompareOpt(a.Name, b.Name) },
		"description":        func(a, b control.GroupView) int { return rest.CompareOpt(a.Description, b.Description) },
		"status":             func(a, b control.GroupView) int { return cmp.Compare(a.Status, b.Status) },
		"replication_status": func(a, b control.GroupView) int { return cmp.Compare(a.ReplicationStatus, b.ReplicationStatus) },
		"priority_station":   func(a, b control.GroupView) int { return cmp.Compare(a.Priority, b.Priority) },
		"replication_model":  func(a, b control.GroupView) int { return cmp.Compare(a.Model, b.Model) },
		"created_at":         func(a, b control.GroupView) int { return a.CreatedAt.Compare(b.CreatedAt) },
		"updated_at":         func(a, b control.GroupView) int { return rest.CompareOptTime(a.UpdatedAt, b.UpdatedAt) },
	},
}

// keepGroup reads the filters of the list of groups, except that of the volume.
func keepGroup(q url.Values) (func(control.GroupView) bool, error) {
	changed, err := rest.ChangedSince(q)
	if err != nil {
		return nil, err
	}
	name, status, station := q.Get("name"), q.Get("status"), q.Get("priority_station")
	return func(g control.GroupView) bool {
		return (name == "" || rest.EqualOpt(g.Name, name)) &&
			(status == "" || g.Status == status) &&
			(station == "" || string(g.Priority) == station) &&
			changed(g.CreatedAt, g.UpdatedAt)
	}, nil
}

// groupsOf are the groups with a pair of the volume, not nil: at most one, as it is in one pair at most.
func (a *api) groupsOf(r *rest.Request, id lockstep.VolumeID) ([]lockstep.GroupID, error) {
	out := []lockstep.GroupID{}
	v, err := a.svc.GetVolume(r.Context(), r.Caller, id)
	if err != nil || v.Pair == "" {
		return out, ignoreMissing(err)
	}
	p, err := a.svc.GetPair(r.Context(), r.Caller, v.Pair)
	if err == nil && p.Group != "" {
		out = append(out, p.Group)
	}
	return out, ignoreMissing(err)
}

// ignoreMissing is nil if the error says that something does not exist.
func ignoreMissing(err error) error {
	var refused *control.Error
	if errors.As(err, &refused) && refused.Kind == control.KindNotFound {
		return nil
	}
	return err
}

func (a *api) listGroups(w http.ResponseWriter, r *rest.Request) error {
	q := r.URL.Query()
	page, err := groupOrder.ReadPage(q)
	if err != nil {
		return err
	}
	keep, err := keepGroup(q)
	if err != nil {
		return err
	}
	var only []lockstep.GroupID
	if volume := q.Get("volume_id"); volume != "" {
		if only, err = a.groupsOf(r, lockstep.VolumeID(volume)); err != nil {
			return err
		}
	}
	items, _, err := groupOrder.Read(page, keep, func(after string, oldest bool, keep, fn func(control.GroupView) bool) (bool, error) {
		return a.svc.EachGroup(r.Context(), r.Caller, control.Walk{After: after, Oldest: oldest, Groups: only}, keep, fn)
	})
	if err != nil {
		return err
	}
	out := make([]groupFull, 0, len(items))
	for _, g := range items {
		out = append(out, fullGroup(g))
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"replication_consistency_groups": out})
}

package evs

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

// pairShort is the answer to a create.
type pairShort struct {
	ID              string  `json:"id"`
	Name            *string `json:"name"`
	Description     *string `json:"description"`
	Status          string  `json:"status"`
	GroupID         *string `json:"replication_consistency_group_id"`
	VolumeIDs       string  `json:"volume_ids"` // both ids with a comma between, in creation order
	PriorityStation string  `json:"priority_station"`
	CreatedAt       string  `json:"created_at"`
	UpdatedAt       *string `json:"updated_at"`
}

// pairFull is the answer to show and list.
type pairFull struct {
	pairShort
	Model             string  `json:"replication_model"`
	ReplicationStatus string  `json:"replication_status"`
	Progress          *string `json:"progress"` // "0".."100"
	FailureDetail     *string `json:"failure_detail"`
	RecordMetadata    string  `json:"record_metadata"` // JSON in a string
	FaultLevel        string  `json:"fault_level"`     // "0", "2", "5"
}

func idOrNil[T ~string](id T) *string {
	if id == "" {
		return nil
	}
	s := string(id)
	return &s
}

func shortPair(p control.PairView) pairShort {
	return pairShort{
		ID: string(p.ID), Name: p.Name, Description: p.Description, Status: p.Status,
		GroupID:         idOrNil(p.Group),
		VolumeIDs:       string(p.Volumes[0]) + "," + string(p.Volumes[1]),
		PriorityStation: string(p.Priority), CreatedAt: rest.Time(p.CreatedAt), UpdatedAt: rest.TimePtr(p.UpdatedAt),
	}
}

func fullPair(p control.PairView) pairFull {
	return pairFull{
		pairShort: shortPair(p), Model: p.Model, ReplicationStatus: p.ReplicationStatus, Progress: p.Progress,
		FailureDetail: p.Failure, RecordMetadata: recordMetadata(p), FaultLevel: p.FaultLevel,
	}
}

// recordMetadata is spelled with the spaces of the vendor's examples.
func recordMetadata(p control.PairView) string {
	kind, err := json.Marshal(p.Meta.Type)
	if err != nil { // a string always encodes
		kind = []byte(`""`)
	}
	return fmt.Sprintf(`{"volume_size": %d, "volume_type": %s, "multiattach": %t}`, p.Meta.SizeGiB, kind, p.Meta.Multiattach)
}

func (a *api) createPair(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	o := body.Object("replication")
	only(body, o, "replication", "name", "description", "volume_ids", "priority_station", "replication_model")
	c := control.PairCreate{Name: o.Name("name"), Description: o.Name("description")}
	ids := o.StringsOrCommas("volume_ids")
	if o.Err() == nil && len(ids) != 2 {
		o.Fail(rest.BadRequest("volume_ids must name two volumes, not %d", len(ids)))
	}
	checkIDs(o, "volume_ids", ids)
	for _, id := range ids {
		c.Volumes = append(c.Volumes, lockstep.VolumeID(id))
	}
	c.Priority = lockstep.AZ(o.String("priority_station"))
	c.Model = *readModel(o, true)
	if err := o.Err(); err != nil {
		return err
	}
	p, err := a.svc.CreatePair(r.Context(), r.Caller, c)
	if err != nil {
		return err
	}
	r.Made = string(p.ID)
	return rest.WriteJSON(w, http.StatusAccepted, map[string]any{"replication": shortPair(p)})
}

func pairID(r *rest.Request) lockstep.PairID { return lockstep.PairID(r.PathValue("id")) }

func (a *api) showPair(w http.ResponseWriter, r *rest.Request) error {
	p, err := a.svc.GetPair(r.Context(), r.Caller, pairID(r))
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"replication": fullPair(p)})
}

func (a *api) deletePair(w http.ResponseWriter, r *rest.Request) error {
	if err := a.svc.DeletePair(r.Context(), r.Caller, pairID(r)); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusAccepted)
}

var pairOrder = rest.Order[control.PairView]{
	ID:    func(p control.PairView) string { return string(p.ID) },
	Codes: codes, MinLimit: 1,
	Keys: map[string]func(a, b control.PairView) int{
		"id":                 func(a, b control.PairView) int { return cmp.Compare(a.ID, b.ID) },
		"name":               func(a, b control.PairView) int { return rest.CompareOpt(a.Name, b.Name) },
		"description":        func(a, b control.PairView) int { return rest.CompareOpt(a.Description, b.Description) },
		"status":             func(a, b control.PairView) int { return cmp.Compare(a.Status, b.Status) },
		"replication_status": func(a, b control.PairView) int { return cmp.Compare(a.ReplicationStatus, b.ReplicationStatus) },
		"priority_station":   func(a, b control.PairView) int { return cmp.Compare(a.Priority, b.Priority) },
		"replication_model":  func(a, b control.PairView) int { return cmp.Compare(a.Model, b.Model) },
		"created_at":         func(a, b control.PairView) int { return a.CreatedAt.Compare(b.CreatedAt) },
		"updated_at":         func(a, b control.PairView) int { return rest.CompareOptTime(a.UpdatedAt, b.UpdatedAt) },
		"replication_consistency_group_id": func(a, b control.PairView) int {
			return cmp.Compare(a.Group, b.Group)
		},
	},
}

// keepPair reads the filters of the list of pairs. In volume_ids, spaces and order do not matter.
func keepPair(q url.Values) (func(control.PairView) bool, error) {
	changed, err := rest.ChangedSince(q)
	if err != nil {
		return nil, err
	}
	name, status, station := q.Get("name"), q.Get("status"), q.Get("priority_station")
	volume, group := q.Get("volume_id"), q.Get("replication_consistency_group_id")
	volumes := splitIDs(q.Get("volume_ids"))
	return func(p control.PairView) bool {
		have := []string{string(p.Volumes[0]), string(p.Volumes[1])}
		slices.Sort(have)
		return (name == "" || rest.EqualOpt(p.Name, name)) &&
			(status == "" || p.Status == status) &&
			(station == "" || string(p.Priority) == station) &&
			(group == "" || string(p.Group) == group) &&
			(volume == "" || slices.Contains(have, volume)) &&
			(volumes == nil || slices.Equal(have, volumes)) &&
			changed(p.CreatedAt, p.UpdatedAt)
	}, nil
}

// splitIDs reads ids with commas between them, sorted; nil for none.
func splitIDs(s string) []string {
	if strings.TrimSpace(s) == "" {
		return nil
	}
	ids := strings.Split(s, ",")
	for i := range ids {
		ids[i] = strings.TrimSpace(ids[i])
	}
	slices.Sort(ids)
	return ids
}

func (a *api) listPairs(w http.ResponseWriter, r *rest.Request) error {
	q := r.URL.Query()
	page, err := pairOrder.ReadPage(q)
	if err != nil {
		return err
	}
	keep, err := keepPair(q)
	if err != nil {
		return err
	}
	items, _, err := pairOrder.Read(page, keep, func(after string, oldest bool, keep, fn func(control.PairView) bool) (bool, error) {
		w := control.Walk{After: after, Oldest: oldest, Group: lockstep.GroupID(q.Get("replication_consistency_group_id"))}
		return a.svc.EachPair(r.Context(), r.Caller, w, keep, fn)
	})
	if err != nil {
		return err
	}
	out := make([]pairFull, 0, len(items))
	for _, p := range items {
		out = append(out, fullPair(p))
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"replications": out})
}

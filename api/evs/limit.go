package evs

import (
	"net/http"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

// keyResyncLimit bounds the synchronizations of a group: an extension.
const keyResyncLimit = "lockstep-resync-limit"

// resyncView is a synchronization that runs.
type resyncView struct {
	ToSend      int64  `json:"to_send_bytes"`
	Total       int64  `json:"total_bytes"`      // that there were to send at its beginning
	Rate        int64  `json:"bytes_per_second"` // of the last ten seconds; 0: not known yet
	SecondsLeft *int64 `json:"seconds_left"`     // at this rate; null: not known
}

func viewResync(v *control.ResyncView) *resyncView {
	if v == nil {
		return nil
	}
	out := &resyncView{ToSend: v.ToSendBytes, Total: v.TotalBytes, Rate: v.BytesPerSecond}
	if left, ok := v.SecondsLeft(); ok {
		out.SecondsLeft = &left
	}
	return out
}

func limitOrNull(mib int64) *int64 {
	if mib == 0 {
		return nil
	}
	return &mib
}

// readLimit reads MiB/s, or 0 for null.
func readLimit(o *rest.Object, key string) int64 {
	if o.Err() != nil || o.Null(key) {
		return 0
	}
	mib := o.Int(key)
	if o.Err() == nil && (mib < 1 || mib > store.MaxResyncLimitMiB) {
		o.Fail(rest.BadRequest("%s must be from 1 to %d MiB/s, or null for none, not %d", key, store.MaxResyncLimitMiB, mib))
	}
	return mib
}

// limitGroup carries out {"lockstep-resync-limit": {"mib": 100}}, with null for no limit.
func (a *api) limitGroup(r *rest.Request, body *rest.Object) error {
	o := body.Object(keyResyncLimit)
	o.Only("mib")
	if o.Err() == nil && !o.Has("mib") {
		o.Fail(rest.BadRequest("%s.mib is missing; null is no limit", keyResyncLimit))
	}
	mib := readLimit(o, "mib")
	if err := body.Err(); err != nil {
		return err
	}
	return a.svc.LimitGroup(r.Context(), r.Caller, groupID(r), mib)
}

// updateNode is an extension: {"node": {"resync_limit_mib": 100}}, with null for what the node's
// configuration says, for the role admin.
func (a *api) updateNode(w http.ResponseWriter, r *rest.Request) error {
	const key = "resync_limit_mib"
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	body.Only("node")
	o := body.Object("node")
	o.Only(key)
	if o.Err() == nil && !o.Has(key) {
		o.Fail(rest.BadRequest("node holds nothing to change; it takes %s", key))
	}
	mib := readLimit(o, key)
	if err := body.Err(); err != nil {
		return err
	}
	if err := a.svc.LimitNode(r.Context(), r.Caller, lockstep.NodeID(r.PathValue("id")), mib); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusOK)
}

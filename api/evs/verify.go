package evs

import (
	"net/http"

	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

// Actions of verifications: extensions.
const (
	keyVerify       = "lockstep-verify"
	keyVerifyCancel = "lockstep-verify-cancel"
)

// proofView says when both sides were last found equal.
type proofView struct {
	VerificationID string            `json:"verification_id"`
	StartedAt      string            `json:"started_at"`
	VerifiedAt     string            `json:"verified_at"`
	Epoch          uint64            `json:"epoch"`
	Writes         map[string]string `json:"write_numbers"` // by "primary node>secondary node"
	Bytes          int64             `json:"bytes"`
	DurationMs     int64             `json:"duration_ms"`
	Differences    int               `json:"differences"` // found and repaired on the way
}

// verificationView is the running verification, or the last one.
type verificationView struct {
	ID               string           `json:"id"`
	State            string           `json:"state"` // running, equal, not-completed, cancelled
	Reason           *string          `json:"reason"`
	RateMiB          *int64           `json:"rate_mib"` // null: the nodes' own
	Epoch            uint64           `json:"epoch"`
	By               string           `json:"by"`
	StartedAt        string           `json:"started_at"`
	EndedAt          *string          `json:"ended_at"`
	Bytes            int64            `json:"bytes"`
	TotalBytes       int64            `json:"total_bytes"`
	Waits            []string         `json:"waits"`
	Differences      int              `json:"differences"`
	DifferentBytes   int64            `json:"different_bytes"`
	FirstDifferences []differenceView `json:"first_differences"`
}

type differenceView struct {
	VolumeID string  `json:"volume_id"`
	Node     string  `json:"node"` // of the primary
	Offset   int64   `json:"offset"`
	Length   int64   `json:"length"`
	Repaired bool    `json:"repaired"`
	Kept     *string `json:"kept"` // in the pool of node, with .primary and .secondary; null: not kept
	FoundAt  string  `json:"found_at"`
}

func viewProof(p *store.Proof) *proofView {
	if p == nil {
		return nil
	}
	v := &proofView{
		VerificationID: p.ID, StartedAt: zoned(p.StartedAt), VerifiedAt: zoned(p.At), Epoch: uint64(p.Epoch), Writes: map[string]string{},
		Bytes: p.Bytes, DurationMs: p.At.Sub(p.StartedAt).Milliseconds(), Differences: p.Differences,
	}
	for link, number := range p.Writes {
		v.Writes[link] = number
	}
	return v
}

func viewVerification(w *control.VerificationView) *verificationView {
	if w == nil {
		return nil
	}
	v := &verificationView{
		ID: w.ID, State: string(w.State), Epoch: uint64(w.Epoch), By: w.By, StartedAt: zoned(w.StartedAt), Bytes: w.Bytes, TotalBytes: w.TotalBytes,
		Waits: append([]string{}, w.Waits...), Differences: w.Differences.Count, DifferentBytes: w.Differences.Bytes, FirstDifferences: []differenceView{},
	}
	if w.Reason != "" {
		v.Reason = &w.Reason
	}
	if w.RateMiB > 0 {
		v.RateMiB = &w.RateMiB
	}
	if w.EndedAt != nil {
		at := zoned(*w.EndedAt)
		v.EndedAt = &at
	}
	for _, d := range w.Differences.First {
		x := differenceView{VolumeID: string(d.Volume), Node: string(d.Node), Offset: d.Off, Length: d.Len, Repaired: d.Repaired, FoundAt: zoned(d.At)}
		if d.Kept != "" {
			x.Kept = &d.Kept
		}
		v.FirstDifferences = append(v.FirstDifferences, x)
	}
	return v
}

// verify takes a body that begins or ends a verification; ok is false if it holds neither. The answer
// to the one is the verification that runs then, to the other empty.
func (a *api) verify(w http.ResponseWriter, r *rest.Request, body *rest.Object) (ok bool, err error) {
	if len(body.Keys()) != 1 {
		return false, nil
	}
	switch key := body.Keys()[0]; key {
	case keyVerify:
		o := body.OptObject(key)
		o.Only("rate_mib")
		rate := int64(0)
		if o.Err() == nil && o.Has("rate_mib") {
			if rate = o.Int("rate_mib"); o.Err() == nil && (rate < 1 || rate > store.MaxVerifyRateMiB) {
				o.Fail(rest.BadRequest("rate_mib must be from 1 to %d MiB/s, not %d", store.MaxVerifyRateMiB, rate))
			}
		}
		if err := body.Err(); err != nil {
			return true, err
		}
		running, err := a.svc.Verify(r.Context(), r.Caller, groupID(r), rate)
		if err != nil {
			return true, err
		}
		return true, rest.WriteJSON(w, http.StatusOK, map[string]any{"verification": viewVerification(&running)})
	case keyVerifyCancel:
		body.OptObject(key).Only()
		if err := body.Err(); err != nil {
			return true, err
		}
		if err := a.svc.CancelVerify(r.Context(), r.Caller, groupID(r)); err != nil {
			return true, err
		}
		return true, rest.WriteEmpty(w, http.StatusOK)
	}
	return false, nil
}

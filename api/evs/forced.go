package evs

import (
	"net/http"
	"strconv"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

const keyFailover = "os-failover-replication-consistency-group"

// readForce takes the body of a forced failover: {"force": true, "token": "…"}. ok is false if the
// body is another action. It is done as asked or refused, never as a plain failover.
func readForce(body *rest.Object) (token string, ok bool, err error) {
	if len(body.Keys()) != 1 || body.Keys()[0] != keyFailover || body.Null(keyFailover) {
		return "", false, nil
	}
	o := body.OptObject(keyFailover)
	if o.Err() != nil || !o.Has("force") || !o.NeedBool("force") {
		return "", false, body.Err()
	}
	o.Only("force", "token")
	if o.Err() == nil && !o.Has("token") {
		o.Fail(rest.BadRequest("a forced failover loses writes: token must quote that of a failover-preview, which says which"))
	}
	token = o.String("token")
	return token, true, body.Err()
}

func zonedPtr(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := zoned(t)
	return &s
}

type lossView struct {
	Pair       string  `json:"replication_id"`
	Volume     string  `json:"volume_id"`      // that is, or would be, served
	Lost       string  `json:"lost_volume_id"` // the old primary's
	Image      string  `json:"image"`          // recovery-point, current, none
	PointEpoch *uint64 `json:"point_epoch"`
	Bytes      *int64  `json:"bytes_missing"` // null: not known
	AsOf       *string `json:"as_of"`
	Estimate   bool    `json:"estimate"`
}

type receiptView struct {
	PointAt   *string    `json:"recovery_point_at"` // null: not known
	Bytes     *int64     `json:"bytes_missing"`     // of all volumes; null: that of one is not known
	FlushOnly []string   `json:"flush_consistent_only"`
	Final     bool       `json:"final"`
	Volumes   []lossView `json:"volumes"`
}

func viewReceipt(r store.ForcedReceipt) receiptView {
	out := receiptView{PointAt: zonedPtr(r.PointAt), FlushOnly: []string{}, Final: r.Final, Volumes: []lossView{}}
	for _, n := range r.FlushOnly {
		out.FlushOnly = append(out.FlushOnly, string(n))
	}
	sum, known := control.FailoverPreview{Receipt: r}.Bytes()
	if known {
		out.Bytes = &sum
	}
	for _, v := range r.Volumes {
		l := lossView{
			Pair: string(v.Pair), Volume: string(v.Volume), Lost: string(v.Lost), Image: v.Image,
			AsOf: zonedPtr(v.AsOf), Estimate: v.Estimate,
		}
		if v.PointEpoch != 0 {
			e := uint64(v.PointEpoch)
			l.PointEpoch = &e
		}
		if v.Bytes >= 0 {
			n := v.Bytes
			l.Bytes = &n
		}
		out.Volumes = append(out.Volumes, l)
	}
	return out
}

type waitView struct {
	Node  string `json:"node"`
	Alive bool   `json:"alive"`
}

type previewView struct {
	Group    string     `json:"replication_consistency_group_id"`
	Epoch    uint64     `json:"epoch"`
	Allowed  bool       `json:"allowed"`
	Forced   bool       `json:"forced"` // needs force; false: an ordinary failover loses nothing
	Reasons  []string   `json:"reasons"`
	From     string     `json:"from"`
	To       string     `json:"to"`
	Warnings []string   `json:"warnings"`
	Waits    []waitView `json:"waits_for"`
	receiptView
	Token   *string `json:"token"`
	Expires *string `json:"token_expires_at"`
}

// failoverPreview is an extension: what a failover would do now, and lose.
func (a *api) failoverPreview(w http.ResponseWriter, r *rest.Request) error {
	p, err := a.svc.PreviewFailover(r.Context(), r.Caller, groupID(r))
	if err != nil {
		return err
	}
	out := previewView{
		Group: string(p.Group), Epoch: uint64(p.Epoch), Allowed: p.Allowed, Forced: p.Forced, Reasons: append([]string{}, p.Reasons...),
		From: string(p.From), To: string(p.To), Warnings: append([]string{}, p.Warnings...), Waits: []waitView{},
		receiptView: viewReceipt(p.Receipt), Expires: zonedPtr(p.Expires),
	}
	for _, n := range p.Waits {
		out.Waits = append(out.Waits, waitView{string(n.Node), n.Alive})
	}
	if p.Token != "" {
		out.Token = &p.Token
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"failover_preview": out})
}

type divergedView struct {
	Pair   string  `json:"replication_id"`
	Volume string  `json:"volume_id"`
	Node   string  `json:"node"`
	Export string  `json:"export"` // at the node's NBD server, read-only
	URI    *string `json:"uri"`
}

type imageView struct {
	ID      string         `json:"id"` // the epoch of the forced failover
	At      *string        `json:"failed_over_at"`
	Volumes []divergedView `json:"volumes"`
}

// divergenceImages is an extension: what sides that lost a forced failover had.
func (a *api) divergenceImages(w http.ResponseWriter, r *rest.Request) error {
	images, err := a.svc.DivergenceImages(r.Context(), r.Caller, groupID(r))
	if err != nil {
		return err
	}
	out := make([]imageView, 0, len(images))
	for _, i := range images {
		v := imageView{ID: strconv.FormatUint(uint64(i.Epoch), 10), At: zonedPtr(i.At), Volumes: []divergedView{}}
		for _, d := range i.Volumes {
			dv := divergedView{Pair: string(d.Pair), Volume: string(d.Volume), Node: string(d.Node), Export: d.Export}
			if d.URI != "" {
				dv.URI = &d.URI
			}
			v.Volumes = append(v.Volumes, dv)
		}
		out = append(out, v)
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"divergence_images": out})
}

// deleteDivergenceImage is an extension. It answers when it is recorded; the nodes remove the files.
func (a *api) deleteDivergenceImage(w http.ResponseWriter, r *rest.Request) error {
	id := r.PathValue("image_id")
	epoch, err := strconv.ParseUint(id, 10, 64)
	if err != nil || epoch == 0 {
		return rest.BadRequest("a divergence image's id is a number, not %.40q", id)
	}
	if err := a.svc.DeleteDivergenceImage(r.Context(), r.Caller, groupID(r), lockstep.Epoch(epoch)); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusAccepted)
}

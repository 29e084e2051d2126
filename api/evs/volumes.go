package evs

import (
	"errors"
	"net/http"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/cinder"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

// volumeView is a volume as cloudvolumes answers it: Cinder's and a few members of the vendor.
type volumeView struct {
	cinder.Volume
	ServiceType         string            `json:"service_type"`
	ImageMetadata       map[string]string `json:"volume_image_metadata"`
	Tags                map[string]string `json:"tags"`
	EnterpriseProjectID *string           `json:"enterprise_project_id"`
	DedicatedID         *string           `json:"dedicated_storage_id"`
	DedicatedName       *string           `json:"dedicated_storage_name"`
}

func viewVolume(r *rest.Request, v control.VolumeView) volumeView {
	return volumeView{
		Volume: cinder.View(r, v), ServiceType: "EVS",
		ImageMetadata: map[string]string{}, Tags: map[string]string{},
	}
}

func cloudID(r *rest.Request) lockstep.VolumeID { return lockstep.VolumeID(r.PathValue("id")) }

// Jobs are not kept: a job's id names what is done to which volume, and how far it is shows in the
// volume. All changes of a volume end in a status or, for a deletion, in its absence.
const (
	jobCreate = "createVolume"
	jobExtend = "extendVolume"
	jobDelete = "deleteVolume"
)

func jobID(kind string, id lockstep.VolumeID) string { return kind + "." + string(id) }

// createVolume creates one volume; the vendor's batches are refused.
func (a *api) createVolume(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	o := body.Object("volume")
	if !o.Null("count") {
		if n := o.Int("count"); o.Err() == nil && n != 1 {
			o.Fail(rest.NotImplemented("volumes are created one at a time: count must be 1, not %d", n))
		}
	}
	if s := body.OptString("server_id"); s != nil && *s != "" {
		body.Fail(rest.NotImplemented("a volume cannot be attached while it is created: leave out server_id"))
	}
	c, err := cinder.ReadCreate(o)
	if err != nil {
		return err
	}
	v, err := a.svc.CreateVolume(r.Context(), r.Caller, c)
	if err != nil {
		return err
	}
	r.Made = string(v.ID)
	return rest.WriteJSON(w, http.StatusOK, map[string]any{
		"job_id": jobID(jobCreate, v.ID), "volume_ids": []string{string(v.ID)},
	})
}

func (a *api) listVolumes(w http.ResponseWriter, r *rest.Request) error {
	page, next, err := cinder.Select(a.svc, r)
	if err != nil {
		return err
	}
	out := make([]volumeView, 0, len(page))
	for _, v := range page {
		out = append(out, viewVolume(r, v))
	}
	return cinder.WriteList(w, out, next)
}

func (a *api) showVolume(w http.ResponseWriter, r *rest.Request) error {
	v, err := a.svc.GetVolume(r.Context(), r.Caller, cloudID(r))
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"volume": viewVolume(r, v)})
}

func (a *api) updateVolume(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	change, err := cinder.ReadUpdate(body.Object("volume"))
	if err != nil {
		return err
	}
	v, err := a.svc.UpdateVolume(r.Context(), r.Caller, cloudID(r), change)
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"volume": viewVolume(r, v)})
}

func (a *api) deleteVolume(w http.ResponseWriter, r *rest.Request) error {
	if err := a.svc.DeleteVolume(r.Context(), r.Caller, cloudID(r)); err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"job_id": jobID(jobDelete, cloudID(r))})
}

// keyExtend is the one action of the vendor's volume calls.
const keyExtend = "os-extend"

// volumeAction knows os-extend only; bssParam, the vendor's billing, may stand beside it.
func (a *api) volumeAction(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	body.Only(keyExtend, "bssParam")
	size := body.Object(keyExtend).GiB("new_size")
	if err := body.Err(); err != nil {
		return err
	}
	if err := a.svc.ExtendVolume(r.Context(), r.Caller, cloudID(r), size); err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusAccepted, map[string]any{"job_id": jobID(jobExtend, cloudID(r))})
}

// volumeTags: volumes have none.
func (a *api) volumeTags(w http.ResponseWriter, r *rest.Request) error {
	if _, err := a.svc.GetVolume(r.Context(), r.Caller, cloudID(r)); err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"tags": map[string]string{}})
}

type jobEntities struct {
	Name       string `json:"name"`
	Size       int64  `json:"size"`
	VolumeID   string `json:"volume_id"`
	VolumeType string `json:"volume_type"`
	SubJobs    []any  `json:"sub_jobs"`
}

type jobView struct {
	Status     string      `json:"status"` // RUNNING, SUCCESS, FAIL
	JobID      string      `json:"job_id"`
	JobType    string      `json:"job_type"`
	BeginTime  string      `json:"begin_time"`
	EndTime    string      `json:"end_time"`
	ErrorCode  *string     `json:"error_code"`
	FailReason *string     `json:"fail_reason"`
	Entities   jobEntities `json:"entities"`
}

// job tells how far a create, extend or delete is.
func (a *api) job(w http.ResponseWriter, r *rest.Request) error {
	id := r.PathValue("id")
	kind, volume, _ := strings.Cut(id, ".")
	if kind != jobCreate && kind != jobExtend && kind != jobDelete || volume == "" {
		return rest.NotFound("there is no job %.80s", id)
	}
	out := jobView{Status: "RUNNING", JobID: id, JobType: kind, Entities: jobEntities{VolumeID: volume, SubJobs: []any{}}}
	v, err := a.svc.GetVolume(r.Context(), r.Caller, lockstep.VolumeID(volume))
	var refused *control.Error
	switch {
	case errors.As(err, &refused) && refused.Kind == control.KindNotFound && kind == jobDelete:
		out.Status = "SUCCESS"
		return rest.WriteJSON(w, http.StatusOK, out)
	case err != nil:
		return err
	}
	if v.Name != nil {
		out.Entities.Name = *v.Name
	}
	out.Entities.Size, out.Entities.VolumeType = v.SizeBytes/lockstep.GiB, v.Type
	out.BeginTime = rest.Time(v.CreatedAt)
	switch {
	case strings.HasPrefix(v.Status, "error"):
		out.Status, out.FailReason = "FAIL", idOrNil(v.Failure)
	case v.Status == "creating" || v.Status == "extending" || v.Status == "deleting" || kind == jobDelete:
	default:
		out.Status = "SUCCESS"
	}
	if out.Status != "RUNNING" && v.UpdatedAt != nil {
		out.EndTime = rest.Time(*v.UpdatedAt)
	}
	return rest.WriteJSON(w, http.StatusOK, out)
}

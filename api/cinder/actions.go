package cinder

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

// Statuses of volumes that belong to attaching; the others are package control's.
const (
	statusAvailable = "available"
	statusInUse     = "in-use"
	statusAttaching = "attaching"
	statusDetaching = "detaching"
)

// actions by their key in the body. Each reads its value o, and answers.
var actions = map[string]func(a *api, w http.ResponseWriter, r *rest.Request, o *rest.Object) error{
	"os-extend":                (*api).extend,
	"os-attach":                (*api).attach,
	"os-detach":                (*api).detach,
	"os-reserve":               (*api).reserve,
	"os-unreserve":             (*api).unreserve,
	"os-begin_detaching":       (*api).beginDetaching,
	"os-roll_detaching":        (*api).rollDetaching,
	"os-initialize_connection": (*api).initializeConnection,
	"os-terminate_connection":  (*api).terminateConnection,
	"os-set_bootable":          (*api).setBootable,
	"os-update_readonly_flag":  (*api).setReadOnly,
	"lockstep-release":         (*api).release,
}

// refusedActions are Cinder's that are known and not supported.
var refusedActions = map[string]bool{
	"os-volume_upload_image": true, "os-retype": true, "os-migrate_volume": true, "os-force_delete": true,
	"os-force_detach": true, "os-reset_status": true, "revert": true, "os-set_image_metadata": true,
	"os-unset_image_metadata": true, "os-show_image_metadata": true, "os-unmanage": true, "os-reimage": true,
}

// pairedActions are those of refusedActions that a disk in a pair cannot undergo anyway, and how
// that is said.
var pairedActions = map[string]string{"revert": "rolled back to a snapshot", "os-force_delete": "deleted"}

// notInPair refuses a volume that does not exist, or is in a pair.
func (a *api) notInPair(r *rest.Request, id lockstep.VolumeID, what string) error {
	v, err := a.svc.GetVolume(r.Context(), r.Caller, id)
	if err == nil && v.Pair != "" {
		err = rest.BadRequest("volume %s is in pair %s and cannot be %s: delete the pair first", id, v.Pair, what)
	}
	return err
}

// transfer would offer a volume to another project.
func (a *api) transfer(_ http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	id := lockstep.VolumeID(body.Object("transfer").String("volume_id"))
	if err := body.Err(); err != nil {
		return err
	}
	if err := a.notInPair(r, id, "transferred"); err != nil {
		return err
	}
	return rest.NotImplemented("volume transfers are not supported")
}

func (a *api) action(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	if len(body.Keys()) != 1 {
		return rest.BadRequest("an action body holds exactly one action, this one holds %d members", len(body.Keys()))
	}
	key := body.Keys()[0]
	act, ok := actions[key]
	if ok || refusedActions[key] {
		r.Action = key
	}
	if what := pairedActions[key]; what != "" {
		if err := a.notInPair(r, volumeID(r), what); err != nil {
			return err
		}
	}
	if !ok && refusedActions[key] {
		return rest.NotImplemented("action %s is not supported", key)
	}
	if !ok {
		return rest.BadRequest("there is no action %.80q", key)
	}
	o := body.OptObject(key)
	if err := body.Err(); err != nil {
		return err
	}
	return act(a, w, r, o)
}

func (a *api) extend(w http.ResponseWriter, r *rest.Request, o *rest.Object) error {
	size := o.GiB("new_size")
	if err := o.Err(); err != nil {
		return err
	}
	if err := a.svc.ExtendVolume(r.Context(), r.Caller, volumeID(r), size); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusAccepted)
}

func (a *api) release(w http.ResponseWriter, r *rest.Request, _ *rest.Object) error {
	if err := a.svc.ReleaseVolume(r.Context(), r.Caller, volumeID(r)); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusAccepted)
}

// change applies a change to the volume and answers without a body.
func (a *api) change(w http.ResponseWriter, r *rest.Request, status int, f func(*store.Volume) error) error {
	if _, err := a.svc.UpdateVolume(r.Context(), r.Caller, volumeID(r), f); err != nil {
		return err
	}
	return rest.WriteEmpty(w, status)
}

// wants refuses a volume in another status with both named.
func wants(v *store.Volume, statuses ...string) error {
	for _, s := range statuses {
		if v.Status == s {
			return nil
		}
	}
	return &control.Error{Kind: control.KindBadRequest, Message: fmt.Sprintf(
		"the status of volume %s must be %s, it is %s", v.ID, strings.Join(statuses, " or "), v.Status)}
}

// attachable are the statuses in which another attachment may begin.
func attachable(v *store.Volume, more ...string) []string {
	out := append([]string{statusAvailable}, more...)
	if v.Multiattach {
		out = append(out, statusInUse)
	}
	return out
}

// settled is the status of a volume that nothing is being done to.
func settled(v *store.Volume) string {
	if len(v.Attachments) > 0 {
		return statusInUse
	}
	return statusAvailable
}

func (a *api) reserve(w http.ResponseWriter, r *rest.Request, _ *rest.Object) error {
	return a.change(w, r, http.StatusAccepted, func(v *store.Volume) error {
		if err := wants(v, attachable(v)...); err != nil {
			return err
		}
		v.Status = statusAttaching
		return nil
	})
}

func (a *api) unreserve(w http.ResponseWriter, r *rest.Request, _ *rest.Object) error {
	return a.change(w, r, http.StatusAccepted, func(v *store.Volume) error {
		if v.Status == statusAttaching {
			v.Status = settled(v)
		}
		return nil
	})
}

func (a *api) attach(w http.ResponseWriter, r *rest.Request, o *rest.Object) error {
	at := store.Attachment{ID: uuid.NewString(), AttachedAt: time.Now().UTC()}
	if s := o.Name("instance_uuid"); s != nil {
		at.Server = *s
	}
	if s := o.Name("host_name"); s != nil {
		at.Host = *s
	}
	if s := o.Name("mountpoint"); s != nil {
		at.Device = *s
	}
	if o.Err() == nil && at.Server == "" && at.Host == "" {
		o.Fail(rest.BadRequest(`"os-attach" needs "instance_uuid" or "host_name"`))
	}
	mode := o.OptString("mode")
	if mode != nil && *mode != "rw" && *mode != "ro" && *mode != "" {
		o.Fail(rest.BadRequest(`"os-attach.mode" must be rw or ro, not %.40q`, *mode))
	}
	if err := o.Err(); err != nil {
		return err
	}
	return a.change(w, r, http.StatusAccepted, func(v *store.Volume) error {
		if err := wants(v, attachable(v, statusAttaching)...); err != nil {
			return err
		}
		if v.ReadOnly && mode != nil && *mode == "rw" {
			return &control.Error{Kind: control.KindBadRequest, Message: "the volume is read-only; mode must be ro"}
		}
		v.Attachments = append(v.Attachments, at)
		v.Status = statusInUse
		return nil
	})
}

func (a *api) detach(w http.ResponseWriter, r *rest.Request, o *rest.Object) error {
	id := o.OptString("attachment_id")
	if err := o.Err(); err != nil {
		return err
	}
	return a.change(w, r, http.StatusAccepted, func(v *store.Volume) error {
		if err := wants(v, statusInUse, statusDetaching); err != nil {
			return err
		}
		if id == nil && len(v.Attachments) > 1 {
			return &control.Error{Kind: control.KindBadRequest, Message: fmt.Sprintf(
				"the volume has %d attachments; attachment_id must name one", len(v.Attachments))}
		}
		var left []store.Attachment
		for _, at := range v.Attachments {
			if id != nil && at.ID != *id {
				left = append(left, at)
			}
		}
		if id != nil && len(left) == len(v.Attachments) {
			return &control.Error{Kind: control.KindNotFound, Message: fmt.Sprintf("the volume has no attachment %.80s", *id)}
		}
		v.Attachments = left
		v.Status = settled(v)
		return nil
	})
}

func (a *api) beginDetaching(w http.ResponseWriter, r *rest.Request, _ *rest.Object) error {
	return a.change(w, r, http.StatusAccepted, func(v *store.Volume) error {
		if err := wants(v, statusInUse); err != nil {
			return err
		}
		v.Status = statusDetaching
		return nil
	})
}

func (a *api) rollDetaching(w http.ResponseWriter, r *rest.Request, _ *rest.Object) error {
	return a.change(w, r, http.StatusAccepted, func(v *store.Volume) error {
		if v.Status == statusDetaching {
			v.Status = settled(v)
		}
		return nil
	})
}

// initializeConnection tells where the volume can be opened. The connector that clients send
// describes their host; NBD has no use for it.
func (a *api) initializeConnection(w http.ResponseWriter, r *rest.Request, o *rest.Object) error {
	o.OptObject("connector")
	if err := o.Err(); err != nil {
		return err
	}
	uri, err := a.svc.ConnectionURI(r.Context(), r.Caller, volumeID(r))
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"connection_info": map[string]any{
		"driver_volume_type": "nbd", "data": map[string]any{"uri": uri},
	}})
}

// terminateConnection has nothing to undo: a connection lives as long as the client holds it.
func (a *api) terminateConnection(w http.ResponseWriter, r *rest.Request, o *rest.Object) error {
	o.OptObject("connector")
	if err := o.Err(); err != nil {
		return err
	}
	if _, err := a.svc.GetVolume(r.Context(), r.Caller, volumeID(r)); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusAccepted)
}

func (a *api) setBootable(w http.ResponseWriter, r *rest.Request, o *rest.Object) error {
	bootable := o.NeedBool("bootable")
	if err := o.Err(); err != nil {
		return err
	}
	return a.change(w, r, http.StatusOK, func(v *store.Volume) error {
		v.Bootable = bootable
		return nil
	})
}

func (a *api) setReadOnly(w http.ResponseWriter, r *rest.Request, o *rest.Object) error {
	readOnly := o.NeedBool("readonly")
	if err := o.Err(); err != nil {
		return err
	}
	return a.change(w, r, http.StatusAccepted, func(v *store.Volume) error {
		if err := wants(v, statusAvailable); err != nil {
			return err
		}
		v.ReadOnly = readOnly
		return nil
	})
}

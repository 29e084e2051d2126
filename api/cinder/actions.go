package cinder

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/policy"
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

// action is one by its key in the body: the least role for it, and what reads its value o and answers.
type action struct {
	role policy.Role
	do   func(a *api, w http.ResponseWriter, r *rest.Request, o *rest.Object) error
}

var actions = map[string]action{
	"os-extend":                {policy.Member, (*api).extend},
	"os-attach":                {policy.Member, (*api).attach},
	"os-detach":                {policy.Member, (*api).detach},
	"os-reserve":               {policy.Member, (*api).reserve},
	"os-unreserve":             {policy.Member, (*api).unreserve},
	"os-begin_detaching":       {policy.Member, (*api).beginDetaching},
	"os-roll_detaching":        {policy.Member, (*api).rollDetaching},
	"os-initialize_connection": {policy.Member, (*api).initializeConnection},
	"os-terminate_connection":  {policy.Member, (*api).terminateConnection},
	"os-set_bootable":          {policy.Member, (*api).setBootable},
	"os-update_readonly_flag":  {policy.Member, (*api).setReadOnly},
	// A released DR disk serves what the production disk has served: a second side.
	"lockstep-release": {policy.Operator, (*api).release},
}

// refusedActions are Cinder's that are known and not supported. Those that set what others have found out
// are Cinder's administrators', too.
var refusedActions = map[string]policy.Role{
	"os-volume_upload_image": policy.Member, "os-retype": policy.Member, "os-force_delete": policy.Member, "revert": policy.Member,
	"os-set_image_metadata": policy.Member, "os-unset_image_metadata": policy.Member, "os-show_image_metadata": policy.Member,
	"os-reimage": policy.Member, "os-migrate_volume": policy.Admin, "os-force_detach": policy.Admin, "os-reset_status": policy.Admin,
	"os-unmanage": policy.Admin,
}

func actionRoles() map[string]policy.Role {
	out := maps.Clone(refusedActions)
	for key, act := range actions {
		out[key] = act.role
	}
	return out
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
	if what := pairedActions[key]; what != "" {
		if err := a.notInPair(r, volumeID(r), what); err != nil {
			return err
		}
	}
	act, ok := actions[key]
	if !ok { // it is one of refusedActions: the rule of the route lets no others through
		return rest.NotImplemented("action %s is not supported", key)
	}
	o := body.OptObject(key)
	if err := body.Err(); err != nil {
		return err
	}
	return act.do(a, w, r, o)
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

package cinder

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

// ReadCreate reads the object "volume" of a create body.
func ReadCreate(o *rest.Object) (control.VolumeCreate, error) {
	v := control.VolumeCreate{
		Name: o.Name("name"), Description: o.Name("description"),
		Metadata: o.StringMap("metadata"), Multiattach: o.Bool("multiattach"),
	}
	if v.Name == nil {
		v.Name = o.Name("display_name") // what old clients call it
	}
	if v.Description == nil {
		v.Description = o.Name("display_description")
	}
	for _, source := range []string{"snapshot_id", "source_volid", "source_replica", "imageRef", "backup_id", "consistencygroup_id"} {
		if s := o.OptString(source); s != nil && *s != "" {
			o.Fail(rest.NotImplemented("%q: a volume can be created empty only", source))
		}
	}
	v.SizeGiB = o.GiB("size")
	if s := o.OptString("volume_type"); s != nil {
		v.Type = *s
	}
	if s := o.OptString("availability_zone"); s != nil {
		v.AZ = lockstep.AZ(*s)
	}
	return v, o.Err()
}

func (a *api) create(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	v, err := ReadCreate(body.Object("volume"))
	if err != nil {
		return err
	}
	view, err := a.svc.CreateVolume(r.Context(), r.Caller, v)
	if err != nil {
		return err
	}
	r.Made = string(view.ID)
	return answer(w, r, http.StatusAccepted, view)
}

func answer(w http.ResponseWriter, r *rest.Request, status int, v control.VolumeView) error {
	return rest.WriteJSON(w, status, map[string]any{"volume": View(r, v)})
}

func (a *api) show(w http.ResponseWriter, r *rest.Request) error {
	v, err := a.svc.GetVolume(r.Context(), r.Caller, volumeID(r))
	if err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, v)
}

// ReadUpdate reads the object "volume" of an update body into a change. Members that are not there
// stay as they are; null clears.
func ReadUpdate(o *rest.Object) (func(*store.Volume) error, error) {
	name, description, metadata := o.Name("name"), o.Name("description"), o.StringMap("metadata")
	hasName, hasDescription := o.Has("name"), o.Has("description")
	if !hasName && o.Has("display_name") {
		name, hasName = o.Name("display_name"), true
	}
	if !hasDescription && o.Has("display_description") {
		description, hasDescription = o.Name("display_description"), true
	}
	return func(v *store.Volume) error {
		if hasName {
			v.Name = name
		}
		if hasDescription {
			v.Description = description
		}
		if metadata != nil {
			v.Metadata = metadata
		}
		return nil
	}, o.Err()
}

func (a *api) update(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	change, err := ReadUpdate(body.Object("volume"))
	if err != nil {
		return err
	}
	v, err := a.svc.UpdateVolume(r.Context(), r.Caller, volumeID(r), change)
	if err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, v)
}

// remove takes ?cascade=true as well: there are no snapshots that it could take along.
func (a *api) remove(w http.ResponseWriter, r *rest.Request) error {
	if err := a.svc.DeleteVolume(r.Context(), r.Caller, volumeID(r)); err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusAccepted)
}

// order of volume lists.
var order = rest.Order[control.VolumeView]{
	ID: func(v control.VolumeView) string { return string(v.ID) },
	Keys: map[string]func(a, b control.VolumeView) int{
		"id":                func(a, b control.VolumeView) int { return cmp.Compare(a.ID, b.ID) },
		"name":              func(a, b control.VolumeView) int { return rest.CompareOpt(a.Name, b.Name) },
		"display_name":      func(a, b control.VolumeView) int { return rest.CompareOpt(a.Name, b.Name) },
		"status":            func(a, b control.VolumeView) int { return cmp.Compare(a.Status, b.Status) },
		"size":              func(a, b control.VolumeView) int { return cmp.Compare(a.SizeBytes, b.SizeBytes) },
		"availability_zone": func(a, b control.VolumeView) int { return cmp.Compare(a.AZ, b.AZ) },
		"created_at":        func(a, b control.VolumeView) int { return a.CreatedAt.Compare(b.CreatedAt) },
		"updated_at":        func(a, b control.VolumeView) int { return rest.CompareOptTime(a.UpdatedAt, b.UpdatedAt) },
	},
	Clip: true,
}

// keep reads the filters of volume lists.
func keep(q url.Values) (func(control.VolumeView) bool, error) {
	changed, err := rest.ChangedSince(q)
	if err != nil {
		return nil, err
	}
	ids := strings.FieldsFunc(q.Get("ids"), func(c rune) bool { return strings.ContainsRune("[]', \"", c) })
	if id := q.Get("id"); id != "" {
		ids = append(ids, id)
	}
	name := q.Get("name")
	if name == "" {
		name = q.Get("display_name")
	}
	status, az, kind := q.Get("status"), q.Get("availability_zone"), q.Get("volume_type_id")
	server, multi, bootable := q.Get("server_id"), q.Get("multiattach"), q.Get("bootable")
	return func(v control.VolumeView) bool {
		return (name == "" || rest.EqualOpt(v.Name, name)) &&
			(status == "" || v.Status == status) &&
			(az == "" || string(v.AZ) == az) &&
			(kind == "" || v.Type == kind) &&
			(len(ids) == 0 || slices.Contains(ids, string(v.ID))) &&
			(multi == "" || strings.EqualFold(multi, boolString(v.Multiattach))) &&
			(bootable == "" || strings.EqualFold(bootable, boolString(v.Bootable))) &&
			(server == "" || slices.ContainsFunc(v.Attachments, func(at store.Attachment) bool { return at.Server == server })) &&
			changed(v.CreatedAt, v.UpdatedAt)
	}, nil
}

// Select reads the parameters of a volume list and answers the page; next is the URL of the page
// after it, "" if there is none.
func Select(svc control.Service, r *rest.Request) (page []control.VolumeView, next string, err error) {
	q := r.URL.Query()
	p, err := order.ReadPage(q)
	if err != nil {
		return nil, "", err
	}
	admit, err := keep(q)
	if err != nil {
		return nil, "", err
	}
	page, more, err := order.Read(p, admit, func(after string, oldest bool, keep, fn func(control.VolumeView) bool) (bool, error) {
		return svc.EachVolume(r.Context(), r.Caller, control.Walk{After: after, Oldest: oldest}, keep, fn)
	})
	if err != nil {
		return nil, "", err
	}
	if more && len(page) > 0 {
		q.Set("marker", string(page[len(page)-1].ID))
		q.Del("offset") // the marker is behind it already
		next = r.Base + r.URL.Path + "?" + q.Encode()
	}
	return page, next, nil
}

// WriteList answers a page with a link to the next one.
func WriteList[T any](w http.ResponseWriter, items []T, next string) error {
	body := map[string]any{"volumes": items}
	if next != "" {
		body["volumes_links"] = []Link{{"next", next}}
	}
	return rest.WriteJSON(w, http.StatusOK, body)
}

func (a *api) listDetail(w http.ResponseWriter, r *rest.Request) error {
	page, next, err := Select(a.svc, r)
	if err != nil {
		return err
	}
	out := make([]Volume, 0, len(page))
	for _, v := range page {
		out = append(out, View(r, v))
	}
	return WriteList(w, out, next)
}

func (a *api) listBrief(w http.ResponseWriter, r *rest.Request) error {
	page, next, err := Select(a.svc, r)
	if err != nil {
		return err
	}
	out := make([]brief, 0, len(page))
	for _, v := range page {
		out = append(out, brief{ID: string(v.ID), Name: v.Name, Links: links(r.Base, version(r), v.Project, v.ID)})
	}
	return WriteList(w, out, next)
}

func (a *api) summary(w http.ResponseWriter, r *rest.Request) error {
	u, err := a.usage(r)
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{
		"volume-summary": map[string]any{"total_count": u.volumes, "total_size": u.gib},
	})
}

// usage is what a project has.
type usage struct{ volumes, gib int64 }

func (a *api) usage(r *rest.Request) (usage, error) {
	var u usage
	_, err := a.svc.EachVolume(r.Context(), r.Caller, control.Walk{}, nil, func(v control.VolumeView) bool {
		u.volumes++
		u.gib += v.SizeBytes / lockstep.GiB
		return true
	})
	return u, err
}

package cinder

import (
	"fmt"
	"maps"
	"net/http"

	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

func typeView(t control.VolumeType) map[string]any {
	return map[string]any{
		"id": t.ID, "name": t.Name, "description": t.Description, "extra_specs": map[string]string{},
		"is_public": true, "qos_specs_id": nil, "os-volume-type-access:is_public": true,
	}
}

func (a *api) types(w http.ResponseWriter, _ *rest.Request) error {
	out := []any{}
	for _, t := range a.svc.Types() {
		out = append(out, typeView(t))
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"volume_types": out})
}

// findType by id or name, or "default".
func (a *api) findType(r *rest.Request) (control.VolumeType, error) {
	id := r.PathValue("id")
	for _, t := range a.svc.Types() {
		if t.ID == id || t.Name == id || id == "default" && t.Default {
			return t, nil
		}
	}
	return control.VolumeType{}, rest.NotFound("volume type %.80s could not be found", id)
}

func (a *api) showType(w http.ResponseWriter, r *rest.Request) error {
	t, err := a.findType(r)
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"volume_type": typeView(t)})
}

func (a *api) extraSpecs(w http.ResponseWriter, r *rest.Request) error {
	if _, err := a.findType(r); err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"extra_specs": map[string]string{}})
}

func (a *api) zones(w http.ResponseWriter, r *rest.Request) error {
	zones, err := a.svc.Zones(r.Context())
	if err != nil {
		return err
	}
	out := []any{}
	for _, z := range zones {
		out = append(out, map[string]any{
			"zoneName": string(z.Name), "zoneState": map[string]bool{"available": z.Available}, "hosts": nil,
		})
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"availabilityZoneInfo": out})
}

// extensions are what is spoken beyond Cinder's core.
var extensionList = []struct{ name, alias, description string }{
	{"AvailabilityZones", "os-availability-zone", "Describe availability zones."},
	{"Quotas", "os-quota-sets", "Quotas management support; there are no limits."},
	{"VolumeActions", "os-volume-actions", "Enable volume actions: attaching, connections, extending."},
	{"VolumeHostAttribute", "os-vol-host-attr", "Expose host as an attribute of a volume."},
	{"VolumeTenantAttribute", "os-vol-tenant-attr", "Expose the project as an attribute of a volume."},
	{"Replications", "os-vendor-replications", "Replication pairs and consistency groups."},
	{"Lockstep", "os-lockstep", "The action lockstep-release, storage nodes and the history of groups."},
}

func (a *api) extensions(w http.ResponseWriter, _ *rest.Request) error {
	out := []any{}
	for _, e := range extensionList {
		out = append(out, map[string]any{
			"name": e.name, "alias": e.alias, "description": e.description,
			"updated": "2017-10-01T00:00:00+00:00", "links": []any{},
		})
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"extensions": out})
}

// unlimited is how Cinder writes "no limit".
const unlimited = -1

func (a *api) limits(w http.ResponseWriter, r *rest.Request) error {
	u, err := a.usage(r)
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"limits": map[string]any{
		"rate": []any{},
		"absolute": map[string]int64{
			"maxTotalVolumes": unlimited, "totalVolumesUsed": u.volumes,
			"maxTotalVolumeGigabytes": unlimited, "totalGigabytesUsed": u.gib,
			"maxTotalSnapshots": 0, "totalSnapshotsUsed": 0,
			"maxTotalBackups": 0, "totalBackupsUsed": 0,
			"maxTotalBackupGigabytes": 0, "totalBackupGigabytesUsed": 0,
		},
	}})
}

// quota shows that nothing is limited and, with ?usage=True, what is used.
func (a *api) quota(w http.ResponseWriter, r *rest.Request) error {
	target := r.PathValue("id")
	if target != string(r.Caller.Project) {
		return rest.Forbidden("the quota of another project is not shown")
	}
	u, err := a.usage(r)
	if err != nil {
		return err
	}
	withUsage := r.URL.Query().Get("usage")
	set := map[string]any{"id": target}
	for name, q := range map[string]struct{ limit, used int64 }{
		"volumes": {unlimited, u.volumes}, "gigabytes": {unlimited, u.gib}, "per_volume_gigabytes": {unlimited, 0},
		"snapshots": {}, "backups": {}, "backup_gigabytes": {}, "groups": {},
	} {
		set[name] = q.limit
		if withUsage == "True" || withUsage == "true" {
			set[name] = map[string]int64{"limit": q.limit, "in_use": q.used, "reserved": 0, "allocated": 0}
		}
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"quota_set": set})
}

func (a *api) noSnapshots(w http.ResponseWriter, _ *rest.Request) error {
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"snapshots": []any{}})
}

func (a *api) metadata(w http.ResponseWriter, r *rest.Request) error {
	v, err := a.svc.GetVolume(r.Context(), r.Caller, volumeID(r))
	if err != nil {
		return err
	}
	return writeMetadata(w, v)
}

func writeMetadata(w http.ResponseWriter, v control.VolumeView) error {
	m := v.Metadata
	if m == nil {
		m = map[string]string{}
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"metadata": m})
}

// maxMetadata bounds the items of one volume.
const maxMetadata = 128

// setMetadata merges items into a volume's, or replaces them all.
func (a *api) setMetadata(w http.ResponseWriter, r *rest.Request, replace bool) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	if body.Null("metadata") {
		return rest.BadRequest(`"metadata" is missing`)
	}
	items := body.StringMap("metadata")
	if err := body.Err(); err != nil {
		return err
	}
	v, err := a.svc.UpdateVolume(r.Context(), r.Caller, volumeID(r), func(v *store.Volume) error {
		merged := map[string]string{}
		if !replace {
			maps.Copy(merged, v.Metadata)
		}
		maps.Copy(merged, items)
		return putMetadata(v, merged)
	})
	if err != nil {
		return err
	}
	return writeMetadata(w, v)
}

func putMetadata(v *store.Volume, m map[string]string) error {
	if len(m) > maxMetadata {
		return &control.Error{Kind: control.KindBadRequest, Message: fmt.Sprintf("a volume has at most %d metadata items", maxMetadata)}
	}
	v.Metadata = m
	return nil
}

func (a *api) mergeMetadata(w http.ResponseWriter, r *rest.Request) error {
	return a.setMetadata(w, r, false)
}

func (a *api) replaceMetadata(w http.ResponseWriter, r *rest.Request) error {
	return a.setMetadata(w, r, true)
}

func noItem(key string) error {
	return &control.Error{Kind: control.KindNotFound, Message: fmt.Sprintf("the volume has no metadata item %.80q", key)}
}

func (a *api) metadataItem(w http.ResponseWriter, r *rest.Request) error {
	v, err := a.svc.GetVolume(r.Context(), r.Caller, volumeID(r))
	if err != nil {
		return err
	}
	key := r.PathValue("key")
	value, ok := v.Metadata[key]
	if !ok {
		return noItem(key)
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"meta": map[string]string{key: value}})
}

func (a *api) setMetadataItem(w http.ResponseWriter, r *rest.Request) error {
	body, err := rest.ReadObject(r)
	if err != nil {
		return err
	}
	key := r.PathValue("key")
	if body.Null("meta") {
		return rest.BadRequest(`"meta" is missing`)
	}
	items := body.StringMap("meta")
	if err := body.Err(); err != nil {
		return err
	}
	value, ok := items[key]
	if !ok || len(items) != 1 {
		return rest.BadRequest(`"meta" must hold the one item that the path names, %.80q`, key)
	}
	_, err = a.svc.UpdateVolume(r.Context(), r.Caller, volumeID(r), func(v *store.Volume) error {
		m := map[string]string{}
		maps.Copy(m, v.Metadata)
		m[key] = value
		return putMetadata(v, m)
	})
	if err != nil {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]any{"meta": items})
}

func (a *api) deleteMetadataItem(w http.ResponseWriter, r *rest.Request) error {
	key := r.PathValue("key")
	_, err := a.svc.UpdateVolume(r.Context(), r.Caller, volumeID(r), func(v *store.Volume) error {
		if _, ok := v.Metadata[key]; !ok {
			return noItem(key)
		}
		m := map[string]string{}
		maps.Copy(m, v.Metadata)
		delete(m, key)
		v.Metadata = m
		return nil
	})
	if err != nil {
		return err
	}
	return rest.WriteEmpty(w, http.StatusOK)
}

// Package cinder is block storage as OpenStack's Cinder speaks it, v2 and v3 (microversion 3.0)
// alike: volumes, their actions and metadata, types, zones, limits and quotas. It maps words and
// shapes only; package control decides what may be done. Snapshots, images and transfers do not
// exist here, and a request for one is refused, never half obeyed.
package cinder

import (
	"net/http"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

type api struct{ svc control.Service }

// Routes are the calls below /v2/{project_id} and /v3/{project_id}.
func Routes(svc control.Service) []rest.Route {
	a := &api{svc: svc}
	var out []rest.Route
	for _, prefix := range []string{"/v2/{project_id}", "/v3/{project_id}"} {
		add := func(method, path string, h rest.Handler) {
			out = append(out, rest.Route{Method: method, Path: prefix + path, Auth: rest.AuthProject, Handle: h})
		}
		add(http.MethodPost, "/volumes", a.create)
		add(http.MethodGet, "/volumes", a.listBrief)
		add(http.MethodGet, "/volumes/detail", a.listDetail)
		add(http.MethodGet, "/volumes/summary", a.summary)
		add(http.MethodGet, "/volumes/{id}", a.show)
		add(http.MethodPut, "/volumes/{id}", a.update)
		add(http.MethodDelete, "/volumes/{id}", a.remove)
		add(http.MethodPost, "/volumes/{id}/action", a.action)

		add(http.MethodGet, "/volumes/{id}/metadata", a.metadata)
		add(http.MethodPost, "/volumes/{id}/metadata", a.mergeMetadata)
		add(http.MethodPut, "/volumes/{id}/metadata", a.replaceMetadata)
		add(http.MethodGet, "/volumes/{id}/metadata/{key}", a.metadataItem)
		add(http.MethodPut, "/volumes/{id}/metadata/{key}", a.setMetadataItem)
		add(http.MethodDelete, "/volumes/{id}/metadata/{key}", a.deleteMetadataItem)

		add(http.MethodGet, "/types", a.types)
		add(http.MethodGet, "/types/{id}", a.showType)
		add(http.MethodGet, "/types/{id}/extra_specs", a.extraSpecs)
		add(http.MethodGet, "/os-availability-zone", a.zones)
		add(http.MethodGet, "/extensions", a.extensions)
		add(http.MethodGet, "/limits", a.limits)
		add(http.MethodGet, "/os-quota-sets/{id}", a.quota)
		add(http.MethodGet, "/os-quota-sets/{id}/defaults", a.quota)

		add(http.MethodGet, "/snapshots", a.noSnapshots)
		add(http.MethodGet, "/snapshots/detail", a.noSnapshots)
		add(http.MethodPost, "/snapshots", unsupported("snapshots"))
		add(http.MethodPost, "/os-volume-transfer", a.transfer)
	}
	return out
}

func unsupported(what string) rest.Handler {
	return func(http.ResponseWriter, *rest.Request) error {
		return rest.NotImplemented("%s are not supported", what)
	}
}

func volumeID(r *rest.Request) lockstep.VolumeID { return lockstep.VolumeID(r.PathValue("id")) }

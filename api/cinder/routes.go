// Package cinder is block storage as OpenStack's Cinder speaks it, v2 and v3 (microversion 3.0)
// alike: volumes, their actions and metadata, types, zones, limits and quotas. It maps words and
// shapes only; package control decides what may be done. Snapshots, images and transfers do not
// exist here, and a request for one is refused, never half obeyed.
package cinder

import (
	"net/http"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

type api struct{ svc control.Service }

// Routes are the calls below /v2/{project_id} and /v3/{project_id}.
func Routes(svc control.Service) []rest.Route {
	a := &api{svc: svc}
	var out []rest.Route
	for _, prefix := range []string{"/v2/{project_id}", "/v3/{project_id}"} {
		rule := func(rule policy.Rule, method, path string, h rest.Handler) {
			out = append(out, rest.Route{Method: method, Path: prefix + path, Rule: rule, Handle: h})
		}
		look := func(path string, h rest.Handler) { rule(policy.Project(policy.Reader), http.MethodGet, path, h) }
		change := func(method, path string, h rest.Handler) { rule(policy.Project(policy.Member), method, path, h) }
		change(http.MethodPost, "/volumes", a.create)
		look("/volumes", a.listBrief)
		look("/volumes/detail", a.listDetail)
		look("/volumes/summary", a.summary)
		look("/volumes/{id}", a.show)
		change(http.MethodPut, "/volumes/{id}", a.update)
		change(http.MethodDelete, "/volumes/{id}", a.remove)
		rule(policy.Actions(actionRoles()), http.MethodPost, "/volumes/{id}/action", a.action)

		look("/volumes/{id}/metadata", a.metadata)
		change(http.MethodPost, "/volumes/{id}/metadata", a.mergeMetadata)
		change(http.MethodPut, "/volumes/{id}/metadata", a.replaceMetadata)
		look("/volumes/{id}/metadata/{key}", a.metadataItem)
		change(http.MethodPut, "/volumes/{id}/metadata/{key}", a.setMetadataItem)
		change(http.MethodDelete, "/volumes/{id}/metadata/{key}", a.deleteMetadataItem)

		look("/types", a.types)
		look("/types/{id}", a.showType)
		look("/types/{id}/extra_specs", a.extraSpecs)
		look("/os-availability-zone", a.zones)
		look("/extensions", a.extensions)
		look("/limits", a.limits)
		look("/os-quota-sets/{id}", a.quota)
		look("/os-quota-sets/{id}/defaults", a.quota)

		look("/snapshots", a.noSnapshots)
		look("/snapshots/detail", a.noSnapshots)
		change(http.MethodPost, "/snapshots", unsupported("snapshots"))
		change(http.MethodPost, "/os-volume-transfer", a.transfer)
	}
	return out
}

func unsupported(what string) rest.Handler {
	return func(http.ResponseWriter, *rest.Request) error {
		return rest.NotImplemented("%s are not supported", what)
	}
}

func volumeID(r *rest.Request) lockstep.VolumeID { return lockstep.VolumeID(r.PathValue("id")) }

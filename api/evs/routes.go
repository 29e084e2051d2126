// Package evs is the vendor's Elastic Volume Service API: replication pairs and consistency groups
// with their actions, and the volume calls that the vendor's clients use instead of Cinder's. It
// maps words and shapes only; package control decides what may be done. A member of an action that
// it does not know is refused, never ignored.
package evs

import (
	"net/http"

	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

type api struct{ svc control.Service }

// Routes are the calls below /v2/{project_id}, and the few that clients send to /v1 and /v2.1.
func Routes(svc control.Service) []rest.Route {
	a := &api{svc: svc}
	var out []rest.Route
	// by adds a call with a rule below a prefix.
	by := func(rule policy.Rule, prefix, method, path string, h rest.Handler) {
		out = append(out, rest.Route{Method: method, Path: prefix + "/{project_id}" + path, Rule: rule, Handle: h})
	}
	// v2 adds a call below /v2: a reader looks, a member changes.
	v2 := func(method, path string, h rest.Handler) { by(daily(method), "/v2", method, path, h) }
	const pairs = "/os-vendor-replications"
	v2(http.MethodPost, pairs, a.createPair)
	v2(http.MethodGet, pairs, a.listPairs)
	v2(http.MethodGet, pairs+"/detail", a.listPairs)
	v2(http.MethodGet, pairs+"/{id}", a.showPair)
	v2(http.MethodDelete, pairs+"/{id}", a.deletePair)

	const groups = "/os-vendor-replication-consistency-groups"
	v2(http.MethodPost, groups, a.createGroup)
	v2(http.MethodGet, groups, a.listGroups)
	v2(http.MethodGet, groups+"/detail", a.listGroups)
	v2(http.MethodGet, groups+"/{id}", a.showGroup)
	v2(http.MethodPut, groups+"/{id}", a.updateGroup)
	v2(http.MethodDelete, groups+"/{id}", a.deleteGroup)
	by(policy.Actions(groupActionRoles()), "/v2", http.MethodPost, groups+"/{id}/action", a.action)
	v2(http.MethodGet, groups+"/{id}/history", a.history)
	v2(http.MethodGet, groups+"/{id}/explain", a.explain)
	v2(http.MethodGet, groups+"/{id}/failover-preview", a.failoverPreview)
	v2(http.MethodGet, groups+"/{id}/divergence-images", a.divergenceImages)
	// What a forced failover gave up is given up for good here.
	by(policy.Project(policy.Operator), "/v2", http.MethodDelete, groups+"/{id}/divergence-images/{image_id}", a.deleteDivergenceImage)

	v2(http.MethodGet, "/os-lockstep-nodes", a.nodes)
	by(policy.Project(policy.Admin), "/v2", http.MethodPut, "/os-lockstep-nodes/{id}", a.updateNode)
	by(policy.Project(policy.Admin), "/v2", http.MethodPost, "/os-lockstep-store-recovery", a.recoverStore)

	for _, prefix := range []string{"/v2", "/v2.1"} {
		add := func(method, path string, h rest.Handler) { by(daily(method), prefix, method, path, h) }
		add(http.MethodPost, "/cloudvolumes", a.createVolume)
		add(http.MethodGet, "/cloudvolumes", a.listVolumes)
		add(http.MethodGet, "/cloudvolumes/detail", a.listVolumes)
		add(http.MethodGet, "/cloudvolumes/{id}", a.showVolume)
		add(http.MethodPut, "/cloudvolumes/{id}", a.updateVolume)
		add(http.MethodDelete, "/cloudvolumes/{id}", a.deleteVolume)
		by(policy.Actions(map[string]policy.Role{keyExtend: policy.Member}), prefix, http.MethodPost, "/cloudvolumes/{id}/action", a.volumeAction)
	}
	v2(http.MethodGet, "/os-vendor-volumes", a.listVolumes)
	v2(http.MethodGet, "/os-vendor-volumes/detail", a.listVolumes)
	v2(http.MethodGet, "/os-vendor-volumes/{id}", a.showVolume)
	v2(http.MethodGet, "/os-vendor-volumes/{id}/tags", a.volumeTags)
	by(policy.Project(policy.Reader), "/v1", http.MethodGet, "/jobs/{id}", a.job)
	return out
}

// daily is the rule of calls on a project's own things.
func daily(method string) policy.Rule {
	if method == http.MethodGet {
		return policy.Project(policy.Reader)
	}
	return policy.Project(policy.Member)
}

// groupActionRoles are the least roles for each action of a group. What decides which side serves, now or after the
// next fault, is the operator's; the statements, which no machine can check, are the administrator's.
func groupActionRoles() map[string]policy.Role {
	out := map[string]policy.Role{
		keyFailover: policy.Operator, // by force as well
		"os-reverse-replication-consistency-group":   policy.Operator,
		"os-reprotect-replication-consistency-group": policy.Operator,
		keyOneSided: policy.Operator,
		// In a group that was failed over a sync is a reprotect: package control asks for the operator then.
		"os-sync-replication-consistency-group": policy.Member,
		"os-stop-replication-consistency-group": policy.Member,
		"os-extend-replication-volumes":         policy.Member,
		keyResyncLimit:                          policy.Member,
		keyVerify:                               policy.Member,
		keyVerifyCancel:                         policy.Member,
	}
	for key := range statements {
		out[key] = policy.Admin
	}
	return out
}

// codes of wrong list parameters.
var codes = rest.PageCodes{Limit: "EVS.1023", Marker: "EVS.1024", SortKey: "EVS.1039", SortDir: "EVS.1040"}

// modelHypermetro is the only replication model: synchronous.
const modelHypermetro = "hypermetro"

// readModel reads replication_model, which must be there where needed is set.
func readModel(o *rest.Object, needed bool) *string {
	const key = "replication_model"
	if o.Null(key) && !needed {
		return nil
	}
	m := o.String(key)
	if o.Err() == nil && m != modelHypermetro {
		o.Fail(rest.BadRequest("replication_model must be %s, not %.40q", modelHypermetro, m))
	}
	return &m
}

// only refuses a misspelt or unknown member of an object that describes a pair or a group, and any
// other one beside it: what a client asks for is done or refused, never left out. The clients there
// are send nothing else.
func only(body, o *rest.Object, object string, keys ...string) {
	body.Only(object)
	o.Only(keys...)
}

// readIDs reads a list of ids that are neither empty nor named twice.
func readIDs(o *rest.Object, key string) []string {
	ids := o.Strings(key)
	checkIDs(o, key, ids)
	return ids
}

func checkIDs(o *rest.Object, key string, ids []string) {
	seen := map[string]bool{}
	for _, id := range ids {
		switch {
		case id == "":
			o.Fail(rest.BadRequest("%s holds an empty id", key))
		case len(id) > rest.MaxNameBytes:
			o.Fail(rest.BadRequest("%s holds an id of %d bytes", key, len(id)))
		case seen[id]:
			o.Fail(rest.BadRequest("%s names %s twice", key, id))
		}
		seen[id] = true
	}
}

package api

import (
	"net/http"
	"regexp"
	"strings"

	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
)

// volumeVersion is the one microversion of block storage v3 that is spoken.
const volumeVersion = "3.0"

// versionRoutes are the documents by which clients find out what is spoken.
func versionRoutes() []rest.Route {
	doc := func(status int, which ...func(string) map[string]any) rest.Handler {
		return func(w http.ResponseWriter, r *rest.Request) error {
			docs := []any{}
			for _, f := range which {
				docs = append(docs, f(r.Base))
			}
			return rest.WriteJSON(w, status, map[string]any{"versions": docs})
		}
	}
	open := policy.Open("tells which versions are spoken")
	return []rest.Route{
		{Method: http.MethodGet, Path: "/{$}", Rule: open, Handle: doc(http.StatusMultipleChoices, versionV2, versionV3)},
		{Method: http.MethodGet, Path: "/v2", Rule: open, Handle: doc(http.StatusOK, versionV2)},
		{Method: http.MethodGet, Path: "/v3", Rule: open, Handle: doc(http.StatusOK, versionV3)},
		{Method: http.MethodGet, Path: identity.ImagePrefix, Rule: open, Handle: doc(http.StatusMultipleChoices, versionImage)},
	}
}

// versionImage is there for clients that want to know the image service's version before they make
// a disk, whether or not from an image; under its path there is nothing.
func versionImage(base string) map[string]any {
	return map[string]any{
		"id": "v2.0", "status": "CURRENT",
		"links": []map[string]string{{"rel": "self", "href": base + identity.ImagePrefix + "/v2/"}},
	}
}

func versionDoc(id, status, path, minimum, maximum, updated string) func(string) map[string]any {
	return func(base string) map[string]any {
		return map[string]any{
			"id": id, "status": status, "min_version": minimum, "version": maximum, "updated": updated,
			"links":       []map[string]string{{"rel": "self", "href": base + path}},
			"media-types": []map[string]string{{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=" + id[1:2]}},
		}
	}
}

var (
	versionV2 = versionDoc("v2.0", "SUPPORTED", "/v2/", "", "", "2017-02-25T12:00:00Z")
	versionV3 = versionDoc("v3.0", "CURRENT", "/v3/", volumeVersion, volumeVersion, "2018-07-17T00:00:00Z")
)

var microversion = regexp.MustCompile(`^[1-9][0-9]{0,3}\.(0|[1-9][0-9]{0,3})$`)

// negotiate reads OpenStack-API-Version on block storage v3 calls and tells what is spoken.
func negotiate(w http.ResponseWriter, r *rest.Request) error {
	if !strings.HasPrefix(r.URL.Path, "/v3/") {
		return nil
	}
	w.Header().Set("OpenStack-API-Version", "volume "+volumeVersion)
	w.Header().Add("Vary", "OpenStack-API-Version")
	for _, part := range strings.Split(strings.Join(r.Header.Values("OpenStack-API-Version"), ","), ",") {
		service, want, _ := strings.Cut(strings.TrimSpace(part), " ")
		if !strings.EqualFold(service, "volume") {
			continue
		}
		switch want = strings.TrimSpace(want); {
		case want == "latest" || want == volumeVersion:
		case !microversion.MatchString(want):
			return rest.BadRequest("%.40q is no version; one looks like %s", want, volumeVersion)
		default:
			return &rest.Error{
				Status:  http.StatusNotAcceptable,
				Message: "version " + want + " of block storage is not spoken; minimum and maximum are " + volumeVersion,
			}
		}
	}
	return nil
}

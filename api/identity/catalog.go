package identity

import (
	"crypto/sha256"
	"encoding/hex"
)

type catalogEntry struct {
	ID        string     `json:"id"`
	Type      string     `json:"type"`
	Name      string     `json:"name"`
	Endpoints []endpoint `json:"endpoints"`
}

// endpoint carries the region under both names: SDKs read "region", OpenStack's own "region_id".
type endpoint struct {
	ID        string `json:"id"`
	Interface string `json:"interface"`
	Region    string `json:"region"`
	RegionID  string `json:"region_id"`
	URL       string `json:"url"`
}

// services of the catalog. Compute and image are placeholders: clients look their URLs up before they
// find out whether a disk has a server to stop, or whether it is made from an image at all.
var services = []struct {
	kind, name, path string
	perProject       bool
}{
	{"identity", "keystone", "/identity/v3", false},
	{"volumev2", "evs", "/v2/", true},
	{"volumev3", "cinderv3", "/v3/", true},
	{"compute", "nova", "/v2.1/", true},
	{"image", "glance", ImagePrefix, false},
}

// ImagePrefix is the path of the image service, of which there is a version document only.
const ImagePrefix = "/image"

// stableID is the same for the same names at every controller and every start.
func stableID(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// catalog lists the services a token's scope can use, with exactly one public endpoint each.
func (s *Service) catalog(base string, t *Token) []catalogEntry {
	out := []catalogEntry{}
	for _, sv := range services {
		url := base + sv.path
		if sv.perProject {
			if t.Project == nil {
				continue
			}
			url += t.Project.ID
		}
		out = append(out, catalogEntry{
			ID: stableID("service", sv.kind), Type: sv.kind, Name: sv.name,
			Endpoints: []endpoint{{
				ID: stableID("endpoint", sv.kind, s.cfg.Region), Interface: "public",
				Region: s.cfg.Region, RegionID: s.cfg.Region, URL: url,
			}},
		})
	}
	return out
}

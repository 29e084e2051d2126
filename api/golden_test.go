package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts in testdata; explain every difference")

// transcript runs a script of calls and writes requests and answers. A line of a script is
// "METHOD path body"; $P is the project. The answers' ids and times repeat; what does not is
// masked.
func transcript(r *rig, script string) string {
	var out strings.Builder
	for _, line := range strings.Split(strings.TrimSpace(script), "\n") {
		method, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		path, body, _ := strings.Cut(rest, " ")
		a := r.do(method, strings.ReplaceAll(path, "$P", r.project), body)
		fmt.Fprintf(&out, "> %s\n< %d %s\n", strings.TrimSpace(line), a.StatusCode, a.Header.Get("Content-Type"))
		var pretty bytes.Buffer
		if a.body == "" {
			out.WriteString("(no body)\n\n")
		} else if err := json.Indent(&pretty, []byte(a.body), "", "  "); err != nil {
			out.WriteString("not JSON: " + a.body + "\n\n")
		} else {
			out.WriteString(pretty.String() + "\n\n")
		}
	}
	s := strings.ReplaceAll(out.String(), r.project, "$P")
	s = strings.ReplaceAll(s, r.boot.UserID, "$U")
	s = strings.ReplaceAll(s, r.srv.URL, "http://host")
	s = regexp.MustCompile(`"20[2-9][0-9]-[0-9T:.-]+(Z?)"`).ReplaceAllString(s, `"NOW$1"`)
	s = regexp.MustCompile(`("attachment_id": )"[0-9a-f-]{36}"`).ReplaceAllString(s, `$1"ATTACHMENT"`)
	return regexp.MustCompile(`("audit_ids": \[\s*)"[0-9a-f]+"`).ReplaceAllString(s, `$1"AUDIT"`)
}

// TestTranscripts compares bodies, byte by byte, with those in testdata.
func TestTranscripts(t *testing.T) {
	// The fake counts ids: volumes 1 and 2, pair 3, group 4.
	const id = "00000000-0000-4000-8000-00000000000"
	replication := `
POST /v2/$P/volumes {"volume":{"size":10,"availability_zone":"az1","name":"data","volume_type":"ssd","metadata":{"a":"b"}}}
POST /v2/$P/volumes {"volume":{"size":10,"availability_zone":"az2","name":null}}
POST /v2/$P/os-vendor-replications {"replication":{"volume_ids":"` + id + `1, ` + id + `2","priority_station":"az1","replication_model":"hypermetro","name":"p \u00e9","description":""}}
GET /v2/$P/os-vendor-replications/` + id + `3
GET /v2/$P/os-vendor-replications?volume_ids=` + id + `2,%20` + id + `1
GET /v2/$P/os-vendor-replications/detail?status=error
POST /v2/$P/os-vendor-replication-consistency-groups {"replication_consistency_group":{"replication_ids":["` + id + `3"],"priority_station":"az1","replication_model":"hypermetro"}}
GET /v2/$P/os-vendor-replication-consistency-groups/` + id + `4
POST /v2/$P/os-vendor-replication-consistency-groups/` + id + `4/action {"os-sync-replication-consistency-group":null}
POST /v2/$P/os-vendor-replication-consistency-groups/` + id + `4/action {"os-stop-replication-consistency-group":{}}
PUT /v2/$P/os-vendor-replication-consistency-groups/` + id + `4 {"replication_consistency_group":{}}
PUT /v2/$P/os-vendor-replication-consistency-groups/` + id + `4 {"replication_consistency_group":{"name":"g","description":"d"}}
GET /v2/$P/os-vendor-replication-consistency-groups?volume_id=` + id + `2
GET /v2/$P/os-vendor-replication-consistency-groups?volume_id=nope
GET /v2/$P/os-vendor-replication-consistency-groups/` + id + `4/history
GET /v2/$P/os-vendor-replication-consistency-groups/` + id + `4/explain
GET /v2/$P/os-lockstep-nodes
GET /v2/$P/volumes/` + id + `1
DELETE /v2/$P/os-vendor-replications/` + id + `3
PUT /v2/$P/os-vendor-replication-consistency-groups/` + id + `4 {"replication_consistency_group":{"remove_replication_ids":["` + id + `3"]}}
DELETE /v2/$P/os-vendor-replication-consistency-groups/` + id + `4
GET /v2/$P/os-vendor-replication-consistency-groups/` + id + `4
DELETE /v2/$P/os-vendor-replications/` + id + `3
`
	volumes := `
GET /
GET /v2/
GET /v3/
GET /v3/$P/os-availability-zone
GET /v3/$P/types
GET /v3/$P/types/default
GET /v3/$P/types/t2/extra_specs
GET /v3/$P/extensions
POST /v3/$P/volumes {"volume":{"size":1,"name":"v","description":null,"multiattach":true}}
GET /v3/$P/volumes
GET /v3/$P/volumes/detail?limit=1
PUT /v3/$P/volumes/` + id + `1 {"volume":{"name":"w","description":"x"}}
POST /v3/$P/volumes/` + id + `1/metadata {"metadata":{"k":"1","l":"2"}}
PUT /v3/$P/volumes/` + id + `1/metadata {"metadata":{"m":"3"}}
PUT /v3/$P/volumes/` + id + `1/metadata/k {"meta":{"k":"4"}}
GET /v3/$P/volumes/` + id + `1/metadata/k
DELETE /v3/$P/volumes/` + id + `1/metadata/k
GET /v3/$P/volumes/` + id + `1/metadata
POST /v3/$P/volumes/` + id + `1/action {"os-reserve":null}
POST /v3/$P/volumes/` + id + `1/action {"os-initialize_connection":{"connector":{"host":"h"}}}
POST /v3/$P/volumes/` + id + `1/action {"os-attach":{"instance_uuid":"server-1","mountpoint":"/dev/vdb","host_name":"h"}}
GET /v3/$P/volumes/` + id + `1
POST /v3/$P/volumes/` + id + `1/action {"os-begin_detaching":{}}
POST /v3/$P/volumes/` + id + `1/action {"os-terminate_connection":{"connector":{}}}
POST /v3/$P/volumes/` + id + `1/action {"os-detach":{}}
POST /v3/$P/volumes/` + id + `1/action {"os-update_readonly_flag":{"readonly":true}}
POST /v3/$P/volumes/` + id + `1/action {"os-set_bootable":{"bootable":true}}
POST /v3/$P/volumes/` + id + `1/action {"os-extend":{"new_size":2}}
POST /v3/$P/volumes/` + id + `1/action {"lockstep-release":null}
GET /v3/$P/volumes/` + id + `1
GET /v3/$P/volumes/summary
GET /v3/$P/limits
GET /v3/$P/os-quota-sets/$P?usage=True
GET /v3/$P/os-quota-sets/$P
GET /v3/$P/snapshots/detail
DELETE /v3/$P/volumes/` + id + `1?cascade=true
GET /v3/$P/volumes/` + id + `1
`
	cloudVolumes := `
POST /v2.1/$P/cloudvolumes {"volume":{"size":1,"name":"v","availability_zone":"az1","volume_type":"ssd","count":1}}
GET /v1/$P/jobs/createVolume.` + id + `1
GET /v2/$P/cloudvolumes/` + id + `1
GET /v2/$P/os-vendor-volumes/` + id + `1/tags
POST /v2.1/$P/cloudvolumes/` + id + `1/action {"os-extend":{"new_size":2},"bssParam":{"isAutoPay":"true"}}
GET /v1/$P/jobs/extendVolume.` + id + `1
PUT /v2/$P/cloudvolumes/` + id + `1 {"volume":{"name":"w"}}
DELETE /v2/$P/cloudvolumes/` + id + `1?cascade=false
GET /v1/$P/jobs/deleteVolume.` + id + `1
GET /v1/$P/jobs/extendVolume.` + id + `1
GET /v1/$P/jobs/nope
`
	ident := `
GET /identity
GET /identity/v3
POST /identity/v3/auth/tokens {"auth":{"identity":{"methods":["password"],"password":{"user":{"id":"$U","password":"correct horse"}}},"scope":{"project":{"name":"p1","domain":{"name":"Default"}}}}}
POST /identity/v3/auth/tokens?nocatalog {"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"name":"Default"},"password":"correct horse"}}},"scope":{"domain":{"name":"Default"}}}}
POST /identity/v3/auth/tokens {"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"id":"default"},"password":"correct horse"}}},"scope":{"unscoped":{}}}}
POST /identity/v3/auth/tokens {"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"id":"default"},"password":"wrong"}}}}}
GET /identity/v3/auth/catalog
GET /identity/v3/auth/projects
GET /identity/v3/auth/domains
GET /identity/v3/users/$U
GET /identity/v3/users/$U/projects
GET /identity/v3/projects?name=p1
GET /identity/v3/projects?name=none
GET /identity/v3/projects/$P
GET /identity/v3/projects/none
GET /identity/v3/domains/default
GET /identity/v3/regions
GET /identity/v3/services
GET /identity/v3/endpoints
GET /identity/v3/roles
`
	for name, script := range map[string]string{
		"replication": replication, "volumes": volumes, "cloudvolumes": cloudVolumes, "identity": ident,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			script := strings.ReplaceAll(script, "$U", r.boot.UserID)
			got := strings.ReplaceAll(transcript(r, script), r.boot.UserID, "$U")
			file := filepath.Join("testdata", name+".txt")
			if *rewrite {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the transcript differs from %s (go test -rewrite writes it anew): %s", file, firstDifference(string(want), got))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("line %d is %q, want %q", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

package api_test

import (
	"slices"
	"strings"
	"testing"
)

// TestStatements: an operator's statement needs its reason and node; what is refused reaches nobody.
func TestStatements(t *testing.T) {
	r := newRig(t)
	group := r.group(r.pair())
	path := groupsPath + "/" + group + "/action"
	for _, body := range []string{
		`{"lockstep-continue":null}`,
		`{"lockstep-continue":{}}`,
		`{"lockstep-continue":{"reason":"r","node":"n"}}`,
		`{"lockstep-continue":{"reason":"r"},"os-stop-replication-consistency-group":null}`,
		`{"lockstep-accept-lost-secondary":{"reason":"r"}}`,
		`{"lockstep-accept-lost-secondary":{"node":"n"}}`,
		`{"lockstep-accept-lost-secondary":{"node":7,"reason":"r"}}`,
		`{"lockstep-confirm-node-off":{"reason":"r"}}`,
		`{"lockstep-confirm-node-off":{"node":"n"}}`,
		`{"lockstep-accept-directory":{"reason":"r"}}`,
		`{"lockstep-back-out":{"node":"n","reason":"r"}}`,
		`{"lockstep-back-out":null}`,
		`{"lockstep-one-sided":null}`,
		`{"lockstep-one-sided":{"policy":"lax"}}`,
		`{"lockstep-resync-limit":null}`,
		`{"lockstep-resync-limit":{}}`,
		`{"lockstep-resync-limit":{"mib":0}}`,
		`{"lockstep-resync-limit":{"mib":-1}}`,
		`{"lockstep-resync-limit":{"mib":100001}}`,
		`{"lockstep-resync-limit":{"mib":"10"}}`,
		`{"lockstep-resync-limit":{"mib":10,"rate":1}}`,
	} {
		if a := r.v2("POST", path, body); a.StatusCode != 400 {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
	}
	if len(r.svc.declared)+len(r.svc.acts) != 0 {
		t.Fatalf("refused statements were taken: %q %q", r.svc.declared, r.svc.acts)
	}
	for _, body := range []string{
		`{"lockstep-continue":{"reason":"rack burnt"}}`,
		`{"lockstep-accept-lost-secondary":{"node":"n1","reason":"scrapped"}}`,
		`{"lockstep-confirm-node-off":{"node":"n2","reason":"power cut at the PDU"}}`,
		`{"lockstep-accept-directory":{"node":"n3","reason":"moved to a new host"}}`,
		`{"lockstep-back-out":{"reason":"drill"}}`,
		`{"lockstep-one-sided":{"policy":"strict"}}`,
		`{"lockstep-resync-limit":{"mib":100000}}`,
		`{"lockstep-resync-limit":{"mib":null}}`,
	} {
		if a := r.v2("POST", path, body); a.StatusCode != 200 || a.body != "" {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
	}
	for _, body := range []string{`{}`, `{"recovery":null}`, `{"recovery":{"off":["az1"]}}`, `{"recovery":{"reason":"r","off":"az1"}}`, `{"recovery":{"reason":"r","on":[]}}`} {
		if a := r.v2("POST", "/os-lockstep-store-recovery", body); a.StatusCode != 400 {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
	}
	const node = "/os-lockstep-nodes/node-az1"
	for _, body := range []string{`{}`, `{"node":null}`, `{"node":{}}`, `{"node":{"resync_limit_mib":0}}`, `{"node":{"resync_limit_mib":1e3}}`, `{"node":{"resync_limit_mib":7,"az":"x"}}`} {
		if a := r.v2("PUT", node, body); a.StatusCode != 400 {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
	}
	for _, body := range []string{`{"node":{"resync_limit_mib":7}}`, `{"node":{"resync_limit_mib":null}}`} {
		if a := r.v2("PUT", node, body); a.StatusCode != 200 || a.body != "" {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
	}
	a := r.v2("POST", "/os-lockstep-store-recovery", `{"recovery":{"reason":"disk lost","off":["az1"]}}`)
	if a.StatusCode != 200 || !strings.Contains(a.body, `"id":"g","epoch_before":3,"epoch":9,"priority_station":"az2","in_sync":false,"unconfirmed":["node n has not reported"]`) || !strings.Contains(a.body, `"unknown_groups":["u"]`) {
		t.Errorf("recovery: %d %s", a.StatusCode, a.body)
	}
	want := []string{
		group + ` continue "" "rack burnt" admin=true`,
		group + ` accept-lost-secondary "n1" "scrapped" admin=true`,
		group + ` confirm-node-off "n2" "power cut at the PDU" admin=true`,
		group + ` accept-directory "n3" "moved to a new host" admin=true`,
		group + ` back-out "" "drill" admin=true`,
		group + ` strict=true`,
		group + ` limit=100000`,
		group + ` limit=0`,
		`node node-az1 limit=7`,
		`node node-az1 limit=0`,
		`recover [az1] "disk lost" admin=true`,
	}
	if !slices.Equal(r.svc.declared, want) {
		t.Errorf("declared %q, want %q", r.svc.declared, want)
	}
}

package api_test

import (
	"slices"
	"strings"
	"testing"
)

// TestForcedFailover: the preview's shape, the token on its way down, and the divergence images.
func TestForcedFailover(t *testing.T) {
	r := newRig(t)
	group := r.group(r.pair())
	path := groupsPath + "/" + group
	a := r.v2("GET", path+"/failover-preview", "")
	for _, want := range []string{
		`"allowed":true,"forced":true,"reasons":[]`, `"from":"az1","to":"az2"`, `"warnings":["mind this"]`, `"waits_for":[{"node":"n1","alive":false}]`,
		`"bytes_missing":null`, `"flush_consistent_only":["n2"]`, `"token":"7-1-ab"`, `"recovery_point_at":"2017-09-28T`,
		`"replication_id":"p","volume_id":"v","lost_volume_id":"u","image":"recovery-point","point_epoch":5,"bytes_missing":65536`,
		`"image":"none","point_epoch":null,"bytes_missing":null,"as_of":null,"estimate":false`,
	} {
		if a.StatusCode != 200 || !strings.Contains(a.body, want) {
			t.Errorf("preview: %d, want %s in %s", a.StatusCode, want, a.body)
		}
	}
	if a := r.v2("POST", path+"/action", `{"os-failover-replication-consistency-group":{"force":true,"token":"7-1-ab"}}`); a.StatusCode != 200 || a.body != "" {
		t.Errorf("force: %d %s", a.StatusCode, a.body)
	}
	if a = r.v2("GET", path+"/divergence-images", ""); a.StatusCode != 200 ||
		!strings.Contains(a.body, `"volumes":[{"replication_id":"p","volume_id":"u","node":"n1","export":"u@diverged-7","uri":"nbd://h/u@diverged-7"}]`) ||
		!strings.Contains(a.body, `{"divergence_images":[{"id":"7","failed_over_at":"2017-09-28T`) {
		t.Errorf("images: %d %s", a.StatusCode, a.body)
	}
	if a := r.v2("DELETE", path+"/divergence-images/7", ""); a.StatusCode != 202 || a.body != "" {
		t.Errorf("delete: %d %s", a.StatusCode, a.body)
	}
	if want := []string{group + " force 7-1-ab", group + " drop 7"}; !slices.Equal(r.svc.declared, want) || len(r.svc.acts) != 0 {
		t.Errorf("reached the service: %q %q, want %q", r.svc.declared, r.svc.acts, want)
	}
}

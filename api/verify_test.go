package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

func (f *fakeService) Verify(_ context.Context, c control.Caller, id lockstep.GroupID, rate int64) (control.VerificationView, error) {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return control.VerificationView{}, err
	}
	f.declared = append(f.declared, fmt.Sprintf("%s verify %d", id, rate))
	g := f.groups[id]
	if g == nil {
		return control.VerificationView{}, refuse(control.KindNotFound, "", "replication consistency group %s could not be found", id)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	g.Verification = &control.VerificationView{TotalBytes: 30, Waits: []string{"node n waits: x"}, Verification: store.Verification{
		ID: "w", State: store.VerifyRunning, RateMiB: rate, Epoch: 7, By: c.User, StartedAt: at, Bytes: 20,
		Differences: store.VerifyDifferences{Count: 1, Bytes: 512, First: []store.Difference{{Volume: "v", Node: "n", Off: 4096, Len: 512, Kept: "found/x", At: at}}},
		Proof:       &store.Proof{ID: "older", StartedAt: at, At: at.Add(1500 * time.Millisecond), Epoch: 6, Bytes: 30, Writes: map[string]string{"n>m": "1.2.3"}},
	}}
	return *g.Verification, nil
}

func (f *fakeService) CancelVerify(_ context.Context, c control.Caller, id lockstep.GroupID) error {
	defer f.mu.Unlock()
	if err := f.enter(c); err != nil {
		return err
	}
	f.declared = append(f.declared, string(id)+" verify-cancel")
	return nil
}

// TestVerify: a verification is begun, shown and ended; what is refused reaches nobody.
func TestVerify(t *testing.T) {
	r := newRig(t)
	group := r.group(r.pair())
	path := groupsPath + "/" + group
	show := func() map[string]any {
		t.Helper()
		a := r.v2("GET", path, "")
		var body map[string]map[string]any
		if err := json.Unmarshal([]byte(a.body), &body); err != nil {
			t.Fatal(err)
		}
		return body["replication_consistency_group"]
	}
	for _, key := range []string{"lockstep_verified", "lockstep_verification"} {
		if v, there := show()[key]; !there || v != nil {
			t.Errorf("%s of a group that was never verified: %v", key, v)
		}
	}
	for _, body := range []string{
		`{"lockstep-verify":{"rate_mib":0}}`,
		`{"lockstep-verify":{"rate_mib":-1}}`,
		`{"lockstep-verify":{"rate_mib":100001}}`,
		`{"lockstep-verify":{"rate_mib":"64"}}`,
		`{"lockstep-verify":{"rate":64}}`,
		`{"lockstep-verify":7}`,
		`{"lockstep-verify-cancel":{"id":"w"}}`,
		`{"lockstep-verify":null,"lockstep-verify-cancel":null}`,
	} {
		if a := r.v2("POST", path+"/action", body); a.StatusCode != 400 {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
	}
	if len(r.svc.declared) != 0 {
		t.Fatalf("refused calls were taken: %q", r.svc.declared)
	}
	for _, body := range []string{`{"lockstep-verify":null}`, `{"lockstep-verify":{}}`, `{"lockstep-verify":{"rate_mib":64}}`} {
		if a := r.v2("POST", path+"/action", body); a.StatusCode != 200 || !strings.Contains(a.body, `"verification":{"id":"w","state":"running"`) {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
	}
	if a := r.v2("POST", path+"/action", `{"lockstep-verify-cancel":null}`); a.StatusCode != 200 || a.body != "" {
		t.Errorf("cancel: %d %s", a.StatusCode, a.body)
	}
	want := []string{group + " verify 0", group + " verify 0", group + " verify 64", group + " verify-cancel"}
	if !slices.Equal(r.svc.declared, want) {
		t.Errorf("called %q, want %q", r.svc.declared, want)
	}
	got, err := json.Marshal(map[string]any{"verified": show()["lockstep_verified"], "verification": show()["lockstep_verification"]})
	if err != nil {
		t.Fatal(err)
	}
	const shown = `{"verification":{"by":"USER","bytes":20,"differences":1,"different_bytes":512,"ended_at":null,"epoch":7,` +
		`"first_differences":[{"found_at":"2026-01-02T03:04:05Z","kept":"found/x","length":512,"node":"n","offset":4096,"repaired":false,"volume_id":"v"}],` +
		`"id":"w","rate_mib":64,"reason":null,"started_at":"2026-01-02T03:04:05Z","state":"running","total_bytes":30,"waits":["node n waits: x"]},` +
		`"verified":{"bytes":30,"differences":0,"duration_ms":1500,"epoch":6,"started_at":"2026-01-02T03:04:05Z","verification_id":"older","verified_at":"2026-01-02T03:04:06.5Z","write_numbers":{"n\u003em":"1.2.3"}}}`
	if s := string(got); s != strings.ReplaceAll(shown, "USER", r.svc.caller.User) {
		t.Errorf("shown:\n%s", s)
	}
	if a := r.v2("POST", groupsPath+"/nope/action", `{"lockstep-verify":null}`); a.StatusCode != 404 {
		t.Errorf("of no group: %d %s", a.StatusCode, a.body)
	}
}

package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
)

var requestID = regexp.MustCompile(`^req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// check is what must hold of any answer of the API whatever was asked.
func check(t *testing.T, a answer) {
	t.Helper()
	id := a.Header.Get("x-openstack-request-id")
	if !requestID.MatchString(id) || a.Header.Get("X-Request-Id") != id {
		t.Errorf("request ids are %q and %q", id, a.Header.Get("X-Request-Id"))
	}
	if ct := a.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type is %q", ct)
	}
	if a.StatusCode >= 400 && a.Request.Method != http.MethodHead {
		key := map[int]string{
			400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 405: "badMethod",
			406: "notAcceptable", 409: "conflictingRequest", 413: "overLimit", 500: "computeFault",
			501: "notImplemented", 503: "serviceUnavailable",
		}[a.StatusCode]
		if strings.HasPrefix(a.Request.URL.Path, "/identity") {
			key = "error"
		}
		if got := a.at(t, key+".code"); got != float64(a.StatusCode) {
			t.Errorf("code is %v in %s", got, a.body)
		}
		if a.str(t, key+".message") == "" {
			t.Errorf("no message in %s", a.body)
		}
	}
	if a.StatusCode == 503 && a.Header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	if a.StatusCode == 401 && !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Keystone uri='http") {
		t.Errorf("WWW-Authenticate is %q", a.Header.Get("WWW-Authenticate"))
	}
}

// TestRefusals sends every kind of bad request to calls of every family, on one deployment that
// has a volume, a pair and a group, and one project more.
func TestRefusals(t *testing.T) {
	r := newRig(t)
	vol, pair := r.volume("az1"), r.pair()
	group := r.group(pair)
	vol2 := r.volume("az2")
	other, err := r.users.CreateProject(t.Context(), "default", "p2")
	if err != nil {
		t.Fatal(err)
	}
	const pairs = "/os-vendor-replications"
	g := groupsPath + "/" + group
	act := g + "/action"
	long := strings.Repeat("a", 256)
	multibyte := strings.Repeat("é", 128) // 256 bytes in 128 characters
	newPair := func(extra string) string {
		return `{"replication":{"volume_ids":["` + vol + `","` + vol2 + `"],"priority_station":"az1","replication_model":"hypermetro"` + extra + `}}`
	}
	newGroup := func(member string) string {
		return `{"replication_consistency_group":{"priority_station":"az1",` + member + `}}`
	}
	model := `"replication_model":"hypermetro"`
	ids := `"replication_ids":["` + pair + `"]`
	const missing = "11111111-1111-4111-8111-111111111111"

	for _, c := range []struct {
		name, method, path, body string
		status                   int
		text                     string // part of the message
	}{
		// Bodies.
		{"empty body", "POST", "/volumes", "", 400, "empty"},
		{"truncated body", "POST", "/volumes", `{"volume":{"size":1`, 400, "not valid JSON"},
		{"list as body", "POST", "/volumes", `[{"volume":{}}]`, 400, "must be a JSON object, not a list"},
		{"null body", "POST", pairs, `null`, 400, "must be a JSON object, not null"},
		{"string body", "POST", groupsPath, `"x"`, 400, "must be a JSON object, not a string"},
		{"number body", "POST", act, `7`, 400, "must be a JSON object"},
		{"trailing garbage", "POST", "/volumes", `{"volume":{"size":1}} {}`, 400, "not valid JSON"},
		{"not UTF-8", "POST", "/volumes", "{\"volume\":{\"size\":1,\"name\":\"\xff\"}}", 400, "UTF-8"},
		{"huge body", "POST", "/volumes", `{"volume":{"name":"` + strings.Repeat("a", 1<<20) + `"}}`, 413, "1048576"},
		{"deep body", "POST", "/volumes", strings.Repeat("[", 100000), 400, "not valid JSON"},
		{"member twice", "POST", "/volumes", `{"volume":{"size":1,"size":2}}`, 400, `"volume.size" is given twice`},
		{"no volume", "POST", "/volumes", `{}`, 400, `"volume" is missing`},
		{"volume null", "POST", "/volumes", `{"volume":null}`, 400, `"volume" must be an object, not null`},
		{"no size", "POST", "/volumes", `{"volume":{}}`, 400, `"volume.size" is missing`},
		{"size string", "POST", "/volumes", `{"volume":{"size":"1"}}`, 400, `"volume.size" must be a whole number, not a string`},
		{"size fraction", "POST", "/volumes", `{"volume":{"size":1.5}}`, 400, `EVS.1010: "volume.size"`},
		{"size zero", "POST", "/volumes", `{"volume":{"size":0}}`, 400, "EVS.1010"},
		{"size negative", "POST", "/volumes", `{"volume":{"size":-1}}`, 400, "EVS.1010"},
		{"size over int64", "POST", "/volumes", `{"volume":{"size":9223372036854775808}}`, 400, "out of range"},
		{"size in bytes over int64", "POST", "/volumes", `{"volume":{"size":8589934592}}`, 400, "out of range"},
		{"size beyond the service", "POST", "/volumes", `{"volume":{"size":8589934591}}`, 400, "EVS.1010"},
		{"name number", "POST", "/volumes", `{"volume":{"size":1,"name":5}}`, 400, `"volume.name" must be a string, not a number`},
		{"name 256 bytes", "POST", "/volumes", `{"volume":{"size":1,"name":"` + long + `"}}`, 400, "256 bytes"},
		{"name multi-byte", "POST", "/volumes", `{"volume":{"size":1,"name":"` + multibyte + `"}}`, 400, "256 bytes"},
		{"metadata value", "POST", "/volumes", `{"volume":{"size":1,"metadata":{"a":1}}}`, 400, `"volume.metadata.a" must be a string`},
		{"metadata list", "POST", "/volumes", `{"volume":{"size":1,"metadata":[]}}`, 400, `"volume.metadata" must be an object`},
		{"multiattach string", "POST", "/volumes", `{"volume":{"size":1,"multiattach":"yes"}}`, 400, "true or false"},
		{"from snapshot", "POST", "/volumes", `{"volume":{"size":1,"snapshot_id":"x"}}`, 501, "snapshot_id"},
		{"unknown zone", "POST", "/volumes", `{"volume":{"size":1,"availability_zone":"az9"}}`, 400, "az9"},

		// Unknown ids.
		{"unknown volume", "GET", "/volumes/" + missing, "", 404, missing},
		{"unknown volume update", "PUT", "/volumes/" + missing, `{"volume":{"name":"x"}}`, 404, ""},
		{"unknown volume delete", "DELETE", "/volumes/" + missing, "", 404, ""},
		{"unknown volume action", "POST", "/volumes/" + missing + "/action", `{"os-extend":{"new_size":20}}`, 404, ""},
		{"unknown volume terminate", "POST", "/volumes/" + missing + "/action", `{"os-terminate_connection":{}}`, 404, ""},
		{"unknown volume metadata", "GET", "/volumes/" + missing + "/metadata", "", 404, ""},
		{"unknown metadata item", "GET", "/volumes/" + vol + "/metadata/nope", "", 404, "nope"},
		{"unknown metadata item delete", "DELETE", "/volumes/" + vol + "/metadata/nope", "", 404, "nope"},
		{"unknown type", "GET", "/types/nope", "", 404, "nope"},
		{"unknown pair", "GET", pairs + "/" + missing, "", 404, missing},
		{"unknown pair delete", "DELETE", pairs + "/" + missing, "", 404, ""},
		{"unknown group", "GET", groupsPath + "/" + missing, "", 404, missing},
		{"unknown group put", "PUT", groupsPath + "/" + missing, `{"replication_consistency_group":{}}`, 404, ""},
		{"unknown group delete", "DELETE", groupsPath + "/" + missing, "", 404, ""},
		{"unknown group action", "POST", groupsPath + "/" + missing + "/action", `{"os-stop-replication-consistency-group":null}`, 404, ""},
		{"unknown group history", "GET", groupsPath + "/" + missing + "/history", "", 404, ""},
		{"unknown group explained", "GET", groupsPath + "/" + missing + "/explain", "", 404, ""},
		{"id with a slash", "GET", "/volumes/a%2Fb", "", 404, ""},
		{"id too long", "GET", "/volumes/" + long, "", 404, ""},
		{"unknown volume in pair", "POST", pairs, `{"replication":{"volume_ids":["` + vol + `","` + missing + `"],"priority_station":"az1",` + model + `}}`, 404, missing},

		// Volume actions.
		{"two actions", "POST", "/volumes/" + vol + "/action", `{"os-reserve":null,"os-unreserve":null}`, 400, "exactly one action"},
		{"no action", "POST", "/volumes/" + vol + "/action", `{}`, 400, "exactly one action"},
		{"unknown action", "POST", "/volumes/" + vol + "/action", `{"os-dance":{}}`, 400, "os-dance"},
		{"refused action", "POST", "/volumes/" + vol + "/action", `{"os-retype":{}}`, 501, "os-retype"},
		{"action value list", "POST", "/volumes/" + vol + "/action", `{"os-extend":[]}`, 400, `"os-extend" must be an object`},
		{"extend without size", "POST", "/volumes/" + vol + "/action", `{"os-extend":{}}`, 400, `"os-extend.new_size" is missing`},
		{"extend shrinks", "POST", "/volumes/" + vol + "/action", `{"os-extend":{"new_size":5}}`, 400, "EVS.1014"},
		{"detach what is not attached", "POST", "/volumes/" + vol + "/action", `{"os-detach":{}}`, 400, "must be in-use"},
		{"attach to nothing", "POST", "/volumes/" + vol + "/action", `{"os-attach":{"mountpoint":"/dev/vdb"}}`, 400, "instance_uuid"},
		{"attach in no mode", "POST", "/volumes/" + vol + "/action", `{"os-attach":{"instance_uuid":"i","mode":"wo"}}`, 400, "mode"},
		{"bootable missing", "POST", "/volumes/" + vol + "/action", `{"os-set_bootable":{}}`, 400, "bootable"},
		{"readonly wrong", "POST", "/volumes/" + vol + "/action", `{"os-update_readonly_flag":{"readonly":"True"}}`, 400, "true or false"},
		{"metadata missing", "POST", "/volumes/" + vol + "/metadata", `{}`, 400, "metadata"},
		{"meta of another key", "PUT", "/volumes/" + vol + "/metadata/a", `{"meta":{"b":"1"}}`, 400, "meta"},
		{"snapshots", "POST", "/snapshots", `{}`, 501, "snapshots"},
		{"foreign quota", "GET", "/os-quota-sets/other", "", 403, ""},

		// Pairs.
		{"wrong model", "POST", pairs, strings.Replace(newPair(""), "hypermetro", "async", 1), 400, "must be hypermetro"},
		{"no model", "POST", pairs, `{"replication":{"volume_ids":["a","b"],"priority_station":"az1"}}`, 400, `"replication.replication_model" is missing`},
		{"no station", "POST", pairs, `{"replication":{"volume_ids":["a","b"],` + model + `}}`, 400, "priority_station"},
		{"one volume", "POST", pairs, `{"replication":{"volume_ids":["a"],"priority_station":"az1",` + model + `}}`, 400, "two volumes, not 1"},
		{"three volumes", "POST", pairs, `{"replication":{"volume_ids":"a,b,c","priority_station":"az1",` + model + `}}`, 400, "two volumes, not 3"},
		{"same volume twice", "POST", pairs, `{"replication":{"volume_ids":"a, a","priority_station":"az1",` + model + `}}`, 400, "twice"},
		{"volume ids number", "POST", pairs, `{"replication":{"volume_ids":5,"priority_station":"az1",` + model + `}}`, 400, "volume_ids"},
		{"volume ids of numbers", "POST", pairs, `{"replication":{"volume_ids":[1,2],"priority_station":"az1",` + model + `}}`, 400, `"replication.volume_ids[0]" must be a string`},
		{"pair name 256", "POST", pairs, newPair(`,"name":"` + long + `"`), 400, "256 bytes"},
		{"pair description multi-byte", "POST", pairs, newPair(`,"description":"` + multibyte + `"`), 400, "256 bytes"},
		{"pair in a group", "DELETE", pairs + "/" + pair, "", 409, "is in consistency group"},
		{"pair put", "PUT", pairs + "/" + pair, `{}`, 405, "GET, HEAD"},

		// Groups.
		{"no pairs", "POST", groupsPath, newGroup(model), 400, "at least one"},
		{"empty pairs", "POST", groupsPath, newGroup(model + `,"replication_ids":[]`), 400, "at least one"},
		{"empty pair id", "POST", groupsPath, newGroup(model + `,"replication_ids":[""]`), 400, "empty id"},
		{"pair twice", "POST", groupsPath, newGroup(model + `,"replication_ids":["x","x"]`), 400, "twice"},
		{"pairs as string", "POST", groupsPath, newGroup(model + `,"replication_ids":"x"`), 400, "must be a list of strings"},
		{"group model", "POST", groupsPath, newGroup(ids + `,"replication_model":"x"`), 400, "must be hypermetro"},
		{"group name", "POST", groupsPath, newGroup(ids + `,` + model + `,"name":"` + multibyte + `"`), 400, "256 bytes"},
		{"put without object", "PUT", g, `{}`, 400, `"replication_consistency_group" is missing`},
		{"put model", "PUT", g, `{"replication_consistency_group":{"replication_model":"x"}}`, 400, "hypermetro"},
		{"put add and remove", "PUT", g, `{"replication_consistency_group":{"add_replication_ids":["x"],"remove_replication_ids":["x"]}}`, 400, "added and removed"},
		{"put add string", "PUT", g, `{"replication_consistency_group":{"add_replication_ids":"x"}}`, 400, "add_replication_ids"},
		{"delete with pairs", "DELETE", g, "", 409, "pairs"},

		// What is misspelt, or cannot be changed, is refused and not left out.
		{"misspelt add", "PUT", g, `{"replication_consistency_group":{"add_replications_ids":["x"]}}`, 400, `"replication_consistency_group.add_replications_ids" is not known`},
		{"misspelt station", "POST", groupsPath, newGroup(model + `,` + ids + `,"priority_staion":"az1"`), 400, "priority_staion"},
		{"misspelt pair member", "POST", pairs, newPair(`,"names":"x"`), 400, `"replication.names" is not known`},
		{"more than a pair", "POST", pairs, `{"x":1,` + newPair("")[1:], 400, `"x" is not known`},
		{"more than a group", "POST", groupsPath, `{"replication_consistency_groups":{},` + newGroup(ids + `,` + model)[1:], 400, "replication_consistency_groups"},
		{"more than an update", "PUT", g, `{"replication_consistency_group":{"name":"x"},"name":"y"}`, 400, `"name" is not known`},
		{"put station", "PUT", g, `{"replication_consistency_group":{"priority_station":"az2"}}`, 400, "cannot be changed by an update"},
		{"put station as it is", "PUT", g, `{"replication_consistency_group":{"priority_station":"az1"}}`, 400, "failover or a switchover"},
		{"put pairs", "PUT", g, `{"replication_consistency_group":{"replication_ids":["x"]}}`, 400, "add_replication_ids"},

		// Group actions.
		{"two group actions", "POST", act, `{"os-sync-replication-consistency-group":null,"os-stop-replication-consistency-group":null}`, 400, "exactly one action"},
		{"same action twice", "POST", act, `{"os-sync-replication-consistency-group":null,"os-sync-replication-consistency-group":null}`, 400, "twice"},
		{"no group action", "POST", act, `{}`, 400, "exactly one action"},
		{"unknown group action", "POST", act, `{"os-dance":null}`, 400, "os-dance"},
		{"group action true", "POST", act, `{"os-sync-replication-consistency-group":true}`, 400, "must be an object, not a boolean"},
		{"group action list", "POST", act, `{"os-failover-replication-consistency-group":[]}`, 400, "must be an object"},
		{"unknown member", "POST", act, `{"os-sync-replication-consistency-group":{"fast":true}}`, 400, "fast"},
		{"forced failover", "POST", act, `{"os-failover-replication-consistency-group":{"force":true}}`, 400, "failover-preview"},
		{"forced failover, wrong token", "POST", act, `{"os-failover-replication-consistency-group":{"force":true,"token":"x"}}`, 409, "look at a new one"},
		{"forced failover, token is a number", "POST", act, `{"os-failover-replication-consistency-group":{"force":true,"token":7}}`, 400, "token"},
		{"forced failover, more", "POST", act, `{"os-failover-replication-consistency-group":{"force":true,"token":"x","now":true}}`, 400, "now"},
		{"token without force", "POST", act, `{"os-failover-replication-consistency-group":{"token":"x"}}`, 400, "token"},
		{"token and no force", "POST", act, `{"os-failover-replication-consistency-group":{"force":false,"token":"x"}}`, 400, "token"},
		{"image is no number", "DELETE", g + "/divergence-images/x", "", 400, "number"},
		{"image that is not there", "DELETE", g + "/divergence-images/9", "", 404, "no divergence image"},
		{"forced failover and more", "POST", act, `{"os-failover-replication-consistency-group":{"force":false,"x":1}}`, 400, `.x"`},
		{"force is a string", "POST", act, `{"os-failover-replication-consistency-group":{"force":"true"}}`, 400, "force"},
		{"force is null", "POST", act, `{"os-failover-replication-consistency-group":{"force":null}}`, 400, "force"},
		{"force elsewhere", "POST", act, `{"os-stop-replication-consistency-group":{"force":true}}`, 400, "force"},
		{"failover refused", "POST", act, `{"os-failover-replication-consistency-group":null}`, 409, "the secondary is not in sync"},
		{"extend null", "POST", act, `{"os-extend-replication-volumes":null}`, 400, "must be an object"},
		{"extend nothing", "POST", act, `{"os-extend-replication-volumes":{}}`, 400, "is missing"},
		{"extend no pairs", "POST", act, `{"os-extend-replication-volumes":{"replications":[]}}`, 400, "at least one"},
		{"extend both forms", "POST", act, `{"os-extend-replication-volumes":{"replications":[],"id":"x","new_size":1}}`, 400, `.id"`},
		{"extend pair twice", "POST", act, `{"os-extend-replication-volumes":{"replications":[{"id":"x","new_size":2},{"id":"x","new_size":3}]}}`, 400, "twice"},
		{"extend overflow", "POST", act, `{"os-extend-replication-volumes":{"id":"x","new_size":99999999999999999999}}`, 400, "EVS.1010"},
		{"extend size string", "POST", act, `{"os-extend-replication-volumes":{"replications":[{"id":"x","new_size":"2"}]}}`, 400, "replications[0].new_size"},
		{"extend of strings", "POST", act, `{"os-extend-replication-volumes":{"replications":["x"]}}`, 400, "replications[0]"},
		{"extend unknown pair", "POST", act, `{"os-extend-replication-volumes":{"id":"` + missing + `","new_size":20}}`, 400, missing},

		// List parameters.
		{"limit 0", "GET", pairs + "?limit=0", "", 400, "EVS.1023"},
		{"limit 1001", "GET", groupsPath + "?limit=1001", "", 400, "EVS.1023"},
		{"limit x", "GET", pairs + "?limit=x", "", 400, "EVS.1023"},
		{"limit -1", "GET", pairs + "?limit=-1", "", 400, "EVS.1023"},
		{"offset", "GET", groupsPath + "?offset=-1", "", 400, "offset"},
		{"marker", "GET", pairs + "?marker=" + missing, "", 400, "EVS.1024"},
		{"sort key", "GET", pairs + "?sort_key=colour", "", 400, "EVS.1039"},
		{"sort dir", "GET", groupsPath + "?sort_dir=up", "", 400, "EVS.1040"},
		{"changes since", "GET", pairs + "?changes-since=yesterday", "", 400, "changes-since"},
		{"bad escape", "GET", pairs + "?limit=%zz", "", 400, "query"},
		{"bad escape in a key", "GET", groupsPath + "?%zz=1", "", 400, "query"},
		{"semicolon", "GET", pairs + "?limit=1;limit=2", "", 400, "query"},
		{"parameter twice", "GET", groupsPath + "?limit=1&limit=2", "", 400, `"limit" is given 2 times`},
		{"unknown parameter twice", "GET", "/volumes/detail?x=1&x=1", "", 400, "2 times"},
		{"bad query of a change", "DELETE", "/volumes/" + vol + "?cascade=%zz", "", 400, "query"},
		{"volume limit", "GET", "/volumes?limit=x", "", 400, "limit"},
		{"volume marker", "GET", "/volumes/detail?marker=" + missing, "", 400, "marker"},
		{"volume sort", "GET", "/volumes/detail?sort=colour:asc", "", 400, "sort_key"},

		// Paths and methods.
		{"nothing there", "GET", "/nothing", "", 404, ""},
		{"method", "PATCH", "/volumes", "", 405, ""},
		{"invented method", "BREW", "/volumes/" + vol, "", 405, "BREW"},
		{"cloudvolumes batch", "POST", "/cloudvolumes", `{"volume":{"size":1,"count":2}}`, 501, "count"},
		{"cloudvolumes two actions", "POST", "/cloudvolumes/" + vol + "/action", `{"os-extend":{"new_size":20},"x":1}`, 400, `"x"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := r.v2(c.method, c.path, c.body)
			check(t, a)
			if a.StatusCode != c.status || !strings.Contains(strings.ReplaceAll(a.body, `\"`, `"`), c.text) {
				t.Errorf("%d %s, want %d with %q", a.StatusCode, a.body, c.status, c.text)
			}
			if a.StatusCode == 405 && a.Header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
	if len(r.svc.acts) != 0 {
		t.Errorf("refused calls acted: %q", r.svc.acts)
	}

	t.Run("another project's things are not found", func(t *testing.T) {
		if err := r.users.Assign(t.Context(), assignment(r.boot.UserID, other.ID)); err != nil {
			t.Fatal(err)
		}
		token := r.login("admin", password, `{"project":{"id":"`+other.ID+`"}}`)
		for _, path := range []string{"/volumes/" + vol, pairs + "/" + pair, g, g + "/history", g + "/explain"} {
			a := r.do("GET", "/v2/"+other.ID+path, "", "X-Auth-Token: "+token)
			check(t, a)
			if a.StatusCode != 404 {
				t.Errorf("%s: %d %s", path, a.StatusCode, a.body)
			}
		}
		for _, path := range []string{"/volumes", pairs, groupsPath} {
			if a := r.do("GET", "/v2/"+other.ID+path, "", "X-Auth-Token: "+token); strings.Contains(a.body, vol) || strings.Contains(a.body, pair) {
				t.Errorf("%s shows another project: %s", path, a.body)
			}
		}
	})
}

// TestTokens sends every kind of wrong token to a project's calls.
func TestTokens(t *testing.T) {
	r := newRig(t)
	other, err := r.users.CreateProject(t.Context(), "default", "p2")
	if err != nil {
		t.Fatal(err)
	}
	unscoped := r.login("admin", password, "")
	domain := r.login("admin", password, `{"domain":{"id":"default"}}`)
	revoked := r.login("admin", password, `{"project":{"id":"`+r.project+`"}}`)
	if a := r.do("DELETE", "/identity/v3/auth/tokens", "", "X-Subject-Token: "+revoked); a.StatusCode != 204 {
		t.Fatalf("revoke: %d %s", a.StatusCode, a.body)
	}
	for _, c := range []struct {
		name, project, token string
		status               int
	}{
		{"good", r.project, r.token, 200},
		{"missing", r.project, "", 401},
		{"garbage", r.project, "garbage", 401},
		{"garbage of the right form", r.project, strings.Repeat("A", 43), 401},
		{"revoked", r.project, revoked, 401},
		{"foreign project", other.ID, r.token, 403},
		{"unknown project", "nope", r.token, 403},
		{"unscoped", r.project, unscoped, 403},
		{"domain", r.project, domain, 403},
		{"images is no project", "images", r.token, 404},
	} {
		for _, path := range []string{"/v2/%s/os-vendor-replications", "/v3/%s/volumes", "/v2/%s/cloudvolumes/detail"} {
			a := r.do("GET", fmt.Sprintf(path, c.project), "", "X-Auth-Token: "+c.token)
			check(t, a)
			if a.StatusCode != c.status {
				t.Errorf("%s: %s: %d %s, want %d", c.name, path, a.StatusCode, a.body, c.status)
			}
		}
	}
	r.advance(24*time.Hour + time.Second)
	a := r.v2("GET", "/volumes", "")
	check(t, a)
	if a.StatusCode != 401 {
		t.Errorf("expired token: %d %s", a.StatusCode, a.body)
	}
}

// TestServerFaults checks what a client gets when the machinery below fails.
func TestServerFaults(t *testing.T) {
	r := newRig(t)
	r.svc.err = fmt.Errorf("read volume: secret detail: %w", lockstep.ErrStoreUnavailable)
	a := r.v2("GET", "/volumes", "")
	check(t, a)
	if a.StatusCode != 503 || strings.Contains(a.body, "secret detail") {
		t.Errorf("store gone: %d %s", a.StatusCode, a.body)
	}
	r.svc.err = fmt.Errorf("secret detail")
	a = r.v2("GET", "/volumes", "")
	check(t, a)
	if a.StatusCode != 500 || strings.Contains(a.body, "secret detail") {
		t.Errorf("unknown error: %d %s", a.StatusCode, a.body)
	}
	if id := a.Header.Get("X-Request-Id"); !strings.Contains(r.log.String(), "secret detail") || !strings.Contains(r.log.String(), id) {
		t.Error("the log does not tell the error under its request id")
	}
	r.svc.err = &control.Error{Kind: control.KindUnavailable, Message: "no leader"}
	if a = r.v2("GET", "/volumes", ""); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
		t.Errorf("unavailable: %d %v", a.StatusCode, a.Header)
	}
	r.svc.err, r.svc.panics = nil, true
	a = r.v2("GET", "/volumes", "")
	check(t, a)
	if a.StatusCode != 500 || strings.Contains(a.body, "told to") {
		t.Errorf("panic: %d %s", a.StatusCode, a.body)
	}
	r.svc.panics = false
	if a = r.v2("GET", "/volumes", ""); a.StatusCode != 200 {
		t.Errorf("after a panic: %d", a.StatusCode)
	}
	if strings.Contains(r.log.String(), r.token) || strings.Contains(r.log.String(), password) {
		t.Error("a token or a password stands in the log")
	}

	if a = r.do("GET", "/readyz", ""); a.StatusCode != 200 {
		t.Errorf("readyz: %d", a.StatusCode)
	}
	r.store.SetDown(true)
	for _, path := range []string{"/readyz", "/v2/" + r.project + "/volumes"} {
		r.advance(time.Minute) // past the cache of tokens
		a = r.do("GET", path, "")
		check(t, a)
		if a.StatusCode != 503 {
			t.Errorf("%s with the store down: %d %s", path, a.StatusCode, a.body)
		}
	}
	if a = r.do("GET", "/healthz", ""); a.StatusCode != 200 {
		t.Errorf("healthz with the store down: %d", a.StatusCode)
	}
	r.store.SetDown(false)
	a = r.do("GET", "/metrics", "", "Accept: text/plain")
	if a.StatusCode != 200 || !strings.Contains(a.body, `lockstep_api_requests_total{code="503",method="GET",route="/v2/{project_id}/volumes"} `) {
		t.Errorf("metrics: %d %s", a.StatusCode, a.body)
	}
}

// TestNegotiation covers version documents, microversions, Accept, slashes and HEAD.
func TestNegotiation(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		method, path, headers string
		status                int
		text                  string
	}{
		{"GET", "/", "X-Auth-Token: ", 300, `"id":"v3.0"`},
		{"GET", "/", "X-Auth-Token: ", 300, `"id":"v2.0"`},
		{"GET", "/v2/", "X-Auth-Token: ", 200, `"id":"v2.0"`},
		{"GET", "/v3", "X-Auth-Token: ", 200, `"version":"3.0"`},
		{"GET", "/v3/", "X-Auth-Token: ", 200, `"min_version":"3.0"`},
		{"GET", "/identity", "X-Auth-Token: ", 300, `"values":[`},
		{"GET", "/identity/", "X-Auth-Token: ", 300, `"values":[`},
		{"GET", "/identity/v3/", "X-Auth-Token: ", 200, `"version":{`},
		{"HEAD", "/v3/P/volumes", "", 200, ""},
		{"GET", "/v3/P/volumes/", "", 200, `"volumes":[]`},
		{"GET", "/v3/P/volumes", "OpenStack-API-Version: volume 3.0", 200, ""},
		{"GET", "/v3/P/volumes", "OpenStack-API-Version: volume latest", 200, ""},
		{"GET", "/v3/P/volumes", "OpenStack-API-Version: compute 2.90, volume 3.0", 200, ""},
		{"GET", "/v3/P/volumes", "OpenStack-API-Version: compute 2.90", 200, ""},
		{"GET", "/v3/P/volumes", "OpenStack-API-Version: volume 3.59", 406, "3.59"},
		{"GET", "/v3/P/volumes", "OpenStack-API-Version: volume 2.0", 406, "2.0"},
		{"GET", "/v3/P/volumes", "OpenStack-API-Version: volume three", 400, "three"},
		{"GET", "/v2/P/volumes", "OpenStack-API-Version: volume 3.59", 200, ""},
		{"GET", "/v2/P/volumes", "Accept: application/xml", 406, ""},
		{"GET", "/v2/P/volumes", "Accept: text/html, application/json;q=0", 406, ""},
		{"GET", "/v2/P/volumes", "Accept: */*, application/json;q=0", 406, ""},
		{"GET", "/v2/P/volumes", "Accept: text/html, */*;q=0.1", 200, ""},
		{"GET", "/v2/P/volumes", "Accept: application/*", 200, ""},
		{"GET", "/v2/P/volumes", "Accept: application/json", 200, ""},
		{"GET", "//v2/P/volumes", "", 404, ""},
		{"GET", "/v2/P/../P/volumes", "", 404, ""},
		{"POST", "/v3", "", 405, "GET, HEAD"},
		{"OPTIONS", "/v2/P/volumes", "", 405, "POST"},
	} {
		a := r.do(c.method, strings.ReplaceAll(c.path, "P", r.project), "", c.headers)
		check(t, a)
		if a.StatusCode != c.status || !strings.Contains(a.body, c.text) {
			t.Errorf("%s %s %q: %d %s, want %d with %q", c.method, c.path, c.headers, a.StatusCode, a.body, c.status, c.text)
		}
		if strings.HasPrefix(c.path, "/v3/P") && a.Header.Get("OpenStack-API-Version") != "volume 3.0" {
			t.Errorf("%s: OpenStack-API-Version is %q", c.path, a.Header.Get("OpenStack-API-Version"))
		}
	}
}

// TestAudit: every call that may change something leaves one line with who, what, which and the id
// that the client got, whatever came of it; calls that only look leave none.
func TestAudit(t *testing.T) {
	r := newRig(t)
	other, err := r.users.CreateProject(t.Context(), "default", "p2")
	if err != nil {
		t.Fatal(err)
	}
	v1, v2 := r.volume("az1"), r.volume("az2")
	type line struct{ User, Project, Action, Resource, Result string }
	last := func(a answer) (found []line) {
		for text := range strings.Lines(r.log.String()) {
			var l struct {
				line
				Msg       string
				RequestID string `json:"request_id"`
				Status    int
			}
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Fatal(err)
			}
			if l.Msg == "audit" && l.RequestID == a.Header.Get("X-Request-Id") {
				found = append(found, l.line)
				if l.Status != a.StatusCode {
					t.Errorf("status %d, answered %d", l.Status, a.StatusCode)
				}
			}
		}
		return found
	}
	admin := r.boot.UserID
	want := func(a answer, action, resource, result string) {
		t.Helper()
		if got := last(a); len(got) != 1 || got[0] != (line{admin, r.project, action, resource, result}) {
			t.Errorf("%s %s: %+v, want %s %s %s", a.Request.Method, a.Request.URL.Path, got, action, resource, result)
		}
	}
	a := r.v2("POST", "/volumes", `{"volume":{"size":10}}`)
	want(a, "create", "volumes/"+a.str(t, "volume.id"), "taken")
	want(r.v2("PUT", "/volumes/"+v1, `{"volume":{"name":"x"}}`), "update", "volumes/"+v1, "taken")
	want(r.v2("POST", "/volumes/"+v1+"/action", `{"os-reserve":null}`), "os-reserve", "volumes/"+v1, "taken")
	want(r.v2("POST", "/volumes/"+v1+"/action", `{"os-retype":null}`), "os-retype", "volumes/"+v1, "failed")
	want(r.v2("POST", "/volumes/"+v1+"/action", `{"what?":null}`), "action", "volumes/"+v1, "refused")
	want(r.v2("PUT", "/volumes/"+v1+"/metadata", `{"metadata":{}}`), "update", "volumes/"+v1+"/metadata", "taken")
	a = r.v2("POST", "/cloudvolumes", `{"volume":{"size":10}}`)
	want(a, "create", "cloudvolumes/"+a.at(t, "volume_ids").([]any)[0].(string), "taken")
	want(r.v2("POST", "/cloudvolumes/"+v2+"/action", `{"os-extend":{"new_size":1}}`), "os-extend", "cloudvolumes/"+v2, "refused")
	a = r.v2("POST", "/os-vendor-replications", pairOf(r.volume("az1"), v2, "az1"))
	pair := a.str(t, "replication.id")
	want(a, "create", "os-vendor-replications/"+pair, "taken")
	group := r.group(pair)
	g := groupsPath + "/" + group
	want(r.v2("PUT", g, `{"replication_consistency_group":{"name":"n"}}`), "update", g[1:], "taken")
	want(r.v2("POST", g+"/action", `{"os-sync-replication-consistency-group":null}`), "os-sync-replication-consistency-group", g[1:], "taken")
	want(r.v2("POST", g+"/action", `{"lockstep-one-sided":{"policy":"strict"}}`), "lockstep-one-sided", g[1:], "taken")
	want(r.v2("POST", g+"/action", `{"lockstep-resync-limit":{"mib":7}}`), "lockstep-resync-limit", g[1:], "taken")
	want(r.v2("PUT", "/os-lockstep-nodes/n", `{"node":{"resync_limit_mib":7}}`), "update", "os-lockstep-nodes/n", "taken")
	want(r.v2("POST", g+"/action", `{"lockstep-continue":{}}`), "lockstep-continue", g[1:], "refused")
	want(r.v2("DELETE", g, ""), "delete", g[1:], "refused")
	want(r.v2("DELETE", "/os-vendor-replications/"+pair, ""), "delete", "os-vendor-replications/"+pair, "refused")
	want(r.do("DELETE", "/v2/"+other.ID+"/volumes/"+v1, ""), "delete", "volumes/"+v1, "refused")
	r.svc.err = fmt.Errorf("broken")
	want(r.v2("DELETE", "/volumes/"+v1, ""), "delete", "volumes/"+v1, "failed")
	r.svc.err = nil
	a = r.v2("DELETE", "/volumes/"+v1, "", "X-Auth-Token: ")
	if got := last(a); len(got) != 1 || got[0] != (line{"", "", "delete", "volumes/" + v1, "refused"}) {
		t.Errorf("without a token: %+v", got)
	}
	for _, path := range []string{"/volumes", g, "/os-vendor-replications"} {
		if got := last(r.v2("GET", path, "")); got != nil {
			t.Errorf("a look at %s is a change: %+v", path, got)
		}
	}
}

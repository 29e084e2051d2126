package api_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

// raw sends bytes on a connection of its own and reads the answer. half: the client sends no more
// afterwards; a server that waits for the rest would wait for ever.
func (r *rig) raw(method, request string, half bool) answer {
	r.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.srv.URL, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	go func() { // the server may answer, and hang up, before it has read all
		_, _ = io.WriteString(conn, request)
		if half {
			_ = conn.(*net.TCPConn).CloseWrite()
		}
	}()
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		r.t.Fatalf("%s: %v", request[:min(len(request), 200)], err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	res.Request, err = http.NewRequest(method, r.srv.URL, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{res, string(b)}
}

// TestBodiesOnTheWire sends bodies that end too early, in the middle of a chunk, or not at all, to
// calls of every family on the real controller: each is refused, and the store stays as it was.
func TestBodiesOnTheWire(t *testing.T) {
	r := newLive(t)
	v1, v2 := r.madeVolume("az1"), r.madeVolume("az2")
	pair := r.madePair(v1, v2, "az1")
	group := r.madeGroup(pair)
	free := r.madeVolume("az1")
	bodies := []struct{ method, path, body string }{
		{"POST", "/volumes", `{"volume":{"size":10,"name":"never"}}`},
		{"PUT", "/volumes/" + free, `{"volume":{"name":"never"}}`},
		{"POST", "/volumes/" + free + "/action", `{"os-extend":{"new_size":20}}`},
		{"POST", pairsPath, pairOf(free, v2, "az1")},
		{"PUT", groupsPath + "/" + group, `{"replication_consistency_group":{"name":"never"}}`},
		{"POST", groupsPath + "/" + group + "/action", `{"lockstep-one-sided":{"policy":"strict"}}`},
	}
	r.stop()
	before := dump(t, r.store)
	for _, b := range bodies {
		head := fmt.Sprintf("%s /v2/%s%s HTTP/1.1\r\nHost: x\r\nX-Auth-Token: %s\r\nContent-Type: application/json\r\n", b.method, r.project, b.path, r.token)
		chunked := head + "Transfer-Encoding: chunked\r\n\r\n"
		chunk := fmt.Sprintf("%x\r\n%s\r\n", len(b.body), b.body)
		for name, c := range map[string]struct {
			request string
			half    bool
			status  int
		}{
			"shorter than announced":    {head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(b.body)+10, b.body), true, 400},
			"cut":                       {head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(b.body), b.body[:len(b.body)-5]), true, 400},
			"announced as shorter":      {head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(b.body)-2, b.body[:len(b.body)-2]), false, 400},
			"nothing":                   {head + "Content-Length: 0\r\n\r\n", false, 400},
			"announced as huge":         {head + "Content-Length: 999999999999\r\n\r\n" + b.body, false, 413},
			"chunk without an end":      {chunked + chunk, true, 400},
			"chunk of a wrong size":     {chunked + "ffff\r\n" + b.body + "\r\n0\r\n\r\n", true, 400},
			"chunk size is no number":   {chunked + "zz\r\n" + b.body + "\r\n0\r\n\r\n", false, 400},
			"chunk without a line feed": {chunked + fmt.Sprintf("%x\r\n%sx", len(b.body), b.body) + "0\r\n\r\n", false, 400},
			"huge chunks": {
				chunked + strings.Repeat("40000\r\n"+strings.Repeat(" ", 0x40000)+"\r\n", 5) + chunk + "0\r\n\r\n", false, 413,
			},
		} {
			a := r.raw(b.method, c.request, c.half)
			check(t, a)
			if a.StatusCode != c.status {
				t.Errorf("%s %s, %s: %d %s, want %d", b.method, b.path, name, a.StatusCode, a.body, c.status)
			}
		}
	}
	if after := dump(t, r.store); !reflect.DeepEqual(before, after) {
		t.Error("the store changed")
	}
	// The same call in whole chunks is taken.
	b := bodies[1]
	whole := fmt.Sprintf("%s /v2/%s%s HTTP/1.1\r\nHost: x\r\nX-Auth-Token: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n",
		b.method, r.project, b.path, r.token, 3, b.body[:3], len(b.body)-3, b.body[3:])
	if a := r.raw(b.method, whole, false); a.StatusCode != 200 {
		t.Errorf("in chunks: %d %s", a.StatusCode, a.body)
	}
}

// TestOptionsOfTheServer: a question about the server as a whole gets an answer like every other.
func TestOptionsOfTheServer(t *testing.T) {
	r := newRig(t)
	a := r.raw("OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", false)
	check(t, a)
	if a.StatusCode != 404 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

// TestTextsComeBackAsSent: 255 bytes are taken, of whatever characters, and come back unchanged from
// every call that shows them.
func TestTextsComeBackAsSent(t *testing.T) {
	r := newLive(t)
	for _, text := range []string{
		strings.Repeat("é", 127) + "x", strings.Repeat("語", 85), strings.Repeat("😀", 63) + "abc",
		strings.Repeat("a", 255), "", " spaces ", "quote\" back\\ slash/ \t\n <&> \u2028 \u0000 \x7f",
	} {
		raw, err := json.Marshal(text)
		ok(t, err)
		texts := `"name":` + string(raw) + `,"description":` + string(raw)
		shown := func(path, object string) {
			t.Helper()
			a := r.v2("GET", path, "")
			check(t, a)
			if name, about := a.str(t, object+".name"), a.str(t, object+".description"); name != text || about != text {
				t.Errorf("%s shows %q and %q, want %q", path, name, about, text)
			}
		}
		var volumes []string
		for _, az := range []string{"az1", "az2"} {
			a := r.v2("POST", "/volumes", `{"volume":{"size":10,"availability_zone":"`+az+`",`+texts+`}}`)
			r.want(a, 202, "")
			id := a.str(t, "volume.id")
			r.until("/volumes/"+id, 200, available, "creating")
			shown("/volumes/"+id, "volume")
			shown("/cloudvolumes/"+id, "volume")
			volumes = append(volumes, id)
		}
		const model = `,"priority_station":"az1","replication_model":"hypermetro"}}`
		a := r.v2("POST", pairsPath, `{"replication":{`+texts+`,"volume_ids":["`+volumes[0]+`","`+volumes[1]+`"]`+model)
		r.want(a, 202, "")
		pair := a.str(t, "replication.id")
		r.until(pairsPath+"/"+pair, 200, available, "creating")
		shown(pairsPath+"/"+pair, "replication")
		a = r.v2("POST", groupsPath, `{"replication_consistency_group":{`+texts+`,"replication_ids":["`+pair+`"]`+model)
		r.want(a, 202, "")
		group := groupsPath + "/" + a.str(t, "replication_consistency_group.id")
		shown(group, "replication_consistency_group")
		r.until(group, 200, available, "creating")
		r.want(r.v2("PUT", group, `{"replication_consistency_group":{"name":"other","description":null}}`), 202, `"name":"other","description":null`)
		r.until(group, 200, available, "updating")
		r.want(r.v2("PUT", group, `{"replication_consistency_group":{`+texts+`}}`), 202, "")
		shown(group, "replication_consistency_group")
	}
}

// TestPairsAndGroupsRefused: what cannot be a pair or a group, over HTTP on the real controller, with
// the vendor's codes; nothing of it is in the store.
func TestPairsAndGroupsRefused(t *testing.T) {
	r := newLive(t)
	v1, v2 := r.madeVolume("az1"), r.madeVolume("az2")
	made := func(body string) string {
		t.Helper()
		a := r.v2("POST", "/volumes", `{"volume":{`+body+`}}`)
		r.want(a, 202, "")
		id := a.str(t, "volume.id")
		r.until("/volumes/"+id, 200, available, "creating")
		return id
	}
	bigger := made(`"size":11,"availability_zone":"az2"`)
	slower := made(`"size":10,"availability_zone":"az2","volume_type":"SAS"`)
	attached := r.madeVolume("az2")
	r.want(r.v2("POST", "/volumes/"+attached+"/action", `{"os-attach":{"instance_uuid":"srv-7"}}`), 202, "")
	there := r.madePair(r.madeVolume("az1"), r.madeVolume("az2"), "az1")
	back := r.madePair(r.madeVolume("az1"), r.madeVolume("az2"), "az2")
	taken := r.madePair(r.madeVolume("az1"), r.madeVolume("az2"), "az1")
	group := r.madeGroup(taken)
	paired := r.v2("GET", pairsPath+"/"+there, "").str(t, "replication.volume_ids")
	prod, dr, _ := strings.Cut(paired, ",")

	groupOf := func(station string, pairs ...string) string {
		ids, err := json.Marshal(pairs)
		ok(t, err)
		return `{"replication_consistency_group":{"replication_ids":` + string(ids) + `,"priority_station":"` + station + `","replication_model":"hypermetro"}}`
	}
	update := func(member string, pairs ...string) string {
		ids, err := json.Marshal(pairs)
		ok(t, err)
		return `{"replication_consistency_group":{"` + member + `":` + string(ids) + `}}`
	}
	r.stop()
	before := dump(t, r.store)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		text                     string
	}{
		{"one zone", "POST", pairsPath, pairOf(v2, slower, "az2"), 400, "both volumes are in az2"},
		{"sizes", "POST", pairsPath, pairOf(v1, bigger, "az1"), 400, "37100041"},
		{"types", "POST", pairsPath, pairOf(v1, slower, "az1"), 400, "type"},
		{"DR disk attached", "POST", pairsPath, pairOf(v1, attached, "az1"), 400, "37100058"},
		{"DR disk attached, named first", "POST", pairsPath, pairOf(attached, v1, "az1"), 400, "srv-7"},
		{"production disk in a pair", "POST", pairsPath, pairOf(prod, v2, "az1"), 400, "37100053"},
		{"DR disk in a pair", "POST", pairsPath, pairOf(v1, dr, "az1"), 400, "37100054"},
		{"no such production disk", "POST", pairsPath, pairOf("none", v2, "az1"), 404, "37100048"},
		{"no such DR disk", "POST", pairsPath, pairOf(v1, "none", "az1"), 404, "37100050"},
		{"station elsewhere", "POST", pairsPath, pairOf(v1, v2, "az9"), 400, "priority_station"},
		{"two directions", "POST", groupsPath, groupOf("az1", there, back), 400, back},
		{"other direction", "POST", groupsPath, groupOf("az2", there), 400, "priority_station"},
		{"pair of another group", "POST", groupsPath, groupOf("az1", there, taken), 400, group},
		{"no such pair", "POST", groupsPath, groupOf("az1", there, "none"), 404, "none"},
		{"add of the other direction", "PUT", groupsPath + "/" + group, update("add_replication_ids", back), 400, back},
		{"add of what is there", "PUT", groupsPath + "/" + group, update("add_replication_ids", taken), 400, taken},
		{"add of nothing known", "PUT", groupsPath + "/" + group, update("add_replication_ids", there, "none"), 404, "none"},
		{"removal of a stranger", "PUT", groupsPath + "/" + group, update("remove_replication_ids", taken, there), 400, there},
		{"delete with pairs", "DELETE", groupsPath + "/" + group, "", 409, "1 pairs"},
		{"delete of a pair in a group", "DELETE", pairsPath + "/" + taken, "", 409, group},
		{"failover, never in sync", "POST", groupsPath + "/" + group + "/action", `{"os-failover-replication-consistency-group":null}`, 409, "not in sync"},
		{"extend of a stranger", "POST", groupsPath + "/" + group + "/action", `{"os-extend-replication-volumes":{"id":"` + there + `","new_size":20}}`, 400, there},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := r.v2(c.method, c.path, c.body)
			check(t, a)
			if a.StatusCode != c.status || !strings.Contains(a.body, c.text) {
				t.Errorf("%d %s, want %d with %s", a.StatusCode, a.body, c.status, c.text)
			}
			if !reflect.DeepEqual(before, dump(t, r.store)) {
				t.Error("the store changed")
			}
		})
	}
}

package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// cli is lockstep's own command line with the credentials of a deployment.
type cli struct {
	*deployment
	env []string

	mu  sync.Mutex // guards ran
	ran map[string]bool
}

// commandLine is every command of the reference, longest first.
func commandLine(t *testing.T) []string {
	t.Helper()
	raw, err := os.ReadFile("../../docs/reference/cli.md")
	ok(t, err)
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^#{3,5} lockstep (.+)$`).FindAllStringSubmatch(string(raw), -1) {
		all = append(all, m[1])
	}
	return all
}

// run runs a command and checks its exit code. It gives standard output and error.
func (c *cli) run(code int, args ...string) (stdout, stderr string) {
	c.t.Helper()
	c.mu.Lock()
	for n := range args {
		c.ran[strings.Join(args[:n+1], " ")] = true
	}
	c.mu.Unlock()
	got, stdout, stderr := command(c.t, c.env, args...)
	if got != code {
		c.t.Fatalf("lockstep %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, stdout, stderr)
	}
	if code != done && (stdout != "" || !strings.Contains(stderr, "lockstep: ")) {
		c.t.Errorf("lockstep %s: a failed command prints %q, and says %q", strings.Join(args, " "), stdout, stderr)
	}
	return stdout, stderr
}

// json runs a command with --json: its standard output is one JSON value and nothing else.
func (c *cli) json(into any, args ...string) {
	c.t.Helper()
	out, _ := c.run(done, append(args, "--json")...)
	dec := json.NewDecoder(bytes.NewReader([]byte(out)))
	if err := dec.Decode(into); err != nil || dec.More() {
		c.t.Fatalf("lockstep %s --json: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// object is what a command prints of one thing.
type object = map[string]any

func (c *cli) object(args ...string) object {
	c.t.Helper()
	var o object
	c.json(&o, args...)
	return o
}

func (c *cli) list(args ...string) []object {
	c.t.Helper()
	var l []object
	c.json(&l, args...)
	if l == nil {
		c.t.Errorf("lockstep %s --json: an empty list is null", strings.Join(args, " "))
	}
	return l
}

// waited checks what --wait printed where there is no terminal: a line for each status, the last
// of which is the one waited for.
func (c *cli) waited(stderr, last string) {
	c.t.Helper()
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	if !regexp.MustCompile(`^\w+ \S+: ` + last + `$`).MatchString(lines[len(lines)-1]) {
		c.t.Errorf("--wait ends with %q, want %s", stderr, last)
	}
	if strings.ContainsAny(stderr, "\r\x1b") {
		c.t.Errorf("--wait draws where there is no terminal: %q", stderr)
	}
}

func (c *cli) want(o object, fields ...string) {
	c.t.Helper()
	for i := 0; i < len(fields); i += 2 {
		if got := fmt.Sprint(o[fields[i]]); got != fields[i+1] {
			c.t.Errorf("%s is %s, want %s in %v", fields[i], got, fields[i+1], o)
		}
	}
}

// TestCommandLine runs every command of the reference against a deployment: what they print, with
// --json and without, their exit codes, and what --wait says.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	c := &cli{deployment: d, env: environ(d.env), ran: map[string]bool{
		"demo":       true, // has a test of its own beside the command
		"controller": true, // what every deployment here is made of
		"node":       true,
		"dev":        true,
		"torture":    true, // as demo
	}}

	// The life of a group.
	_, said := c.run(done, "volume", "create", "--name", "db", "--size", "1", "--availability-zone", "az1", "--metadata", "k=v", "--wait")
	c.waited(said, "available")
	dr := c.object("volume", "create", "--name", "db-dr", "--size", "1", "--availability-zone", "az2", "--description", "d")
	c.want(dr, "name", "db-dr", "availability_zone", "az2", "description", "d", "size", "1")
	eventually(t, patience, "the volume is available", func() error {
		if s := c.object("volume", "show", "db-dr")["status"]; s != "available" {
			return fmt.Errorf("status %v", s)
		}
		return nil
	})
	c.want(c.object("volume", "update", "db", "--description", "production"), "description", "production", "name", "db")
	if got := c.list("volume", "list"); len(got) != 2 {
		t.Errorf("volumes: %v", got)
	}
	if got := c.list("volume", "list", "--name", "nothing"); len(got) != 0 {
		t.Errorf("volumes: %v", got)
	}
	_, said = c.run(done, "volume", "extend", "db", "--size", "2", "--wait")
	c.waited(said, "available")
	c.run(done, "volume", "extend", "db-dr", "--size", "2", "--wait")
	uri, _ := c.run(done, "volume", "connect", "db")
	c.want(c.object("volume", "connect", "db"), "uri", strings.TrimSpace(uri))
	data := []byte("by the command line")
	d.write(strings.TrimSpace(uri), data, 4096)

	_, said = c.run(done, "pair", "create", "--name", "p", "--volume", "db", "--volume", "db-dr", "--priority-station", "az1", "--wait")
	c.waited(said, "available")
	c.want(c.object("pair", "show", "p"), "status", "available", "replication_model", "hypermetro", "priority_station", "az1")
	_, said = c.run(done, "group", "create", "--name", "g", "--description", "x", "--pair", "p", "--priority-station", "az1", "--wait")
	c.waited(said, "available/inactive")
	_, said = c.run(done, "group", "sync", "g", "--wait", "--timeout", "1m")
	c.waited(said, "available/active")
	c.want(c.object("group", "show", "g"), "replication_status", "active", "description", "x", "fault_level", "0")
	if got := c.list("pair", "list", "--status", "available", "--priority-station", "az1", "--volume", fmt.Sprint(dr["id"])); len(got) != 1 || got[0]["progress"] != "100" {
		t.Errorf("pairs: %v", got)
	}
	if got := c.list("group", "list", "--name", "g"); len(got) != 1 {
		t.Errorf("groups: %v", got)
	}
	proof := c.object("group", "verify", "g", "--rate", "100000", "--wait", "--timeout", "2m")
	c.want(proof, "state", "equal", "differences", "0")
	c.want(c.object("group", "explain", "g"), "condition", "in sync", "priority_station", "az1", "behind_bytes", "0")
	c.want(c.object("group", "extend", "g", "--pair", "p", "--size", "3"), "replication_status", "active")
	c.want(c.object("volume", "show", "db-dr"), "size", "3", "replication_status", "active")
	_, said = c.run(done, "group", "switchover", "g", "--yes", "--wait")
	c.waited(said, "available/active")
	_, said = c.run(done, "group", "failover", "g", "--yes", "--wait")
	c.waited(said, "failovered/active-stopped")
	_, said = c.run(done, "group", "reprotect", "g", "--wait")
	c.waited(said, "available/active")
	uri, _ = c.run(done, "volume", "connect", "db")
	if got := d.read(strings.TrimSpace(uri), len(data), 4096); !bytes.Equal(got, data) {
		t.Errorf("after all that the disk holds %q", got)
	}
	c.want(c.object("group", "pause", "g"), "status", "available", "replication_status", "active-stopped")

	// A failover that loses writes, and what the side that lost had.
	c.run(usage, "group", "failover", "g", "--force", "--yes") // the loss was not looked at
	preview := c.object("group", "failover-preview", "g")
	c.want(preview, "allowed", "true", "forced", "true", "bytes_missing", "0")
	_, said = c.run(done, "group", "failover", "g", "--force", "--token", fmt.Sprint(preview["token"]), "--yes", "--wait")
	c.waited(said, "failovered/active-stopped")
	var image object
	eventually(t, patience, "the divergence image is there", func() error {
		if images := c.list("group", "divergence", "list", "g"); len(images) == 1 {
			image = images[0]
			return nil
		}
		return fmt.Errorf("not yet")
	})
	rescue := t.TempDir()
	export := []string{"group", "divergence", "export", "g", fmt.Sprint(image["id"]), "--dir", rescue}
	c.run(notFound, "group", "divergence", "export", "g", "4711", "--dir", rescue)
	c.run(usage, append(export, "--dir", filepath.Join(rescue, "nowhere"))...)
	for _, f := range c.list(export...) {
		raw, err := os.ReadFile(fmt.Sprint(f["path"]))
		if err != nil || float64(len(raw)) != f["bytes"] || !bytes.Equal(raw[4096:4096+len(data)], data) {
			t.Errorf("exported %v: %d bytes, %v", f, len(raw), err)
		}
	}
	c.run(usage, export...) // nothing is overwritten
	c.run(done, "group", "divergence", "delete", "g", fmt.Sprint(image["id"]), "--yes")
	c.run(done, "group", "reprotect", "g", "--wait")
	c.run(done, "group", "switchover", "g", "--yes", "--wait")
	c.run(done, "group", "pause", "g")

	c.run(done, "group", "policy", "g", "strict")
	c.want(c.object("group", "show", "g"), "lockstep_one_sided", "strict")
	c.run(done, "group", "limit", "g", "50")
	c.want(c.object("group", "show", "g"), "lockstep_resync_limit_mib", "50")
	c.run(done, "group", "limit", "g", "none")
	node := c.list("node", "list")[0]["id"].(string)
	c.run(done, "node", "limit", node, "200")
	if got := c.list("node", "list")[0]["resync_limit_mib"]; fmt.Sprint(got) != "200" {
		t.Errorf("limit of node %s: %v", node, got)
	}
	c.run(done, "node", "limit", node, "default")
	c.want(c.object("group", "update", "g", "--name", "h", "--wait"), "name", "h", "status", "available")
	history := c.list("group", "history", "h")
	if len(history) < 8 || history[0]["what"] != "created" {
		t.Errorf("history: %v", history)
	}

	// What is refused, and how.
	conflicts := [][]string{
		{"group", "failover", "h", "--yes"},
		{"group", "switchover", "h", "--yes"},
		{"group", "reprotect", "h"},
		{"group", "delete", "h", "--yes"},
		{"group", "verify", "h"},
		{"pair", "delete", "p", "--yes"},
		{"group", "continue", "h", "--reason", "r", "--yes"},
		{"group", "confirm-node-off", "h", "--node", "az1-node-1", "--reason", "r", "--yes"},
		{"group", "accept-directory", "h", "--node", "az1-node-1", "--reason", "r", "--yes"},
		{"group", "back-out", "h", "--reason", "r", "--yes"},
		{"group", "accept-lost-secondary", "h", "--node", "az2-node-1", "--reason", "r", "--yes"},
	}
	for _, args := range conflicts {
		c.run(conflict, args...)
	}
	for _, args := range [][]string{
		{"volume", "show", "none"},
		{"volume", "update", "none", "--name", "x"},
		{"volume", "delete", "none", "--yes"},
		{"volume", "connect", "none"},
		{"pair", "show", "none"},
		{"pair", "create", "--volume", "none", "--volume", "db", "--priority-station", "az1"},
		{"group", "show", "none"},
		{"group", "sync", "none"},
		{"group", "history", "none"},
		{"group", "explain", "none"},
		{"group", "failover-preview", "none"},
		{"group", "update", "h", "--add-pair", "none"},
		{"dev", "status", "--dir", filepath.Join(d.dir, "none")},
		{"dev", "stop", "az9", "--dir", d.dir},
		{"dev", "start", "az1", "--node", "2", "--dir", d.dir},
	} {
		c.run(notFound, args...)
	}
	for _, args := range [][]string{
		{"nonsense"},
		{"group", "nonsense"},
		{"group", "show"},
		{"group", "show", "a", "b"},
		{"group", "show", "h", "--nonsense"},
		{"group", "sync", "h", "--timeout", "soon"},
		{"group", "continue", "h"},
		{"group", "confirm-node-off", "h", "--reason", "r"},
		{"store", "recover", "--yes"},
		{"group", "accept-lost-secondary", "h"},
		{"group", "policy", "h", "lax"},
		{"group", "limit", "h", "0"},
		{"group", "limit", "h", "fast"},
		{"node", "limit", "n", "none"},
		{"group", "failover", "h"}, // nobody was there to say yes
		{"group", "create", "--pair", "p"},
		{"volume", "create", "--name", "x"},
		{"pair", "create", "--volume", "db", "--priority-station", "az1"},
		{"volume", "list", "--os-cloud", "none"},
		{"controller"},
		{"controller", "--etcd-dir", d.dir, "--etcd-endpoints", "http://127.0.0.1:1"},
		{"node", "--id", "n"},
		{"config", "show", "node", "--config", filepath.Join(d.dir, "none")},
	} {
		c.run(usage, args...)
	}
	for _, args := range [][]string{ // refused by the API for what was asked, whatever the status is
		{"volume", "create", "--size", "0"},
		{"volume", "create", "--size", "1", "--availability-zone", "az9"},
		{"volume", "delete", "db", "--yes"},
		{"volume", "extend", "db", "--size", "9"},
		{"volume", "release", "db"},
		{"group", "extend", "h", "--pair", "p", "--size", "1"},
	} {
		c.run(failed, args...)
	}
	c.run(timedOut, "group", "sync", "h", "--wait", "--timeout", "1ms")
	c.run(done, "group", "sync", "h", "--wait")
	c.run(done, "group", "pause", "h")

	// The end of everything.
	c.run(done, "group", "update", "h", "--remove-pair", "p", "--wait")
	_, said = c.run(done, "group", "delete", "h", "--yes", "--wait")
	c.waited(said, "gone")
	_, said = c.run(done, "pair", "delete", "p", "--yes", "--wait")
	c.waited(said, "gone")
	c.run(done, "volume", "release", "db-dr") // it was the secondary in the end
	_, said = c.run(done, "volume", "delete", "db", "db-dr", "--yes", "--wait")
	c.waited(said, "gone")

	// Deployment, nodes, configuration.
	nodes := c.list("node", "list")
	if len(nodes) != 2 || nodes[0]["alive"] != true || nodes[0]["version"] != c.object("version")["version"] {
		t.Errorf("nodes: %v", nodes)
	}
	c.run(done, "dev", "stop", "az2", "--dir", d.dir)
	c.run(done, "dev", "start", "az2", "--dir", d.dir, "--wait")
	c.run(done, "dev", "kill", "az2", "--node", "1", "--dir", d.dir)
	status := c.list("dev", "status", "--dir", d.dir)
	if len(status) != 3 || status[0]["pid"] == 0.0 || status[2]["pid"] != 0.0 {
		t.Errorf("dev status: %v", status)
	}
	_, said = c.run(done, "dev", "start", "az2", "--dir", d.dir, "--wait")
	if !strings.Contains(said, "alive") {
		t.Errorf("dev start --wait says %q", said)
	}
	c.run(conflict, "dev", "--dir", d.dir) // it runs already
	for _, daemon := range []string{"controller", "node"} {
		config := filepath.Join(d.dir, map[string]string{"controller": "controller.yaml", "node": "az1/node-1.yaml"}[daemon])
		var settings any
		c.json(&settings, "config", "show", daemon, "--config", config)
		table, _ := c.run(done, "config", "show", daemon, "--config", config)
		if !strings.Contains(table, config) {
			t.Errorf("config show %s does not say that %s set anything:\n%s", daemon, config, table)
		}
	}
	if v := c.object("version"); v["version"] == "" || v["go"] == "" {
		t.Errorf("version: %v", v)
	}
	c.run(done, "version")
	for _, args := range [][]string{{"volume", "list"}, {"pair", "list"}, {"group", "list"}, {"node", "list"}, {"dev", "status", "--dir", d.dir}} {
		if table, _ := c.run(done, args...); !strings.HasPrefix(table, "ID") && !strings.HasPrefix(table, "PROCESS") {
			t.Errorf("lockstep %s prints\n%s", strings.Join(args, " "), table)
		}
	}

	c.users()
	c.authority()

	// Where nobody answers.
	c.run(done, "dev", "stop", "controller", "--dir", d.dir)
	began := time.Now()
	c.run(unreachable, "group", "list")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("that nobody answers was said after %s", took)
	}
	c.env = environ(nil)
	c.run(usage, "group", "list") // no credentials

	for _, want := range commandLine(t) {
		if !c.ran[want] {
			t.Errorf("lockstep %s was not run", want)
		}
	}
}

package clients

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep/internal/peertls"
)

// authority is the part of TestCommandLine about certificates: what is issued is what a node takes.
func (c *cli) authority() {
	c.t.Helper()
	dir := filepath.Join(c.dir, "ca")
	c.run(notFound, "ca", "show", "--dir", dir)
	made := c.object("ca", "init", "--dir", dir, "--name", "test", "--days", "30")
	c.want(made, "kind", "ca", "name", "test", "key", filepath.Join(dir, "ca.key"))
	c.run(conflict, "ca", "init", "--dir", dir)

	node := c.object("ca", "issue", "node", "az1-node-1", "--dir", dir, "--days", "7")
	c.want(node, "kind", "node", "name", "az1-node-1", "names", "[spiffe://lockstep/node/az1-node-1]")
	files := peertls.Files{CA: filepath.Join(dir, "ca.crt"), Cert: node["cert"].(string), Key: node["key"].(string)}
	if _, err := peertls.Open(files, "az1-node-1", slog.New(slog.DiscardHandler)); err != nil {
		c.t.Error(err)
	}
	if info, err := os.Stat(files.Key); err != nil || info.Mode().Perm() != 0o600 {
		c.t.Errorf("the key: %v, %v", info, err)
	}
	api := c.object("ca", "issue", "api", "api", "--host", "api.example.org", "--host", "10.0.0.1", "--dir", dir, "--days", "7")
	c.want(api, "names", "[api.example.org 10.0.0.1]")
	c.run(done, "ca", "issue", "etcd", "etcd-1", "--dir", dir, "--days", "7")
	c.run(done, "ca", "issue", "controller", "c1", "--dir", dir, "--days", "7")

	c.run(conflict, "ca", "issue", "node", "az1-node-1", "--dir", dir, "--days", "7")
	again := c.object("ca", "issue", "node", "az1-node-1", "--dir", dir, "--days", "8", "--replace")
	if ends, err := time.Parse(time.RFC3339Nano, again["not_after"].(string)); err != nil || time.Until(ends) < 7*24*time.Hour {
		c.t.Errorf("issued again: %v, %v", again, err)
	}
	list := c.list("ca", "show", "--dir", dir)
	var have []string
	for _, o := range list {
		have = append(have, o["kind"].(string)+"/"+o["name"].(string))
	}
	if got := strings.Join(have, " "); got != "ca/test api/api controller/c1 etcd/etcd-1 node/az1-node-1" {
		c.t.Errorf("listed: %s", got)
	}

	for _, args := range [][]string{
		{"issue", "node", "a/b"},
		{"issue", "guest", "n"},
		{"issue", "node"},
		{"issue", "node", "n", "--host", "h"},
		{"issue", "api", "api", "--host", "not a host"},
		{"issue", "node", "n", "--days", "0"},
		{"issue", "node", "n", "--days", "9223372036854775807"},
		{"init", "--days", "-1"},
		{"init", "--name", ""},
	} {
		c.run(usage, append(append([]string{"ca"}, args...), "--dir", dir)...)
	}
	c.run(failed, "ca", "issue", "node", "n", "--dir", dir, "--days", "365") // the authority ends before
	if got := c.list("ca", "show", "--dir", dir); len(got) != len(list) {
		c.t.Errorf("refused calls have left something: %v", got)
	}
}

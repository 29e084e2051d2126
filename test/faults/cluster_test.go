package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
	"github.com/lockstep-dr/lockstep/test/rig"
)

// sites of the deployment: two zones and one that has a vote only. Users are on a fourth, which is
// never cut from a site that is well.
var sites = []string{"az1", "az2", "witness"}

// nodesPerAZ is how many storage nodes a zone has.
const nodesPerAZ = 2

// tripAfter is shorter than the default, so that a round is.
const tripAfter = 1500 * time.Millisecond

// cluster is a whole deployment, each process a host of the network.
type cluster struct {
	t    *testing.T
	ctx  context.Context // ends with the test
	dir  string
	net  *network
	api  *rig.API
	proc map[string]*rig.Process // by name: etcd-az1, ctl-witness, az2-2 …
	host map[string]*host
	// disks that can fail, by node
	disks map[string]*badDisk
}

var clusters atomic.Int32

// newCluster starts one; the pools of the nodes named in bad are on disks that can fail.
func newCluster(t *testing.T, seed uint64, bad ...string) *cluster {
	t.Helper()
	c := &cluster{
		t: t, ctx: t.Context(), net: newNetwork(t, seed), dir: filepath.Join(root, fmt.Sprint("c", clusters.Add(1))),
		proc: map[string]*rig.Process{}, host: map[string]*host{}, disks: map[string]*badDisk{},
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(c.dir, "password")
	if err := os.WriteFile(password, []byte("three sites\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, node := range bad {
		c.disks[node] = mountBadDisk(t, c.path(node, ".pool"), c.path(node, ".backing"))
	}
	c.host["user"] = c.net.add("user", "user")
	var members, endpoints []string
	for _, site := range sites {
		name := "etcd-" + site
		h := c.net.add(site, name)
		c.host[name] = h
		members = append(members, name+"=http://"+h.addr(2380))
		endpoints = append(endpoints, "http://"+h.addr(2379))
	}
	for _, site := range sites {
		c.etcd(site, strings.Join(members, ","))
	}
	c.api = &rig.API{Password: "three sites", Dial: c.host["user"].dial}
	for _, site := range sites {
		c.controller(site, password, endpoints)
	}
	for _, az := range rig.Zones {
		for n := 1; n <= nodesPerAZ; n++ {
			c.node(az, fmt.Sprintf("%s-%d", az, n), endpoints)
		}
	}
	c.net.start()
	for _, name := range c.names("") {
		c.proc[name].Start()
	}
	c.alive()
	return c
}

func (c *cluster) etcd(site, members string) {
	c.t.Helper()
	name := "etcd-" + site
	h := c.host[name]
	args, err := rig.EtcdArgs(name, filepath.Join(c.dir, name), h.addr(2379), h.addr(2380), members)
	if err != nil {
		c.t.Fatal(err)
	}
	c.proc[name] = rig.NewProcess(c.t, name, c.path(name, ".log"), h.on, args...)
}

func (c *cluster) controller(site, password string, endpoints []string) {
	name := "ctl-" + site
	h := c.net.add(site, name)
	c.host[name] = h
	c.proc[name] = rig.NewProcess(c.t, name, c.path(name, ".log"), h.on, lockstepBin, "controller", "--id", name,
		"--listen", h.addr(8776), "--admin-password-file", password, "--azs", strings.Join(rig.Zones, ","),
		"--etcd-endpoints", strings.Join(endpoints, ","), "--etcd-sites", strings.Join(sites, ","))
	c.api.URLs = append(c.api.URLs, "http://"+h.addr(8776))
}

func (c *cluster) node(az, name string, endpoints []string) {
	c.t.Helper()
	h := c.net.add(az, name)
	c.host[name] = h
	conf := fmt.Sprintf("id: %s\naz: %s\npool: %s\nnbd_socket: %s\nreplicate: %s\ninsecure_replication: true\ntrip_after: %s\nlease_ttl: 600ms\nheartbeat: 150ms\netcd_endpoints: [%s]\n",
		name, az, c.path(name, ".pool"), c.path(name, ".sock"), h.addr(7000), tripAfter, strings.Join(endpoints, ","))
	for _, err := range []error{os.MkdirAll(c.path(name, ".pool"), 0o700), os.WriteFile(c.path(name, ".yaml"), []byte(conf), 0o600)} {
		if err != nil {
			c.t.Fatal(err)
		}
	}
	c.proc[name] = rig.NewProcess(c.t, name, c.path(name, ".log"), h.on, lockstepBin, "node", "--config", c.path(name, ".yaml"))
}

// path is a file of a process.
func (c *cluster) path(name, ext string) string { return filepath.Join(c.dir, name+ext) }

// names lists processes whose name begins so, sorted.
func (c *cluster) names(prefix string) []string {
	list := slices.Sorted(maps.Keys(c.proc))
	return slices.DeleteFunc(list, func(n string) bool { return !strings.HasPrefix(n, prefix) })
}

// alive waits until every process runs, every controller answers, and all nodes are known to be there.
func (c *cluster) alive() {
	c.t.Helper()
	for _, url := range c.api.URLs {
		one := &rig.API{URLs: []string{url}, Password: c.api.Password, Dial: c.api.Dial}
		rig.Poll(c.ctx, c.t, rig.Patience, "the controller at "+url+" sees all nodes", func() error {
			return one.Ask(c.ctx, func(ctx context.Context, api *client.Client) error {
				nodes, err := api.Nodes(ctx)
				if err == nil && len(nodes) != 2*nodesPerAZ {
					err = fmt.Errorf("%d nodes", len(nodes))
				}
				for _, n := range nodes {
					if !n.Alive {
						err = errors.Join(err, fmt.Errorf("%s is not alive", n.ID))
					}
				}
				return err
			})
		})
	}
	for _, name := range c.names("") {
		if !c.proc[name].Running() {
			c.t.Fatalf("%s has ended by itself", name)
		}
	}
}

// Ask makes rig.Deployment of a cluster, with the two below.
func (c *cluster) Ask(call func(context.Context, *client.Client) error) error {
	return c.api.Ask(c.ctx, call)
}

// Dial opens a volume as a guest on the node's own host does.
func (c *cluster) Dial(ctx context.Context, node, volume string) (*nbdclient.Client, error) {
	return nbdclient.DialAddr(ctx, "unix", c.path(node, ".sock"), volume)
}

// Raw is the file of a volume.
func (c *cluster) Raw(node, volume string) string {
	return filepath.Join(c.path(node, ".pool"), volume+".raw")
}

package clients

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/lease"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// cluster is an etcd under TLS with two controllers and a node in each of two zones.
type cluster struct {
	t     *testing.T
	ctx   context.Context // ends with the test
	store store.Store     // to see who leads
	ctl   map[string]*process
	node  map[string]*process // by zone
	api   map[string]*client.Client
}

// controllers are the names of both.
var controllers = []string{"c1", "c2"}

// otherThan is the one of two controllers that is not this one.
func otherThan(id string) string {
	if id == "c1" {
		return "c2"
	}
	return "c1"
}

// nextPort keeps tests that run at the same time from finding the same port free.
var nextPort atomic.Int32

// freeAddr is an address that nothing listens at, and that no outgoing connection is given: it is
// below the range of those.
func freeAddr(t *testing.T) string {
	t.Helper()
	const low, count = 12000, 8000 // the store's own ports begin above
	for range count {
		addr := fmt.Sprintf("127.0.0.1:%d", low+(os.Getpid()*50+int(nextPort.Add(1)))%count)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		ok(t, l.Close())
		return addr
	}
	t.Fatal("no free port")
	return ""
}

// etcdFlags are those with which a daemon reaches an etcd.
func etcdFlags(url string, files etcdstore.TLSFiles) []string {
	args := []string{"--etcd-endpoints", url}
	for flag, path := range map[string]string{"--etcd-ca": files.CA, "--etcd-cert": files.Cert, "--etcd-key": files.Key} {
		if path != "" {
			args = append(args, flag, path)
		}
	}
	return args
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	dir := newDir(t)
	makeCertificates(t, dir)
	url := startEtcd(t, dir)
	if !strings.HasPrefix(url, "https://") {
		t.Fatalf("etcd runs at %s, without TLS", url)
	}
	files := certificates(dir, "client")
	c := &cluster{t: t, ctx: t.Context(), ctl: map[string]*process{}, node: map[string]*process{}, api: map[string]*client.Client{}}

	tlsConfig, err := etcdstore.LoadTLS(files)
	ok(t, err)
	st := must[*etcdstore.Store](t)(etcdstore.Open(c.ctx, etcdstore.Config{Endpoints: []string{url}, TLS: tlsConfig}))
	t.Cleanup(func() { _ = st.Close() })
	c.store = st

	password := filepath.Join(dir, "password")
	ok(t, os.WriteFile(password, []byte("two controllers\n"), 0o600))
	addr := map[string]string{}
	for _, id := range controllers {
		addr[id] = freeAddr(t)
		c.ctl[id] = newProcess(t, filepath.Join(dir, id+".log"), append([]string{
			lockstepBin, "controller", "--id", id, "--listen", addr[id], "--admin-password-file", password, "--azs", "az1,az2",
		}, etcdFlags(url, files)...)...)
		c.ctl[id].start()
	}
	for _, az := range []string{"az1", "az2"} {
		conf := filepath.Join(dir, az+".yaml")
		ok(t, os.WriteFile(conf, fmt.Appendf(nil, "id: %s-node\naz: %s\npool: %s\nnbd_socket: %s\netcd_endpoints: [%q]\netcd_ca: %s\netcd_cert: %s\netcd_key: %s\n",
			az, az, filepath.Join(dir, az+"-pool"), filepath.Join(dir, az+".sock"), url, files.CA, files.Cert, files.Key), 0o600))
		ok(t, os.Mkdir(filepath.Join(dir, az+"-pool"), 0o700))
		c.node[az] = newProcess(t, filepath.Join(dir, az+".log"), lockstepBin, "node", "--config", conf)
		c.node[az].start()
	}
	for _, id := range controllers {
		eventually(t, patience, id+" answers", func() (err error) {
			if !c.ctl[id].running() {
				t.Fatal(id + " ended")
			}
			c.api[id], err = client.DialWith(c.ctx, client.PasswordAuth("http://"+addr[id]+"/identity/v3", "admin", "two controllers", "Default", "admin"), client.AnyRegion, nil, "")
			return err
		})
		if want := "http://" + addr[id] + "/"; !strings.HasPrefix(c.api[id].Endpoint(), want) {
			t.Fatalf("the catalog of %s leads to %s", id, c.api[id].Endpoint())
		}
	}
	eventually(t, patience, "both nodes are alive", func() error {
		nodes, err := c.api["c2"].Nodes(c.ctx)
		if err == nil && (len(nodes) != 2 || !nodes[0].Alive || !nodes[1].Alive) {
			err = fmt.Errorf("nodes: %+v", nodes)
		}
		return err
	})
	return c
}

// leader is the controller that leads, by the store's word, since its last start: the word of one
// that was killed stands until its lease has run out.
func (c *cluster) leader() string {
	c.t.Helper()
	var id string
	eventually(c.t, patience, "somebody leads", func() error {
		who, _, err := lease.Current(c.ctx, c.store, store.KeyLeader)
		if err == nil && (!c.ctl[who.ID].running() || who.Since.Before(c.ctl[who.ID].began)) {
			err = errors.New(who.ID + " led in an earlier life")
		}
		id = who.ID
		return err
	})
	return id
}

// answering waits until both controllers answer.
func (c *cluster) answering() {
	c.t.Helper()
	for _, id := range controllers {
		eventually(c.t, patience, id+" answers", func() error {
			_, err := c.api[id].Nodes(c.ctx)
			return err
		})
	}
}

// state gives status, replication_status and priority_station with slashes between.
func (c *cluster) state(api, group string) func() (string, error) {
	return func() (string, error) {
		g, err := c.api[api].Group(c.ctx, group)
		if client.IsNotFound(err) {
			return gone, nil
		}
		return g.Status + "/" + g.ReplicationStatus + "/" + g.PriorityStation, err
	}
}

func (c *cluster) pairStatus(api, id string) func() (string, error) {
	return func() (string, error) {
		p, err := c.api[api].Pair(c.ctx, id)
		if client.IsNotFound(err) {
			return gone, nil
		}
		return p.Status, err
	}
}

func (c *cluster) volumeStatus(api, id string) func() (string, error) {
	return func() (string, error) {
		v, err := c.api[api].Volume(c.ctx, id)
		if client.IsNotFound(err) {
			return gone, nil
		}
		return v.Status, err
	}
}

// atOnce makes the same call on both controllers at the same time.
func (c *cluster) atOnce(call func(*client.Client) error) []error {
	errs := make([]error, len(controllers))
	start, done := make(chan struct{}), make(chan int, len(controllers))
	for i, id := range controllers {
		go func() { // both answer within the client's time limit
			<-start
			errs[i] = call(c.api[id])
			done <- i
		}()
	}
	close(start)
	for range controllers {
		<-done
	}
	return errs
}

// exactlyOne checks that of calls made at once one succeeded and the others were refused so.
func exactlyOne(t *testing.T, what string, errs []error, refusal int) {
	t.Helper()
	won := 0
	for _, err := range errs {
		var e *client.Error
		switch {
		case err == nil:
			won++
		case !errors.As(err, &e) || e.Status != refusal:
			t.Errorf("%s: %v; want HTTP status %d", what, err, refusal)
		}
	}
	if won != 1 {
		t.Errorf("%s: %d of %d calls succeeded: %v", what, won, len(errs), errs)
	}
}

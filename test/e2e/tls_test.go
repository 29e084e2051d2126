package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/wire"
)

// authority is a CA in a directory of a deployment, with the certificates of its nodes.
type authority struct {
	*deployment
	dir string
}

func (d *deployment) authority(name string) *authority {
	d.t.Helper()
	a := &authority{d, filepath.Join(d.dir, name)}
	d.cli("ca", "init", "--dir", a.dir)
	return a
}

// issue makes, or makes anew, the certificate of a member, which ends after so many days.
func (a *authority) issue(member string, days int) {
	a.t.Helper()
	a.cli("ca", "issue", "node", id(member), "--dir", a.dir, "--days", strconv.Itoa(days), "--replace")
}

// keys are the settings of a member for links with TLS.
func (a *authority) keys(member string) map[string]string {
	base := filepath.Join(a.dir, "node", id(member))
	return map[string]string{"tls_ca": filepath.Join(a.dir, "ca.crt"), "tls_cert": base + ".crt", "tls_key": base + ".key"}
}

// id is the node id of a member.
func id(member string) string { return strings.Replace(member, "/", "-", 1) }

// metric gives a sample, named with its labels.
func metric(addr, name string) (float64, error) {
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(text)
	if found == nil {
		return 0, fmt.Errorf("no metric %s", name)
	}
	return strconv.ParseFloat(string(found[1]), 64)
}

// TestLinksWithTLS replicates between two nodes that know each other by their certificates: under writes the
// certificates are renewed and links lost, nodes are killed, a file is spoilt; a node that trusts, and is
// trusted by, nobody gets no link; and in the end no acknowledged write is missing on either side.
func TestLinksWithTLS(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	near, far := node("az1", 1), node("az2", 1)
	w := d.wired()
	ca, metrics, keys := d.authority("ca"), map[string]string{}, map[string]map[string]string{}
	for _, m := range []string{near, far} {
		ca.issue(m, 100)
		metrics[m] = freeAddr(t)
		keys[m] = ca.keys(m)
		keys[m]["metrics"] = metrics[m]
	}
	d.reconfigure(keys)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	disks := g.disks("az1")
	c := newChains()
	c.run(disks)
	c.progress(g, patience, 200)

	t.Log("certificates are renewed while writes go on, and links are lost")
	for round := 1; round <= 3; round++ {
		ca.issue(near, 100+round)
		ca.issue(far, 100+round)
		w.replication[far].Reset()
		c.progress(g, patience, 200)
		g.untilActive()
		for m, addr := range metrics {
			ends, err := metric(addr, "lockstep_tls_certificate_end_timestamp_seconds")
			if left := time.Until(time.Unix(int64(ends), 0)).Round(24 * time.Hour); err != nil || left != time.Duration(100+round)*24*time.Hour {
				t.Errorf("round %d: the certificate of %s ends in %s, %v", round, m, left, err)
			}
		}
	}

	t.Log("a file is spoilt: what it said before stays in use")
	cert := ca.keys(far)["tls_cert"]
	if err := os.WriteFile(cert, []byte("spoilt"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.replication[far].Reset()
	c.progress(g, patience, 200)
	g.untilActive()
	if n, err := metric(metrics[far], "lockstep_tls_reload_failures_total"); err != nil || n == 0 {
		t.Errorf("%v looks found the file of no use, %v", n, err)
	}
	ca.issue(far, 200)

	t.Log("strangers")
	text := plainHello(t, w.replication[far].Addr(), id(near), id(far))
	if !strings.Contains(text, "takes links over TLS only") {
		t.Errorf("a plain hello is answered %q", text)
	}
	if n, err := metric(metrics[far], `lockstep_link_refused_total{reason="mixed"}`); err != nil || n != 1 {
		t.Errorf("%v links were refused, %v", n, err)
	}

	t.Log("the secondary is killed")
	d.kill(far)
	g.until(15*time.Second, "available", "inactive", "5")
	c.progress(g, patience, 200)
	d.start(far)
	g.untilActive()
	c.progress(g, patience, 200)
	if err := c.stop(g); err != nil {
		t.Fatal(err)
	}

	t.Log("the secondary comes back with a certificate of another authority")
	other := d.authority("other")
	other.issue(far, 100)
	d.reconfigure(map[string]map[string]string{far: other.keys(far)})
	c.run(disks)
	g.until(15*time.Second, "available", "inactive", "5")
	c.progress(g, patience, 200)
	d.eventually(patience, "its links are refused", func() error {
		n, err := metric(metrics[near], `lockstep_link_refused_total{reason="certificate"}`)
		if err == nil && n < 3 {
			err = errNotYet
		}
		return err
	})
	g.refused("5")
	if err := c.stop(g); err != nil {
		t.Fatal(err)
	}
	d.reconfigure(map[string]map[string]string{far: ca.keys(far)})
	g.untilActive()

	t.Log("the primary is killed, and the other side has every write")
	c.run(disks)
	c.progress(g, patience, 200)
	d.kill(near)
	if err := c.broken(g); err == nil {
		t.Error("no writer noticed")
	}
	g.until(10*time.Second, "available", "active", "2")
	g.failover()
	if err := c.inspect(d.ctx, g.disks("az2")); err != nil {
		t.Fatal(err)
	}
	d.start(near)
	d.untilAlive(near)
	g.act(client.ActionReprotect)
	g.untilActive()
	there := g.disks("az2")
	if err := there[0].Flush(d.ctx); err != nil {
		t.Fatal(err)
	}
	if err := there[1].Flush(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.sameFiles(g.pairs...)
}

// plainHello begins a link without TLS and gives what it is refused with.
func plainHello(t *testing.T, addr, from, to string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	hello := wire.Hello{From: lockstep.NodeID(from), To: lockstep.NodeID(to), Purpose: wire.PurposeHeartbeat, Features: wire.Features}
	if err := wire.WriteJSON(conn, wire.Header{Kind: wire.KindHello}, hello); err != nil {
		t.Fatal(err)
	}
	var answer wire.HelloReply
	if _, err := wire.ReadJSON(conn, wire.KindHelloReply, &answer); err != nil {
		t.Fatal(err)
	}
	return answer.Error
}

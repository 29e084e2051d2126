package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/internal/cable"
)

// cable is a link to target that ends with the test.
func (d *deployment) cable(target string) *cable.Cable {
	d.t.Helper()
	c, err := cable.New(target)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(c.Close)
	return c
}

// freeAddr is an address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// wires are what a node's connections go through.
type wires struct {
	replication map[string]*cable.Cable // to that node
	store       map[string]*cable.Cable // of that node
	bootID      map[string]string       // the file that holds its boot id
}

// wired puts proxies before the replication listener and the store of every node, and gives each
// a boot id of its own that a test can change.
func (d *deployment) wired() *wires {
	d.t.Helper()
	url, err := os.ReadFile(filepath.Join(d.dir, "etcd", "client-url"))
	if err != nil {
		d.t.Fatal(err)
	}
	etcd := strings.TrimPrefix(strings.TrimSpace(string(url)), "http://")
	w := &wires{replication: map[string]*cable.Cable{}, store: map[string]*cable.Cable{}, bootID: map[string]string{}}
	keys := map[string]map[string]string{}
	for _, m := range d.members("") {
		listen := freeAddr(d.t)
		w.replication[m] = d.cable(listen)
		w.store[m] = d.cable(etcd)
		w.bootID[m] = d.path(m, ".boot-id")
		d.reboot(w, m, 1)
		keys[m] = map[string]string{
			"replicate": listen, "advertise": w.replication[m].Addr(), "boot_id_path": w.bootID[m],
			"etcd_endpoints": fmt.Sprintf("[%q]", "http://"+w.store[m].Addr()),
		}
	}
	d.reconfigure(keys)
	return w
}

// reboot gives a node's host another boot id, which counts from its next start.
func (d *deployment) reboot(w *wires, member string, life int) {
	d.t.Helper()
	if err := os.WriteFile(w.bootID[member], fmt.Appendf(nil, "00000000-0000-4000-8000-%012d\n", life), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

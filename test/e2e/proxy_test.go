package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// proxy is a TCP link that can be cut. While a direction is cut, bytes in it wait, as in a network
// that drops packets; nothing is lost from a connection that lives on. New connections are taken
// all the same, and get nowhere.
type proxy struct {
	target string
	ln     net.Listener

	mu     sync.Mutex // guards what follows
	cut    [2]bool    // to the target, from the target
	rate   int        // bytes per second to the target, 0: no limit
	change chan struct{}
	conns  map[net.Conn]bool
	closed bool
	wg     sync.WaitGroup
}

const (
	toTarget = iota
	fromTarget
)

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: target, ln: ln, change: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *proxy) addr() string { return p.ln.Addr().String() }

// set cuts or joins the two directions.
func (p *proxy) set(toCut, fromCut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = [2]bool{toCut, fromCut}
	close(p.change)
	p.change = make(chan struct{})
}

func (p *proxy) sever() { p.set(true, true) }
func (p *proxy) join()  { p.set(false, false) }

// limit bounds the bytes per second to the target.
func (p *proxy) limit(rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = rate
}

// reset closes every connection that is open.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	close(p.change)
	p.change = make(chan struct{})
	p.mu.Unlock()
	_ = p.ln.Close()
	p.reset()
	p.wg.Wait()
}

func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) forget(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	_ = c.Close()
}

func (p *proxy) accept() {
	for {
		in, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(in) })
	}
}

func (p *proxy) serve(in net.Conn) {
	defer p.forget(in)
	if !p.keep(in) {
		return
	}
	out, err := net.DialTimeout("tcp", p.target, time.Second)
	if err != nil {
		return
	}
	defer p.forget(out)
	if !p.keep(out) {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { p.copy(in, out, fromTarget) })
	p.copy(out, in, toTarget)
	back.Wait()
}

// copy forwards until either end closes; then both are closed.
func (p *proxy) copy(to, from net.Conn, direction int) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !p.pass(direction, n) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// pass waits until n bytes may go on; false: the proxy is closed.
func (p *proxy) pass(direction, n int) bool {
	for {
		p.mu.Lock()
		closed, cut, change, rate := p.closed, p.cut[direction], p.change, p.rate
		p.mu.Unlock()
		switch {
		case closed:
			return false
		case cut:
			<-change
			continue
		case direction == toTarget && rate > 0:
			<-time.After(time.Duration(n) * time.Second / time.Duration(rate)) // this is the limit, no wait for a condition
		}
		return true
	}
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
	replication map[string]*proxy // to that node
	store       map[string]*proxy // of that node
	bootID      map[string]string // the file that holds its boot id
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
	w := &wires{replication: map[string]*proxy{}, store: map[string]*proxy{}, bootID: map[string]string{}}
	keys := map[string]map[string]string{}
	for _, m := range d.members("") {
		listen := freeAddr(d.t)
		w.replication[m] = newProxy(d.t, listen)
		w.store[m] = newProxy(d.t, etcd)
		w.bootID[m] = d.path(m, ".boot-id")
		d.reboot(w, m, 1)
		keys[m] = map[string]string{
			"replicate": listen, "advertise": w.replication[m].addr(), "boot_id_path": w.bootID[m],
			"etcd_endpoints": fmt.Sprintf("[%q]", "http://"+w.store[m].addr()),
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

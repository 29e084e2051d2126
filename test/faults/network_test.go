package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-dr/lockstep/test/need"
)

// network joins hosts, each a network namespace with one interface, a TUN device. Between them this
// process carries the packets, so it can cut, lose and delay them, in each direction by itself. It
// needs nothing of the kernel but TUN: no queueing discipline, no packet filter.
type network struct {
	t     *testing.T
	hosts []*host
	wg    sync.WaitGroup

	mu    sync.Mutex // guards what follows
	links map[[2]string]link
	rnd   *rand.Rand

	carried, lost atomic.Uint64 // packets
}

// link is one direction between two hosts. The zero value is a perfect one.
type link struct {
	cut    bool
	loss   float64       // share of packets that vanish
	delay  time.Duration // of every packet
	jitter time.Duration // on top, up to; packets may overtake each other
}

// host is a machine of the network. Its processes reach the others, and each other.
type host struct {
	name, site string
	ip         netip.Addr
	net        *network
	index      int
	tun        *os.File
	ns         *os.File // the namespace
	to         []atomic.Pointer[link]
	jobs       chan func() // run on a thread in the namespace that lasts as long as the host
}

const (
	maxHosts    = 64
	maxInFlight = 20000 // delayed packets; more are lost, as at any router
	mtu         = 1500
)

func newNetwork(t *testing.T, seed uint64) *network {
	t.Helper()
	need.Root(t, "network namespaces")
	n := &network{t: t, links: map[[2]string]link{}, rnd: rand.New(rand.NewPCG(seed, 2))}
	t.Cleanup(n.close)
	return n
}

// add makes a host. Its address is that of its place in the list.
func (n *network) add(site, name string) *host {
	n.t.Helper()
	h := &host{
		name: name, site: site, net: n, index: len(n.hosts),
		ip: netip.AddrFrom4([4]byte{10, 77, 0, byte(len(n.hosts) + 1)}), jobs: make(chan func()),
		to: make([]atomic.Pointer[link], maxHosts),
	}
	if len(n.hosts) == maxHosts {
		n.t.Fatal("too many hosts")
	}
	ready := make(chan error)
	go func() { // ends when jobs is closed, and its thread with it, which is never used for anything else
		runtime.LockOSThread()
		err := h.create()
		ready <- err
		for job := range h.jobs {
			job()
		}
	}()
	if err := <-ready; err != nil {
		need.Missing(n.t, "make a network namespace: %v", err)
	}
	n.hosts = append(n.hosts, h)
	n.apply()
	return h
}

// start carries packets from now on; every host is there.
func (n *network) start() {
	for _, h := range n.hosts {
		n.wg.Go(h.carry)
	}
}

func (n *network) close() {
	for _, h := range n.hosts {
		close(h.jobs)
		h.tun.Close()
		h.ns.Close()
	}
	n.wg.Wait()
}

// create moves the calling thread into a new namespace and makes the interface.
func (h *host) create() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq("wan")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make a TUN device: %w", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	set := func(name string, request uint, fill func(*unix.Ifreq) error) error {
		ifr, err := unix.NewIfreq(name)
		if err == nil {
			err = fill(ifr)
		}
		if err == nil {
			err = unix.IoctlIfreq(s, request, ifr)
		}
		return err
	}
	up := func(ifr *unix.Ifreq) error { ifr.SetUint16(unix.IFF_UP); return nil }
	err = errors.Join(
		set("lo", unix.SIOCSIFFLAGS, up),
		set("wan", unix.SIOCSIFADDR, func(ifr *unix.Ifreq) error { return ifr.SetInet4Addr(h.ip.AsSlice()) }),
		set("wan", unix.SIOCSIFNETMASK, func(ifr *unix.Ifreq) error { return ifr.SetInet4Addr([]byte{255, 255, 0, 0}) }),
		set("wan", unix.SIOCSIFMTU, func(ifr *unix.Ifreq) error { ifr.SetUint32(mtu); return nil }),
		set("wan", unix.SIOCSIFFLAGS, up),
	)
	h.ns, h.tun = ns, os.NewFile(uintptr(fd), "/dev/net/tun")
	return err
}

// on runs a function on the host's thread: processes that it starts are the host's.
func (h *host) on(do func() error) error {
	err := make(chan error)
	h.jobs <- func() { err <- do() }
	return <-err
}

// dial connects from the host, as a process on it would.
func (h *host) dial(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// addr is host:port for a port of the host.
func (h *host) addr(port int) string { return fmt.Sprintf("%s:%d", h.ip, port) }

// carry takes what the host sends to where it goes.
func (h *host) carry() {
	var inFlight atomic.Int32
	buf := make([]byte, mtu+100)
	for {
		n, err := h.tun.Read(buf)
		if err != nil {
			return // closed
		}
		if n < 20 || buf[0]>>4 != 4 {
			continue // the kernel's own IPv6
		}
		to := int(buf[19]) - 1
		if [3]byte(buf[16:19]) != [3]byte{10, 77, 0} || to < 0 || to >= len(h.net.hosts) {
			continue
		}
		l, dest := h.to[to].Load(), h.net.hosts[to]
		h.net.carried.Add(1)
		switch {
		case l.cut, l.loss > 0 && h.net.random() < l.loss:
			h.net.lost.Add(1)
		case l.delay == 0 && l.jitter == 0:
			_, _ = dest.tun.Write(buf[:n]) // a full queue loses it, as any network may
		case inFlight.Load() >= maxInFlight:
			h.net.lost.Add(1)
		default:
			inFlight.Add(1)
			packet := slices.Clone(buf[:n])
			time.AfterFunc(l.delay+time.Duration(h.net.random()*float64(l.jitter)), func() {
				inFlight.Add(-1)
				_, _ = dest.tun.Write(packet) // the same, or the test is over
			})
		}
	}
}

func (n *network) random() float64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rnd.Float64()
}

// set makes the links from one place to another what l says, in that direction. A place is a host's
// name or a site's; a link between hosts goes before one between sites.
func (n *network) set(from, to string, l link) {
	n.mu.Lock()
	n.links[[2]string{from, to}] = l
	n.mu.Unlock()
	n.apply()
}

// both is set in both directions.
func (n *network) both(a, b string, l link) {
	n.set(a, b, l)
	n.set(b, a, l)
}

// heal makes every link perfect.
func (n *network) heal() {
	n.mu.Lock()
	clear(n.links)
	n.mu.Unlock()
	n.apply()
}

// apply works out what is between each two hosts. What is on its way is not touched.
func (n *network) apply() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.hosts {
		for _, b := range n.hosts {
			l, ok := n.links[[2]string{a.name, b.name}]
			for _, between := range [][2]string{{a.name, b.site}, {a.site, b.name}, {a.site, b.site}} {
				if !ok {
					l, ok = n.links[between]
				}
			}
			a.to[b.index].Store(&l)
		}
	}
}

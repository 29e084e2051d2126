package whole

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/node"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/replica"
)

const pool = "/pool"

// host is a machine with one disk, a clock and at most one running node process.
type host struct {
	w    *World
	id   lockstep.NodeID
	az   lockstep.AZ
	dice *dice

	rate   float64       // of its clock, against virtual time
	offset time.Duration // of its clock

	mu    sync.Mutex // guards what follows
	fs    *vfs.Mem
	boots int
	on    bool
	p     *proc // nil: none
	disk  diskFaults
}

// diskFaults is how a host's disk behaves now.
type diskFaults struct {
	slow time.Duration   // the most that a flush takes
	bad  map[string]bool // operations that fail with EIO, by label and name: "raw:fdatasync"
}

// proc is one life of a node process.
type proc struct {
	h     *host
	life  int
	gate  gate
	dead  atomic.Bool
	node  atomic.Pointer[node.Node] // nil: not up yet
	store *storeLink
	stop  context.CancelFunc
	done  chan struct{}
	gone  chan struct{} // closed when it is killed

	mu    sync.Mutex // guards what follows
	conns []*conn
	ln    *listener
}

func newHost(w *World, id lockstep.NodeID, az lockstep.AZ) *host {
	h := &host{
		w: w, id: id, az: az, dice: newDice(w.seed, 100+uint64(len(w.hosts))), fs: vfs.NewMem(),
		disk: diskFaults{bad: map[string]bool{}},
	}
	// Two clocks that differ by less than the margin for each TTL (100 ms for 1 s).
	h.rate = 1 + (float64(h.dice.below(9001))-4500)/100000
	h.offset = h.dice.between(0, time.Hour)
	h.fs.SetReflink(w.dice.chance(0.5))
	if err := h.fs.MkdirAll("sim", pool); err != nil {
		panic(err)
	}
	if err := h.fs.SyncDir("sim", "/"); err != nil {
		panic(err)
	}
	return h
}

// clock is CLOCK_BOOTTIME of the host.
func (h *host) clock() time.Duration {
	return h.offset + time.Duration(float64(time.Since(h.w.began))*h.rate)
}

// bootID is what the node will make of its files; a new one after every loss of power.
func (h *host) bootID() lockstep.BootID {
	h.mu.Lock()
	defer h.mu.Unlock()
	mount, err := h.fs.MountID(pool)
	if err != nil {
		panic(err)
	}
	return lockstep.BootID(fmt.Sprintf("%s.boot%d/%s", h.id, h.boots, mount))
}

func (h *host) bootFile() string {
	path := filepath.Join(h.w.dir, fmt.Sprintf("%s.boot", h.id))
	if err := os.WriteFile(path, fmt.Appendf(nil, "%s.boot%d\n", h.id, h.boots), 0o600); err != nil {
		panic(err)
	}
	return path
}

func (h *host) running() *proc {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.p
}

// powerOn boots the host and starts its node.
func (h *host) powerOn() {
	h.mu.Lock()
	was := h.on
	h.on = true
	h.mu.Unlock()
	if was {
		return
	}
	h.w.net.switchPower(string(h.id))
	h.w.say(string(h.id), "power on, boot id %s", h.bootID())
	h.start()
}

// powerOff loses what was not flushed; keep is the share of it that survives.
func (h *host) powerOff(keep float64) {
	h.mu.Lock()
	if !h.on {
		h.mu.Unlock()
		return
	}
	h.on = false
	fs := h.fs
	h.mu.Unlock()
	h.w.net.switchPower(string(h.id))
	clone := fs.CrashClone(h.dice.rng, keep)
	h.w.say(string(h.id), "power lost; %.0f%% of what was not flushed survives", keep*100)
	h.end()
	h.mu.Lock()
	h.fs = clone
	h.boots++
	h.mu.Unlock()
	h.w.powerLost(h)
}

// start starts the node process.
func (h *host) start() {
	h.mu.Lock()
	if h.p != nil || !h.on || h.w.over.Load() {
		h.mu.Unlock()
		return
	}
	h.w.lives++
	ctx, stop := context.WithCancel(context.Background())
	p := &proc{h: h, life: h.w.lives, stop: stop, done: make(chan struct{}), gone: make(chan struct{})}
	p.store = newStoreLink(h.w, string(h.id), &p.gate)
	h.p = p
	fs := h.fs
	boot := h.bootFile()
	h.mu.Unlock()
	fs.OnOp(func(op vfs.Op) error { return p.diskOp(op) })
	h.w.say(string(h.id), "process %d starts", p.life)
	cfg := node.Config{
		ID: h.id, AZ: h.az, Pool: pool, Replicate: string(h.id), Advertise: string(h.id), BootIDPath: boot, Version: "sim",
		Machine: node.Machine{
			FS: fs, ID: "machine-" + string(h.id),
			Listen: func(at string) (net.Listener, error) {
				ln, err := h.w.net.listen(p, at)
				if err == nil {
					p.mu.Lock()
					p.ln = ln.(*listener)
					p.mu.Unlock()
				}
				return ln, err
			},
			Dial:    func(ctx context.Context, to string) (net.Conn, error) { return h.w.net.dial(ctx, p, to) },
			Clock:   h.clock,
			Started: func(n *node.Node) { p.node.Store(n) },
		},
	}
	h.w.tasks.Go(func() {
		err := node.RunOn(ctx, cfg, p.store, h.w.logger(string(h.id)))
		close(p.done)
		if !p.dead.Load() {
			h.w.say(string(h.id), "process %d ended by itself: %v", p.life, err)
			p.dead.Store(true)
			h.end()
			time.Sleep(time.Second)
			h.start()
		}
	})
}

// end kills the process: from this instant nothing of it reaches disk, store or peers, and what it
// tells its guests is not heard. Its page cache stays. It returns when it has gone.
func (h *host) end() {
	h.mu.Lock()
	p := h.p
	h.mu.Unlock()
	if p == nil {
		return
	}
	p.dead.Store(true)
	p.store.cutOff()
	p.gate.set(false)
	p.mu.Lock()
	conns, ln := p.conns, p.ln
	p.mu.Unlock()
	if ln != nil {
		_ = ln.Close()
	}
	for _, c := range conns {
		_ = c.Close()
	}
	p.lost()
	p.stop()
	<-p.done
	p.store.close()
	h.mu.Lock()
	if h.p == p {
		h.p = nil
	}
	h.mu.Unlock()
}

func (h *host) kill() {
	if p := h.running(); p != nil {
		h.w.say(string(h.id), "process %d killed", p.life)
		h.end()
	}
}

// pause stops the process's steps out of itself; its leases of the store are not renewed either.
func (h *host) pause(on bool) {
	p := h.running()
	if p == nil {
		return
	}
	if on {
		h.w.say(string(h.id), "process %d stands still", p.life)
	} else {
		h.w.say(string(h.id), "process %d goes on", p.life)
	}
	p.gate.set(on)
	p.store.stall(on)
}

// lost tells the guests that their connections are gone.
func (p *proc) lost() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gone:
	default:
		close(p.gone)
	}
}

// own remembers a connection, to close it with the process.
func (p *proc) own(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead.Load() {
		_ = c.Close()
		return
	}
	p.conns = append(p.conns, c)
	if len(p.conns) > 64 { // forget those that are over
		kept := p.conns[:0]
		for _, c := range p.conns {
			if !c.in.over() || !c.out.over() {
				kept = append(kept, c)
			}
		}
		p.conns = kept
	}
}

// diskOp is called before every operation of the process's file system.
func (p *proc) diskOp(op vfs.Op) error {
	if strings.HasPrefix(string(op), "sim:") {
		return nil // a checker looks at the disk, without taking any time
	}
	if p.dead.Load() {
		return vfs.ErrGone
	}
	p.gate.pass()
	p.h.mu.Lock()
	f := p.h.disk
	bad := f.bad[string(op)]
	p.h.mu.Unlock()
	sync := strings.HasSuffix(string(op), ":fdatasync")
	switch {
	case sync && f.slow > 0:
		time.Sleep(p.h.dice.between(0, f.slow))
	case sync:
		time.Sleep(p.h.dice.between(50*time.Microsecond, 3*time.Millisecond))
	case p.h.dice.below(16) == 0:
		time.Sleep(p.h.dice.between(0, 500*time.Microsecond))
	}
	p.gate.pass()
	switch {
	case p.dead.Load():
		return vfs.ErrGone
	case bad:
		return syscall.EIO
	}
	return nil
}

// volume is the volume as a guest of this process gets it.
func (p *proc) volume(id lockstep.VolumeID) (*replica.Volume, error) {
	n := p.node.Load()
	if n == nil || p.dead.Load() {
		return nil, syscall.ECONNREFUSED
	}
	return n.Volume(id)
}

// serves is the epoch at which the process takes itself for the primary; 0: it does not.
func (p *proc) serves(group lockstep.GroupID) lockstep.Epoch {
	n := p.node.Load()
	if n == nil {
		return 0
	}
	v, ok := n.View(group)
	if !ok || v.Role != protocol.RolePrimary {
		return 0
	}
	return v.Saved.Record.Epoch
}

func (h *host) files() *vfs.Mem {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fs
}

// logger keeps the logs of a part in the story, if they are wanted.
func (w *World) logger(who string) *slog.Logger {
	if !w.logs {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(logLines{w, who}, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

type logLines struct {
	w   *World
	who string
}

func (l logLines) Write(p []byte) (int, error) {
	l.w.say(l.who, "  log: %s", strings.TrimSpace(string(p)))
	return len(p), nil
}

package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/replica"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

var caller = control.Caller{Project: "p", User: "u", RequestID: "r", Operator: true, Admin: true}

// cluster is a whole deployment in this process: a store in memory, a controller, and nodes on
// file systems in memory, each behind a proxy through which all its peers reach it.
type cluster struct {
	t   *testing.T
	mem *memstore.Mem
	ctl *control.Controller

	nodes map[lockstep.NodeID]*proc
	group lockstep.GroupID
	pairs []lockstep.PairID
	vols  [][2]lockstep.VolumeID // by pair: az1, az2
}

// proc is one node, running or not.
type proc struct {
	c      *cluster
	cfg    Config
	fs     *vfs.Mem
	proxy  *proxy
	client *memstore.Client
	cutOff bool // it starts while the store does not answer

	mu   sync.Mutex
	node *Node // nil: not running
	stop context.CancelFunc
	done chan error
}

func newCluster(t *testing.T, ids ...lockstep.NodeID) *cluster {
	t.Helper()
	t.Parallel()
	c := &cluster{t: t, mem: memstore.NewMem(), nodes: map[lockstep.NodeID]*proc{}}
	c.ctl = control.New(control.Config{
		Store: c.mem, ID: "ctl", ClusterID: "cluster", Region: "r", Logger: logger(t, "controller"),
		LeaderTTL: 2 * time.Second, Patience: time.Second, ResyncMin: 100 * time.Millisecond, ResyncMax: 500 * time.Millisecond,
		RetryStore: 20 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.ctl.Run(ctx) }()
	t.Cleanup(func() {
		for _, p := range c.nodes {
			p.kill()
			p.proxy.close()
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controller: %v", err)
		}
	})
	for _, id := range ids {
		p := &proc{c: c, fs: vfs.NewMem(), proxy: newProxy(t)}
		p.cfg = Config{
			ID: id, AZ: lockstep.AZ("az" + string(id[1])), Pool: t.TempDir(), Advertise: p.proxy.addr(),
			TripAfter: slow * 600 * time.Millisecond, LeaseTTL: slow * 200 * time.Millisecond, LeaseMargin: 20 * time.Millisecond,
			Heartbeat: 50 * time.Millisecond, FlushEvery: 200 * time.Millisecond, hostID: "host-" + string(id),
		}
		p.mkdir()
		c.nodes[id] = p
		p.start()
	}
	return c
}

// logger writes to the test's log when the test is run with LOCKSTEP_TEST_LOG set.
func logger(t *testing.T, name string) *slog.Logger {
	if os.Getenv("LOCKSTEP_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("test", t.Name(), "part", name)
}

// mkdir makes the pool's directory and its parents, durably: that of a host was there before.
func (p *proc) mkdir() {
	p.c.t.Helper()
	err := p.fs.MkdirAll("test", p.cfg.Pool)
	for dir := p.cfg.Pool; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		err = p.fs.SyncDir("test", filepath.Dir(dir))
	}
	if err != nil {
		p.c.t.Fatal(err)
	}
}

func (p *proc) start() {
	p.c.t.Helper()
	up := make(chan *Node, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cfg := p.cfg
	cfg.fs = p.fs
	cfg.started = func(n *Node) { up <- n }
	p.client = p.c.mem.NewClient()
	p.client.SetDown(p.cutOff)
	done := make(chan error, 1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.c.t.Fatal(err)
	}
	cfg.Replicate = ln.Addr().String()
	p.proxy.target.Store(cfg.Replicate)
	_ = ln.Close() // the node listens there in a moment
	go func() { done <- RunOn(ctx, cfg, p.client, logger(p.c.t, string(cfg.ID))) }()
	select {
	case n := <-up:
		p.mu.Lock()
		p.node, p.stop, p.done = n, cancel, done
		p.mu.Unlock()
	case err := <-done:
		cancel()
		p.c.t.Fatalf("node %s did not start: %v", cfg.ID, err)
	case <-time.After(10 * time.Second):
		cancel()
		p.c.t.Fatalf("node %s did not start in 10 s", cfg.ID)
	}
}

func (p *proc) running() *Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.node
}

// shutdown stops the node in good order and gives how long that took.
func (p *proc) shutdown() time.Duration {
	p.c.t.Helper()
	p.mu.Lock()
	stop, done := p.stop, p.done
	p.node, p.stop = nil, nil
	p.mu.Unlock()
	if stop == nil {
		return 0
	}
	began := time.Now()
	stop()
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, lockstep.ErrVolumeFailed) {
			p.c.t.Errorf("node %s stopped with %v", p.cfg.ID, err)
		}
	case <-time.After(15 * time.Second):
		p.c.t.Fatalf("node %s did not stop in 15 s", p.cfg.ID)
	}
	return time.Since(began)
}

// kill ends the node as SIGKILL does: from this instant nothing reaches its disk, the store or its
// peers. The page cache stays.
func (p *proc) kill() {
	p.c.t.Helper()
	p.mu.Lock()
	stop, done := p.stop, p.done
	p.node, p.stop = nil, nil
	p.mu.Unlock()
	if stop == nil {
		return
	}
	p.proxy.set(modeRefuse)
	p.client.SetDown(true)
	p.fs.OnOp(func(op vfs.Op) error {
		if strings.HasSuffix(string(op), ":close") {
			return nil
		}
		return vfs.ErrGone
	})
	stop()
	select {
	case <-done: // whatever it says
	case <-time.After(15 * time.Second):
		p.c.t.Fatalf("node %s did not end in 15 s", p.cfg.ID)
	}
	p.fs.OnOp(nil)
	p.proxy.set(modePass)
}

// powerLoss ends the node and loses what it had not synced.
func (p *proc) powerLoss(keep float64) {
	p.c.t.Helper()
	clone := p.fs.CrashClone(rand.New(rand.NewPCG(1, 2)), keep)
	p.kill()
	p.fs = clone
}

func (p *proc) volume(id lockstep.VolumeID) *replica.Volume {
	if n := p.running(); n != nil {
		return n.host.Volume(id)
	}
	return nil
}

// app2 makes two pairs of 1 GiB and a group of them.
func (c *cluster) app2() { c.app(2) }

func (c *cluster) app(n int) {
	c.t.Helper()
	ctx := c.t.Context()
	for range n {
		var ids [2]lockstep.VolumeID
		for i, az := range []lockstep.AZ{"az1", "az2"} {
			var v control.VolumeView
			c.eventually("a volume is made", func() error {
				var err error
				v, err = c.ctl.CreateVolume(ctx, caller, control.VolumeCreate{SizeGiB: 1, AZ: az})
				return err
			})
			ids[i] = v.ID
			c.eventually("the volume is available", func() error {
				v, err := c.ctl.GetVolume(ctx, caller, ids[i])
				if err == nil && v.Status != "available" {
					err = fmt.Errorf("volume is %s", v.Status)
				}
				return err
			})
		}
		p, err := c.ctl.CreatePair(ctx, caller, control.PairCreate{Volumes: ids[:], Priority: "az1", Model: "hypermetro"})
		if err != nil {
			c.t.Fatal(err)
		}
		c.eventually("the pair is available", func() error {
			p, err := c.ctl.GetPair(ctx, caller, p.ID)
			if err == nil && p.Status != "available" {
				err = fmt.Errorf("pair is %s", p.Status)
			}
			return err
		})
		c.pairs, c.vols = append(c.pairs, p.ID), append(c.vols, ids)
	}
	g, err := c.ctl.CreateGroup(ctx, caller, control.GroupCreate{Pairs: c.pairs, Priority: "az1", Model: "hypermetro"})
	if err != nil {
		c.t.Fatal(err)
	}
	c.group = g.ID
	c.await("available", "inactive", "0")
}

func (c *cluster) act(a control.Action, ext ...control.Extend) {
	c.t.Helper()
	if err := c.ctl.Act(c.t.Context(), caller, c.group, a, ext); err != nil {
		c.t.Fatalf("%s: %v", a, err)
	}
}

// active makes the group active, whatever it was.
func (c *cluster) active() {
	c.t.Helper()
	c.act(control.ActionSync)
	c.await("available", "active", "0")
}

// reverse switches the group over to az.
func (c *cluster) reverse(az lockstep.AZ) {
	c.t.Helper()
	c.act(control.ActionReverse)
	c.eventually("the group is switched over", func() error {
		if r := c.record(); r.Primary != az || r.State != protocol.StateNormal {
			return errors.New(r.Describe() + ": " + r.Reason)
		}
		return nil
	})
	c.await("available", "active", "0")
}

func (c *cluster) view() control.GroupView {
	g, err := c.ctl.GetGroup(context.Background(), caller, c.group)
	if err != nil {
		c.t.Error(err)
	}
	return g
}

// await waits for a status; "" is any.
func (c *cluster) await(status, rep, fault string) control.GroupView {
	c.t.Helper()
	var v control.GroupView
	c.eventually(fmt.Sprintf("the group is %s/%s/%s", status, rep, fault), func() error {
		v = c.view()
		if status != "" && v.Status != status || rep != "" && v.ReplicationStatus != rep || fault != "" && v.FaultLevel != fault {
			return fmt.Errorf("%s/%s/%s, epoch %d (%s)", v.Status, v.ReplicationStatus, v.FaultLevel, v.Epoch, v.Reason)
		}
		return nil
	})
	return v
}

func (c *cluster) record() protocol.Record {
	c.t.Helper()
	r, _, err := store.GetT[protocol.Record](context.Background(), c.mem, store.KeyRecord(c.group))
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

func (c *cluster) eventually(what string, f func() error) {
	c.t.Helper()
	var err error
	for end := time.Now().Add(slow * 30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	c.t.Fatalf("not within 30 s: %s; last: %v", what, err)
}

// home is the node that holds the volume.
func (c *cluster) home(id lockstep.VolumeID) *proc {
	c.t.Helper()
	v, _, err := store.GetT[store.Volume](context.Background(), c.mem, store.KeyVolume(id))
	if err != nil {
		c.t.Fatal(err)
	}
	return c.nodes[v.Node]
}

func (c *cluster) dev(id lockstep.VolumeID) *replica.Volume {
	c.t.Helper()
	var v *replica.Volume
	c.eventually("volume "+string(id)+" is open", func() error {
		if v = c.home(id).volume(id); v == nil {
			return errors.New("no")
		}
		return nil
	})
	return v
}

// same checks that all pairs are byte-identical; nothing may be in flight.
func (c *cluster) same() {
	c.t.Helper()
	for _, ids := range c.vols {
		a, b := c.home(ids[0]), c.home(ids[1])
		if err := equalFiles(a.fs, filepath.Join(a.cfg.Pool, string(ids[0])+".raw"), b.fs, filepath.Join(b.cfg.Pool, string(ids[1])+".raw")); err != nil {
			c.t.Errorf("pair of %s: %v", ids[0], err)
		}
	}
}

func equalFiles(fa vfs.FS, pa string, fb vfs.FS, pb string) error {
	a, err := fa.OpenFile("test", pa, 0)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := fb.OpenFile("test", pb, 0)
	if err != nil {
		return err
	}
	defer b.Close()
	const step = 64 << 10
	x, y := make([]byte, step), make([]byte, step)
	for _, f := range []vfs.File{a, b} { // what is a hole in both is equal
		for off := int64(0); ; {
			off, err = f.SeekData(off)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			end, err := f.SeekHole(off)
			if err != nil {
				return err
			}
			for off -= off % step; off < end; off += step {
				n, err := a.ReadAt(x, off)
				m, err2 := b.ReadAt(y, off)
				if n != m || !bytes.Equal(x[:n], y[:m]) {
					i := 0
					for i < min(n, m) && x[i] == y[i] {
						i++
					}
					return fmt.Errorf("the sides differ at %d: %x, %x (%w)", off+int64(i), x[i:min(i+8, n)], y[i:min(i+8, m)], errors.Join(err, err2))
				}
			}
		}
	}
	return nil
}

// load writes to the volumes of one AZ, block by block, and knows for every block what was
// acknowledged: what is read later must be that or newer.
type load struct {
	c      *cluster
	side   int // index into cluster.vols[i]
	stop   chan struct{}
	wg     sync.WaitGroup
	blocks [][]*block
	acked  atomic.Int64
	errs   atomic.Int64
}

type block struct {
	mu            sync.Mutex // one write at a time
	acked, issued uint64
}

const (
	blockBytes = 4096
	blockCount = 256
	// blockGap spreads the blocks over regions and chunks.
	blockGap = int64(256)<<10 - 3*blockBytes
)

func newLoad(c *cluster) *load {
	l := &load{c: c}
	for range c.vols {
		var bs []*block
		for range blockCount {
			bs = append(bs, &block{})
		}
		l.blocks = append(l.blocks, bs)
	}
	return l
}

func content(seq uint64) []byte {
	p := make([]byte, blockBytes)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], seq)
	}
	return p
}

// run writes with some writers for each volume until halt.
func (l *load) run(side, writers int) {
	l.side, l.stop = side, make(chan struct{})
	for i := range l.c.vols {
		for w := range writers {
			l.wg.Go(func() { l.write(i, rand.New(rand.NewPCG(uint64(i), uint64(w)))) })
		}
	}
}

func (l *load) write(i int, rng *rand.Rand) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-l.stop
		cancel()
	}()
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		id := l.c.vols[i][l.side]
		dev := l.c.home(id).volume(id)
		if dev == nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		k := rng.IntN(blockCount)
		if err := l.one(ctx, dev, i, k, rng.IntN(8)); err != nil {
			l.errs.Add(1)
			time.Sleep(2 * time.Millisecond)
		}
	}
}

// one writes the block's next content: seldom as zeroes, seldom with FUA.
func (l *load) one(ctx context.Context, dev *replica.Volume, i, k, kind int) error {
	b := l.blocks[i][k]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.issued++
	off := int64(k) * blockGap
	err := dev.WriteAt(ctx, content(b.issued), off, kind == 0)
	if err == nil && kind == 1 {
		err = dev.Flush(ctx)
	}
	if err != nil {
		return err
	}
	b.acked = b.issued
	l.acked.Add(1)
	return nil
}

func (l *load) halt() {
	close(l.stop)
	l.wg.Wait()
}

// check reads every block at one side: nothing acknowledged may be missing.
func (l *load) check(side int) {
	l.c.t.Helper()
	bad := 0
	for i, ids := range l.c.vols {
		dev := l.c.dev(ids[side])
		l.c.eventually("the node has read of its role", func() error { // the record knows before the node does
			if err := dev.ReadAt(context.Background(), make([]byte, blockBytes), 0); errors.Is(err, lockstep.ErrDemoted) {
				return err
			}
			return nil
		})
		for k, b := range l.blocks[i] {
			p := make([]byte, blockBytes)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			err := dev.ReadAt(ctx, p, int64(k)*blockGap)
			cancel()
			if err != nil {
				l.c.t.Fatalf("read block %d of %s: %v", k, ids[side], err)
			}
			got := binary.LittleEndian.Uint64(p)
			if !bytes.Equal(p, content(got)) {
				l.c.t.Errorf("block %d of %s is torn", k, ids[side])
			}
			if got < b.acked || got > b.issued {
				bad++
				if bad < 5 {
					l.c.t.Errorf("block %d of %s holds write %d; acknowledged was %d, issued %d", k, ids[side], got, b.acked, b.issued)
				}
			}
			b.acked, b.issued = got, max(b.issued, got) // from here on
		}
	}
	if bad > 0 {
		l.c.t.Errorf("%d blocks lost acknowledged writes", bad)
	}
}

// progress waits until n more writes have been acknowledged.
func (l *load) progress(n int64) {
	l.c.t.Helper()
	want := l.acked.Load() + n
	l.c.eventually("writes go on", func() error {
		if have := l.acked.Load(); have < want {
			return fmt.Errorf("%d of %d acknowledged, %d errors", have, want, l.errs.Load())
		}
		return nil
	})
}

// proxy is the way to one node. Cutting it closes what goes through; a black hole keeps the
// connections and swallows nothing: bytes wait until it is lifted.
type proxy struct {
	ln     net.Listener
	target atomic.Value // string
	wg     sync.WaitGroup

	mu    sync.Mutex
	mode  proxyMode
	wake  chan struct{} // closed at a change of mode
	conns map[net.Conn]bool
}

type proxyMode int

const (
	modePass proxyMode = iota
	modeRefuse
	modeHole
)

func newProxy(t *testing.T) *proxy {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, wake: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(conn) })
		}
	})
	return p
}

func (p *proxy) addr() string { return p.ln.Addr().String() }

func (p *proxy) set(m proxyMode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	close(p.wake)
	p.wake = make(chan struct{})
	if m == modeRefuse {
		for c := range p.conns {
			_ = c.Close()
		}
	}
}

func (p *proxy) close() {
	_ = p.ln.Close()
	p.set(modeRefuse)
	p.wg.Wait()
}

func (p *proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode == modeRefuse {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	_ = c.Close()
}

func (p *proxy) serve(in net.Conn) {
	if !p.track(in) {
		return
	}
	defer p.forget(in)
	to, _ := p.target.Load().(string)
	out, err := net.Dial("tcp", to)
	if err != nil || !p.track(out) {
		return
	}
	defer p.forget(out)
	var wg sync.WaitGroup
	copyTo := func(dst, src net.Conn) {
		buf := make([]byte, 64<<10)
		for {
			n, err := src.Read(buf)
			p.pass()
			if n > 0 {
				if _, err := dst.Write(buf[:n]); err != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		_ = dst.Close()
		_ = src.Close()
	}
	wg.Go(func() { copyTo(out, in) })
	copyTo(in, out)
	wg.Wait()
}

// pass waits while there is a black hole.
func (p *proxy) pass() {
	for {
		p.mu.Lock()
		mode, wake := p.mode, p.wake
		p.mu.Unlock()
		if mode != modeHole {
			return
		}
		<-wake
	}
}

func rng() *rand.Rand { return rand.New(rand.NewPCG(7, 7)) }

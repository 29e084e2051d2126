// Package replica is the replication engine of a node: the thin loop around package protocol for
// each group, the data path of each volume, the links to other nodes, and the secondary's side of
// them. It decides nothing about epochs: it feeds the state machine from sockets, disks, the store
// and time, and carries out its actions.
//
//	NBD request -> Volume -> intent, local I/O --------------------> acknowledged
//	                  |                                                  ^
//	                  +-> link (one for each group and secondary node) --+
//	                                  |
//	                  inbox of the secondary's group -> local I/O -> answer
package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk"
	"github.com/lockstep-dr/lockstep/internal/listen"
	"github.com/lockstep-dr/lockstep/internal/peertls"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// Store is what the engine needs of the store. Calls are bounded in time by ctx.
type Store interface {
	// Propose reads the record, applies change and commits by compare-and-swap.
	Propose(ctx context.Context, g lockstep.GroupID, change func(protocol.Record) (protocol.Record, error)) error
	// Read reads the record, linearizably.
	Read(ctx context.Context, g lockstep.GroupID) (protocol.Record, error)
	// PutAnswer writes the node's answer.
	PutAnswer(ctx context.Context, a protocol.Answer) error
	// Advance runs protocol.Advance for the group and commits what comes of it.
	Advance(ctx context.Context, g lockstep.GroupID) error
}

// Config is what a Host is told.
type Config struct {
	Node     lockstep.NodeID
	AZ       lockstep.AZ
	Cluster  string
	BootID   lockstep.BootID
	Instance string
	Start    uint64
	Software string

	TripAfter, LeaseTTL, LeaseMargin, Heartbeat, FlushEvery time.Duration
	// IntentLimitBytes bounds what the write-intent log of a volume marks while it is two-sided.
	IntentLimitBytes int64
	// KeepMarks is for how many background flushes the mark of an idle region is kept, while there is room.
	KeepMarks uint64
	// VerifyRateBytes is what verifications that name no rate of their own compare in a second, all
	// together; 0: as fast as they can.
	VerifyRateBytes int64
	// ResyncLimitBytes is what synchronizations read and send in a second, all together; 0: as fast as they
	// can. SetResyncLimit changes it.
	ResyncLimitBytes int64

	Store   Store
	Resolve func(lockstep.NodeID) (addr string, ok bool) // host:port of a node's replication listener
	Changed func(lockstep.GroupID)                       // a group's view changed; must not block
	Log     *slog.Logger

	// TLS makes links ones between nodes that have shown who they are; nil: whoever reaches the listener is
	// believed to be the node it names.
	TLS *peertls.Keeper
	// Dial connects to a peer's listener; nil: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Clock runs on at a bounded rate, also while the machine is suspended; nil: CLOCK_BOOTTIME.
	Clock func() time.Duration
}

func (c Config) withDefaults() Config {
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{KeepAlive: 5 * time.Second}).DialContext(ctx, "tcp", addr)
		}
	}
	if c.Clock == nil {
		c.Clock = bootTime
	}
	return c
}

// Host is the engine of one node.
type Host struct {
	cfg     Config
	pool    *disk.Pool
	log     *slog.Logger
	bootKey uint64
	conns   atomic.Uint64
	ctx     context.Context
	stop    context.CancelFunc
	tasks   sync.WaitGroup

	verifyLimit *rate.Limiter // of verifications that name no rate
	pace        pace          // of synchronizations

	refusals refusals // of links

	accessMu sync.Mutex // serializes who a volume belongs to and how it is served outside groups

	mu      sync.Mutex // guards what follows
	groups  map[lockstep.GroupID]*Group
	vols    map[lockstep.VolumeID]*Volume
	owner   map[lockstep.VolumeID]*Group
	refused map[lockstep.VolumeID]access
	limits  map[lockstep.GroupID]int64 // of their synchronizations, bytes per second; missing: none
	beats   map[lockstep.NodeID]*beat
}

// access is how a volume outside every group is treated.
type access struct {
	plain  bool
	reason string
}

// NewHost makes the engine over an open pool. Groups that the pool knows are started at once, from
// what was persisted; they serve nothing before their rules are met.
func NewHost(cfg Config, pool *disk.Pool) (*Host, error) {
	cfg = cfg.withDefaults()
	ctx, stop := context.WithCancel(context.Background())
	h := &Host{
		cfg: cfg, pool: pool, log: cfg.Log, bootKey: wire.Key(cfg.BootID), ctx: ctx, stop: stop,
		groups: map[lockstep.GroupID]*Group{}, vols: map[lockstep.VolumeID]*Volume{}, owner: map[lockstep.VolumeID]*Group{},
		refused: map[lockstep.VolumeID]access{}, beats: map[lockstep.NodeID]*beat{},
		limits: map[lockstep.GroupID]int64{}, verifyLimit: rate.NewLimiter(rate.Inf, compareBytes),
	}
	h.pace.init(h.now, cfg.ResyncLimitBytes)
	if cfg.VerifyRateBytes > 0 {
		h.verifyLimit.SetLimit(rate.Limit(cfg.VerifyRateBytes))
	}
	ids, err := pool.Volumes()
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	for _, id := range ids {
		if _, err := h.OpenVolume(id); err != nil {
			h.log.Error("open volume", "volume", id, "err", err)
		}
	}
	groups, err := pool.Groups()
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	for _, id := range groups {
		saved, err := h.loadGroup(id)
		if err != nil {
			return nil, err
		}
		h.startGroup(id, saved)
	}
	h.tasks.Go(h.flushLoop)
	h.tasks.Go(h.storeLeaseLoop)
	return h, nil
}

// Close stops groups and links and flushes every volume.
func (h *Host) Close() error {
	h.stop()
	h.Release()
	for _, g := range h.groupList() {
		<-g.done
	}
	h.tasks.Wait()
	var errs []error
	for _, v := range h.volumes() {
		v.quiesce(h.ctx, false, now0)
		if v.failedNow() == nil {
			errs = append(errs, v.disk.Sync())
		}
	}
	return errors.Join(errs...)
}

// Release ends every request that waits, for a trip or a secondary, and refuses new ones: the node
// stops. What became of a write is unknown to its client then; its marks are kept.
func (h *Host) Release() {
	for _, v := range h.volumes() {
		v.release()
	}
}

func (h *Host) volumes() []*Volume {
	h.mu.Lock()
	defer h.mu.Unlock()
	vols := make([]*Volume, 0, len(h.vols))
	for _, v := range h.vols {
		vols = append(vols, v)
	}
	return vols
}

func (h *Host) loadGroup(id lockstep.GroupID) (protocol.Saved, error) {
	var saved protocol.Saved
	blob, err := h.pool.LoadGroup(id)
	if errors.Is(err, lockstep.ErrNotFound) {
		return saved, nil
	}
	if err != nil {
		return saved, fmt.Errorf("load state of group %s: %w", id, err)
	}
	if err := json.Unmarshal(blob, &saved); err != nil {
		return saved, fmt.Errorf("decode state of group %s: %w: %w", id, lockstep.ErrCorrupt, err)
	}
	if saved.Format > protocol.SavedFormat {
		return saved, fmt.Errorf("state of group %s has format %d, this build reads up to %d", id, saved.Format, protocol.SavedFormat)
	}
	return saved, nil
}

// startGroup makes and runs a group, or gives the one that runs.
func (h *Host) startGroup(id lockstep.GroupID, saved protocol.Saved) *Group {
	h.mu.Lock()
	if g := h.groups[id]; g != nil {
		h.mu.Unlock()
		return g
	}
	g := newGroup(h, id, saved)
	g.limit.set(h.limits[id])
	h.groups[id] = g
	h.mu.Unlock()
	g.bindVolumes(saved.Record)
	go g.run()
	return g
}

func (h *Host) group(id lockstep.GroupID) *Group {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.groups[id]
}

func (h *Host) groupList() []*Group {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*Group, 0, len(h.groups))
	for _, g := range h.groups {
		list = append(list, g)
	}
	return list
}

// Groups lists the groups this node takes part in.
func (h *Host) Groups() []lockstep.GroupID {
	var ids []lockstep.GroupID
	for _, g := range h.groupList() {
		ids = append(ids, g.id)
	}
	return ids
}

// OnRecord takes a record that was read from the store. atStart: by the first linearizable read
// after the start of the process; rewound: after something newer, which shows a store restored from
// an older copy.
func (h *Host) OnRecord(r protocol.Record, atStart, rewound bool) error {
	g := h.group(r.Group)
	if g == nil {
		ours := false
		for _, m := range r.Members {
			for _, rep := range m.Replicas {
				ours = ours || rep.Node == h.cfg.Node
			}
		}
		// One that left, and has forgotten the group, must say so before its tombstone can go.
		if untold := slices.Contains(r.Untold, h.cfg.Node); !untold && (!ours || r.State == protocol.StateDeleted) {
			return nil
		}
		saved, err := h.loadGroup(r.Group)
		if err != nil {
			return err
		}
		g = h.startGroup(r.Group, saved)
	}
	g.post(protocol.RecordRead{Record: r, FromStore: true, AtStart: atStart, Rewound: rewound})
	return nil
}

// OnRecordGone: the store has no record of the group any more. If the tombstone was persisted
// here, the group is forgotten; otherwise its volumes are quarantined.
func (h *Host) OnRecordGone(id lockstep.GroupID) error {
	g := h.group(id)
	if g == nil {
		return nil
	}
	g.mu.Lock()
	view := g.view
	g.mu.Unlock()
	if view.Saved.Record.State != protocol.StateDeleted && len(g.members(view.Saved.Record)) > 0 {
		g.post(protocol.RecordMissing{})
		return nil
	}
	g.stop()
	<-g.done
	h.mu.Lock()
	delete(h.groups, id)
	h.mu.Unlock()
	if err := h.pool.DeleteGroup(id); err != nil {
		return fmt.Errorf("forget group %s: %w", id, err)
	}
	return nil
}

// View gives a group's view, and whether the node knows the group.
func (h *Host) View(id lockstep.GroupID) (View, bool) {
	g := h.group(id)
	if g == nil {
		return View{}, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.view, true
}

// Serve accepts replication links until ctx ends, or the listener is closed.
func (h *Host) Serve(ctx context.Context, ln net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := listen.Accept(ctx, ln, h.log)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept replication link: %w", err)
		}
		conns.Go(func() {
			defer conn.Close()
			if err := h.serveConn(ctx, conn); err != nil && ctx.Err() == nil {
				h.log.Debug("incoming link ended", "from", conn.RemoteAddr(), "err", err)
			}
		})
	}
}

func (h *Host) serveConn(ctx context.Context, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer context.AfterFunc(h.ctx, func() { _ = conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	link, from, err := h.accepted(ctx, conn)
	if err != nil {
		return err
	}
	var hello wire.Hello
	if _, err := wire.ReadJSON(link, wire.KindHello, &hello); err != nil {
		return h.misunderstood(err, conn)
	}
	refuse := func(format string, args ...any) error {
		text := fmt.Sprintf(format, args...)
		answer := wire.HelloReply{Error: text, Node: h.cfg.Node, Session: hello.Session}
		return errors.Join(errors.New(text), wire.WriteJSON(link, wire.Header{Kind: wire.KindHelloReply, Session: hello.Session}, answer))
	}
	switch {
	case h.cfg.TLS != nil && hello.From != from:
		err := h.noteRefusal(h.impostor(hello.From, from), "from", conn.RemoteAddr())
		return refuse("%v", err)
	case hello.Cluster != h.cfg.Cluster:
		return refuse("cluster %q, this node belongs to %q", hello.Cluster, h.cfg.Cluster)
	case hello.To != h.cfg.Node:
		return refuse("this is node %s, not %s", h.cfg.Node, hello.To)
	case hello.Purpose == wire.PurposeHeartbeat:
		return h.serveHeartbeats(link, hello)
	case hello.Purpose != wire.PurposeGroup:
		return refuse("unknown purpose %q", hello.Purpose)
	}
	g := h.group(hello.Group)
	if g == nil {
		return refuse("group %s is not known here yet", hello.Group)
	}
	return g.in.serve(ctx, link, hello)
}

// Package node is the storage daemon of one host: it turns the desired state of the store into
// volumes, replicas and NBD exports, replicates to its peers, and reports what it observes. What
// it decides about epochs it leaves to packages protocol and replica.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk"
	"github.com/lockstep-dr/lockstep/internal/peertls"
	"github.com/lockstep-dr/lockstep/lease"
	"github.com/lockstep-dr/lockstep/nbd"
	"github.com/lockstep-dr/lockstep/replica"
	"github.com/lockstep-dr/lockstep/store"
)

// presenceTTL is how long the store believes in a node that has gone silent.
const presenceTTL = 3 * time.Second

// Node is a running daemon.
type Node struct {
	cfg   Config
	log   *slog.Logger
	st    store.Store
	pool  *disk.Pool
	host  *replica.Host
	self  store.Node
	tls   *peertls.Keeper // of links; nil: they are plain
	peers *peers
	vols  *volumes
	// unchecked: the store was away when the directory should have been checked; owned by register.
	unchecked bool
	// checked is closed when the directory is known to be no older copy. Before that no record that was
	// read counts as fresh, and nothing is said to the store.
	checked chan struct{}
	// earlier is store.Node.Earlier, as it was found in the store; owned by register.
	earlier map[string]uint64
	report
	verifies verifies
}

// RunOn is Run on a store that is open already; it does not close it.
func RunOn(ctx context.Context, cfg Config, st store.Store, log *slog.Logger) (err error) {
	cfg = cfg.WithDefaults()
	if cfg.Machine.Listen == nil {
		cfg.Machine.Listen = cfg.listenLinks
	}
	if cfg.Machine.Dial == nil {
		cfg.Machine.Dial = cfg.dialLink
	}
	n := &Node{cfg: cfg, log: log, st: st, checked: make(chan struct{})}
	if n.pool, err = disk.OpenPool(cfg.Pool, disk.Options{Logger: log, BootIDPath: cfg.BootIDPath, FS: cfg.fs, MaxIntentBytes: cfg.IntentLimitMiB << 20}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.pool.Close()) }()
	boot, err := n.pool.BootID()
	if err != nil {
		return err
	}
	secure, err := cfg.openTLS(log)
	if err != nil {
		return err
	}
	if n.peers, err = loadPeers(cfg.fs, filepath.Join(cfg.Pool, peersFile), log); err != nil {
		return err
	}
	cluster, err := n.peers.waitCluster(ctx, st)
	if err != nil {
		return quiet(ctx, err)
	}
	if err := n.checkDirectory(ctx); err != nil {
		return err
	}
	n.report.init(n)
	n.tls = secure
	n.host, err = replica.NewHost(replica.Config{
		Node: cfg.ID, AZ: cfg.AZ, Cluster: cluster, BootID: boot, Instance: n.pool.InstanceID(), Start: n.pool.StartCounter(), Software: cfg.Version,
		TripAfter: cfg.TripAfter, LeaseTTL: cfg.LeaseTTL, LeaseMargin: cfg.LeaseMargin, Heartbeat: cfg.Heartbeat, FlushEvery: cfg.FlushEvery, IntentLimitBytes: cfg.IntentLimitMiB << 20, KeepMarks: keepMarks,
		VerifyRateBytes: cfg.VerifyRateMiB << 20, ResyncLimitBytes: cfg.ResyncLimitMiB << 20,
		Store: &records{st: st, checked: n.checked}, Resolve: n.peers.resolve, Changed: n.report.changed, Log: log,
		TLS: secure, Dial: cfg.Machine.Dial, Clock: cfg.Machine.Clock,
	}, n.pool)
	if err != nil {
		return err
	}
	n.vols = newVolumes(n)
	n.verifies.init(n)
	if cfg.started != nil {
		cfg.started(n)
	}
	return errors.Join(n.serve(ctx, boot), n.host.Close())
}

// serve opens the listeners and runs everything that goes on until ctx ends.
func (n *Node) serve(ctx context.Context, boot lockstep.BootID) error {
	repl, err := n.cfg.Machine.Listen(n.cfg.Replicate)
	if err != nil {
		return fmt.Errorf("listen for replication: %w", err)
	}
	defer repl.Close()
	n.self = store.Node{
		ID: n.cfg.ID, AZ: n.cfg.AZ, Replicate: n.cfg.Advertise, NBDSocket: n.cfg.NBDSocket, Instance: n.pool.InstanceID(),
		Start: n.pool.StartCounter(), BootID: boot, Version: n.cfg.Version,
	}
	if n.self.Replicate == "" {
		n.self.Replicate = repl.Addr().String()
	}
	reg, health := newMetrics(n)
	reg.MustRegister(linkCollector{n})
	server := &nbd.Server{
		Exports: exports{n}, Logger: n.log, Metrics: nbd.NewPrometheusMetrics(reg),
		Limits: nbd.Limits{Memory: n.cfg.NBDMemoryMiB << 20},
	}
	listeners, err := n.listenNBD()
	if err != nil {
		return err
	}
	eg, ctx := errgroup.WithContext(ctx)
	for _, ln := range listeners {
		eg.Go(func() error { return server.Serve(context.WithoutCancel(ctx), ln) })
	}
	eg.Go(func() error { // clients' requests under way are answered before the listeners' contexts end
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		// What waits for a secondary or for the end of a trip would wait for ever.
		defer context.AfterFunc(sctx, n.host.Release)()
		if err := server.Shutdown(sctx); err != nil {
			n.log.Warn("clients were cut off", "err", err)
		}
		return nil
	})
	eg.Go(func() error { return n.host.Serve(ctx, repl) })
	eg.Go(func() error { return n.register(ctx) })
	eg.Go(func() error {
		return quiet(ctx, lease.Presence{Logger: n.log}.Run(ctx, n.st, "node", string(n.cfg.ID), presenceTTL, store.Presence{Node: n.cfg.ID, Start: n.self.Start, Since: time.Now().UTC()}))
	})
	eg.Go(func() error { return quiet(ctx, n.peers.follow(ctx, n.st)) })
	eg.Go(func() error { return n.vols.run(ctx) })
	eg.Go(func() error { return quiet(ctx, n.followRecords(ctx)) })
	eg.Go(func() error { n.report.run(ctx); return nil })
	eg.Go(func() error { return quiet(ctx, n.verifies.follow(ctx)) })
	eg.Go(func() error { return quiet(ctx, n.followLimits(ctx)) })
	eg.Go(func() error { n.verifies.run(ctx); return nil })
	eg.Go(func() error { n.report.followRecovery(ctx); return nil })
	if n.cfg.Metrics != "" {
		eg.Go(func() error { return serveMetrics(ctx, n.cfg.Metrics, health) })
	}
	n.log.Info("node started", "az", n.cfg.AZ, "replicate", n.self.Replicate, "tls", n.tls != nil, "nbd", n.cfg.NBDSocket, "boot", boot, "start", n.self.Start)
	err = eg.Wait()
	n.log.Info("node stops", "err", err)
	return err
}

// quiet makes the end of ctx no error.
func quiet(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (n *Node) listenNBD() ([]net.Listener, error) {
	var lns []net.Listener
	if path := n.cfg.NBDSocket; path != "" {
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("nbd socket %s: another process listens on it", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("remove the stale nbd socket: %w", err)
		}
		ln, err := net.Listen("unix", path)
		if err != nil {
			return nil, fmt.Errorf("listen for NBD: %w", err)
		}
		if err := os.Chmod(path, 0o660); err != nil { //nolint:gosec // the group may attach disks
			return nil, errors.Join(fmt.Errorf("set permissions of the NBD socket: %w", err), ln.Close())
		}
		lns = append(lns, ln)
	}
	if n.cfg.NBDAddress != "" {
		ln, err := net.Listen("tcp", n.cfg.NBDAddress)
		if err != nil {
			for _, l := range lns {
				_ = l.Close()
			}
			return nil, fmt.Errorf("listen for NBD: %w", err)
		}
		lns = append(lns, ln)
	}
	for _, ln := range lns {
		if ln.Addr().Network() == "tcp" {
			n.self.NBDAddress = ln.Addr().String()
		}
	}
	return lns, nil
}

// checkDirectory compares the pool with what the store knows of this node: a directory restored
// from an older copy, or used by another node before, gets a new instance id, so that it is
// compared in full before it counts as anything.
func (n *Node) checkDirectory(ctx context.Context) error {
	moved, err := n.peers.movedTo(n.cfg.hostID)
	if err != nil {
		return err
	}
	known, _, err := store.GetT[store.Node](ctx, n.st, store.KeyNode(n.cfg.ID))
	switch {
	case errors.Is(err, lockstep.ErrNotFound), errors.Is(err, lockstep.ErrStoreUnavailable):
		// A store that is away cannot be asked; register asks before it overwrites the evidence.
		n.unchecked = errors.Is(err, lockstep.ErrStoreUnavailable)
		known.Start = 0
	case err != nil:
		return err
	case known.AZ != n.cfg.AZ:
		return fmt.Errorf("node %s is registered in %s, the configuration says %s: use another id", n.cfg.ID, known.AZ, n.cfg.AZ)
	case n.isOlder(known):
		n.log.Warn("the pool directory is an older copy; it gets a new instance id", "start", n.pool.StartCounter(), "known", known.Start)
		moved = true
	case n.countsAnew(known):
		n.log.Warn("the pool directory is another one than the store knows; its starts are counted on", "start", n.pool.StartCounter(), "known", known.Start)
		if err := n.pool.CountOn(known.Start + 1); err != nil {
			return err
		}
	}
	if moved {
		if err := n.pool.RenewInstance(known.Start + 1); err != nil {
			return err
		}
	}
	if !n.unchecked {
		n.settleEarlier(known)
		close(n.checked)
	}
	return n.peers.settled(n.cfg.hostID)
}

// isOlder: the store knows a start of this very directory that the directory does not remember.
func (n *Node) isOlder(known store.Node) bool {
	last := known.Earlier[n.pool.InstanceID()] // another directory was used meanwhile
	if known.Instance == n.pool.InstanceID() {
		last = known.Start
	}
	return last > n.peers.registered() || last != 0 && last >= n.pool.StartCounter()
}

// settleEarlier keeps what the store knows of the node's other directories.
func (n *Node) settleEarlier(known store.Node) {
	n.earlier = map[string]uint64{}
	maps.Copy(n.earlier, known.Earlier)
	if known.Instance != "" {
		n.earlier[known.Instance] = known.Start
	}
	delete(n.earlier, n.pool.InstanceID())
}

// countsAnew: the directory has counted fewer starts than the store knows of this node. The secondaries
// may have answered later sessions than those it would begin, and would refuse it for ever [F8].
func (n *Node) countsAnew(known store.Node) bool { return known.Start >= n.pool.StartCounter() }

// checkLate is checkDirectory for a node that started while the store was away. It has served by now, if
// at all, only what its secondaries agreed to, and has said nothing to the store; if its directory is an
// older copy it must start again as a stranger.
func (n *Node) checkLate(ctx context.Context) error {
	known, _, err := store.GetT[store.Node](ctx, n.st, store.KeyNode(n.cfg.ID))
	switch {
	case err == nil && (n.isOlder(known) || n.countsAnew(known)):
		return fmt.Errorf("the pool directory is an older copy, or another one (start %d, the store knows %d): the node must be started again, with the store in reach", n.pool.StartCounter(), known.Start)
	case err == nil, errors.Is(err, lockstep.ErrNotFound):
		n.unchecked = false
		n.settleEarlier(known)
		close(n.checked)
		return nil
	}
	n.log.Warn("check of the pool directory", "err", err)
	return nil
}

// register keeps nodes/<id> current.
func (n *Node) register(ctx context.Context) error {
	var last store.Node
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	for {
		if n.unchecked {
			if err := n.checkLate(ctx); err != nil {
				return err
			}
		}
		self := n.self
		total, free, err := n.pool.Space()
		if err != nil {
			n.log.Warn("free space", "err", err)
		}
		self.TotalBytes, self.FreeBytes, self.Earlier = total, free, n.earlier
		moved := self.FreeBytes - last.FreeBytes
		if !n.unchecked && (last.ID == "" || moved > 64<<20 || moved < -64<<20) {
			if err := n.peers.registering(self.Start); err != nil {
				return err
			}
			self.UpdatedAt = time.Now().UTC()
			if err := store.PutOwn(ctx, n.st, store.KeyNode(n.cfg.ID), self); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				n.log.Warn("register", "err", err)
			} else {
				last = self
			}
		}
		wait := ticker.C
		if last.ID == "" {
			select {
			case <-time.After(300 * time.Millisecond):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil
		}
	}
}

// Volume gives a volume as an NBD client would get it, or says why it is not served here.
func (n *Node) Volume(id lockstep.VolumeID) (*replica.Volume, error) {
	if _, err := (exports{n}).Open(context.Background(), string(id)); err != nil {
		return nil, err
	}
	return n.host.Volume(id), nil
}

// View gives this node's view of a group, and whether it knows the group.
func (n *Node) View(id lockstep.GroupID) (replica.View, bool) { return n.host.View(id) }

// VolumeFailed is the error that ended the service of a volume on this node; nil: none.
func (n *Node) VolumeFailed(id lockstep.VolumeID) error {
	if v := n.host.Volume(id); v != nil {
		return v.Failed()
	}
	return nil
}

package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// report writes observed/group/<group>/<node>: at once when a group's view changes, and every
// second while numbers move. Nothing is decided from it but statuses for people.
type report struct {
	n    *Node
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	dirty map[lockstep.GroupID]bool // guarded by mu

	recovery string // guarded by mu: the recovery that is answered; empty: none
}

// followRecovery answers recoveries of the store from when the first list was read on: an older one
// was answered, or has failed.
func (r *report) followRecovery(ctx context.Context) {
	synced := false
	_ = store.Follow(ctx, r.n.st, store.KeyRecovery, func(batch []store.Change[store.Recovery]) { // it returns only when ctx ends
		for _, c := range batch {
			switch {
			case c.Kind == store.ChangeSynced:
				synced = true
			case c.Kind == store.ChangePut && synced:
				r.mu.Lock()
				r.recovery = c.Value.ID
				r.mu.Unlock()
				for _, id := range r.n.host.Groups() {
					r.changed(id)
				}
			}
		}
	})
}

func (r *report) init(n *Node) {
	r.n, r.wake, r.dirty = n, make(chan struct{}, 1), map[lockstep.GroupID]bool{}
}

// changed notes that a group's view changed; it does not block.
func (r *report) changed(g lockstep.GroupID) {
	r.mu.Lock()
	r.dirty[g] = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *report) run(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	told := map[lockstep.GroupID]string{}
	for {
		var ids []lockstep.GroupID
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			ids = r.n.host.Groups()
		case <-r.wake:
			r.mu.Lock()
			for id := range r.dirty {
				ids = append(ids, id)
			}
			clear(r.dirty)
			r.mu.Unlock()
		}
		r.mu.Lock()
		recovery := r.recovery
		r.mu.Unlock()
		for _, id := range ids {
			o, ok := r.n.host.ObserveSaved(id, recovery)
			if !ok {
				continue
			}
			at := o.At
			o.At = time.Time{}
			text := string(store.Encode(o))
			if told[id] == text {
				continue
			}
			o.At = at
			cctx, cancel := context.WithTimeout(ctx, callTimeout)
			err := store.PutOwn(cctx, r.n.st, store.KeyObservedGroup(id, r.n.cfg.ID), o)
			cancel()
			if err != nil {
				if ctx.Err() == nil {
					r.n.log.Debug("report group", "group", id, "err", err)
				}
				continue
			}
			told[id] = text
		}
	}
}

// newMetrics registers the node's own figures; the NBD server adds its own.
func newMetrics(n *Node) (*prometheus.Registry, http.Handler) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), groupCollector{n})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n")) // the client is gone if this fails
	})
	return reg, mux
}

var (
	descEpoch    = prometheus.NewDesc("lockstep_group_epoch", "Epoch persisted on this node.", []string{"group", "role", "mode"}, nil)
	descDirty    = prometheus.NewDesc("lockstep_volume_dirty_bytes", "Bytes known to differ from the peer.", []string{"group", "volume"}, nil)
	descToSend   = prometheus.NewDesc("lockstep_volume_to_send_bytes", "Bytes a running synchronization has still to send.", []string{"group", "volume"}, nil)
	descResync   = prometheus.NewDesc("lockstep_group_resync_bytes_per_second", "What a running synchronization gets done, of the last ten seconds.", []string{"group"}, nil)
	descIntent   = prometheus.NewDesc("lockstep_volume_intent_bytes", "Bytes marked in the write-intent log.", []string{"group", "volume"}, nil)
	descFailed   = prometheus.NewDesc("lockstep_volume_failed", "1 if the volume had a permanent error.", []string{"group", "volume"}, nil)
	descVerified = prometheus.NewDesc("lockstep_verify_bytes_total", "Bytes that verifications have compared since the start, holes included.", []string{"group"}, nil)
	descDiffer   = prometheus.NewDesc("lockstep_verify_differences_total", "Differences between the sides that verifications have found since the start.", []string{"group"}, nil)
	descProof    = prometheus.NewDesc("lockstep_verify_last_proof_timestamp_seconds", "When the group was last proven equal, Unix time; 0: never.", []string{"group"}, nil)
	descLink     = prometheus.NewDesc("lockstep_link_up", "1 if the secondary node answers.", []string{"group", "peer"}, nil)
)

// groupCollector reads the groups when it is asked.
type groupCollector struct{ n *Node }

func (groupCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descEpoch, descDirty, descToSend, descResync, descIntent, descFailed, descLink, descVerified, descDiffer, descProof} {
		ch <- d
	}
}

func (c groupCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	bit := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, id := range c.n.host.Groups() {
		o, ok := c.n.host.Observe(id)
		if !ok {
			continue
		}
		gauge(descEpoch, float64(o.Epoch), string(id), o.Role, o.Mode)
		for vol, v := range o.Volumes {
			gauge(descDirty, float64(v.DirtyBytes), string(id), string(vol))
			gauge(descToSend, float64(v.ToSendBytes), string(id), string(vol))
			gauge(descIntent, float64(v.IntentBytes), string(id), string(vol))
			gauge(descFailed, bit(v.Failed != ""), string(id), string(vol))
		}
		if o.Role == "primary" {
			gauge(descResync, float64(o.ResyncRate), string(id))
			bytes, differences := c.n.host.VerifyTotals(id)
			ch <- prometheus.MustNewConstMetric(descVerified, prometheus.CounterValue, float64(bytes), string(id))
			ch <- prometheus.MustNewConstMetric(descDiffer, prometheus.CounterValue, float64(differences), string(id))
			proof := 0.0
			if at := c.n.verifies.lastProof(id); !at.IsZero() {
				proof = float64(at.UnixMilli()) / 1000
			}
			gauge(descProof, proof, string(id))
		}
		for peer, p := range o.Peers {
			gauge(descLink, bit(p.Connected), string(id), string(peer))
		}
	}
}

func serveMetrics(ctx context.Context, addr string, h http.Handler) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

package nbd

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics observes the server. Its methods and those of ExportMetrics are called on the path of
// requests from many goroutines: they must not block.
type Metrics interface {
	// Export returns the observer of one export. It is called once per connection.
	Export(name string) ExportMetrics
}

// ExportMetrics observes the requests to one export.
type ExportMetrics interface {
	// Connected counts connections in transmission: +1 at the start, -1 at the end.
	Connected(delta int)
	// Begin is called when a request, with its data, has been read. cmd is a Cmd number; for an
	// unknown command it is CmdUnknown.
	Begin(cmd uint16)
	// End is called when its reply is ready. bytes is the data read or written, zero on error;
	// errno is zero on success; took is the time since Begin.
	End(cmd uint16, bytes int, errno Errno, took time.Duration)
}

// CmdUnknown stands for all command numbers that the protocol does not define.
const CmdUnknown = 8

var commandNames = [CmdUnknown + 1]string{"read", "write", "disc", "flush", "trim", "cache", "write_zeroes", "block_status", "unknown"}

// PrometheusMetrics is Metrics as Prometheus collectors, labelled by volume and op.
type PrometheusMetrics struct {
	requests, bytes, errs *prometheus.CounterVec
	inflight, connections *prometheus.GaugeVec
	seconds               *prometheus.HistogramVec
}

// NewPrometheusMetrics creates the collectors and registers them. It panics if they are registered
// already, as prometheus.MustRegister does.
func NewPrometheusMetrics(reg prometheus.Registerer) *PrometheusMetrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "lockstep", Subsystem: "nbd", Name: name, Help: help}, []string{"volume", "op"})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "lockstep", Subsystem: "nbd", Name: name, Help: help}, []string{"volume"})
	}
	m := &PrometheusMetrics{
		requests:    counter("requests_total", "Requests answered."),
		bytes:       counter("bytes_total", "Data bytes of reads and writes that succeeded."),
		errs:        counter("errors_total", "Requests answered with an error."),
		inflight:    gauge("inflight_requests", "Requests read and not yet answered."),
		connections: gauge("connections", "Clients connected."),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "lockstep", Subsystem: "nbd", Name: "request_seconds", Help: "Time from the request to its reply.",
			Buckets: prometheus.ExponentialBuckets(16e-6, 4, 10), // 16 µs to 4 s
		}, []string{"volume", "op"}),
	}
	reg.MustRegister(m.requests, m.bytes, m.errs, m.inflight, m.connections, m.seconds)
	return m
}

// Export resolves the series of a volume once, so that counting a request takes no look-up.
func (m *PrometheusMetrics) Export(volume string) ExportMetrics {
	e := &exportSeries{inflight: m.inflight.WithLabelValues(volume), connections: m.connections.WithLabelValues(volume)}
	for cmd, op := range commandNames {
		if cmd == CmdDisc {
			continue // has no reply
		}
		e.requests[cmd] = m.requests.WithLabelValues(volume, op)
		e.bytes[cmd] = m.bytes.WithLabelValues(volume, op)
		e.errs[cmd] = m.errs.WithLabelValues(volume, op)
		e.seconds[cmd] = m.seconds.WithLabelValues(volume, op)
	}
	return e
}

// Forget removes the series of a volume that was deleted.
func (m *PrometheusMetrics) Forget(volume string) {
	match := prometheus.Labels{"volume": volume}
	m.requests.DeletePartialMatch(match)
	m.bytes.DeletePartialMatch(match)
	m.errs.DeletePartialMatch(match)
	m.inflight.DeletePartialMatch(match)
	m.connections.DeletePartialMatch(match)
	m.seconds.DeletePartialMatch(match)
}

type exportSeries struct {
	requests, bytes, errs [CmdUnknown + 1]prometheus.Counter
	seconds               [CmdUnknown + 1]prometheus.Observer
	inflight, connections prometheus.Gauge
}

func (e *exportSeries) Connected(delta int) { e.connections.Add(float64(delta)) }

func (e *exportSeries) Begin(uint16) { e.inflight.Inc() }

func (e *exportSeries) End(cmd uint16, bytes int, errno Errno, took time.Duration) {
	e.inflight.Dec()
	e.requests[cmd].Inc()
	e.bytes[cmd].Add(float64(bytes))
	if errno != 0 {
		e.errs[cmd].Inc()
	}
	e.seconds[cmd].Observe(took.Seconds())
}

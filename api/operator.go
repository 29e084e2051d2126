package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/store"
)

// readyTimeout bounds the look at the store.
const readyTimeout = 2 * time.Second

func isOperatorPath(path string) bool {
	return path == "/metrics" || path == "/healthz" || path == "/readyz"
}

// operatorRoutes need no token; they tell nothing about projects.
func (s *server) operatorRoutes() []rest.Route {
	prom := promhttp.HandlerFor(s.cfg.Registry, promhttp.HandlerOpts{})
	open := policy.Open("tells nothing about projects")
	return []rest.Route{
		{Method: http.MethodGet, Path: "/metrics", Rule: open, Handle: func(w http.ResponseWriter, r *rest.Request) error {
			prom.ServeHTTP(w, r.Request)
			return nil
		}},
		{Method: http.MethodGet, Path: "/healthz", Rule: open, Handle: func(w http.ResponseWriter, _ *rest.Request) error {
			return rest.WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
		}},
		{Method: http.MethodGet, Path: "/readyz", Rule: open, Handle: s.ready},
	}
}

// ready answers 200 if the store answers a linearizable read, else 503.
func (s *server) ready(w http.ResponseWriter, r *rest.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	if _, err := s.cfg.Store.Get(ctx, store.KeyCluster); err != nil && !errors.Is(err, lockstep.ErrNotFound) {
		return err
	}
	return rest.WriteJSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge

	auditLines, auditFailures prometheus.Counter
}

func newMetrics(reg *prometheus.Registry) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_api_requests_total", Help: "Answers of the API by method, route and status code.",
		}, []string{"method", "route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lockstep_api_request_seconds", Help: "Time from a request's headers to its answer.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60},
		}, []string{"method", "route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_api_requests_in_flight", Help: "Requests that are being answered.",
		}),
	}
	m.auditLines = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "lockstep_audit_lines_total", Help: "Lines written to the audit log.",
	})
	m.auditFailures = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "lockstep_audit_failures_total", Help: "Lines that the audit log lacks, because they could not be written.",
	})
	reg.MustRegister(m.requests, m.seconds, m.inFlight, m.auditLines, m.auditFailures)
	return m
}

// observe counts an answer. Labels are bounded: known methods, routes' patterns, status codes.
func (m *metrics) observe(method, route string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		method = "other"
	}
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(method, route).Observe(took.Seconds())
}

// Package api is the REST front: the replication calls of EVS, the block storage calls of Cinder
// and the part of Keystone that their clients need, on one listener. It is thin: it reads requests,
// asks package control, and writes answers; the words of the vendor's API live below this package
// and nowhere else. It never changes a record itself, except those of users and tokens.
package api

import (
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-dr/lockstep/api/audit"
	"github.com/lockstep-dr/lockstep/api/cinder"
	"github.com/lockstep-dr/lockstep/api/evs"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

// Config of the API.
type Config struct {
	Service  control.Service
	Store    store.Store // asked by /readyz only
	Identity *identity.Service
	// Region is the region's name; "" is the one of Identity. It must not differ from that.
	Region string
	// Policy is what the deployment chose of the roles.
	Policy policy.Policy
	// PublicURL is what clients reach the API under, without a path; it goes into links and the
	// catalog. "": whatever host the request names, with http or, on TLS connections, https.
	PublicURL string
	Logger    *slog.Logger         // nil: no log
	Audit     *audit.Log           // nil: none but the log's lines
	Registry  *prometheus.Registry // nil: a new one; /metrics serves it
}

type server struct {
	cfg     Config
	log     *slog.Logger
	mux     *http.ServeMux
	metrics *metrics
}

// New makes the handler of the whole API. It panics on a Config without Service, Store or
// Identity, which is a mistake of the caller, and on a route without a sound rule.
func New(cfg Config) http.Handler {
	if cfg.Service == nil || cfg.Store == nil || cfg.Identity == nil {
		panic("api.New: Service, Store and Identity are needed")
	}
	if cfg.Region == "" {
		cfg.Region = cfg.Identity.Region()
	}
	if cfg.Region != cfg.Identity.Region() {
		panic("api.New: Region differs from the catalog's")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	cfg.PublicURL = strings.TrimRight(cfg.PublicURL, "/")
	s := &server{cfg: cfg, log: cfg.Logger, mux: http.NewServeMux(), metrics: newMetrics(cfg.Registry)}
	s.add(s.routes())
	return s
}

// routes are all calls of the API.
func (s *server) routes() []rest.Route {
	return slices.Concat(versionRoutes(), s.cfg.Identity.Routes(), cinder.Routes(s.cfg.Service), evs.Routes(s.cfg.Service), s.operatorRoutes())
}

func (s *server) add(routes []rest.Route) {
	for _, rt := range routes {
		if err := rt.Rule.Check(rt.Method, rt.Path); err != nil {
			panic("api.New: the rule of " + rt.Method + " " + rt.Path + ": " + err.Error())
		}
		s.mux.Handle(rt.Method+" "+rt.Path, s.route(rt))
	}
}

// Times that bound a connection; the header times are what keeps slow clients from holding it.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = time.Minute
	// writeTimeout leaves room for calls that answer when they are done: extend and stop.
	writeTimeout   = 5 * time.Minute
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 64 << 10
)

// NewHTTPServer is an http.Server for the API with bounds on time and size of requests. The
// caller listens, serves and shuts it down.
func NewHTTPServer(addr string, h http.Handler, logger *slog.Logger) *http.Server {
	srv := &http.Server{
		Addr: addr, Handler: h,
		ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout,
		WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		DisableGeneralOptionsHandler: true, // `OPTIONS *` gets an answer of ours: net/http's has no request id
	}
	if logger != nil {
		srv.ErrorLog = slog.NewLogLogger(logger.Handler(), slog.LevelWarn)
	}
	return srv
}

// ServeHTTP gives the request its id, routes it, and logs and counts the answer.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	req := &rest.Request{Request: r, ID: newRequestID(), Base: s.base(r)}
	rec := &recorder{ResponseWriter: w}
	rec.Header().Set("X-Openstack-Request-Id", req.ID)
	rec.Header().Set("X-Request-Id", req.ID)
	s.metrics.inFlight.Inc()
	defer func() {
		s.metrics.inFlight.Dec()
		if p := recover(); p != nil {
			s.panicked(rec, req, p)
		}
		s.done(rec, req, time.Since(start))
	}()
	s.serve(rec, req)
}

// serve routes the request. A slash at the path's end makes no difference.
func (s *server) serve(w *recorder, req *rest.Request) {
	r := req.Request
	if r.ContentLength > rest.MaxBodyBytes {
		s.fail(w, req, &rest.Error{
			Status: http.StatusRequestEntityTooLarge, Message: "the request body is larger than 1048576 bytes",
		})
		return
	}
	if r.Body != nil {
		r.Body = http.MaxBytesReader(w, r.Body, rest.MaxBodyBytes)
	}
	trimmed := r.URL.Path
	if len(trimmed) > 1 {
		trimmed = strings.TrimSuffix(trimmed, "/")
	}
	if !strings.HasPrefix(trimmed, "/") || path.Clean(trimmed) != trimmed {
		s.fail(w, req, rest.NotFound("there is nothing at this path"))
		return
	}
	if trimmed != r.URL.Path {
		u := *r.URL
		u.Path, u.RawPath = trimmed, strings.TrimSuffix(r.URL.RawPath, "/")
		r = r.Clone(r.Context())
		r.URL = &u
		req.Request = r
	}
	if !isOperatorPath(r.URL.Path) && !acceptsJSON(r.Header.Values("Accept")) {
		s.fail(w, req, &rest.Error{Status: http.StatusNotAcceptable, Message: "answers come as application/json only"})
		return
	}
	if !isOperatorPath(r.URL.Path) { // a scraper may name a key twice
		if err := checkQuery(r.URL.RawQuery); err != nil {
			s.fail(w, req, err)
			return
		}
	}
	if h, pattern := s.mux.Handler(r); pattern == "" {
		s.noRoute(w, req, h)
		return
	}
	w.req = req
	s.mux.ServeHTTP(w, r)
}

// checkQuery refuses what handlers would read as less than was sent: a parameter that cannot be
// decoded is dropped by net/url, and of one that is given twice the second is not looked at.
func checkQuery(raw string) error {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return rest.BadRequest("the query cannot be read: %.80s", err.Error())
	}
	for key, values := range q {
		if len(values) > 1 {
			return rest.BadRequest("the query parameter %.80q is given %d times", key, len(values))
		}
	}
	return nil
}

// route is the handler of one call: its rule, microversion, then the call itself.
func (s *server) route(rt rest.Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec, ok := w.(*recorder)
		if !ok || rec.req == nil {
			panic("api: a route was called without its server")
		}
		req := rec.req
		req.Request = r
		err := s.call(w, req, rt)
		if err != nil {
			s.fail(rec, req, err)
		}
	})
}

func (s *server) call(w http.ResponseWriter, req *rest.Request, rt rest.Route) error {
	if err := s.admit(req, rt.Rule); err != nil {
		return err
	}
	if rt.Rule.Scope == policy.ScopeProject {
		if err := negotiate(w, req); err != nil {
			return err
		}
		if id := req.PathValue("id"); len(id) > rest.MaxNameBytes || strings.ContainsAny(id, "/\x00") {
			return rest.NotFound("there is no resource with this id")
		}
	}
	return rt.Handle(w, req)
}

// noRoute answers what the router would have answered in plain text: 405 with Allow, or 404.
func (s *server) noRoute(w *recorder, req *rest.Request, h http.Handler) {
	probe := &discard{header: http.Header{}}
	h.ServeHTTP(probe, req.Request)
	if probe.status == http.StatusMethodNotAllowed {
		allow := probe.header.Get("Allow")
		s.fail(w, req, &rest.Error{
			Status:  http.StatusMethodNotAllowed,
			Message: "method " + clip(req.Method) + " is not allowed here; allowed are " + allow,
			Header:  http.Header{"Allow": {allow}},
		})
		return
	}
	s.fail(w, req, rest.NotFound("there is nothing at this path"))
}

// fail answers an error; what the answer does not tell goes to the log.
func (s *server) fail(w *recorder, req *rest.Request, err error) {
	f := faultOf(err)
	w.code = f.code
	if f.hidden {
		level := slog.LevelWarn
		if f.status == http.StatusInternalServerError {
			level = slog.LevelError
		}
		var domain *control.Error
		if errors.As(err, &domain) && domain.Cause != nil {
			err = domain.Cause
		}
		s.log.Log(req.Context(), level, "request failed", "request_id", req.ID, "method", clip(req.Method),
			"path", req.URL.Path, "status", f.status, "error", err)
	}
	if w.status != 0 {
		return // the handler's answer is on its way already
	}
	for k, v := range f.header {
		w.Header()[k] = v
	}
	if f.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Keystone uri='"+req.Base+identity.Prefix+"/v3'")
	}
	if err := rest.WriteJSON(w, f.status, f.body(req.URL.Path)); err != nil {
		s.log.Error("answer could not be encoded", "request_id", req.ID, "error", err)
	}
}

var errPanic = errors.New("panic in a handler")

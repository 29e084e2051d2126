package api

import (
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

func newRequestID() string { return "req-" + uuid.NewString() }

// base is the public URL for links.
func (s *server) base(r *http.Request) string {
	if s.cfg.PublicURL != "" {
		return s.cfg.PublicURL
	}
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

func (s *server) caller(req *rest.Request, t *identity.Token) control.Caller {
	c := control.Caller{
		User: t.UserID, RequestID: req.ID, Admin: t.Admin(), Operator: s.cfg.Policy.Admits(t.Roles, policy.Operator),
	}
	if t.Project != nil {
		c.Project = lockstep.ProjectID(t.Project.ID)
	}
	return c
}

// recorder notes what was answered.
type recorder struct {
	http.ResponseWriter
	req    *rest.Request // set once the request has a route
	status int           // 0: nothing written yet
	code   string        // the vendor's code of an error
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// discard takes the router's own answer, of which only status and headers are wanted.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

// panicked turns a panic of a handler into a 500; the server goes on.
func (s *server) panicked(w *recorder, req *rest.Request, p any) {
	s.log.Error("panic in a handler", "request_id", req.ID, "method", clip(req.Method), "path", req.URL.Path,
		"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	s.fail(w, req, errPanic)
}

// done logs and counts an answer.
func (s *server) done(w *recorder, req *rest.Request, took time.Duration) {
	route := "none"
	if w.req != nil && req.Pattern != "" {
		_, route, _ = strings.Cut(req.Pattern, " ")
	}
	s.metrics.observe(req.Method, route, w.status, took)
	s.audit(w, req, route)
	level := slog.LevelInfo
	if isOperatorPath(req.URL.Path) {
		level = slog.LevelDebug // asked every few seconds
	}
	s.log.Log(req.Context(), level, "request", "request_id", req.ID, "method", clip(req.Method),
		"path", req.URL.Path, "query", req.URL.RawQuery, "status", w.status, "bytes", w.bytes,
		"duration", took, "project", string(req.Caller.Project), "user", req.Caller.User, "remote", req.RemoteAddr)
}

// clip bounds a method, which may be any token a client invents.
func clip(method string) string { return method[:min(len(method), 32)] }

// acceptsJSON reports whether the Accept headers admit application/json. None means anything.
func acceptsJSON(headers []string) bool {
	joined := strings.TrimSpace(strings.Join(headers, ","))
	if joined == "" {
		return true
	}
	best, admitted := -1, false // the most specific range decides
	for _, part := range strings.Split(joined, ",") {
		kind, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		specific := -1
		switch kind {
		case "*/*", "*":
			specific = 0
		case "application/*":
			specific = 1
		case "application/json":
			specific = 2
		}
		if specific < best || specific < 0 {
			continue
		}
		q, err := strconv.ParseFloat(params["q"], 64)
		ok := err != nil || q > 0
		if specific > best {
			best, admitted = specific, ok
		} else {
			admitted = admitted || ok
		}
	}
	return admitted
}

package api

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep/api/audit"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/rest"
)

// maxAuditBytes bounds each part of a line that a client chooses.
const maxAuditBytes = rest.MaxNameBytes

func bounded(s string) string { return s[:min(len(s), maxAuditBytes)] }

const loginRoute = identity.Prefix + "/v3/auth/tokens"

// audited is the record of a call; ok is false if the call leaves none: it only looked, and was let.
func audited(w *recorder, req *rest.Request, route string, now time.Time) (rec audit.Record, ok bool) {
	action := map[string]string{
		http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "update", http.MethodDelete: "delete",
	}[req.Method]
	denied := w.status == http.StatusUnauthorized || w.status == http.StatusForbidden
	if w.req == nil || action == "" && !denied {
		return rec, false
	}
	switch {
	case action == "":
		action = "look"
	case route == loginRoute && req.Method == http.MethodPost:
		action = "login"
	case req.Action != "":
		action = req.Action
	case strings.HasSuffix(route, "/action"):
		action = "action" // of which the body did not say which
	}
	result := "taken"
	switch {
	case w.status >= http.StatusInternalServerError:
		result = "failed"
	case w.status >= http.StatusBadRequest:
		result = "refused"
	}
	return audit.Record{
		Time: now.UTC(), RequestID: req.ID, User: req.Caller.User, Project: string(req.Caller.Project), Credential: req.Credential,
		Remote: req.RemoteHost(), Method: clip(req.Method), Route: route, Action: bounded(action), On: pathIDs(req, route),
		Made: req.Made, Result: result, Status: w.status, Code: w.code,
	}, true
}

// pathIDs are the values of the route's wildcards but the project, which the token tells.
func pathIDs(req *rest.Request, route string) map[string]string {
	out := map[string]string{}
	for _, part := range strings.Split(route, "/") {
		name, wild := strings.CutPrefix(part, "{")
		name = strings.TrimSuffix(name, "}")
		if !wild || name == "$" || name == "project_id" && string(req.Caller.Project) == req.PathValue(name) {
			continue
		}
		out[name] = bounded(req.PathValue(name))
	}
	return out
}

// audit keeps the record of a call, in the log and in the audit log. A line that cannot be written does not refuse
// the call, which is over by then: it is counted, and the log has the error and the record.
func (s *server) audit(w *recorder, req *rest.Request, route string) {
	rec, ok := audited(w, req, route, time.Now())
	if !ok {
		return
	}
	s.log.LogAttrs(req.Context(), slog.LevelInfo, "audit",
		slog.String("request_id", rec.RequestID), slog.String("user", rec.User), slog.String("project", rec.Project),
		slog.String("credential", rec.Credential), slog.String("remote", rec.Remote),
		slog.String("action", rec.Action), slog.String("resource", resourceOf(req, route)), slog.String("result", rec.Result), slog.Int("status", rec.Status))
	if s.cfg.Audit == nil {
		return
	}
	if err := s.cfg.Audit.Write(rec); err != nil {
		s.metrics.auditFailures.Inc()
		s.log.Error("the audit log lacks a line", "request_id", rec.RequestID, "error", err)
		return
	}
	s.metrics.auditLines.Inc()
}

// resourceOf is what the path names, below the project, with the id of what was made.
func resourceOf(req *rest.Request, route string) string {
	resource := strings.TrimPrefix(req.URL.Path, "/")
	if strings.Contains(route, "{project_id}") {
		if parts := strings.SplitN(resource, "/", 3); len(parts) == 3 {
			resource = parts[2]
		}
	}
	resource = strings.TrimSuffix(resource, "/action")
	if req.Made != "" {
		resource += "/" + req.Made
	}
	return resource
}

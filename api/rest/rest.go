// Package rest is what the parts of the API share: routes and requests, reading of JSON bodies
// with errors that name the field, lists with filters, sorting and pages, and the writing of
// answers. It never turns an error into a status code: handlers return errors, and package api
// translates them in one place. It knows no resource.
package rest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/lockstep-dr/lockstep/api/policy"
	"github.com/lockstep-dr/lockstep/control"
)

// Error is a refusal by the HTTP layer itself, for statuses that package control has no kind for
// (401, 405, 406, 413) and for bodies and parameters that never reach it (400).
type Error struct {
	Status  int    // HTTP status code
	Code    string // the vendor's code, if there is one
	Message string
	Header  http.Header // set on the answer, may be nil
}

func (e *Error) Error() string {
	if e.Code != "" {
		return e.Code + ": " + e.Message
	}
	return e.Message
}

// BadRequest is a 400 with a text.
func BadRequest(format string, args ...any) error {
	return &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}

// BadRequestCode is a 400 with the vendor's code and a text.
func BadRequestCode(code, format string, args ...any) error {
	return &Error{Status: http.StatusBadRequest, Code: code, Message: fmt.Sprintf(format, args...)}
}

// NotFound is a 404 with a text.
func NotFound(format string, args ...any) error {
	return &Error{Status: http.StatusNotFound, Message: fmt.Sprintf(format, args...)}
}

// Forbidden is a 403 with a text.
func Forbidden(format string, args ...any) error {
	return &Error{Status: http.StatusForbidden, Message: fmt.Sprintf(format, args...)}
}

// NotImplemented is a 501 with a text.
func NotImplemented(format string, args ...any) error {
	return &Error{Status: http.StatusNotImplemented, Message: fmt.Sprintf(format, args...)}
}

// Request is an HTTP request with what the server found out about it.
type Request struct {
	*http.Request
	ID     string         // "req-<uuid>", also in the answer's headers and in the log
	Base   string         // public URL of the API without a slash at its end
	Caller control.Caller // empty where no token is asked for
	// Action and Made are for the audit trail: the action that a body asks for, and the id of what
	// the call made. Handlers set them where the path does not tell.
	Action, Made string
	// Credential is the id of the application credential that the token stems from, if from one.
	Credential string
}

// RemoteHost is the address a request came from, without its port.
func (r *Request) RemoteHost() string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// Handler answers a request, or returns an error and has written nothing.
type Handler func(w http.ResponseWriter, r *Request) error

// Route is one call of the API. Path is a pattern of http.ServeMux without a method and without a
// slash at its end.
type Route struct {
	Method string
	Path   string
	Rule   policy.Rule // who may make the call; a route without one is refused at start
	Handle Handler
}

// WriteJSON answers with a status and a JSON body.
func WriteJSON(w http.ResponseWriter, status int, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client is gone; there is nobody left to tell
	return nil
}

// WriteEmpty answers with a status and no body.
func WriteEmpty(w http.ResponseWriter, status int) error {
	w.Header().Set("Content-Type", "application/json")
	if status != http.StatusNoContent {
		w.Header().Set("Content-Length", "0")
	}
	w.WriteHeader(status)
	return nil
}

// timeLayout is the vendor's and Cinder's: UTC, microseconds, no zone. A "Z" is a decode error in
// the clients.
const timeLayout = "2006-01-02T15:04:05.000000"

// Time formats an instant as volumes, pairs and groups carry it.
func Time(t time.Time) string { return t.UTC().Format(timeLayout) }

// TimePtr is Time, and nil for nil.
func TimePtr(t *time.Time) *string {
	if t == nil {
		return nil
	}
	s := Time(*t)
	return &s
}

// ParseTime reads an instant as clients write it in filters: with or without a zone, a fraction or
// a time of day. Without a zone it is UTC.
func ParseTime(s string) (time.Time, bool) {
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999",
		"2006-01-02T15:04", "2006-01-02",
	} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}

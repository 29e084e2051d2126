package api

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

// retryAfterSeconds is what a 503 advises.
const retryAfterSeconds = "5"

// unexpected is all that a client learns of a 500; the log has the rest under the request's id.
const unexpected = "an unexpected error happened; the log has it under this answer's request id"

// faultKeys are OpenStack's names of faults by status.
var faultKeys = map[int]string{
	http.StatusBadRequest:            "badRequest",
	http.StatusUnauthorized:          "unauthorized",
	http.StatusForbidden:             "forbidden",
	http.StatusNotFound:              "itemNotFound",
	http.StatusMethodNotAllowed:      "badMethod",
	http.StatusNotAcceptable:         "notAcceptable",
	http.StatusConflict:              "conflictingRequest",
	http.StatusRequestEntityTooLarge: "overLimit",
	http.StatusNotImplemented:        "notImplemented",
	http.StatusServiceUnavailable:    "serviceUnavailable",
}

// fault is an error as the client gets it.
type fault struct {
	status  int
	message string
	header  http.Header
	code    string // the vendor's, if there is one
	// hidden: the message does not tell the error, which belongs into the log.
	hidden bool
}

// faultOf translates an error. What it does not know becomes 500 with a text that tells nothing.
func faultOf(err error) fault {
	var refused *rest.Error
	if errors.As(err, &refused) {
		f := fault{status: refused.Status, message: refused.Error(), code: refused.Code, header: refused.Header}
		return f.withRetry()
	}
	var domain *control.Error
	if errors.As(err, &domain) {
		f := fault{status: statusOf(domain.Kind), message: domain.Error(), code: domain.Code, hidden: domain.Cause != nil}
		if f.status == http.StatusInternalServerError { // its text is for the log, its code for clients
			f.hidden, f.message = true, unexpected
			if domain.Code != "" {
				f.message = domain.Code + ": " + unexpected
			}
		}
		return f.withRetry()
	}
	switch {
	case errors.Is(err, lockstep.ErrStoreUnavailable):
		f := fault{status: http.StatusServiceUnavailable, hidden: true}
		f.message = "the store does not answer: nothing can be looked up or changed until it is back; " +
			"a change that was under way may or may not have happened"
		return f.withRetry()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		f := fault{status: http.StatusServiceUnavailable, message: "the request was given up before it was done", hidden: true}
		return f.withRetry()
	case errors.Is(err, identity.ErrNoToken):
		return fault{status: http.StatusUnauthorized, message: "The request you have made requires authentication."}
	case errors.Is(err, lockstep.ErrNotFound):
		return fault{status: http.StatusNotFound, message: "the resource does not exist", hidden: true}
	case errors.Is(err, lockstep.ErrConflict), errors.Is(err, lockstep.ErrExists):
		return fault{status: http.StatusConflict, message: "the resource was changed by another request; try again", hidden: true}
	}
	return fault{status: http.StatusInternalServerError, message: unexpected, hidden: true}
}

func (f fault) withRetry() fault {
	if f.status == http.StatusServiceUnavailable {
		f.header = f.header.Clone()
		if f.header == nil {
			f.header = http.Header{}
		}
		f.header.Set("Retry-After", retryAfterSeconds)
	}
	return f
}

// statusOf maps the domain's kinds of refusal.
func statusOf(k control.Kind) int {
	switch k {
	case control.KindBadRequest:
		return http.StatusBadRequest
	case control.KindForbidden:
		return http.StatusForbidden
	case control.KindNotFound:
		return http.StatusNotFound
	case control.KindConflict:
		return http.StatusConflict
	case control.KindQuota:
		return http.StatusRequestEntityTooLarge
	case control.KindUnsupported:
		return http.StatusNotImplemented
	case control.KindUnavailable:
		return http.StatusServiceUnavailable
	case control.KindInternal:
		return http.StatusInternalServerError
	}
	return http.StatusInternalServerError
}

// body is the OpenStack fault form; below /identity it is Keystone's own, which is the one that
// identity clients show to their users.
func (f fault) body(path string) any {
	if path == identity.Prefix || strings.HasPrefix(path, identity.Prefix+"/") {
		return map[string]any{"error": map[string]any{
			"code": f.status, "title": http.StatusText(f.status), "message": f.message,
		}}
	}
	key, ok := faultKeys[f.status]
	if !ok {
		key = "computeFault" // what Cinder calls every other one
	}
	return map[string]any{key: map[string]any{"code": f.status, "message": f.message}}
}

package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// Codes of the vendor, as they stand in messages and in failure_detail.
const (
	codeSizesDiffer     = "37100041"
	codePeerUnreachable = "37100043"
	codeProdFilling     = "37100044"
	codeDRFilling       = "37100045"
	codeProdMissing     = "37100048"
	codeDRMissing       = "37100050"
	codeProdPaired      = "37100053"
	codeDRPaired        = "37100054"
	codeDRAttached      = "37100058"
	codeInternal        = "37000212"
	codeBusy            = "37000216"
	codeBadSize         = "EVS.1010"
	codeNoShrink        = "EVS.1014"
	codeTooLarge        = "EVS.1015"
	codeNoRoom          = "EVS.5413"
)

func refusal(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

func badRequest(code, format string, args ...any) *Error {
	return refusal(KindBadRequest, code, format, args...)
}

func conflict(code, format string, args ...any) *Error {
	return refusal(KindConflict, code, format, args...)
}

func notFound(code, format string, args ...any) *Error {
	return refusal(KindNotFound, code, format, args...)
}

// asRefusal is the one place where an error of below becomes an *Error: the store's absence is
// KindUnavailable, a transition the record forbids is a conflict, the rest is internal.
func asRefusal(err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var refused *protocol.RefusedError
	switch {
	case errors.As(err, &refused):
		return conflict("", "%s", refused.Error())
	case errors.Is(err, lockstep.ErrConflict):
		return conflict(codeBusy, "the resource is being changed by others, try again")
	case errors.Is(err, lockstep.ErrStoreUnavailable),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &Error{Kind: KindUnavailable, Cause: err, Message: "the store does not answer: nothing can be looked up or changed until it is back; " +
			"a change that was under way may or may not have happened"}
	}
	return &Error{Kind: KindInternal, Message: err.Error(), Cause: err}
}

// newID returns a random UUID (version 4).
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand.Read aborts the process instead
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// maxTextBytes bounds names and descriptions, in bytes, not characters.
const maxTextBytes = 255

func checkText(field string, s *string) error {
	if s != nil && len(*s) > maxTextBytes {
		return badRequest("", "%s has %d bytes; at most %d are allowed", field, len(*s), maxTextBytes)
	}
	return nil
}

func checkTexts(name, description *string) error {
	if err := checkText("name", name); err != nil {
		return err
	}
	return checkText("description", description)
}

// modelHypermetro is the only replication model.
const modelHypermetro = "hypermetro"

func checkModel(model string) error {
	if model != modelHypermetro {
		return badRequest("", "replication_model is %q; only %q is supported", model, modelHypermetro)
	}
	return nil
}

// owns reports whether the caller may see a thing of that project. The role makes no difference:
// a token is scoped to one project, and so is every path below it.
func (c Caller) owns(p lockstep.ProjectID) bool { return c.Project == p }

func (c Caller) who() string {
	if c.User != "" {
		return c.User
	}
	return "unknown"
}

func joinIDs[T ~string](ids []T) string {
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = string(id)
	}
	return strings.Join(s, ", ")
}

func ptr[T any](v T) *T { return &v }

// stamp is the time as records keep it: UTC, to the microsecond, as answers show it.
func (c *Controller) stamp() time.Time { return c.cfg.Now().UTC().Truncate(time.Microsecond) }

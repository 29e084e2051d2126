package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

// TestFaults walks every kind of error through the border.
func TestFaults(t *testing.T) {
	domain := func(k control.Kind, code string) error {
		return fmt.Errorf("wrapped: %w", &control.Error{Kind: k, Code: code, Message: "m"})
	}
	for _, c := range []struct {
		err    error
		status int
		body   string
	}{
		{domain(control.KindBadRequest, "EVS.1010"), 400, `{"badRequest":{"code":400,"message":"EVS.1010: m"}}`},
		{domain(control.KindBadRequest, ""), 400, `{"badRequest":{"code":400,"message":"m"}}`},
		{domain(control.KindForbidden, ""), 403, `{"forbidden":{"code":403,"message":"m"}}`},
		{domain(control.KindNotFound, "37100048"), 404, `{"itemNotFound":{"code":404,"message":"37100048: m"}}`},
		{domain(control.KindConflict, "37000216"), 409, `{"conflictingRequest":{"code":409,"message":"37000216: m"}}`},
		{domain(control.KindQuota, "EVS.5413"), 413, `{"overLimit":{"code":413,"message":"EVS.5413: m"}}`},
		{domain(control.KindUnsupported, ""), 501, `{"notImplemented":{"code":501,"message":"m"}}`},
		{domain(control.KindUnavailable, ""), 503, `{"serviceUnavailable":{"code":503,"message":"m"}}`},
		{domain(control.KindInternal, "37000212"), 500, `{"computeFault":{"code":500,"message":"37000212: ` + unexpected + `"}}`},
		{domain(control.Kind(99), ""), 500, `{"computeFault":{"code":500,"message":"` + unexpected + `"}}`},
		{errors.New("secret"), 500, `{"computeFault":{"code":500,"message":"` + unexpected + `"}}`},
		{rest.BadRequestCode("EVS.1023", "x"), 400, `{"badRequest":{"code":400,"message":"EVS.1023: x"}}`},
		{&rest.Error{Status: 406, Message: "x"}, 406, `{"notAcceptable":{"code":406,"message":"x"}}`},
		{&rest.Error{Status: 405, Message: "x"}, 405, `{"badMethod":{"code":405,"message":"x"}}`},
		{fmt.Errorf("check: %w", identity.ErrNoToken), 401, `{"unauthorized":{"code":401,"message":"The request you have made requires authentication."}}`},
		{fmt.Errorf("a: %w", lockstep.ErrNotFound), 404, ""},
		{fmt.Errorf("a: %w", lockstep.ErrConflict), 409, ""},
		{fmt.Errorf("a: %w", lockstep.ErrExists), 409, ""},
		{fmt.Errorf("a: %w", lockstep.ErrStoreUnavailable), 503, ""},
		{fmt.Errorf("a: %w", context.DeadlineExceeded), 503, ""},
	} {
		f := faultOf(c.err)
		if f.status != c.status {
			t.Errorf("%v: %d, want %d", c.err, f.status, c.status)
		}
		b, err := json.Marshal(f.body("/v2/p/volumes"))
		if err != nil {
			t.Fatal(err)
		}
		if c.body != "" && string(b) != c.body {
			t.Errorf("%v: %s, want %s", c.err, b, c.body)
		}
		if (f.header.Get("Retry-After") != "") != (f.status == http.StatusServiceUnavailable) {
			t.Errorf("%v: Retry-After is %q with %d", c.err, f.header.Get("Retry-After"), f.status)
		}
	}
	b, err := json.Marshal(faultOf(identity.ErrNoToken).body("/identity/v3/users"))
	if want := `{"error":{"code":401,"message":"The request you have made requires authentication.","title":"Unauthorized"}}`; err != nil || string(b) != want {
		t.Errorf("identity: %s, want %s", b, want)
	}
}

package need

import (
	"fmt"
	"runtime"
	"testing"
)

// recorder is a test whose end is noted instead.
type recorder struct {
	testing.TB
	end string
}

func (r *recorder) Helper() {}

func (r *recorder) Skipf(format string, args ...any) {
	r.end = "skipped: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.end = "failed: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestWhatIsMissingSkipsOrFails(t *testing.T) {
	for env, want := range map[string]string{
		"":  "skipped: no-such-program is not installed",
		"1": "failed: LOCKSTEP_NO_SKIP=1: no-such-program is not installed",
	} {
		t.Setenv("LOCKSTEP_NO_SKIP", env)
		r, ended := &recorder{TB: t}, make(chan struct{})
		go func() {
			defer close(ended)
			Programs(r, "go", "no-such-program")
		}()
		<-ended
		if r.end != want {
			t.Errorf("LOCKSTEP_NO_SKIP=%s: %q; want %q", env, r.end, want)
		}
	}
}

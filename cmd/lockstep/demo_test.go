package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestMain lets the test binary be lockstep for the processes that it starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func demonstrate(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a whole deployment; run without -short")
	}
	t.Setenv("TMPDIR", t.TempDir())
	var o, e bytes.Buffer
	code = run(append([]string{"demo", "--timeout", "4m"}, args...), strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

// TestDemo runs the demonstration: a zone is killed under load, and nothing may be lost.
func TestDemo(t *testing.T) {
	code, out, e := demonstrate(t)
	if code != exitOK {
		t.Fatalf("exit code %d: %s\n%s", code, e, out)
	}
	for _, want := range []string{
		`of these not found at the other zone \(RPO\) +0 bytes`,
		`failover call to first accepted write \(RTO\) +[0-9]+ ms`,
		`bytes compared on each side, all equal +2147483648`,
		`SHA-256 of disk 1, both zones +[0-9a-f]{64}`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the output lacks %s:\n%s", want, out)
		}
	}
}

// TestDemoNoticesSabotage flips one bit of a DR disk behind the demonstration's back: its
// comparison must find exactly that.
func TestDemoNoticesSabotage(t *testing.T) {
	code, out, e := demonstrate(t, "--sabotage")
	if code != exitFailed {
		t.Fatalf("exit code %d, want %d: %s\n%s", code, exitFailed, e, out)
	}
	if !strings.Contains(e, "the zones differ") || !strings.Contains(e, "byte 536870912 differs") {
		t.Errorf("failed for another reason: %s\n%s", e, out)
	}
	if strings.Contains(out, "Result") {
		t.Errorf("a result was printed:\n%s", out)
	}
}

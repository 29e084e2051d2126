// Package need says what a test needs of the machine that it runs on: programs, rights, features of
// a file system. Where that is missing the test is skipped with the reason; with LOCKSTEP_NO_SKIP=1,
// as the continuous integration sets it, it fails. It never skips for any other reason.
package need

import (
	"os"
	"os/exec"
	"testing"
)

// Missing ends the test because the machine lacks what the text says.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("LOCKSTEP_NO_SKIP") == "1" {
		t.Fatalf("LOCKSTEP_NO_SKIP=1: "+format, args...)
	}
	t.Skipf(format, args...)
}

// Programs ends the test unless all of them are installed.
func Programs(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Missing(t, "%s is not installed", name)
		}
	}
}

// Root ends the test unless it runs as root; why says what for.
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "%s needs root", why)
	}
}

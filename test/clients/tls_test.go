package clients

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// TestWrongTLSOfTheStoreIsSaidClearly starts daemons with settings that do not fit the etcd. What
// no waiting can mend ends a daemon with the exit code of a wrong setting. Else a controller ends
// with the one for a store that cannot be reached, and a node, which may start before its store,
// waits; both say what does not fit.
func TestWrongTLSOfTheStoreIsSaidClearly(t *testing.T) {
	t.Parallel()
	secure, plain, stranger := newDir(t), newDir(t), newDir(t)
	makeCertificates(t, secure)
	makeCertificates(t, stranger)
	secureURL, plainURL := startEtcd(t, secure), startEtcd(t, plain)
	password := filepath.Join(plain, "password")
	ok(t, os.WriteFile(password, []byte("x\n"), 0o600))

	own := certificates(secure, "client")
	for name, c := range map[string]struct {
		url   string
		files etcdstore.TLSFiles
		says  string
		code  int // of the controller
	}{
		"another authority":            {secureURL, etcdstore.TLSFiles{CA: certificates(stranger, "client").CA, Cert: own.Cert, Key: own.Key}, "certificate signed by unknown authority", unreachable},
		"a certificate of a stranger":  {secureURL, etcdstore.TLSFiles{CA: own.CA, Cert: certificates(stranger, "client").Cert, Key: certificates(stranger, "client").Key}, "remote error: tls: ", unreachable},
		"no certificate":               {secureURL, etcdstore.TLSFiles{CA: own.CA}, "certificate required", unreachable},
		"TLS at an etcd without":       {"https" + strings.TrimPrefix(plainURL, "http"), own, "tls handshake: ", unreachable},
		"no TLS in the endpoint":       {plainURL, own, "does not fit TLS", failed},
		"TLS in the endpoint only":     {secureURL, etcdstore.TLSFiles{}, "does not fit TLS", failed},
		"a CA file that is not there":  {secureURL, etcdstore.TLSFiles{CA: filepath.Join(plain, "none"), Cert: own.Cert, Key: own.Key}, "no such file", failed},
		"a certificate without a key":  {secureURL, etcdstore.TLSFiles{CA: own.CA, Cert: own.Cert}, "etcd_cert, etcd_key", usage},
		"a key of another certificate": {secureURL, etcdstore.TLSFiles{CA: own.CA, Cert: own.Cert, Key: certificates(stranger, "client").Key}, "private key does not match", failed},
	} {
		t.Run("controller, "+name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"controller", "--listen", "127.0.0.1:0", "--admin-password-file", password}, etcdFlags(c.url, c.files)...)
			if code, _, said := command(t, environ(nil), args...); code != c.code || !strings.Contains(said, c.says) {
				t.Errorf("exit code %d, want %d; it says, and %q should be in it:\n%s", code, c.code, c.says, said)
			}
		})
		t.Run("node, "+name, func(t *testing.T) {
			t.Parallel()
			dir := newDir(t)
			args := append([]string{"node", "--id", "n", "--az", "az1", "--pool", dir, "--nbd-socket", filepath.Join(dir, "s")}, etcdFlags(c.url, c.files)...)
			if c.code != unreachable {
				if code, _, said := command(t, environ(nil), args...); code != c.code || !strings.Contains(said, c.says) {
					t.Errorf("exit code %d, want %d; it says, and %q should be in it:\n%s", code, c.code, c.says, said)
				}
				return
			}
			p := newProcess(t, filepath.Join(dir, "log"), append([]string{lockstepBin}, args...)...)
			p.start()
			eventually(t, patience, "the node says why it waits", func() error {
				said, err := os.ReadFile(p.log)
				if err == nil && !strings.Contains(string(said), c.says) {
					err = errors.New("nothing of " + c.says)
				}
				if !p.running() {
					t.Fatal("the node ended")
				}
				return err
			})
			p.stop()
		})
	}
}

// Exit codes of the command line, as its help lists them.
const (
	done = iota
	failed
	usage
	notFound
	conflict
	timedOut
	unreachable
)

// exitCode takes the exit code out of what exec gives.
func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	}
	t.Fatalf("the command did not end by itself: %v", err)
	return -1
}

package replica

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk"
	"github.com/lockstep-dr/lockstep/internal/ca"
	"github.com/lockstep-dr/lockstep/internal/peertls"
	"github.com/lockstep-dr/lockstep/wire"
)

// site is a CA with a directory for what it issues.
type site struct {
	t   testing.TB
	dir string
	ca  *ca.Authority
}

func newSite(t testing.TB) *site {
	t.Helper()
	authority, err := ca.New("site", time.Now().Add(-3*time.Hour), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: t.TempDir(), ca: authority}
	cert, _, err := authority.PEM()
	if err != nil {
		t.Fatal(err)
	}
	s.write("ca.crt", cert)
	return s
}

func (s *site) write(name string, text []byte) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), text, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// issue makes certificate and key of a name, in the files of a node.
func (s *site) issue(file string, kind ca.Kind, name string, at time.Time, life time.Duration) peertls.Files {
	s.t.Helper()
	cert, key, err := s.ca.Issue(ca.Request{Kind: kind, Name: name, Life: life}, at)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(file+".crt", cert)
	s.write(file+".key", key)
	return peertls.Files{CA: filepath.Join(s.dir, "ca.crt"), Cert: filepath.Join(s.dir, file+".crt"), Key: filepath.Join(s.dir, file+".key")}
}

func (s *site) node(id lockstep.NodeID) peertls.Files {
	return s.issue(string(id), ca.KindNode, string(id), time.Now(), 12*time.Hour)
}

func keeper(t testing.TB, files peertls.Files, id lockstep.NodeID) *peertls.Keeper {
	t.Helper()
	k, err := peertls.Open(files, id, discard())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// secured gives both hosts of a pair their certificates.
func secured(t testing.TB, s *site) func(*Config) {
	return func(c *Config) { c.TLS = keeper(t, s.node(c.Node), c.Node) }
}

// greet connects a to b and exchanges hellos, in a's name.
func (p *pair) greet() error {
	conn, err := p.a.connect(context.Background(), "b", 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = p.a.hello(conn, wire.Hello{To: "b", Purpose: wire.PurposeHeartbeat, Session: lockstep.Session{Start: 1, Conn: 1}})
	return err
}

// TestLinksKnowEachOther: two nodes that are who they say speak; in every other case the link ends before a
// frame, soon, with an error at both ends that says why, and it is counted.
func TestLinksKnowEachOther(t *testing.T) {
	ours, theirs := newSite(t), newSite(t)
	yesterday := time.Now().Add(-2 * time.Hour)
	for _, row := range []struct {
		name           string
		a, b           peertls.Files // of the dialing node a, of b; zero: plain
		idA, idB       lockstep.NodeID
		err            string         // at a
		countA, countB peertls.Reason // "": none
	}{
		{name: "right", a: ours.node("a"), b: ours.node("b")},
		{name: "both plain"},
		{name: "another CA dials", a: theirs.node("a"), b: ours.node("b"), err: "unknown authority", countA: peertls.ReasonCertificate, countB: peertls.ReasonRemote},
		{
			name: "a certificate of a stranger, who trusts our CA", b: ours.node("b"),
			a: mixed(theirs.issue("stranger", ca.KindNode, "a", time.Now(), time.Hour), ours), err: "remote error", countA: peertls.ReasonRemote, countB: peertls.ReasonCertificate,
		},
		{name: "an expired one dials", a: ours.issue("old-a", ca.KindNode, "a", yesterday, time.Hour), b: ours.node("b"), err: "expired", countA: peertls.ReasonRemote, countB: peertls.ReasonCertificate},
		{name: "an expired one listens", a: ours.node("a"), b: ours.issue("old-b", ca.KindNode, "b", yesterday, time.Hour), err: "expired", countA: peertls.ReasonCertificate, countB: peertls.ReasonRemote},
		{name: "another node listens", a: ours.node("a"), b: ours.node("c"), idB: "c", err: "of node c where node b was expected", countA: peertls.ReasonIdentity, countB: peertls.ReasonRemote},
		{name: "another node dials", a: ours.node("c"), idA: "c", b: ours.node("b"), err: "the hello is of node a, the certificate of node c", countB: peertls.ReasonIdentity},
		{name: "plain dials TLS", b: ours.node("b"), err: "takes links over TLS only", countB: peertls.ReasonMixed},
		{name: "TLS dials plain", a: ours.node("a"), err: "it is down, or it is without tls_ca", countA: peertls.ReasonHandshake, countB: peertls.ReasonMixed},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPairWith(t, func(c *Config) {
				files, id := row.a, row.idA
				if c.Node == "b" {
					files, id = row.b, row.idB
				}
				if id == "" {
					id = c.Node
				}
				if files != (peertls.Files{}) {
					c.TLS = keeperOf(t, files, id)
				}
			})
			began := time.Now()
			err := p.greet()
			if took := time.Since(began); took > 1500*time.Millisecond {
				t.Errorf("it took %v", took)
			}
			switch {
			case row.err == "" && err != nil:
				t.Error(err)
			case row.err != "" && (err == nil || !strings.Contains(err.Error(), row.err)):
				t.Errorf("the dialing node is told %v, not %q", err, row.err)
			}
			counted(t, "a", p.a, row.countA)
			counted(t, "b", p.b, row.countB)
		})
	}
}

// mixed is a certificate from elsewhere with trust in s.
func mixed(f peertls.Files, s *site) peertls.Files {
	f.CA = filepath.Join(s.dir, "ca.crt")
	return f
}

// keeperOf opens files that Open would not take, a stranger's, as the stranger would.
func keeperOf(t *testing.T, files peertls.Files, id lockstep.NodeID) *peertls.Keeper {
	t.Helper()
	k, err := peertls.Open(files, id, discard())
	if err == nil {
		return k
	}
	own := files
	own.CA = filepath.Join(filepath.Dir(files.Cert), "ca.crt")
	// With both CAs in its file it finds its own certificate good, as a stranger does.
	both := files
	both.CA = filepath.Join(t.TempDir(), "both.crt")
	var text []byte
	for _, path := range []string{own.CA, files.CA} {
		pem, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, pem...)
	}
	if err := os.WriteFile(both.CA, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return keeper(t, both, id)
}

// counted checks that a host comes to count one refusal, for that reason, and no other.
func counted(t *testing.T, name string, h *Host, want peertls.Reason) {
	t.Helper()
	var have map[peertls.Reason]uint64
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		have = h.Refusals()
		if want == "" || have[want] > 0 || time.Now().After(end) {
			break
		}
	}
	for _, r := range peertls.Reasons {
		n := uint64(0)
		if r == want {
			n = 1
		}
		if have[r] != n {
			t.Errorf("%s counts %d refusals for %s, not %d", name, have[r], r, n)
		}
	}
}

// TestNoCertificate: a client of TLS without a certificate is refused.
func TestNoCertificate(t *testing.T) {
	s := newSite(t)
	p := newPairWith(t, secured(t, s))
	conn, err := tls.Dial("tcp", p.addr["b"], &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	hello := wire.Hello{Cluster: "c", From: "a", To: "b", Purpose: wire.PurposeHeartbeat, Features: wire.Features}
	_ = wire.WriteJSON(conn, wire.Header{Kind: wire.KindHello}, hello)
	var answer wire.HelloReply
	if _, err := wire.ReadJSON(conn, wire.KindHelloReply, &answer); err == nil {
		t.Fatalf("answered: %+v", answer)
	} else if !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("%v, not that a certificate is required", err)
	}
	counted(t, "b", p.b, peertls.ReasonHandshake)
}

// TestSilentClient: who connects to a listener with TLS and says nothing does not stay.
func TestSilentClient(t *testing.T) {
	t.Parallel()
	p := newPairWith(t, secured(t, newSite(t)))
	conn, err := net.Dial("tcp", p.addr["b"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Fatalf("the listener holds on: %v", err)
	}
	counted(t, "b", p.b, peertls.ReasonHandshake)
}

// TestSilentListener: a node does not wait for ever for a handshake.
func TestSilentListener(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := newPairWith(t, secured(t, newSite(t)))
	p.addr["b"] = ln.Addr().String()
	began := time.Now()
	if err := p.greet(); err == nil || !strings.Contains(err.Error(), "time limit") {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestReplicationOverTLS writes, cuts the link, goes on over a new one with new certificates, and compares.
func TestReplicationOverTLS(t *testing.T) {
	s := newSite(t)
	p := newPairWith(t, secured(t, s))
	p.sync(t)
	v := p.a.Volume("va")
	write := func(round int) {
		t.Helper()
		for i := range int64(64) {
			data := bytes.Repeat([]byte{byte(round), byte(i)}, 4096/2*int(1+i%4))
			if err := v.WriteAt(t.Context(), data, i*16384, i%8 == 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(1)
	for round := 2; round < 5; round++ {
		s.node("a") // a new key and certificate in the same files
		s.node("b")
		old := linkNow(p.a.group("g"))
		old.close()
		write(round)
		p.until(t, "another link", func() bool {
			l := linkNow(p.a.group("g"))
			return l != nil && l != old
		})
	}
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.until(t, "two-sided again", func() bool {
		w, ok := p.a.View("g")
		return ok && w.Record.InSync && w.Record.Epoch == p.st.get().Epoch
	})
	for _, h := range []*Host{p.a, p.b} {
		for r, n := range h.Refusals() {
			if n != 0 {
				t.Errorf("%d refusals for %s", n, r)
			}
		}
	}
	if err := sameBytes(p.a.Volume("va").disk, p.b.Volume("vb").disk); err != nil {
		t.Error(err)
	}
}

// linkNow is the link of a group to b; nil: none.
func linkNow(g *Group) *link {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dialers["b"].current()
}

func sameBytes(a, b *disk.Volume) error {
	one, two := make([]byte, testSize), make([]byte, testSize)
	if err := errors.Join(a.ReadAt(one, 0), b.ReadAt(two, 0)); err != nil {
		return err
	}
	for i := range one {
		if one[i] != two[i] {
			return fmt.Errorf("byte %d differs", i)
		}
	}
	if bytes.Equal(one, make([]byte, testSize)) {
		return errors.New("nothing was written")
	}
	return nil
}

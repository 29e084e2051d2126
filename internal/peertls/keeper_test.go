package peertls_test

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/internal/ca"
	"github.com/lockstep-dr/lockstep/internal/peertls"
)

// site issues certificates into a directory.
type site struct {
	t   testing.TB
	dir string
	ca  *ca.Authority
}

func newSite(t testing.TB) *site {
	t.Helper()
	a, err := ca.New("site", time.Now().Add(-3*time.Hour), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t, t.TempDir(), a}
	cert, _, err := a.PEM()
	if err != nil {
		t.Fatal(err)
	}
	s.write("ca.crt", cert)
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name string, text []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), text, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) pair(kind ca.Kind, name string, at time.Time) (cert, key []byte) {
	s.t.Helper()
	cert, key, err := s.ca.Issue(ca.Request{Kind: kind, Name: name, Life: time.Hour}, at)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert, key
}

func (s *site) issue(kind ca.Kind, name string, at time.Time) peertls.Files {
	s.t.Helper()
	cert, key := s.pair(kind, name, at)
	s.write("own.crt", cert)
	s.write("own.key", key)
	return s.files()
}

func (s *site) files() peertls.Files {
	return peertls.Files{CA: s.path("ca.crt"), Cert: s.path("own.crt"), Key: s.path("own.key")}
}

// TestOpen: files that no peer would take are refused at the start, by the name of their setting.
func TestOpen(t *testing.T) {
	now := time.Now()
	for name, row := range map[string]struct {
		change func(*site)
		want   string // "": opened
	}{
		"good":                  {func(*site) {}, ""},
		"expired":               {func(s *site) { s.issue(ca.KindNode, "n1", now.Add(-2*time.Hour)) }, ""},
		"of another node":       {func(s *site) { s.issue(ca.KindNode, "n2", now) }, "tls_cert: "},
		"expired, of another":   {func(s *site) { s.issue(ca.KindNode, "n2", now.Add(-2*time.Hour)) }, "of node n2, and this is node n1"},
		"of the API":            {func(s *site) { s.issue(ca.KindAPI, "n1", now) }, "tls_cert: "},
		"of a controller":       {func(s *site) { s.issue(ca.KindController, "n1", now) }, "tls_cert: "},
		"of another CA":         {func(s *site) { cert, _, _ := newSite(s.t).ca.PEM(); s.write("ca.crt", cert) }, "unknown authority"},
		"no CA":                 {func(s *site) { _ = os.Remove(s.path("ca.crt")) }, "tls_ca: "},
		"a CA that is none":     {func(s *site) { s.write("ca.crt", []byte("hello")) }, "tls_ca: no certificate in "},
		"no key":                {func(s *site) { _ = os.Remove(s.path("own.key")) }, "tls_key: "},
		"the key of another":    {func(s *site) { _, key := s.pair(ca.KindNode, "n1", now); s.write("own.key", key) }, "tls_cert, tls_key: "},
		"a certificate cut off": {func(s *site) { cert, _ := s.pair(ca.KindNode, "n1", now); s.write("own.crt", cert[:100]) }, "tls_cert, tls_key: "},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.issue(ca.KindNode, "n1", now)
			row.change(s)
			_, err := peertls.Open(s.files(), "n1", slog.New(slog.DiscardHandler))
			if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, want %q", err, row.want)
			}
		})
	}
}

// TestFilesChange: new files count from the next connection on, half of them do not count, and are spoken of
// once.
func TestFilesChange(t *testing.T) {
	s := newSite(t)
	now := time.Now()
	var log lockedBuffer
	k, err := peertls.Open(s.issue(ca.KindNode, "n1", now.Add(-30*time.Minute)), "n1", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	first := k.Status().NotAfter
	cert, key := s.pair(ca.KindNode, "n1", now)
	s.write("own.crt", cert)
	for range 3 {
		if st := k.Status(); !st.NotAfter.Equal(first) || st.Failed == 0 {
			t.Fatalf("half of the files: %+v", st)
		}
	}
	if n := strings.Count(log.String(), "are of no use"); n != 1 {
		t.Errorf("said %d times:\n%s", n, &log)
	}
	s.write("own.key", key)
	second := k.Status().NotAfter
	if !second.After(first) {
		t.Fatalf("the new certificate is not used: %v, before %v", second, first)
	}
	s.issue(ca.KindNode, "n2", now)
	if err := os.Remove(s.path("ca.crt")); err != nil {
		t.Fatal(err)
	}
	if st := k.Status(); !st.NotAfter.Equal(second) {
		t.Errorf("another node's certificate is used")
	}
}

// TestTwoCAs: with the old and the new CA in its file a node takes certificates of both, with the new alone
// those of the new one only, on connections made after the change.
func TestTwoCAs(t *testing.T) {
	older, newer := newSite(t), newSite(t)
	n1, err := peertls.Open(older.issue(ca.KindNode, "n1", time.Now()), "n1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	oldCA, _, _ := older.ca.PEM()
	newCA, _, _ := newer.ca.PEM()
	both := append(append([]byte{}, oldCA...), newCA...)
	newer.write("ca.crt", both)
	n2, err := peertls.Open(newer.issue(ca.KindNode, "n2", time.Now()), "n2", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := meet(t, n1, n2); err == nil {
		t.Error("n1 takes a certificate of a CA it does not know")
	}
	older.write("ca.crt", both)
	if err := meet(t, n1, n2); err != nil {
		t.Error(err)
	}
	newer.write("ca.crt", newCA)
	if err := meet(t, n1, n2); err == nil {
		t.Error("n2 takes a certificate of the CA that was taken away")
	}
}

// meet connects n1 to n2 over a socket.
func meet(t *testing.T, n1, n2 *peertls.Keeper) error {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _, err = n2.Server(t.Context(), conn)
		served <- err
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := n1.Client(t.Context(), conn, "n2"); err != nil {
		_ = conn.Close()
		<-served
		return err
	}
	return <-served
}

func TestNodeOf(t *testing.T) {
	parse := func(texts ...string) (urls []*url.URL) {
		for _, s := range texts {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			urls = append(urls, u)
		}
		return urls
	}
	for _, row := range []struct {
		uris []string
		id   string // "": none
	}{
		{[]string{"spiffe://lockstep/node/n1"}, "n1"},
		{[]string{"https://example.org/n2", "spiffe://lockstep/node/n1"}, "n1"},
		{[]string{"spiffe://lockstep/node/az1-node%201"}, "az1-node 1"},
		{nil, ""},
		{[]string{"spiffe://lockstep/node/n1", "spiffe://lockstep/node/n2"}, ""},
		{[]string{"spiffe://lockstep/node/n1", "spiffe://other/node/n1"}, ""},
		{[]string{"spiffe://lockstep/controller/n1"}, ""},
		{[]string{"spiffe://other/node/n1"}, ""},
		{[]string{"spiffe://lockstep/node/"}, ""},
		{[]string{"spiffe://lockstep/node/a/b"}, ""},
		{[]string{"spiffe://lockstep/node/n1?x=y"}, ""},
		{[]string{"spiffe://lockstep/node/n1#x"}, ""},
		{[]string{"spiffe://u@lockstep/node/n1"}, ""},
		{[]string{"https://lockstep/node/n1"}, ""},
	} {
		id, err := peertls.NodeOf(&x509.Certificate{URIs: parse(row.uris...)})
		if string(id) != row.id || (err == nil) != (row.id != "") {
			t.Errorf("%v: %q, %v", row.uris, id, err)
		}
	}
	if got := peertls.NodeURI("az1-node-1").String(); got != "spiffe://lockstep/node/az1-node-1" {
		t.Errorf("%s: it is in certificates that exist", got)
	}
}

// lockedBuffer is a log that a test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestCloseDoesNotWait: a link ends at once, also if the other side takes nothing in.
func TestCloseDoesNotWait(t *testing.T) {
	s := newSite(t)
	k, err := peertls.Open(s.issue(ca.KindNode, "n1", time.Now()), "n1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe() // holds nothing: a write waits for who reads
	defer near.Close()
	defer far.Close()
	served := make(chan error, 1)
	go func() {
		_, _, err := k.Server(t.Context(), far)
		served <- err
	}()
	conn, err := k.Client(t.Context(), near, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_ = conn.Close()
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

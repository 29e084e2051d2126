package etcdstore_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/etcdstore"
	"github.com/lockstep-dr/lockstep/store/storetest"
)

// testLog lets etcd's warnings appear with the test that caused them.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func startEtcd(t *testing.T, cfg etcdstore.EmbedConfig) *etcdstore.Embedded {
	t.Helper()
	cfg.Logger = testLog(t)
	e, err := etcdstore.StartEmbedded(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeEtcd(t, e) })
	return e
}

func closeEtcd(t *testing.T, e *etcdstore.Embedded) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func open(t *testing.T, cfg etcdstore.Config) *etcdstore.Store {
	t.Helper()
	cfg.Logger = testLog(t)
	s, err := etcdstore.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// All subtests share one member; each has a prefix of its own.
func TestConformance(t *testing.T) {
	e := startEtcd(t, etcdstore.EmbedConfig{Dir: t.TempDir()})
	n := 0
	storetest.Run(t, func(t *testing.T) store.Store {
		n++
		return open(t, etcdstore.Config{Endpoints: e.Endpoints(), Prefix: fmt.Sprintf("/test/%d/", n)})
	})
}

// The member is stopped and started again in the same directory; the client finds it where it was.
func TestOutage(t *testing.T) {
	dir := t.TempDir()
	e := startEtcd(t, etcdstore.EmbedConfig{Dir: dir})
	s := open(t, etcdstore.Config{Endpoints: e.Endpoints(), RequestTimeout: time.Second})
	storetest.Outage(t, s, 2*time.Second,
		func() { closeEtcd(t, e) },
		func() {
			again := startEtcd(t, etcdstore.EmbedConfig{Dir: dir})
			if got, want := again.Endpoints()[0], e.Endpoints()[0]; got != want {
				t.Fatalf("restarted at %s, was at %s", got, want)
			}
		})
}

// Writes go on across two restarts; a watch that began before them sees every one that succeeded,
// in order and once.
func TestWatchResumesAfterRestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	e := startEtcd(t, etcdstore.EmbedConfig{Dir: dir})
	s := open(t, etcdstore.Config{Endpoints: e.Endpoints(), RequestTimeout: time.Second})
	_, rev, err := s.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	ch := s.Watch(ctx, "w/", rev)
	var wrote []int64
	write := func(n int) {
		for range n {
			_, rev, err := s.Txn(ctx, nil, []store.Op{{Key: "w/a", Value: []byte("x")}})
			if err != nil {
				t.Fatal(err)
			}
			wrote = append(wrote, rev)
		}
	}
	write(20)
	for range 2 {
		closeEtcd(t, e)
		e = startEtcd(t, etcdstore.EmbedConfig{Dir: dir})
		for s.Ping(ctx) != nil && ctx.Err() == nil {
		}
		write(20)
	}
	var saw []int64
	for len(saw) < len(wrote) {
		select {
		case batch, ok := <-ch:
			if !ok {
				t.Fatalf("watch closed after %d of %d events", len(saw), len(wrote))
			}
			for _, ev := range batch {
				saw = append(saw, ev.ModRev)
			}
		case <-ctx.Done():
			t.Fatalf("%d of %d events", len(saw), len(wrote))
		}
	}
	for i := range wrote {
		if saw[i] != wrote[i] {
			t.Fatalf("event %d is of revision %d, wrote %d", i, saw[i], wrote[i])
		}
	}
}

func TestCompactedWatchIsClosed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e := startEtcd(t, etcdstore.EmbedConfig{Dir: t.TempDir()})
	s := open(t, etcdstore.Config{Endpoints: e.Endpoints()})
	var first, last int64
	for i := range 5 {
		_, rev, err := s.Txn(ctx, nil, []store.Op{{Key: "k", Value: []byte("x")}})
		if err != nil {
			t.Fatal(err)
		}
		if last = rev; i == 0 {
			first = rev
		}
	}
	raw, err := clientv3.New(clientv3.Config{Endpoints: e.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Compact(ctx, last); err != nil {
		t.Fatal(err)
	}
	select {
	case batch, ok := <-s.Watch(ctx, "k", first-1):
		if ok {
			t.Fatalf("watch from compacted history delivered %+v", batch)
		}
	case <-ctx.Done():
		t.Fatal("watch from compacted history is not closed")
	}
	// Follow lives through it: it has the last value from a list.
	seen := make(chan store.Change[int], 10)
	if _, err := store.Put(ctx, s, "f", 7, 0); err != nil {
		t.Fatal(err)
	}
	fctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- store.Follow(fctx, s, "f", func(batch []store.Change[int]) {
			for _, c := range batch {
				seen <- c
			}
		})
	}()
	if c := <-seen; c.Kind != store.ChangePut || c.Value != 7 {
		t.Errorf("followed %+v", c)
	}
	if c := <-seen; c.Kind != store.ChangeSynced {
		t.Errorf("followed %+v", c)
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestOpenWithoutServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Nobody accepts here: connections are made by the kernel, and then nothing is said.
	defer l.Close()
	began := time.Now()
	_, err = etcdstore.Open(t.Context(), etcdstore.Config{
		Endpoints: []string{"http://" + l.Addr().String()}, DialTimeout: 300 * time.Millisecond, Logger: testLog(t),
	})
	if took := time.Since(began); !errors.Is(err, lockstep.ErrStoreUnavailable) || took > 5*time.Second {
		t.Fatalf("%v after %v", err, took)
	}
	s := open(t, etcdstore.Config{
		Endpoints: []string{"http://" + l.Addr().String()}, RequestTimeout: 200 * time.Millisecond, Lazy: true,
	})
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, lockstep.ErrStoreUnavailable) {
		t.Fatalf("get: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, etcdstore.Config{
		Endpoints: []string{"http://" + l.Addr().String()}, RequestTimeout: 200 * time.Millisecond, Lazy: true,
	})
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, lockstep.ErrStoreUnavailable) || !strings.Contains(err.Error(), "connection refused") ||
		errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("get where nobody listens: %v", err)
	}
}

func TestConfigRefused(t *testing.T) {
	for name, cfg := range map[string]etcdstore.Config{
		"no endpoints":           {},
		"https without TLS":      {Endpoints: []string{"https://127.0.0.1:1"}},
		"prefix without a slash": {Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/a"},
	} {
		if s, err := etcdstore.Open(t.Context(), cfg); err == nil || errors.Is(err, lockstep.ErrStoreUnavailable) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	for name, cfg := range map[string]etcdstore.EmbedConfig{
		"no directory":                   {},
		"all interfaces without TLS":     {Dir: t.TempDir(), ListenClient: "0.0.0.0:0"},
		"peer on a network without TLS":  {Dir: t.TempDir(), ListenPeer: "192.0.2.1:2380"},
		"several members without a peer": {Dir: t.TempDir(), InitialCluster: "a=http://127.0.0.1:1"},
		"certificate without a key":      {Dir: t.TempDir(), ClientTLS: etcdstore.TLSFiles{Cert: "x"}},
	} {
		if e, err := etcdstore.StartEmbedded(cfg); err == nil {
			t.Errorf("%s: accepted", name)
			closeEtcd(t, e)
		}
	}
}

func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	startEtcd(t, etcdstore.EmbedConfig{Dir: dir})
	if _, err := etcdstore.StartEmbedded(etcdstore.EmbedConfig{Dir: dir}); !errors.Is(err, lockstep.ErrConflict) {
		t.Fatalf("second member of one directory: %v", err)
	}
}

// With certificates on both sides a client that has one gets in and one that has none does not.
func TestTLS(t *testing.T) {
	files := makeCerts(t, t.TempDir())
	e := startEtcd(t, etcdstore.EmbedConfig{Dir: t.TempDir(), ClientTLS: files})
	good, err := etcdstore.LoadTLS(files)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, etcdstore.Config{Endpoints: e.Endpoints(), TLS: good})
	if _, err := store.Create(t.Context(), s, "k", 1); err != nil {
		t.Fatal(err)
	}
	bare, err := etcdstore.LoadTLS(etcdstore.TLSFiles{CA: files.CA})
	if err != nil {
		t.Fatal(err)
	}
	_, err = etcdstore.Open(t.Context(), etcdstore.Config{
		Endpoints: e.Endpoints(), TLS: bare, DialTimeout: time.Second, Logger: testLog(t),
	})
	if !errors.Is(err, lockstep.ErrStoreUnavailable) {
		t.Fatalf("client without a certificate: %v", err)
	}
	if !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("client without a certificate is told no reason: %v", err)
	}
	// An open watch must not keep the member from closing.
	ch := s.Watch(t.Context(), "k", 0)
	<-ch
	began := time.Now()
	closeEtcd(t, e)
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("close took %v", took)
	}
}

// makeCerts writes a self-signed certificate that is CA, server and client in one.
func makeCerts(t *testing.T, dir string) etcdstore.TLSFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:        true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f := etcdstore.TLSFiles{
		CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"),
	}
	for path, b := range map[string]*pem.Block{
		f.CA:   {Type: "CERTIFICATE", Bytes: cert},
		f.Cert: {Type: "CERTIFICATE", Bytes: cert},
		f.Key:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

package clients

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
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// etcdWord, as the first argument, makes the test binary an etcd instead; the directory follows.
const etcdWord = "etcd-of"

// etcdMain runs an etcd until SIGTERM, with TLS if the directory holds a certificate for it.
func etcdMain(dir string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg := etcdstore.EmbedConfig{Dir: filepath.Join(dir, "etcd"), Logger: log}
	if files := certificates(dir, "server"); exists(files.Cert) {
		cfg.ClientTLS = files
	}
	e, err := etcdstore.StartEmbedded(cfg)
	if err != nil {
		log.Error("start etcd", "error", err)
		return 1
	}
	fmt.Println("ready", e.Endpoints()[0])
	<-ctx.Done()
	if err := e.Close(); err != nil {
		log.Error("stop etcd", "error", err)
		return 1
	}
	return 0
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// certificates names the files of one owner in a directory of makeCertificates.
func certificates(dir, owner string) etcdstore.TLSFiles {
	return etcdstore.TLSFiles{
		CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, owner+".crt"), Key: filepath.Join(dir, owner+".key"),
	}
}

// makeCertificates makes an authority of its own in dir, and certificates for server and client.
func makeCertificates(t *testing.T, dir string) {
	t.Helper()
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		}
	}
	authority := template(1, "test authority")
	authority.IsCA, authority.BasicConstraintsValid, authority.KeyUsage = true, true, x509.KeyUsageCertSign
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	save := func(name, kind string, der []byte) {
		t.Helper()
		ok(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	save("ca.crt", "CERTIFICATE", must[[]byte](t)(x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key)))
	for i, owner := range []string{"server", "client"} {
		leaf := template(int64(i)+2, owner)
		leaf.KeyUsage = x509.KeyUsageDigitalSignature
		// A member of etcd is a client of itself as well.
		leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		own := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		save(owner+".crt", "CERTIFICATE", must[[]byte](t)(x509.CreateCertificate(rand.Reader, leaf, authority, &own.PublicKey, key)))
		save(owner+".key", "EC PRIVATE KEY", must[[]byte](t)(x509.MarshalECPrivateKey(own)))
	}
}

var etcdReady = regexp.MustCompile(`(?m)^ready (https?://\S+)$`)

// startEtcd starts an etcd in a process of its own and returns its URL.
func startEtcd(t *testing.T, dir string) string {
	t.Helper()
	self := must[string](t)(os.Executable())
	p := newProcess(t, filepath.Join(dir, "etcd.log"), self, etcdWord, dir+"/")
	p.start()
	var url string
	eventually(t, patience, "etcd is ready", func() error {
		if !p.running() {
			t.Fatal("etcd ended")
		}
		out, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		m := etcdReady.FindSubmatch(out)
		if m == nil {
			return errors.New("it has not said so")
		}
		url = string(m[1])
		return nil
	})
	return url
}

package main

import (
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestAPICertificateIsReadAgain: a connection gets the certificate that is in the files when it is made, and
// while these do not fit together the one before.
func TestAPICertificateIsReadAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	cert, key := filepath.Join(dir, "api", "localhost.crt"), filepath.Join(dir, "api", "localhost.key")
	issue := func(args ...string) {
		t.Helper()
		if code, _, e := cli(t, append(args, "--dir", dir)...); code != exitOK {
			t.Fatal(e)
		}
	}
	if _, err := newAPITLS(controllerConfig{TLSCert: cert, TLSKey: key}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no files, and no error")
	}
	issue("ca", "init")
	issue("ca", "issue", "api", "localhost")
	cfg, err := newAPITLS(controllerConfig{TLSCert: cert, TLSKey: key}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { // ends with the listener
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = tls.Server(conn, cfg).HandshakeContext(t.Context())
			_ = conn.Close()
		}
	}()
	serial := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	if serial() != first {
		t.Error("another certificate without another file")
	}
	issue("ca", "issue", "api", "localhost", "--replace")
	second := serial()
	if second == first {
		t.Error("the new certificate is not used")
	}
	if err := os.WriteFile(cert, []byte("spoilt"), 0o600); err != nil {
		t.Fatal(err)
	}
	if serial() != second {
		t.Error("a spoilt file changes the certificate")
	}
}

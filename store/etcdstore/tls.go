package etcdstore

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSFiles names PEM files. The zero value means no TLS.
type TLSFiles struct {
	CA   string `json:"ca,omitempty"`   // whom to trust: the members, or at a member its clients
	Cert string `json:"cert,omitempty"` // this side's own certificate
	Key  string `json:"key,omitempty"`  // and its key
}

// IsZero reports whether no TLS is wanted.
func (f TLSFiles) IsZero() bool { return f == TLSFiles{} }

func (f TLSFiles) check() error {
	if (f.Cert == "") != (f.Key == "") {
		return errors.New("tls: certificate and key belong together")
	}
	return nil
}

// LoadTLS reads the files into a client's configuration; nil for no files. Certificate and key
// are read again for each connection, so that renewed ones are used without a restart; the CA is
// read once. Without a CA file the system's trust is used.
func LoadTLS(f TLSFiles) (*tls.Config, error) {
	if f.IsZero() {
		return nil, nil
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("tls: read CA: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls: no certificate in %s", f.CA)
		}
	}
	if f.Cert != "" {
		load := func() (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(f.Cert, f.Key)
			if err != nil {
				return nil, fmt.Errorf("tls: load certificate: %w", err)
			}
			return &c, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return cfg, nil
}

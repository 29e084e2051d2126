package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
)

// apiCertificate gives the certificate of the API for each connection: what the files say now, or, while
// they do not fit together, what they said before.
type apiCertificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex // guards what follows; held while files are read
	last    *tls.Certificate
	problem string // of the last look at the files; "": none
}

// newAPITLS gives the configuration of the API's listener.
func newAPITLS(cfg controllerConfig, log *slog.Logger) (*tls.Config, error) {
	c := &apiCertificate{certFile: cfg.TLSCert, keyFile: cfg.TLSKey, log: log}
	first, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("tls_cert, tls_key: %w", err)
	}
	c.last = &first
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.now(), nil },
	}, nil
}

func (c *apiCertificate) now() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	next, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		if c.problem != err.Error() {
			c.problem = err.Error()
			c.log.Error("the certificate files of the API are of no use; what they said before stays in use", "err", err)
		}
		return c.last
	}
	c.last, c.problem = &next, ""
	return c.last
}

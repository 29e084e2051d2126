// Package peertls is mutual TLS 1.3 between nodes. It keeps a node's certificate and the CA, reads their
// files again when they change, and makes of a connection one of which both sides know whose it is: the
// certificate's name of a node, not the address, says who the other side is. It knows no frame.
//
//	conn --> Keeper.Client(peer) --> TLS 1.3, certificate of that node or an error
//	conn --> Keeper.Server()     --> TLS 1.3, which node it is or an error
package peertls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/lockstep-dr/lockstep"
)

// warnBefore is how long before the end of its certificate a node begins to speak of it.
const warnBefore = 7 * 24 * time.Hour

// Files names PEM files: the certificates of the CA that peers' certificates come from, and the node's own
// certificate, with intermediate ones after it, and key.
type Files struct{ CA, Cert, Key string }

// Keeper holds what the files said when they last made sense.
type Keeper struct {
	files Files
	node  lockstep.NodeID
	log   *slog.Logger

	mu      sync.Mutex // guards what follows; held while files are read
	set     *set
	seen    [3]stamp
	problem string // of the last look at the files; "": none
	failed  uint64 // looks that found files of no use, since the start
}

// set is one reading of the files.
type set struct {
	cert  tls.Certificate
	roots *x509.CertPool
}

// stamp tells one version of a file from the next.
type stamp struct {
	inode, size uint64
	changed     time.Time
}

// Open reads the files of a node. It is an error if they do not fit together, or name another node; not, if
// the certificate has expired: a node whose links are refused still serves its disks.
func Open(files Files, node lockstep.NodeID, log *slog.Logger) (*Keeper, error) {
	k := &Keeper{files: files, node: node, log: log}
	seen, err := files.stamps()
	if err != nil {
		return nil, err
	}
	if k.set, err = load(files, node); err != nil {
		return nil, err
	}
	k.seen = seen
	k.warn(k.set)
	return k, nil
}

// Status is for metrics.
type Status struct {
	NotAfter time.Time // end of the certificate in use
	Failed   uint64    // how often changed files could not be used
}

// Status looks at the files, as each new connection does.
func (k *Keeper) Status() Status {
	s := k.current()
	k.mu.Lock()
	defer k.mu.Unlock()
	return Status{NotAfter: s.cert.Leaf.NotAfter, Failed: k.failed}
}

// current is what the files say now. While they make no sense, half of them being replaced, say, it is what
// they said before.
func (k *Keeper) current() *set {
	k.mu.Lock()
	defer k.mu.Unlock()
	seen, err := k.files.stamps() // before the files are read: what changes meanwhile is seen next time
	if err == nil && seen == k.seen {
		return k.set
	}
	var next *set
	if err == nil {
		next, err = load(k.files, k.node)
	}
	if err != nil {
		k.failed++
		if k.problem != err.Error() {
			k.problem = err.Error()
			k.log.Error("the certificate files have changed and are of no use; what they said before stays in use", "err", err)
		}
		return k.set
	}
	k.set, k.seen, k.problem = next, seen, ""
	k.log.Info("certificate files read again: new links use them", "not_after", next.cert.Leaf.NotAfter)
	k.warn(next)
	return next
}

func (k *Keeper) warn(s *set) {
	if left := time.Until(s.cert.Leaf.NotAfter); left < warnBefore {
		k.log.Warn("the node's certificate ends soon, or has ended: other nodes refuse its links from then on", "file", k.files.Cert, "not_after", s.cert.Leaf.NotAfter)
	}
}

// Client makes a connection that this node has dialed one with that peer.
func (k *Keeper) Client(ctx context.Context, raw net.Conn, peer lockstep.NodeID) (net.Conn, error) {
	s := k.current()
	conn := tls.Client(raw, &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{s.cert},
		// crypto/tls would compare a host name, and nodes have none: VerifyConnection does all of it.
		InsecureSkipVerify:          true, //nolint:gosec // see above
		DynamicRecordSizingDisabled: true, // frames are read whole
		VerifyConnection: func(cs tls.ConnectionState) error {
			found, err := verify(cs.PeerCertificates, s.roots, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if found != peer {
				return &Refusal{ReasonIdentity, fmt.Errorf("the certificate is of node %s where node %s was expected", found, peer)}
			}
			return nil
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, classify(err)
	}
	return hardClose{conn}, nil
}

// Server makes a connection that was accepted one with a node, and says which. The caller bounds its time by
// a deadline of raw.
func (k *Keeper) Server(ctx context.Context, raw net.Conn) (net.Conn, lockstep.NodeID, error) {
	s := k.current()
	var from lockstep.NodeID
	conn := tls.Server(raw, &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{s.cert},
		ClientCAs:    s.roots,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		// A resumed session would be of a certificate that was looked at long ago.
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			if from, err = NodeOf(cs.PeerCertificates[0]); err != nil {
				return &Refusal{ReasonIdentity, err}
			}
			return nil
		},
	})
	if err := conn.HandshakeContext(ctx); isGone(err) {
		return nil, "", err // whoever looks whether the port is open does that
	} else if err != nil {
		return nil, "", classify(err)
	}
	return hardClose{conn}, from, nil
}

// hardClose ends a connection without the last words of TLS: they would wait up to 5 s for a peer that takes
// nothing in, and who closes a link must not wait. Every frame says how long it is, so nobody is misled.
type hardClose struct{ *tls.Conn }

func (c hardClose) Close() error { return c.NetConn().Close() }

// verify checks a chain that was sent, at the time of now, and gives the node that it is of.
func verify(chain []*x509.Certificate, roots *x509.CertPool, use x509.ExtKeyUsage) (lockstep.NodeID, error) {
	if len(chain) == 0 {
		return "", &Refusal{ReasonCertificate, errors.New("no certificate was sent")}
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
		return "", &Refusal{ReasonCertificate, err}
	}
	id, err := NodeOf(chain[0])
	if err != nil {
		return "", &Refusal{ReasonIdentity, err}
	}
	return id, nil
}

// load reads the files and checks that they are of use together.
func load(f Files, node lockstep.NodeID) (*set, error) {
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("tls_ca: %w", err)
	}
	s := &set{roots: x509.NewCertPool()}
	if !s.roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls_ca: no certificate in %s", f.CA)
	}
	if s.cert, err = tls.LoadX509KeyPair(f.Cert, f.Key); err != nil {
		return nil, fmt.Errorf("tls_cert, tls_key: %w", err)
	}
	chain := []*x509.Certificate{s.cert.Leaf}
	for _, der := range s.cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("tls_cert: %s: %w", f.Cert, err)
		}
		chain = append(chain, c)
	}
	for use, name := range map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "server", x509.ExtKeyUsageClientAuth: "client"} {
		found, err := verify(chain, s.roots, use)
		var invalid x509.CertificateInvalidError
		switch {
		case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
			if found, err = NodeOf(s.cert.Leaf); err != nil {
				return nil, fmt.Errorf("tls_cert: %s: %w", f.Cert, err)
			}
		case err != nil:
			return nil, fmt.Errorf("tls_cert: %s is of no use as a %s's: %w", f.Cert, name, errors.Unwrap(err))
		}
		if found != node {
			return nil, fmt.Errorf("tls_cert: %s is of node %s, and this is node %s: it needs a certificate with the URI %s", f.Cert, found, node, NodeURI(node))
		}
	}
	return s, nil
}

func (f Files) stamps() (seen [3]stamp, err error) {
	for i, path := range []string{f.CA, f.Cert, f.Key} {
		info, err := os.Stat(path)
		if err != nil {
			return seen, fmt.Errorf("%s: %w", [...]string{"tls_ca", "tls_cert", "tls_key"}[i], err)
		}
		seen[i] = stamp{size: uint64(info.Size()), changed: info.ModTime()}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			seen[i].inode = sys.Ino
		}
	}
	return seen, nil
}

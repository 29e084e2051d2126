package peertls

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"github.com/lockstep-dr/lockstep"
)

// The name of a node in its certificate is the URI spiffe://lockstep/node/<id>.
const (
	scheme     = "spiffe"
	domain     = "lockstep"
	nodePrefix = "/node/"
)

// NodeURI is the name that the certificate of a node carries.
func NodeURI(id lockstep.NodeID) *url.URL {
	return &url.URL{Scheme: scheme, Host: domain, Path: nodePrefix + string(id)}
}

// NodeOf gives the node that a certificate names. One that names none, or two, or something besides, is
// nobody's: what a certificate was issued for must be one thing.
func NodeOf(cert *x509.Certificate) (lockstep.NodeID, error) {
	var names []*url.URL
	for _, u := range cert.URIs {
		if u.Scheme == scheme {
			names = append(names, u)
		}
	}
	if len(names) != 1 {
		return "", fmt.Errorf("the certificate of %q has %d names of the form %s, a node's has one", cert.Subject.CommonName, len(names), NodeURI("ID"))
	}
	u := names[0]
	id, found := strings.CutPrefix(u.Path, nodePrefix)
	if u.Host != domain || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !found || id == "" || strings.Contains(id, "/") {
		return "", fmt.Errorf("the certificate is of %s, which is no node: a node's has the form %s", u, NodeURI("ID"))
	}
	return lockstep.NodeID(id), nil
}

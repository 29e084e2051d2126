// Package ca is the certificate authority of a small site: it makes a CA, and certificates for the parts of a
// deployment, each with the names and uses of its kind and no others. Authority is without I/O; Dir keeps one
// in a directory.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/internal/peertls"
)

// Kind says what a certificate is for.
type Kind string

// Kinds. A node and a controller are known by a URI, servers that others' clients reach by host names.
const (
	KindNode       Kind = "node"       // links between nodes, and client of etcd
	KindController Kind = "controller" // client of etcd
	KindEtcd       Kind = "etcd"       // member of etcd: for clients and for other members
	KindAPI        Kind = "api"        // the REST API
)

// Kinds lists them all.
var Kinds = []Kind{KindNode, KindController, KindEtcd, KindAPI}

// named reports whether certificates of the kind are for host names.
func (k Kind) named() bool { return k == KindEtcd || k == KindAPI }

// uses are what the other side may take such a certificate for.
func (k Kind) uses() []x509.ExtKeyUsage {
	switch k {
	case KindNode, KindEtcd:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	case KindController:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case KindAPI:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	return nil
}

// Bounds of a request.
const (
	MaxName  = 255
	MaxHosts = 64
	MaxLife  = 30 * 365 * 24 * time.Hour
	backdate = 5 * time.Minute // for clocks that are behind the one of the CA
)

// Authority is a CA with its key.
type Authority struct {
	Cert *x509.Certificate
	key  crypto.Signer
}

// Request says what certificate is wanted.
type Request struct {
	Kind  Kind
	Name  string   // the node's id, the controller's, or a host
	Hosts []string // host names and IP addresses, for KindEtcd and KindAPI; none: Name
	Life  time.Duration
}

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	hostForm = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)
)

// New makes a CA.
func New(name string, now time.Time, life time.Duration) (*Authority, error) {
	if name == "" || len(name) > MaxName {
		return nil, fmt.Errorf("name: %d characters, 1 to %d are possible", len(name), MaxName)
	}
	if err := checkLife(life); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{Cert: cert, key: key}, nil
}

// Parse reads a CA and its key from PEM.
func Parse(certPEM, keyPEM []byte) (*Authority, error) {
	cert, err := ParseCert(certPEM)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("no PEM block in the key of the CA")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key of the CA: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the key is not the one of the CA's certificate")
	}
	return &Authority{Cert: cert, key: key}, nil
}

// ParseCert reads the first certificate of a PEM file.
func ParseCert(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM block of a certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// PEM gives certificate and key as files hold them.
func (a *Authority) PEM() (certPEM, keyPEM []byte, err error) {
	if keyPEM, err = encodeKey(a.key); err != nil {
		return nil, nil, err
	}
	return encodeCert(a.Cert.Raw), keyPEM, nil
}

// Issue makes a certificate with a new key. It never outlives the CA.
func (a *Authority) Issue(r Request, now time.Time) (certPEM, keyPEM []byte, err error) {
	template, err := r.template(now)
	if err != nil {
		return nil, nil, err
	}
	if !now.Before(a.Cert.NotAfter) {
		return nil, nil, fmt.Errorf("the CA has ended at %s: make a new one", a.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if template.NotAfter.After(a.Cert.NotAfter) {
		return nil, nil, fmt.Errorf("validity: the certificate would end at %s, the CA ends at %s: ask for less, or make a new CA",
			template.NotAfter.UTC().Format(time.RFC3339), a.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return a.sign(template)
}

func (a *Authority) sign(template *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return encodeCert(der), keyPEM, nil
}

// Check says what is wrong with the request itself.
func (r Request) Check() error {
	_, err := r.template(time.Time{})
	return err
}

// namesOf is what a certificate proves its holder to be.
func namesOf(c *x509.Certificate) []string {
	var all []string
	for _, u := range c.URIs {
		all = append(all, u.String())
	}
	all = append(all, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

// template checks the request and says what the certificate will hold.
func (r Request) template(now time.Time) (*x509.Certificate, error) {
	if !slices.Contains(Kinds, r.Kind) {
		return nil, fmt.Errorf("kind: %q is none of %v", r.Kind, Kinds)
	}
	if len(r.Name) > MaxName || !nameForm.MatchString(r.Name) {
		return nil, fmt.Errorf("name: %q must be 1 to %d letters, digits, dots, dashes and underscores, with a letter or digit at both ends", r.Name, MaxName)
	}
	if err := checkLife(r.Life); err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: commonName(r)}, NotBefore: now.Add(-backdate), NotAfter: now.Add(r.Life),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: r.Kind.uses(),
	}
	if !r.Kind.named() {
		if len(r.Hosts) > 0 {
			return nil, fmt.Errorf("host: a %s is known by its id, whatever its address; hosts are for %s and %s", r.Kind, KindEtcd, KindAPI)
		}
		t.URIs = []*url.URL{uri(r.Kind, r.Name)}
		return t, nil
	}
	hosts := r.Hosts
	if len(hosts) == 0 {
		hosts = []string{r.Name}
	}
	if len(hosts) > MaxHosts {
		return nil, fmt.Errorf("host: %d of them, at most %d are possible", len(hosts), MaxHosts)
	}
	for _, h := range hosts {
		ip := net.ParseIP(h)
		switch {
		case ip != nil:
			t.IPAddresses = append(t.IPAddresses, ip)
		case len(h) <= MaxName && hostForm.MatchString(h):
			t.DNSNames = append(t.DNSNames, strings.ToLower(h))
		default:
			return nil, fmt.Errorf("host: %q is neither a host name nor an IP address", h)
		}
	}
	return t, nil
}

// commonName is for people only; 64 is the most that X.520 allows.
func commonName(r Request) string {
	name := string(r.Kind) + " " + r.Name
	return name[:min(len(name), 64)]
}

func uri(k Kind, name string) *url.URL {
	u := peertls.NodeURI(lockstep.NodeID(name))
	if k != KindNode {
		u.Path = "/" + string(k) + "/" + name
	}
	return u
}

func checkLife(life time.Duration) error {
	if life < time.Hour || life > MaxLife {
		return fmt.Errorf("validity: %s must be at least 1h and at most %s", life, MaxLife)
	}
	return nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

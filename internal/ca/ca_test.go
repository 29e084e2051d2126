package ca

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/internal/peertls"
)

const year = 365 * 24 * time.Hour

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := New("test", time.Now(), year)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestIssue: each kind has its names and uses, verifies for these and for no other.
func TestIssue(t *testing.T) {
	a := authority(t)
	roots := x509.NewCertPool()
	roots.AddCert(a.Cert)
	for _, row := range []struct {
		r              Request
		host           string // for which it holds; "": none
		node           string // whose it is; "": no node's
		server, client bool
	}{
		{Request{Kind: KindNode, Name: "az1-node-1"}, "", "az1-node-1", true, true},
		{Request{Kind: KindController, Name: "c1"}, "", "", false, true},
		{Request{Kind: KindEtcd, Name: "etcd-1", Hosts: []string{"10.0.0.1", "etcd-1.example.org"}}, "etcd-1.example.org", "", true, true},
		{Request{Kind: KindEtcd, Name: "etcd-1", Hosts: []string{"10.0.0.1"}}, "10.0.0.1", "", true, true},
		{Request{Kind: KindAPI, Name: "API.example.org"}, "api.example.org", "", true, false},
		{Request{Kind: KindAPI, Name: "api", Hosts: []string{"::1"}}, "::1", "", true, false},
	} {
		row.r.Life = time.Hour
		certPEM, keyPEM, err := a.Issue(row.r, time.Now())
		if err != nil {
			t.Errorf("%+v: %v", row.r, err)
			continue
		}
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		for use, want := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageServerAuth: row.server, x509.ExtKeyUsageClientAuth: row.client} {
			_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: row.host, KeyUsages: []x509.ExtKeyUsage{use}})
			if (err == nil) != want {
				t.Errorf("%+v, use %d: %v", row.r, use, err)
			}
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "other.example.org", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
			t.Errorf("%+v holds for another host", row.r)
		}
		id, err := peertls.NodeOf(pair.Leaf)
		if string(id) != row.node || (err == nil) != (row.node != "") {
			t.Errorf("%+v is of node %q, %v", row.r, id, err)
		}
		if pair.Leaf.IsCA || pair.Leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
			t.Errorf("%+v can sign", row.r)
		}
	}
}

// TestRefused: each wrong request is refused by the name of what is wrong.
func TestRefused(t *testing.T) {
	a := authority(t)
	good := Request{Kind: KindAPI, Name: "api", Life: time.Hour}
	if _, _, err := a.Issue(good, time.Now()); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Request){
		`kind: "x"`:        func(r *Request) { r.Kind = "x" },
		`name: ""`:         func(r *Request) { r.Name = "" },
		`name: "a/b"`:      func(r *Request) { r.Name = "a/b" },
		`name: "../a"`:     func(r *Request) { r.Name = "../a" },
		`name: "aaa`:       func(r *Request) { r.Name = strings.Repeat("a", 256) },
		"validity: 59m59s": func(r *Request) { r.Life = time.Hour - time.Second },
		"validity: 262801": func(r *Request) { r.Life = MaxLife + time.Hour },
		"the CA ends at":   func(r *Request) { r.Life = year + time.Hour },
		"host: a node is":  func(r *Request) { r.Kind, r.Hosts = KindNode, []string{"h"} },
		`host: "a b"`:      func(r *Request) { r.Hosts = []string{"a b"} },
		`host: "api_1"`:    func(r *Request) { r.Name = "api_1" },
		"host: 65 of them": func(r *Request) { r.Hosts = strings.Split(strings.Repeat("h,", 64)+"h", ",") },
	} {
		r := good
		change(&r)
		if _, _, err := a.Issue(r, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, _, err := a.Issue(good, time.Now().Add(2*year)); err == nil || !strings.Contains(err.Error(), "the CA has ended") {
		t.Errorf("an ended CA issues: %v", err)
	}
}

// TestParse: what PEM gives is the same CA again; with another's key it is none.
func TestParse(t *testing.T) {
	a, other := authority(t), authority(t)
	cert, key, err := a.PEM()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(cert, key)
	if err != nil || !back.Cert.Equal(a.Cert) {
		t.Fatalf("%v", err)
	}
	if _, _, err := back.Issue(Request{Kind: KindNode, Name: "n", Life: time.Hour}, time.Now()); err != nil {
		t.Error(err)
	}
	_, otherKey, _ := other.PEM()
	for _, row := range [][2][]byte{{cert, otherKey}, {cert, nil}, {nil, key}, {cert, cert}, {key, key}} {
		if _, err := Parse(row[0], row[1]); err == nil {
			t.Errorf("parsed: %.40s, %.40s", row[0], row[1])
		}
	}
}

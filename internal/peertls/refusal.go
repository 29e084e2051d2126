package peertls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// Reason says why a connection between nodes was refused.
type Reason string

// Reasons, as metrics name them.
const (
	ReasonMixed       Reason = "mixed"       // one side speaks TLS, the other does not
	ReasonCertificate Reason = "certificate" // its certificate is not of the CA, has expired, or is for another use
	ReasonIdentity    Reason = "identity"    // its certificate is good, and of somebody else
	ReasonRemote      Reason = "remote"      // it did not take this node's certificate
	ReasonHandshake   Reason = "handshake"   // anything else that ended the handshake, its time limit included
)

// Reasons lists them all.
var Reasons = []Reason{ReasonMixed, ReasonCertificate, ReasonIdentity, ReasonRemote, ReasonHandshake}

// Refusal is the error of a connection that did not become one between two nodes that know each other.
type Refusal struct {
	Reason Reason
	Err    error
}

func (r *Refusal) Error() string { return r.Err.Error() + r.advice() }

func (r *Refusal) Unwrap() error { return r.Err }

// advice says what to do.
func (r *Refusal) advice() string {
	switch r.Reason {
	case ReasonMixed:
		return ": set tls_ca, tls_cert and tls_key at both nodes or at none"
	case ReasonCertificate:
		return ": look at tls_ca here and tls_cert there, and at both clocks"
	case ReasonIdentity:
		return ": give each node its own certificate in tls_cert, and see whether the address is the node's"
	case ReasonRemote:
		return ": look at tls_cert here and tls_ca there, and at both clocks"
	case ReasonHandshake:
	}
	return ""
}

// classify finds the reason in what ended a handshake.
func classify(err error) *Refusal {
	var have *Refusal
	var record tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &have):
		return have
	case errors.As(err, &record):
		return &Refusal{ReasonMixed, errors.New("what came is no TLS")}
	case errors.As(err, &verification), errors.As(err, &invalid), errors.As(err, &unknown):
		return &Refusal{ReasonCertificate, err}
	case isRemote(err):
		return &Refusal{ReasonRemote, err}
	case isGone(err):
		return &Refusal{ReasonHandshake, fmt.Errorf("the other side closed the connection in the TLS handshake (%w): it is down, or it is without tls_ca, tls_cert and tls_key", err)}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return &Refusal{ReasonHandshake, errors.New("no TLS handshake within the time limit")}
	}
	return &Refusal{ReasonHandshake, err}
}

// Rejected makes a Refusal of an error that the other side's alert caused. In TLS 1.3 who dials has ended its
// handshake when the other side looks at its certificate, and learns with the first read what came of it.
func Rejected(err error) error {
	if !isRemote(err) {
		return err
	}
	return &Refusal{ReasonRemote, err}
}

// isGone: the other side has closed the connection.
func isGone(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) }

// isRemote: the error is an alert of the other side.
func isRemote(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

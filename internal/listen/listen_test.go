package listen_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"syscall"
	"testing"

	"github.com/lockstep-dr/lockstep/internal/listen"
)

// script is a listener that gives these errors, and then a connection.
type script struct{ errs []error }

func (s *script) Accept() (net.Conn, error) {
	if len(s.errs) == 0 {
		conn, _ := net.Pipe()
		return conn, nil
	}
	err := s.errs[0]
	s.errs = s.errs[1:]
	return nil, err
}

func (s *script) Addr() net.Addr { return &net.TCPAddr{} }
func (s *script) Close() error   { return nil }

func TestOnlyTheEndEndsAccepting(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wants := &net.OpError{Op: "accept", Err: syscall.EMFILE}
	for name, c := range map[string]struct {
		ctx  context.Context
		errs []error
		want error
	}{
		"a want of descriptors":         {t.Context(), []error{wants, wants, errors.New("what else there may be")}, nil},
		"closed":                        {t.Context(), []error{&net.OpError{Op: "accept", Err: net.ErrClosed}}, net.ErrClosed},
		"a want, and closed meanwhile":  {t.Context(), []error{wants, net.ErrClosed}, net.ErrClosed},
		"ended":                         {ended, []error{wants}, context.Canceled},
		"ended, with the listener, too": {ended, []error{net.ErrClosed}, context.Canceled},
	} {
		conn, err := listen.Accept(c.ctx, &script{c.errs}, log)
		if !errors.Is(err, c.want) || (conn != nil) != (c.want == nil) {
			t.Errorf("%s: %v, %v", name, conn, err)
		}
	}
}

// Package listen accepts connections for servers whose end would cost more than a connection.
package listen

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"
)

// Pauses after an error of the listener: the first, and the longest.
const (
	pauseFirst   = 5 * time.Millisecond
	pauseLongest = time.Second
)

// Accept gives the listener's next connection. An error ends it only when ctx has ended or the listener was
// closed (net.ErrClosed). After any other, a want of descriptors for example, it says so, pauses and
// tries again: what the process serves already must not suffer.
func Accept(ctx context.Context, ln net.Listener, log *slog.Logger) (net.Conn, error) {
	for pause := pauseFirst; ; pause = min(2*pause, pauseLongest) {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return nil, err
		}
		log.Warn("accept", "address", ln.Addr(), "error", err, "retry_in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

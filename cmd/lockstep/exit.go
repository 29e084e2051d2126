package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/client"
)

// Exit codes; they are listed in every help text.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNotFound
	exitConflict
	exitTimeout
	exitUnreachable
)

// usageError marks an error as the caller's.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usage marks err as a wrong call or a wrong configuration.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err}
}

var (
	// errWaitTimeout: --timeout passed before the thing settled.
	errWaitTimeout = errors.New("timed out")
	// errRefused: the person at the terminal said no, or nobody was there to ask.
	errRefused = errors.New("not confirmed")
)

// exitCode translates an error; this is the only place that does.
func exitCode(err error) int {
	var use *usageError
	var refusal *client.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &use), errors.Is(err, errRefused), errors.Is(err, client.ErrNoCredentials), errors.Is(err, client.ErrClouds):
		return exitUsage
	case errors.Is(err, errWaitTimeout), errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, client.ErrUnreachable):
		return exitTimeout
	case errors.Is(err, client.ErrUnreachable), errors.Is(err, lockstep.ErrStoreUnavailable):
		return exitUnreachable
	case errors.Is(err, lockstep.ErrNotFound):
		return exitNotFound
	case errors.Is(err, lockstep.ErrConflict):
		return exitConflict
	case errors.As(err, &refusal):
		switch refusal.Status {
		case http.StatusNotFound:
			return exitNotFound
		case http.StatusConflict:
			return exitConflict
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return exitUnreachable
		}
	}
	return exitFailed
}

package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/lockstep-dr/lockstep/api/audit"
)

// hangups are the SIGHUPs from now on. Without an audit log there are none: the signal ends the process, as ever.
func hangups(l *audit.Log) chan os.Signal {
	if l == nil {
		return nil
	}
	hup := make(chan os.Signal, 1) // one that comes while the file is opened means one more time
	signal.Notify(hup, syscall.SIGHUP)
	return hup
}

// reopenAudit opens the audit log anew at each SIGHUP, until ctx ends.
func reopenAudit(ctx context.Context, hup chan os.Signal, l *audit.Log, log *slog.Logger) error {
	if hup != nil {
		defer signal.Stop(hup)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		if err := l.Reopen(); err != nil {
			log.Error("the audit log goes on in its old file", "error", err)
			continue
		}
		log.Info("the audit log was opened anew")
	}
}

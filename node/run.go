package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// Run runs the daemon until ctx ends; then it stops accepting requests, flushes, and returns nil.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	log = log.With("node", cfg.ID)
	if cfg.PIDFile != "" {
		if err := os.WriteFile(cfg.PIDFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil { //nolint:gosec // other tools read it
			return fmt.Errorf("write pid file: %w", err)
		}
		defer func() { _ = os.Remove(cfg.PIDFile) }() // a stale one is noticed by who reads it
	}
	tlsCfg, err := etcdstore.LoadTLS(etcdstore.TLSFiles{CA: cfg.EtcdCA, Cert: cfg.EtcdCert, Key: cfg.EtcdKey})
	if err != nil {
		return err
	}
	st, err := etcdstore.Open(ctx, etcdstore.Config{Endpoints: cfg.EtcdEndpoints, TLS: tlsCfg, Lazy: true, Logger: log})
	if err != nil {
		return err
	}
	return errors.Join(RunOn(ctx, cfg, st, log), st.Close())
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api"
	"github.com/lockstep-dr/lockstep/api/audit"
	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

func newControllerCommand(a *app) *cobra.Command {
	cfg := defaultControllerConfig()
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the control plane: the REST API and the orchestration",
		Long: `Runs a controller: it serves the API, and the elected one of all controllers drives
operations. Nodes go on serving without it. It runs in the foreground until
SIGTERM and logs to stderr.

The store is an external etcd cluster (etcd_endpoints), best over three sites, or
a member embedded in this process (etcd_dir). An embedded member inside one of
the two zones would be lost with it, and failover with it: it belongs on a third
site.

` + precedenceText,
		Example: `  lockstep controller --config /etc/lockstep/controller.yaml
  lockstep controller --etcd-endpoints https://etcd-1:2379,https://etcd-2:2379,https://etcd-3:2379 --admin-password-file /etc/lockstep/admin-password`,
		Args: noArgs,
	}
	s := newSettings(&cfg, controllerHelp, cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := s.load(); err != nil {
			return usage(err)
		}
		if err := cfg.validate(); err != nil {
			return usage(err)
		}
		return runController(cmd.Context(), cfg, newLogger(a.err, cfg.LogLevel, cfg.LogFormat))
	}
	return cmd
}

// runController composes a controller and runs it until ctx ends or a part of it fails.
func runController(ctx context.Context, cfg controllerConfig, log *slog.Logger) (err error) {
	closeWith := func(c io.Closer) { err = errors.Join(err, c.Close()) }
	password, err := readSecret(cfg.AdminPasswordFile)
	if err != nil {
		return fmt.Errorf("password of %s: %w", cfg.AdminUser, err)
	}
	// The address is taken first: if another controller has it, nothing was touched yet.
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for the API: %w", err)
	}
	defer listener.Close() // closed by the server before; a second close says so and means nothing
	auditLog, err := audit.Open(cfg.AuditLog)
	if err != nil {
		return fmt.Errorf("audit_log: %w", err)
	}
	defer closeWith(auditLog)
	hup := hangups(auditLog)

	var failed <-chan error // of the embedded member; nil: there is none
	files := etcdstore.TLSFiles{CA: cfg.EtcdCA, Cert: cfg.EtcdCert, Key: cfg.EtcdKey}
	endpoints := cfg.EtcdEndpoints
	if cfg.EtcdDir != "" {
		member, err := etcdstore.StartEmbedded(etcdstore.EmbedConfig{
			Dir: cfg.EtcdDir, ListenClient: cfg.EtcdListen, ClientTLS: files, Logger: log,
		})
		if err != nil {
			return err
		}
		defer closeWith(member)
		endpoints, failed = member.Endpoints(), member.Err()
		log.Info("embedded store runs", "endpoints", strings.Join(endpoints, ","), "dir", cfg.EtcdDir)
	}
	tlsConfig, err := etcdstore.LoadTLS(files)
	if err != nil {
		return err
	}
	st, err := etcdstore.Open(ctx, etcdstore.Config{Endpoints: endpoints, TLS: tlsConfig, Logger: log})
	if err != nil {
		return err
	}
	defer closeWith(st)

	boot, err := identity.Bootstrap(ctx, st, identity.BootstrapConfig{Project: cfg.AdminProject, User: cfg.AdminUser, Password: password})
	if err != nil {
		return err
	}
	if boot.Created {
		log.Info("made the first user", "user", boot.UserName, "project", boot.ProjectName, "project_id", boot.ProjectID)
	}
	if boot.Upgraded > 0 {
		log.Info("whoever had the role member keeps what it could do: the role operator was added", "assignments_and_credentials", boot.Upgraded)
	}
	users, err := identity.New(identity.Config{Store: st, Region: cfg.Region, Logger: log})
	if err != nil {
		return err
	}
	controller := control.New(control.Config{Store: st, ID: cfg.ID, Region: cfg.Region, Zones: zones(cfg.AZs), StoreSites: cfg.storeSites(), Logger: log})
	policy, err := cfg.policy()
	if err != nil {
		return err // validated
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	server := api.NewHTTPServer(cfg.Listen, api.New(api.Config{
		Service: controller, Store: st, Identity: users, Region: cfg.Region, PublicURL: cfg.publicURL(), Policy: policy, Logger: log, Audit: auditLog, Registry: registry,
	}), log)

	if cfg.TLSCert != "" {
		if server.TLSConfig, err = newAPITLS(cfg, log); err != nil {
			return err
		}
	}
	if cfg.PIDFile != "" {
		if err := os.WriteFile(cfg.PIDFile, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
			return fmt.Errorf("write the pid file: %w", err)
		}
		defer func() { err = errors.Join(err, ignoreMissing(os.Remove(cfg.PIDFile))) }()
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return controller.Run(ctx) })
	g.Go(func() error { return serve(server, listener) })
	g.Go(func() error { return shutdown(ctx, server, cfg.ShutdownTimeout, log) })
	g.Go(func() error { return warnOfSite(ctx, cfg, controller, log) })
	if failed != nil {
		g.Go(func() error {
			select {
			case err := <-failed:
				return fmt.Errorf("embedded store: %w", err)
			case <-ctx.Done():
				return nil
			}
		})
	}
	g.Go(func() error { return reopenAudit(ctx, hup, auditLog, log) })
	log.Info("API runs", "url", cfg.publicURL(), "region", cfg.Region)
	if err := g.Wait(); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

func zones(names []string) []lockstep.AZ {
	azs := make([]lockstep.AZ, len(names))
	for i, n := range names {
		azs[i] = lockstep.AZ(n)
	}
	return azs
}

func serve(server *http.Server, listener net.Listener) error {
	var err error
	if server.TLSConfig != nil {
		err = server.ServeTLS(listener, "", "")
	} else {
		err = server.Serve(listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the API: %w", err)
}

// shutdown lets requests finish once ctx has ended; what takes longer than timeout is cut off:
// operations go on with the next controller.
func shutdown(ctx context.Context, server *http.Server, timeout time.Duration, log *slog.Logger) error {
	<-ctx.Done()
	log.Info("stopping")
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if err := server.Shutdown(bounded); err != nil {
		log.Warn("requests were cut off", "error", err)
		return server.Close()
	}
	return nil
}

// siteCheckEvery is how often a controller looks whether the store's quorum shares a zone with nodes.
const siteCheckEvery = time.Minute

// warnOfSite says, again and again, that the majority of the store's members stands in a zone that
// holds nodes: with that zone the store is lost, and with it failover. The groups show it, too.
func warnOfSite(ctx context.Context, cfg controllerConfig, svc control.Service, log *slog.Logger) error {
	if len(cfg.storeSites()) == 0 {
		if cfg.EtcdDir != "" {
			log.Warn("the site of the embedded store is not known: set site to its zone, or to the name of the third site")
		}
		return nil
	}
	tick := time.NewTicker(siteCheckEvery)
	defer tick.Stop()
	for {
		if nodes, err := svc.Nodes(ctx); err == nil {
			warned := map[lockstep.AZ]bool{}
			for _, n := range nodes {
				if !warned[n.AZ] && control.StoreDiesWith(cfg.storeSites(), n.AZ) {
					warned[n.AZ] = true
					log.Warn("failover is impossible if this zone is lost: the majority of the store's members is in a zone that holds nodes; run the store on a third site, or over three sites", "az", n.AZ)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// readSecret reads the first line of a file.
func readSecret(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	secret, _, _ := strings.Cut(string(data), "\n")
	if secret = strings.TrimSuffix(secret, "\r"); secret == "" {
		return "", fmt.Errorf("%s has an empty first line", path)
	}
	return secret, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/node"
)

// nodeConfig is the daemon's configuration with what only the process around it needs.
type nodeConfig struct {
	node.Config `yaml:",inline"`
	LogLevel    string `yaml:"log_level"`
	LogFormat   string `yaml:"log_format"`
}

var nodeHelp = map[string]string{
	"id":                   "name of this node, unique in the cluster, for ever",
	"az":                   "availability zone of this host",
	"pool":                 "directory of the volumes",
	"replicate":            "host:port to listen on for other nodes; port 0: any free one",
	"advertise":            "host:port given to other nodes; default: what was bound",
	"tls_ca":               "PEM file with the CA of the certificates of nodes; empty: links between nodes are plain",
	"tls_cert":             "PEM file with this node's certificate, which names its id",
	"tls_key":              "PEM file with the key of tls_cert",
	"insecure_replication": "allow plain links beyond the loopback: who reaches the port can read and write every volume",
	"nbd_socket":           "Unix socket for NBD clients on this host",
	"nbd_address":          "host:port for NBD clients; empty: none",
	"metrics":              "host:port of /metrics and /healthz; empty: none",
	"pid_file":             "file for the process id, removed at a clean stop",
	"etcd_endpoints":       "URLs of the etcd cluster",
	"etcd_ca":              "PEM file with the CA of the etcd cluster",
	"etcd_cert":            "PEM file with the client certificate for etcd",
	"etcd_key":             "PEM file with the key of the client certificate",
	"boot_id_path":         "file with the kernel's boot id",
	"trip_after":           "silence of a secondary after which the group stops replicating",
	"lease_ttl":            "how long a secondary's read lease lasts",
	"lease_margin":         "allowance for the drift of clocks over a lease",
	"heartbeat":            "pause between two heartbeats",
	"flush_every":          "pause between two background flushes",
	"intent_limit_mib":     "most MiB of a volume that its write-intent log marks while in sync",
	"nbd_memory_mib":       "most MiB that requests of NBD clients hold in memory, all together",
	"resync_limit_mib":     "MiB/s that synchronizations read and send, all together, unless a call says otherwise; 0: no limit",
	"verify_rate_mib":      "MiB/s that verifications compare, all together, unless a call names its own rate",
	"log_level":            "debug, info, warn or error",
	"log_format":           "text or json",
}

func defaultNodeConfig() nodeConfig {
	return nodeConfig{Config: node.Config{}.WithDefaults(), LogLevel: "info", LogFormat: "text"}
}

func (c nodeConfig) validate() error {
	var errs []error
	if _, err := logLevel(c.LogLevel); err != nil {
		errs = append(errs, fmt.Errorf("log_level: %w", err))
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		errs = append(errs, fmt.Errorf("log_format: %q is neither text nor json", c.LogFormat))
	}
	if (c.EtcdCert == "") != (c.EtcdKey == "") {
		errs = append(errs, errors.New("etcd_cert, etcd_key: both or neither must be set"))
	}
	return errors.Join(append(errs, c.WithDefaults().Validate())...)
}

func newNodeCommand(a *app) *cobra.Command {
	cfg := defaultNodeConfig()
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the storage daemon of a host",
		Long: `Runs the storage daemon: it holds the volumes of its pool, serves them over NBD
and replicates them to the nodes of the other zone. It runs in the foreground
until SIGTERM, logs to stderr, and never serves a volume of which a newer epoch
is known.

` + precedenceText,
		Example: `  lockstep node --config /etc/lockstep/node.yaml
  lockstep node --id n1 --az az1 --pool /srv/lockstep --nbd-socket /run/lockstep/nbd.sock --etcd-endpoints http://127.0.0.1:2379`,
		Args: noArgs,
	}
	s := newSettings(&cfg, nodeHelp, cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := s.load(); err != nil {
			return usage(err)
		}
		if err := cfg.validate(); err != nil {
			return usage(err)
		}
		log := newLogger(a.err, cfg.LogLevel, cfg.LogFormat)
		cfg.Version = version
		return node.Run(cmd.Context(), cfg.WithDefaults(), log)
	}
	cmd.AddCommand(newNodeListCommand(a), newNodeLimitCommand(a))
	return cmd
}

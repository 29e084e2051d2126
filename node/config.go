package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/nbd"
	"github.com/lockstep-dr/lockstep/store"
)

// minIntentLimitMiB is some ten times what one cold mark of the write-intent log sets.
const minIntentLimitMiB = 256

// keepMarks is for how many background flushes the mark of an idle region is kept: half a minute of them
// with the defaults.
const keepMarks = 30

// Config is what one storage daemon needs to know. Zero durations take the default.
type Config struct {
	ID            lockstep.NodeID `yaml:"id"`
	AZ            lockstep.AZ     `yaml:"az"`
	Pool          string          `yaml:"pool"`      // directory of the volumes
	Replicate     string          `yaml:"replicate"` // host:port to listen on for peers; port 0: any free one
	Advertise     string          `yaml:"advertise"` // host:port given to peers; default: what was bound
	TLSCA         string          `yaml:"tls_ca"`    // PEM files of the links between nodes; all three or none
	TLSCert       string          `yaml:"tls_cert"`
	TLSKey        string          `yaml:"tls_key"`
	InsecureLinks bool            `yaml:"insecure_replication"` // plain links beyond the loopback
	NBDSocket     string          `yaml:"nbd_socket"`           // Unix socket path; empty: none
	NBDAddress    string          `yaml:"nbd_address"`          // host:port; empty: none
	Metrics       string          `yaml:"metrics"`              // host:port of /metrics and /healthz; empty: none
	PIDFile       string          `yaml:"pid_file"`             // written at start, removed at a clean stop
	EtcdEndpoints []string        `yaml:"etcd_endpoints"`       // URLs
	EtcdCA        string          `yaml:"etcd_ca"`
	EtcdCert      string          `yaml:"etcd_cert"`
	EtcdKey       string          `yaml:"etcd_key"`
	BootIDPath    string          `yaml:"boot_id_path"` // default /proc/sys/kernel/random/boot_id

	TripAfter      time.Duration `yaml:"trip_after"`       // silence of a secondary before a trip, default 3s
	LeaseTTL       time.Duration `yaml:"lease_ttl"`        // read lease, default 1s
	LeaseMargin    time.Duration `yaml:"lease_margin"`     // allowance for clock drift, default 100ms
	Heartbeat      time.Duration `yaml:"heartbeat"`        // default 200ms
	FlushEvery     time.Duration `yaml:"flush_every"`      // background flush, default 1s
	IntentLimitMiB int64         `yaml:"intent_limit_mib"` // most that the write-intent log of a volume marks in sync, default 4096
	NBDMemoryMiB   int64         `yaml:"nbd_memory_mib"`   // most that requests of NBD clients hold in memory, default 1024

	VerifyRateMiB int64 `yaml:"verify_rate_mib"` // that verifications compare in a second, all together, unless a call names its own rate; default 64

	ResyncLimitMiB int64 `yaml:"resync_limit_mib"` // that synchronizations read and send in a second, all together, unless a call says otherwise; default 0, no limit

	// Version is what the node calls itself in handshakes and in the store; the program's, no setting.
	Version string `yaml:"-"`

	Machine Machine `yaml:"-"`

	fs      vfs.FS      // Machine.FS, or of a test
	hostID  string      // Machine.ID, or of a test
	started func(*Node) // nil, or called when the engine runs
}

// Machine is what a node takes from the machine it runs on. What is nil is the real thing; the
// simulation gives its own.
type Machine struct {
	FS      vfs.FS
	ID      string                                                   // "": /etc/machine-id
	Listen  func(addr string) (net.Listener, error)                  // for replication
	Dial    func(ctx context.Context, addr string) (net.Conn, error) // to peers
	Clock   func() time.Duration                                     // see replica.Config
	Started func(n *Node)                                            // called when the engine runs
}

// WithDefaults fills in what was left out.
func (c Config) WithDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.TripAfter, 3*time.Second)
	def(&c.LeaseTTL, time.Second)
	def(&c.LeaseMargin, 100*time.Millisecond)
	def(&c.Heartbeat, 200*time.Millisecond)
	def(&c.FlushEvery, time.Second)
	if c.IntentLimitMiB == 0 {
		c.IntentLimitMiB = 4096
	}
	if c.VerifyRateMiB == 0 {
		c.VerifyRateMiB = 64
	}
	if c.NBDMemoryMiB == 0 {
		c.NBDMemoryMiB = 1024
	}
	if c.Replicate == "" {
		c.Replicate = "127.0.0.1:0"
	}
	if c.fs == nil {
		if c.fs = c.Machine.FS; c.fs == nil {
			c.fs = vfs.OS
		}
	}
	if c.hostID == "" {
		c.hostID = c.Machine.ID
	}
	if c.started == nil {
		c.started = c.Machine.Started
	}
	return c
}

// Validate names every field that is wrong.
func (c Config) Validate() error {
	var errs []error
	need := func(field, value string) {
		if strings.TrimSpace(value) == "" {
			errs = append(errs, fmt.Errorf("%s: must be set", field))
		}
	}
	need("id", string(c.ID))
	need("az", string(c.AZ))
	need("pool", c.Pool)
	if strings.ContainsAny(string(c.ID), "/ ") {
		errs = append(errs, fmt.Errorf("id: %q may not hold a slash or a blank", c.ID))
	}
	if len(c.EtcdEndpoints) == 0 {
		errs = append(errs, errors.New("etcd_endpoints: at least one URL is needed"))
	}
	if c.NBDSocket == "" && c.NBDAddress == "" {
		errs = append(errs, errors.New("nbd_socket, nbd_address: at least one must be set"))
	}
	errs = append(errs, c.checkLinks())
	if c.LeaseTTL >= c.TripAfter {
		errs = append(errs, fmt.Errorf("lease_ttl: %s must be less than trip_after (%s)", c.LeaseTTL, c.TripAfter))
	}
	if c.Heartbeat*2 > c.LeaseTTL {
		errs = append(errs, fmt.Errorf("heartbeat: %s must be at most half of lease_ttl (%s)", c.Heartbeat, c.LeaseTTL))
	}
	if c.IntentLimitMiB < minIntentLimitMiB {
		errs = append(errs, fmt.Errorf("intent_limit_mib: %d is too little, at least %d are needed", c.IntentLimitMiB, minIntentLimitMiB))
	}
	if c.ResyncLimitMiB < 0 || c.ResyncLimitMiB > store.MaxResyncLimitMiB {
		errs = append(errs, fmt.Errorf("resync_limit_mib: %d must be at least 0, for no limit, and at most %d", c.ResyncLimitMiB, store.MaxResyncLimitMiB))
	}
	if c.VerifyRateMiB < 1 || c.VerifyRateMiB > store.MaxVerifyRateMiB {
		errs = append(errs, fmt.Errorf("verify_rate_mib: %d must be at least 1, and at most %d", c.VerifyRateMiB, store.MaxVerifyRateMiB))
	}
	if least := (nbd.Limits{}.MinMemory() + 1<<20 - 1) >> 20; c.NBDMemoryMiB < least || c.NBDMemoryMiB > 1<<30 {
		errs = append(errs, fmt.Errorf("nbd_memory_mib: %d must be at least %d, and at most %d", c.NBDMemoryMiB, least, 1<<30))
	}
	return errors.Join(errs...)
}

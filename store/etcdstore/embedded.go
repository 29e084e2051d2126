package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/lockstep-dr/lockstep"
)

// Defaults of EmbedConfig.
const (
	DefaultQuotaBytes    = 2 << 30
	DefaultCompactMode   = "revision"
	DefaultCompactRetain = "20000"
	DefaultStartTimeout  = time.Minute
	DefaultHeartbeat     = 100 * time.Millisecond
	DefaultElectionAlone = 500 * time.Millisecond
	DefaultElection      = time.Second
)

const (
	// urlFile holds the client URL that was chosen for a member, so that clients find it at the
	// same place after a restart.
	urlFile  = "client-url"
	lockFile = "lock"
	dataDir  = "etcd"
	// Free ports are looked for below the range from which Linux takes the ports of outgoing
	// connections, so that none of those can sit on a remembered port at the next start.
	portLow, portHigh = 20000, 32000
	portTries         = 64
	// closeGrace is how long Close lets requests finish; open watches never do.
	closeGrace = 500 * time.Millisecond
)

// EmbedConfig describes one member of an etcd cluster inside this process. Only Dir must be set;
// what follows from the defaults is a cluster of one, reachable from this host alone.
type EmbedConfig struct {
	// Dir belongs to the member alone. It holds
	//
	//	etcd/       etcd's own data
	//	client-url  where clients reach the member, one line
	//	lock        locked while the member runs
	Dir string
	// Name is the member's name in the cluster; "lockstep" if empty.
	Name string
	// ListenClient is host:port for clients. Empty: a free port of 127.0.0.1 at the first start,
	// the same one ever after. Port 0: likewise, on that host.
	ListenClient string
	// AdvertiseClient is host:port as clients see it; ListenClient if empty.
	AdvertiseClient string
	// ListenPeer is host:port for the other members. A cluster of one does without.
	ListenPeer string
	// AdvertisePeer is host:port as the other members see it; ListenPeer if empty.
	AdvertisePeer string
	// InitialCluster lists all members at the first start, "a=http://h1:2380,b=http://h2:2380".
	// Empty: this member alone.
	InitialCluster string
	// JoinExisting adds the member to a running cluster instead of making a new one.
	JoinExisting bool
	// ClusterToken keeps members of different clusters apart.
	ClusterToken string
	// ClientTLS and PeerTLS secure the listeners; with a CA, clients or peers must show a
	// certificate. A listener that is not on the loopback is refused without TLS.
	ClientTLS, PeerTLS TLSFiles
	// QuotaBytes is the size of the database at which writes are refused.
	QuotaBytes int64
	// CompactMode is "revision" or "periodic", CompactRetain how many revisions, or what duration
	// such as "1h", of history are kept for watches.
	CompactMode, CompactRetain string
	// Heartbeat and Election are raft's times. Members of one cluster have the same.
	Heartbeat, Election time.Duration
	// StartTimeout bounds how long StartEmbedded waits for the member to be ready, which for a
	// member of several includes a quorum.
	StartTimeout time.Duration
	// Logger gets warnings and errors of etcd; slog.Default() if nil.
	Logger *slog.Logger
}

// Embedded is a running member.
type Embedded struct {
	etcd *embed.Etcd
	url  string
	lock *os.File

	mu      sync.Mutex // guards servers
	servers []*grpc.Server

	closing   atomic.Bool // etcd reports each listener that Close closes as a failure
	closeOnce sync.Once
	closeErr  error
}

// StartEmbedded starts the member of cfg.Dir, making it at the first start, and waits until it
// can serve. Data is always synced to disk before it is acknowledged. If another process runs the
// same directory the error matches lockstep.ErrConflict.
//
// etcd ends the whole process, after a log record, when its data is damaged beyond what it can
// go on with.
func StartEmbedded(cfg EmbedConfig) (*Embedded, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("embedded store: %w", err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded store: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("embedded store: %w", err)
	}
	e, err := start(cfg, lock)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded store in %s: %w", cfg.Dir, err), lock.Close())
	}
	return e, nil
}

func start(cfg EmbedConfig, lock *os.File) (*Embedded, error) {
	fixed, err := cfg.chooseListen()
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		e, err := startOnce(cfg, lock)
		if err == nil {
			return e, nil
		}
		// The port was free when it was chosen, but nobody kept it so.
		if fixed || try == portTries || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, err
		}
		if cfg.ListenClient, err = freePort(hostOf(cfg.ListenClient)); err != nil {
			return nil, err
		}
	}
}

func startOnce(cfg EmbedConfig, lock *os.File) (*Embedded, error) {
	e := &Embedded{lock: lock}
	ecfg, err := cfg.etcd(e)
	if err != nil {
		return nil, err
	}
	e.url = ecfg.AdvertiseClientUrls[0].String()
	if e.etcd, err = embed.StartEtcd(ecfg); err != nil {
		return nil, err
	}
	t := time.NewTimer(cfg.StartTimeout)
	defer t.Stop()
	select {
	case <-e.etcd.Server.ReadyNotify():
	case <-e.etcd.Server.StopNotify():
		err = errors.New("stopped while starting")
	case err = <-e.etcd.Err():
	case <-t.C:
		err = fmt.Errorf("%w: not ready within %v", lockstep.ErrStoreUnavailable, cfg.StartTimeout)
	}
	if err == nil {
		err = writeURL(cfg.Dir, e.url)
	}
	if err != nil {
		e.stop()
		return nil, err
	}
	return e, nil
}

// Endpoints are the client URLs of this member.
func (e *Embedded) Endpoints() []string { return []string{e.url} }

// Err delivers an error if a listener of the member fails. What it delivers after Close was
// called means nothing.
func (e *Embedded) Err() <-chan error { return e.etcd.Err() }

// Stopped is closed when the member has stopped, by Close or because it was removed from its
// cluster.
func (e *Embedded) Stopped() <-chan struct{} { return e.etcd.Server.StopNotify() }

// Close stops the member. Requests under way may end with lockstep.ErrStoreUnavailable at their
// clients. What was acknowledged stays.
func (e *Embedded) Close() error {
	e.closeOnce.Do(func() {
		e.stop()
		if err := e.lock.Close(); err != nil {
			e.closeErr = fmt.Errorf("close embedded store: %w", err)
		}
	})
	return e.closeErr
}

func (e *Embedded) stop() {
	e.closing.Store(true)
	// etcd waits more than five seconds for open watches to end by themselves.
	e.mu.Lock()
	servers := e.servers
	e.mu.Unlock()
	var wg sync.WaitGroup
	for _, gs := range servers {
		wg.Go(func() {
			t := time.AfterFunc(closeGrace, gs.Stop)
			defer t.Stop()
			if e.etcd.Config().ClientTLSInfo.Empty() {
				gs.GracefulStop()
			} else {
				gs.Stop() // under TLS they are served by an HTTP server, which has no graceful stop for them
			}
		})
	}
	wg.Wait()
	e.etcd.Close()
}

func (cfg *EmbedConfig) setDefaults() error {
	if cfg.Dir == "" {
		return errors.New("no directory")
	}
	single := cfg.InitialCluster == "" && !cfg.JoinExisting
	def(&cfg.Name, "lockstep")
	def(&cfg.ListenClient, "127.0.0.1:0")
	def(&cfg.ClusterToken, "lockstep")
	def(&cfg.AdvertisePeer, cfg.ListenPeer)
	def(&cfg.CompactMode, DefaultCompactMode)
	def(&cfg.CompactRetain, DefaultCompactRetain)
	def(&cfg.QuotaBytes, DefaultQuotaBytes)
	def(&cfg.Heartbeat, DefaultHeartbeat)
	def(&cfg.StartTimeout, DefaultStartTimeout)
	if single {
		def(&cfg.Election, DefaultElectionAlone)
	}
	def(&cfg.Election, DefaultElection)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if !single && cfg.ListenPeer == "" {
		return errors.New("a member of several needs a peer address")
	}
	for _, l := range []struct {
		what, addr string
		tls        TLSFiles
	}{{"client", cfg.ListenClient, cfg.ClientTLS}, {"peer", cfg.ListenPeer, cfg.PeerTLS}} {
		if l.addr == "" {
			continue
		}
		if err := l.tls.check(); err != nil {
			return err
		}
		host, _, err := net.SplitHostPort(l.addr)
		if err != nil {
			return fmt.Errorf("%s address %q: %w", l.what, l.addr, err)
		}
		if ip, err := netip.ParseAddr(host); l.tls.IsZero() && (err != nil || !ip.IsLoopback()) {
			return fmt.Errorf("%s address %q is not a loopback IP address and has no TLS: whoever reaches it could change everything", l.what, l.addr)
		}
	}
	return nil
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// etcd translates the configuration.
func (cfg *EmbedConfig) etcd(e *Embedded) (*embed.Config, error) {
	c := embed.NewConfig()
	c.Name = cfg.Name
	c.Dir = filepath.Join(cfg.Dir, dataDir)
	c.InitialClusterToken = cfg.ClusterToken
	if cfg.JoinExisting {
		c.ClusterState = embed.ClusterStateFlagExisting
	}
	c.TickMs, c.ElectionMs = uint(cfg.Heartbeat.Milliseconds()), uint(cfg.Election.Milliseconds())
	c.QuotaBackendBytes = cfg.QuotaBytes
	c.AutoCompactionMode, c.AutoCompactionRetention = cfg.CompactMode, cfg.CompactRetain
	c.BootstrapDefragThresholdMegabytes = 100
	c.EnableGRPCGateway = false // nobody uses it, and it is one more way in
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapToSlog(cfg.Logger, zapcore.WarnLevel, &e.closing))
	c.ServiceRegister = func(gs *grpc.Server) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.servers = append(e.servers, gs)
	}
	c.ClientTLSInfo, c.PeerTLSInfo = tlsInfo(cfg.ClientTLS), tlsInfo(cfg.PeerTLS)

	advertise := cfg.AdvertiseClient
	if advertise == "" {
		advertise = cfg.ListenClient
	}
	c.ListenClientUrls = []url.URL{hostURL(cfg.ListenClient, cfg.ClientTLS)}
	c.AdvertiseClientUrls = []url.URL{hostURL(advertise, cfg.ClientTLS)}
	c.ListenPeerUrls = nil
	// A cluster of one has no peer listener, but etcd wants an address in its member list.
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	if cfg.ListenPeer != "" {
		c.ListenPeerUrls = []url.URL{hostURL(cfg.ListenPeer, cfg.PeerTLS)}
		c.AdvertisePeerUrls = []url.URL{hostURL(cfg.AdvertisePeer, cfg.PeerTLS)}
	}
	c.InitialCluster = cfg.InitialCluster
	if c.InitialCluster == "" {
		c.InitialCluster = cfg.Name + "=" + c.AdvertisePeerUrls[0].String()
	}
	return c, nil
}

func hostURL(addr string, t TLSFiles) url.URL {
	if t.IsZero() {
		return url.URL{Scheme: "http", Host: addr}
	}
	return url.URL{Scheme: "https", Host: addr}
}

func tlsInfo(f TLSFiles) transport.TLSInfo {
	return transport.TLSInfo{CertFile: f.Cert, KeyFile: f.Key, TrustedCAFile: f.CA, ClientCertAuth: f.CA != ""}
}

// chooseListen replaces port 0 by the remembered port or a free one; fixed: it may not be another.
func (cfg *EmbedConfig) chooseListen() (fixed bool, err error) {
	host, port, err := net.SplitHostPort(cfg.ListenClient)
	if err != nil {
		return false, err
	}
	if port != "0" {
		return true, nil
	}
	switch b, err := os.ReadFile(filepath.Join(cfg.Dir, urlFile)); {
	case err == nil:
		u, err := url.Parse(strings.TrimSpace(string(b)))
		if err != nil || u.Port() == "" {
			return false, fmt.Errorf("read %s: %q is no URL with a port", urlFile, strings.TrimSpace(string(b)))
		}
		cfg.ListenClient = net.JoinHostPort(host, u.Port())
		return true, nil
	case !errors.Is(err, os.ErrNotExist):
		return false, err
	}
	cfg.ListenClient, err = freePort(host)
	return false, err
}

func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr) //nolint:errcheck // it was parsed before
	return host
}

func freePort(host string) (string, error) {
	var last error
	for range portTries {
		addr := net.JoinHostPort(host, fmt.Sprint(portLow+rand.N(portHigh-portLow)))
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
		if err != nil {
			last = err
			continue
		}
		if err := l.Close(); err != nil {
			return "", err
		}
		return addr, nil
	}
	return "", fmt.Errorf("find a free port: %w", last)
}

// writeURL replaces the file in one step, durably.
func writeURL(dir, u string) error {
	path := filepath.Join(dir, urlFile)
	if b, err := os.ReadFile(path); err == nil && string(b) == u+"\n" {
		return nil
	}
	f, err := os.CreateTemp(dir, urlFile+".*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(u + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockDir takes the directory for this process. etcd itself would wait without end for the
// process that has it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: %s is in use by another process", lockstep.ErrConflict, dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

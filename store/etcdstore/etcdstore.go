// Package etcdstore keeps the store in etcd. Open makes a client of any cluster, embedded or
// external; StartEmbedded runs a member inside this process, which is used through a client like
// any other.
//
// No call waits for an absent etcd longer than its request timeout, and no error hides whether a
// write may have happened: what wraps lockstep.ErrStoreUnavailable, or is the caller's own context
// ending, leaves the outcome of a write open; every other error means that nothing was written.
// A write is durable, on a quorum of members, when its call returns.
//
// All keys stand under Config.Prefix, which callers never see. etcd's own authentication is not
// used: access is limited by TLS client certificates, or by the loopback address.
package etcdstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// Defaults of Config.
const (
	DefaultPrefix         = "/lockstep/"
	DefaultDialTimeout    = 5 * time.Second
	DefaultRequestTimeout = 3 * time.Second
)

const (
	// A peer that has vanished is noticed by TCP within about peerDeadAfter, whether a request is
	// on its way (TCP_USER_TIMEOUT, which gRPC sets to its keep-alive timeout) or not (TCP
	// keep-alive). gRPC's own pings, which notice a frozen process too, cannot be more frequent
	// than grpcPing.
	peerDeadAfter = 3 * time.Second
	tcpProbeAfter = 2 * time.Second
	tcpProbeEvery = 1 * time.Second
	grpcPing      = 10 * time.Second

	// reconnectLongest bounds gRPC's back-off, which would else grow to two minutes.
	reconnectFirst   = 100 * time.Millisecond
	reconnectLongest = time.Second
)

// Config says which etcd to use and how.
type Config struct {
	// Endpoints are the client URLs of the members, such as "http://127.0.0.1:2379". With TLS they
	// begin with "https://".
	Endpoints []string
	// TLS, if set, secures the connections; see LoadTLS.
	TLS *tls.Config
	// Prefix is put before every key; DefaultPrefix if empty. It ends with a slash.
	Prefix string
	// DialTimeout bounds how long Open waits for a first answer, and each connection attempt.
	DialTimeout time.Duration
	// RequestTimeout bounds every request.
	RequestTimeout time.Duration
	// Lazy lets Open return without an answer from etcd, for daemons that start in any order.
	Lazy bool
	// Logger gets what the client has to say from warnings on; slog.Default() if nil.
	Logger *slog.Logger
}

// Store is a client of etcd. It implements store.Store.
type Store struct {
	cli     *clientv3.Client
	prefix  string
	timeout time.Duration
	log     *slog.Logger
	cause   *cause

	ctx    context.Context // ends at Close
	cancel context.CancelFunc

	mu     sync.Mutex // guards closed, and wg.Go against Close's wg.Wait
	closed bool
	wg     sync.WaitGroup // watches and keep-alives
}

// Open makes a client. Unless cfg.Lazy is set it waits, for at most cfg.DialTimeout, until etcd
// has answered a linearizable read; if it does not, the error wraps lockstep.ErrStoreUnavailable.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("open store: no endpoints")
	}
	for _, e := range cfg.Endpoints {
		if secure := strings.HasPrefix(e, "https://") || strings.HasPrefix(e, "unixs:"); secure != (cfg.TLS != nil) {
			return nil, fmt.Errorf("open store: endpoint %q does not fit TLS %s", e, onOff(cfg.TLS != nil))
		}
	}
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if !strings.HasSuffix(cfg.Prefix, "/") {
		return nil, fmt.Errorf("open store: prefix %q does not end with a slash", cfg.Prefix)
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	if cfg.RequestTimeout <= 0 {
		cfg.RequestTimeout = DefaultRequestTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: tcpProbeAfter, Interval: tcpProbeEvery, Count: 2,
	}}
	connect := backoff.DefaultConfig
	connect.BaseDelay, connect.MaxDelay = reconnectFirst, reconnectLongest
	base, cancel := context.WithCancel(context.Background())
	why := &cause{}
	silent := newSilence(cfg.Logger)
	cli, err := clientv3.New(clientv3.Config{
		Context:              base,
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialTimeout:          cfg.DialTimeout,
		DialKeepAliveTime:    grpcPing,
		DialKeepAliveTimeout: peerDeadAfter,
		// The client logs every retry as a warning; what matters comes back as an error.
		Logger: zapToSlog(cfg.Logger, zapcore.ErrorLevel, nil),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: connect, MinConnectTimeout: cfg.DialTimeout}),
			grpc.WithTransportCredentials(silent.credentials(why.credentials(cfg.TLS))),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
				network := "tcp"
				if path, ok := strings.CutPrefix(addr, "unix:"); ok {
					network, addr = "unix", strings.TrimPrefix(path, "//")
				}
				conn, err := dialer.DialContext(ctx, network, addr)
				why.note(err)
				return conn, err
			}),
			grpc.WithChainUnaryInterceptor(silent.unary),
		},
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{cli: cli, prefix: cfg.Prefix, timeout: cfg.RequestTimeout, log: cfg.Logger, cause: why, ctx: base, cancel: cancel}
	if cfg.Lazy {
		return s, nil
	}
	if err := s.ping(ctx, cfg.DialTimeout); err != nil {
		return nil, errors.Join(fmt.Errorf("open store at %s: %w", strings.Join(cfg.Endpoints, ", "), err), s.Close())
	}
	return s, nil
}

// Ping asks for a linearizable read, that is, whether a quorum answers.
func (s *Store) Ping(ctx context.Context) error { return s.ping(ctx, s.timeout) }

func (s *Store) ping(ctx context.Context, timeout time.Duration) error {
	rctx, cancel := s.request(ctx, timeout)
	defer cancel()
	_, err := s.cli.Get(rctx, s.prefix, clientv3.WithCountOnly())
	return s.fault(ctx, "ping", err)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.KV, error) {
	if err := store.CheckTxn([]store.Cmp{{Key: key}}, nil); err != nil {
		return store.KV{}, fmt.Errorf("get: %w", err)
	}
	rctx, cancel := s.request(ctx, s.timeout)
	defer cancel()
	resp, err := s.cli.Get(rctx, s.prefix+key)
	if err != nil {
		return store.KV{}, s.fault(ctx, "get "+key, err)
	}
	if len(resp.Kvs) == 0 {
		return store.KV{}, fmt.Errorf("get %s: %w", key, lockstep.ErrNotFound)
	}
	kv := resp.Kvs[0]
	return store.KV{Key: key, Value: kv.Value, ModRev: kv.ModRevision, CreateRev: kv.CreateRevision}, nil
}

// Txn implements store.Store.
func (s *Store) Txn(ctx context.Context, cmps []store.Cmp, ops []store.Op) (bool, int64, error) {
	if err := store.CheckTxn(cmps, ops); err != nil {
		return false, 0, fmt.Errorf("transaction: %w", err)
	}
	ecmps := make([]clientv3.Cmp, len(cmps))
	for i, c := range cmps {
		ecmps[i] = clientv3.Compare(clientv3.ModRevision(s.prefix+c.Key), "=", c.ModRev)
	}
	eops := make([]clientv3.Op, len(ops))
	for i, op := range ops {
		switch {
		case op.Delete:
			eops[i] = clientv3.OpDelete(s.prefix + op.Key)
		default:
			eops[i] = clientv3.OpPut(s.prefix+op.Key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease)))
		}
	}
	rctx, cancel := s.request(ctx, s.timeout)
	defer cancel()
	resp, err := s.cli.Txn(rctx).If(ecmps...).Then(eops...).Commit()
	if err != nil {
		return false, 0, s.fault(ctx, "transaction", err)
	}
	return resp.Succeeded, resp.Header.Revision, nil
}

// Close implements store.Store. It ends watches and keep-alives and waits for them; leases then
// run out by themselves.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	if err := s.cli.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// request bounds one request by a timeout and by Close.
func (s *Store) request(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	if s.ctx.Err() != nil {
		cancel() // at once, not by AfterFunc's goroutine
		return ctx, cancel
	}
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// start runs f as a goroutine that Close waits for; false: the store is closed.
func (s *Store) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

// fault gives a client error its meaning; ctx is the caller's, without the request timeout.
func (s *Store) fault(ctx context.Context, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return store.ContextError(ctx, what)
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return fmt.Errorf("%s: %w", what, store.ErrLeaseGone)
	case errors.Is(err, rpctypes.ErrTooManyOps), errors.Is(err, rpctypes.ErrRequestTooLarge),
		errors.Is(err, rpctypes.ErrDuplicateKey), errors.Is(err, rpctypes.ErrEmptyKey):
		return fmt.Errorf("%s: %w: %w", what, store.ErrInvalid, err)
	case errors.Is(err, context.DeadlineExceeded):
		// Not the caller's deadline, so it must not look like one.
		if why := s.cause.last(); why != nil {
			return fmt.Errorf("%s: %w: no answer in time; the last connection failed: %v", what, lockstep.ErrStoreUnavailable, why) //nolint:errorlint // its text is for people; a timeout in it is not the caller's
		}
		return fmt.Errorf("%s: %w: no answer in time", what, lockstep.ErrStoreUnavailable)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w: closed", what, lockstep.ErrStoreUnavailable)
	}
	return fmt.Errorf("%s: %w: %w", what, lockstep.ErrStoreUnavailable, err)
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

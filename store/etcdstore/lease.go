package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/lockstep-dr/lockstep/store"
)

const (
	// Within its TTL a lease is renewed this often, so two renewals may fail.
	renewals = 3
	// renewRetry is the pause after a renewal that failed.
	renewRetry = 200 * time.Millisecond
	// clockLook bounds each wait of the keep-alive: timers stand still while the host is suspended,
	// so the boot-time clock is looked at this often.
	clockLook = 200 * time.Millisecond
)

// bootTime is the time since boot, suspension included.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("etcdstore: read CLOCK_BOOTTIME: %v", err)) // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Grant implements store.Store. etcd counts whole seconds and has a least TTL of about one and a
// half election timeouts; ttl is rounded up to that. The lease's end is judged by this host's
// boot-time clock, counted from when the last answered renewal was sent, so Lost is closed before
// etcd gives the keys away, as long as the two clocks run at about the same rate.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	if ttl <= 0 {
		return nil, fmt.Errorf("grant lease of %v: %w", ttl, store.ErrInvalid)
	}
	sent := bootTime()
	rctx, cancel := s.request(ctx, s.timeout)
	defer cancel()
	resp, err := s.cli.Grant(rctx, int64((ttl+time.Second-1)/time.Second))
	if err != nil {
		return nil, s.fault(ctx, "grant lease", err)
	}
	l := &lease{s: s, id: resp.ID, ttl: time.Duration(resp.TTL) * time.Second, lost: make(chan struct{}), done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(ctx)
	if !s.start(func() { l.keep(sent) }) {
		l.cancel()
		return nil, s.fault(ctx, "grant lease", context.Canceled)
	}
	return l, nil
}

type lease struct {
	s      *Store
	id     clientv3.LeaseID
	ttl    time.Duration
	ctx    context.Context // of the keep-alive
	cancel context.CancelFunc
	lost   chan struct{}
	done   chan struct{} // closed when the keep-alive has ended
	revoke sync.Mutex    // one Revoke at a time
}

// ID implements store.Lease.
func (l *lease) ID() store.LeaseID { return store.LeaseID(l.id) }

// Lost implements store.Lease. It is closed also when the lease is given up: by Revoke, by the
// end of Grant's context or by Close of the store.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Revoke implements store.Lease. A lease that has run out already is no error.
func (l *lease) Revoke(ctx context.Context) error {
	l.revoke.Lock()
	defer l.revoke.Unlock()
	l.cancel()
	<-l.done
	rctx, cancel := l.s.request(ctx, l.s.timeout)
	defer cancel()
	_, err := l.s.cli.Revoke(rctx, l.id)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return l.s.fault(ctx, fmt.Sprintf("revoke lease %x", int64(l.id)), err)
}

// keep renews the lease until it is lost or given up. renewed is when the last answered renewal
// was sent.
//
// The client library's own keep-alive is not used: it counts from the receipt of an answer, and
// by a clock that stops in suspension.
func (l *lease) keep(renewed time.Duration) {
	defer close(l.done)
	defer close(l.lost)
	defer l.cancel()
	defer context.AfterFunc(l.s.ctx, l.cancel)()
	next := renewed + l.ttl/renewals
	for {
		now := bootTime()
		if now-renewed >= l.ttl {
			l.s.log.Warn("store lease ran out without a renewal", "lease", fmt.Sprintf("%x", int64(l.id)), "ttl", l.ttl)
			return
		}
		if now >= next {
			gone, err := l.renew(min(l.ttl/renewals, renewed+l.ttl-now))
			switch {
			case gone:
				l.s.log.Warn("store lease has expired", "lease", fmt.Sprintf("%x", int64(l.id)), "ttl", l.ttl)
				return
			case err != nil:
				next = bootTime() + renewRetry
			default:
				renewed, next = now, now+l.ttl/renewals
			}
		}
		t := time.NewTimer(max(time.Millisecond, min(clockLook, next-bootTime(), renewed+l.ttl-bootTime())))
		select {
		case <-t.C:
		case <-l.ctx.Done():
			t.Stop()
			return
		}
	}
}

// renew asks for one renewal and waits for the answer. gone: etcd says the lease has ended.
func (l *lease) renew(timeout time.Duration) (gone bool, err error) {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(l.ctx), timeout)
	defer cancel()
	stream, err := pb.NewLeaseClient(l.s.cli.ActiveConnection()).LeaseKeepAlive(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(l.id)}); err != nil {
		return false, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound), err
	}
	return resp.TTL <= 0, nil
}

// Package memstore is a store.Store in memory, for unit tests and simulation. It keeps the same
// contract as etcdstore, down to revisions and refused requests (package storetest checks both),
// and adds what a test needs: outages of the whole store or of one client, leases that expire by
// an injected clock or at once, and compaction of history. Nothing in it is durable.
//
// The order of events of a watch is that of the revisions. With a ManualClock leases expire only
// inside Advance, so a run depends on nothing but the order in which the caller acts; watches
// alone are delivered by goroutines.
package memstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// maxHistory is how many events are kept for watches that begin in the past; older ones are
// compacted away.
const maxHistory = 1 << 16

// Mem is the store together with one client of it. NewClient makes more clients, each of which can
// be cut off alone.
type Mem struct {
	*Client
}

// Option alters a new store.
type Option func(*server)

// WithClock sets the clock of leases; the default is the real one (which is a fake one inside a
// testing/synctest bubble).
func WithClock(c Clock) Option { return func(s *server) { s.clock = c } }

// NewMem returns an empty store at revision 1, as etcd's is.
func NewMem(opts ...Option) *Mem {
	s := &server{
		clock:   realClock{},
		rev:     1,
		keys:    map[string]*entry{},
		leases:  map[store.LeaseID]*serverLease{},
		changed: make(chan struct{}),
	}
	for _, o := range opts {
		o(s)
	}
	return &Mem{Client: newClient(s)}
}

// NewClient returns a further client of the same store.
func (m *Mem) NewClient() *Client { return newClient(m.srv) }

// SetDown begins or ends an outage of the whole store: every call of every client fails with
// lockstep.ErrStoreUnavailable, watches stall and leases are not renewed. Leases that run out
// during the outage are gone when it ends, as if all clients but not the store had lost their
// network.
func (m *Mem) SetDown(down bool) {
	m.srv.mu.Lock()
	defer m.srv.mu.Unlock()
	m.srv.down = down
	m.srv.wake()
}

// ExpireLease ends a lease at once: its keys are removed, and its holder finds out at its next
// renewal.
func (m *Mem) ExpireLease(id store.LeaseID) {
	m.srv.mu.Lock()
	defer m.srv.mu.Unlock()
	m.srv.expire(id)
}

// Leases lists the leases that have not ended, oldest first.
func (m *Mem) Leases() []store.LeaseID {
	m.srv.mu.Lock()
	defer m.srv.mu.Unlock()
	ids := make([]store.LeaseID, 0, len(m.srv.leases))
	for id := range m.srv.leases {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Compact forgets history up to and including rev: a watch from an earlier revision is closed.
func (m *Mem) Compact(rev int64) {
	m.srv.mu.Lock()
	defer m.srv.mu.Unlock()
	m.srv.compact(min(rev, m.srv.rev))
	m.srv.wake()
}

// Rev is the store's revision. It is told during an outage too.
func (m *Mem) Rev() int64 {
	m.srv.mu.Lock()
	defer m.srv.mu.Unlock()
	return m.srv.rev
}

type entry struct {
	kv    store.KV
	lease store.LeaseID
}

type serverLease struct {
	ttl     time.Duration
	expires time.Time
	stop    func() // of the expiry timer
	keys    map[string]struct{}
}

// server is the state that all clients share.
type server struct {
	clock Clock

	mu        sync.Mutex // guards all fields below
	down      bool
	rev       int64
	compacted int64
	keys      map[string]*entry
	history   []store.Event // in order of ModRev
	leases    map[store.LeaseID]*serverLease
	lastLease store.LeaseID
	changed   chan struct{} // closed and replaced whenever something a watch waits for happens
}

// wake lets every watch look again.
func (s *server) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// apply does the ops under one new revision; a transaction that changes nothing has none.
func (s *server) apply(ops []store.Op) {
	rev := s.rev + 1
	did := false
	for _, op := range ops {
		old := s.keys[op.Key]
		if op.Delete {
			if old == nil {
				continue
			}
			s.detach(op.Key, old)
			delete(s.keys, op.Key)
			s.history = append(s.history, store.Event{KV: store.KV{Key: op.Key, ModRev: rev}, Deleted: true})
			did = true
			continue
		}
		e := &entry{kv: store.KV{Key: op.Key, Value: slices.Clone(op.Value), ModRev: rev, CreateRev: rev}, lease: op.Lease}
		if old != nil {
			s.detach(op.Key, old)
			e.kv.CreateRev = old.kv.CreateRev
		}
		if op.Lease != 0 {
			s.leases[op.Lease].keys[op.Key] = struct{}{}
		}
		s.keys[op.Key] = e
		s.history = append(s.history, store.Event{KV: e.kv})
		did = true
	}
	if !did {
		return
	}
	s.rev = rev
	if len(s.history) > maxHistory {
		s.compact(s.history[len(s.history)-maxHistory/2].ModRev)
	}
	s.wake()
}

func (s *server) detach(key string, e *entry) {
	if l := s.leases[e.lease]; l != nil {
		delete(l.keys, key)
	}
}

func (s *server) compact(rev int64) {
	if rev <= s.compacted {
		return
	}
	s.compacted = rev
	i := s.after(rev)
	s.history = append([]store.Event(nil), s.history[i:]...)
}

// after is the index of the first event later than rev.
func (s *server) after(rev int64) int {
	i, _ := slices.BinarySearchFunc(s.history, rev+1, func(ev store.Event, r int64) int {
		return int(ev.ModRev - r)
	})
	return i
}

// expire removes a lease and its keys.
func (s *server) expire(id store.LeaseID) {
	l := s.leases[id]
	if l == nil {
		return
	}
	l.stop()
	ops := make([]store.Op, 0, len(l.keys))
	for key := range l.keys {
		ops = append(ops, store.Op{Key: key, Delete: true})
	}
	slices.SortFunc(ops, func(a, b store.Op) int { return strings.Compare(a.Key, b.Key) })
	s.apply(ops)
	delete(s.leases, id)
}

// extend starts or restarts the time of a lease.
func (s *server) extend(id store.LeaseID, l *serverLease) {
	if l.stop != nil {
		l.stop()
	}
	l.expires = s.clock.Now().Add(l.ttl)
	l.stop = s.clock.AfterFunc(l.ttl, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		// A timer that began while the lease was renewed must not end it.
		if cur := s.leases[id]; cur == l && !s.clock.Now().Before(l.expires) {
			s.expire(id)
		}
	})
}

// Client is one user of the store. It implements store.Store.
type Client struct {
	srv  *server
	down bool // guarded by srv.mu

	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // watches and renewals
}

func newClient(s *server) *Client {
	c := &Client{srv: s}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// SetDown cuts this client off, or connects it again; other clients go on.
func (c *Client) SetDown(down bool) {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.down = down
	c.srv.wake()
}

// reachable is called with srv.mu held.
func (c *Client) reachable() bool { return !c.down && !c.srv.down && c.ctx.Err() == nil }

// enter takes srv.mu if the call can go on.
func (c *Client) enter(ctx context.Context, what string) error {
	if ctx.Err() != nil {
		return store.ContextError(ctx, what)
	}
	c.srv.mu.Lock()
	if !c.reachable() {
		c.srv.mu.Unlock()
		return fmt.Errorf("%s: %w", what, lockstep.ErrStoreUnavailable)
	}
	return nil
}

// Get implements store.Store.
func (c *Client) Get(ctx context.Context, key string) (store.KV, error) {
	if err := store.CheckTxn([]store.Cmp{{Key: key}}, nil); err != nil {
		return store.KV{}, fmt.Errorf("get: %w", err)
	}
	if err := c.enter(ctx, "get "+key); err != nil {
		return store.KV{}, err
	}
	defer c.srv.mu.Unlock()
	e := c.srv.keys[key]
	if e == nil {
		return store.KV{}, fmt.Errorf("get %s: %w", key, lockstep.ErrNotFound)
	}
	return clone(e.kv), nil
}

// List implements store.Store.
func (c *Client) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	if err := c.enter(ctx, "list "+prefix); err != nil {
		return nil, 0, err
	}
	defer c.srv.mu.Unlock()
	var kvs []store.KV
	for key, e := range c.srv.keys {
		if strings.HasPrefix(key, prefix) {
			kvs = append(kvs, clone(e.kv))
		}
	}
	slices.SortFunc(kvs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) })
	return kvs, c.srv.rev, nil
}

// Txn implements store.Store.
func (c *Client) Txn(ctx context.Context, cmps []store.Cmp, ops []store.Op) (bool, int64, error) {
	if err := store.CheckTxn(cmps, ops); err != nil {
		return false, 0, fmt.Errorf("transaction: %w", err)
	}
	if err := c.enter(ctx, "transaction"); err != nil {
		return false, 0, err
	}
	defer c.srv.mu.Unlock()
	s := c.srv
	for _, cmp := range cmps {
		var have int64
		if e := s.keys[cmp.Key]; e != nil {
			have = e.kv.ModRev
		}
		if have != cmp.ModRev {
			return false, s.rev, nil
		}
	}
	for _, op := range ops {
		if op.Lease != 0 && !op.Delete && s.leases[op.Lease] == nil {
			return false, s.rev, fmt.Errorf("put %s with lease %x: %w", op.Key, int64(op.Lease), store.ErrLeaseGone)
		}
	}
	s.apply(ops)
	return true, s.rev, nil
}

// Close implements store.Store. It ends this client's watches and waits for them; the store and
// other clients go on.
func (c *Client) Close() error {
	c.srv.mu.Lock()
	c.cancel()
	c.srv.mu.Unlock()
	c.wg.Wait()
	return nil
}

func clone(kv store.KV) store.KV {
	kv.Value = slices.Clone(kv.Value)
	return kv
}

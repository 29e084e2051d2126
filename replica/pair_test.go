package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// memRecords is the store of two hosts in this process: one record, and answers.
type memRecords struct {
	mu      sync.Mutex
	rec     protocol.Record
	answers map[lockstep.NodeID]protocol.Answer
	hosts   []*Host
	down    bool
	stuck   bool // no transition ends
	tries   int  // calls while down
}

func (m *memRecords) change(f func(protocol.Record) (protocol.Record, error)) error {
	m.mu.Lock()
	if m.down {
		m.tries++
		m.mu.Unlock()
		return lockstep.ErrStoreUnavailable
	}
	next, err := f(m.rec)
	if err == nil {
		m.rec = next
	}
	hosts, rec := m.hosts, m.rec
	m.mu.Unlock()
	for _, h := range hosts {
		err = errors.Join(err, h.OnRecord(rec.Clone(), false, false))
	}
	return err
}

func (m *memRecords) Propose(_ context.Context, _ lockstep.GroupID, f func(protocol.Record) (protocol.Record, error)) error {
	return m.change(f)
}

func (m *memRecords) Read(context.Context, lockstep.GroupID) (protocol.Record, error) {
	return m.get(), nil
}

func (m *memRecords) PutAnswer(_ context.Context, a protocol.Answer) error {
	m.mu.Lock()
	m.answers[a.Node] = a
	m.mu.Unlock()
	return m.Advance(context.Background(), a.Group)
}

func (m *memRecords) Advance(context.Context, lockstep.GroupID) error {
	return m.change(func(r protocol.Record) (protocol.Record, error) {
		if next, _, ok := protocol.Advance(r, m.answers, false); ok && !m.stuck {
			return next, nil
		}
		return r, nil
	})
}

func (m *memRecords) get() protocol.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec
}

// pair is two hosts with one volume each, on a loopback link.
type pair struct {
	st   *memRecords
	a, b *Host
	fs   [2]*vfs.Mem
	addr map[lockstep.NodeID]string
}

func newPair(t testing.TB, dirs ...string) *pair { return newPairWith(t, func(*Config) {}, dirs...) }

func newPairWith(t testing.TB, change func(*Config), dirs ...string) *pair {
	p := &pair{st: &memRecords{answers: map[lockstep.NodeID]protocol.Answer{}}, addr: map[lockstep.NodeID]string{}}
	var lns []net.Listener
	for _, id := range []lockstep.NodeID{"a", "b"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.addr[id], lns = ln.Addr().String(), append(lns, ln)
	}
	for i, id := range []lockstep.NodeID{"a", "b"} {
		o := disk.Options{Logger: discard()}
		dir := "/pool"
		if len(dirs) > 0 {
			dir = dirs[i]
		} else {
			p.fs[i] = vfs.NewMem()
			o.FS = p.fs[i]
		}
		pool, err := disk.OpenPool(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pool.Close() })
		cfg := Config{
			Node: id, AZ: lockstep.AZ(id), Cluster: "c", BootID: "boot-" + lockstep.BootID(id), Instance: pool.InstanceID(), Start: pool.StartCounter(),
			TripAfter: time.Second, LeaseTTL: 500 * time.Millisecond, LeaseMargin: 50 * time.Millisecond, Heartbeat: 50 * time.Millisecond, FlushEvery: 100 * time.Millisecond, IntentLimitBytes: 1 << 40,
			Store: p.st, Resolve: func(n lockstep.NodeID) (string, bool) { return p.addr[n], true }, Changed: func(lockstep.GroupID) {}, Log: discard(),
		}
		change(&cfg)
		h, err := NewHost(cfg, pool)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.CreateVolume(lockstep.VolumeID("v"+id), testSize); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- h.Serve(ctx, lns[i]) }()
		t.Cleanup(func() {
			cancel()
			if err := errors.Join(h.Close(), <-served); err != nil && !errors.Is(err, lockstep.ErrVolumeFailed) {
				t.Error(err)
			}
		})
		p.st.hosts = append(p.st.hosts, h)
	}
	p.a, p.b = p.st.hosts[0], p.st.hosts[1]
	return p
}

// sync makes a group of the two volumes and waits until it is in sync and serves.
func (p *pair) sync(t testing.TB) {
	t.Helper()
	m := protocol.Member{Pair: "pair", SizeBytes: testSize, Replicas: [2]protocol.Replica{{Volume: "va", Node: "a", AZ: "a"}, {Volume: "vb", Node: "b", AZ: "b"}}}
	err := p.st.change(func(protocol.Record) (protocol.Record, error) {
		return protocol.NewGroup("g", "p", "a", "b", []protocol.Member{m}), nil
	})
	if err == nil {
		err = p.st.change(func(r protocol.Record) (protocol.Record, error) { return r.Sync() })
	}
	if err != nil {
		t.Fatal(err)
	}
	p.until(t, "two-sided", func() bool {
		v, ok := p.a.View("g")
		return ok && v.Mode == protocol.ModeTwoSided && v.Record.InSync
	})
}

func (p *pair) until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			v, _ := p.a.View("g")
			t.Fatalf("not within 10 s: %s; a is %s (%s), record %s", what, v.Mode, v.Why, p.st.get().Describe())
		}
	}
}

func benchWrite(b *testing.B, v *Volume, par int) {
	b.SetBytes(4096)
	b.ReportAllocs()
	b.SetParallelism(par)
	var n sync.Mutex
	worker := int64(0)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		n.Lock()
		base := worker << 20
		worker++
		n.Unlock()
		data := make([]byte, 4096)
		for i := int64(0); pb.Next(); i++ {
			if err := v.WriteAt(context.Background(), data, (base+i%256*4096)%testSize, false); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// overLinks runs a benchmark over plain links, and over links with TLS.
func overLinks(b *testing.B, run func(b *testing.B, change func(*Config))) {
	b.Run("plain", func(b *testing.B) { run(b, func(*Config) {}) })
	b.Run("tls", func(b *testing.B) { run(b, secured(b, newSite(b))) })
}

func BenchmarkWriteTwoSided(b *testing.B) {
	overLinks(b, func(b *testing.B, change func(*Config)) {
		for _, par := range []int{1, 8} {
			b.Run(fmt.Sprintf("x%d", par), func(b *testing.B) {
				p := newPairWith(b, change, b.TempDir(), b.TempDir())
				p.sync(b)
				benchWrite(b, p.a.Volume("va"), par)
			})
		}
	})
}

func BenchmarkWriteOneSided(b *testing.B) {
	p := newPair(b, b.TempDir(), b.TempDir())
	v := p.a.Volume("va")
	v.setMode(protocol.ModeOneSided, 1, nil, nil, "")
	benchWrite(b, v, 1)
}

func BenchmarkWritePlain(b *testing.B) {
	p := newPair(b, b.TempDir(), b.TempDir())
	p.a.SetAccess("va", store.Access{Mode: store.AccessPlain})
	benchWrite(b, p.a.Volume("va"), 1)
}

// BenchmarkBatch writes as the NBD server does: depth writes at a time, over a link between two pools.
func BenchmarkBatch(b *testing.B) {
	overLinks(b, benchBatch)
}

func benchBatch(b *testing.B, change func(*Config)) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("qd%d", depth), func(b *testing.B) {
			p := newPairWith(b, change, b.TempDir(), b.TempDir())
			p.sync(b)
			v := p.a.Volume("va")
			batch, o := v.NewBatch(), &outcome{ch: make(chan error, depth)}
			data := make([]byte, 4096)
			if err := v.WriteAt(context.Background(), data, 0, false); err != nil { // marks the region
				b.Fatal(err)
			}
			b.SetBytes(4096)
			b.ReportAllocs()
			for i, inFlight := int64(0), 0; b.Loop(); i++ {
				for inFlight >= depth {
					if err := <-o.ch; err != nil {
						b.Fatal(err)
					}
					inFlight--
				}
				if !batch.Write(data, i%256*4096, o) {
					b.Fatal("refused")
				}
				if inFlight++; inFlight == depth || i%8 == 7 {
					batch.Run()
				}
			}
			batch.Run()
		})
	}
}

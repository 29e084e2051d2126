package replica

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// Goal: a write ages from its first submission, not from that on the present link: a secondary whose
// link breaks again and again before any answer is a silent one.
func TestUnacknowledgedWritesAgeOverReconnects(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.twoSided(f, 1)
	done := b.write(0, 1)
	f.next()
	first := b.v.oldestUnacked()
	if first == 0 {
		t.Fatal("a write in flight has no age")
	}
	for conn := uint64(2); conn < 5; conn++ {
		time.Sleep(5 * time.Millisecond)
		f.l.close()
		f = b.link(conn)
		b.twoSided(f, 1)
		h := f.next()
		if at := b.v.oldestUnacked(); at != first {
			t.Fatalf("on link %d the write is %s younger", conn, at-first)
		}
		if conn == 4 {
			f.ack(h)
		}
	}
	if err := b.ended(done); err != nil {
		t.Fatal(err)
	}
	if at := b.v.oldestUnacked(); at != 0 {
		t.Errorf("without a write in flight the oldest is %s", at)
	}
}

// Goal: a primary that is cut from the store and only reads learns from heartbeats that its secondary
// has persisted a newer epoch: no write of it is refused, and its link does not break.
func TestHeartbeatsCarryANewerRecord(t *testing.T) {
	p := newPair(t)
	p.sync(t)
	p.st.mu.Lock()
	p.st.hosts, p.st.stuck = p.st.hosts[1:], true // a hears nothing of the store any more
	p.st.mu.Unlock()
	if err := p.st.change(protocol.Record.Failover); err != nil {
		t.Fatal(err)
	}
	p.until(t, "a knows of the failover", func() bool {
		view, _ := p.a.View("g")
		return view.Record.State == protocol.StateFailovering
	})
}

// Goal: after an extension that was undone a volume outside every group is as large as it is said to
// be, although its file is larger.
func TestAnnouncedSizeIsNotTheFiles(t *testing.T) {
	p := newPair(t)
	v := p.a.Volume("va")
	if err := v.disk.Grow(2 * testSize); err != nil {
		t.Fatal(err)
	}
	v.size.Store(v.disk.Size()) // as after a restart
	if err := p.a.GrowVolume("va", testSize); err != nil {
		t.Fatal(err)
	}
	if v.Size() != testSize || v.FileSize() != 2*testSize {
		t.Errorf("announced %d, file %d", v.Size(), v.FileSize())
	}
}

// Goal: a synchronization ends although the primary's file is larger than announced, after an
// extension that was given up, and all of it is dirty.
func TestResyncOfALargerFileEnds(t *testing.T) {
	p := newPair(t)
	if err := p.a.Volume("va").disk.Grow(2 * testSize); err != nil {
		t.Fatal(err)
	}
	p.sync(t) // never in sync before: everything is marked
}

// Goal: no durable step is done for some of a group's members only.
func TestStepsNeedAllMembers(t *testing.T) {
	p := newPair(t)
	p.sync(t)
	g := p.a.group("g")
	done := func(*Volume) error { return nil }
	if err := g.each(done); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.missing = []lockstep.VolumeID{"gone"}
	g.mu.Unlock()
	if err := g.each(done); !errors.Is(err, lockstep.ErrNotFound) {
		t.Errorf("a step without a member ended with %v", err)
	}
}

// Goal: a larger size is known from the record before the synchronization begins anew at its epoch:
// a write behind the old end, while the secondary is away, is noted and ends nothing.
func TestWriteBehindTheEndOfATodo(t *testing.T) {
	b := newBed(t)
	b.v.setMode(protocol.ModeOneSided, 1, nil, nil, "")
	b.v.todo, b.v.todoEpoch = b.d.Dirty(), 1
	if err := b.d.Grow(2 * testSize); err != nil {
		t.Fatal(err)
	}
	b.v.size.Store(2 * testSize)
	if err := b.ended(b.write(2*testSize-4096, 1)); err != nil {
		t.Fatal(err)
	}
	if got := b.v.todoIn(lockstep.Extent{Len: 2 * testSize}); len(got) != 1 || got[0].End() != 2*testSize {
		t.Errorf("to send: %v", got)
	}
}

// Goal: a strict primary has no lease from a store that went back, whatever the number of its epoch, and
// notices at once. [F16] (R104)
func TestStrictNoticesAStoreThatWentBack(t *testing.T) {
	for _, equal := range []bool{false, true} {
		p := newPair(t)
		p.sync(t)
		backup := p.st.get()
		for _, step := range []func(protocol.Record) (protocol.Record, error){
			func(r protocol.Record) (protocol.Record, error) { return r.SetStrict(true) }, protocol.Record.Pause,
		} {
			if err := p.st.change(step); err != nil {
				t.Fatal(err)
			}
			p.until(t, "adopted", func() bool { v, _ := p.a.View("g"); return v.Adopted && v.Record.Epoch == p.st.get().Epoch })
		}
		p.until(t, "paused, and served under a lease", func() bool {
			v, _ := p.a.View("g")
			return v.Mode == protocol.ModeOneSided && !v.Record.InSync && v.Record.Strict
		})
		was := p.st.get()
		for equal && backup.Epoch < was.Epoch {
			var err error
			if backup, err = backup.SetStrict(true); err != nil {
				t.Fatal(err)
			}
		}
		p.st.mu.Lock()
		p.st.rec = backup // told to nobody: a watch from a later revision stays silent
		p.st.mu.Unlock()
		p.until(t, "noticed", func() bool {
			v, _ := p.a.View("g")
			return v.Mode == protocol.ModeHeld && strings.Contains(v.Why, "store recover")
		})
	}
}

// Goal: a volume that had failed before it joined a group is known to the group as failed: a
// synchronization that cannot end is given up with the reason.
func TestAVolumeThatJoinsFailedIsKnownToTheGroup(t *testing.T) {
	p := newPair(t)
	v := p.a.Volume("va")
	v.setMode(protocol.ModePlain, 0, nil, nil, "")
	_ = v.broken(errors.New("the disk of before"))
	m := protocol.Member{Pair: "pair", SizeBytes: testSize, Replicas: [2]protocol.Replica{{Volume: "va", Node: "a", AZ: "a"}, {Volume: "vb", Node: "b", AZ: "b"}}}
	err := p.st.change(func(protocol.Record) (protocol.Record, error) {
		return protocol.NewGroup("g", "p", "a", "b", []protocol.Member{m}).Sync()
	})
	if err != nil {
		t.Fatal(err)
	}
	p.until(t, "the synchronization is given up", func() bool {
		r := p.st.get()
		return r.State == protocol.StateNormal && strings.Contains(r.Reason, "the disk of before")
	})
}

package replica

import (
	"bytes"
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
)

// restarted gives the volume of a pair in sync as a process finds it that died with a write in
// flight: in region 1, which its intent log names, with its neighbours, the sides differ.
func restarted(t *testing.T, p *pair) (v *Volume, l *link, epoch lockstep.Epoch) {
	t.Helper()
	p.sync(t)
	v = p.a.Volume("va")
	v.mu.Lock()
	l, epoch = v.link, v.epoch
	le := v.lease
	v.mu.Unlock()
	v.setMode(protocol.ModeHeld, epoch, nil, nil, "starting")
	if err := v.disk.MarkIntent(lockstep.RegionBytes, 4096); err != nil {
		t.Fatal(err)
	}
	if err := v.disk.WriteAt(bytes.Repeat([]byte{7}, 4096), lockstep.RegionBytes); err != nil {
		t.Fatal(err)
	}
	v.loadUnrepaired()
	v.setMode(protocol.ModeTwoSided, epoch, l, le, "")
	return v, l, epoch
}

// Goal: after a restart requests wait for the repair of their own region only, and both sides are
// equal in a region before it is served [F9].
func TestRequestsWaitForTheRepairOfTheirRegion(t *testing.T) {
	p := newPair(t)
	v, l, epoch := restarted(t, p)
	ctx := context.Background()
	page := make([]byte, 4096)
	if err := v.WriteAt(ctx, page, 32<<20, false); err != nil {
		t.Fatal(err)
	}
	if err := v.ReadAt(ctx, page, 32<<20); err != nil {
		t.Fatal(err)
	}
	if err := v.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 3)
	got := make([]byte, 4096)
	go func() { ended <- v.ReadAt(ctx, got, lockstep.RegionBytes) }()
	go func() { ended <- v.WriteAt(ctx, page, 2*lockstep.RegionBytes-2048, false) }() // regions 1 and 2
	go func() {
		_, err := v.Extents(ctx, 0, 4096)
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("a request to an unrepaired region ended: %v", err)
	case <-time.After(5 * p.a.cfg.FlushEvery): // time for background flushes, too
	}
	if have := v.disk.IntentBytes(); have < 4*lockstep.RegionBytes {
		t.Fatalf("marks of unrepaired regions were cleared: %d bytes are left", have)
	}
	if err := v.repair(ctx, l, epoch); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a request waits after the repair")
		}
	}
	there := make([]byte, 4096)
	if err := p.b.Volume("vb").disk.ReadAt(there, lockstep.RegionBytes); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, there) || got[0] != 7 {
		t.Errorf("read %x.., the secondary has %x..", got[:4], there[:4])
	}
	p.until(t, "the marks are cleared", func() bool { return v.disk.IntentBytes() == 0 })
}

// Goal: what is waited for is compared first; an interrupted repair begins again where it was; the
// end of the stint lets the waiting go.
func TestRepairTakesFirstWhatIsWaitedFor(t *testing.T) {
	p := newPair(t)
	v, _, epoch := restarted(t, p)
	ended := make(chan error, 1)
	go func() { ended <- v.ReadAt(context.Background(), make([]byte, 4096), 3*lockstep.RegionBytes) }()
	p.until(t, "the read waits", func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return len(v.unrepaired.wanted) > 0
	})
	u := v.unrepaired
	for _, want := range []int{3, 0, 1, 2, -1} {
		if r := v.takeRegion(u); r != want {
			t.Errorf("took region %d, want %d", r, want)
		}
	}
	v.regionRepaired(u, 0)
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if err := v.repair(canceled, v.link, epoch); err == nil {
		t.Error("a canceled repair is done")
	}
	if r := v.takeRegion(u); r == 0 {
		t.Error("a repaired region is compared again")
	}
	v.setMode(protocol.ModeRefused, epoch+1, nil, nil, "elsewhere")
	if err := <-ended; err == nil {
		t.Error("a read of a refused volume succeeded")
	}
}

// Goal: the write-intent log stays within its limit while in sync, by flushing and clearing its
// oldest regions [F9]; no mark is cleared that a write relies on.
func TestIntentLogIsBounded(t *testing.T) {
	const limit = 16 << 20
	p := newPairWith(t, func(c *Config) { c.IntentLimitBytes, c.FlushEvery = limit, time.Hour })
	p.sync(t)
	v := p.a.Volume("va")
	p.until(t, "no mark is left of the synchronization", func() bool {
		return v.flushAndClear(0, func(marked []lockstep.Extent) []lockstep.Extent { return marked }) == nil && v.disk.IntentBytes() == 0
	})
	for i, mib := range []int64{0, 32, 16, 48, 0, 32} {
		if err := v.WriteAt(context.Background(), bytes.Repeat([]byte{byte(i)}, 4096), mib<<20, false); err != nil {
			t.Fatal(err)
		}
		// One cold mark, with the look-ahead of a stream, sets twice that at most.
		if have := v.disk.IntentBytes(); have > 2*limit {
			t.Errorf("write %d: the log marks %d bytes", i, have)
		}
		if !v.disk.IntentMarked(mib<<20, 4096) {
			t.Errorf("write %d: its region is not marked", i)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.ops) != 0 {
		t.Errorf("%d claims are left", len(v.ops))
	}
}

// Goal: room in the log is made of regions that no write is in: the mark of one in flight stays.
func TestRoomIsNotMadeOfBusyRegions(t *testing.T) {
	b := newBed(t)
	f := b.link(1)
	b.twoSided(f, 1)
	done := b.write(lockstep.RegionBytes, 1)
	h := f.next()
	claims := b.v.claimIdle(b.v.disk.OldestIntent(16))
	if len(claims) != 3 { // a cold mark sets four regions
		t.Errorf("%d regions claimed", len(claims))
	}
	for _, o := range claims {
		if o.ext.Overlaps(lockstep.Extent{Off: lockstep.RegionBytes, Len: lockstep.RegionBytes}) {
			t.Errorf("[%d,+%d) is claimed, with a write in flight", o.ext.Off, o.ext.Len)
		}
	}
	f.ack(h)
	if err := b.ended(done); err != nil {
		t.Fatal(err)
	}
}

// Goal: the secondary's disk fails while a job runs: that is no fault of the primary's disk, whose
// clients go on.
func TestASecondaryDiskThatFailsInAJobIsNotThePrimarys(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		t.Run(errno.Error(), func(t *testing.T) {
			p := newPair(t)
			v, l, epoch := restarted(t, p)
			if err := v.disk.WriteAt([]byte{1}, 0); err != nil {
				t.Fatal(err)
			}
			p.fs[1].OnOp(func(op vfs.Op) error {
				if strings.HasPrefix(string(op), "raw:") {
					return errno
				}
				return nil
			})
			err := v.noteFailure(p.a.group("g").jobOn(context.Background(), v, l, protocol.PeerJob{Job: protocol.JobRepair, Epoch: epoch}))
			if err == nil {
				t.Fatal("the job ends well although the other disk fails")
			}
			if got := v.Failed(); got != nil {
				t.Errorf("the primary's volume failed: %v", got)
			}
		})
	}
}

// Goal: a pair that was never in sync has no image at the other side: nothing of it is taken back.
func TestNeverInSyncIsNotTakenBack(t *testing.T) {
	p := newPair(t)
	v, l, epoch := restarted(t, p)
	g := p.a.group("g")
	read := func() byte {
		got := make([]byte, 1)
		if err := v.disk.ReadAt(got, lockstep.RegionBytes); err != nil {
			t.Fatal(err)
		}
		return got[0]
	}
	job := func(insync lockstep.Epoch) {
		g.mu.Lock()
		g.view.Record = g.view.Record.Clone()
		g.view.Record.Members[0].InSyncEpoch = insync
		g.mu.Unlock()
		if err := g.jobOn(context.Background(), v, l, protocol.PeerJob{Job: protocol.JobTakeBackAll, Epoch: epoch}); err != nil {
			t.Fatal(err)
		}
	}
	if job(0); read() != 7 {
		t.Error("taken back from a side that was never in sync")
	}
	if job(1); read() != 0 {
		t.Error("not taken back")
	}
}

// Goal: a take-back that its context ended has not done its part, whatever it had begun: the primary
// would record its new boot id and serve what it lacks [F2].
func TestTakeBackThatWasEndedIsNotDone(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.v.takeBack(ctx, b.link(1).l, 1, nil); err == nil {
		t.Error("a canceled take-back is done")
	}
}

// Goal: a node that stops, or a volume that fails, lets go of what waits, but not of its intent log:
// what was not yet compared, or not acknowledged, is compared in the next life of the process [F9].
func TestAnEndedVolumeClearsNoMarks(t *testing.T) {
	for what, end := range map[string]func(*pair, *Volume){
		"the node stops": func(p *pair, _ *Volume) { p.a.Release() },
		"a full pool":    func(_ *pair, v *Volume) { _ = v.broken(lockstep.ErrNoSpace) }, // another life serves again
	} {
		t.Run(what, func(t *testing.T) {
			p := newPairWith(t, func(c *Config) { c.FlushEvery = time.Hour })
			v, _, _ := restarted(t, p)
			marked := v.disk.IntentBytes()
			end(p, v)
			if err := v.backgroundFlush(); err != nil {
				t.Fatal(err)
			}
			if have := v.disk.IntentBytes(); have != marked || !v.disk.IntentMarked(lockstep.RegionBytes, 4096) {
				t.Errorf("%d bytes are marked, %d were: the next life will not compare what differs", have, marked)
			}
		})
	}
}

package history

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

// script is a history made by hand: one block, times in steps of one.
type script struct {
	r *Recorder
	g *register
	t *testing.T
}

func newScript(t *testing.T) *script {
	r := New(1)
	return &script{r, r.register(place{0, 0}), t}
}

func (s *script) done(k kind, v Value, call, ret int64) *script {
	o := s.g.begin(k, v, call)
	s.g.answered(o, ret)
	return s
}

func (s *script) write(v Value, call, ret int64) *script { return s.done(opWrite, v, call, ret) }
func (s *script) read(v Value, call, ret int64) *script  { return s.done(opRead, v, call, ret) }

func (s *script) unanswered(v Value, call int64) *script {
	s.g.leaveOpen(s.g.begin(opWrite, v, call))
	return s
}

func (s *script) underWay(v Value, call int64) *script {
	s.g.begin(opWrite, v, call)
	return s
}

func (s *script) check(want bool) *script {
	s.t.Helper()
	v := s.r.Check(time.Minute)
	if have := v.Err() == nil; have != want {
		s.t.Errorf("found right: %t, want %t: %v", have, want, v.Err())
	}
	return s
}

func TestHistoriesThatAreRight(t *testing.T) {
	for name, tell := range map[string]func(*script){
		"what was written is read": func(s *script) { s.read(0, 1, 2).write(1, 3, 4).read(1, 5, 6) },
		"an unanswered write is seen later": func(s *script) {
			s.write(1, 1, 2).unanswered(2, 3).read(1, 4, 5).read(2, 6, 7)
		},
		"an unanswered write is never seen": func(s *script) {
			s.write(1, 1, 2).unanswered(2, 3).read(1, 4, 5).write(3, 6, 7).read(3, 8, 9)
		},
		"an unanswered write is seen after a check": func(s *script) {
			s.write(1, 1, 2).unanswered(2, 3).read(1, 4, 5).check(true).read(1, 6, 7).read(2, 8, 9)
		},
		"concurrent writes in either order": func(s *script) { s.write(1, 1, 10).write(2, 1, 10).read(1, 11, 12) },
		"a read beside a write sees either": func(s *script) { s.write(1, 1, 10).read(0, 2, 3).read(1, 4, 5).read(1, 11, 12) },
		"a write under way is seen":         func(s *script) { s.write(1, 1, 2).underWay(2, 3).read(1, 4, 5).read(2, 6, 7) },
		"an unanswered zero is seen":        func(s *script) { s.write(1, 1, 2).unanswered(0, 3).read(1, 4, 5).read(0, 6, 7).read(0, 8, 9) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			tell(s)
			s.check(true)
		})
	}
}

func TestHistoriesThatAreWrong(t *testing.T) {
	for name, tell := range map[string]func(*script){
		"a lost acknowledged write":  func(s *script) { s.write(1, 1, 2).write(2, 3, 4).read(1, 5, 6) },
		"the first write is lost":    func(s *script) { s.write(1, 1, 2).read(0, 3, 4) },
		"a stale read":               func(s *script) { s.write(1, 1, 2).write(2, 3, 4).read(2, 5, 6).read(1, 7, 8).read(2, 9, 10) },
		"a value that nobody wrote":  func(s *script) { s.write(1, 1, 2).read(9, 3, 4) },
		"two readers see two orders": func(s *script) { s.write(1, 1, 10).write(2, 1, 10).read(1, 11, 12).read(2, 13, 14).read(1, 15, 16) },
		"a read is taken back":       func(s *script) { s.write(1, 1, 2).write(2, 3, 20).read(2, 4, 5).read(1, 6, 7) },
		"a read before its write":    func(s *script) { s.read(1, 1, 2).write(1, 3, 4) },
		"an unanswered write is seen, overwritten and seen again": func(s *script) {
			s.unanswered(1, 1).read(1, 2, 3).write(2, 4, 5).read(1, 6, 7)
		},
		"the same with a check between": func(s *script) {
			s.unanswered(1, 1).read(1, 2, 3).check(true).write(2, 4, 5).check(true).read(1, 6, 7)
		},
		"a lost write after a check": func(s *script) { s.write(1, 1, 2).check(true).read(0, 3, 4) },
		"a zero is lost":             func(s *script) { s.write(1, 1, 2).write(0, 3, 4).read(1, 5, 6) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			tell(s)
			s.check(false)
		})
	}
}

// A history in which wrong is far behind many right requests is cut into pieces; the pieces must
// not hide it.
func TestCutsHideNothing(t *testing.T) {
	for _, wrong := range []bool{false, true} {
		s := newScript(t)
		now := int64(0)
		for v := Value(1); v <= 5*segmentOps; v++ {
			s.write(v, now+1, now+2).read(v, now+3, now+4)
			now += 4
		}
		if wrong {
			s.read(5*segmentOps-1, now+1, now+2)
		}
		v := s.r.Check(time.Minute)
		if (v.Err() == nil) == wrong || v.Segments < 5 {
			t.Errorf("wrong %t: %d segments: %v", wrong, v.Segments, v.Err())
		}
		if wrong && !strings.Contains(v.Err().Error(), "no order") {
			t.Error(v.Err())
		}
	}
}

func TestPowerLoss(t *testing.T) {
	flush := func(s *script, called int64) { s.g.flushed(called) }
	loss := func(s *script, at int64) { s.check(true); s.g.powerLost(at) }
	for name, tc := range map[string]struct {
		right bool
		tell  func(*script)
	}{
		"an unflushed write may be gone":        {true, func(s *script) { s.write(1, 1, 2); loss(s, 5); s.read(0, 6, 7) }},
		"or be there":                           {true, func(s *script) { s.write(1, 1, 2); loss(s, 5); s.read(1, 6, 7) }},
		"but not both":                          {false, func(s *script) { s.write(1, 1, 2); loss(s, 5); s.read(1, 6, 7).read(0, 8, 9) }},
		"a flushed write is there":              {false, func(s *script) { s.write(1, 1, 2); flush(s, 3); loss(s, 5); s.read(0, 6, 7) }},
		"also if it is overwritten afterwards":  {true, func(s *script) { s.write(1, 1, 2); flush(s, 3); s.write(2, 4, 5); loss(s, 6); s.read(1, 7, 8) }},
		"not what a flushed write had replaced": {false, func(s *script) { s.write(1, 1, 2).write(2, 3, 4); flush(s, 5); loss(s, 6); s.read(1, 7, 8) }},
		"a second loss brings nothing back": {true, func(s *script) {
			s.write(1, 1, 2)
			loss(s, 5)
			s.read(0, 6, 7)
			flush(s, 8)
			loss(s, 9)
			s.read(0, 10, 11)
		}},
		"an unanswered write died": {false, func(s *script) { s.write(1, 1, 2).unanswered(2, 3); loss(s, 5); s.read(1, 6, 7).read(2, 8, 9) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			tc.tell(s)
			s.check(tc.right)
		})
	}
}

// hurtDevice forgets every so-manyth write, or fails it, as it is told.
type hurtDevice struct {
	block.Device
	mu        sync.Mutex
	n         int
	lose      int // every so-manyth write is acknowledged and forgotten; 0: none
	failEvery int // every so-manyth write fails, and half of these were done
}

func (d *hurtDevice) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	d.mu.Lock()
	d.n++
	n := d.n
	d.mu.Unlock()
	switch {
	case d.lose > 0 && n%d.lose == 0:
		return nil
	case d.failEvery > 0 && n%d.failEvery == 0:
		if n%(2*d.failEvery) == 0 {
			_ = d.Device.WriteAt(ctx, p, off, fua)
		}
		return errors.New("no answer")
	}
	return d.Device.WriteAt(ctx, p, off, fua)
}

// hammer lets clients write and read few blocks at the same time.
func hammer(r *Recorder, dev block.Device, clients, requests int) {
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			disk, rnd := r.Disk(3, dev), rand.New(rand.NewPCG(1, uint64(c)))
			for range requests {
				b := rnd.Int64N(4)
				switch rnd.IntN(8) {
				case 0, 1, 2:
					_ = disk.Write(context.Background(), b, false)
				case 3:
					_ = disk.Flush(context.Background())
				default:
					_ = disk.Read(context.Background(), b)
				}
			}
		})
	}
	wg.Wait()
}

func TestRecorderOfADeviceThatKeepsEverything(t *testing.T) {
	r := New(5)
	dev := &hurtDevice{Device: block.NewMemory(1 << 20), failEvery: 20}
	for range 3 {
		hammer(r, dev, 6, 300)
		if v := r.Check(time.Minute); v.Err() != nil || v.Requests == 0 {
			t.Fatalf("%+v", v)
		}
	}
	if c := r.Counts(); c.Open == 0 || c.Reads == 0 || c.Writes == 0 || c.Flushes == 0 {
		t.Fatalf("%+v", c)
	}
}

func TestRecorderOfADeviceThatForgetsWrites(t *testing.T) {
	r := New(5)
	hammer(r, &hurtDevice{Device: block.NewMemory(1 << 20), lose: 50, failEvery: 20}, 6, 300)
	if v := r.Check(time.Minute); len(v.Violations) == 0 {
		t.Fatalf("%+v", v)
	}
}

func TestForeignContentIsAViolation(t *testing.T) {
	mem := block.NewMemory(1 << 20)
	r := New(5)
	if err := r.Disk(0, mem).Write(t.Context(), 1, false); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, BlockBytes)
	if err := mem.ReadAt(t.Context(), b, BlockBytes); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"misplaced": func() error { return mem.WriteAt(t.Context(), b, 0, false) },
		"torn":      func() error { return mem.WriteAt(t.Context(), b[:2000], 0, false) },
		"of another run": func() error {
			stamp{6, 0, kindRegister, 0, 1}.fill(b)
			return mem.WriteAt(t.Context(), b, 0, false)
		},
	} {
		if err := errors.Join(mem.Zero(t.Context(), 0, BlockBytes, block.ZeroFlags{}), spoil(), r.Disk(0, mem).Read(t.Context(), 0)); err != nil {
			t.Fatal(err)
		}
		if v := r.Check(time.Minute); len(v.Violations) != 1 {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

package disk

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
)

var (
	crashSeeds = flag.Int("crash.seeds", 2000, "how many seeds TestCrash runs")
	crashSeed  = flag.Uint64("crash.seed", 0, "run this seed of TestCrash only")
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)) }

// TestCrash runs random operations on a pool and ends them at a random file operation, by a power
// loss or by the death of the process; then it opens the pool again and compares what is there with
// a model of what was promised. Several such lives follow each other on the same pool.
// Repeat one with: go test ./disk -run 'TestCrash$' -crash.seed N
func TestCrash(t *testing.T) {
	first, n := uint64(1), uint64(*crashSeeds)
	if *crashSeed != 0 {
		first, n = *crashSeed, 1
	} else if testing.Short() {
		n = 200
	}
	var seen stats
	for seed := first; seed < first+n; seed++ {
		if err := runCrashSeed(seed, &seen); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	t.Logf("%+v", seen)
	if n > 100 && (seen.Lost == 0 || seen.Killed == 0 || seen.RollbackHalf == 0 || seen.Rollbacks == 0 ||
		seen.GroupNew == 0 || seen.Grown == 0 || seen.PointHalf == 0) {
		t.Fatalf("a case that must occur did not: %+v", seen)
	}
}

// stats counts that the interesting cases were met.
type stats struct {
	Lost, Killed, Ops, Rollbacks, RollbackHalf, GroupNew, Grown, PointHalf int
}

const (
	lifeSectors = 16 // per place
	lifePlaces  = 24
	lifeSize    = 3 * lockstep.GiB
)

type sectors [lifePlaces][lifeSectors]byte

// life is the model: what has been promised, and what an operation under way may change.
type life struct {
	rng  *rand.Rand
	m    *vfs.Mem
	p    *Pool
	v    *Volume
	seen *stats

	places  [lifePlaces]int64
	data    sectors
	dirtied [lifePlaces][lifeSectors]bool // written since the last sync
	unsure  [lifePlaces][lifeSectors]bool // being written when the end came

	created   bool
	size      int64
	growing   int64
	marked    map[int64]bool // regions
	written   map[int64]bool // chunks that MarkDirty wrote
	durable   map[int64]bool // chunks that are durably dirty
	group     string
	saving    string
	starts    uint64
	epoch     lockstep.Epoch
	point     lockstep.Epoch // 0: none
	image     sectors
	setting   lockstep.Epoch // SetPoint under way
	dropping  bool
	rolling   bool
	countdown int
	kill      bool // how this life ends
	powerLost bool // since the last complete check
	clone     *vfs.Mem
}

func runCrashSeed(seed uint64, seen *stats) error {
	l := &life{
		rng: newRand(seed), m: vfs.NewMem(), seen: seen, size: lifeSize,
		marked: map[int64]bool{}, written: map[int64]bool{}, durable: map[int64]bool{},
	}
	l.m.SetReflink(seed%5 == 0)
	l.m.SetPunch(seed%5 != 1)
	for i := range l.places { // some chunks side by side, some far apart
		l.places[i] = int64(i)/3*(lifeSize/8) + int64(i)%3*lockstep.ChunkBytes
	}
	for range 1 + l.rng.IntN(5) {
		if err := l.live(); err != nil {
			return err
		}
		if err := l.die(); err != nil {
			return err
		}
	}
	return nil
}

// live opens the pool, checks it, and runs operations until the end comes, which may be early.
func (l *life) live() error {
	l.clone, l.kill, l.p = nil, l.rng.IntN(3) == 0, nil
	l.countdown = 1 + l.rng.IntN([]int{20, 60, 200}[l.rng.IntN(3)])
	keep := []float64{0, 0.2, 0.5, 0.9, 1}[l.rng.IntN(5)]
	early := l.rng.IntN(3) == 0
	hook := func(vfs.Op) error {
		l.seen.Ops++
		if l.countdown--; l.countdown > 0 {
			return nil
		}
		if l.clone == nil {
			l.clone = l.m.CrashClone(l.rng, keep)
		}
		return vfs.ErrGone
	}
	if early {
		l.m.OnOp(hook)
	}
	err := l.begin()
	l.m.OnOp(hook)
	for err == nil && l.clone == nil {
		err = l.step()
	}
	var b broken
	if l.clone != nil && !errors.As(err, &b) {
		return nil // what failed, failed because of the end
	}
	return err
}

// broken is a promise that was not kept.
type broken string

func (b broken) Error() string { return string(b) }

func brokenf(format string, args ...any) error { return broken(fmt.Sprintf(format, args...)) }

// begin opens the pool and compares it with the model.
func (l *life) begin() error {
	p, err := OpenPool("/pool", Options{FS: l.m, Logger: quiet()})
	if err != nil {
		return fmt.Errorf("open the pool: %w", err)
	}
	l.p = p
	if p.StartCounter() <= l.starts {
		return brokenf("start counter %d after %d", p.StartCounter(), l.starts)
	}
	l.starts = p.StartCounter()
	return l.check()
}

func (l *life) die() error {
	if l.p != nil {
		if err := l.p.Close(); err != nil {
			return err
		}
	}
	l.m.OnOp(nil)
	if l.kill {
		l.seen.Killed++
		return nil
	}
	l.seen.Lost++
	l.m, l.powerLost = l.clone, true
	return nil
}

// write does what a node does: mark, preserve, write, track.
func (l *life) write(i int) error {
	from := l.rng.IntN(lifeSectors)
	to := from + 1 + l.rng.IntN(lifeSectors-from)
	off, n := l.places[i]+int64(from)*512, int64(to-from)*512
	if err := l.mark(off, n); err != nil {
		return err
	}
	if l.rng.IntN(2) == 0 {
		if err := l.markDirty(off, n); err != nil {
			return err
		}
	}
	if err := l.v.Preserve(exts(ext(off, n))); err != nil {
		return err
	}
	b := byte(l.rng.IntN(256))
	for s := from; s < to; s++ {
		l.dirtied[i][s], l.unsure[i][s] = true, true
	}
	var err error
	if b < 40 {
		b, err = 0, l.v.Zero(off, n, b < 20)
	} else {
		err = l.v.WriteAt(fill(b, n), off)
	}
	for s := from; err == nil && s < to; s++ {
		l.data[i][s], l.unsure[i][s] = b, false
	}
	return err
}

func (l *life) mark(off, n int64) error {
	err := l.v.MarkIntent(off, n)
	if err == nil {
		for r := off / lockstep.RegionBytes; r*lockstep.RegionBytes < off+n; r++ {
			l.marked[r] = true
		}
	}
	return err
}

func (l *life) markDirty(off, n int64) error {
	err := l.v.MarkDirty(off, n)
	if err == nil {
		for c := off / lockstep.ChunkBytes; c*lockstep.ChunkBytes < off+n; c++ {
			l.written[c] = true
		}
	}
	return err
}

func (l *life) sync() error {
	err := l.v.Sync()
	if err == nil {
		l.dirtied = [lifePlaces][lifeSectors]bool{}
	}
	return err
}

func (l *life) step() error {
	switch k := l.rng.IntN(100); {
	case k < 40:
		return l.write(l.rng.IntN(lifePlaces))
	case k < 50:
		return l.mark(l.rng.Int64N(l.size), 1)
	case k < 55:
		off := l.rng.Int64N(l.size)
		if err := l.mark(off, 1); err != nil {
			return err
		}
		return l.markDirty(off, 1)
	case k < 60:
		return l.sync()
	case k < 65:
		return l.clearIntent()
	case k < 68:
		return l.clearMaps()
	case k < 72:
		return l.durableDirty()
	case k < 80:
		l.saving = fmt.Sprint("blob ", l.rng.Uint64())
		err := l.p.SaveGroup("g", []byte(l.saving))
		if err == nil {
			l.group, l.saving = l.saving, ""
		}
		return err
	case k < 83:
		l.growing = l.size + l.rng.Int64N(1<<20)*512
		err := l.v.Grow(l.growing)
		if err == nil {
			l.size, l.growing = l.growing, 0
		}
		return err
	case k < 92:
		return l.setPoint()
	case k < 97:
		return l.rollback()
	default:
		l.dropping = true
		err := l.v.DropPoint()
		if err == nil {
			l.point, l.dropping = 0, false
		}
		return err
	}
}

func (l *life) clearIntent() error {
	snap, gen := l.v.IntentSnapshot()
	if err := l.sync(); err != nil {
		return err
	}
	off := int64(-1)
	if l.rng.IntN(2) == 0 { // a mark after the snapshot stays, whatever the clear says
		off = l.places[l.rng.IntN(lifePlaces)]
		if err := l.mark(off, 1); err != nil {
			return err
		}
	}
	for r := range l.marked {
		if r != off/lockstep.RegionBytes || off < 0 {
			delete(l.marked, r)
		}
	}
	return l.v.ClearIntent(snap, gen, 0)
}

func (l *life) clearMaps() error {
	clear(l.written)
	clear(l.durable)
	if l.rng.IntN(2) == 0 {
		return l.v.ClearDirty()
	}
	clear(l.marked)
	return l.v.ClearMaps()
}

func (l *life) durableDirty() error {
	if l.rng.IntN(2) == 0 {
		err := l.v.SyncMeta()
		if err == nil {
			for c := range l.written {
				l.durable[c] = true
			}
		}
		return err
	}
	var list []lockstep.Extent
	for range 1 + l.rng.IntN(3) {
		list = append(list, ext(l.rng.Int64N(l.size), 1))
	}
	err := l.v.AddDirty(list)
	if err == nil {
		for _, e := range list {
			l.durable[e.Off/lockstep.ChunkBytes] = true
		}
	}
	return err
}

func (l *life) setPoint() error {
	if err := l.sync(); err != nil {
		return err
	}
	l.epoch += 2
	insync := l.epoch - 1 // in sync since any point there is
	if l.rng.IntN(2) == 0 {
		insync = 0 // never: a point there is must be kept
	}
	kept := l.point > insync
	if !kept {
		l.setting = l.epoch
	}
	err := l.v.SetPoint(l.epoch, insync)
	if err == nil && !kept {
		l.point, l.image, l.setting = l.epoch, l.data, 0
	}
	return err
}

func (l *life) rollback() error {
	if l.point == 0 {
		return nil
	}
	l.seen.Rollbacks++
	l.rolling = true
	if _, err := l.v.Rollback(); err != nil {
		return err
	}
	l.rolledBack()
	return nil
}

func (l *life) rolledBack() {
	l.point, l.rolling, l.data = 0, false, l.image
	l.dirtied = [lifePlaces][lifeSectors]bool{}
}

// check compares a pool that was just opened with the model and then takes over what was open.
func (l *life) check() error {
	v, err := l.p.Create("v", l.size)
	if l.created || l.growing > 0 {
		if v, err = l.p.Open("v"); err == nil && v.Size() != l.size && v.Size() != l.growing {
			err = brokenf("size %d, not %d or %d", v.Size(), l.size, l.growing)
		}
	}
	if err != nil {
		return fmt.Errorf("volume: %w", err)
	}
	if v.Failed() != nil || v.DamagedPages() != 0 {
		return fmt.Errorf("failed %w, %d damaged pages", v.Failed(), v.DamagedPages())
	}
	if v.Size() != l.size {
		l.seen.Grown++
	}
	l.v, l.created, l.size, l.growing = v, true, v.Size(), 0
	if err := l.checkGroup(); err != nil {
		return err
	}
	if err := l.checkMaps(); err != nil {
		return err
	}
	if err := l.checkPoint(); err != nil {
		return err
	}
	return l.checkData()
}

func (l *life) checkGroup() error {
	blob, err := l.p.LoadGroup("g")
	if errors.Is(err, lockstep.ErrNotFound) && l.group == "" {
		err = nil
	}
	if err != nil {
		return err
	}
	if got := string(blob); got != l.group {
		if got != l.saving {
			return brokenf("group blob %q, neither %q nor %q", got, l.group, l.saving)
		}
		l.seen.GroupNew++
		l.group = got
	}
	l.saving = ""
	return nil
}

func (l *life) checkMaps() error {
	have := map[int64]bool{}
	for _, e := range l.v.Intent() {
		for r := e.Off / lockstep.RegionBytes; r*lockstep.RegionBytes < e.End(); r++ {
			have[r] = true
		}
	}
	for r := range l.marked {
		if !have[r] {
			return brokenf("the mark of region %d is lost", r)
		}
	}
	d := l.v.Dirty()
	if l.powerLost {
		for c := range l.durable {
			if !d.Get(int(c)) {
				return brokenf("durably dirty chunk %d is lost", c)
			}
		}
		if err := l.v.DirtyFromIntent(); err != nil {
			return err
		}
		d = l.v.Dirty()
		for c := range l.written {
			if !d.Get(int(c)) && l.marked[c*lockstep.ChunkBytes/lockstep.RegionBytes] {
				return brokenf("dirty chunk %d under a mark is lost", c)
			}
			if !d.Get(int(c)) {
				delete(l.written, c)
			}
		}
		return nil
	}
	for _, set := range []map[int64]bool{l.durable, l.written} {
		for c := range set {
			if !d.Get(int(c)) {
				return brokenf("a killed process lost dirty chunk %d", c)
			}
		}
	}
	return nil
}

// checkPoint settles what SetPoint, DropPoint or Rollback left, and rolls back now and then.
func (l *life) checkPoint() error {
	e, ok := l.v.Point()
	switch {
	case ok && e == l.point:
	case ok && e == l.setting:
		l.seen.PointHalf++
		l.point, l.image = e, l.data // synced before
	case ok:
		return brokenf("point of epoch %d, neither %d nor %d", e, l.point, l.setting)
	case l.rolling:
		l.seen.RollbackHalf++
		l.rolledBack() // finished: checkData compares
	case l.point != 0 && !l.dropping && l.setting == 0:
		return brokenf("the point of epoch %d is lost", l.point)
	default:
		l.point = 0
	}
	again := l.rolling
	if again {
		l.seen.RollbackHalf++
	}
	l.setting, l.dropping, l.rolling = 0, false, false
	if l.point == 0 || !again && l.rng.IntN(3) > 0 {
		return nil
	}
	l.rolling = true
	if _, err := l.v.Rollback(); err != nil {
		return fmt.Errorf("roll back after the crash: %w", err)
	}
	l.rolledBack()
	return nil
}

// checkData compares the sectors that were synced and takes over the others as they are.
func (l *life) checkData() error {
	buf := make([]byte, lifeSectors*512)
	for i, off := range l.places {
		if err := l.v.ReadAt(buf, off); err != nil {
			return err
		}
		for s := range lifeSectors {
			b := buf[s*512]
			for _, c := range buf[s*512 : (s+1)*512] {
				if c != b {
					return brokenf("sector %d of place %d is torn", s, i)
				}
			}
			if b != l.data[i][s] && (!l.powerLost && !l.unsure[i][s] || !l.dirtied[i][s]) {
				return brokenf("sector %d of place %d is %d, want %d", s, i, b, l.data[i][s])
			}
			l.data[i][s] = b
		}
	}
	l.unsure = [lifePlaces][lifeSectors]bool{}
	l.powerLost = false
	return l.sync()
}

package whole

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/protocol"
)

// Result is what became of a run.
type Result struct {
	Seed                        uint64
	Err                         error
	Hash                        uint64 // of every event; the same for the same seed
	Events                      int
	Virtual                     time.Duration
	Acks, Reads, Flushes, Given int
	Stats                       map[string]int
	Status                      string
	Tale                        []string
}

// Run plays one seed in the bubble of the caller: a deployment is built, faults and operators have their
// time, everything is healed, and what must be true is looked at again.
func Run(seed uint64, dir string, story io.Writer, logs bool) Result {
	d := newDice(seed, 9)
	nodes := 1 + d.below(2)
	w := newWorld(seed, dir, nodes, story, logs)
	for _, f := range faults {
		w.stats["fault: "+f.name] = 0
	}
	for _, call := range calls {
		w.stats["operator: "+call] = 0
	}
	err := w.play(d)
	if err != nil {
		w.fail("%v", err)
	}
	r := w.result()
	w.close()
	return r
}

func (w *World) result() Result {
	status := "not built"
	if w.group != "" {
		status = w.status()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := Result{
		Seed: w.seed, Err: w.failure, Hash: w.hash, Events: w.lines, Virtual: time.Since(w.began), Stats: w.stats, Tale: w.tale, Status: status,
	}
	if w.hist != nil {
		r.Acks, r.Reads, r.Flushes, r.Given = w.hist.acks, w.hist.reads, w.hist.flushes, w.hist.unknown
	}
	return r
}

func (w *World) play(d *dice) error {
	if err := w.build(2); err != nil {
		return err
	}
	w.startGuests(3+d.below(3), 0, d.between(20*time.Millisecond, 120*time.Millisecond))
	if d.chance(0.9) { // else the disasters meet a group that was never in sync
		if err := w.act("sync"); err != nil {
			return err
		}
		if !w.until(time.Minute, "available", "active", "0") {
			return fmt.Errorf("the first synchronization did not end: %s", w.status())
		}
	}
	w.loseAnswers = []float64{0, 0.01, 0.1}[d.below(3)]
	until := time.Now().Add(d.between(20*time.Second, 70*time.Second))
	kinds := choose(d)
	w.say("CHECK", "kinds of faults: %s", kindNames(kinds))
	w.disasters(newDice(w.seed, 10), kinds, 1+d.below(3), until)
	if d.chance(0.8) {
		w.operators(until)
	}
	w.tasks.Go(func() { // checks at any time
		for !w.over.Load() {
			time.Sleep(200 * time.Millisecond)
			w.checkImages()
			w.checkVerified()
		}
	})
	for time.Now().Before(until) && w.failed() == nil {
		time.Sleep(time.Second)
		if d.below(20) == 0 {
			w.quiet()
		}
	}
	w.heal()
	return w.settle()
}

func kindNames(kinds []fault) string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return strings.Join(names, ", ")
}

// settle checks the end: the group serves and is in sync, both sides are equal to the byte, and every
// sector reads as the history says.
func (w *World) settle() error {
	if w.failed() != nil {
		return nil
	}
	damaged := len(w.wrecked()) > 0
	within := 3 * time.Minute
	w.eventually(time.Minute, func() bool { return !w.calling.Load() }) // an operator's last call may change what is healed
	ok := w.converge(within)
	v, err := w.view()
	if err != nil {
		return err
	}
	if !slices.Contains(restStatuses, v.Status) {
		return fmt.Errorf("the group did not come to rest: status %s, replication %s, record %s", v.Status, v.ReplicationStatus, w.now().Describe())
	}
	if !ok && !damaged {
		return fmt.Errorf("healed for %s, and the group is %s (%s), its record %s", within, w.status(), v.Reason, w.now().Describe())
	}
	if !ok {
		return w.settleDamaged()
	}
	before := w.hist.acks
	time.Sleep(5 * time.Second)
	if w.hist.acks == before && damaged { // it showed that for a moment, while a process tried again to start
		return w.settleDamaged()
	}
	if w.hist.acks == before {
		return fmt.Errorf("healed and in sync, and nothing is acknowledged")
	}
	if !w.quiet() && !damaged {
		return fmt.Errorf("healed and in sync, and the guests' requests do not end")
	}
	w.checkDiverged()
	return w.failed()
}

// settleDamaged checks what must hold although a disk failed for good, or lies (DESIGN section 8): a group whose
// primary's disks are well serves, whatever became of the other side; one whose primary's disk failed in
// sync fails over and loses nothing. Every sector that can be read reads as the history says.
func (w *World) settleDamaged() error {
	r := w.now()
	// A synchronization that cannot end is given up, and tried again; where a primary's process does not come
	// back, it waits for that, while the others serve.
	if !w.eventually(time.Minute, func() bool {
		r = w.now()
		return r.State == protocol.StateNormal || r.State == protocol.StateTripping || !w.up(r, r.Primary)
	}) {
		return fmt.Errorf("a disk failed, and the group did not come to rest: %s", r.Describe())
	}
	if !w.soundAt(r, r.Primary) {
		if !r.InSync || !w.intact(r, r.Secondary) {
			w.count("checked: nothing could serve, a disk failed")
			return nil // the only good copy is on the disk that failed
		}
		if !w.eventually(time.Minute, func() bool { return w.act(control.ActionFailover) == nil }) {
			return fmt.Errorf("the primary's disk failed in sync, and no failover is accepted: %s", w.status())
		}
		if !w.eventually(time.Minute, func() bool { return w.now().FailedOver }) {
			return fmt.Errorf("the primary's disk failed in sync, and the failover does not end: %s", w.status())
		}
		r = w.now()
	}
	if r.InSync && !w.intact(r, r.Primary) {
		w.count("checked: a primary that lost its power waits for a secondary whose disk failed")
		return nil // what it had not flushed is there, or nowhere: an operator has to say that it is nowhere
	}
	w.hush.Store(true) // a guest may wait for a volume whose disk failed: others ask now
	for i, ids := range w.vols {
		if m, ok := w.memberIn(r, i); !ok || m.NoImage {
			continue
		}
		if !w.eventually(time.Minute, func() bool {
			p := w.home(ids[sideOf(r.Primary)]).running()
			return p != nil && w.flushAndRead(p, i, sideOf(r.Primary))
		}) {
			return fmt.Errorf("a disk of the other side failed, and pair %d of the group does not serve at %s: %s, %s", i, r.Primary, w.status(), w.now().Describe())
		}
	}
	w.count("checked: the side without the failed disk serves")
	return w.failed()
}

// up: every process of the group in that zone runs.
func (w *World) up(r protocol.Record, az lockstep.AZ) bool {
	for _, m := range r.Members {
		if w.host(m.In(az).Node).running() == nil {
			return false
		}
	}
	return true
}

// soundAt: no disk of the group in that zone failed.
func (w *World) soundAt(r protocol.Record, az lockstep.AZ) bool {
	for _, m := range r.Members {
		if w.wrecked()[w.host(m.In(az).Node)] != "" {
			return false
		}
	}
	return true
}

// restStatuses are those in which nothing is under way; see docs/concepts/group.md.
var restStatuses = []string{"available", "failovered", "error", "error_failovering", "error_reversing"}

// quiet holds the guests, flushes, and compares the sides if the group is in sync meanwhile. It reports
// whether requests ended and whether the comparison was made.
func (w *World) quiet() bool {
	w.hush.Store(true)
	defer w.hush.Store(false)
	for end := time.Now().Add(10 * time.Second); w.active.Load() > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	r := w.now()
	if !r.InSync || r.State != "normal" {
		return false
	}
	side := 0
	if r.Primary == "az2" {
		side = 1
	}
	flushed := make(chan bool, len(w.vols))
	asked := 0
	for i, ids := range w.vols {
		if !w.member(i) {
			continue
		}
		asked++
		p := w.home(ids[side]).running()
		if p == nil {
			return false
		}
		w.tasks.Go(func() { flushed <- w.flushAndRead(p, i, side) })
	}
	all := true
	timeout := time.After(20 * time.Second)
	for range asked {
		select {
		case ok := <-flushed:
			all = all && ok
		case <-timeout:
			return false
		}
	}
	now := w.now()
	if !all || now.Epoch != r.Epoch || !w.intact(now, "az1") || !w.intact(now, "az2") {
		return false
	}
	w.count("comparisons of both sides")
	if err := w.equal(); err != nil {
		w.fail("quiet, flushed and in sync at epoch %d: %v", r.Epoch, err)
	}
	return true
}

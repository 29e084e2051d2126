package whole

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

// World is one deployment of two zones with its guests, and what is known to be true of it.
type World struct {
	seed  uint64
	dir   string // for the hosts' boot ids
	began time.Time
	logs  bool

	dice, storeDice, operatorDice *dice
	net                           *network
	mem                           *memstore.Mem
	hosts                         []*host
	brains                        []*brain
	lives, guests                 int
	tasks                         sync.WaitGroup
	over                          atomic.Bool
	loseAnswers                   float64 // share of the store's answers that get lost

	storeMu  sync.Mutex
	links    []*storeLink
	storeOut map[string]bool

	group lockstep.GroupID
	pairs []lockstep.PairID
	vols  [][2]lockstep.VolumeID // by pair: az1, az2
	homes map[lockstep.VolumeID]*host
	hist  *history

	hush    atomic.Bool  // guests make no new requests
	active  atomic.Int64 // requests under way
	calm    atomic.Bool  // no more faults and no more operators
	calling atomic.Bool  // an operator waits for an answer

	mu      sync.Mutex // guards what follows
	story   io.Writer
	hash    uint64
	lines   int
	tale    []string // the last lines
	failure error
	record  protocol.Record
	sides   map[lockstep.Epoch]lockstep.AZ // who acknowledged at an epoch
	cut     bool                           // the image of the side that is not primary must be a cut
	ruined  map[*host]string               // disks that failed for good, or lie
	epochs  map[lockstep.Epoch]*epoch      // all that the record has had
	forced  forced
	stats   map[string]int
}

var caller = control.Caller{Project: "p", User: "u", RequestID: "r", Operator: true, Admin: true}

// say adds a line to the story. Every line counts for the hash that tells two runs apart.
func (w *World) say(who, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	at := time.Since(w.began)
	w.mu.Lock()
	defer w.mu.Unlock()
	line := fmt.Sprintf("%10.4fs  %-5s %s", at.Seconds(), who, text)
	w.note(line)
	w.tale = append(w.tale, line)
	if w.story != nil {
		fmt.Fprintln(w.story, line)
	}
}

// note counts an event that is too small for the story. Called with mu held.
func (w *World) note(line string) {
	f := fnv.New64a()
	_, _ = fmt.Fprintf(f, "%x %s", w.hash, line)
	w.hash = f.Sum64()
	w.lines++
}

func (w *World) small(format string, args ...any) {
	at := time.Since(w.began)
	w.mu.Lock()
	defer w.mu.Unlock()
	line := fmt.Sprintf("%d ", at) + fmt.Sprintf(format, args...)
	w.note(line)
	if w.logs && w.story != nil {
		fmt.Fprintln(w.story, "  "+line)
	}
}

func (w *World) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats[what]++
}

// fail notes the first thing that must not be.
func (w *World) fail(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	w.mu.Lock()
	first := w.failure == nil
	if first {
		w.failure = err
	}
	w.mu.Unlock()
	if first {
		w.say("CHECK", "%v", err)
	}
}

func (w *World) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failure
}

func (w *World) home(id lockstep.VolumeID) *host { return w.homes[id] }

func (w *World) host(id lockstep.NodeID) *host {
	for _, h := range w.hosts {
		if h.id == id {
			return h
		}
	}
	panic("no host " + id)
}

// now is the group's record as the store has it.
func (w *World) now() protocol.Record {
	kv, err := w.mem.Get(context.Background(), store.KeyRecord(w.group))
	if err != nil {
		return protocol.Record{}
	}
	r, err := store.Decode[protocol.Record](kv.Value)
	if err != nil {
		w.fail("the record cannot be read: %v", err)
	}
	return r
}

// newWorld makes hosts and controllers and starts them; nodes for each zone.
func newWorld(seed uint64, dir string, nodes int, story io.Writer, logs bool) *World {
	w := &World{
		seed: seed, dir: dir, began: time.Now(), dice: newDice(seed, 1), storeDice: newDice(seed, 2), operatorDice: newDice(seed, 3),
		net: newNetwork(newDice(seed, 4)), mem: memstore.NewMem(), storeOut: map[string]bool{}, homes: map[lockstep.VolumeID]*host{},
		story: story, logs: logs, sides: map[lockstep.Epoch]lockstep.AZ{}, ruined: map[*host]string{}, stats: map[string]int{}, epochs: map[lockstep.Epoch]*epoch{},
	}
	for _, az := range []lockstep.AZ{"az1", "az2"} {
		for i := range nodes {
			id := lockstep.NodeID(fmt.Sprintf("%c%d", 'a'+az[2]-'1', i+1))
			w.hosts = append(w.hosts, newHost(w, id, az))
		}
	}
	for _, id := range []string{"ctl1", "ctl2"} {
		b := &brain{w: w, id: id}
		w.brains = append(w.brains, b)
		b.start()
	}
	for _, h := range w.hosts {
		h.powerOn()
	}
	return w
}

// eventually waits until f says yes, for at most that long.
func (w *World) eventually(within time.Duration, f func() bool) bool {
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if f() {
			return true
		}
		if w.failed() != nil {
			return false
		}
	}
	return f()
}

// build makes pairs of 1 GiB over all nodes and their group, through the API, and follows the record.
func (w *World) build(pairs int) error {
	must := func(what string, f func(ctx context.Context, ctl *control.Controller) error) error {
		var err error
		if !w.eventually(time.Minute, func() bool {
			err = w.call(context.Background(), f)
			return err == nil
		}) {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	for range pairs {
		var ids [2]lockstep.VolumeID
		for i, az := range []lockstep.AZ{"az1", "az2"} {
			err := must("create a volume", func(ctx context.Context, ctl *control.Controller) error {
				v, err := ctl.CreateVolume(ctx, caller, control.VolumeCreate{SizeGiB: 1, AZ: az})
				ids[i] = v.ID
				return err
			})
			if err != nil {
				return err
			}
		}
		for _, id := range ids {
			err := must("volume available", func(ctx context.Context, ctl *control.Controller) error {
				v, err := ctl.GetVolume(ctx, caller, id)
				if err == nil && v.Status != "available" {
					err = fmt.Errorf("volume is %s", v.Status)
				}
				w.homes[id] = nil
				if v.Node != "" {
					w.homes[id] = w.host(v.Node)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		var pair lockstep.PairID
		err := must("create a pair", func(ctx context.Context, ctl *control.Controller) error {
			p, err := ctl.CreatePair(ctx, caller, control.PairCreate{Volumes: ids[:], Priority: "az1", Model: "hypermetro"})
			pair = p.ID
			return err
		})
		if err == nil {
			err = must("pair available", func(ctx context.Context, ctl *control.Controller) error {
				p, err := ctl.GetPair(ctx, caller, pair)
				if err == nil && p.Status != "available" {
					err = fmt.Errorf("pair is %s", p.Status)
				}
				return err
			})
		}
		if err != nil {
			return err
		}
		w.pairs, w.vols = append(w.pairs, pair), append(w.vols, ids)
	}
	w.hist = newHistory(pairs)
	err := must("create the group", func(ctx context.Context, ctl *control.Controller) error {
		g, err := ctl.CreateGroup(ctx, caller, control.GroupCreate{Pairs: w.pairs, Priority: "az1", Model: "hypermetro"})
		w.group = g.ID
		return err
	})
	if err != nil {
		return err
	}
	w.follow()
	if !w.until(time.Minute, "available", "inactive", "0") {
		return fmt.Errorf("the new group is %s", w.status())
	}
	return nil
}

// view is the group as the API shows it.
func (w *World) view() (control.GroupView, error) {
	var v control.GroupView
	err := w.call(context.Background(), func(ctx context.Context, ctl *control.Controller) (err error) {
		v, err = ctl.GetGroup(ctx, caller, w.group)
		return err
	})
	return v, err
}

// status is what users see, as one word.
func (w *World) status() string {
	v, err := w.view()
	if err != nil {
		return "unknown: " + err.Error()
	}
	return strings.Join([]string{v.Status, v.ReplicationStatus, v.FaultLevel}, "/")
}

// until waits for a status; "" is any.
func (w *World) until(within time.Duration, status, replication, fault string) bool {
	return w.eventually(within, func() bool {
		v, err := w.view()
		return err == nil && (status == "" || v.Status == status) && (replication == "" || v.ReplicationStatus == replication) && (fault == "" || v.FaultLevel == fault)
	})
}

// follow tells every change of the record, and checks what must be true at that instant.
func (w *World) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	events := w.mem.Watch(ctx, store.PrefixRecords, 0)
	w.tasks.Go(func() {
		defer cancel()
		for !w.over.Load() {
			select {
			case batch := <-events:
				for _, ev := range batch {
					if r, err := store.Decode[protocol.Record](ev.Value); err == nil && !ev.Deleted && r.Group == w.group {
						w.changed(r)
					}
				}
			case <-time.After(time.Second):
			}
		}
	})
}

// changed takes the next record of the group.
func (w *World) changed(r protocol.Record) {
	w.mu.Lock()
	last := w.record
	w.record = r
	w.noteEpoch(last, r)
	switch {
	case r.State == protocol.StateCopying, r.FailedOver && !r.InSync:
		// Half of the new and half of the old; or the image of an old primary, which may hold writes that
		// nobody acknowledged and that nobody will be given.
		w.cut = false
	case r.InSync:
		w.cut = true
	}
	w.mu.Unlock()
	w.say("group", "epoch %d: %s", r.Epoch, r.Describe())
	if r.Epoch < last.Epoch {
		w.fail("the record went back from epoch %d to %d", last.Epoch, r.Epoch)
	}
	if r.Epoch == last.Epoch && (r.State != last.State || r.InSync != last.InSync || r.Primary != last.Primary || r.FailedOver != last.FailedOver) {
		w.fail("the record of epoch %d was %s and is %s, without a new epoch", r.Epoch, last.Describe(), r.Describe())
	}
	w.checkSizes(r)
	if last.State == protocol.StateFailovering && last.Forced != nil && r.FailedOver {
		w.forcedOver(last, r)
	}
	w.checkImages()
}

// intact: neither the power nor the disk of the side's hosts took anything since the record was made.
func (w *World) intact(r protocol.Record, az lockstep.AZ) bool {
	for _, m := range r.Members {
		for _, rep := range m.Replicas {
			if h := w.host(rep.Node); rep.AZ == az && (r.BootIDs[rep.Node] != h.bootID() || w.ruined[h] != "") {
				return false
			}
		}
	}
	return true
}

// checkImages looks at the disks of the side that is not primary: in sync it has every acknowledged
// write; after that, until a synchronization begins, it is a consistent cut.
func (w *World) checkImages() {
	r := w.now()
	if r.Group == "" || len(r.Members) == 0 || w.over.Load() {
		return
	}
	w.mu.Lock()
	cut := w.cut && w.record.Epoch == r.Epoch
	w.mu.Unlock()
	if !cut || r.State == protocol.StateCopying {
		return
	}
	az := r.Secondary
	side := sideOf(az)
	if !w.intact(r, az) {
		return
	}
	im, err := w.look(side, func(i int) bool { return w.inSyncOnce(r, i) })
	if err == nil {
		since := uint64(0)
		if r.InSync {
			since = w.hist.begin()
		}
		err = w.hist.cut(im, since)
	}
	w.count("images checked")
	if err != nil {
		w.fail("at epoch %d (%s) the image of %s is no consistent cut: %v", r.Epoch, r.Describe(), az, err)
	}
}

// powerLost decides what a loss of power may have cost: unflushed writes, where this disk was the only one
// that had to have them, or where the other side's host has not yet got over its own loss.
func (w *World) powerLost(h *host) {
	r := w.now()
	for i, ids := range w.vols {
		for side, id := range ids {
			if w.home(id) != h {
				continue
			}
			other := w.home(ids[1-side])
			if !w.member(i) { // one disk
				w.hist.excuse(i)
				continue
			}
			alone := !r.InSync && (r.Primary == h.az || r.Primary == "")
			both := r.InSync && r.BootIDs[other.id] != other.bootID()
			if alone || both || w.ruined[other] != "" {
				w.say("CHECK", "pair %d may have lost what was not flushed (in sync: %v)", i, r.InSync)
				w.hist.excuse(i)
			}
			if !r.InSync && r.Primary != h.az {
				w.mu.Lock()
				w.cut = false
				w.mu.Unlock()
			}
		}
	}
}

// acknowledged notes which side answered, at the epoch it then had.
func (w *World) acknowledged(p *proc, at lockstep.Epoch) {
	w.mu.Lock()
	other, known := w.sides[at]
	w.sides[at] = p.h.az
	w.mu.Unlock()
	if known && other != p.h.az {
		w.fail("both %s and %s acknowledged writes at epoch %d", other, p.h.az, at)
	}
}

// close ends everything, so that nothing is left in the bubble.
func (w *World) close() {
	w.over.Store(true)
	w.calm.Store(true)
	for _, h := range w.hosts {
		h.pause(false)
		h.end()
	}
	for _, b := range w.brains {
		b.pause(false)
		b.kill()
	}
	w.net.close()
	w.tasks.Wait()
	_ = w.mem.Close()
}

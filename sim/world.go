package sim

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// Sizes of the model: small, so that collisions are frequent.
const (
	blocksPerVolume  = 4
	blocksPerRegion  = 2
	regionsPerVolume = blocksPerVolume / blocksPerRegion
)

// Times in virtual milliseconds.
const (
	tickMs       = 100
	heartbeatMs  = 250
	leaseTTLMs   = 1000
	leaseDriftMs = 100
	tripAfterMs  = 3000
	deadLinkMs   = 2500
	flushEveryMs = 1000
)

const (
	groupID = lockstep.GroupID("g")
	az1     = lockstep.AZ("az1")
	az2     = lockstep.AZ("az2")
)

// event is something due at a virtual time; equal times run in the order they were queued.
type event struct {
	at  int64
	seq uint64
	fn  func()
}

// Options shape one run. The zero value is the plain run of a seed.
type Options struct {
	Seed  uint64
	Story bool // keep every line of the trace, not only its hash
	Break Mutant
	Focus Focus
}

// Focus makes one kind of trouble frequent and leaves the rest out.
type Focus int

// Kinds of trouble.
const (
	FocusNone     Focus = iota
	FocusFailover       // failovers and reprotects while nodes are cut from the store
	FocusPause          // processes restart and links are cut while users pause and go on
	FocusOperator       // primary nodes are cut from the store, or die, while operators step in
	FocusForced         // out of sync, or in the middle of copying, sites are lost and users force failovers
	FocusRestart        // processes of primary nodes restart before they repaired what the last restart left
)

// Result is what a run found.
type Result struct {
	Seed    uint64
	Failure string // empty: every promise was kept
	At      int64  // virtual milliseconds
	Events  uint64
	Story   []string
	Hash    uint64 // of the whole trace; only with Story
	Stats   Stats
}

// Stats counts what a run reached, so that tests can demand that something was exercised.
type Stats struct {
	Acks, Reads, Trips, WaysBack, Syncs, InSyncs, Failovers, Reverses, BackOuts, Renewals, Aborts int
	TakeBacks, Repairs, LossyReboots, SaidOff                                                     int
	Continued, AcceptedLosses, StrictServed, StrictWaits                                          int
	Forced, ForcedStrict, RollBacks, Kept, WritesGivenUp                                          int
}

type world struct {
	opt    Options
	rng    *rand.Rand
	now    int64
	seq    uint64
	heap   []event
	failed string
	story  []string
	hash   uint64
	stats  Stats

	store       vstore
	nodes       []*node
	ctls        []*controller
	pairs       int
	truth       truth
	apps        []*client
	opsOn       bool // random user operations go on
	faults      bool // random faults go on
	cuts        map[[2]lockstep.NodeID]int64
	wanted      []*operation
	announceSeq uint64
	announces   map[uint64]announcing
	// lateness is how slow things are at worst, in milliseconds, chosen per run.
	lateness int64
	// anyVolumeFailed: liveness then asks for less.
	anyVolumeFailed bool
}

func newWorld(opt Options) *world {
	return &world{
		opt: opt, rng: rand.New(rand.NewPCG(opt.Seed, 0x6c6f636b73746570)),
		cuts: map[[2]lockstep.NodeID]int64{}, lateness: 10, announces: map[uint64]announcing{},
	}
}

func (w *world) between(lo, hi int64) int64 {
	if hi <= lo {
		return lo
	}
	return lo + w.rng.Int64N(hi-lo+1)
}

func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

// latency is a short time with a long tail.
func (w *world) latency() int64 {
	if w.chance(4) {
		return w.between(0, w.lateness*20)
	}
	return w.between(0, w.lateness)
}

func (w *world) after(d int64, fn func()) {
	if d < 0 {
		d = 0
	}
	w.seq++
	w.heap = append(w.heap, event{at: w.now + d, seq: w.seq, fn: fn})
	for i := len(w.heap) - 1; i > 0; {
		up := (i - 1) / 2
		if !w.less(i, up) {
			break
		}
		w.heap[i], w.heap[up] = w.heap[up], w.heap[i]
		i = up
	}
}

func (w *world) less(i, j int) bool {
	a, b := &w.heap[i], &w.heap[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

func (w *world) pop() event {
	top := w.heap[0]
	last := len(w.heap) - 1
	w.heap[0] = w.heap[last]
	w.heap[last] = event{}
	w.heap = w.heap[:last]
	for i := 0; ; {
		small := i
		for _, kid := range [2]int{2*i + 1, 2*i + 2} {
			if kid < last && w.less(kid, small) {
				small = kid
			}
		}
		if small == i {
			return top
		}
		w.heap[i], w.heap[small] = w.heap[small], w.heap[i]
		i = small
	}
}

// run goes on until the virtual time is over, a promise is broken, or done says so.
func (w *world) run(forMs int64, done func() bool) bool {
	end := w.now + forMs
	for w.failed == "" && len(w.heap) > 0 && w.heap[0].at <= end {
		ev := w.pop()
		w.now = ev.at
		ev.fn()
		w.check()
		if done != nil && done() {
			return true
		}
	}
	if w.failed == "" && w.now < end {
		w.now = end
	}
	return done == nil
}

func (w *world) fail(format string, args ...any) {
	if w.failed != "" {
		return
	}
	w.failed = fmt.Sprintf(format, args...)
	w.say("FAILURE: %s", w.failed)
}

// say adds a line to the story. Callers guard costly arguments with w.opt.Story.
func (w *world) say(format string, args ...any) {
	if !w.opt.Story {
		return
	}
	line := fmt.Sprintf("%7d  ", w.now) + fmt.Sprintf(format, args...)
	w.story = append(w.story, line)
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%x%s", w.hash, line) // a hash never fails
	w.hash = h.Sum64()
}

func (w *world) node(id lockstep.NodeID) *node {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	panic("sim: no node " + string(id))
}

// cut reports whether nothing gets from one node to the other now.
func (w *world) cut(from, to lockstep.NodeID) bool {
	return w.cuts[[2]lockstep.NodeID{from, to}] > w.now
}

func (w *world) cutFor(from, to lockstep.NodeID, ms int64) {
	w.cuts[[2]lockstep.NodeID{from, to}] = w.now + ms
}

// build makes the cluster: np and ns nodes, and a group whose pairs are given by their two nodes.
func (w *world) build(np, ns int, pairs [][2]int) {
	for i := range np + ns {
		az, no := az1, i+1
		if i >= np {
			az, no = az2, i-np+1
		}
		id := lockstep.NodeID(fmt.Sprintf("%s-n%d", az, no))
		w.nodes = append(w.nodes, &node{w: w, id: id, az: az, instance: "dir-" + string(id), boot: 1})
	}
	var members []protocol.Member
	w.pairs = len(pairs)
	for i, p := range pairs {
		m := protocol.Member{Pair: lockstep.PairID(fmt.Sprintf("pair%d", i)), SizeBytes: blocksPerVolume * lockstep.ChunkBytes}
		for side, n := range [2]*node{w.nodes[p[0]], w.nodes[np+p[1]]} {
			v := &vol{w: w, n: n, pair: i, id: lockstep.VolumeID(fmt.Sprintf("v%d-%s", i, n.az))}
			n.vols = append(n.vols, v)
			m.Replicas[side] = protocol.Replica{Volume: v.id, Node: n.id, AZ: n.az}
		}
		members = append(members, m)
	}
	w.truth.init(w.pairs)
	w.store = vstore{w: w, answers: map[lockstep.NodeID]answerRow{}}
	w.store.rec = protocol.NewGroup(groupID, "project", az1, az2, members)
	for _, n := range w.nodes {
		n.startProcess()
	}
	for i := range 2 {
		c := &controller{w: w, no: i + 1, up: true}
		w.ctls = append(w.ctls, c)
		w.after(w.between(0, 300), c.loop)
	}
}

// volOf is a pair's copy in an AZ.
func (w *world) volOf(pair int, az lockstep.AZ) *vol {
	for _, n := range w.nodes {
		if n.az != az {
			continue
		}
		for _, v := range n.vols {
			if v.pair == pair {
				return v
			}
		}
	}
	panic("sim: no volume")
}

func other(az lockstep.AZ) lockstep.AZ {
	if az == az1 {
		return az2
	}
	return az1
}

package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/test/rig"
)

// campaign is many rounds on one deployment: load, something breaks, it heals, everything is checked.
type campaign struct {
	*cluster
	g      *rig.Group
	rnd    *rand.Rand
	chains *rig.Chains
	zone   string // where the primary is
	table  []*tally
	began  time.Time // of this round
	events []string  // of this round, for a failed test's output
	mu     sync.Mutex
}

// tally is a row of the table at the end.
type tally struct {
	kind                string
	rounds              int
	settle, total       []time.Duration // until the group was active again; the whole round
	failovers           []time.Duration
	requests, responses uint64
}

func newCampaign(t *testing.T) *campaign {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	c := newCluster(t, seed)
	// Every node has a part of the group, and the nodes of a zone share secondaries.
	g := rig.NewGroup(t, c, [2]string{"az1-1", "az2-1"}, [2]string{"az1-2", "az2-2"}, [2]string{"az1-2", "az2-1"})
	x := &campaign{cluster: c, g: g, rnd: rand.New(rand.NewPCG(seed, 1)), chains: rig.NewChains(len(g.Pairs)), zone: "az1"}
	x.chains.FlushEvery, x.chains.FUAEvery = 40, 17
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the last round:\n" + strings.Join(x.events, "\n"))
		}
		t.Log("\n" + x.report())
	})
	return x
}

func (x *campaign) say(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.events = append(x.events, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// pause lets time pass in which the load goes on.
func (x *campaign) pause(atMost time.Duration) {
	t := time.NewTimer(time.Duration(x.rnd.Int64N(int64(atMost))))
	<-t.C
}

// row is the tally of a kind of rounds.
func (x *campaign) row(kind string) *tally {
	for _, r := range x.table {
		if r.kind == kind {
			return r
		}
	}
	x.table = append(x.table, &tally{kind: kind})
	return x.table[len(x.table)-1]
}

// round does one: hurt breaks things and returns when they are to be healed.
func (x *campaign) round(kind string, hurt func(*tally)) {
	x.t.Helper()
	row := x.row(kind)
	x.began, x.events = time.Now(), nil
	x.say("%s; the primary is in %s", kind, x.zone)
	disks := x.g.Open(rig.Patience, x.zone)
	x.chains.Run(disks)
	roam := x.roam()
	if err := x.chains.Progress(rig.Patience, 60); err != nil {
		x.t.Fatalf("%s: before anything breaks: %v", kind, err)
	}
	hurt(row)
	healed := time.Now()
	x.heal()
	x.g.Settle(rig.Patience)
	x.say("settled")
	row.settle = append(row.settle, time.Since(healed))
	// Some writers have lost their disks; what counts is that none is held now.
	if err := x.chains.Stop(rig.Patience); errors.Is(err, rig.ErrUnanswered) {
		x.t.Fatalf("%s: %v", kind, err)
	}
	requests, responses := roam.stop()
	rig.Close(disks)
	x.zone = x.g.Settle(rig.Patience)
	x.check(kind)
	row.rounds, row.requests, row.responses = row.rounds+1, row.requests+requests, row.responses+responses
	row.total = append(row.total, time.Since(x.began))
}

// heal undoes everything that is broken, in an order of its own.
func (x *campaign) heal() {
	all := []func(){x.net.heal}
	for _, name := range x.names("") {
		p := x.proc[name]
		switch {
		case p.Frozen():
			all = append(all, p.Thaw)
		case !p.Running():
			all = append(all, p.Start)
		}
	}
	x.rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, f := range all {
		f()
	}
	x.say("healed")
}

// check looks for everything that was acknowledged, and compares both sides.
func (x *campaign) check(kind string) {
	x.t.Helper()
	disks := x.g.Open(rig.Patience, x.zone)
	defer rig.Close(disks)
	if err := x.chains.Inspect(x.ctx, disks); err != nil {
		x.t.Fatalf("%s, image in %s: %v", kind, x.zone, err)
	}
	for i, d := range disks {
		if err := d.Flush(x.ctx); err != nil {
			x.t.Fatalf("%s: flush of disk %d: %v", kind, i, err)
		}
	}
	if again := x.g.Settle(rig.Patience); again != x.zone {
		x.t.Fatalf("%s: the primary moved from %s to %s by itself", kind, x.zone, again)
	}
	if err := x.g.Same(); err != nil {
		x.t.Fatalf("%s: %v", kind, err)
	}
}

// act calls an action that may be refused, or find nobody.
func (x *campaign) act(a client.Action) {
	x.say("%s: %v", a, x.g.Act(a))
}

// report is the table, worst times included.
func (x *campaign) report() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-46s %6s %9s %9s %9s %9s %10s\n", "fault", "rounds", "requests", "answered", "settle max", "round avg", "failover max")
	longest := func(list []time.Duration) string {
		if len(list) == 0 {
			return "-"
		}
		return slices.Max(list).Round(10 * time.Millisecond).String()
	}
	var rounds int
	for _, r := range x.table {
		var sum time.Duration
		for _, d := range r.total {
			sum += d
		}
		rounds += r.rounds
		fmt.Fprintf(&b, "%-46s %6d %9d %9d %10s %9s %10s\n", r.kind, r.rounds, r.requests, r.responses, longest(r.settle),
			(sum / time.Duration(max(1, len(r.total)))).Round(10*time.Millisecond), longest(r.failovers))
	}
	fmt.Fprintf(&b, "%d rounds; %d writes of chains acknowledged; %d packets, %d of them lost", rounds, x.chains.Total(), x.net.carried.Load(), x.net.lost.Load())
	return b.String()
}

// roamers are clients that write and read a few blocks at the same time, through any node that takes
// them, and go to another when one fails.
type roamers struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (x *campaign) roam() *roamers { return &roamers{cancel: func() {}} }

func (r *roamers) stop() (requests, responses uint64) {
	r.cancel()
	r.wg.Wait()
	return 0, 0
}

var _ = block.Device(nil)

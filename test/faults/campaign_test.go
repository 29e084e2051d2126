package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/test/rig"
)

// campaign is many rounds on one deployment: load, something breaks, it heals, everything is checked.
type campaign struct {
	*cluster
	g      *rig.Group
	rnd    *rand.Rand
	chains *rig.Chains
	roam   *rig.Roamers
	zone   string // where the primary is
	table  []*tally
	rounds int
	events []string // of this round, for a failed test's output
}

// tally is a row of the table at the end.
type tally struct {
	kind          string
	rounds        int
	settle, total []time.Duration // until the group was active again; the whole round
	failovers     []time.Duration
	writes        uint64 // of chains, acknowledged
	requests      uint64 // of roamers, answered
}

func newCampaign(t *testing.T, bad ...string) *campaign {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	c := newCluster(t, seed, bad...)
	// Every node has a part of the group, and the nodes of a zone share secondaries.
	g := rig.NewGroup(t, c, [2]string{"az1-1", "az2-1"}, [2]string{"az1-2", "az2-2"}, [2]string{"az1-2", "az2-1"})
	x := &campaign{cluster: c, g: g, rnd: rand.New(rand.NewPCG(seed, 1)), chains: rig.NewChains(len(g.Pairs)), roam: rig.NewRoamers(seed), zone: "az1"}
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
	x.events = append(x.events, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// pause lets a quarter to the whole of a time pass, in which the load goes on.
func (x *campaign) pause(atMost time.Duration) {
	t := time.NewTimer(atMost/4 + time.Duration(x.rnd.Int64N(int64(atMost*3/4))))
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
	began, writes, requests := time.Now(), x.chains.Total(), x.answered()
	x.events = nil
	x.say("%s; the primary is in %s", kind, x.zone)
	disks := x.g.Open(rig.Patience, x.zone)
	x.chains.Run(disks)
	x.roam.Run(x.g, x.rnd.Uint64())
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
	if err := x.roam.Stop(rig.Patience); err != nil {
		x.t.Fatalf("%s: %v", kind, err)
	}
	rig.Close(disks)
	x.zone = x.g.Settle(rig.Patience)
	x.check(kind)
	row.rounds++
	row.writes += x.chains.Total() - writes
	row.requests += x.answered() - requests
	row.total = append(row.total, time.Since(began))
	if x.rounds++; x.rounds%20 == 0 {
		x.t.Logf("%d rounds", x.rounds)
	}
}

func (x *campaign) answered() uint64 { return x.roam.Answered("az1") + x.roam.Answered("az2") }

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
	if err := x.roam.Check(x.ctx, disks); err != nil {
		x.t.Fatalf("%s: the history is not that of a disk: %v", kind, err)
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
	fmt.Fprintf(&b, "%-46s %6s %9s %9s %10s %9s %12s\n", "fault", "rounds", "writes", "requests", "settle max", "round avg", "failover max")
	longest := func(list []time.Duration) string {
		if len(list) == 0 {
			return "-"
		}
		return slices.Max(list).Round(10 * time.Millisecond).String()
	}
	for _, r := range x.table {
		var sum time.Duration
		for _, d := range r.total {
			sum += d
		}
		fmt.Fprintf(&b, "%-46s %6d %9d %9d %10s %9s %12s\n", r.kind, r.rounds, r.writes, r.requests, longest(r.settle),
			(sum / time.Duration(max(1, len(r.total)))).Round(10*time.Millisecond), longest(r.failovers))
	}
	h := x.roam.Recorder().Counts()
	fmt.Fprintf(&b, "%d rounds; %d writes of chains acknowledged; history: %d reads, %d writes, %d flushes answered, %d writes not; %d packets, %d of them lost",
		x.rounds, x.chains.Total(), h.Reads, h.Writes, h.Flushes, h.Open, x.net.carried.Load(), x.net.lost.Load())
	return b.String()
}

package faults

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/test/rig"
)

// failoverWithin bounds a failover while the primary's site is cut off: the loss of etcd's and the
// controllers' leader, which leaders are replaced after 5 s, included.
const failoverWithin = 20 * time.Second

// TestPartitionsLossAndDelay is rounds of faults of the network, of each kind and in combination, under
// load. Everything comes back, and nothing acknowledged is missing.
func TestPartitionsLossAndDelay(t *testing.T) {
	x := newCampaign(t)
	kinds := slices.DeleteFunc(x.partitions(), func(p partition) bool { return !strings.Contains(p.name, *onlyFlag) })
	if len(kinds) == 0 {
		t.Fatalf("no network fault has %q in its name", *onlyFlag)
	}
	for n := 0; n < *partitionsFlag && !t.Failed(); n++ {
		kind := kinds[n%len(kinds)]
		x.round(kind.name, kind.hurt)
	}
}

type partition struct {
	name string
	hurt func(*tally)
}

// partitions are the kinds of rounds, each of which lasts for a time that is drawn.
func (x *campaign) partitions() []partition {
	cut := link{cut: true}
	// lasting makes a fault that is there at once and stays for up to three times the patience of a node.
	lasting := func(name string, hurt func()) partition {
		return partition{name, func(*tally) {
			hurt()
			x.pause(3 * tripAfter)
		}}
	}
	everywhere := func(l link) {
		for i, a := range sites {
			for _, b := range sites[i:] {
				if a != b {
					x.net.both(a, b, l)
				}
			}
		}
	}
	return []partition{
		lasting("link cut, both ways", func() { x.net.both("az1", "az2", cut) }),
		lasting("link cut, primary to secondary", func() { x.net.set(x.zone, rig.Other(x.zone), cut) }),
		lasting("link cut, secondary to primary", func() { x.net.set(rig.Other(x.zone), x.zone, cut) }),
		lasting("1 % of packets lost between sites", func() { everywhere(link{loss: 0.01}) }),
		lasting("10 % of packets lost between sites", func() { everywhere(link{loss: 0.1}) }),
		lasting("30 % of packets lost between sites", func() { everywhere(link{loss: 0.3}) }),
		lasting("5 ms of delay, 3 ms of jitter", func() { everywhere(link{delay: 5 * time.Millisecond, jitter: 3 * time.Millisecond}) }),
		lasting("50 ms of delay, 30 ms of jitter", func() { everywhere(link{delay: 50 * time.Millisecond, jitter: 30 * time.Millisecond}) }),
		lasting("primary's site cut off", func() { x.isolate(x.zone) }),
		{"primary's site cut off, failover", x.failoverOf},
		lasting("secondary's site cut off", func() { x.isolate(rig.Other(x.zone)) }),
		lasting("witness cut off", func() { x.isolate("witness") }),
		lasting("every site for itself: no quorum", func() { everywhere(cut) }),
		lasting("two members of etcd frozen: no quorum", func() { x.freezeQuorum() }),
		{"link cut while there is no quorum", func(*tally) {
			x.freezeQuorum()
			x.net.both("az1", "az2", cut)
			x.pause(3 * tripAfter)
		}},
		lasting("primary nodes cut from the store", func() {
			for _, site := range sites {
				for _, n := range x.names(x.zone + "-") {
					x.net.both(n, "etcd-"+site, cut)
				}
			}
		}),
		{"one node cut from its secondaries and killed", func(*tally) {
			n := x.zone + "-1"
			x.net.both(n, rig.Other(x.zone), cut)
			x.pause(tripAfter)
			x.proc[n].Kill()
			x.pause(tripAfter)
		}},
		{"link flaps", func(*tally) {
			for range 6 {
				x.net.set(x.zone, rig.Other(x.zone), link{cut: x.rnd.IntN(2) == 0})
				x.net.set(rig.Other(x.zone), x.zone, link{cut: x.rnd.IntN(2) == 0})
				x.pause(tripAfter / 2)
			}
		}},
		{"anything, several", func(*tally) { x.several() }},
	}
}

// isolate cuts a site from all others, the users' included.
func (x *campaign) isolate(site string) {
	for _, other := range append([]string{"user"}, sites...) {
		if other != site {
			x.net.both(site, other, link{cut: true})
		}
	}
	x.say("%s is cut off", site)
}

// freezeQuorum stops two of the three members of etcd, which keep their connections.
func (x *campaign) freezeQuorum() {
	for _, name := range shuffled(x, x.names("etcd-"))[:2] {
		x.proc[name].Freeze()
	}
	x.say("no quorum")
}

// failoverOf cuts the primary's site off, and fails over through those that are left. It ends while the
// old primary still believes in itself.
func (x *campaign) failoverOf(row *tally) {
	x.t.Helper()
	x.isolate(x.zone)
	x.pause(tripAfter)
	took := x.g.Failover(failoverWithin)
	row.failovers = append(row.failovers, took)
	x.say("failed over after %s", took)
	// The other side serves, before anything heals.
	there := rig.Other(x.zone)
	goal := x.roam.Answered(there) + 100
	rig.Poll(x.ctx, x.t, rig.Patience, "clients are served in "+there, func() error {
		if have := x.roam.Answered(there); have < goal {
			return fmt.Errorf("%d requests are missing", goal-have)
		}
		return nil
	})
	x.say("the other side serves")
}

// several draws faults of links and processes, and lets a user act.
func (x *campaign) several() {
	hosts := append(x.names("az1-"), x.names("az2-")...)
	for range 2 + x.rnd.IntN(4) {
		a, b := sites[x.rnd.IntN(3)], sites[x.rnd.IntN(3)]
		switch x.rnd.IntN(8) {
		case 0, 1:
			x.net.set(a, b, link{cut: a != b})
		case 2:
			x.net.both(a, b, link{loss: x.rnd.Float64() / 3})
		case 3:
			x.net.set(a, b, link{delay: time.Duration(x.rnd.IntN(100)) * time.Millisecond, jitter: 20 * time.Millisecond})
		case 4:
			h := hosts[x.rnd.IntN(len(hosts))]
			x.net.set(h, b, link{cut: true})
			x.say("%s cannot send to %s", h, b)
		case 5:
			d, h := deeds[x.rnd.IntN(len(deeds))], shuffled(x, x.names(""))[0]
			x.say("%s %s", d.name, h)
			d.do(x, x.proc[h])
		case 6:
			x.act([]client.Action{client.ActionFailover, client.ActionReverse, client.ActionStop}[x.rnd.IntN(3)])
		case 7:
			x.net.heal()
		}
		x.pause(tripAfter)
	}
}

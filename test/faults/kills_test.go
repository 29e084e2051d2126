package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/test/rig"
)

// TestKilledFrozenAndRestartedProcesses is rounds of faults of processes, of each kind and in
// combination, under load. Everything comes back, and nothing acknowledged is missing.
func TestKilledFrozenAndRestartedProcesses(t *testing.T) {
	x := newCampaign(t)
	for n := 0; n < *killsFlag && !t.Failed(); n++ {
		x.killRound(n)
	}
}

// deed is what is done to a process.
type deed struct {
	name string
	do   func(*campaign, *rig.Process)
}

var deeds = []deed{
	{"kill", func(_ *campaign, p *rig.Process) {
		if p.Running() {
			p.Kill()
		}
	}},
	{"kill and start", func(_ *campaign, p *rig.Process) {
		if p.Running() {
			p.Kill()
			p.Start()
		}
	}},
	{"freeze", func(_ *campaign, p *rig.Process) {
		if p.Running() && !p.Frozen() {
			p.Freeze()
		}
	}},
	{"stop and start", func(_ *campaign, p *rig.Process) {
		if p.Running() && !p.Frozen() {
			p.Stop()
			p.Start()
		}
	}},
}

// killRound takes the kinds in turn, so that every one comes, and draws the rest.
func (x *campaign) killRound(n int) {
	other := rig.Other(x.zone)
	one := func(names []string) string { return names[x.rnd.IntN(len(names))] }
	kinds := []struct {
		what  string
		names []string
	}{
		{"a primary node", []string{one(x.names(x.zone + "-"))}},
		{"a secondary node", []string{one(x.names(other + "-"))}},
		{"a controller", []string{one(x.names("ctl-"))}},
		{"a member of etcd", []string{one(x.names("etcd-"))}},
		{"all nodes of the primary zone", x.names(x.zone + "-")},
		{"all nodes of the secondary zone", x.names(other + "-")},
		{"a node of each zone", []string{one(x.names("az1-")), one(x.names("az2-"))}},
		{"all nodes", append(x.names("az1-"), x.names("az2-")...)},
		{"all controllers", x.names("ctl-")},
		{"two members of etcd: no quorum", shuffled(x, x.names("etcd-"))[:2]},
		{"everything of the primary's site", []string{x.zone + "-1", x.zone + "-2", "ctl-" + x.zone, "etcd-" + x.zone}},
		{"everything everywhere", x.names("")},
	}
	// Every third round is a mixture instead.
	if n%3 == 2 {
		x.round("mixed: 2 to 4 processes, anything", func(*tally) { x.mixed() })
		return
	}
	n -= n / 3
	kind := kinds[n%len(kinds)]
	d := deeds[n/len(kinds)%len(deeds)]
	x.round(fmt.Sprintf("%s: %s", d.name, kind.what), func(*tally) {
		for _, name := range shuffled(x, kind.names) {
			x.say("%s %s", d.name, name)
			d.do(x, x.proc[name])
		}
		x.pause(2 * tripAfter)
	})
}

// mixed draws processes, what is done to them, and the time between; and sometimes a user acts.
func (x *campaign) mixed() {
	names := shuffled(x, x.names(""))
	for _, name := range names[:2+x.rnd.IntN(3)] {
		d := deeds[x.rnd.IntN(len(deeds))]
		x.say("%s %s", d.name, name)
		d.do(x, x.proc[name])
		x.pause(700 * time.Millisecond)
		switch x.rnd.IntN(8) {
		case 0:
			x.act(client.ActionFailover)
		case 1:
			x.act(client.ActionReverse)
		case 2:
			x.act(client.ActionStop)
		}
	}
}

func shuffled(x *campaign, names []string) []string {
	list := strings.Fields(strings.Join(names, " "))
	x.rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

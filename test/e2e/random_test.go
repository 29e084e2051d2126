package e2e

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/internal/cable"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the random faults (default: the time)")
	randomFlag = flag.Duration("random", 40*time.Second, "how long random faults go on")
)

// chaos is a deployment with what is broken in it now.
type chaos struct {
	*group
	w    *wires
	rnd  *rand.Rand
	life int
	// state of each member: "" runs, "dead" or "stopped"
	state map[string]string
	cut   map[*cable.Cable]bool
}

func (x *chaos) say(format string, args ...any) {
	x.t.Logf(time.Now().UTC().Format("15:04:05.000 ")+format, args...) // shown if the test fails
}

// hurt does one random thing that a group must bear.
func (x *chaos) hurt() {
	members := x.members("")
	m := members[x.rnd.IntN(len(members))]
	switch what := x.rnd.IntN(12); what {
	case 0, 1:
		x.kill(m, false)
	case 2:
		x.kill(m, true)
	case 3:
		if x.state[m] == "" {
			x.say("stop %s", m)
			x.signal(syscall.SIGSTOP, m)
			x.state[m] = "stopped"
		}
	case 4, 5:
		p, to, from := x.w.replication[m], x.rnd.IntN(3) > 0, x.rnd.IntN(3) > 0
		x.say("cut the link to %s: %t, %t", m, to, from)
		p.Cut(to, from)
		if x.rnd.IntN(2) == 0 {
			p.Reset()
		}
		x.cut[p] = true
	case 6:
		x.say("cut %s from the store", m)
		x.w.store[m].Sever()
		x.cut[x.w.store[m]] = true
	case 7:
		x.kill("controller", false)
	case 8, 9:
		x.try(client.ActionFailover)
	case 10:
		x.try(client.ActionReverse)
	case 11:
		x.try(client.ActionStop)
	}
}

func (x *chaos) kill(m string, reboot bool) {
	if x.state[m] == "dead" {
		return
	}
	x.say("kill %s, reboot %t", m, reboot)
	x.deployment.kill(m)
	x.state[m] = "dead"
	if reboot {
		x.life++
		x.reboot(x.w, m, x.life)
	}
}

// try calls an action that may be refused, or find nobody.
func (x *chaos) try(a client.Action) {
	if x.state["controller"] != "" {
		return
	}
	err := x.c.Act(x.ctx, x.id, a)
	x.say("%s: %v", a, err)
}

// heal undoes what is broken, in random order.
func (x *chaos) heal() {
	var all []func()
	for m, s := range x.state {
		switch s {
		case "dead":
			all = append(all, func() { x.start(m) })
		case "stopped":
			all = append(all, func() { x.signal(syscall.SIGCONT, m) })
		}
	}
	for p := range x.cut {
		all = append(all, p.Join)
	}
	x.rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, f := range all {
		f()
	}
	clear(x.state)
	clear(x.cut)
	x.say("healed")
}

// settle brings the group back to active with documented calls, and tells where its primary is.
func (x *chaos) settle() (zone string) {
	x.t.Helper()
	called := time.Time{}
	x.eventually(90*time.Second, "the group is active again", func() error {
		have, g, err := x.statuses()
		if err != nil {
			return err
		}
		zone = g.PriorityStation
		if have == "available/active/0" {
			return nil
		}
		if time.Since(called) > 2*time.Second && g.Status != "failovering" && g.Status != "reversing" {
			called = time.Now()
			err = x.c.Act(x.ctx, x.id, client.ActionSync)
			x.say("%s: sync: %v", have, err)
		}
		return errors.Join(fmt.Errorf("it is %s", have), err)
	})
	return zone
}

func TestAnySequenceOfFaultsLosesNothingAndHeals(t *testing.T) {
	t.Parallel()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	d := deploy(t, 2)
	x := &chaos{w: d.wired(), rnd: rand.New(rand.NewPCG(seed, 1)), life: 1, state: map[string]string{}, cut: map[*cable.Cable]bool{}}
	x.group = d.syncedGroup(d.pair(1), d.pairOn(2, 1))
	zone := "az1"
	disks := x.disks(zone)
	c := newChains()
	rounds := 0
	for began := time.Now(); time.Since(began) < *randomFlag; rounds++ {
		c.run(disks)
		asked := time.Now()
		c.progress(x.group, patience, 100)
		x.say("the first writes took %s", time.Since(asked).Round(time.Millisecond))
		for range 1 + x.rnd.IntN(3) {
			x.hurt()
			pause := time.NewTimer(time.Duration(x.rnd.IntN(2500)) * time.Millisecond)
			<-pause.C // where the next blow falls
		}
		x.heal()
		x.eventually(patience, "the API answers", func() error { _, _, err := x.statuses(); return err })
		x.untilAlive(x.members("")...)
		x.settle()
		_ = c.stop(x.group) // some lost their disks; that none hangs is what counts
		closeAll(disks)
		zone = x.settle()
		disks = x.disks(zone)
		if err := c.inspect(d.ctx, disks); err != nil {
			t.Fatalf("round %d, image in %s: %v", rounds+1, zone, err)
		}
		for _, disk := range disks {
			if err := disk.Flush(d.ctx); err != nil {
				t.Fatal(err)
			}
		}
		if again := x.settle(); again != zone {
			t.Fatalf("the primary moved from %s to %s by itself", zone, again)
		}
		x.say("round %d: the primary is %s, %d writes so far", rounds+1, zone, c.Acknowledged())
		x.sameFiles(x.pairs...)
	}
	t.Logf("%d rounds, %d writes", rounds, c.Acknowledged())
}

package faults

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/test/rig"
)

// TestDisksThatFail lets the disk of one node of a zone, or of both zones, fail under load: in sync and
// in the middle of a synchronization, the volumes' files or everything, with EIO or for want of room.
// The group shows it, and where that is promised the primary goes on or can be failed over, with
// nothing missing. An I/O error is for good: the volume is not taken into service again by a start of the
// process on a disk that is well. Want of room is not.
func TestDisksThatFail(t *testing.T) {
	for _, k := range diskFaults() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel() // most of the time they wait
			x := newCampaign(t, "az1-1", "az2-1")
			disks := x.g.Open(rig.Patience, x.zone)
			x.chains.Run(disks)
			x.roam.Run(x.g, x.rnd.Uint64())
			if err := x.chains.Progress(rig.Patience, 60); err != nil {
				t.Fatal(err)
			}
			row := x.row(k.name)
			k.hurt(x, row)
			row.rounds++
			x.heal()
			if k.heals {
				x.g.Settle(rig.Patience)
			}
			if err := x.chains.Stop(rig.Patience); errors.Is(err, rig.ErrUnanswered) {
				t.Fatal(err)
			}
			if err := x.roam.Stop(rig.Patience); err != nil {
				t.Fatal(err)
			}
			rig.Close(disks)
			switch {
			case k.heals:
				x.check(k.name)
			case !k.noImage:
				x.image()
			}
		})
	}
}

// diskRound is a fault of a disk: heals says that everything is as before once the disk is well, noImage that
// no copy may be served afterwards.
type diskRound struct {
	name           string
	hurt           func(*campaign, *tally)
	heals, noImage bool
}

// image looks for everything acknowledged where the primary is now; the group is not active.
func (x *campaign) image() {
	x.t.Helper()
	disks := x.g.Open(rig.Patience, x.zone)
	defer rig.Close(disks)
	if err := x.chains.Inspect(x.ctx, disks); err != nil {
		x.t.Fatalf("image in %s: %v", x.zone, err)
	}
	if err := x.roam.Check(x.ctx, disks); err != nil {
		x.t.Fatalf("the history is not that of a disk: %v", err)
	}
	if have, _, err := x.g.Statuses(); err != nil || have == rig.Active {
		x.t.Errorf("a volume has failed for good, and the group is %s (%v)", have, err)
	}
}

func raw(op, path string) bool       { return op != "meta" && strings.HasSuffix(path, ".raw") }
func everything(_, _ string) bool    { return true }
func syncs(op, _ string) bool        { return op == "sync" }
func rawReads(op, path string) bool  { return op == "read" && raw(op, path) }
func anyWrite(op, _ string) bool     { return op == "write" || op == "meta" }
func rawWrites(op, path string) bool { return op == "write" && raw(op, path) }

func diskFaults() []diskRound {
	eio := func(hits func(op, path string) bool) *diskFault { return &diskFault{syscall.EIO, hits} }
	full := &diskFault{syscall.ENOSPC, anyWrite}
	// primary is a fault there in sync: shown, failed over, nothing missing.
	primary := func(name string, f *diskFault) diskRound {
		return diskRound{name: "EIO at the primary, " + name, hurt: func(x *campaign, row *tally) {
			bad := x.zone + "-1"
			x.spoil(bad, f)
			x.g.Until(rig.Patience, "available/active/2")
			row.failovers = append(row.failovers, x.g.Failover(failoverWithin))
			x.zone = rig.Other(x.zone)
			x.repaired(bad)
		}}
	}
	// secondary is one there in sync: shown, and the primary goes on.
	secondary := func(name string, f *diskFault, heals bool) diskRound {
		return diskRound{name: name, heals: heals, hurt: func(x *campaign, _ *tally) {
			bad := rig.Other(x.zone) + "-1"
			x.spoil(bad, f)
			x.g.Until(rig.Patience, "available/error/5")
			x.progresses()
			x.repaired(bad)
		}}
	}
	return []diskRound{
		primary("the volumes' files", eio(raw)),
		primary("everything", eio(everything)),
		primary("syncs", eio(syncs)),
		primary("reads", eio(rawReads)),
		secondary("EIO at the secondary, the volumes' files", eio(raw), false),
		secondary("EIO at the secondary, everything", eio(everything), false),
		secondary("EIO at the secondary, syncs", eio(syncs), false),
		secondary("the secondary is full", full, true),
		{name: "EIO at the secondary while it is synchronized", hurt: func(x *campaign, _ *tally) {
			bad := rig.Other(x.zone) + "-1"
			x.behind(bad)
			x.spoil(bad, eio(rawWrites))
			x.start(bad)
			x.g.Until(rig.Patience, "available/error/5")
			x.progresses()
			x.repaired(bad)
		}},
		{name: "EIO at the primary while it synchronizes", noImage: true, hurt: func(x *campaign, _ *tally) {
			there, bad := rig.Other(x.zone)+"-1", x.zone+"-1"
			x.behind(there)
			x.spoil(bad, eio(rawReads))
			x.start(there)
			rig.Poll(x.ctx, x.t, rig.Patience, "the group shows a fault", func() error {
				have, _, err := x.g.Statuses()
				if err == nil && (strings.HasSuffix(have, "/0") || x.disks[bad].hits.Load() == 0) {
					err = errors.New("it is " + have)
				}
				return err
			})
			// The only copy that has everything is on that disk, and the other one is older.
			if err := x.g.Act(client.ActionFailover); !client.IsConflict(err) {
				x.t.Errorf("failover to an older copy: %v", err)
			}
			x.repaired(bad)
		}},
		{name: "both sides are full at once", heals: true, hurt: func(x *campaign, _ *tally) {
			x.spoil("az1-1", full)
			x.spoil("az2-1", full)
			x.pause(3 * tripAfter)
			x.repaired("az1-1")
			x.repaired("az2-1")
		}},
	}
}

// spoil makes a node's disk fail.
func (x *campaign) spoil(node string, f *diskFault) {
	x.disks[node].hits.Store(0)
	x.disks[node].fail(f)
	x.say("the disk of %s fails", node)
}

// repaired gives a node a good disk, and lets its process end, to be started when all heals: what
// failed once stays failed for the process.
func (x *campaign) repaired(node string) {
	x.t.Helper()
	if x.disks[node].hits.Load() == 0 {
		x.t.Errorf("no call of %s has met its bad disk", node)
	}
	x.disks[node].fail(nil)
	if x.proc[node].Running() {
		x.proc[node].Kill()
	}
	x.say("the disk of %s is well", node)
}

// progresses looks that the primary's clients are served while the fault lasts.
func (x *campaign) progresses() {
	x.t.Helper()
	if err := x.chains.Progress(rig.Patience, 100); err != nil {
		x.t.Fatal(err)
	}
}

// behind kills a secondary node and writes much to its disk's other side.
func (x *campaign) behind(node string) {
	x.t.Helper()
	x.proc[node].Kill()
	disks := x.g.Open(rig.Patience, x.zone)
	defer rig.Close(disks)
	data := make([]byte, 1<<20)
	for off := int64(64 << 20); off < 256<<20; off += int64(len(data)) {
		for i := 0; i < len(data); i += rig.BlockBytes {
			data[i] = byte(x.rnd.Uint32())
		}
		if err := disks[0].WriteAt(x.ctx, data, off, false); err != nil {
			x.t.Fatal(err)
		}
	}
	x.say("%s is behind", node)
}

// start starts a node's process again in the middle of a round.
func (x *campaign) start(node string) { x.proc[node].Start() }

package power

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
	"github.com/lockstep-dr/lockstep/test/need"
	"github.com/lockstep-dr/lockstep/test/rig"
)

// patience is for machines without hardware support on a busy host.
const patience = 3 * time.Minute

// imageBytes is what the load uses of each disk, and what both sides are compared by.
const imageBytes = 6 << 20

// house is the deployment: two machines, and around them what never fails here.
type house struct {
	t        *testing.T
	ctx      context.Context // ends with the test
	api      *rig.API
	machines map[string]*machine // by zone
	g        *rig.Group
	rnd      *rand.Rand
	chains   *rig.Chains
	roam     *rig.Roamers
	zone     string // where the primary is
	losses   int    // of power, of one machine each
	unsynced int    // acknowledged writes that went with the page caches of both sides
	table    []string
}

func newHouse(t *testing.T, seed uint64) *house {
	t.Helper()
	need.Programs(t, "qemu-system-x86_64", "mkfs.ext4")
	kernel(t)
	h := &house{t: t, ctx: t.Context(), machines: map[string]*machine{}, zone: "az1", rnd: rand.New(rand.NewPCG(seed, 1))}
	etcd, api := freeAddr(t), freeAddr(t)
	peer := freeAddr(t)
	args, err := rig.EtcdArgs("etcd", filepath.Join(root, "etcd"), etcd, peer, "etcd=http://"+peer)
	if err != nil {
		t.Fatal(err)
	}
	rig.NewProcess(t, "etcd", filepath.Join(root, "etcd.log"), nil, args...).Start()
	password := filepath.Join(root, "password")
	if err := os.WriteFile(password, []byte("power\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rig.NewProcess(t, "controller", filepath.Join(root, "controller.log"), nil, lockstepBin, "controller", "--listen", api,
		"--admin-password-file", password, "--azs", strings.Join(rig.Zones, ","), "--etcd-endpoints", "http://"+etcd).Start()
	h.api = &rig.API{URLs: []string{"http://" + api}, Password: "power"}
	bin, guest := static(t, "../../cmd/lockstep"), static(t, "./guest")
	for _, az := range rig.Zones {
		h.machines[az] = newMachine(t, root, az, etcd, bin, guest)
		h.machines[az].Start()
	}
	h.alive("az1", "az2")
	h.g = rig.NewGroup(t, h, [2]string{"az1-1", "az2-1"}, [2]string{"az1-1", "az2-1"})
	h.chains, h.roam = rig.NewChains(len(h.g.Pairs)), rig.NewRoamers(seed)
	// Rarely: what is not flushed is what can be lost.
	h.chains.FlushEvery, h.chains.FUAEvery, h.roam.Durable = 200, 199, 3
	return h
}

// alive waits until the nodes of some zones are.
func (h *house) alive(zones ...string) {
	h.t.Helper()
	rig.Poll(h.ctx, h.t, patience, fmt.Sprintf("the nodes of %v are alive", zones), func() error {
		for _, az := range zones {
			if !h.machines[az].Running() {
				h.t.Fatalf("the machine in %s has ended", az)
			}
		}
		return h.Ask(func(ctx context.Context, c *client.Client) error {
			nodes, err := c.Nodes(ctx)
			alive := map[string]bool{}
			for _, n := range nodes {
				alive[n.AZ] = n.Alive
			}
			for _, az := range zones {
				if !alive[az] {
					err = errors.Join(err, rig.ErrNotYet)
				}
			}
			return err
		})
	})
}

// Ask makes rig.Deployment of a house, with the two below.
func (h *house) Ask(call func(context.Context, *client.Client) error) error {
	return h.api.Ask(h.ctx, call)
}

// Dial opens a volume through the port that leads into the machine.
func (h *house) Dial(ctx context.Context, node, volume string) (*nbdclient.Client, error) {
	return nbdclient.DialAddr(ctx, "tcp", h.machines[strings.TrimSuffix(node, "-1")].nbd, volume)
}

// Raw is nothing: the files are in the machines.
func (h *house) Raw(_, _ string) string { return "" }

// load writes to the primary until something ends it.
func (h *house) load() (disks []block.Device) {
	h.t.Helper()
	disks = h.g.Open(patience, h.zone)
	h.chains.Run(disks)
	h.roam.Run(h.g, h.rnd.Uint64())
	if err := h.chains.Progress(patience, 300); err != nil {
		h.t.Fatal(err)
	}
	return disks
}

// off takes the power of some machines, at the same moment.
func (h *house) off(zones ...string) {
	var wg sync.WaitGroup
	for _, az := range zones {
		wg.Go(h.machines[az].powerOff)
		h.losses++
	}
	wg.Wait()
}

// on gives it back, and looks that it was a loss: another boot id.
func (h *house) on(zones ...string) {
	h.t.Helper()
	lives := map[string]int{}
	for _, az := range zones {
		lives[az] = len(h.machines[az].boots())
		h.machines[az].Start()
	}
	for _, az := range zones {
		var boots []string
		rig.Poll(h.ctx, h.t, patience, az+" has booted", func() error {
			if boots = h.machines[az].boots(); len(boots) <= lives[az] {
				return rig.ErrNotYet
			}
			return nil
		})
		if n := len(boots); n < 2 || boots[n-1] == boots[n-2] {
			h.t.Fatalf("%s: boot ids %v: it was no loss of power", az, boots)
		}
	}
	h.alive(zones...)
}

// stop ends the load; nothing may be held any more.
func (h *house) stop(disks []block.Device) {
	h.t.Helper()
	if err := h.chains.Stop(patience); errors.Is(err, rig.ErrUnanswered) {
		h.t.Fatal(err)
	}
	if err := h.roam.Stop(patience); err != nil {
		h.t.Fatal(err)
	}
	rig.Close(disks)
}

// gone is stop for a load whose side has no power any more: its connections are reset.
func (h *house) gone(disks []block.Device) { h.stop(disks) }

// pause lets time pass in which the load goes on.
func (h *house) pause(atMost time.Duration) {
	t := time.NewTimer(time.Duration(h.rnd.Int64N(int64(atMost))))
	<-t.C
}

// check judges the primary's image, then goes over to the other side, which must be the same. kept: at
// no moment were both sides without power, so everything acknowledged is there.
func (h *house) check(kept bool) {
	h.t.Helper()
	disks := h.g.Open(patience, h.zone)
	if kept {
		if err := h.chains.Inspect(h.ctx, disks); err != nil {
			h.t.Fatalf("image in %s: %v", h.zone, err)
		}
	} else {
		lost, err := h.chains.InspectAfterPowerLoss(h.ctx, disks)
		if err != nil {
			h.t.Fatalf("image in %s: %v", h.zone, err)
		}
		h.unsynced += lost
	}
	// Reads wait until the primary serves: it has noticed what happened to it, and the status is no older.
	if zone := h.g.Settle(patience); zone != h.zone {
		h.t.Fatalf("the primary moved from %s to %s by itself", h.zone, zone)
	}
	if err := h.roam.Check(h.ctx, disks); err != nil {
		h.t.Fatalf("the history is not that of a disk: %v", err)
	}
	here := h.image(disks)
	rig.Close(disks)
	if err := h.g.Act(client.ActionReverse); err != nil {
		h.t.Fatalf("switchover: %v", err)
	}
	rig.Poll(h.ctx, h.t, patience, "the switchover is done", func() error {
		have, got, err := h.g.Statuses()
		if err == nil && (have != rig.Active || got.PriorityStation == h.zone) {
			err = errors.New(have + " in " + got.PriorityStation)
		}
		return err
	})
	h.zone = rig.Other(h.zone)
	disks = h.g.Open(patience, h.zone)
	defer rig.Close(disks)
	for i, there := range h.image(disks) {
		if !bytes.Equal(here[i], there) {
			h.t.Fatalf("the sides of disk %d differ", i)
		}
	}
}

func (h *house) image(disks []block.Device) [][]byte {
	h.t.Helper()
	list := make([][]byte, len(disks))
	for i, d := range disks {
		list[i] = make([]byte, imageBytes)
		ctx, cancel := context.WithTimeout(h.ctx, patience)
		err := d.ReadAt(ctx, list[i], 0)
		cancel()
		if err != nil {
			h.t.Fatalf("read disk %d: %v", i, err)
		}
	}
	return list
}

// bothLost tells the witnesses that no side has its page cache any more; the load has ended.
func (h *house) bothLost() {
	h.t.Helper()
	rec := h.roam.Recorder()
	if err := rec.Check(time.Minute).Err(); err != nil {
		h.t.Fatalf("before the power was lost: %v", err)
	}
	rec.PowerLost()
}

// scenarios, each of at least one loss.
var scenarios = []struct {
	name string
	run  func(*house)
}{
	{"the primary loses power and comes back", func(h *house) {
		disks := h.load()
		h.off(h.zone)
		h.on(h.zone)
		h.g.Settle(patience)
		h.stop(disks)
		h.check(true)
	}},
	{"both lose power at the same moment", func(h *house) {
		disks := h.load()
		h.off("az1", "az2")
		h.gone(disks)
		h.bothLost()
		h.on("az1", "az2")
		h.check(false)
	}},
	{"the secondary loses power and comes back", func(h *house) {
		disks := h.load()
		h.off(rig.Other(h.zone))
		if err := h.chains.Progress(patience, 300); err != nil { // one-sided
			h.t.Fatal(err)
		}
		h.on(rig.Other(h.zone))
		h.g.Settle(patience)
		h.stop(disks)
		h.check(true)
	}},
	{"the primary loses power, then the secondary", func(h *house) {
		disks := h.load()
		h.off(h.zone)
		h.pause(3 * time.Second)
		h.off(rig.Other(h.zone))
		h.gone(disks)
		h.bothLost()
		h.on(rig.Other(h.zone))
		h.on(h.zone)
		h.check(false)
	}},
	{"the primary loses power, and the other side takes over", func(h *house) {
		disks := h.load()
		old := h.zone
		h.off(old)
		took := h.g.Failover(patience)
		h.gone(disks)
		h.zone = rig.Other(old)
		there := h.g.Open(patience, h.zone)
		if err := h.chains.Inspect(h.ctx, there); err != nil {
			h.t.Fatalf("image in %s: %v", h.zone, err)
		}
		rig.Close(there)
		disks = h.load()
		h.on(old)
		h.g.Settle(patience)
		h.stop(disks)
		h.check(true)
		h.table = append(h.table, fmt.Sprintf("  failover after %s", took.Round(time.Millisecond)))
	}},
	{"the secondary loses power, then the primary, in sync", func(h *house) {
		disks := h.load()
		h.off(rig.Other(h.zone))
		h.off(h.zone) // before the trip: nothing was acknowledged meanwhile
		h.gone(disks)
		h.bothLost()
		h.on(h.zone)
		h.on(rig.Other(h.zone))
		h.check(false)
	}},
	{"the secondary loses power again while it is synchronized", func(h *house) {
		disks := h.load()
		h.copying(disks)
		h.off(rig.Other(h.zone))
		h.on(rig.Other(h.zone))
		h.g.Settle(patience)
		h.stop(disks)
		h.check(true)
	}},
	{"the secondary loses power, and the primary while it synchronizes", func(h *house) {
		disks := h.load()
		h.copying(disks)
		h.off(h.zone)
		h.gone(disks)
		h.bothLost() // out of sync there is one page cache only
		h.on(h.zone)
		h.check(false)
	}},
}

// copying takes the power of the secondary, writes enough one-sided, and returns when it is back and
// being synchronized.
func (h *house) copying(disks []block.Device) {
	h.t.Helper()
	h.off(rig.Other(h.zone))
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(h.rnd.Uint32())
	}
	for off := int64(imageBytes); off < imageBytes+96<<20; off += int64(len(data)) {
		if err := disks[0].WriteAt(h.ctx, data, off, false); err != nil {
			h.t.Fatal(err)
		}
	}
	h.machines[rig.Other(h.zone)].Start()
	rig.Poll(h.ctx, h.t, patience, "the group is copying", func() error {
		have, got, err := h.g.Statuses()
		if err == nil && got.ReplicationStatus != "copying" {
			err = errors.New("it is " + have)
		}
		return err
	})
}

// TestLossOfPower runs the scenarios in turn until the losses are enough. Every other pass has the
// zones exchanged, as each check goes over to the other side.
func TestLossOfPower(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	h := newHouse(t, seed)
	t.Cleanup(func() {
		t.Logf("%d losses of power, %d writes of chains acknowledged, %d of them unflushed and lost with both page caches:\n%s",
			h.losses, h.chains.Total(), h.unsynced, strings.Join(h.table, "\n"))
	})
	for i := 0; h.losses < *lossesFlag; i++ {
		s := scenarios[i%len(scenarios)]
		began, before := time.Now(), h.losses
		h.table = append(h.table, fmt.Sprintf("%s; the primary is in %s", s.name, h.zone))
		s.run(h)
		h.table = append(h.table, fmt.Sprintf("  %d losses, all in %s", h.losses-before, time.Since(began).Round(100*time.Millisecond)))
	}
}

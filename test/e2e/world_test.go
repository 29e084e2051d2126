package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// other is the zone that az is paired with.
func other(az string) string {
	if az == "az1" {
		return "az2"
	}
	return "az1"
}

// volume makes a disk of 1 GiB on one node of a zone and waits until it can be used.
func (d *deployment) volume(az string, n int) string {
	d.t.Helper()
	v, err := d.c.CreateVolume(d.ctx, client.VolumeCreate{
		SizeGiB: 1, AvailabilityZone: az, Metadata: map[string]string{"node": strconv.Itoa(n)},
	})
	if err != nil {
		d.t.Fatalf("create volume: %v", err)
	}
	d.eventually(patience, "volume is available", func() error {
		got, err := d.c.Volume(d.ctx, v.ID)
		if err == nil && got.Status != "available" {
			err = fmt.Errorf("status %s", got.Status)
		}
		return err
	})
	return v.ID
}

// pair is a replication pair, by zone.
type pair struct {
	id   string
	disk map[string]string // zone -> volume
	node map[string]string // zone -> member
}

// pair makes two volumes, on nodes with the same number, and a pair of them; az1 is the primary.
func (d *deployment) pair(n int) pair {
	d.t.Helper()
	return d.pairOn(n, n)
}

func (d *deployment) pairOn(n1, n2 int) pair {
	d.t.Helper()
	p := pair{
		disk: map[string]string{"az1": d.volume("az1", n1), "az2": d.volume("az2", n2)},
		node: map[string]string{"az1": node("az1", n1), "az2": node("az2", n2)},
	}
	made, err := d.c.CreatePair(d.ctx, client.PairCreate{VolumeIDs: []string{p.disk["az1"], p.disk["az2"]}, PriorityStation: "az1"})
	if err != nil {
		d.t.Fatalf("create pair: %v", err)
	}
	p.id = made.ID
	d.eventually(patience, "pair is available", func() error {
		got, err := d.c.Pair(d.ctx, p.id)
		if err == nil && got.Status != "available" {
			err = fmt.Errorf("status %s", got.Status)
		}
		return err
	})
	return p
}

// group is a consistency group under test.
type group struct {
	*deployment
	id    string
	pairs []pair
}

func (d *deployment) group(pairs ...pair) *group {
	d.t.Helper()
	var ids []string
	for _, p := range pairs {
		ids = append(ids, p.id)
	}
	made, err := d.c.CreateGroup(d.ctx, client.GroupCreate{PairIDs: ids, PriorityStation: "az1"})
	if err != nil {
		d.t.Fatalf("create group: %v", err)
	}
	g := &group{deployment: d, id: made.ID, pairs: pairs}
	g.until(patience, "available", "inactive", "0")
	return g
}

// syncedGroup is a group of new pairs, active.
func (d *deployment) syncedGroup(pairs ...pair) *group {
	d.t.Helper()
	g := d.group(pairs...)
	g.act(client.ActionSync)
	g.untilActive()
	return g
}

func (g *group) act(a client.Action) {
	g.t.Helper()
	if err := g.c.Act(g.ctx, g.id, a); err != nil {
		g.t.Fatalf("%s: %v", a, err)
	}
}

// statuses gives status, replication_status and fault_level with slashes between.
func (g *group) statuses() (string, client.Group, error) {
	got, err := g.c.Group(g.ctx, g.id)
	if err != nil {
		return "", got, err
	}
	fault := "null"
	if got.FaultLevel != nil {
		fault = *got.FaultLevel
	}
	return got.Status + "/" + got.ReplicationStatus + "/" + fault, got, nil
}

// until waits for status, replication_status and fault_level.
func (g *group) until(within time.Duration, status, replication, fault string) {
	g.t.Helper()
	want := status + "/" + replication + "/" + fault
	g.eventually(within, "the group is "+want, func() error {
		have, _, err := g.statuses()
		if err == nil && have != want {
			err = errors.New("it is " + have)
		}
		return err
	})
}

func (g *group) untilActive() {
	g.t.Helper()
	g.until(patience, "available", "active", "0")
}

// refused calls for a failover that must answer 409 with that fault level in its text, and leave
// the statuses as they are.
func (g *group) refused(fault string) {
	g.t.Helper()
	err := g.c.Act(g.ctx, g.id, client.ActionFailover)
	if !client.IsConflict(err) {
		g.t.Fatalf("failover: %v; want a conflict", err)
	}
	if want := "fault_level " + fault; fault != "" && !strings.Contains(err.Error(), want) {
		g.t.Errorf("failover refused with %q; want %q in it", err, want)
	}
}

// failover asks for a failover and waits until the group is failed over.
func (g *group) failover() {
	g.t.Helper()
	g.act(client.ActionFailover)
	g.until(patience, "failovered", "active-stopped", "0")
}

func (d *deployment) uri(volume, member string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", volume, d.path(member, ".sock"))
}

// dial opens a pair's disk in a zone.
func (d *deployment) dial(p pair, az string) (*nbdclient.Client, error) {
	ctx, cancel := context.WithTimeout(d.ctx, 5*time.Second)
	defer cancel()
	return nbdclient.Dial(ctx, d.uri(p.disk[az], p.node[az]))
}

// open is dial, tried until the disk is served there.
func (d *deployment) open(p pair, az string) *nbdclient.Client {
	d.t.Helper()
	var c *nbdclient.Client
	d.eventually(patience, "open "+p.disk[az]+" in "+az, func() (err error) {
		c, err = d.dial(p, az)
		return err
	})
	d.t.Cleanup(func() { _ = c.Close() })
	return c
}

// writes does one write; one that takes longer than the bound fails the test.
func (d *deployment) writes(c *nbdclient.Client, off int64, within time.Duration) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	began := time.Now()
	err := c.WriteAt(ctx, bytes.Repeat([]byte{byte(began.UnixNano()) | 1}, 4096), off, false)
	if took := time.Since(began); err != nil || stalls.over(began, within) {
		d.t.Fatalf("a write took %s, more than %s (the disk stalled for %s): %v", took, within, stalls.slack(began)/probeEcho, err)
	}
}

// raw is the file of a pair's volume in a zone.
func (d *deployment) raw(p pair, az string) string {
	d.t.Helper()
	_, n, _ := strings.Cut(p.node[az], "node-")
	pool := filepath.Join(d.dir, az, "pool-"+n)
	var found string
	err := filepath.WalkDir(pool, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.Contains(path, p.disk[az]) {
			if info, err := e.Info(); err == nil && info.Size() >= gib {
				found = path
			}
		}
		return err
	})
	if err != nil || found == "" {
		d.t.Fatalf("raw file of %s in %s: %v", p.disk[az], pool, err)
	}
	return found
}

// sameFiles compares both sides' raw files; nothing may be in flight.
func (d *deployment) sameFiles(pairs ...pair) {
	d.t.Helper()
	for _, p := range pairs {
		a, b := d.raw(p, "az1"), d.raw(p, "az2")
		if err := equalFiles(a, b); err != nil {
			d.t.Fatalf("the sides of pair %s differ: %v", p.id, err)
		}
	}
}

func equalFiles(pathA, pathB string) error {
	a, err := os.Open(pathA)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(pathB)
	if err != nil {
		return err
	}
	defer b.Close()
	bufA, bufB := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(bufA)) {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		if n != m || !bytes.Equal(bufA[:n], bufB[:m]) {
			i := 0
			for i < min(n, m) && bufA[i] == bufB[i] {
				i++
			}
			return fmt.Errorf("%s and %s at byte %d", pathA, pathB, off+int64(i))
		}
		if errA != nil || errB != nil {
			if errA == io.EOF || errA == io.ErrUnexpectedEOF {
				return nil
			}
			return errors.Join(errA, errB)
		}
	}
}

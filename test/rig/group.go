package rig

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// Zones of every rig, the first primary ones first.
var Zones = []string{"az1", "az2"}

// Other is the zone that az is paired with.
func Other(az string) string {
	if az == Zones[0] {
		return Zones[1]
	}
	return Zones[0]
}

// Deployment is what a group needs of the place where it lives.
type Deployment interface {
	// Ask makes a call of the API, at whichever controller answers.
	Ask(call func(context.Context, *client.Client) error) error
	// Dial opens a volume on a node.
	Dial(ctx context.Context, node, volume string) (*nbdclient.Client, error)
	// Raw is the path of a volume's file on a node, "" if it cannot be read from here.
	Raw(node, volume string) string
}

// Pair is a replication pair of two volumes of 1 GiB.
type Pair struct {
	ID   string
	Disk map[string]string // zone -> volume
	Node map[string]string // zone -> node
}

// Group is a consistency group under test.
type Group struct {
	Deployment
	ID    string
	Pairs []Pair

	t   testing.TB
	ctx context.Context // ends with the test
}

// NewGroup makes volumes on the named nodes, a pair of each two, az1 the primary, and a group of all,
// and waits until it is active.
func NewGroup(t testing.TB, d Deployment, nodes ...[2]string) *Group {
	t.Helper()
	g := &Group{Deployment: d, t: t, ctx: t.Context()}
	var ids []string
	for _, on := range nodes {
		p := Pair{Disk: map[string]string{}, Node: map[string]string{}}
		for i, az := range Zones {
			p.Node[az], p.Disk[az] = on[i], g.volume(az, on[i])
		}
		var made client.Pair
		g.must("create pair", func(ctx context.Context, c *client.Client) (err error) {
			made, err = c.CreatePair(ctx, client.PairCreate{VolumeIDs: []string{p.Disk["az1"], p.Disk["az2"]}, PriorityStation: "az1"})
			return err
		})
		p.ID = made.ID
		ids, g.Pairs = append(ids, p.ID), append(g.Pairs, p)
		Poll(g.ctx, t, Patience, "pair is available", func() error {
			return g.Ask(func(ctx context.Context, c *client.Client) error {
				got, err := c.Pair(ctx, p.ID)
				if err == nil && got.Status != "available" {
					err = fmt.Errorf("status %s", got.Status)
				}
				return err
			})
		})
	}
	g.must("create group", func(ctx context.Context, c *client.Client) error {
		made, err := c.CreateGroup(ctx, client.GroupCreate{PairIDs: ids, PriorityStation: "az1"})
		g.ID = made.ID
		return err
	})
	g.Settle(Patience)
	return g
}

func (g *Group) volume(az, node string) string {
	g.t.Helper()
	var v client.Volume
	g.must("create volume", func(ctx context.Context, c *client.Client) (err error) {
		v, err = c.CreateVolume(ctx, client.VolumeCreate{SizeGiB: 1, AvailabilityZone: az, Metadata: map[string]string{"node": node}})
		return err
	})
	Poll(g.ctx, g.t, Patience, "volume is available", func() error {
		return g.Ask(func(ctx context.Context, c *client.Client) error {
			got, err := c.Volume(ctx, v.ID)
			if err == nil && got.Status != "available" {
				err = fmt.Errorf("status %s", got.Status)
			}
			return err
		})
	})
	return v.ID
}

func (g *Group) must(what string, call func(context.Context, *client.Client) error) {
	g.t.Helper()
	if err := g.Ask(call); err != nil {
		g.t.Fatalf("%s: %v", what, err)
	}
}

// Act calls an action.
func (g *Group) Act(a client.Action) error {
	return g.Ask(func(ctx context.Context, c *client.Client) error { return c.Act(ctx, g.ID, a) })
}

// Statuses gives status, replication_status and fault_level with slashes between, and the group.
func (g *Group) Statuses() (string, client.Group, error) {
	var got client.Group
	err := g.Ask(func(ctx context.Context, c *client.Client) (err error) {
		got, err = c.Group(ctx, g.ID)
		return err
	})
	if err != nil {
		return "", got, err
	}
	fault := "null"
	if got.FaultLevel != nil {
		fault = *got.FaultLevel
	}
	return got.Status + "/" + got.ReplicationStatus + "/" + fault, got, nil
}

// Active is what Statuses gives for a group that replicates and has no fault.
const Active = "available/active/0"

// FailedOver is what Statuses gives after a failover.
const FailedOver = "failovered/active-stopped/0"

// Until waits for such statuses.
func (g *Group) Until(within time.Duration, want string) {
	g.t.Helper()
	Poll(g.ctx, g.t, within, "the group is "+want, func() error {
		have, got, err := g.Statuses()
		if err == nil && have != want {
			err = fmt.Errorf("it is %s (%s)", have, text(got.Reason))
		}
		return err
	})
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// Settle brings the group to active with documented calls alone, once nothing is broken any more, and
// tells where its primary is. It fails the test if that takes longer.
func (g *Group) Settle(within time.Duration) (zone string) {
	g.t.Helper()
	var called time.Time
	Poll(g.ctx, g.t, within, "the group is active", func() error {
		have, got, err := g.Statuses()
		if err != nil {
			return err
		}
		zone = got.PriorityStation
		if have == Active {
			return nil
		}
		// A synchronization comes by itself, too, but later and later where faults repeat.
		if time.Since(called) > time.Second && got.Status != "failovering" && got.Status != "reversing" {
			called = time.Now()
			err = g.Act(client.ActionSync)
		}
		return errors.Join(fmt.Errorf("it is %s (%s)", have, text(got.Reason)), err)
	})
	return zone
}

// Failover asks for a failover and waits for its end, and tells how long both took. The call may be
// refused at first: by a controller that has not heard of the fault, or one that has no leader.
func (g *Group) Failover(within time.Duration) time.Duration {
	g.t.Helper()
	began := time.Now()
	asked := false
	Poll(g.ctx, g.t, within, "the group is failed over", func() error {
		have, got, err := g.Statuses()
		if err != nil {
			return err
		}
		if have == FailedOver {
			return nil
		}
		if !asked || (got.Status != "failovering" && got.Status != "failovered") {
			if err = g.Act(client.ActionFailover); err == nil {
				asked = true
			}
		}
		return errors.Join(fmt.Errorf("it is %s (%s)", have, text(got.Reason)), err)
	})
	return time.Since(began)
}

// Open opens all disks of the group in a zone, each tried until it is served there.
func (g *Group) Open(within time.Duration, az string) []block.Device {
	g.t.Helper()
	disks := make([]block.Device, len(g.Pairs))
	for i, p := range g.Pairs {
		Poll(g.ctx, g.t, within, fmt.Sprintf("disk %d is served in %s", i, az), func() error {
			ctx, cancel := context.WithTimeout(g.ctx, 5*time.Second)
			defer cancel()
			c, err := g.Dial(ctx, p.Node[az], p.Disk[az])
			if err == nil {
				disks[i] = c
			}
			return err
		})
	}
	return disks
}

// Close closes disks that Open has opened.
func Close(disks []block.Device) {
	for _, d := range disks {
		if c, ok := d.(*nbdclient.Client); ok {
			_ = c.Close()
		}
	}
}

// Same compares both sides of every pair. The group is active, all disks are flushed, and nothing is
// in flight.
func (g *Group) Same() error {
	var errs []error
	for i, p := range g.Pairs {
		if err := EqualFiles(g.Raw(p.Node["az1"], p.Disk["az1"]), g.Raw(p.Node["az2"], p.Disk["az2"])); err != nil {
			errs = append(errs, fmt.Errorf("the sides of pair %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

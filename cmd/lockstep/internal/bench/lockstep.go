package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
)

// deployment is a Lockstep of two zones with one node each, as `lockstep dev` makes it: the
// controller, with its store, and the nodes as processes of their own.
type deployment struct {
	s     *site
	dir   string
	etcd  []string // its store's URLs; nil: a member in the controller
	child *dev.Child
	c     *client.Client
	asked time.Time // when the last synchronization was asked for
}

var zones = [2]dev.Member{{AZ: "az1", N: 1}, {AZ: "az2", N: 1}}

// disk is a replicated disk: volumes by zone, the pair and its group.
type disk struct {
	volume [2]string
	pair   string
	group  string
}

// newDeployment starts one in a directory of the site.
func newDeployment(ctx context.Context, s *site, name string) (*deployment, error) {
	d := &deployment{s: s, dir: s.path(name)}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, err
	}
	return d, d.start(ctx)
}

func (d *deployment) start(ctx context.Context) (err error) {
	d.child, err = dev.StartChild(ctx, d.dir, dev.Options{Binary: d.s.o.lockstep, AZs: []string{zones[0].AZ, zones[1].AZ}, NodesPerAZ: 1, Etcd: d.etcd}, func(string) {})
	if err != nil {
		return err
	}
	d.c, err = client.Dial(ctx, client.Options{Cloud: "lockstep", CloudsFile: d.child.Layout.CloudsFile(), UserAgent: "lockstep-bench"})
	return err
}

// pids of the nodes: what a write costs. The controller has no part in it.
func (d *deployment) pids() ([]int, error) {
	var pids []int
	for _, m := range zones {
		pid, err := d.child.Layout.PID(m)
		if err != nil || pid == 0 {
			return nil, fmt.Errorf("node %s does not run: %w", m, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// until asks every 10 ms.
func until(ctx context.Context, what string, see func(context.Context) (bool, error)) error {
	return untilEvery(ctx, 10*time.Millisecond, what, see)
}

func untilEvery(ctx context.Context, pause time.Duration, what string, see func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for {
		ok, err := see(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// raw is the file of a volume.
func (d *deployment) raw(zone int, volume string) string {
	return filepath.Join(d.child.Layout.Pool(zones[zone]), volume+".raw")
}

// volumes makes a volume in each zone; prepare fills the files, if it is not nil.
func (d *deployment) volumes(ctx context.Context, sizeGiB int64, prepare func(zone int, path string) error) (k disk, err error) {
	for i, m := range zones {
		var v client.Volume
		patience := time.Now().Add(time.Minute) // with a disk that is busy with the files of before
		err := until(ctx, "create volume", func(ctx context.Context) (bool, error) {
			v, err = d.c.CreateVolume(ctx, client.VolumeCreate{SizeGiB: sizeGiB, AvailabilityZone: m.AZ})
			if err != nil && time.Now().Before(patience) {
				return false, nil
			}
			return err == nil, err
		})
		if err != nil {
			return k, err
		}
		k.volume[i] = v.ID
		err = until(ctx, "volume is available", func(ctx context.Context) (bool, error) {
			v, err := d.c.Volume(ctx, v.ID)
			return v.Status == "available", err
		})
		if err != nil {
			return k, err
		}
		if prepare != nil {
			if err := prepare(i, d.raw(i, v.ID)); err != nil {
				return k, err
			}
		}
	}
	return k, nil
}

// protect pairs the volumes and makes a group of them, and waits until both sides are the same.
func (d *deployment) protect(ctx context.Context, k *disk) error {
	p, err := d.c.CreatePair(ctx, client.PairCreate{VolumeIDs: k.volume[:], PriorityStation: zones[0].AZ})
	if err != nil {
		return fmt.Errorf("create pair: %w", err)
	}
	k.pair = p.ID
	err = until(ctx, "pair is available", func(ctx context.Context) (bool, error) {
		p, err := d.c.Pair(ctx, p.ID)
		return p.Status == "available", err
	})
	if err != nil {
		return err
	}
	g, err := d.c.CreateGroup(ctx, client.GroupCreate{PairIDs: []string{p.ID}, PriorityStation: zones[0].AZ})
	if err != nil {
		return fmt.Errorf("create group: %w", err)
	}
	k.group = g.ID
	patience := time.Now().Add(time.Minute)
	err = until(ctx, "group is available", func(ctx context.Context) (bool, error) {
		g, err := d.c.Group(ctx, g.ID)
		return g.Status == "available", err
	})
	if err != nil {
		return err
	}
	// After files were filled the disk may be so busy that a node's lease in the store has run out.
	err = until(ctx, "synchronize", func(ctx context.Context) (bool, error) {
		d.asked = time.Now()
		err := d.c.Act(ctx, g.ID, client.ActionSync)
		if client.IsConflict(err) && d.asked.Before(patience) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	return d.inSync(ctx, *k)
}

// inSync waits until the group replicates and nothing is left to copy.
func (d *deployment) inSync(ctx context.Context, k disk) error {
	return until(ctx, "group is active", func(ctx context.Context) (bool, error) {
		g, err := d.c.Group(ctx, k.group)
		if err != nil {
			return false, err
		}
		if g.Status == "error" {
			return false, errors.New("the group failed")
		}
		return g.Status == "available" && g.ReplicationStatus == "active" && g.FaultLevel != nil && *g.FaultLevel == "0", nil
	})
}

// toSend is how many bytes a synchronization that is under way has still to send; 0 while there is none.
func (d *deployment) toSend(ctx context.Context, k disk) (int64, error) {
	g, err := d.c.Group(ctx, k.group)
	if err != nil || g.Resync == nil {
		return 0, err
	}
	return g.Resync.ToSendBytes, nil
}

// newProtected starts a deployment with one disk that is in sync, and which was written once, as its user would.
func newProtected(ctx context.Context, s *site, name string, sizeGiB int64) (d *deployment, k disk, err error) {
	if d, err = newDeployment(ctx, s, name); err != nil {
		return nil, k, err
	}
	if k, err = d.volumes(ctx, sizeGiB, nil); err == nil {
		err = d.protect(ctx, &k)
	}
	var uri string
	if err == nil {
		uri, err = d.c.ConnectionURI(ctx, k.volume[0])
	}
	if err == nil {
		err = fillThrough(ctx, uri, sizeGiB<<30)
	}
	if err != nil {
		return nil, k, errors.Join(err, d.remove())
	}
	return d, k, nil
}

// served gives the primary's export.
func (d *deployment) served(ctx context.Context, k disk) (*served, error) {
	pids, err := d.pids()
	if err != nil {
		return nil, err
	}
	uri, err := d.c.ConnectionURI(ctx, k.volume[0])
	if err != nil {
		return nil, err
	}
	return &served{uri: uri, pids: pids, stop: d.child.Stop}, nil
}

// remove ends the deployment and deletes its files.
func (d *deployment) remove() error { return errors.Join(d.child.Stop(), os.RemoveAll(d.dir)) }

// startLockstep makes the deployment and the disk that all rounds of load share. It runs on, idle, while others
// are measured: a node that starts compares what was written last with the other side.
func startLockstep(ctx context.Context, s *site) (*served, error) {
	if s.lockstep == nil {
		d, err := newDeployment(ctx, s, "lockstep")
		if err != nil {
			return nil, err
		}
		s.lockstep = d
		if s.disk, err = d.volumes(ctx, s.o.sizeGiB, nil); err != nil {
			return nil, err
		}
		if err := d.protect(ctx, &s.disk); err != nil {
			return nil, err
		}
	}
	sv, err := s.lockstep.served(ctx, s.disk)
	if err != nil {
		return nil, err
	}
	sv.stop = func() error { return nil }
	return sv, nil
}

// stopNode and startNode take the secondary away and bring it back.
func (d *deployment) stopNode(ctx context.Context, zone int) error {
	_, err := d.child.Layout.End(ctx, []dev.Member{zones[zone]}, syscall.SIGTERM, 20*time.Second)
	return err
}

func (d *deployment) startNode(ctx context.Context, zone int) error {
	// By the command: dev.Layout.Launch would start this very program as a node.
	out, err := exec.CommandContext(ctx, d.s.o.lockstep, "dev", "start", zones[zone].AZ, "--dir", d.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("start the node in %s: %w: %s", zones[zone].AZ, err, out)
	}
	return nil
}

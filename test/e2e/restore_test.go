package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// TestARestoredStoreServesNothingUntilItIsRecovered: the store's directory is put back to what it was
// before a failover. Nodes that ran on and nodes that are started serve nothing by it; the recovery
// keeps the newest roles, and what was acknowledged under them.
func TestARestoredStoreServesNothingUntilItIsRecovered(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	moved := d.syncedGroup(d.pair(1), d.pair(1))
	same := d.syncedGroup(d.pair(1))
	c := newChains()
	c.run(moved.disks("az1"))
	c.progress(moved, patience, 200)
	if err := c.stop(moved); err != nil {
		t.Fatal(err)
	}
	d.cli("dev", "stop", "controller", "--dir", d.dir)
	etcd, backup := filepath.Join(d.dir, "etcd"), filepath.Join(d.dir, "etcd-backup")
	copyTree(t, etcd, backup)
	d.start("controller")
	d.answers()

	moved.failover()
	disks := moved.disks("az2")
	c.run(disks)
	c.progress(moved, patience, 200)
	moved.act(client.ActionReprotect)
	moved.untilActive()
	c.progress(moved, patience, 200)
	if err := c.stop(moved); err != nil {
		t.Fatal(err)
	}
	d.cli("dev", "stop", "controller", "--dir", d.dir)
	if err := os.RemoveAll(etcd); err != nil {
		t.Fatal(err)
	}
	copyTree(t, backup, etcd)
	d.stop(node("az1", 1)) // one is started with the older store, the other runs on
	d.start("controller")
	d.answers()
	d.start(node("az1", 1))
	d.untilAlive(d.members("")...)

	d.eventually(patience, "the node that ran on has noticed", func() error {
		log, err := os.ReadFile(d.path(node("az2", 1), ".log"))
		if err == nil && !strings.Contains(string(log), "older than the persisted epoch") {
			err = errNotYet
		}
		return err
	})
	held := make(chan error, 1)
	go func() { held <- probe(moved, disks[0].(*nbdclient.Client)) }()
	select {
	case err := <-held:
		t.Fatalf("a write under a record that the store does not have ended: %v", err)
	case <-time.After(2 * time.Second):
	}
	if _, err := d.dial(moved.pairs[0], "az1"); err == nil {
		t.Error("the old primary opens its disk by the older record")
	}

	out := d.cli("store", "recover", "--reason", "restored for a test", "--yes")
	t.Log(out)
	for _, g := range []*group{moved, same} {
		if row := rowOf(out, g.id); !strings.Contains(row, "in sync") || strings.Contains(row, "not in sync") {
			t.Errorf("all its nodes have the newest record, and it is not in sync: %s", row)
		}
	}
	if err := <-held; err != nil {
		t.Fatalf("the held write: %v", err)
	}
	moved.untilActive()
	if _, have, err := moved.statuses(); err != nil || have.PriorityStation != "az2" {
		t.Errorf("the primary is %s, %v", have.PriorityStation, err)
	}
	if err := c.inspect(d.ctx, disks); err != nil {
		t.Fatal(err)
	}
	c.run(disks)
	c.progress(moved, patience, 200)
	flushAndCompare(moved, c, disks)
	same.untilActive()
}

func rowOf(table, id string) string {
	for line := range strings.SplitSeq(table, "\n") {
		if strings.Contains(line, id) {
			return line
		}
	}
	return ""
}

// answers waits until the API does.
func (d *deployment) answers() {
	d.t.Helper()
	d.eventually(patience, "the API answers", func() error {
		_, err := d.c.Nodes(d.ctx)
		return err
	})
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		if !e.Type().IsRegular() {
			return nil
		}
		raw, err := os.ReadFile(path)
		return errors.Join(err, os.WriteFile(filepath.Join(to, rel), raw, 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
}

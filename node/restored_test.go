package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Goal: a node that is running notices a record older than one it was told before, although the
// store's revision grew, as it does in a restore of etcd with --bump-revision, which the manual asks
// for. It serves nothing until the store is recovered.
func TestRunningNodeNoticesAnOlderRecord(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	older := c.record()
	c.act(control.ActionStop)
	c.await("available", "active-stopped", "0")
	c.act(control.ActionSync)
	c.await("available", "active", "0")
	if newer := c.record(); newer.Epoch <= older.Epoch {
		t.Fatalf("epoch %d is not newer than %d", newer.Epoch, older.Epoch)
	}
	if _, err := store.Put(context.Background(), c.mem, store.KeyRecord(c.group), older, store.AnyRev); err != nil {
		t.Fatal(err)
	}
	for id, mode := range map[string]protocol.Mode{"a1": protocol.ModeHeld, "b2": protocol.ModeRefused} {
		c.eventually("node "+id+" has noticed", func() error {
			for name, p := range c.nodes {
				v, ok := p.running().host.View(c.group)
				if string(name) != id || ok && v.Mode == mode && strings.Contains(v.Why, "store recover") {
					continue
				}
				return fmt.Errorf("%s: %s, %q", name, v.Mode, v.Why)
			}
			return nil
		})
	}
	c.eventually("the store is recovered", func() error {
		r, err := c.ctl.RecoverStore(t.Context(), caller, nil, "a test")
		if err == nil && (len(r.Groups) != 1 || !r.Groups[0].InSync) {
			err = errors.New(fmt.Sprint(r))
		}
		return err
	})
	c.await("available", "active", "0")
}

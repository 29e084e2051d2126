package node

import (
	"context"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/control"
)

// Goal: a group under load is synchronized and both sides are identical.
func TestSyncUnderLoad(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	l := newLoad(c)
	l.run(0, 3)
	l.progress(100)
	c.active()
	l.progress(300)
	l.halt()
	c.same()
	l.check(0)
}

// Goal: a cut link trips the group, I/O goes on, and everything heals by itself.
func TestTripAndHeal(t *testing.T) {
	for name, mode := range map[string]proxyMode{"refused": modeRefuse, "black hole": modeHole} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, "a1", "b2")
			c.app2()
			c.active()
			l := newLoad(c)
			l.run(0, 3)
			l.progress(100)
			c.nodes["b2"].proxy.set(mode)
			c.await("available", "inactive", "5")
			l.progress(300)
			c.nodes["b2"].proxy.set(modePass)
			c.await("available", "active", "0")
			l.progress(300)
			l.halt()
			c.same()
			l.check(0)
		})
	}
}

// Goal: after the primary node has died nothing acknowledged is lost; reprotect and the way back
// by a switchover under load lose nothing either.
func TestFailoverReprotectSwitchover(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	l := newLoad(c)
	l.run(0, 3)
	l.progress(300)
	c.nodes["a1"].kill()
	c.await("available", "active", "2")
	l.halt()
	c.act(control.ActionFailover)
	c.await("failovered", "active-stopped", "0")
	l.check(1)
	l.run(1, 3)
	l.progress(200)
	c.nodes["a1"].start()
	l.progress(100)
	c.eventually("the old primary is seen alive", func() error {
		return c.ctl.Act(t.Context(), caller, c.group, control.ActionReprotect, nil)
	})
	c.await("available", "active", "0")
	l.progress(200)
	c.reverse("az1")
	l.halt()
	c.same()
	l.check(0)
}

// Goal: a pause under load drains: it ends as a pause, in time, with both sides identical.
func TestPauseUnderLoad(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	l := newLoad(c)
	l.run(0, 4)
	l.progress(200)
	began := time.Now()
	c.act(control.ActionStop)
	c.await("available", "active-stopped", "0")
	if d := time.Since(began); d > slow*2*time.Second {
		t.Errorf("the pause took %s", d)
	}
	if r := c.record(); !r.Drained {
		t.Errorf("the pause did not drain: %s", r.Reason)
	}
	l.progress(100)
	l.halt()
	l.check(0)
	c.active()
	c.same()
}

// Goal: a primary process that was killed repairs and serves again, with all that was
// acknowledged, and the sides are identical.
func TestPrimaryProcessRestart(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	l := newLoad(c)
	l.run(0, 3)
	for range 2 {
		l.progress(200)
		c.nodes["a1"].kill()
		c.nodes["a1"].start()
	}
	l.progress(200)
	l.halt()
	l.check(0)
	c.await("available", "active", "0")
	c.same()
}

// Goal: a node stops in good time although requests wait for a secondary that is away and a store
// that is away.
func TestStopWhileHeld(t *testing.T) {
	c := newCluster(t, "a1", "b2")
	c.app2()
	c.active()
	dev := c.dev(c.vols[0][0])
	c.nodes["a1"].client.SetDown(true)
	c.nodes["b2"].proxy.set(modeRefuse)
	time.Sleep(slow * 300 * time.Millisecond) // the lease runs out
	ended := make(chan error, 2)
	go func() { ended <- dev.WriteAt(context.Background(), make([]byte, 4096), 0, false) }()
	go func() { ended <- dev.ReadAt(context.Background(), make([]byte, 4096), 1<<20) }()
	select {
	case err := <-ended:
		t.Fatalf("a request ended with %v, cut off from everything", err)
	case <-time.After(1500 * time.Millisecond):
	}
	if d := c.nodes["a1"].shutdown(); d > 4*time.Second {
		t.Errorf("the stop took %s", d)
	}
	for range 2 {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a request succeeded, cut off from everything")
			}
		case <-time.After(2 * time.Second):
			t.Fatal("a request still waits after the stop")
		}
	}
}

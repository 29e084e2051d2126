package node

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/store"
)

// newSteadyCluster is a cluster that does not trip because the machine is busy, nor while a process is
// started again: that would end a verification.
func newSteadyCluster(t *testing.T, ids ...lockstep.NodeID) *cluster {
	t.Helper()
	c := newCluster(t, ids...)
	for _, p := range c.nodes {
		p.shutdown()
		p.cfg.TripAfter = time.Minute
		p.start()
	}
	return c
}

func (c *cluster) verify(rateMiB int64) control.VerificationView {
	c.t.Helper()
	w, err := c.ctl.Verify(c.t.Context(), caller, c.group, rateMiB)
	if err != nil {
		c.t.Fatal(err)
	}
	return w
}

func (c *cluster) verified(want store.VerifyState) control.VerificationView {
	c.t.Helper()
	var w control.VerificationView
	c.eventually("the verification is "+string(want), func() error {
		if v := c.view().Verification; v != nil {
			w = *v
		}
		if w.State != want {
			return fmt.Errorf("it is %s (%s), %d of %d bytes, %q", w.State, w.Reason, w.Bytes, w.TotalBytes, w.Waits)
		}
		return nil
	})
	return w
}

// midway waits until a verification is in the middle.
func (c *cluster) midway() {
	c.t.Helper()
	c.eventually("the verification is in the middle", func() error {
		if w := c.view().Verification; w.State != store.VerifyRunning || w.Bytes < 64<<20 {
			return fmt.Errorf("%s, %d bytes", w.State, w.Bytes)
		}
		return nil
	})
}

// behind changes bytes of a volume's file behind the back of its node.
func (c *cluster) behind(id lockstep.VolumeID, off int64, data []byte) {
	c.t.Helper()
	p := c.home(id)
	f, err := p.fs.OpenFile("test", filepath.Join(p.cfg.Pool, string(id)+".raw"), 0)
	if err == nil {
		_, err = f.WriteAt(data, off)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// Goal: a verification under load goes on over a restart of the primary's process and of the
// secondary's, finds on both volumes what nobody wrote, repairs it, and leaves a proof that the metrics
// show.
func TestVerifyOverRestarts(t *testing.T) {
	c := newSteadyCluster(t, "a1", "b2")
	c.app2()
	c.active()
	l := newLoad(c)
	l.run(0, 2)
	l.progress(100)
	c.behind(c.vols[0][1], 900<<20, []byte("rot"))
	c.behind(c.vols[1][1], 1000<<20+512, []byte("rot"))
	c.verify(24)
	c.midway()
	c.nodes["a1"].kill()
	c.nodes["a1"].start()
	c.midway()
	if w := c.view().Verification; len(w.Verification.Differences.First) > 2 {
		t.Errorf("%+v", w)
	}
	l.progress(100)
	c.nodes["b2"].kill()
	c.nodes["b2"].start()
	w := c.verified(store.VerifyEqual)
	l.progress(50)
	l.halt()
	l.check(0)
	if w.State != store.VerifyEqual || w.Proof == nil || w.Proof.Bytes != 2<<30 {
		t.Fatalf("%+v, %+v", w, w.Proof)
	}
	found := w.Differences
	if found.Count != 2 || found.Bytes != 1024 || !found.First[0].Repaired || !found.First[1].Repaired {
		t.Errorf("%+v", found)
	}
	if done, _ := c.nodes["a1"].running().host.VerifyTotals(c.group); done >= 2<<30 {
		t.Errorf("the second process compared all anew: %d bytes", done)
	}
	c.same()
	if n := len(c.view().Warnings); n != 1 {
		t.Errorf("%d warnings: %q", n, c.view().Warnings)
	}

	c.verify(store.MaxVerifyRateMiB)
	w = c.verified(store.VerifyEqual)
	if w.Differences.Count != 0 || len(c.view().Warnings) != 0 {
		t.Errorf("after the repair: %+v, %q", w, c.view().Warnings)
	}
	values := metricsOf(t, c.nodes["a1"].running())
	c.eventually("the node knows of its proof", func() error {
		values = metricsOf(t, c.nodes["a1"].running())
		if at := values["lockstep_verify_last_proof_timestamp_seconds"]; at != float64(w.Proof.At.UnixMilli())/1000 {
			return fmt.Errorf("%v", at)
		}
		return nil
	})
	if values["lockstep_verify_bytes_total"] < 2<<30 {
		t.Errorf("%v", values)
	}
}

func metricsOf(t *testing.T, n *Node) map[string]float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(groupCollector{n})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// Goal: what was compared before the host of the primary lost its power proves nothing about what it
// has now; a pause in the middle and a cancellation are no proof either, and end it.
func TestVerifyEndsWithoutAProof(t *testing.T) {
	c := newSteadyCluster(t, "a1", "b2")
	c.app(1)
	c.active()
	c.verify(4)
	c.midway()
	c.nodes["a1"].powerLoss(0)
	c.nodes["a1"].start()
	w := c.verified(store.VerifyNotCompleted)
	if !strings.Contains(w.Reason, "host of node a1") && !strings.Contains(w.Reason, "left in sync") || w.Proof != nil {
		t.Errorf("after a power loss: %+v", w)
	}
	c.await("available", "active", "0")

	c.verify(4)
	c.midway()
	c.act(control.ActionStop)
	if w = c.verified(store.VerifyNotCompleted); !strings.Contains(w.Reason, "left in sync") || w.Proof != nil {
		t.Errorf("after a pause: %+v", w)
	}
	c.active()

	c.verify(4)
	c.midway()
	if err := c.ctl.CancelVerify(t.Context(), caller, c.group); err != nil {
		t.Fatal(err)
	}
	if w = c.verified(store.VerifyCancelled); w.Bytes < 64<<20 || w.Proof != nil {
		t.Errorf("cancelled: %+v", w)
	}
	c.eventually("the node has stopped", func() error {
		if _, ok := c.nodes["a1"].running().host.ObserveVerify(c.group); ok {
			return errors.New("it goes on")
		}
		return nil
	})
}

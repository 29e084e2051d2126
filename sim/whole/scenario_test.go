//go:build simrun

package whole

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// tell plays a written story: a deployment with guests that write all the time, active at the begin, is led
// through a disaster, and everything that is always checked is checked.
func tell(t *testing.T, nodes int, story func(w *World)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, dir, nodes, t.Output(), false)
		defer w.close()
		if err := w.build(2); err != nil {
			t.Fatal(err)
		}
		w.startGuests(4, 0, 30*time.Millisecond)
		w.must(w.act("sync"))
		w.await(time.Minute, "available", "active", "0")
		w.tasks.Go(func() {
			for !w.over.Load() {
				time.Sleep(100 * time.Millisecond)
				w.checkImages()
			}
		})
		time.Sleep(2 * time.Second)
		story(w)
		w.heal()
		w.must(w.settle())
		if err := w.failed(); err != nil {
			t.Error(err)
		}
	})
}

func (w *World) must(err error) {
	if err != nil {
		w.fail("%v", err)
	}
}

func (w *World) await(within time.Duration, status, replication, fault string) {
	if !w.until(within, status, replication, fault) {
		w.fail("not %s/%s/%s within %s: %s", status, replication, fault, within, w.status())
	}
}

// progress waits until writes are acknowledged again, and gives how long that took.
func (w *World) progress(within time.Duration) time.Duration {
	began, have := time.Now(), w.hist.acks
	if !w.eventually(within, func() bool { return w.hist.acks > have }) {
		w.fail("no write is acknowledged within %s: %s", within, w.status())
	}
	return time.Since(began)
}

func (w *World) isolate(zone int, on bool) {
	mine, other := w.zone(zone), w.zone(3-zone)
	w.say("net", "%s: zone %d from everything", onOff("cut", on), zone)
	for _, a := range mine {
		w.setOutage(string(a.id), on)
		for _, b := range other {
			w.net.setCut(way{string(a.id), string(b.id)}, on)
			w.net.setCut(way{string(b.id), string(a.id)}, on)
		}
	}
}

// between calls f for the way from each host of a to each of b.
func (w *World) between(a, b []*host, f func(there way)) {
	for _, x := range a {
		for _, y := range b {
			f(way{string(x.id), string(y.id)})
		}
	}
}

func (w *World) zone(n int) []*host {
	half := len(w.hosts) / 2
	return w.hosts[(n-1)*half : n*half]
}

// The status says "in sync" and the copies differ. Here the line breaks and comes back again and again
// under load, in every direction; whenever the status is active and nothing is in flight, the sides are
// compared to the byte.
func TestScenarioInSyncMeansEqual(t *testing.T) {
	tell(t, 2, func(w *World) {
		compared := 0
		for round := range 6 {
			a, b := w.zone(1)[round%2], w.zone(2)[round/2%2]
			if round%3 != 1 {
				w.net.setCut(way{string(a.id), string(b.id)}, true)
			}
			if round%3 != 2 {
				w.net.setCut(way{string(b.id), string(a.id)}, true)
			}
			time.Sleep(5 * time.Second)
			w.net.heal()
			w.await(time.Minute, "available", "active", "0")
			time.Sleep(time.Second)
			if w.quiet() {
				compared++
			}
		}
		if compared < 4 {
			w.fail("the sides were compared %d times only", compared)
		}
	})
}

// A resync runs from the wrong side. The old zone is cut off with writes that nobody else has; the other
// one is promoted and written to; the old one returns and must take the new one's image, never give its own.
func TestScenarioResyncFromTheRightSide(t *testing.T) {
	tell(t, 2, func(w *World) {
		w.isolate(1, true)
		w.must(w.act("failover"))
		w.await(time.Minute, "failovered", "", "")
		w.startGuests(2, 1, 30*time.Millisecond) // those of the zone that was cut off may all wait there
		w.progress(30 * time.Second)
		time.Sleep(3 * time.Second)
		w.isolate(1, false)
		if !w.eventually(30*time.Second, func() bool { return w.act("reprotect") == nil }) { // its nodes must be seen first
			w.fail("no reprotect")
		}
		w.await(time.Minute, "available", "active", "0")
		if r := w.now(); r.Primary != "az2" {
			w.fail("the primary is %s", r.Primary)
		}
	})
}

// Two sides accept writes. The primary's zone loses everybody but its own guests, which go on writing; the
// other zone is promoted. The first must hold their writes, and never acknowledge one after the promotion.
func TestScenarioNeverTwoSides(t *testing.T) {
	tell(t, 1, func(w *World) {
		w.isolate(1, true)
		time.Sleep(6 * time.Second)
		if v := w.status(); v == "available/inactive/5" {
			w.fail("a zone that hears nobody went on alone")
		}
		w.must(w.act("failover"))
		w.await(time.Minute, "failovered", "", "")
		w.startGuests(2, 1, 30*time.Millisecond) // those of the zone that was cut off may all wait there
		w.progress(30 * time.Second)
		time.Sleep(5 * time.Second) // both zones have guests that ask
	})
}

// A promotion waits for a dead site. A zone loses power and stays dark; the other one must serve within
// seconds of the call, without anybody's statement.
func TestScenarioPromotionDoesNotWaitForTheDead(t *testing.T) {
	tell(t, 2, func(w *World) {
		for _, h := range w.zone(1) {
			h.powerOff(0)
		}
		w.must(w.act("failover"))
		if took := w.progress(30 * time.Second); took > 10*time.Second {
			w.fail("the promotion took %s", took)
		}
		w.await(10*time.Second, "failovered", "", "")
	})
}

// Both hosts of a pair lose power, one after the other, in both orders: the first to return must not take
// the other's, or its own, incomplete image for the whole truth.
func TestScenarioPowerInBothOrders(t *testing.T) {
	for _, first := range []int{1, 2} {
		t.Run(fmt.Sprintf("zone %d first", first), func(t *testing.T) {
			tell(t, 1, func(w *World) {
				a, b := w.zone(first)[0], w.zone(3 - first)[0]
				a.powerOff(0)
				time.Sleep(300 * time.Millisecond)
				a.powerOn()
				w.await(time.Minute, "available", "active", "0")
				w.progress(30 * time.Second)
				time.Sleep(2 * time.Second)
				b.powerOff(0)
				time.Sleep(300 * time.Millisecond)
				b.powerOn()
				w.await(time.Minute, "available", "active", "0")
				w.progress(30 * time.Second)
			})
		})
	}
}

// The disaster comes in the middle of a resync: the target has half of the new and half of the old. It must
// not be promoted, and nothing may be lost when the primary returns.
func TestScenarioDisasterInTheMiddleOfAResync(t *testing.T) {
	tell(t, 2, func(w *World) {
		a, b := w.zone(1), w.zone(2)
		w.between(a, b, func(there way) { w.net.setCut(there, true) })
		time.Sleep(10 * time.Second)
		w.between(a, b, func(there way) { w.net.setSlow(there, 300*time.Millisecond) })
		w.between(a, b, func(there way) { w.net.setCut(there, false) })
		if !w.eventually(time.Minute, func() bool { return w.now().State == "copying" }) {
			w.fail("no resync begins")
		}
		for _, h := range a {
			h.kill()
		}
		if w.act("failover") == nil {
			w.fail("a failover to a half-copied image was accepted")
		}
	})
}

// The controller dies before or after each of its transactions while it drives operations; the next one
// finishes or undoes them.
func TestScenarioControllerDiesAtEveryStep(t *testing.T) {
	tell(t, 1, func(w *World) {
		for step := 1; step <= 6; step++ {
			for _, b := range w.brains {
				b.crashAtWrite(step, 2*time.Second)
			}
			_ = w.act("failover") // its caller may not hear the end of it
			if !w.converge(2 * time.Minute) {
				w.fail("step %d: %s", step, w.status())
				return
			}
		}
	})
}

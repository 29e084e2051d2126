package replica

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/protocol"
)

// Goal: a synchronization keeps to a limit, of its group or of the node, and goes on faster as soon as that is raised.
func TestLimitsHoldAtOnce(t *testing.T) {
	for name, limit := range map[string]func(h *Host, mib int64){
		"group": func(h *Host, mib int64) { h.SetGroupResyncLimit("g", mib<<20) },
		"node":  func(h *Host, mib int64) { h.SetResyncLimit(mib << 20) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			a := p.a.Volume("va")
			for off := int64(0); off < testSize; off += compareBytes {
				if err := a.disk.WriteAt(bytes.Repeat([]byte{1}, compareBytes), off); err != nil {
					t.Fatal(err)
				}
			}
			limit(p.a, 4)
			began := time.Now()
			raised := make(chan time.Duration, 1)
			go func() {
				time.Sleep(2 * time.Second)
				seen, _ := a.observe()
				if left := seen.ToSendBytes; left < testSize-4*4<<20 {
					t.Errorf("after two seconds %d of %d bytes are left at 4 MiB/s", left, testSize)
				}
				limit(p.a, 0)
				raised <- time.Since(began)
			}()
			p.sync(t)
			select {
			case at := <-raised:
				if took := time.Since(began) - at; took > 5*time.Second {
					t.Errorf("%s after the limit went", took)
				}
			default:
				t.Error("it had ended before the limit went")
			}
		})
	}
}

// Goal: who waits under a low limit goes on as soon as that is raised, all of them, and ends with its context.
func TestLimitWakesWhoWaits(t *testing.T) {
	l := newLimit(1 << 20)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 64)
	for range cap(ended) {
		go func() { ended <- l.wait(ctx, compareBytes) }()
	}
	time.Sleep(100 * time.Millisecond)
	if n := len(ended); n > 1 {
		t.Fatalf("%d MiB went at once at 1 MiB/s", n)
	}
	l.set(0)
	deadline := time.After(5 * time.Second)
	for range cap(ended) {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
		case <-deadline:
			t.Fatal("it waits on under a limit that is gone")
		}
	}
	l = newLimit(1)
	if err := l.wait(ctx, compareBytes); err != nil { // what a new limit has at once
		t.Fatal(err)
	}
	go func() { ended <- l.wait(ctx, compareBytes) }()
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("it ended with %v", err)
		}
	case <-time.After(2 * time.Second):
		t.Fatal("it waits on after its context has ended")
	}
}

// Goal: a node gives way while a client has written of late, and only then; one range at a time, with a pause after it.
func TestPolite(t *testing.T) {
	var now atomic.Int64
	now.Store(int64(time.Hour))
	var p pace
	p.init(func() time.Duration { return time.Duration(now.Load()) }, 0)
	if p.polite() {
		t.Error("nobody ever wrote")
	}
	p.wrote.Store(now.Load())
	if now.Add(int64(clientWithin) - 1); !p.polite() {
		t.Error("a client wrote just now")
	}
	if now.Add(1); p.polite() {
		t.Error("a client wrote long ago")
	}
	ctx, cancel := context.WithCancel(t.Context())
	entered, leave := make(chan struct{}), make(chan struct{})
	go func() {
		_ = p.take(ctx, func() error { close(entered); <-leave; now.Add(int64(30 * time.Millisecond)); return nil })
	}()
	<-entered
	second := make(chan error, 1)
	go func() { second <- p.take(ctx, func() error { return nil }) }()
	select {
	case <-second:
		t.Fatal("two ranges at once")
	case <-time.After(20 * time.Millisecond):
	}
	began := time.Now()
	close(leave)
	if err := <-second; err != nil || time.Since(began) < 25*time.Millisecond {
		t.Errorf("%v after %s, without a pause", err, time.Since(began))
	}
	cancel()
	p.turn <- struct{}{}
	if err := p.take(ctx, func() error { t.Error("called after the end"); return nil }); err == nil {
		t.Error("it did not end with the context")
	}
}

// Goal: a rate is the mean of whole seconds, and nothing for what ended long ago.
func TestMeter(t *testing.T) {
	var m meter
	at := func(s float64) time.Duration { return time.Hour + time.Duration(s*float64(time.Second)) }
	if m.rate(at(0)) != 0 {
		t.Error("a rate of nothing")
	}
	m.add(at(0), 100)
	if got := m.rate(at(0.5)); got != 0 {
		t.Errorf("%d in the first second", got)
	}
	m.add(at(1), 300)
	if got := m.rate(at(2)); got != 200 {
		t.Errorf("%d, not the mean of two seconds", got)
	}
	for s := 2; s < 30; s++ {
		m.add(at(float64(s)), 1000)
	}
	if got := m.rate(at(30)); got != 1000 {
		t.Errorf("%d over the last ten seconds", got)
	}
	if got := m.rate(at(35)); got != 500 {
		t.Errorf("%d five seconds after the last", got)
	}
	if got := m.rate(at(60)); got != 0 {
		t.Errorf("%d long after the end", got)
	}
	m.add(at(60), 50)
	if got := m.rate(at(61)); got != 50 {
		t.Errorf("%d: an older stretch counts", got)
	}
}

// Goal: a limit that was set before its group is known here holds for it.
func TestLimitBeforeTheGroup(t *testing.T) {
	h := newPair(t).a
	h.SetGroupResyncLimit("later", 5<<20)
	if got := h.startGroup("later", protocol.Saved{}).limit.bytes.Limit(); got != 5<<20 {
		t.Errorf("limit %v", got)
	}
	h.SetGroupResyncLimit("later", 0)
	if len(h.limits) != 0 {
		t.Error("what has no limit is kept")
	}
}

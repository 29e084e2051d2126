package faults

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// TestNetwork measures that the network does what it is told: packets arrive, are lost in the share
// and in the direction that was asked for, and come late.
func TestNetwork(t *testing.T) {
	n := newNetwork(t, 1)
	a, b, other := n.add("here", "a"), n.add("there", "b"), n.add("third", "c")
	n.start()
	listen := func(h *host) net.PacketConn {
		t.Helper()
		var conn net.PacketConn
		if err := h.on(func() (err error) {
			conn, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", h.addr(7))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	conn := map[*host]net.PacketConn{a: listen(a), b: listen(b), other: listen(other)}
	// arrive sends packets one at a time and tells how many came, and how long the slowest took.
	arrive := func(from, to *host, count int, patience time.Duration) (came int, slowest time.Duration) {
		t.Helper()
		dest := &net.UDPAddr{IP: to.ip.AsSlice(), Port: 7}
		for i := range count {
			began := time.Now()
			if _, err := conn[from].WriteTo([]byte{byte(i)}, dest); err != nil {
				t.Fatal(err)
			}
			_ = conn[to].SetReadDeadline(began.Add(patience))
			var got [1]byte
			for {
				_, _, err := conn[to].ReadFrom(got[:])
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if got[0] == byte(i) {
					came++
					slowest = max(slowest, time.Since(began))
					break
				}
			}
		}
		return came, slowest
	}
	const patience = 20 * time.Millisecond
	if came, _ := arrive(a, b, 50, time.Second); came != 50 {
		t.Fatalf("%d of 50 packets arrive on a perfect link", came)
	}
	n.set("here", "there", link{cut: true})
	if came, _ := arrive(a, b, 5, patience); came != 0 {
		t.Errorf("%d packets pass a cut link", came)
	}
	for _, pair := range [][2]*host{{b, a}, {a, other}, {other, b}} {
		if came, _ := arrive(pair[0], pair[1], 5, time.Second); came != 5 {
			t.Errorf("%d of 5 packets arrive from %s to %s, which was not cut", came, pair[0].name, pair[1].name)
		}
	}
	n.set("here", "b", link{}) // one host of the site is spared
	if came, _ := arrive(a, b, 5, time.Second); came != 5 {
		t.Errorf("%d of 5 packets arrive at a host that the cut does not mean", came)
	}
	n.heal()
	n.both("here", "there", link{loss: 0.3})
	if came, _ := arrive(a, b, 200, patience); came < 105 || came > 170 {
		t.Errorf("%d of 200 packets arrive where 30 %% are lost", came)
	}
	n.heal()
	n.set("here", "there", link{delay: 30 * time.Millisecond, jitter: 20 * time.Millisecond})
	began := time.Now()
	if came, slowest := arrive(a, b, 10, 2*time.Second); came != 10 || slowest < 30*time.Millisecond || time.Since(began) < 300*time.Millisecond {
		t.Errorf("%d of 10 packets arrive, the slowest after %s, where each takes 30 to 50 ms", came, slowest)
	}
}

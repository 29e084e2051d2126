package demo

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// timeline prints what happens, when it happens, and keeps it.
type timeline struct {
	mu    sync.Mutex // guards w and began
	w     io.Writer
	began time.Time
}

func newTimeline(w io.Writer) *timeline { return &timeline{w: w, began: time.Now()} }

// at prints one event and returns its time.
func (t *timeline) at(format string, args ...any) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	fmt.Fprintf(t.w, "%8.3fs  %s\n", now.Sub(t.began).Seconds(), fmt.Sprintf(format, args...))
	return now
}

// result is what the demonstration measured.
type result struct {
	acknowledged uint64 // writes before the zone was killed
	extra        uint64
	rpoBytes     uint64        // acknowledged bytes that were lost
	rto          time.Duration // failover call to the first accepted write
	killToWrite  time.Duration // loss of the zone to the first accepted write
	afterwards   uint64        // writes at the other zone, and after the way back
	sums         [disksCount]string
	compared     int64 // bytes compared, per side
}

func (r result) print(w io.Writer) {
	fmt.Fprintf(w, `
Result
  writes acknowledged before the zone was lost   %d (%d KiB)
  of these not found at the other zone (RPO)     %d bytes
  unacknowledged writes in flight that survived  %d
  consistent cut over both disks                 yes
  failover call to first accepted write (RTO)    %d ms
  loss of the zone to first accepted write       %d ms
  writes acknowledged afterwards                 %d
  bytes compared on each side, all equal         %d
`, r.acknowledged, r.acknowledged*blockBytes/1024, r.rpoBytes, r.extra, r.rto.Milliseconds(),
		r.killToWrite.Milliseconds(), r.afterwards, r.compared)
	for i, s := range r.sums {
		fmt.Fprintf(w, "  SHA-256 of disk %d, both zones                  %s\n", i, s)
	}
}

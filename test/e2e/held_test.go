package e2e

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

// request is one that was sent and may be held; its answer comes whenever it comes.
type request struct {
	t      *testing.T
	what   string
	answer chan error
}

// ask sends a request in the background; it ends with the test at the latest.
func (d *deployment) ask(what string, do func(context.Context) error) *request {
	r := &request{t: d.t, what: what, answer: make(chan error, 1)}
	go func() { r.answer <- do(d.ctx) }()
	return r
}

// askBoth sends a write to the end of a disk, where no chain is, and a read of its beginning.
func (d *deployment) askBoth(disk block.Device) []*request {
	return []*request{
		d.ask("write", func(ctx context.Context) error {
			return disk.WriteAt(ctx, bytes.Repeat([]byte{0x77}, blockSize), disk.Size()-blockSize, false)
		}),
		d.ask("read", func(ctx context.Context) error { return disk.ReadAt(ctx, make([]byte, blockSize), 0) }),
	}
}

// stayHeld fails the test if one of the requests is answered within that time: neither is anything
// acknowledged or given out, nor does a guest see an error.
func stayHeld(within time.Duration, requests ...*request) {
	expired := time.NewTimer(within)
	defer expired.Stop()
	over := make(chan struct{})
	defer close(over)
	answered := make(chan string, len(requests))
	for _, r := range requests {
		r.t.Helper()
		go func() { // ends with this call
			select {
			case err := <-r.answer:
				answered <- fmt.Sprintf("a %s was answered where it had to be held: %v", r.what, err)
			case <-over:
			}
		}()
	}
	select {
	case text := <-answered:
		requests[0].t.Fatal(text)
	case <-expired.C:
	}
}

// end waits for the answer.
func (r *request) end() error {
	r.t.Helper()
	select {
	case err := <-r.answer:
		return err
	case <-time.After(patience):
		r.t.Fatalf("the %s that was held is not answered within %s", r.what, patience)
		return nil
	}
}

// succeed waits until held requests have been done after all.
func succeed(requests ...*request) {
	for _, r := range requests {
		r.t.Helper()
		if err := r.end(); err != nil {
			r.t.Errorf("the %s that was held: %v", r.what, err)
		}
	}
}

// refuse waits until held requests have been given up.
func refuse(requests ...*request) {
	for _, r := range requests {
		r.t.Helper()
		if err := r.end(); err == nil {
			r.t.Errorf("the %s that was held was answered by a node that is no primary any more", r.what)
		}
	}
}

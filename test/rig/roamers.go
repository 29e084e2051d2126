package rig

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/internal/history"
)

// What roamers use of each disk: few blocks, so that they meet, behind those of the chains.
const (
	roamerCount  = 6
	roamerBlocks = 24
	roamerBase   = 1024 // first block
	// roamerPatience is how long one waits for an answer before it closes the connection and goes
	// elsewhere: what it has asked for stays open.
	roamerPatience = 1500 * time.Millisecond
)

// Roamers are clients that write, zero, read and flush a few blocks at the same time, each through
// whichever node of whichever zone takes it, and that go elsewhere when it fails. What they are told
// is recorded: if two sides serve at once, or one forgets, no order of it is right.
type Roamers struct {
	// Durable is how many of a thousand requests are flushes or writes with FUA.
	Durable int

	rec   *history.Recorder
	acked map[string]*atomic.Uint64 // by zone: answers of any kind

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// NewRoamers begins a history.
func NewRoamers(run uint64) *Roamers {
	r := &Roamers{Durable: 80, rec: history.New(run), acked: map[string]*atomic.Uint64{}}
	for _, az := range Zones {
		r.acked[az] = new(atomic.Uint64)
	}
	return r
}

// Recorder is the history.
func (r *Roamers) Recorder() *history.Recorder { return r.rec }

// Answered is how many requests were answered in a zone so far.
func (r *Roamers) Answered(az string) uint64 { return r.acked[az].Load() }

// Run sends them off. What they do follows from the seed and from what they meet.
func (r *Roamers) Run(g *Group, seed uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	for i := range roamerCount {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		r.wg.Go(func() {
			for ctx.Err() == nil {
				r.visit(ctx, g, rnd)
				t := time.NewTimer(20 * time.Millisecond)
				<-t.C
			}
		})
	}
}

// visit uses one disk at one place until that fails, or for a while.
func (r *Roamers) visit(ctx context.Context, g *Group, rnd *rand.Rand) {
	az, i := Zones[rnd.IntN(2)], rnd.IntN(len(g.Pairs))
	p := g.Pairs[i]
	dialCtx, cancel := context.WithTimeout(ctx, time.Second)
	c, err := g.Dial(dialCtx, p.Node[az], p.Disk[az])
	cancel()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	disk := r.rec.Disk(i, c)
	for n := 20 + rnd.IntN(100); n > 0 && ctx.Err() == nil && err == nil; n-- {
		reqCtx, cancel := context.WithTimeout(context.Background(), roamerPatience)
		if err = r.ask(reqCtx, disk, rnd); err == nil {
			r.acked[az].Add(1)
		}
		cancel()
	}
}

func (r *Roamers) ask(ctx context.Context, disk *history.Disk, rnd *rand.Rand) error {
	b := roamerBase + rnd.Int64N(roamerBlocks)
	durable := rnd.IntN(1000) < r.Durable
	switch n := rnd.IntN(100); {
	case durable && n < 40:
		return disk.Flush(ctx)
	case durable || n < 45:
		return disk.Write(ctx, b, durable)
	case n < 48:
		return disk.Zero(ctx, b, 1, block.ZeroFlags{})
	default:
		return disk.Read(ctx, b)
	}
}

// Stop calls them back, and waits for them.
func (r *Roamers) Stop(within time.Duration) error {
	r.cancel()
	ended := make(chan struct{})
	go func() { // ends with the roamers, or with the process of a failed test
		r.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-time.After(within):
		return ErrUnanswered
	}
}

// Check reads every block once more, at the given disks, and judges what was recorded since the last
// check.
func (r *Roamers) Check(ctx context.Context, disks []block.Device) error {
	for i, d := range disks {
		disk := r.rec.Disk(i, d)
		for b := range int64(roamerBlocks) {
			if err := disk.Read(ctx, roamerBase+b); err != nil {
				return err
			}
		}
	}
	return r.rec.Check(time.Minute).Err()
}

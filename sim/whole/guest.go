package whole

import (
	"context"
	"fmt"
	"sort"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/replica"
)

// spots are where guests write: at both ends of the disk, over borders of chunks and of windows of a
// synchronization, in regions far apart, and beyond the end of a disk that was not extended.
var spots = []int{0, (64<<10 - 8<<10) / sectorBytes, (16 << 20) / sectorBytes, (64<<20 - 8<<10) / sectorBytes, (512 << 20) / sectorBytes, (1<<30 - 16<<10) / sectorBytes, (1 << 30) / sectorBytes, (2<<30 - 16<<10) / sectorBytes}

const spotSectors = 32

func spotsWithin(size int64) []int {
	return spots[:sort.Search(len(spots), func(i int) bool { return int64(spots[i]+spotSectors)*sectorBytes > size })]
}

// guest makes one request after the other: each is issued after the one before was answered, on whatever
// volume. It goes to the side that served it last, and tries the other when refused.
type guest struct {
	w    *World
	name string
	dice *dice
	side int
	busy time.Duration // mean time between requests
}

func (w *World) startGuests(n, side int, busy time.Duration) {
	for range n {
		w.guests++
		g := &guest{w: w, name: fmt.Sprintf("g%d", w.guests), dice: newDice(w.seed, 200+uint64(w.guests)), side: side, busy: busy}
		w.tasks.Go(g.run)
	}
}

func (g *guest) run() {
	for !g.w.over.Load() {
		d := g.dice.between(0, g.busy/4)
		if g.dice.below(4) == 0 {
			d = g.dice.between(0, 5*g.busy)
		}
		time.Sleep(d)
		if g.w.hush.Load() {
			continue
		}
		if g.dice.below(50) == 0 {
			g.side = 1 - g.side // an impostor of the cluster manager: nobody should be served there
		}
		pair := g.dice.below(len(g.w.vols))
		id := g.w.vols[pair][g.side]
		p := g.w.home(id).running()
		var v *replica.Volume
		if p != nil {
			var err error
			if v, err = p.volume(id); err != nil {
				p = nil
			}
		}
		if p == nil {
			g.side = 1 - g.side
			continue
		}
		if !g.request(p, v, pair) {
			g.side = 1 - g.side
		}
	}
}

// request makes one request and waits for its answer or for the end of the process; it reports whether
// it succeeded.
func (g *guest) request(p *proc, v *replica.Volume, pair int) bool {
	n := 1 + g.dice.below(8)
	first := pick(g.dice, spotsWithin(v.Size())) + g.dice.below(spotSectors-n+1)
	kind := g.dice.below(20)
	off, length := int64(first)*sectorBytes, int64(n)*sectorBytes
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	fua := g.dice.below(20) == 0
	g.w.active.Add(1)
	defer g.w.active.Add(-1)
	answer := make(chan error, 1)
	do := func(f func() error) bool {
		g.w.tasks.Go(func() {
			defer cancel()
			answer <- f()
		})
		select {
		case err := <-answer:
			p.gate.pass()
			if p.dead.Load() {
				return false
			}
			g.w.small("%s kind %d pair %d at %d+%d: %v", g.name, kind, pair, first, n, err)
			return err == nil
		case <-p.gone:
			cancel()
			return false
		}
	}
	switch {
	case kind < 4:
		buf := make([]byte, length)
		r := g.w.hist.beginRead(pair, first, n)
		if !do(func() error { return readAs(ctx, v, buf, off) }) {
			return false
		}
		if g.w.leaseOutlives(p) {
			return true
		}
		if err := g.w.hist.endRead(r, buf); err != nil {
			g.w.fail("%s at %s: %v", g.name, p.h.id, err)
		}
		return true
	case kind == 4:
		began := g.w.hist.beginFlush()
		if !do(func() error { return v.Flush(ctx) }) {
			return false
		}
		g.w.hist.endFlush(pair, began)
		return true
	}
	zero := kind == 5 || kind == 6
	x, data := g.w.hist.issue(pair, first, n, zero, p, fmt.Sprintf("%s at %s", g.name, p.h.id))
	before, after := lockstep.Epoch(0), lockstep.Epoch(0)
	ok := do(func() error {
		var err error
		before = p.serves(g.w.group)
		switch kind {
		case 5:
			err = v.Zero(ctx, off, length, block.ZeroFlags{NoHole: true, FUA: fua})
		case 6:
			err = v.Trim(ctx, off, length, fua)
		default:
			err = writeAs(ctx, v, data, off, fua)
		}
		after = p.serves(g.w.group)
		if err == nil && !p.dead.Load() {
			g.w.checkServes(p, x, before, after)
		}
		return err
	})
	if !ok {
		g.w.hist.giveUp(x)
		return false
	}
	g.w.hist.ack(x)
	if before == after && after != 0 && g.w.member(pair) {
		g.w.acknowledged(p, after)
	}
	return true
}

// flushAndRead flushes a volume and reads everything guests have written to it.
func (w *World) flushAndRead(p *proc, pair, side int) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	v, err := p.volume(w.vols[pair][side])
	if err != nil {
		return false
	}
	began := w.hist.beginFlush()
	if v.Flush(ctx) != nil || p.dead.Load() {
		return false
	}
	w.hist.endFlush(pair, began)
	for _, first := range spotsWithin(v.Size()) {
		buf := make([]byte, spotSectors*sectorBytes)
		r := w.hist.beginRead(pair, first, spotSectors)
		if v.ReadAt(ctx, buf, int64(first)*sectorBytes) != nil || p.dead.Load() {
			return false
		}
		if err := w.hist.endRead(r, buf); err != nil {
			w.fail("everything is read at %s: %v", p.h.id, err)
			return true
		}
	}
	return true
}

// writeAs and readAs make a request as the NBD server does: in a batch where the volume takes it.
func writeAs(ctx context.Context, v *replica.Volume, p []byte, off int64, fua bool) error {
	if !fua {
		b, c := v.NewBatch(), make(completion, 1)
		if b.Write(p, off, c) {
			b.Run()
			return <-c
		}
	}
	return v.WriteAt(ctx, p, off, fua)
}

func readAs(ctx context.Context, v *replica.Volume, p []byte, off int64) error {
	if v.NewBatch().Read(p, off) {
		return nil
	}
	return v.ReadAt(ctx, p, off)
}

// completion gets the outcome of a write.
type completion chan error

func (c completion) Done(err error) block.Flusher {
	c <- err
	return nil
}

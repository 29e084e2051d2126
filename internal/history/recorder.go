package history

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

// Recorder keeps the requests to the registers of any number of disks. A register is a block that
// was asked for at least once; it must have been all zeroes when the recorder was made. It is safe
// for concurrent use.
type Recorder struct {
	run   uint64
	began time.Time // of its monotonic clock, by which everything is ordered

	mu     sync.Mutex // guards what follows
	last   Value
	blocks map[place]*register
	counts Counts
	fouls  []Violation // seen while recording: content that nobody wrote there
}

// place is a block of a disk.
type place struct {
	disk  int
	block int64
}

// Counts is how much was recorded. A request to several blocks counts once for each.
type Counts struct {
	Reads   int `json:"reads"`   // answered
	Writes  int `json:"writes"`  // acknowledged, zeroes included
	Flushes int `json:"flushes"` // acknowledged
	Open    int `json:"open"`    // writes without an answer, or with an error for one
}

// New makes a recorder. run tells its blocks from those of another one on the same disk.
func New(run uint64) *Recorder {
	return &Recorder{run: run, began: time.Now(), blocks: map[place]*register{}}
}

// Counts is what was recorded so far.
func (r *Recorder) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// now is the time on the recorder's clock, in ns.
func (r *Recorder) now() int64 { return time.Since(r.began).Nanoseconds() }

// kind of a request.
type kind uint8

const (
	opRead kind = iota
	opWrite
)

// forever is the time of an answer that never came.
const forever = int64(1<<63 - 1)

// op is a request to one block.
type op struct {
	kind      kind
	value     Value // written, or read
	call, ret int64 // ns; ret is forever for a write that got no answer
	asking    bool  // not over yet
}

func (o *op) String() string {
	what, ret := "wrote", fmt.Sprintf("%12.6f", float64(o.ret)/1e9)
	switch {
	case o.kind == opRead:
		what = "read "
	case o.value == 0:
		what = "zero "
	}
	switch {
	case o.asking:
		ret = "   (under way)"
	case o.ret == forever:
		ret = "   (no answer)"
	}
	return fmt.Sprintf("%12.6f to %s  %s %d", float64(o.call)/1e9, ret, what, o.value)
}

// Disk is one connection to a disk, whose requests are recorded. Requests may run concurrently.
type Disk struct {
	r    *Recorder
	disk int
	dev  block.Device
}

// Disk records what is asked of a disk through dev. disk is the number of what a client takes for
// one disk: both sides of a replication pair have the same.
func (r *Recorder) Disk(disk int, dev block.Device) *Disk { return &Disk{r, disk, dev} }

func (d *Disk) stamp(block int64, v Value) stamp {
	return stamp{d.r.run, d.disk, kindRegister, uint64(block), v}
}

// Write gives a block a value of its own. An error means that the outcome is unknown; it is the
// device's.
func (d *Disk) Write(ctx context.Context, block int64, fua bool) error {
	d.r.mu.Lock()
	d.r.last++
	v := d.r.last
	d.r.mu.Unlock()
	b := make([]byte, BlockBytes)
	d.stamp(block, v).fill(b)
	return d.change([]int64{block}, v, fua, func() error { return d.dev.WriteAt(ctx, b, block*BlockBytes, fua) })
}

// Zero makes a range of count blocks read as zeroes.
func (d *Disk) Zero(ctx context.Context, first int64, count int, flags block.ZeroFlags) error {
	blocks := make([]int64, count)
	for i := range blocks {
		blocks[i] = first + int64(i)
	}
	return d.change(blocks, 0, flags.FUA, func() error {
		return d.dev.Zero(ctx, first*BlockBytes, int64(count)*BlockBytes, flags)
	})
}

// change records a request that gives v to blocks.
func (d *Disk) change(blocks []int64, v Value, fua bool, ask func() error) error {
	ops := make([]*op, len(blocks))
	d.r.mu.Lock()
	for i, b := range blocks {
		ops[i] = d.r.register(place{d.disk, b}).begin(opWrite, v, d.r.now())
	}
	d.r.mu.Unlock()
	err := ask()
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	now := d.r.now()
	for i, b := range blocks {
		reg := d.r.register(place{d.disk, b})
		if err != nil {
			d.r.counts.Open++
			reg.leaveOpen(ops[i])
			continue
		}
		d.r.counts.Writes++
		reg.answered(ops[i], now)
		if fua {
			reg.durable(ops[i])
		}
	}
	return err
}

// Read reads a block. Content that was never written to that block is a violation, and no error
// here: errors are the device's.
func (d *Disk) Read(ctx context.Context, block int64) error {
	p := place{d.disk, block}
	b := make([]byte, BlockBytes)
	d.r.mu.Lock()
	o := d.r.register(p).begin(opRead, 0, d.r.now())
	d.r.mu.Unlock()
	err := d.dev.ReadAt(ctx, b, block*BlockBytes)
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	reg := d.r.register(p)
	if err != nil {
		reg.drop(o)
		return err
	}
	d.r.counts.Reads++
	v, bad := d.stamp(block, 0).read(b)
	if bad == nil && v > d.r.last {
		bad = fmt.Errorf("it holds write %d, and only %d were issued", v, d.r.last)
	}
	if bad != nil {
		reg.drop(o)
		d.r.fouls = append(d.r.fouls, Violation{Disk: d.disk, Block: block, Text: "read a block that nobody wrote: " + bad.Error()})
		return nil
	}
	o.value = v
	reg.answered(o, d.r.now())
	return nil
}

// Flush makes what was acknowledged before durable.
func (d *Disk) Flush(ctx context.Context) error {
	d.r.mu.Lock()
	called := d.r.now()
	d.r.mu.Unlock()
	if err := d.dev.Flush(ctx); err != nil {
		return err
	}
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	d.r.counts.Flushes++
	for p, reg := range d.r.blocks {
		if p.disk == d.disk {
			reg.flushed(called)
		}
	}
	return nil
}

// PowerLost tells that every host that held the disks lost its power at once: what was not flushed
// may be gone. No request may be under way. Each block may then hold any of its values since the
// last flush, and keeps the one that the first read finds. Call Check before.
func (r *Recorder) PowerLost() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for _, reg := range r.blocks {
		reg.powerLost(now)
	}
}

func (r *Recorder) register(p place) *register {
	reg := r.blocks[p]
	if reg == nil {
		reg = &register{states: []Value{0}, since: []op{{kind: opWrite, call: -2, ret: -1}}}
		r.blocks[p] = reg
	}
	return reg
}

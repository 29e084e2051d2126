package torture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/internal/history"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// load is all the clients of a round. There are two kinds:
//
//   - one application for each group, which opens its disks where the API says that they are, looks
//     whether all is there that it knows of (an opened image must be a consistent cut), and then
//     writes chains of dependent writes and bulk data;
//   - workers, each bound to one disk in one zone, whatever the zone's role is. They write and read
//     registers, which those of both zones share. A side that answers what it must not is found by
//     what its answers say.
type load struct {
	r      *run
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	conns map[*nbdclient.Client]bool
	doing map[*atomic.Pointer[string]]bool // what each client asks for now
}

// workersPerSide is how many clients use the registers of one disk in one zone. One of them only
// reads: where writes are held, it is the one that can still be answered what it must not.
const workersPerSide = 3

func (r *run) startLoad(ctx context.Context) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{r: r, cancel: cancel, conns: map[*nbdclient.Client]bool{}, doing: map[*atomic.Pointer[string]]bool{}}
	for _, g := range r.groups {
		l.wg.Go(func() { l.application(ctx, g) })
		for _, d := range g.disks {
			for _, az := range zones {
				for n := range workersPerSide {
					w := &worker{l: l, g: g, d: d, az: az, reader: n == 0, rnd: rand.New(rand.NewPCG(rand.Uint64(), 0))}
					l.doing[&w.doing] = true
					l.wg.Go(func() { w.run(ctx) })
				}
			}
		}
	}
	return l
}

// Bounds of the end of a load. What is asked for is answered soon once everything was mended.
const (
	answersWithin = 30 * time.Second
	rudeAfter     = time.Second
)

// stop lets the clients end after what they ask for now. What gets no answer is a failure, and so
// is what an application found.
func (l *load) stop(rude bool) (failed *Failure) {
	l.cancel()
	ended := make(chan struct{})
	go func() { // ends with the clients, whose connections are closed below at the latest
		l.wg.Wait()
		close(ended)
	}()
	patience := answersWithin
	if rude {
		patience = rudeAfter
	}
	select {
	case <-ended:
	case <-time.After(patience):
		l.mu.Lock()
		var hanging []error
		for p := range l.doing {
			if what := p.Load(); what != nil {
				hanging = append(hanging, errors.New(*what))
			}
		}
		for c := range l.conns {
			go func() { _ = c.Close() }() // it is given up; its calls fail
		}
		l.mu.Unlock()
		if !rude {
			failed = stuck(fmt.Errorf("requests got no answer within %s of everything being mended: %w", patience, errors.Join(hanging...)))
		}
		<-ended
	}
	for _, g := range l.r.groups {
		g.mu.Lock()
		if g.lost != nil {
			failed = earlier(lost(g.lost), failed)
		}
		g.mu.Unlock()
	}
	return failed
}

// open opens a disk; the connection is known to stop until it is dropped.
func (l *load) open(ctx context.Context, d *disk, az string) (*nbdclient.Client, error) {
	c, err := l.r.rig.dial(ctx, d, az)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = true
	return c, nil
}

func (l *load) drop(c *nbdclient.Client) {
	_ = c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// pause waits, or ends with ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

const (
	redialAfter = 30 * time.Millisecond
	// readerPatience is how long a reader waits. A read beside a held write is held, too: it goes on
	// with another register then.
	readerPatience = 150 * time.Millisecond
)

// worker writes and reads the registers of one disk in one zone.
type worker struct {
	l      *load
	g      *group
	d      *disk
	az     string
	reader bool
	rnd    *rand.Rand
	doing  atomic.Pointer[string]
}

func (w *worker) run(ctx context.Context) {
	for ctx.Err() == nil {
		if c, err := w.l.open(ctx, w.d, w.az); err == nil {
			w.use(ctx, c)
			w.l.drop(c)
		}
		pause(ctx, redialAfter)
	}
}

// use works on a connection until it fails. A request under way at the end of ctx is waited for.
func (w *worker) use(ctx context.Context, c *nbdclient.Client) {
	disk := w.l.r.rec.Disk(w.d.number, c)
	ask := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		i := w.rnd.IntN(registersCount)
		b := registerBlock(i)
		what, err, wrote := "", error(nil), true
		say := func(op string) {
			what = fmt.Sprintf("%s register %d of disk %d in %s, since %s", op, i, w.d.number, w.az, time.Now().UTC().Format("15:04:05.000"))
			w.doing.Store(&what)
		}
		switch k := w.rnd.IntN(32); {
		case w.reader:
			say("read")
			soon, cancel := context.WithTimeout(ask, readerPatience)
			err, wrote = disk.Read(soon, b), false
			cancel()
		case k < 13:
			say("write")
			err = disk.Write(ask, b, k == 0)
		case k == 13 && i%4 == 0: // one zero is like another: most registers do without
			say("zero")
			err = disk.Zero(ask, b, 1, block.ZeroFlags{NoHole: w.rnd.IntN(2) == 0})
		case k == 14:
			say("flush")
			err, wrote = disk.Flush(ask), false
		default:
			say("read")
			err, wrote = disk.Read(ask, b), false
		}
		w.doing.Store(nil)
		if err != nil {
			return
		}
		if wrote {
			w.g.lastWrite[w.az].Store(time.Now().UnixNano())
		}
		pause(ctx, time.Duration(2+w.rnd.IntN(8))*time.Millisecond)
	}
}

// application opens the group's disks again and again, as one that is restarted when it loses them.
func (l *load) application(ctx context.Context, g *group) {
	for ctx.Err() == nil {
		if g.idle.Load() {
			pause(ctx, redialAfter)
			continue
		}
		az := g.where()
		disks := make([]block.Device, 0, len(g.disks))
		var err error
		for _, d := range g.disks {
			var c *nbdclient.Client
			if c, err = l.open(ctx, d, az); err != nil {
				break
			}
			disks = append(disks, c)
		}
		if err == nil {
			l.session(ctx, g, az, disks)
		}
		for _, d := range disks {
			l.drop(d.(*nbdclient.Client))
		}
		pause(ctx, redialAfter)
	}
}

// session is one life of an application. It ends when a disk fails, or when the API says that the
// primary is elsewhere, or that it shall idle: requests that are held are given up then.
func (l *load) session(ctx context.Context, g *group, az string, disks []block.Device) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer close(over)
	defer cancel()
	helpers.Go(func() {
		for g.where() == az && !g.idle.Load() {
			select {
			case <-over:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
		for _, d := range disks {
			_ = d.(*nbdclient.Client).Close()
		}
	})
	var image *history.ImageError
	err := g.chains.Inspect(context.WithoutCancel(ctx), disks)
	if errors.As(err, &image) {
		g.lose(fmt.Errorf("the disks of group %d as opened in %s: %w", g.number, az, image))
	}
	if err != nil {
		return
	}
	l.r.tell.note("group %d: the disks were opened in %s and are a consistent cut", g.number, az)
	l.r.report.images.Add(1)
	helpers.Go(func() { l.bulk(ctx, g, disks) })
	slow := make([]block.Device, len(disks))
	for i, d := range disks {
		slow[i] = paced{d}
	}
	_ = g.chains.Run(ctx, slow) // a lost disk is why sessions end
}

// paced is a disk with a pause after each write, which bounds the load on a user's machine.
type paced struct{ block.Device }

func (p paced) WriteAt(ctx context.Context, b []byte, off int64, fua bool) error {
	err := p.Device.WriteAt(ctx, b, off, fua)
	pause(ctx, 3*time.Millisecond)
	return err
}

// bulk writes data that nobody reads but the synchronizations and the comparison of both sides.
func (l *load) bulk(ctx context.Context, g *group, disks []block.Device) {
	rnd := rand.New(rand.NewPCG(rand.Uint64(), 1))
	data := make([]byte, 256<<10)
	for i := 0; ctx.Err() == nil; i++ {
		n := rnd.IntN(len(data)/512) * 512
		off := bulkAt + rnd.Int64N(bulkBytes-int64(n))/512*512
		for j := 0; j+8 <= n; j += 8 {
			binary.LittleEndian.PutUint64(data[j:], rnd.Uint64())
		}
		d := rnd.IntN(len(disks))
		ask := context.WithoutCancel(ctx)
		var err error
		switch i % 16 {
		case 15:
			err = l.r.rec.Disk(g.disks[d].number, disks[d]).Flush(ask)
		case 7:
			err = disks[d].Trim(ask, off, int64(n), false)
		default:
			err = disks[d].WriteAt(ask, data[:n], off, false)
		}
		if err != nil {
			return
		}
		pause(ctx, 20*time.Millisecond)
	}
}

package whole

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
	"github.com/lockstep-dr/lockstep/protocol"
)

// leaseBound is how long a lease of a second can last by whatever clock, with the time to come from a read
// of the store to an answer.
const leaseBound = 1100 * time.Millisecond

// epoch is what is remembered of one.
type epoch struct {
	r        protocol.Record
	replaced time.Time // when the record had a newer one; zero: it has not
}

// forced is what is known of the last forced failover, and of what those before it left.
type forced struct {
	stopped uint64    // history: when the group was in sync last
	at      time.Time // of the last commit; zero: none
	lost    lockstep.AZ
	strict  bool
	images  []diverged
}

// diverged is what the side that lost a forced failover had on its disks.
type diverged struct {
	epoch lockstep.Epoch
	side  int
	im    image
	boots map[*host]lockstep.BootID
}

func sideOf(az lockstep.AZ) int {
	if az == "az2" {
		return 1
	}
	return 0
}

// noteEpoch remembers a record. Called with mu held.
func (w *World) noteEpoch(last, r protocol.Record) {
	if last.InSync && !r.InSync {
		w.forced.stopped = w.hist.begin()
	}
	if e := w.epochs[last.Epoch]; e != nil && r.Epoch != last.Epoch {
		e.replaced = time.Now()
	}
	w.epochs[r.Epoch] = &epoch{r: r}
}

// memberIn gives the pair's member of the record.
func (w *World) memberIn(r protocol.Record, pair int) (protocol.Member, bool) {
	i := slices.IndexFunc(r.Members, func(m protocol.Member) bool { return m.Pair == w.pairs[pair] })
	if i < 0 {
		return protocol.Member{}, false
	}
	return r.Members[i], true
}

// member reports whether the pair is in the group now.
func (w *World) member(pair int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.memberIn(w.record, pair)
	return ok
}

// inSyncOnce reports whether the pair was in sync with the group, and so has an image at the secondary.
func (w *World) inSyncOnce(r protocol.Record, pair int) bool {
	m, ok := w.memberIn(r, pair)
	return ok && m.InSyncEpoch == r.InSyncEpoch && !m.NoImage
}

// checkSizes: what the record announces, the files of both sides have (extend, DESIGN section 6; invariant 4).
func (w *World) checkSizes(r protocol.Record) {
	for _, m := range r.Members {
		for _, rep := range m.Replicas {
			f, err := rawFile(w.host(rep.Node).files(), rep.Volume)
			if err != nil {
				continue // its disk failed, or it is not made yet
			}
			size, err := f.Size()
			_ = f.Close()
			if err == nil && size < m.SizeBytes {
				w.fail("epoch %d announces %d bytes, and the file of %s at %s has %d", r.Epoch, m.SizeBytes, rep.Volume, rep.Node, size)
			}
		}
	}
}

// forcedOver judges a forced failover at the instant of its commit, and takes its image for the truth: it is a
// consistent cut, and has all that was acknowledged while the group was in sync (invariants 1 and 3). What it
// does not have may not be seen again, except in the divergence image.
func (w *World) forcedOver(last, r protocol.Record) {
	wanted := func(i int) bool { return w.inSyncOnce(last, i) }
	im, err := w.look(sideOf(r.Primary), wanted)
	w.mu.Lock()
	stopped := w.forced.stopped
	w.mu.Unlock()
	if err == nil && w.intact(last, r.Primary) {
		w.count("checked: image of a forced failover")
		err = w.hist.cut(im, stopped)
	}
	if err != nil {
		w.fail("forced failover at epoch %d: the image of %s: %v", last.Epoch, r.Primary, err)
		return
	}
	var d diverged
	if r.Fenced {
		d = diverged{epoch: last.Epoch, side: sideOf(r.Secondary), boots: map[*host]lockstep.BootID{}}
		if d.im, err = w.look(d.side, wanted); err != nil {
			d.im = nil
		}
		for _, h := range w.hosts {
			d.boots[h] = h.bootID()
		}
	}
	before := w.hist.lost
	w.hist.goBack(im, func(x *write) bool { return x.p.h.az == r.Primary })
	w.say("CHECK", "the forced failover of epoch %d gave up %d sectors of acknowledged writes", last.Epoch, w.hist.lost-before)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forced.at, w.forced.lost, w.forced.strict = time.Now(), r.Secondary, r.Strict
	if d.im != nil {
		w.forced.images = append(w.forced.images, d)
	}
}

// leaseOutlives: a primary that lost a forced failover under the policy strict, and was not asked, may serve by
// the store's lease until that ends; the new one serves later.
func (w *World) leaseOutlives(p *proc) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.forced
	return f.strict && f.lost == p.h.az && time.Since(f.at) < leaseBound
}

// checkServes judges an acknowledgement at the instant when it is given: not by a side that lost a forced
// failover (invariant 2), and under the policy strict only within the time of a lease of the store [F16].
func (w *World) checkServes(p *proc, x *write, before, after lockstep.Epoch) {
	if w.hist.isGone(x) && !w.leaseOutlives(p) {
		w.fail("%s acknowledged %s after it had lost a forced failover", p.h.id, x)
	}
	if before != after || after == 0 || !w.member(x.pair) {
		return
	}
	w.mu.Lock()
	e := w.epochs[after]
	if e == nil || !e.r.Strict || e.r.InSync || e.r.State != protocol.StateNormal {
		w.mu.Unlock()
		return
	}
	over := !e.replaced.IsZero() && time.Since(e.replaced) > leaseBound
	free, leased := w.mayServe(p.h.az, after)
	_, member := w.memberIn(e.r, x.pair) // outside of the group, before as after, it is a plain disk
	w.mu.Unlock()
	if !member {
		return
	}
	w.count("checked: acknowledgement under strict")
	if over && !free && !leased {
		w.fail("strict: %s acknowledged at epoch %d, which ended %s ago", p.h.id, after, time.Since(e.replaced))
	}
	if read := p.store.lastRead(); !free && time.Since(read) > leaseBound {
		w.fail("strict: %s acknowledged at epoch %d, %s after the last read of the store that was answered", p.h.id, after, time.Since(read))
	}
}

// mayServe: by a newer record the same side needs no lease (free), or has one that may still last (leased). Its
// process may act by that before it shows that it knows the epoch. Called with mu held.
func (w *World) mayServe(az lockstep.AZ, after lockstep.Epoch) (free, leased bool) {
	for n, e := range w.epochs {
		if n > after && e.r.Primary == az {
			free = free || !e.r.Strict
			leased = leased || e.replaced.IsZero() || time.Since(e.replaced) <= leaseBound
		}
	}
	return free, leased
}

// forceFailover does what a careful operator does: look at the preview, and quote it.
func (w *World) forceFailover() {
	var p control.FailoverPreview
	err := w.call(context.Background(), func(ctx context.Context, ctl *control.Controller) (err error) {
		p, err = ctl.PreviewFailover(ctx, caller, w.group)
		return err
	})
	if !w.answered("failover-preview", err) || p.Token == "" {
		return
	}
	for _, v := range p.Receipt.Volumes {
		if v.Image == "none" {
			return
		}
	}
	err = w.call(context.Background(), func(ctx context.Context, ctl *control.Controller) error {
		return ctl.ForceFailover(ctx, caller, w.group, p.Token)
	})
	w.answered("forced failover", err)
}

// deleteImage gives one of the divergence images up.
func (w *World) deleteImage(d *dice) {
	w.mu.Lock()
	images := w.forced.images
	w.mu.Unlock()
	if len(images) == 0 {
		return
	}
	epoch := pick(d, images).epoch
	w.ask("delete a divergence image", func(ctx context.Context, ctl *control.Controller) error {
		return ctl.DeleteDivergenceImage(ctx, caller, w.group, epoch)
	})
}

// sayOff confirms that the old primary's nodes are off, where they are, while a failover waits for them.
func (w *World) sayOff(r protocol.Record) {
	for _, id := range r.PrimaryNodes() {
		if w.host(id).running() == nil && r.Off[id] != r.Epoch {
			_ = w.state(control.StateNodeOff, id)
		}
	}
}

// checkDiverged compares the divergence images with what the disks of the side that lost had: all of it, and
// nothing else. One that a loss of power came before is left out.
func (w *World) checkDiverged() {
	w.mu.Lock()
	images := w.forced.images
	w.mu.Unlock()
	for _, d := range images {
		if slices.Contains(w.now().Discard, d.epoch) {
			continue
		}
		for i, ids := range w.vols {
			h := w.home(ids[d.side])
			if d.im[i] == nil || !w.member(i) || h.bootID() != d.boots[h] || w.wrecked()[h] != "" {
				continue
			}
			p := h.running()
			if p == nil {
				continue
			}
			v, err := p.volume(ids[d.side])
			if err != nil {
				continue
			}
			image, err := v.OpenImage(d.epoch)
			if err != nil {
				w.fail("the divergence image of epoch %d is not at %s: %v", d.epoch, h.id, err)
				continue
			}
			have := map[int]uint64{}
			err = w.hist.scan(i, func(b []byte, off int64) (int, error) {
				n := min(int64(len(b)), image.Size()-off)
				if n <= 0 {
					return 0, io.EOF
				}
				return int(n), image.ReadAt(context.Background(), b[:n], off)
			}, have)
			_ = image.Close()
			for s, v := range d.im[i] {
				if err == nil && have[s] != v {
					err = fmt.Errorf("sector %d holds %s, and the disk had %s", s, w.hist.named(have[s]), w.hist.named(v))
				}
			}
			w.count("checked: divergence image")
			if err != nil {
				w.fail("divergence image of epoch %d at %s, pair %d: %v", d.epoch, h.id, i, err)
			}
		}
	}
}

package replica

import (
	"context"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// setMode puts a mode in force: when it returns, no request is treated by an older one. l and le
// are the link and the lease of the modes that need a secondary.
func (v *Volume) setMode(m protocol.Mode, epoch lockstep.Epoch, l *link, le *lease, why string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	wasRefused := v.mode == protocol.ModeRefused
	rebound := v.link != l || v.epoch != epoch || !replicates(v.mode) || v.mode == protocol.ModeCopying && m != v.mode
	v.mode, v.why = m, why
	if m != protocol.ModeHeld { // held, answers to what was sent before may still count: drainRemote
		v.draining = false
		v.link, v.lease, v.epoch = l, le, epoch
	}
	if endsRepair(m) {
		v.dropUnrepaired()
	}
	v.gen++
	close(v.changed)
	v.changed = make(chan struct{})
	if m == protocol.ModeRefused && !wasRefused {
		close(v.closed)
	} else if m != protocol.ModeRefused && wasRefused {
		v.closed = make(chan struct{})
	}
	if v.todo != nil && m != protocol.ModeHeld && (v.todoEpoch != epoch || m == protocol.ModeTwoSided) {
		v.todo = nil
	}
	switch {
	case m == protocol.ModeOneSided:
		v.settleOneSided()
	case replicates(m):
		if rebound {
			v.resend()
		} else { // held in between: what was acknowledged meanwhile is due
			v.completeAll()
		}
	default:
		v.completeAll()
	}
}

func (v *Volume) completeAll() {
	for _, o := range append([]*op(nil), v.ops...) {
		v.complete(o)
	}
	v.answerSoon()
}

// answerSoon is answer for who holds mu.
func (v *Volume) answerSoon() {
	if len(v.answers) > 0 {
		go v.answer()
	}
}

// settleOneSided makes what was in flight dirty before it is acknowledged one-sided. A failure of
// the map fails the volume: an unmarked difference must not exist. A bit that was set before may be
// gone: an in-sync commit clears the map while writes of the copying are still in flight.
func (v *Volume) settleOneSided() {
	inFlight := append([]*op(nil), v.ops...)
	for _, o := range inFlight {
		o.dirty = false
		o.leaving() // it is looked at again after mu was given up: it must not stand for another write then
	}
	for _, o := range inFlight {
		if o.kind == opChunk || !o.submitted || o.over {
			continue
		}
		if !o.dirty {
			v.mu.Unlock()
			err := v.disk.MarkDirty(o.ext.Off, o.ext.Len)
			if err != nil {
				_ = v.broken(err)
			}
			v.mu.Lock()
			if err != nil {
				return
			}
			o.dirty = true
		}
		v.setTodo(o.ext)
		v.complete(o)
	}
	v.answerSoon()
}

// resend sends everything unacknowledged again, under the present epoch and link; older answers do
// not count any more.
func (v *Volume) resend() {
	clear(v.bySeq)
	for _, o := range v.ops {
		if o.kind == opChunk || !o.submitted {
			continue
		}
		o.acked, o.unsent = false, false
		if o.sentAt == 0 {
			o.sentAt = v.link.group.host.now()
		}
		o.seq = v.link.nextSeq()
		v.bySeq[o.seq] = o
		v.link.enqueue(v.frame(o), o.data)
	}
	v.link.kick()
}

// oldestUnacked is when the oldest write that waits for the secondary was sent first, those that may
// be slow dated later; 0: none. A link that breaks again and again must not make it younger.
func (v *Volume) oldestUnacked() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !replicates(v.mode) {
		return 0
	}
	var first time.Duration
	for _, o := range v.ops {
		if o.sentAt == 0 || o.acked || o.kind == opChunk {
			continue
		}
		at := o.sentAt
		if o.flags&wire.FlagFUA != 0 && v.link != nil {
			at += slowFactor * v.link.group.host.cfg.TripAfter
		}
		if first == 0 || at < first {
			first = at
		}
	}
	return first
}

// drainRemote says whether acknowledgements still count while the volume is held.
func (v *Volume) drainRemote(on bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.draining = on && v.mode == protocol.ModeHeld
	if v.draining {
		v.completeAll()
	}
}

// quiesce waits until no local I/O is under way; remote: also until nothing is in flight, at most
// until the deadline. It reports whether nothing is in flight.
func (v *Volume) quiesce(ctx context.Context, remote bool, deadline time.Time) bool {
	timeout := time.NewTimer(time.Until(deadline))
	defer timeout.Stop()
	canceled := ctx.Done()
	v.mu.Lock()
	defer v.mu.Unlock()
	expired := !remote
	for {
		inFlight := 0
		for _, o := range v.ops {
			if o.kind != opChunk && o.submitted {
				inFlight++
			}
		}
		if v.submitted == 0 && (inFlight == 0 || expired) {
			return inFlight == 0
		}
		if v.settled == nil {
			v.settled = make(chan struct{})
		}
		settled := v.settled
		v.mu.Unlock()
		select {
		case <-settled:
		case <-timeout.C:
			expired = true
		case <-canceled:
			expired, canceled = true, nil // local I/O ends by itself, and is waited for
		}
		v.mu.Lock()
	}
}

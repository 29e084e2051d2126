package nbd

import (
	"github.com/lockstep-dr/lockstep/block"
)

// What a device can do without waiting, the reader does itself, without a worker and its wake-up: it
// begins writes, whose ends are told from elsewhere, and reads what is in memory. Requests that came
// together are one batch, which ends before the reader waits for anything.

// inline begins or does a request in the reader, and reports whether it could.
func (t *transmission) inline(q *request) bool {
	if t.batch == nil || q.errno != 0 {
		return false
	}
	switch {
	case q.cmd == CmdWrite && q.flags&CmdFlagFUA == 0 && q.length > 0:
		q.t = t
		t.begun.Add(1)
		if !t.batch.Write(q.data, int64(q.off), q) {
			t.begun.Done()
			return false
		}
		t.batched = true
	case q.cmd == CmdRead && q.length > 0:
		if !t.batch.Read(q.readBuffer(), int64(q.off)) {
			return false
		}
		t.gotData(q)
		t.finish(q, nil)
		t.out.queueUp(q)
		t.batched = true
	default:
		return false
	}
	return true
}

// endBatch carries out what inline has begun. The reader calls it before anything that may block.
func (t *transmission) endBatch() {
	if !t.batched {
		return
	}
	t.batched = false
	t.batch.Run()
	t.out.Flush()
}

// Done implements block.Completion.
func (q *request) Done(err error) block.Flusher {
	t := q.t
	if err == nil {
		q.simple(0)
	}
	t.finish(q, err)
	t.out.queueUp(q)
	t.begun.Done()
	return &t.out
}

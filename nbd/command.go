package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

const (
	// cacheStepBytes is how much a CACHE request reads at a time, and holds in memory.
	cacheStepBytes = 1 << 20
	// statusRangeBytes and statusMaxExtents bound what one BLOCK_STATUS asks of the device and
	// sends. The protocol lets a server answer for less than was asked; the client asks on.
	statusRangeBytes = 1 << 30
	statusMaxExtents = 4096
	// statusCostBytes is what a BLOCK_STATUS counts against the bytes in flight, since the device
	// makes its list in memory.
	statusCostBytes = 1 << 20
)

// allowedFlags are the flags that each command may carry. FUA is allowed everywhere (NBD spec,
// "Command flags"): clients are known to set it on reads. FAST_ZERO is not advertised.
var allowedFlags = [...]uint16{
	CmdRead:        CmdFlagFUA | CmdFlagDF,
	CmdWrite:       CmdFlagFUA,
	CmdDisc:        CmdFlagFUA,
	CmdFlush:       CmdFlagFUA,
	CmdTrim:        CmdFlagFUA,
	CmdCache:       CmdFlagFUA,
	CmdWriteZeroes: CmdFlagFUA | CmdFlagNoHole,
	CmdBlockStatus: CmdFlagFUA | CmdFlagReqOne,
}

// check finds what is wrong with a request by its header alone, and sets errno and text.
func (t *transmission) check(q *request) {
	switch errno, text := t.verdict(q); {
	case errno != 0:
		q.errno, q.text = errno, text
	case t.refusing.Load():
		q.errno, q.text = ESHUTDOWN, "the export is being closed"
	}
}

func (t *transmission) verdict(q *request) (Errno, string) {
	if int(q.cmd) >= len(allowedFlags) {
		return EINVAL, "unknown command"
	}
	if q.flags&^allowedFlags[q.cmd] != 0 || q.flags&CmdFlagDF != 0 && !t.sel.structured {
		return EINVAL, "flag not allowed for this command"
	}
	switch q.cmd {
	case CmdWrite, CmdTrim, CmdWriteZeroes:
		if t.sel.export.ReadOnly {
			return EPERM, "the export is read-only"
		}
	case CmdFlush:
		if q.off != 0 || q.length != 0 {
			return EINVAL, "a flush has neither offset nor length"
		}
		return 0, ""
	case CmdBlockStatus:
		if !t.sel.allocation {
			return EINVAL, "base:allocation was not negotiated"
		}
		if q.length == 0 {
			return EINVAL, "block status of no bytes"
		}
	}
	if (q.cmd == CmdRead || q.cmd == CmdWrite) && int64(q.length) > int64(t.limits.RequestBytes) {
		return EINVAL, "request larger than the announced maximum"
	}
	if q.off > math.MaxInt64 || block.CheckRange(int64(q.off), int64(q.length), t.sel.export.Device.Size()) != nil {
		if q.cmd == CmdWrite || q.cmd == CmdWriteZeroes {
			return ENOSPC, "beyond the end of the export"
		}
		return EINVAL, "beyond the end of the export"
	}
	return 0, ""
}

// memoryCost is the number of bytes that serving the request holds in memory.
func (q *request) memoryCost() int64 {
	if q.errno != 0 {
		return 0
	}
	switch q.cmd {
	case CmdRead, CmdWrite:
		return bufferBytes(int(q.length))
	case CmdBlockStatus:
		return statusCostBytes
	default:
		return 0 // a CACHE takes what it needs step by step
	}
}

// execute calls the device and makes the reply.
func (t *transmission) execute(q *request) {
	var err error
	if q.errno == 0 {
		err = t.command(q)
	}
	t.finish(q, err)
}

// finish makes the reply of a request that failed, and counts every one.
func (t *transmission) finish(q *request, err error) {
	errno, text := q.errno, q.text
	if err != nil {
		errno, text = errnoOf(q.cmd, err), err.Error()
		if t.ctx.Err() == nil && !errors.Is(err, errGivenUp) { // else it was given up, which is no fault of the device
			t.deviceError.Do(func() {
				t.log.Warn("request failed; further ones of this connection are only counted",
					"op", commandNames[q.metricCmd()], "offset", q.off, "length", q.length, "errno", errno, "error", err)
			})
		}
	}
	if errno != 0 {
		q.failed(t.sel.structured, errno, text)
	}
	if t.metrics != nil {
		bytes := 0
		if errno == 0 && (q.cmd == CmdRead || q.cmd == CmdWrite) {
			bytes = int(q.length)
		}
		t.metrics.End(q.metricCmd(), bytes, errno, time.Since(q.began))
	}
}

// command carries out a request that passed check and makes its reply unless it fails.
func (t *transmission) command(q *request) error {
	dev, off, length := t.sel.export.Device, int64(q.off), int64(q.length)
	fua := q.flags&CmdFlagFUA != 0
	switch q.cmd {
	case CmdRead:
		return t.read(q)
	case CmdWrite:
		if err := dev.WriteAt(t.ctx, q.data, off, fua); err != nil {
			return err
		}
	case CmdFlush:
		if err := dev.Flush(t.ctx); err != nil {
			return err
		}
	case CmdTrim:
		if err := dev.Trim(t.ctx, off, length, fua); err != nil {
			return err
		}
	case CmdWriteZeroes:
		flags := block.ZeroFlags{NoHole: q.flags&CmdFlagNoHole != 0, FUA: fua}
		if err := dev.Zero(t.ctx, off, length, flags); err != nil {
			return err
		}
	case CmdCache:
		if err := t.cache(off, length); err != nil {
			return err
		}
	case CmdBlockStatus:
		return t.blockStatus(q)
	default:
		return fmt.Errorf("command %d passed the check", q.cmd)
	}
	q.simple(0)
	return nil
}

// read answers NBD_CMD_READ.
func (t *transmission) read(q *request) error {
	if err := t.sel.export.Device.ReadAt(t.ctx, q.readBuffer(), int64(q.off)); err != nil {
		return err
	}
	t.gotData(q)
	return nil
}

// readBuffer is the memory for the data of a READ, the same each time.
func (q *request) readBuffer() []byte {
	if q.length == 0 {
		return nil
	}
	if q.buf == nil {
		q.buf = getBuffer(int(q.length))
	}
	return q.buf.b[:q.length]
}

// gotData makes the reply to a READ whose data is in its buffer: one chunk, so DF is always honoured.
func (t *transmission) gotData(q *request) {
	body := q.readBuffer()
	switch {
	case !t.sel.structured:
		q.simple(0)
		q.body = body
	case q.length == 0:
		q.chunk(ReplyTypeNone, 0, nil) // a data chunk must hold at least one byte
	default:
		q.chunk(ReplyTypeOffsetData, 8, body)
		binary.BigEndian.PutUint64(q.head[StructuredReplyBytes:], q.off)
	}
}

// cache reads the range for nothing, which brings it into the page cache. Its only use is speed, so it
// gives way: a connection has one CACHE under way at a time, an export one step, and between steps
// whoever waits for the budget comes first. It is given up as soon as nothing more is to be read
// from the client, which covers its loss and a closing export.
func (t *transmission) cache(off, length int64) error {
	if err := t.turn(t.caching); err != nil {
		return err
	}
	defer func() { <-t.caching }()
	for length > 0 {
		if err := t.turn(t.sel.share.caching); err != nil {
			return err
		}
		n := min(length, cacheStepBytes)
		err := t.cacheStep(off, n)
		<-t.sel.share.caching
		if err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

// turn waits for the place in a channel of capacity 1. It fails when the connection ends.
func (t *transmission) turn(place chan struct{}) error {
	select {
	case place <- struct{}{}:
	case <-t.readEnd:
		return errGivenUp
	case <-t.ctx.Done():
		return errGivenUp
	}
	select {
	case <-t.readEnd:
	default:
		if !t.refusing.Load() {
			return nil
		}
	}
	<-place
	return errGivenUp
}

// errGivenUp is the answer to a CACHE that ended early; nobody waits for it as a rule.
var errGivenUp = fmt.Errorf("given up, the connection ends: %w", context.Canceled)

// cacheStep reads what is allocated of a range of at most cacheStepBytes.
func (t *transmission) cacheStep(off, length int64) error {
	dev := t.sel.export.Device
	list, err := dev.Extents(t.ctx, off, length)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(e block.ExtentState) bool { return !e.Hole }) {
		return nil
	}
	if err := t.srv.budget.wait(t.ctx, t.sel.share, cacheStepBytes); err != nil {
		return err
	}
	defer t.srv.budget.release(t.sel.share, cacheStepBytes)
	buf := getBuffer(cacheStepBytes)
	defer putBuffer(buf)
	for _, e := range list {
		n := min(e.Len, length)
		if !e.Hole {
			if err := dev.ReadAt(t.ctx, buf.b[:n], off); err != nil {
				return err
			}
		}
		off, length = off+n, length-n
	}
	return nil
}

// blockStatus answers NBD_CMD_BLOCK_STATUS for base:allocation.
func (t *transmission) blockStatus(q *request) error {
	list, err := t.sel.export.Device.Extents(t.ctx, int64(q.off), min(int64(q.length), statusRangeBytes))
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("device gave no extents for [%d,+%d)", q.off, q.length)
	}
	most := statusMaxExtents
	if q.flags&CmdFlagReqOne != 0 {
		most = 1
	}
	list = list[:min(len(list), most)]
	q.buf = getBuffer(8 * len(list))
	body := q.buf.b[:0]
	for _, e := range list {
		if e.Len <= 0 || e.Len > int64(q.length) {
			return fmt.Errorf("device gave an extent of %d bytes for [%d,+%d)", e.Len, q.off, q.length)
		}
		var state uint32
		if e.Hole {
			state |= StateHole
		}
		if e.Zero {
			state |= StateZero
		}
		body = binary.BigEndian.AppendUint32(body, uint32(e.Len))
		body = binary.BigEndian.AppendUint32(body, state)
	}
	q.chunk(ReplyTypeBlockStatus, 4, body)
	binary.BigEndian.PutUint32(q.head[StructuredReplyBytes:], allocationContextID)
	return nil
}

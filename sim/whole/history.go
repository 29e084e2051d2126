package whole

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// The history knows what guests asked for and what they were told, and nothing of the code under test.
// It judges what is read, and what disks hold, by the sector of 512 bytes: every sector of a write
// carries the write's number.

const sectorBytes = 512

// write is one request that changes sectors.
type write struct {
	id     uint64 // 0: the empty disk before all writes
	pair   int
	first  int // sectors
	n      int
	zero   bool // its sectors read as zeroes
	issued uint64
	acked  uint64 // 0: not, so far
	ended  uint64 // 0: under way. Then nobody waits for it any more: acknowledged, failed, or its process died
	p      *proc
	who    string
	gone   bool // it was under way at a side that lost a forced failover: never to be acknowledged
}

// covers reports whether the write changes that sector.
func (x *write) covers(s int) bool { return s >= x.first && s < x.first+x.n }

// shows is what its sectors hold: its number, or 0.
func (x *write) shows() uint64 {
	if x.zero {
		return 0
	}
	return x.id
}

// settledBefore: nothing that happens at t or later can be this write taking effect.
func (x *write) settledBefore(t uint64) bool { return x.ended != 0 && x.ended < t }

func (x *write) String() string {
	if x.id == 0 {
		return "the empty disk"
	}
	kind := "write"
	if x.zero {
		kind = "zeroes"
	}
	state := "under way"
	switch {
	case x.acked != 0:
		state = fmt.Sprintf("acknowledged at #%d", x.acked)
	case x.ended != 0:
		state = fmt.Sprintf("given up at #%d", x.ended)
	}
	return fmt.Sprintf("%s %d of %s (pair %d, sectors %d to %d, issued at #%d, %s)", kind, x.id, x.who, x.pair, x.first, x.first+x.n-1, x.issued, state)
}

// sector is what one sector of a pair may hold, as seen by whoever is served.
type sector struct {
	may  []*write        // one of these is its content
	past []aged          // was in may, and could come back with a loss of what was not flushed
	gone map[uint64]bool // given up by a forced failover: never to be seen again
}

type aged struct {
	x  *write
	at uint64 // when it was ruled out
}

// history is the book of one group.
type history struct {
	mu      sync.Mutex
	now     uint64 // counts events
	next    uint64 // write ids
	sectors []map[int]*sector
	writes  map[uint64]*write
	bySec   []map[int][]*write // all writes by pair and sector, in order of issue
	flushed []uint64           // by pair: begin of the last flush that was acknowledged
	excused []uint64           // by pair: when a loss of unflushed writes was last allowed
	zeroth  *write
	acks    int
	reads   int
	flushes int
	unknown int
	lost    int // acknowledged, and given up by forced failovers
}

func newHistory(pairs int) *history {
	h := &history{writes: map[uint64]*write{}, flushed: make([]uint64, pairs), excused: make([]uint64, pairs), zeroth: &write{zero: true, ended: 1, acked: 1}}
	for range pairs {
		h.sectors, h.bySec = append(h.sectors, map[int]*sector{}), append(h.bySec, map[int][]*write{})
	}
	h.now = 1
	return h
}

func (h *history) tick() uint64 {
	h.now++
	return h.now
}

func (h *history) sector(pair, s int) *sector {
	c := h.sectors[pair][s]
	if c == nil {
		c = &sector{may: []*write{h.zeroth}}
		h.sectors[pair][s] = c
	}
	return c
}

// issue notes a request before it is made and gives its content.
func (h *history) issue(pair, first, n int, zero bool, p *proc, who string) (*write, []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	x := &write{id: h.next, pair: pair, first: first, n: n, zero: zero, issued: h.tick(), p: p, who: who}
	h.writes[x.id] = x
	data := make([]byte, n*sectorBytes)
	for i := range n {
		c := h.sector(pair, first+i)
		c.may = append(c.may, x)
		h.bySec[pair][first+i] = append(h.bySec[pair][first+i], x)
		for at := i * sectorBytes; at < (i+1)*sectorBytes; at += 16 {
			binary.LittleEndian.PutUint64(data[at:], x.id)
			binary.LittleEndian.PutUint64(data[at+8:], uint64(first+i)<<16|uint64(pair))
		}
	}
	return x, data
}

// ack notes an acknowledgement: what was settled before the request began is overwritten.
func (h *history) ack(x *write) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if x.ended != 0 || x.gone {
		return
	}
	x.acked = h.tick()
	x.ended = x.acked
	h.acks++
	for i := range x.n {
		h.ruleOut(h.sector(x.pair, x.first+i), func(y *write) bool { return y != x && y.settledBefore(x.issued) })
	}
}

// giveUp notes that nobody will hear what became of the request.
func (h *history) giveUp(x *write) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if x.ended == 0 {
		x.ended = h.tick()
		h.unknown++
	}
}

// isGone reports whether the write was under way at a side that lost a forced failover.
func (h *history) isGone(x *write) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return x.gone
}

// begin is the time now, for cut.
func (h *history) begin() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tick()
}

// goBack takes the image that a forced failover chose for the truth. What it does not have is gone, and must
// not be seen again; stays says which requests under way may still take effect.
func (h *history) goBack(im image, stays func(*write) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tick()
	for pair := range im {
		for s, v := range im[pair] {
			c := h.sector(pair, s)
			truth := h.zeroth
			for _, x := range h.bySec[pair][s] {
				if x.id == v && v != 0 || v == 0 && x.zero && x.acked != 0 {
					truth = x
				}
			}
			if truth.acked == 0 {
				truth.acked = h.now
				truth.ended = h.now
			}
			c.may, c.past = []*write{truth}, nil
			var kept []*write
			for _, x := range h.bySec[pair][s] {
				switch {
				case x == truth:
					kept = append(kept, x)
				case x.ended == 0 && stays(x):
					c.may = append(c.may, x)
					kept = append(kept, x)
				case x.acked < truth.issued && x.acked != 0:
					// overwritten in the image
				case x.zero && v == 0:
				default:
					if x.acked != 0 {
						h.lost++
					}
					x.gone = x.ended == 0
					if c.gone == nil {
						c.gone = map[uint64]bool{}
					}
					c.gone[x.id] = true
				}
			}
			h.bySec[pair][s] = kept
		}
	}
}

func (h *history) ruleOut(c *sector, out func(*write) bool) {
	kept := c.may[:0:0]
	for _, y := range c.may {
		if out(y) {
			c.past = append(c.past, aged{y, h.now})
		} else {
			kept = append(kept, y)
		}
	}
	c.may = kept
}

// reading is a read under way.
type reading struct {
	pair, first, n int
	began          uint64
	may            [][]*write // by sector, at the begin
}

func (h *history) beginRead(pair, first, n int) *reading {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &reading{pair: pair, first: first, n: n, began: h.tick()}
	for i := range n {
		r.may = append(r.may, slices.Clone(h.sector(pair, first+i).may))
	}
	return r
}

// endRead judges what was read: it must be a value that some order of the requests allows, and from now on
// nothing older.
func (h *history) endRead(r *reading, data []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tick()
	h.reads++
	for i := range r.n {
		c := h.sector(r.pair, r.first+i)
		v, err := h.decode(data[i*sectorBytes:(i+1)*sectorBytes], r.pair, r.first+i)
		if err != nil {
			return err
		}
		ok := false
		for _, y := range append(slices.Clone(r.may[i]), c.may...) {
			ok = ok || y.shows() == v
		}
		for _, y := range h.bySec[r.pair][r.first+i] { // written, and written over, while the read was under way
			ok = ok || y.shows() == v && y.issued > r.began
		}
		if !ok {
			return fmt.Errorf("a read of sector %d of pair %d, begun at #%d, gave %s; allowed was %v", r.first+i, r.pair, r.began, h.named(v), c.may)
		}
		h.ruleOut(c, func(y *write) bool { return y.shows() != v && y.settledBefore(r.began) })
	}
	return nil
}

func (h *history) named(v uint64) string {
	if v == 0 {
		return "zeroes"
	}
	return h.writes[v].String()
}

// decode gives the number of the write that a sector holds, 0 for zeroes.
func (h *history) decode(b []byte, pair, s int) (uint64, error) {
	v := binary.LittleEndian.Uint64(b)
	for at := 0; at < sectorBytes; at += 16 {
		id, place := binary.LittleEndian.Uint64(b[at:]), binary.LittleEndian.Uint64(b[at+8:])
		if id != v || v == 0 && place != 0 || v != 0 && place != uint64(s)<<16|uint64(pair) {
			return 0, fmt.Errorf("sector %d of pair %d holds what nobody wrote: %x", s, pair, b[at:at+16])
		}
	}
	if x := h.writes[v]; v != 0 && (x == nil || x.zero || x.pair != pair || !x.covers(s)) {
		return 0, fmt.Errorf("sector %d of pair %d holds the number %d, which was not written there", s, pair, v)
	}
	return v, nil
}

// beginFlush and endFlush: what was acknowledged before an acknowledged flush began is durable.
func (h *history) beginFlush() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tick()
}

func (h *history) endFlush(pair int, began uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flushes++
	h.flushed[pair] = max(h.flushed[pair], began)
	for _, c := range h.sectors[pair] {
		c.past = slices.DeleteFunc(c.past, func(a aged) bool { return a.at < h.flushed[pair] })
	}
}

// excuse allows a pair to have lost what was not flushed: the only disk that had to have it lost power, or
// both did.
func (h *history) excuse(pair int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.excused[pair] = h.tick()
	for _, c := range h.sectors[pair] {
		for _, a := range c.past {
			if !slices.Contains(c.may, a.x) {
				c.may = append(c.may, a.x)
			}
		}
		c.past = nil
	}
}

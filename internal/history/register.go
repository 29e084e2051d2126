package history

import (
	"cmp"
	"slices"
)

// register is the history of one block since its last cut. A cut is a moment at which no request
// was under way, after one whose outcome says what the block held: everything before it was judged
// and is forgotten, but for the writes that may still take effect. This is exact, but for zeroes:
// one zero is like another, so an unanswered one excuses any later read of zeroes.
type register struct {
	states []Value // what it may have held at the last cut: one value, or several after a power loss
	open   []*op   // writes without an answer that nobody has seen the effect of
	ops    []*op   // the others since the last cut

	// since holds the writes that the block may have as its durable content.
	since []op
}

func (g *register) begin(k kind, v Value, now int64) *op {
	o := &op{kind: k, value: v, call: now, asking: true}
	g.ops = append(g.ops, o)
	return o
}

func (g *register) answered(o *op, now int64) {
	o.asking, o.ret = false, now
	if o.kind == opWrite {
		g.since = append(g.since, *o)
	}
}

// leaveOpen notes that nobody knows what became of a write.
func (g *register) leaveOpen(o *op) {
	g.drop(o)
	o.asking, o.ret = false, forever
	g.open = append(g.open, o)
	g.since = append(g.since, *o)
}

// drop forgets a request that says nothing: a read that failed.
func (g *register) drop(o *op) {
	if i := slices.Index(g.ops, o); i >= 0 {
		g.ops = slices.Delete(g.ops, i, i+1)
	}
}

// flushed notes a flush that was called then and has returned: what was overwritten before it is
// nothing that a power loss can bring back.
func (g *register) flushed(called int64) {
	var newest int64 = -2 // the latest call of a write that was acknowledged before the flush
	for _, w := range g.since {
		if w.ret < called {
			newest = max(newest, w.call)
		}
	}
	g.since = slices.DeleteFunc(g.since, func(w op) bool { return w.ret < newest })
}

// durable notes that a write with FUA was acknowledged: what was answered before it was asked for is
// overwritten for good.
func (g *register) durable(o *op) {
	g.since = slices.DeleteFunc(g.since, func(w op) bool { return w.ret < o.call })
}

func (g *register) powerLost(now int64) {
	g.states = nil
	for i := range g.since {
		w := &g.since[i]
		if !slices.Contains(g.states, w.value) {
			g.states = append(g.states, w.value)
		}
		// None is open any more: what was under way died with the hosts. And none is newer than
		// another: only a write from now on overwrites them.
		w.call, w.ret = now, now
	}
	g.open, g.ops = nil, nil
}

// segment is a piece of a register's history between two cuts.
type segment struct {
	place
	states []Value
	ops    []op
	last   bool // it goes on: there was no cut after it
}

// segmentOps is how many requests a segment has at least, unless it is the last one. More would
// only make the search slower.
const segmentOps = 48

// segments takes the history up to the last cut out of the register, and shows what follows.
func (g *register) segments(p place) []segment {
	slices.SortStableFunc(g.ops, func(a, b *op) int { return cmp.Compare(a.call, b.call) })
	var list []segment
	begin, end := 0, int64(-1) // of this segment, and the latest answer so far
	for i, o := range g.ops {
		if o.asking {
			break // it may be answered at any time from now: nothing after its call is over
		}
		alone := end < o.call && (i+1 == len(g.ops) || o.ret < g.ops[i+1].call)
		end = max(end, o.ret)
		if !alone || i+1-begin < segmentOps && i+1 != len(g.ops) {
			continue
		}
		list = append(list, segment{p, g.states, g.take(g.ops[begin:i+1], o.ret, true), false})
		g.states, begin = []Value{o.value}, i+1
	}
	g.ops = slices.Clone(g.ops[begin:])
	if len(g.ops) > 0 {
		list = append(list, segment{p, g.states, g.take(g.ops, forever, false), true})
	}
	return list
}

// take copies requests, and adds those of the open writes whose value one of them has read. With
// consume they have taken effect and cannot do so again. Writes that nobody has seen need not be
// there: an order with them is one without.
func (g *register) take(ops []*op, until int64, consume bool) []op {
	seen := map[Value]bool{}
	for _, o := range ops {
		if o.kind == opRead && !o.asking {
			seen[o.value] = true
		}
	}
	var list []op
	zeroed := forever // when the first zero without an answer was asked for
	g.open = slices.DeleteFunc(g.open, func(o *op) bool {
		if o.value == 0 {
			zeroed = min(zeroed, o.call)
			return false
		}
		if !seen[o.value] || o.call > until {
			return false
		}
		list = append(list, *o)
		return consume
	})
	for _, o := range ops {
		switch {
		case o.asking && o.kind == opRead, o.asking && o.value != 0 && !seen[o.value]:
			continue
		case o.asking && o.value == 0:
			zeroed = min(zeroed, o.call)
			continue
		case o.kind == opRead && o.value == 0 && o.ret >= zeroed:
			continue
		}
		c := *o
		if c.asking {
			c.ret = forever
		}
		list = append(list, c)
	}
	return list
}

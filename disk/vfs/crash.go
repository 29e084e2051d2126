package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// CrashClone returns the disk as a power loss right now could leave it; m itself is unchanged.
// Every unsynced change of a file's contents is kept with probability keep, independently and in
// any combination; one in four of the writes that are kept is torn, that is only some of its
// 512-byte sectors arrive. A directory keeps a random prefix of its unsynced changes, for its
// journal has an order. The clone has no hook, no locks, and a new mount id.
func (m *Mem) CrashClone(rng *rand.Rand, keep float64) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Mem{total: m.total, reflink: m.reflink, noPunch: m.noPunch, mount: m.mount + 1}
	k := crasher{rng: rng, keep: keep, seen: map[*node]*node{}}
	c.root = k.clone(m.root)
	for _, n := range k.seen {
		c.used += int64(len(n.pages)) * memPage
	}
	return c
}

type crasher struct {
	rng  *rand.Rand
	keep float64
	seen map[*node]*node
}

func (k *crasher) clone(n *node) *node {
	if c := k.seen[n]; c != nil {
		c.links++
		return c
	}
	c := k.file(n)
	if n.dir {
		c = k.dir(n)
	}
	c.links = 1
	k.seen[n] = c
	return c
}

func (k *crasher) dir(n *node) *node {
	c := newDir()
	entries := map[string]*node{}
	for name, e := range n.durable {
		entries[name] = e
	}
	ops := 0
	for ops < len(n.log) && k.rng.Float64() < k.keep {
		ops++
	}
	for _, op := range n.log[:ops] {
		op.apply(entries)
	}
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	slices.Sort(names) // one seed, one result
	for _, name := range names {
		e := k.clone(entries[name])
		c.entries[name], c.durable[name] = e, e
	}
	return c
}

func (k *crasher) file(n *node) *node {
	if n.dir {
		return nil
	}
	c := &node{stable: maps.Clone(n.stable), stSize: n.stSize}
	for _, ch := range n.pending {
		if k.rng.Float64() >= k.keep {
			continue
		}
		sectors := uint8(0xff)
		if k.rng.IntN(4) == 0 {
			sectors = uint8(k.rng.UintN(256))
		}
		ch.apply(c, sectors)
	}
	c.stSize = cut(c.stable, 1<<62, c.stSize) // a page may have arrived without the size
	c.size, c.pages = c.stSize, maps.Clone(c.stable)
	return c
}

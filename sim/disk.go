package sim

import (
	"errors"

	"github.com/lockstep-dr/lockstep"
)

// wid names a write; it grows with the order of issue. Zero is the content of a new volume.
type wid int32

var errVolume = errors.New("volume failed")

// image is the content of one volume.
type image [blocksPerVolume]wid

// point is a secondary's recovery point.
type point struct {
	epoch   lockstep.Epoch
	content image
	// flushOnly: made after a reboot out of sync, so it promises no more than the last flush.
	flushOnly bool
}

// vol is one copy of a pair on one node: what survives the process, and what survives the host.
type vol struct {
	w    *world
	n    *node
	pair int
	id   lockstep.VolumeID

	cache, disk   image // page cache and what is durable
	ver           [blocksPerVolume]int64
	diskVer       [blocksPerVolume]int64
	writes        int64
	intent        [regionsPerVolume]bool // durable when set
	dirty         [blocksPerVolume]bool
	dirtyDurable  [blocksPerVolume]bool
	point         *point
	images        map[lockstep.Epoch]image // divergence images
	failed        bool
	applyNotUntil int64 // secondary: frames are applied in order
}

func (v *vol) write(block int, id wid) {
	v.writes++
	v.cache[block], v.ver[block] = id, v.writes
}

// snapshot and settle are the two ends of an fdatasync: what was there when it began is durable
// when it ends.
func (v *vol) snapshot() (image, [blocksPerVolume]int64, [blocksPerVolume]bool) {
	return v.cache, v.ver, v.dirty
}

func (v *vol) settle(content image, ver [blocksPerVolume]int64, dirty [blocksPerVolume]bool) {
	for b := range content {
		if ver[b] > v.diskVer[b] {
			v.disk[b], v.diskVer[b] = content[b], ver[b]
		}
	}
	v.dirtyDurable = dirty
}

// lose is the end of a host's page cache: any subset of what was not flushed survives.
func (v *vol) lose() {
	for b := range v.cache {
		if v.ver[b] > v.diskVer[b] && v.w.chance(35) {
			v.disk[b], v.diskVer[b] = v.cache[b], v.ver[b]
		}
		v.cache[b], v.ver[b] = v.disk[b], v.diskVer[b]
		if v.dirty[b] != v.dirtyDurable[b] && v.w.chance(50) {
			v.dirty[b] = v.dirtyDurable[b]
		}
		// After a change of boot id the fine map counts for nothing under a coarse mark.
		if v.intent[b/blocksPerRegion] {
			v.dirty[b] = true
		}
		v.dirtyDurable[b] = v.dirty[b]
	}
}

func (v *vol) setDirtyDurably(block int) { v.dirty[block], v.dirtyDurable[block] = true, true }

func (v *vol) clearDirty() {
	v.dirty, v.dirtyDurable = [blocksPerVolume]bool{}, [blocksPerVolume]bool{}
}

// node is a host with its pool, and at most one process on it.
type node struct {
	w        *world
	id       lockstep.NodeID
	az       lockstep.AZ
	instance string
	ranAs    int // boot of the last life of the process
	boot     int
	starts   uint64
	vols     []*vol
	file     savedFile
	proc     *process

	pausedUntil   int64
	storeCutUntil int64
}

func (n *node) bootID() lockstep.BootID { return bootName(n.id, n.boot) }

// kill ends the process. What it had handed to the kernel may or may not happen.
func (n *node) kill() {
	if n.proc == nil {
		return
	}
	n.w.say("%s: the process dies", n.id)
	p := n.proc
	n.proc = nil
	p.dead = true
	for _, pending := range p.kernel {
		if n.w.chance(50) {
			pending.do()
		}
	}
	p.kernel = nil
	p.dropClients()
	for _, c := range p.conns() {
		c.abandon(p)
	}
}

// crash is a reboot's first half: process and page cache are gone.
func (n *node) crash() {
	n.kill()
	n.boot++
	n.pausedUntil = 0
	for _, v := range n.vols {
		v.lose()
	}
	n.w.say("%s: the host goes down; its next boot id is %s", n.id, n.bootID())
	n.w.truth.hostLost(n.w, n)
}

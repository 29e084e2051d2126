package whole

import (
	"fmt"
	"strings"
	"time"
)

// fault is a kind of disaster: it begins, lasts, and ends.
type fault struct {
	name string
	do   func(w *World, d *dice)
}

// faults are all kinds. A seed uses a few of them, so that rare combinations have their turn.
var faults = []fault{
	{"cut", func(w *World, d *dice) { // both ways or one way, between two nodes or two zones
		a, b := pick(d, w.hosts[:len(w.hosts)/2]), pick(d, w.hosts[len(w.hosts)/2:])
		hosts := [2][]*host{{a}, {b}}
		if d.chance(0.5) {
			hosts = [2][]*host{w.hosts[:len(w.hosts)/2], w.hosts[len(w.hosts)/2:]}
		}
		how := d.below(3)
		for on := range both {
			w.say("net", "%s between %s and %s, %s", onOff("cut", on), names(hosts[0]), names(hosts[1]), []string{"both ways", "there only", "back only"}[how])
			for _, a := range hosts[0] {
				for _, b := range hosts[1] {
					if how != 2 {
						w.net.setCut(way{string(a.id), string(b.id)}, on)
					}
					if how != 1 {
						w.net.setCut(way{string(b.id), string(a.id)}, on)
					}
				}
			}
			w.lasts(d, on, 200*time.Millisecond, 12*time.Second)
		}
	}},
	{"zone cut off", func(w *World, d *dice) { // from the other zone and from the store
		side := d.below(2)
		mine, other := w.hosts[:len(w.hosts)/2], w.hosts[len(w.hosts)/2:]
		if side == 1 {
			mine, other = other, mine
		}
		for on := range both {
			w.say("net", "%s: zone of %s from everything", onOff("cut", on), names(mine))
			for _, a := range mine {
				w.setOutage(string(a.id), on)
				for _, b := range other {
					w.net.setCut(way{string(a.id), string(b.id)}, on)
					w.net.setCut(way{string(b.id), string(a.id)}, on)
				}
			}
			w.lasts(d, on, time.Second, 20*time.Second)
		}
	}},
	{"slow line", func(w *World, d *dice) {
		a, b := pick(d, w.hosts), pick(d, w.hosts)
		more := d.between(10*time.Millisecond, 1500*time.Millisecond)
		w.say("net", "the way from %s to %s takes %s more", a.id, b.id, more)
		w.net.setSlow(way{string(a.id), string(b.id)}, more)
		w.lasts(d, true, time.Second, 10*time.Second)
		w.net.setSlow(way{string(a.id), string(b.id)}, 0)
	}},
	{"connections break", func(w *World, d *dice) {
		for range 1 + d.below(4) {
			a, b := pick(d, w.hosts[:len(w.hosts)/2]), pick(d, w.hosts[len(w.hosts)/2:])
			w.say("net", "connections between %s and %s break", a.id, b.id)
			w.net.reset(string(a.id), string(b.id))
			w.lasts(d, true, 0, 2*time.Second)
		}
	}},
	{"changed bytes", func(w *World, d *dice) {
		a, b := pick(d, w.hosts[:len(w.hosts)/2]), pick(d, w.hosts[len(w.hosts)/2:])
		if d.chance(0.5) {
			a, b = b, a
		}
		w.say("net", "a bit changes on the way from %s to %s", a.id, b.id)
		w.net.setFlip(way{string(a.id), string(b.id)})
	}},
	{"kill", func(w *World, d *dice) {
		for _, h := range some(d, w.hosts) {
			h.kill()
			w.again(d, h, (*host).start)
		}
	}},
	{"pause", func(w *World, d *dice) {
		h := pick(d, w.hosts)
		h.pause(true)
		w.lasts(d, true, 100*time.Millisecond, 8*time.Second)
		h.pause(false)
	}},
	{"power", func(w *World, d *dice) {
		for _, h := range some(d, w.hosts) {
			h.powerOff([]float64{0, 0.5, 0.9, 1}[d.below(4)])
			w.again(d, h, (*host).powerOn)
		}
	}},
	{"zone loses power", func(w *World, d *dice) {
		hosts := w.hosts[:len(w.hosts)/2]
		if d.chance(0.5) {
			hosts = w.hosts[len(w.hosts)/2:]
		}
		for _, h := range hosts {
			h.powerOff([]float64{0, 0.5, 0.9}[d.below(3)])
			w.again(d, h, (*host).powerOn)
		}
	}},
	{"store away", func(w *World, d *dice) {
		who := ""
		if d.chance(0.6) {
			who = string(pick(d, w.hosts).id)
		}
		w.say("store", "out of reach for %s", everybody(who))
		w.setOutage(who, true)
		w.lasts(d, true, 300*time.Millisecond, 15*time.Second)
		w.setOutage(who, false)
		w.say("store", "in reach again for %s", everybody(who))
	}},
	{"controller dies", func(w *World, d *dice) {
		b := pick(d, w.brains)
		if d.chance(0.3) {
			b.kill()
			w.lasts(d, true, 100*time.Millisecond, 8*time.Second)
			b.start()
			return
		}
		b.crashAtWrite(1+d.below(6), d.between(100*time.Millisecond, 8*time.Second))
	}},
	{"controller stands still", func(w *World, d *dice) {
		b := pick(d, w.brains)
		b.pause(true)
		w.lasts(d, true, time.Second, 12*time.Second)
		b.pause(false)
	}},
	{"slow disk", func(w *World, d *dice) {
		h, most := pick(d, w.hosts), d.between(20*time.Millisecond, 2*time.Second)
		w.say(string(h.id), "flushes take up to %s", most)
		h.setDisk(func(f *diskFaults) { f.slow = most })
		w.lasts(d, true, time.Second, 12*time.Second)
		h.setDisk(func(f *diskFaults) { f.slow = 0 })
	}},
	{"disk full", func(w *World, d *dice) {
		h := pick(d, w.hosts)
		fs := h.files()
		total, free, err := fs.Space("/")
		if err != nil {
			return
		}
		w.say(string(h.id), "the disk is full")
		fs.SetTotal(total - free + int64(d.below(8))*4096)
		w.lasts(d, true, time.Second, 10*time.Second)
		h.files().SetTotal(1 << 40)
		w.say(string(h.id), "the disk has room again")
	}},
	{"disk fails", func(w *World, d *dice) {
		if len(w.wrecked()) > 0 {
			return // one disk for good is what a deployment of two copies survives
		}
		h := pick(d, w.hosts)
		op := pick(d, []string{"raw:fdatasync", "raw:write", "raw:read", "meta:write", "meta:fdatasync", "group:write"})
		w.ruin(h, op+" fails")
		h.setDisk(func(f *diskFaults) { f.bad[op] = true })
		w.lasts(d, true, time.Second, 20*time.Second)
		h.setDisk(func(f *diskFaults) { clear(f.bad) })
	}},
	{"misdirected write", func(w *World, d *dice) {
		if len(w.wrecked()) > 0 {
			return
		}
		h := pick(d, w.hosts)
		h.kill()
		h.misdirect(d)
		w.again(d, h, (*host).start)
	}},
}

// both is true and then false.
func both(yield func(bool) bool) { _ = yield(true) && yield(false) }

func onOff(what string, on bool) string {
	if on {
		return what
	}
	return what + " is over"
}

func names(hosts []*host) string {
	var ids []string
	for _, h := range hosts {
		ids = append(ids, string(h.id))
	}
	return strings.Join(ids, "+")
}

func everybody(who string) string {
	if who == "" {
		return "everybody"
	}
	return who
}

// some is one host, or sometimes more.
func some(d *dice, hosts []*host) []*host {
	first := d.below(len(hosts))
	out := []*host{hosts[first]}
	for i, h := range hosts {
		if i != first && d.chance(0.2) {
			out = append(out, h)
		}
	}
	return out
}

// lasts waits while a fault is on; the end of the disasters cuts it short.
func (w *World) lasts(d *dice, on bool, lo, hi time.Duration) {
	if !on {
		return
	}
	for end := time.Now().Add(d.between(lo, hi)); time.Now().Before(end) && !w.calm.Load(); {
		time.Sleep(min(100*time.Millisecond, time.Until(end)))
	}
}

// again brings a host back after a while.
func (w *World) again(d *dice, h *host, back func(*host)) {
	w.tasks.Go(func() {
		w.lasts(d, true, 50*time.Millisecond, 15*time.Second)
		back(h)
	})
}

func (h *host) setDisk(f func(*diskFaults)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.disk)
}

func (w *World) ruin(h *host, why string) {
	w.say(string(h.id), "disk: %s", why)
	w.mu.Lock()
	w.ruined[h] = why
	w.mu.Unlock()
}

func (w *World) wrecked() map[*host]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ruined
}

// misdirect puts the bytes of one page of a metadata file in the place of another one, as a disk that
// writes to the wrong address does. The process must be down.
func (h *host) misdirect(d *dice) {
	fs := h.files()
	var files []string
	for _, dir := range []string{pool, pool + "/groups"} {
		list, err := fs.ReadDir("sim", dir)
		if err != nil {
			continue
		}
		for _, name := range list {
			if strings.HasSuffix(name, ".meta") || strings.HasSuffix(name, ".state") || strings.HasSuffix(name, ".undo") {
				files = append(files, dir+"/"+name)
			}
		}
	}
	if len(files) == 0 {
		return
	}
	name := pick(d, files)
	f, err := fs.OpenFile("sim", name, 0)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }() // in memory
	size, err := f.Size()
	if err != nil || size == 0 {
		return
	}
	const page = 4096
	pages := int((size + page - 1) / page)
	from, to := d.below(pages), d.below(pages)
	b := make([]byte, page)
	n, _ := f.ReadAt(b, int64(from)*page) // the last page is a short one
	if from == to {
		b[d.below(max(1, n))] ^= 1 << d.below(8) // it came back with a changed bit
	}
	if _, err := f.WriteAt(b[:n], int64(to)*page); err != nil {
		return
	}
	h.w.ruin(h, fmt.Sprintf("page %d of %s was written to page %d", from, name, to))
}

// disasters lets faults happen until the time is over. A seed has a few kinds of them.
func (w *World) disasters(d *dice, kinds []fault, how int, until time.Time) {
	for range how {
		w.tasks.Go(func() {
			for time.Now().Before(until) && !w.calm.Load() {
				w.lasts(d, true, 100*time.Millisecond, 8*time.Second)
				if w.calm.Load() {
					return
				}
				f := pick(d, kinds)
				w.count("fault: " + f.name)
				f.do(w, d)
			}
		})
	}
}

// choose takes some kinds of faults.
func choose(d *dice) []fault {
	var kinds []fault
	for _, f := range faults {
		if d.chance(0.35) {
			kinds = append(kinds, f)
		}
	}
	if len(kinds) == 0 {
		kinds = append(kinds, pick(d, faults))
	}
	return kinds
}

// heal ends every fault and brings everything up.
func (w *World) heal() {
	w.calm.Store(true)
	w.say("CHECK", "the disasters are over")
	w.net.heal()
	w.storeMu.Lock()
	for who := range w.storeOut {
		w.storeOut[who] = false
	}
	w.storeMu.Unlock()
	w.setOutage("", false)
	w.loseAnswers = 0
	for _, h := range w.hosts {
		h.setDisk(func(f *diskFaults) { f.slow = 0; clear(f.bad) })
		h.files().SetTotal(1 << 40)
		h.pause(false)
	}
	for _, b := range w.brains {
		b.pause(false)
	}
	w.lasts(w.dice, true, 0, 0)
	time.Sleep(time.Second) // faults under way end
	for _, h := range w.hosts {
		h.powerOn()
		h.start()
	}
	for _, b := range w.brains {
		b.start()
	}
}

package torture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/protocol"
)

// plan is what a round does: faults, each with its end, and calls of the API.
type plan struct {
	name  string
	aimed func(ctx context.Context) error // instead of steps
	steps []step
	texts []string
	// again strikes while the groups are being synchronized; nil: nothing does.
	again *secondBlow

	missed bool // the window that it was aimed at

	mu    sync.Mutex // guards wrong
	wrong []error
}

// secondBlow begins so long after a group was seen copying.
type secondBlow struct {
	blow
	name        string
	after, last time.Duration
}

type step struct {
	at time.Duration
	do func(ctx context.Context) error
}

func (p *plan) String() string { return strings.Join(p.texts, "; ") }

// judge is about the answers of the API.
func (p *plan) judge() *Failure {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.wrong) > 0 {
		return wrong(errors.Join(p.wrong...))
	}
	return nil
}

// fault is one kind of it. blow draws what is hurt.
type fault struct {
	name   string
	weight int
	blow   func(r *run, rnd *rand.Rand) blow
}

// blow is a fault with its end.
type blow struct {
	text string
	// hurts are the zones that cannot take over meanwhile.
	hurts      []string
	begin, end func() error
}

// aNode draws a node.
func (r *run) aNode(rnd *rand.Rand) dev.Member { return r.rig.nodes[rnd.IntN(len(r.rig.nodes))] }

func aZone(rnd *rand.Rand) string { return zones[rnd.IntN(len(zones))] }

// faults are all kinds, as users meet them.
var faults = []fault{
	{"kill a node", 3, func(r *run, rnd *rand.Rand) blow { return r.killed(false, r.aNode(rnd)) }},
	{"kill a node, new boot id", 2, func(r *run, rnd *rand.Rand) blow { return r.killed(true, r.aNode(rnd)) }},
	{"kill a zone", 3, func(r *run, rnd *rand.Rand) blow { return r.killed(false, r.rig.site(aZone(rnd))...) }},
	{"pause a node", 3, func(r *run, rnd *rand.Rand) blow { return r.paused(r.aNode(rnd)) }},
	{"pause a zone", 2, func(r *run, rnd *rand.Rand) blow { return r.paused(r.rig.site(aZone(rnd))...) }},
	{"cut a link both ways", 3, func(r *run, rnd *rand.Rand) blow { return r.cut(rnd, true, true) }},
	{"cut a link one way", 4, func(r *run, rnd *rand.Rand) blow {
		there := rnd.IntN(2) == 0
		return r.cut(rnd, there, !there)
	}},
	{"reset a link", 1, func(r *run, rnd *rand.Rand) blow {
		m := r.aNode(rnd)
		reset := func() error { r.rig.links[m].Reset(); return nil }
		return blow{"reset the links to " + m.String(), nil, reset, reset}
	}},
	{"slow a link down", 1, func(r *run, rnd *rand.Rand) blow {
		m, rate := r.aNode(rnd), (256+rnd.IntN(1024))<<10
		limit := func(rate int) func() error { return func() error { r.rig.links[m].Limit(rate); return nil } }
		return blow{fmt.Sprintf("slow the links to %s down to %d KiB/s", m, rate>>10), nil, limit(rate), limit(0)}
	}},
	{"cut a node from the store", 3, func(r *run, rnd *rand.Rand) blow {
		m := r.aNode(rnd)
		cut := func(cut bool) func() error { return func() error { r.rig.cutStore(m, cut); return nil } }
		return blow{"cut " + m.String() + " from the store", []string{m.AZ}, cut(true), cut(false)}
	}},
	{"isolate a zone", 4, func(r *run, rnd *rand.Rand) blow {
		az := aZone(rnd)
		isolate := func(cut bool) func() error { return func() error { return r.rig.isolate(az, cut) } }
		return blow{"isolate " + az, []string{az}, isolate(true), isolate(false)}
	}},
	{"pause the controller", 2, func(r *run, _ *rand.Rand) blow { return r.paused(dev.Controller) }},
	{"kill the controller", 2, func(r *run, _ *rand.Rand) blow { return r.killed(false, dev.Controller) }},
	{"pause a member of the store", 1, func(r *run, rnd *rand.Rand) blow { return r.paused(ofStore(rnd, 1)...) }},
	{"kill a member of the store", 1, func(r *run, rnd *rand.Rand) blow { return r.killed(false, ofStore(rnd, 1)...) }},
	{"pause the store's quorum", 2, func(r *run, rnd *rand.Rand) blow { return r.paused(ofStore(rnd, storeQuorum)...) }},
	{"kill the store's quorum", 2, func(r *run, rnd *rand.Rand) blow { return r.killed(false, ofStore(rnd, storeQuorum)...) }},
}

// ofStore draws members of the store.
func ofStore(rnd *rand.Rand, count int) (list []dev.Member) {
	for _, i := range rnd.Perm(storeMembers)[:count] {
		list = append(list, dev.Member{AZ: storeZone, N: i + 1})
	}
	return list
}

func names(members []dev.Member) string {
	var list []string
	for _, m := range members {
		if isStore(m) {
			list = append(list, fmt.Sprintf("store-%d", m.N))
		} else {
			list = append(list, m.String())
		}
	}
	return strings.Join(list, " and ")
}

// zonesOf are those that cannot take over without these members.
func zonesOf(members []dev.Member) []string {
	if !members[0].IsNode() || isStore(members[0]) {
		return zones
	}
	return []string{members[0].AZ}
}

func (r *run) killed(reboot bool, members ...dev.Member) blow {
	text := "kill " + names(members)
	if reboot {
		text += ", new boot id"
	}
	return blow{text, zonesOf(members), func() error { return r.rig.kill(reboot, members...) }, func() error { return r.rig.start(members...) }}
}

func (r *run) paused(members ...dev.Member) blow {
	return blow{"pause " + names(members), zonesOf(members), func() error { return r.rig.pause(members...) }, func() error { return r.rig.resume(members...) }}
}

func (r *run) cut(rnd *rand.Rand, there, back bool) blow {
	m, reset := r.aNode(rnd), rnd.IntN(2) == 0
	link, text := r.rig.links[m], "cut the links to "+m.String()
	switch {
	case !back:
		text += ", requests only"
	case !there:
		text += ", answers only"
	}
	if reset {
		text += ", with a reset"
	}
	return blow{text, nil, func() error {
		link.Cut(there, back)
		if reset {
			link.Reset()
		}
		return nil
	}, func() error { link.Join(); return nil }}
}

// Times of a round.
const (
	beginsWithin = 2 * time.Second
	lastsMost    = 7 * time.Second
	lastsLeast   = 200 * time.Millisecond
	callsWithin  = 5 * time.Second
)

// draw makes the plan of a round.
func (r *run) draw(rnd *rand.Rand) *plan {
	p := &plan{name: RandomPlan}
	count := []int{1, 1, 1, 2, 2, 2, 3}[rnd.IntN(7)]
	for range count {
		f := drawFault(rnd)
		b := f.blow(r, rnd)
		at := time.Duration(rnd.Int64N(int64(beginsWithin)))
		until := at + lastsLeast + time.Duration(rnd.Int64N(int64(lastsMost-lastsLeast)))
		p.texts = append(p.texts, fmt.Sprintf("%s (%.1f to %.1f s)", b.text, at.Seconds(), until.Seconds()))
		p.steps = append(p.steps, step{at, func(context.Context) error {
			r.tell.note("%s", b.text)
			r.report.fault(f.name)
			r.rig.hurt(b.hurts, 1)
			return b.begin()
		}}, step{until, func(context.Context) error {
			r.tell.note("end of: %s", b.text)
			r.rig.hurt(b.hurts, -1)
			return b.end()
		}})
	}
	for range []int{0, 1, 1, 1, 2, 2}[rnd.IntN(6)] {
		g := r.groups[rnd.IntN(len(r.groups))]
		action := []client.Action{
			client.ActionFailover, client.ActionFailover, client.ActionFailover, client.ActionReverse, client.ActionReverse, client.ActionStop, client.ActionSync,
		}[rnd.IntN(7)]
		at := time.Duration(rnd.Int64N(int64(callsWithin)))
		p.texts = append(p.texts, fmt.Sprintf("%s group %d (%.1f s)", callNames[action], g.number, at.Seconds()))
		p.steps = append(p.steps, step{at, func(ctx context.Context) error {
			return r.call(ctx, g, action)
		}})
	}
	if rnd.IntN(2) == 0 {
		f := drawFault(rnd)
		p.again = &secondBlow{
			blow: f.blow(r, rnd), name: f.name,
			after: time.Duration(rnd.Int64N(int64(time.Second))), last: lastsLeast + time.Duration(rnd.Int64N(int64(lastsMost/2))),
		}
		p.texts = append(p.texts, fmt.Sprintf("while copying: %s (%.1f to %.1f s)", p.again.text, p.again.after.Seconds(), (p.again.after+p.again.last).Seconds()))
	}
	slices.SortStableFunc(p.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	return p
}

func drawFault(rnd *rand.Rand) fault {
	sum := 0
	for _, f := range faults {
		sum += f.weight
	}
	n := rnd.IntN(sum)
	for _, f := range faults {
		if n -= f.weight; n < 0 {
			return f
		}
	}
	panic("the weights have another sum")
}

// carryOut does the steps when their time has come; calls of the API go on beside it and are waited
// for. The end of ctx leaves out the rest.
func (r *run) carryOut(ctx, work context.Context, p *plan) {
	if p.aimed != nil {
		r.carryOutAimed(ctx, work, p)
		return
	}
	var calls sync.WaitGroup
	began := time.Now()
	for _, s := range p.steps {
		if pause(ctx, time.Until(began.Add(s.at))); ctx.Err() != nil {
			r.tell.note("interrupted")
			break
		}
		calls.Go(func() {
			if err := s.do(work); err != nil {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.wrong = append(p.wrong, err)
			}
		})
	}
	calls.Wait()
}

// copyingWithin bounds the wait for a group to be copying: it may be in sync already.
const copyingWithin = 3 * time.Second

// strikeAgain begins the synchronization of what is not active, and breaks something in it.
func (r *run) strikeAgain(ctx context.Context, p *plan) {
	_ = poll(ctx, copyingWithin, "a group is copying", func(ctx context.Context) error {
		for _, g := range r.groups {
			have, err := r.rig.c.Group(ctx, g.id)
			if err != nil {
				return err
			}
			switch {
			case have.ReplicationStatus == "copying":
				return nil
			case have.ReplicationStatus != "active" && have.Status != "failovering" && have.Status != "reversing":
				err := r.rig.c.Act(ctx, g.id, client.ActionSync)
				r.tell.note("synchronize group %d: %v", g.number, err)
			}
		}
		return errors.New("none is")
	}) // if none comes to it, the blow meets groups that are active
	pause(ctx, p.again.after)
	r.tell.note("while copying: %s", p.again.text)
	r.report.fault(p.again.name)
	if err := p.again.begin(); err != nil {
		p.mu.Lock()
		p.wrong = append(p.wrong, err)
		p.mu.Unlock()
	}
	pause(ctx, p.again.last)
}

var callNames = map[client.Action]string{
	client.ActionFailover: "fail over", client.ActionReverse: "switch over", client.ActionStop: "pause", client.ActionSync: "synchronize",
}

// callPatience is how long an answer is waited for. A pause is answered when it was carried out.
const (
	callPatience = 30 * time.Second
	// callAgainWithin bounds how long a failover is called for again where there is no answer.
	callAgainWithin = 6 * time.Second
)

// call asks for an action, and times a failover. Refusals are answers, too.
func (r *run) call(ctx context.Context, g *group, action client.Action) error {
	name := callNames[action]
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	to := ""
	if have, err := r.rig.c.Group(ctx, g.id); err == nil {
		to = otherZone(have.PriorityStation)
	}
	hurt, blows := r.rig.hurts(to)
	began := time.Now()
	err := r.rig.c.Act(ctx, g.id, action)
	for unanswered(err) && action == client.ActionFailover && time.Since(began) < callAgainWithin {
		r.tell.note("%s group %d: %v; again", name, g.number, err)
		pause(ctx, 200*time.Millisecond) // people and scripts would
		err = r.rig.c.Act(ctx, g.id, action)
	}
	r.tell.note("%s group %d: %v", name, g.number, err)
	switch {
	case err == nil:
		r.report.call(name, "done")
	case client.IsConflict(err):
		r.report.call(name, "refused")
	case unanswered(err):
		// Without a fault of the store, too: on a busy machine it may lose its leader by itself.
		r.report.call(name, "unanswered")
	default:
		return fmt.Errorf("%s group %d: an answer that is not documented: %w", name, g.number, err)
	}
	if err == nil && action == client.ActionFailover && to != "" {
		r.timeFailover(ctx, g, to, began, !hurt, blows)
	}
	return nil
}

// unanswered tells an answer from none, and from that of an API that is without its store.
func unanswered(err error) bool {
	var refusal *client.Error
	return errors.As(err, &refusal) && refusal.Status == http.StatusServiceUnavailable ||
		errors.Is(err, client.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded)
}

// timeFailover waits for the first write that is acknowledged in the zone that takes over.
func (r *run) timeFailover(ctx context.Context, g *group, to string, began time.Time, unhurt bool, blows int) {
	for asked := began; began.UnixNano() > g.lastWrite[to].Load(); {
		if pause(ctx, time.Millisecond); ctx.Err() != nil {
			return // under the faults of this round it came to no end
		}
		if time.Since(asked) < 500*time.Millisecond {
			continue
		}
		asked = time.Now()
		// By the record, which the answer to the call comes after; what the API shows may be older.
		if have, err := r.record(ctx, g); err == nil && string(have.Primary) != to && have.State == protocol.StateNormal {
			r.tell.note("group %d: the failover was backed out of: %s", g.number, have.Describe())
			return
		}
	}
	took := time.Since(began)
	_, later := r.rig.hurts(to)
	alone := unhurt && later == blows // nothing but the old primary was hurt
	r.tell.note("group %d: the first write in %s was acknowledged %s after the call; %s alone was hurt: %t", g.number, to, took.Round(time.Millisecond), otherZone(to), alone)
	r.report.failover(took, alone)
}

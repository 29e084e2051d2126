package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// aimedPlan is a round that brings the deployment into the window in which a rule of the protocol
// matters, which faults drawn at random meet too seldom. Each step waits for what the store says, not
// for a time. The load, and what is judged after it, are those of every round.
type aimedPlan struct {
	name string
	// script draws what may vary, and gives the steps with what they do in words.
	script func(a *aim, rnd *rand.Rand) (text string, steps func(ctx context.Context) error)
}

// RandomPlan is the name of the rounds whose faults are drawn at random.
const RandomPlan = "random"

// PlanNames lists the plans of rounds.
func PlanNames() []string {
	names := []string{RandomPlan}
	for _, p := range aimedPlans {
		names = append(names, p.name)
	}
	return names
}

// checkPlans refuses names that no plan has.
func checkPlans(wanted []string) error {
	for _, name := range wanted {
		if !slices.Contains(PlanNames(), name) {
			return fmt.Errorf("%w: there is no plan %q; there are %s", ErrUsage, name, strings.Join(PlanNames(), ", "))
		}
	}
	return nil
}

// planOf chooses the plan of a round: every other one is aimed, and these take turns in an order that
// follows from the seed. wanted bounds the choice; empty: all.
func planOf(seed uint64, n int, wanted []string) string {
	var names []string
	for _, p := range aimedPlans {
		if len(wanted) == 0 || slices.Contains(wanted, p.name) {
			names = append(names, p.name)
		}
	}
	turn := n - 1
	if len(wanted) == 0 || slices.Contains(wanted, RandomPlan) {
		if len(names) == 0 || n%2 == 0 {
			return RandomPlan
		}
		turn /= 2
	}
	order := rand.New(rand.NewPCG(seed, uint64(turn/len(names))<<32)).Perm(len(names))
	return names[order[turn%len(names)]]
}

// drawAimed makes the plan of a round from an aimed one.
func (r *run) drawAimed(name string, rnd *rand.Rand) *plan {
	i := slices.IndexFunc(aimedPlans, func(p aimedPlan) bool { return p.name == name })
	a := &aim{run: r, g: r.groups[rnd.IntN(len(r.groups))]}
	text, steps := aimedPlans[i].script(a, rnd)
	return &plan{name: name, texts: []string{fmt.Sprintf("aimed, %s, at group %d: %s", name, a.g.number, text)}, aimed: func(ctx context.Context) error {
		if err := a.where(ctx); err != nil {
			return err
		}
		defer a.wg.Wait()
		return steps(ctx)
	}}
}

// missedError is why a round did not come into the window it was aimed at. It is no failure: on a
// busy machine a group may trip by itself.
type missedError struct{ err error }

func (e *missedError) Error() string { return "the window was missed: " + e.err.Error() }

func missed(err error) error {
	if err == nil {
		return nil
	}
	return &missedError{err}
}

// aim is what the steps of an aimed plan have to work with.
type aim struct {
	*run
	g  *group
	wg sync.WaitGroup // of what runs beside the steps

	primary, secondary string // zones, at the beginning of the steps
}

// where finds out which zone is the primary of the group, which must be in sync.
func (a *aim) where(ctx context.Context) error {
	return missed(poll(ctx, 10*time.Second, fmt.Sprintf("group %d is in sync", a.g.number), func(ctx context.Context) error {
		r, err := a.record(ctx, a.g)
		if err != nil {
			return err
		}
		if r.State != protocol.StateNormal || !r.InSync {
			return errors.New(r.Describe())
		}
		a.primary, a.secondary = string(r.Primary), string(r.Secondary)
		return nil
	}))
}

// at gives the nodes of a zone.
func (a *aim) at(az string) []dev.Member {
	return slices.DeleteFunc(slices.Clone(a.rig.nodes), func(m dev.Member) bool { return m.AZ != az })
}

// note writes what is done into the story, and counts it as a fault if it is one.
func (a *aim) note(format string, args ...any) { a.tell.note("aimed: "+format, args...) }

// record reads a group's record from the store, past all API.
func (r *run) record(ctx context.Context, g *group) (protocol.Record, error) {
	have, _, err := store.GetT[protocol.Record](ctx, r.rig.direct, store.KeyRecord(lockstep.GroupID(g.id)))
	return have, err
}

// until waits for a state of the record.
func (a *aim) until(ctx context.Context, within time.Duration, what string, ok func(protocol.Record) bool) (r protocol.Record, err error) {
	return r, missed(poll(ctx, within, what, func(ctx context.Context) error {
		if r, err = a.record(ctx, a.g); err != nil {
			return err
		}
		if !ok(r) {
			return errors.New(r.Describe())
		}
		return nil
	}))
}

// allReported waits until every primary node of the group has answered that it is two-sided at the
// copying epoch.
func (a *aim) allReported(ctx context.Context, within time.Duration, epoch lockstep.Epoch) error {
	return missed(poll(ctx, within, fmt.Sprintf("every primary node is two-sided at epoch %d", epoch), func(ctx context.Context) error {
		r, err := a.record(ctx, a.g)
		if err != nil {
			return err
		}
		if r.Epoch != epoch {
			return fmt.Errorf("it went on: %s", r.Describe())
		}
		for _, node := range r.PrimaryNodes() {
			have, _, err := store.GetT[protocol.Answer](ctx, a.rig.direct, store.KeyAnswer(r.Group, node))
			if err != nil {
				return err
			}
			if have.Epoch != epoch || have.Step != protocol.StepTwoSided {
				return fmt.Errorf("node %s answered %q at epoch %d", node, have.Step, have.Epoch)
			}
		}
		return nil
	}))
}

// fault counts a fault and says which zones cannot take over because of it.
func (a *aim) fault(kind string, hurts ...string) {
	a.note("%s", kind)
	a.report.fault("aimed: " + kind)
	a.rig.hurt(hurts, 1)
}

// links cuts the links to the nodes of a zone one way or both, with a reset of what is open or without.
func (a *aim) links(to string, there, back, reset bool) {
	for _, m := range a.at(to) {
		a.rig.links[m].Cut(there, back)
		if reset {
			a.rig.links[m].Reset()
		}
	}
}

func (a *aim) limit(to string, rate int) {
	for _, m := range a.at(to) {
		a.rig.links[m].Limit(rate)
	}
}

func (a *aim) cutStore(az string, cut bool) {
	for _, m := range a.at(az) {
		a.rig.cutStore(m, cut)
	}
}

// isolate cuts the nodes of a zone from the other zone and from the store. Its member of the store
// goes on: without an election the failover is as quick as it can be.
func (a *aim) isolate(az string, reset bool) {
	a.fault("isolate the nodes of the primary", az)
	a.cutStore(az, true)
	a.links(zones[0], true, true, reset)
	a.links(zones[1], true, true, reset)
}

// failOverWithin bounds how often a failover is called for again: without the member of the store that
// led it, nodes may count as dead for some seconds, and then the call is refused.
const failOverWithin = 20 * time.Second

// failOver calls for the failover and waits until the other zone acknowledged a write, or for long
// enough. That it comes to no end under these faults is for the end of the round to judge.
func (a *aim) failOver(ctx context.Context) error {
	var undocumented error
	err := poll(ctx, failOverWithin, "the failover is committed", func(ctx context.Context) error {
		r, err := a.record(ctx, a.g)
		switch {
		case err != nil:
			return err
		case string(r.Primary) == a.secondary:
			return nil
		case r.State == protocol.StateNormal && !r.InSync:
			return errors.New(r.Describe())
		case r.State == protocol.StateNormal:
			if undocumented = a.call(ctx, a.g, client.ActionFailover); undocumented != nil {
				return nil
			}
			pause(ctx, 200*time.Millisecond)
		}
		return errors.New(r.Describe())
	})
	return errors.Join(undocumented, missed(err))
}

// act calls for something that must be done for the plan to go on.
func (a *aim) act(ctx context.Context, action client.Action) error {
	err := a.rig.c.Act(ctx, a.g.id, action)
	a.note("%s: %v", callNames[action], err)
	switch {
	case err == nil:
		a.report.call(callNames[action], "done")
		return nil
	case client.IsConflict(err):
		a.report.call(callNames[action], "refused")
	case unanswered(err):
		a.report.call(callNames[action], "unanswered")
	default:
		return fmt.Errorf("%s group %d: an answer that is not documented: %w", callNames[action], a.g.number, err)
	}
	return missed(err)
}

// outOfSync pauses the replication for long enough that much is written on one side only, and leaves
// the group copying over slow links.
func (a *aim) outOfSync(ctx context.Context, rate int) (protocol.Record, error) {
	if err := a.act(ctx, client.ActionStop); err != nil {
		return protocol.Record{}, err
	}
	if r, err := a.until(ctx, 10*time.Second, "the group is paused", func(r protocol.Record) bool { return r.State == protocol.StateNormal && !r.InSync }); err != nil {
		return r, err
	}
	a.burst(ctx, a.primary, 300*time.Millisecond)
	a.wg.Wait()
	a.limit(a.secondary, rate)
	if err := a.act(ctx, client.ActionSync); err != nil {
		return protocol.Record{}, err
	}
	return a.until(ctx, 10*time.Second, "the group is copying", func(r protocol.Record) bool { return r.State == protocol.StateCopying })
}

// carryOutAimed does the steps of an aimed plan, and is interrupted between two waits by the end of
// ctx. A window that was missed is counted, and no failure.
func (r *run) carryOutAimed(ctx, work context.Context, p *plan) {
	steps, cancel := context.WithCancel(work)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	err := p.aimed(steps)
	if m := (*missedError)(nil); errors.As(err, &m) || ctx.Err() != nil {
		r.tell.note("aimed: %v", err)
		p.missed = true
		return
	}
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wrong = append(p.wrong, err)
	}
}

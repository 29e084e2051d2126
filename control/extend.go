package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// Steps of an extend. The record's ExtendBytes is set by the transaction that creates the
// operation, so that no copying starts in between; one that runs goes on, and may come in sync
// before the announced size changes, which it does last.
const (
	stepGrowSecondary = "grow-secondary" // ask the secondary's nodes
	stepWaitSecondary = "wait-secondary" // until their files and maps have grown
	stepGrowPrimary   = "grow-primary"
	stepWaitPrimary   = "wait-primary"
	stepAnnounce      = "announce" // the record takes the new sizes, at a new epoch
	stepAdopt         = "adopt"    // until the nodes serve them
	stepUndo          = "undo"     // gave up: the old sizes stay
)

// argPair prefixes the argument "<old bytes> <new bytes>" of each pair.
const argPair = "pair/"

// growth is one pair's part of an extend.
type growth struct{ old, new int64 }

func growths(op store.Operation) map[lockstep.PairID]growth {
	m := map[lockstep.PairID]growth{}
	for key, value := range op.Args {
		pair, ok := strings.CutPrefix(key, argPair)
		if !ok {
			continue
		}
		a, b, _ := strings.Cut(value, " ")
		have, errA := strconv.ParseInt(a, 10, 64)
		want, errB := strconv.ParseInt(b, 10, 64)
		if errA == nil && errB == nil {
			m[lockstep.PairID(pair)] = growth{have, want}
		}
	}
	return m
}

// extendGroup grows both volumes of each named pair, all or nothing, and answers when done. A
// retry waits for the operation that the first try started.
func (c *Controller) extendGroup(ctx context.Context, caller Caller, id lockstep.GroupID, ext []Extend) error {
	if len(ext) == 0 {
		return badRequest("", "replications is empty; extend needs at least one pair")
	}
	pairs := make([]lockstep.PairID, 0, len(ext))
	for _, e := range ext {
		pairs = append(pairs, e.Pair)
	}
	if err := checkPairList("replications", pairs); err != nil {
		return err
	}
	opID := ""
	err := c.update(ctx, nil, func(t *tx) error {
		opID = ""
		x, err := t.begin(caller, id)
		if err != nil {
			return err
		}
		if _, err := verdict(ActionExtend, x.status); err != nil {
			return err
		}
		args, err := x.growthArgs(ext)
		if err != nil || len(args) == 0 {
			return err // nothing to do: a retry of what is done
		}
		if running, found, err := get[store.Operation](t, store.KeyOp(x.g.Op)); err != nil {
			return err
		} else if x.g.Op != "" && found && running.Kind == opExtend && maps.Equal(running.Args, args) {
			opID = running.ID
			return nil
		}
		if err := x.checkExtend(args); err != nil {
			return err
		}
		op := newOp(newID(), opExtend, stepGrowSecondary, t, caller, x.g, c.cfg.ExtendTimeout, args)
		next := x.r.Clone()
		for i, m := range next.Members {
			if g, ok := growths(op)[m.Pair]; ok {
				next.Members[i].ExtendBytes = g.new
			}
		}
		opID, x.g.Op = op.ID, op.ID
		t.createOp(op)
		t.put(store.KeyGroup(id), x.g)
		t.put(store.KeyRecord(id), next)
		t.event(next, fmt.Sprintf("extending %d pairs", len(args)), caller.who(), caller.RequestID)
		return nil
	})
	if err != nil || opID == "" {
		return err
	}
	return c.awaitExtend(ctx, id, opID)
}

// growthArgs checks the sizes asked for; pairs that have theirs already are left out.
func (x *acting) growthArgs(ext []Extend) (map[string]string, error) {
	args := map[string]string{}
	for _, e := range ext {
		i := slices.IndexFunc(x.r.Members, func(m protocol.Member) bool { return m.Pair == e.Pair })
		if i < 0 {
			return nil, badRequest("", "replication pair %s is not in consistency group %s", e.Pair, x.g.ID)
		}
		have := x.r.Members[i].SizeBytes
		if e.SizeGiB == have/lockstep.GiB {
			continue
		}
		if err := checkGrowth(fmt.Sprintf("replication pair %s", e.Pair), have, e.SizeGiB); err != nil {
			return nil, err
		}
		args[argPair+string(e.Pair)] = fmt.Sprintf("%d %d", have, e.SizeGiB*lockstep.GiB)
	}
	return args, nil
}

// checkExtend refuses an extend that could not end soon.
func (x *acting) checkExtend(args map[string]string) error {
	if err := x.needAllNodes("extend"); err != nil {
		return err
	}
	if err := x.takeOver(&x.g, x.r); err != nil {
		return err
	}
	seen := map[lockstep.NodeID]Sight{}
	for _, n := range x.r.Nodes() {
		o, found, err := peek[store.GroupObserved](x.tx, store.KeyObservedGroup(x.g.ID, n))
		if err != nil {
			return err
		}
		if found {
			seen[n] = Sight{GroupObserved: o}
		}
	}
	if rep, _ := replication(x.r, inspect(x.r, seen, x.alive, x.now)); rep == ReplicationError {
		return conflict("", "extend needs replication_status other than error; the group has %s", x.shown())
	}
	need := map[lockstep.NodeID]int64{}
	for pair, g := range growths(store.Operation{Args: args}) {
		for _, m := range x.r.Members {
			if m.Pair == pair {
				need[m.Replicas[0].Node] += g.new - g.old
				need[m.Replicas[1].Node] += g.new - g.old
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(need)) {
		if err := x.room(n, need[n]); err != nil {
			return err
		}
	}
	return nil
}

// awaitExtend waits for the operation's end and says how it ended.
func (c *Controller) awaitExtend(ctx context.Context, id lockstep.GroupID, opID string) error {
	var last store.Operation
	done, err := c.await(ctx, c.cfg.ExtendTimeout+c.cfg.SettleTimeout, func() (bool, error) {
		op, _, err := store.GetT[store.Operation](ctx, c.cfg.Store, store.KeyOp(opID))
		if errors.Is(err, lockstep.ErrNotFound) {
			return true, nil
		}
		if err == nil {
			last = op
		}
		return false, err
	})
	if err != nil {
		return err
	}
	if !done {
		return refusal(KindUnavailable, codeBusy, "the extend is recorded but not finished (step %s); it goes on, ask again", last.Step)
	}
	r, err := c.recordOf(ctx, id)
	if err != nil {
		return err
	}
	for pair, g := range growths(last) {
		for _, m := range r.Members {
			if m.Pair == pair && m.SizeBytes < g.new {
				why := last.Error
				if why == "" {
					why = "see the history of the group"
				}
				return conflict("", "the extend was given up and the old sizes stay: %s", why)
			}
		}
	}
	return nil
}

// extend does the next step of an extend. It gives up when its time is over, when a side reports a
// failure, or when a failover took its place; files that have grown stay so and are never cut.
func (j *job) extend() error {
	sizes := growths(j.op)
	if j.op.Step != stepUndo && j.op.Step != stepAdopt {
		if why := j.hopeless(); why != "" {
			j.op.Error = why
			j.step(stepUndo)
			return nil
		}
	}
	switch j.op.Step {
	case stepGrowSecondary:
		return j.grow(sizes, j.r.Secondary, stepWaitSecondary)
	case stepWaitSecondary:
		return j.grown(sizes, j.r.Secondary, stepGrowPrimary)
	case stepGrowPrimary:
		return j.grow(sizes, j.r.Primary, stepWaitPrimary)
	case stepWaitPrimary:
		// A switchover in between may have exchanged the sides: look at both.
		for _, az := range []lockstep.AZ{j.r.Secondary, j.r.Primary} {
			if ok, err := j.allGrown(sizes, az); err != nil || !ok {
				return err
			}
		}
		j.step(stepAnnounce)
	case stepAnnounce:
		return j.announce(sizes)
	case stepAdopt:
		if done, err := j.adopted(parseEpoch(j.op.Args[argEpoch])); err != nil || !done && !j.overdue() {
			return err
		}
		j.finish()
	case stepUndo:
		return j.undo(sizes)
	default:
		return fmt.Errorf("step %q is not known", j.op.Step)
	}
	return nil
}

// hopeless says why the operation must be given up, or "".
func (j *job) hopeless() string {
	if !j.mine() {
		return "a failover took its place"
	}
	if j.overdue() {
		return fmt.Sprintf("step %s was not done in time", j.op.Step)
	}
	return ""
}

// grow raises the wanted size of each pair's volume in that AZ.
func (j *job) grow(sizes map[lockstep.PairID]growth, az lockstep.AZ, next string) error {
	err := j.each(sizes, az, func(v store.Volume, g growth) error {
		if v.SizeBytes < g.new {
			v.SizeBytes, v.UpdatedAt = g.new, ptr(j.now)
			j.put(store.KeyVolume(v.ID), v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	j.step(next)
	return nil
}

func (j *job) each(sizes map[lockstep.PairID]growth, az lockstep.AZ, fn func(store.Volume, growth) error) error {
	for _, m := range j.r.Members {
		g, ok := sizes[m.Pair]
		if !ok {
			continue
		}
		v, found, err := get[store.Volume](j.tx, store.KeyVolume(m.In(az).Volume))
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("volume %s of pair %s: %w: %w", m.In(az).Volume, m.Pair, lockstep.ErrNotFound, errTorn)
		}
		if err := fn(v, g); err != nil {
			return err
		}
	}
	return nil
}

// grown waits for the nodes of that AZ.
func (j *job) grown(sizes map[lockstep.PairID]growth, az lockstep.AZ, next string) error {
	ok, err := j.allGrown(sizes, az)
	if err == nil && ok {
		j.step(next)
	}
	return err
}

func (j *job) allGrown(sizes map[lockstep.PairID]growth, az lockstep.AZ) (bool, error) {
	all := true
	err := j.each(sizes, az, func(v store.Volume, g growth) error {
		o, found, err := peek[store.VolumeObserved](j.tx, store.KeyObservedVolume(v.ID))
		if err != nil {
			return err
		}
		if found && (o.State == observedFailed || o.State == observedNoSpace) {
			j.op.Error = fmt.Sprintf("volume %s on node %s: %s %s", v.ID, o.Node, o.State, o.Error)
			j.step(stepUndo)
		}
		all = all && found && o.State == observedPresent && o.SizeBytes >= g.new
		return nil
	})
	return all && j.op.Step != stepUndo, err
}

// announce takes the new sizes into the record, the volumes' pairs included.
func (j *job) announce(sizes map[lockstep.PairID]growth) error {
	if j.r.State != protocol.StateNormal && j.r.State != protocol.StateCopying {
		return nil // a stop, a trip or a switchover is under way: wait for its end
	}
	wanted := map[lockstep.PairID]int64{}
	for pair, g := range sizes {
		wanted[pair] = g.new
		p, found, err := get[store.Pair](j.tx, store.KeyPair(pair))
		if err != nil {
			return err
		}
		if found {
			p.Meta.SizeGiB, p.UpdatedAt = g.new/lockstep.GiB, ptr(j.now)
			j.put(store.KeyPair(pair), p)
		}
	}
	next, err := j.r.SetSizes(wanted)
	if err != nil {
		return err
	}
	j.put(store.KeyRecord(j.g.ID), next)
	j.history(next, fmt.Sprintf("extended %d pairs", len(sizes)), j.op.User, j.op.RequestID)
	j.op.Args = maps.Clone(j.op.Args)
	j.op.Args[argEpoch] = formatEpoch(next.Epoch)
	j.op.Deadline = j.now.Add(j.c.cfg.SettleTimeout)
	j.step(stepAdopt)
	return nil
}

// undo takes the wanted sizes back and frees the record for a sync. What a later extend of the same
// pairs wants stays.
func (j *job) undo(sizes map[lockstep.PairID]growth) error {
	if !j.mine() {
		later, found, err := get[store.Operation](j.tx, store.KeyOp(j.g.Op))
		if err != nil {
			return err
		}
		if found && later.Kind == opExtend {
			maps.DeleteFunc(sizes, func(p lockstep.PairID, _ growth) bool { _, wanted := growths(later)[p]; return wanted })
		}
	}
	next := j.r.Clone()
	for i, m := range next.Members {
		if g, ok := sizes[m.Pair]; ok && m.ExtendBytes == g.new {
			next.Members[i].ExtendBytes = 0
		}
	}
	// By the pairs: after a failover took the extend's place they may have left the group meanwhile.
	for _, pair := range sortedKeys(sizes) {
		if err := j.shrink(pair, sizes[pair]); err != nil {
			return err
		}
	}
	j.put(store.KeyRecord(j.g.ID), next)
	j.event(next, "extend given up: "+j.op.Error, j.op.User, j.op.RequestID)
	j.finish()
	return nil
}

// shrink takes the wanted sizes of a pair's volumes back.
func (j *job) shrink(pair lockstep.PairID, g growth) error {
	p, found, err := get[store.Pair](j.tx, store.KeyPair(pair))
	if err != nil || !found {
		return err
	}
	for _, id := range p.Volumes {
		v, found, err := get[store.Volume](j.tx, store.KeyVolume(id))
		if err != nil {
			return err
		}
		if found && v.Pair == pair && v.SizeBytes == g.new {
			v.SizeBytes, v.UpdatedAt = g.old, ptr(j.now)
			j.put(store.KeyVolume(id), v)
		}
	}
	return nil
}

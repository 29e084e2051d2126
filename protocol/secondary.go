package protocol

import "github.com/lockstep-dr/lockstep"

func (c *Core) planSecondary() {
	r := &c.rec
	if c.mode != ModeRefused {
		c.setMode(ModeRefused, c.elsewhere())
	}
	if len(c.announces) > 0 {
		if c.announced == r.Epoch {
			c.finishAnnounces(r.Epoch, nil)
		} else if c.retryAt <= c.now {
			c.adoptAnnounced()
		}
		return
	}
	if c.adopted == r.Epoch || !c.fresh || c.retryAt > c.now {
		return
	}
	wasPrimary := c.saved.Role == RolePrimary
	switch {
	case r.State == StateFailovering && r.Forced != nil:
		// The image is whole and durable before anybody can become primary; a crash begins it again.
		c.startBatch(batchAdopt, Fence{Epoch: r.Epoch}, c.save(RoleSecondary, 0), Flush{}, c.rollBack(), c.save(RoleSecondary, r.Epoch))
	case r.State == StateFailovering:
		// The mark says that everything was flushed at this epoch: it counts if the failover is
		// committed and the host restarts before it takes over. A way back voids it [F4].
		c.startBatch(batchAdopt, Fence{Epoch: r.Epoch}, c.save(RoleSecondary, 0), Flush{}, DropPoint{}, c.save(RoleSecondary, r.Epoch))
	case r.State == StateTripping && r.ContinueAt == r.Epoch:
		c.startBatch(batchAdopt, Fence{Epoch: r.Epoch}, c.save(RoleSecondary, 0))
	case r.State == StateNormal && c.lostForced():
		c.startBatch(batchAdopt, Quiesce{}, Fence{Epoch: r.Epoch}, c.save(RoleSecondary, 0), c.keepImage())
	case r.State == StateDeleted, wasPrimary:
		c.startBatch(batchAdopt, Quiesce{}, Fence{Epoch: r.Epoch}, c.save(RoleSecondary, 0))
	default:
		// Every other epoch is persisted when a primary announces it [F22].
	}
}

func (c *Core) elsewhere() string {
	return "the primary is in " + string(c.rec.Primary) + "; this copy opens after a failover of group " + string(c.rec.Group)
}

// adoptAnnounced persists an announced epoch for the whole group on this node. The recovery point
// is set, after a flush, before any frame of a copying epoch is applied [F13].
func (c *Core) adoptAnnounced() {
	r := &c.rec
	var steps []Durable
	if c.saved.Role == RolePrimary {
		steps = append(steps, Quiesce{})
	}
	steps = append(steps, Fence{Epoch: r.Epoch})
	if c.lostForced() {
		steps = append(steps, c.keepImage())
	}
	if r.State == StateCopying {
		// The epochs of another group compare with none of this one: a point that a volume kept from an
		// earlier stay could pass for newer than the in-sync commit to come.
		point, never := SetPoint{Epoch: r.Epoch, InSyncEpoch: r.InSyncEpoch}, DropPoint{}
		for _, m := range r.Members {
			if m.InSyncEpoch > 0 {
				point.Pairs = append(point.Pairs, m.Pair)
			} else {
				never.Pairs = append(never.Pairs, m.Pair)
			}
		}
		if len(never.Pairs) > 0 {
			steps = append(steps, never)
		}
		if r.InSyncEpoch > 0 {
			steps = append(steps, Flush{}, point)
		}
	}
	steps = append(steps, c.save(RoleSecondary, 0))
	if r.InSync { // the record says that this image counts, not an older one
		steps = append(steps, DropPoint{})
	}
	if r.State == StateNormal && r.InSync {
		steps = append(steps, ClearMaps{})
	}
	c.startBatch(batchAnnounce, steps...)
}

func (c *Core) dropOldAnnounces() {
	kept := c.announces[:0]
	for _, a := range c.announces {
		if a.rec.Epoch == c.rec.Epoch && c.behind == 0 {
			kept = append(kept, a)
			continue
		}
		newer := c.rec.Clone()
		c.emit(AnnounceOut{Conn: a.conn, Record: a.rec, Newer: &newer, Error: "a newer epoch is known"})
	}
	c.announces = kept
}

func (c *Core) finishAnnounces(epoch lockstep.Epoch, err error) {
	var rest []announce
	for _, a := range c.announces {
		switch {
		case a.rec.Epoch != epoch:
			rest = append(rest, a)
		case err != nil:
			c.emit(AnnounceOut{Conn: a.conn, Record: a.rec, Error: err.Error()})
		default:
			c.announced = epoch
			c.emit(AnnounceOut{Conn: a.conn, Record: a.rec, OK: true})
		}
	}
	c.announces = rest
}

func (c *Core) afterAdoptSecondary() {
	switch c.rec.State {
	case StateFailovering:
		c.reply(StepReady, func(a *Answer) {
			if c.otherInstance(c.cfg.Node, c.cfg.Instance) {
				a.Healthy, a.Error = false, "the directory is not the one of the last in-sync commit"
			}
		})
	case StateDeleted:
		c.reply(StepTold, nil)
	case StateTripping:
		c.reply(StepFenced, nil)
	case StateNormal, StateCopying, StateReversing:
		c.reply(StepAdopted, nil)
	}
}

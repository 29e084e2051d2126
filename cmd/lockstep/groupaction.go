package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

// groupVerb describes an action on a group that takes no argument but the group.
type groupVerb struct {
	use, short, long string
	action           client.Action
	warn             func(g client.Group) []string // nil: not dangerous
	// done says when --wait ends, given the group as it was before the call; nil: the call is
	// effective when it returns.
	done func(before, now client.Group) bool
}

func (a *app) groupVerb(v groupVerb) *cobra.Command {
	var w waiter
	var yes confirmer
	cmd := &cobra.Command{
		Use: v.use + " GROUP", Short: v.short, Long: v.long, Args: exactArgs("GROUP"),
		Example: "  lockstep group " + v.use + " shop",
	}
	if v.warn != nil {
		yes.flag(cmd)
		cmd.Example += " --yes"
	}
	if v.done != nil {
		w.flags(cmd)
		cmd.Example += " --wait --timeout 10m"
	}
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		before, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		if v.warn != nil {
			if err := a.confirm(yes, v.warn(before)...); err != nil {
				return err
			}
		}
		if err := c.Act(ctx, before.ID, v.action); err != nil {
			return err
		}
		return a.groupResult(ctx, w, c, before.ID, func(now client.Group) bool { return v.done(before, now) })
	})
}

func (a *app) groupSync() *cobra.Command {
	return a.groupVerb(groupVerb{
		use: "sync", short: "Make both sides identical and keep them so", action: client.ActionSync,
		long: `Starts replication: what differs is copied from the primary to the secondary while
writes go on, and from "active" on every write is on both sides before it is
acknowledged. On a failed-over group it is the same as reprotect,
and needs the role operator then.`,
		done: func(_, now client.Group) bool { return activeGroup(now) },
	})
}

func (a *app) groupPause() *cobra.Command {
	return a.groupVerb(groupVerb{
		use: "pause", short: "Stop replication at one common point", action: client.ActionStop,
		long: `Stops replication of all pairs at one common point in the order of writes. The
primary goes on alone and remembers what it changes; a failover is refused until
the group was synchronized again. It is effective when the command returns.`,
	})
}

func (a *app) groupFailover() *cobra.Command {
	return a.forcible(a.groupVerb(groupVerb{
		use: "failover", short: "Make the secondary zone the primary because the primary is lost", action: client.ActionFailover,
		long: `Makes the secondary zone the primary. It is for the loss of the primary zone: the
old primary is fenced, and no write that was acknowledged is lost. It is refused
(exit code 4) unless the secondary is in sync. For a planned change use switchover.
It needs the role operator.

If the group is not in sync and the primary zone is lost for good, --force fails over
to the last consistent image of the other zone. WRITES THAT WERE ACKNOWLEDGED ARE LOST
then: failover-preview says which, and its token has to be quoted. It ends when every
old primary node has confirmed that it stopped; for one that is dead an operator has
to say that its host is powered off (confirm-node-off). What the old primary alone had
is kept as a divergence image when it returns.`,
		warn: func(g client.Group) []string {
			return []string{
				fmt.Sprintf("Group %s (%s): the zone other than %s becomes the primary.", g.ID, orDash(printable(deref(g.Name))), g.PriorityStation),
				fmt.Sprintf("Servers that still use the disks in %s get errors from now on; start them in the other zone.", g.PriorityStation),
				"No acknowledged write is lost. Afterwards nothing is replicated until `lockstep group reprotect`.",
			}
		},
		done: func(_, now client.Group) bool { return now.Status == "failovered" },
	}))
}

func (a *app) groupSwitchover() *cobra.Command {
	return a.groupVerb(groupVerb{
		use: "switchover", short: "Swap the roles of both zones, planned", action: client.ActionReverse,
		long: `Swaps the roles of both zones while both work, and goes on replicating in the other
direction. Stop the production servers first: their disks are closed. It is
refused (exit code 4) unless the group is active. It needs the role operator.`,
		warn: func(g client.Group) []string {
			return []string{
				fmt.Sprintf("Group %s (%s): the zone other than %s becomes the primary; replication turns round.", g.ID, orDash(printable(deref(g.Name))), g.PriorityStation),
				fmt.Sprintf("The disks in %s are closed: stop the servers that use them first. No write is lost.", g.PriorityStation),
			}
		},
		done: func(before, now client.Group) bool {
			return activeGroup(now) && now.PriorityStation != before.PriorityStation
		},
	})
}

func (a *app) groupReprotect() *cobra.Command {
	return a.groupVerb(groupVerb{
		use: "reprotect", short: "Replicate back to the zone that was lost", action: client.ActionReprotect,
		long: `After a failover, once the lost zone is back: it becomes the secondary, what differs
is copied to it, and from "active" on the group is protected again. Stop servers
there that still use the disks; what only they had written after the failover's
point is overwritten. After a forced failover it waits until the returned zone has
kept what it alone had as a divergence image; if its pools have no room for that, it
is refused. It needs the role operator.`,
		done: func(_, now client.Group) bool { return activeGroup(now) },
	})
}

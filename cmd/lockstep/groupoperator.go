package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

// statement is a command by which an operator says something about a group.
type statement struct {
	use, short, long, example string
	node                      string // help of --node; empty: it names no node
	title                     string // of the question, after the group
	risk                      string
	say                       func(ctx context.Context, c *client.Client, group, node, reason string) error
}

func (a *app) groupStatement(s statement) *cobra.Command {
	var node, reason string
	var yes confirmer
	cmd := &cobra.Command{
		Use: s.use + " GROUP", Short: s.short,
		Long:    s.long + "\n\nIt needs the role admin, and is kept in the group's history.",
		Example: "  " + s.example, Args: exactArgs("GROUP"),
	}
	need := []string{"reason"}
	if s.node != "" {
		cmd.Flags().StringVar(&node, "node", "", s.node+" (required)")
		need = append(need, "node")
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the group's history (required)")
	yes.flag(cmd)
	return needFlags(a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		title := fmt.Sprintf("Group %s (%s): ", g.ID, orDash(printable(deref(g.Name)))) + s.title
		if s.node != "" {
			title = fmt.Sprintf("Group %s (%s), node %s: ", g.ID, orDash(printable(deref(g.Name))), node) + s.title
		}
		if err := a.confirm(yes, title, s.risk); err != nil {
			return err
		}
		return s.say(ctx, c, g.ID, node, reason)
	}), need...)
}

// groupStatements are what an operator knows and no machine can find out.
func (a *app) groupStatements() []*cobra.Command {
	var cmds []*cobra.Command
	for _, s := range []statement{
		{
			use: "continue", short: "Let a stop end although a primary node does not confirm",
			long: `After a fault a group with several primary nodes holds its requests until every
primary node has confirmed that it stopped. If one of them is dead and will not
come back soon, continue lets its secondaries fence it: the others go on alone,
and a failover is refused until the group was synchronized again.`,
			example: `lockstep group continue shop --reason "rack 7 burnt" --yes`,
			title:   "it goes on without the primary node that does not confirm.",
			risk:    "Its disks there stay closed, and the secondary is not in sync any more: a failover is refused until the next synchronization.",
			say: func(ctx context.Context, c *client.Client, group, _, reason string) error {
				return c.Continue(ctx, group, reason)
			},
		},
		{
			use: "confirm-node-off", short: "State that a primary node is powered off",
			long: `While a stop or a failover waits for a primary node that does not answer, this
statement says that its host is powered off: the stop ends without its word, and
a failover need not wait until the node's read lease has run out. It counts for
the stop or failover under way only. A dead process is not enough: one that starts
again on the same boot could go on with a secondary that heard of nothing. Were
the node running, reads there could be stale and the secondary's image no
consistent cut: cut the power first, or let a fencing device do it and then run
this command. It is refused while the node is alive.`,
			example: `lockstep group confirm-node-off shop --node az1-node-1 --reason "power cut at the PDU" --yes`,
			node:    "the node that is powered off", title: "its host is stated to be powered off.",
			risk: "If it still runs, its clients may read old data and the secondary's image may be no consistent cut.",
			say: func(ctx context.Context, c *client.Client, group, node, reason string) error {
				return c.ConfirmNodeOff(ctx, group, node, reason)
			},
		},
		{
			use: "accept-directory", short: "State that a primary node's present directory counts",
			long: `A primary node whose pool directory is not the one of the last synchronization (it
was moved to another host, restored from a copy, or is empty) holds its requests
where the other side cannot replace it: the newest writes were on this side alone,
or the other side restarted too. This statement makes what is in that directory
the group's image; everything is compared with the other side afterwards.`,
			example: `lockstep group accept-directory shop --node az1-node-1 --reason "moved to a new host" --yes`,
			node:    "the primary node", title: "what is in its directory now becomes the group's image.",
			risk: "If the directory is an older copy, or empty, everything written after it is lost for good.",
			say: func(ctx context.Context, c *client.Client, group, node, reason string) error {
				return c.AcceptDirectory(ctx, group, node, reason)
			},
		},
		{
			use: "back-out", short: "Take back a failover that does not end",
			long: `A failover waits for every node of the other zone, and meanwhile nobody serves. If
one of them does not answer and the old primary is well, back-out ends the
failover with the roles as they were. If not all of them had answered, the group
stops replicating first and synchronizes again.`,
			example: `lockstep group back-out shop --reason "the node in az2 died" --yes`,
			title:   "the failover under way is taken back.",
			risk:    "The old primary goes on, if it is alive.",
			say: func(ctx context.Context, c *client.Client, group, _, reason string) error {
				return c.BackOut(ctx, group, reason)
			},
		},
		{
			use: "accept-lost-secondary", short: "State that a secondary node is gone for good",
			long: `A primary whose host restarted while in sync waits for its secondary, which may
have writes that the host lost with its page cache. If that secondary is gone for
good, this statement lets the primary go on with its own image: writes that were
acknowledged but not flushed may be missing. It is refused while the node is alive.`,
			example: `lockstep group accept-lost-secondary shop --node az2-node-1 --reason "host scrapped" --yes`,
			node:    "the node that is gone", title: "it is given up for good.",
			risk: "Writes that were acknowledged but not flushed before the primary's host restarted may be missing.",
			say: func(ctx context.Context, c *client.Client, group, node, reason string) error {
				return c.AcceptLostSecondary(ctx, group, node, reason)
			},
		},
	} {
		cmds = append(cmds, a.groupStatement(s))
	}
	return cmds
}

func (a *app) groupPolicy() *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy GROUP available|strict", Short: "Choose how the primary serves without its secondary",
		Long: `While a group is not in sync its primary serves alone. With "available", the default,
a process that was serving goes on until it learns of a newer epoch, also while
the store is away. With "strict" it answers reads and writes only under a lease
from the store, so that it stops by itself, within a second, when it is cut off.`,
		Example: "  lockstep group policy shop strict", Args: exactArgs("GROUP", "POLICY"),
	}
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		if args[1] != "available" && args[1] != "strict" {
			return usage(fmt.Errorf("the policy is available or strict, not %q", args[1]))
		}
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		return c.SetOneSided(ctx, g.ID, args[1])
	})
}

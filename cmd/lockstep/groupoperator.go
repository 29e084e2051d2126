package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

// groupContinue, groupConfirmOff and groupAcceptLost are statements: what an operator knows and no machine can find
// out. They are kept in the group's history.

func (a *app) groupContinue() *cobra.Command {
	var reason string
	var yes confirmer
	cmd := &cobra.Command{
		Use: "continue GROUP", Short: "Let a stop end although a primary node does not confirm",
		Long: `After a fault a group with several primary nodes holds its requests until every
primary node has confirmed that it stopped. If one of them is dead and will not
come back soon, continue lets its secondaries fence it: the others go on alone,
and a failover is refused until the group was synchronized again. It needs the
admin role, and is kept in the group's history.`,
		Example: `  lockstep group continue shop --reason "rack 7 burnt" --yes`, Args: exactArgs("GROUP"),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the group's history (required)")
	yes.flag(cmd)
	return needFlags(a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm(yes, fmt.Sprintf("Group %s (%s) goes on without the primary node that does not confirm.", g.ID, orDash(printable(g.Name))),
			"Its disks there stay closed, and the secondary is not in sync any more: a failover is refused until the next synchronization."); err != nil {
			return err
		}
		return c.Continue(ctx, g.ID, reason)
	}), "reason")
}

func (a *app) groupConfirmOff() *cobra.Command {
	var node, reason string
	var yes confirmer
	cmd := &cobra.Command{
		Use: "confirm-node-off GROUP", Short: "State that a primary node is powered off",
		Long: `While a stop or a failover waits for a primary node that does not answer, this
statement says that the node is powered off: the stop ends without its word, and
a failover need not wait until the node's read lease has run out. It counts for
the stop or failover under way only. Were the node still running, reads there
could be stale and the secondary's image no consistent cut: cut the power first,
or let a fencing device do it and then run this command. It needs the admin role,
is refused while the node is alive, and is kept in the group's history.`,
		Example: `  lockstep group confirm-node-off shop --node az1-node-1 --reason "power cut at the PDU" --yes`, Args: exactArgs("GROUP"),
	}
	cmd.Flags().StringVar(&node, "node", "", "the node that is powered off (required)")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the group's history (required)")
	yes.flag(cmd)
	return needFlags(a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm(yes, fmt.Sprintf("Group %s (%s): node %s is stated to be powered off.", g.ID, orDash(printable(g.Name)), node),
			"If it still runs, its clients may read old data and the secondary's image may be no consistent cut."); err != nil {
			return err
		}
		return c.ConfirmNodeOff(ctx, g.ID, node, reason)
	}), "node", "reason")
}

func (a *app) groupAcceptLost() *cobra.Command {
	var node, reason string
	var yes confirmer
	cmd := &cobra.Command{
		Use: "accept-lost-secondary GROUP", Short: "State that a secondary node is gone for good",
		Long: `A primary whose host restarted while in sync waits for its secondary, which may
have writes that the host lost with its page cache. If that secondary is gone for
good, this statement lets the primary go on with its own image: writes that were
acknowledged but not flushed may be missing. It needs the admin role, is refused
while the node is alive, and is kept in the group's history.`,
		Example: `  lockstep group accept-lost-secondary shop --node az2-node-1 --reason "host scrapped" --yes`, Args: exactArgs("GROUP"),
	}
	cmd.Flags().StringVar(&node, "node", "", "the node that is gone (required)")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the group's history (required)")
	yes.flag(cmd)
	return needFlags(a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm(yes, fmt.Sprintf("Group %s (%s): node %s is given up for good.", g.ID, orDash(printable(g.Name)), node),
			"Writes that were acknowledged but not flushed before the primary's host restarted may be missing."); err != nil {
			return err
		}
		return c.AcceptLostSecondary(ctx, g.ID, node, reason)
	}), "node", "reason")
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

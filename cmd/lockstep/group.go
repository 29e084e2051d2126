package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

func newGroupCommand(a *app) *cobra.Command {
	cmd := parent("group", "Create, synchronize and fail over consistency groups",
		"A consistency group holds replication pairs that are stopped, failed over and\nresumed at one common point in the order of writes.\n\nGROUP is an id or a name that only one group has.",
		"  lockstep group create --name shop --pair db --pair log --priority-station az1 --wait\n  lockstep group sync shop --wait\n  lockstep group failover shop --wait")
	a.cloudFlags(cmd)
	cmd.AddCommand(a.groupList(), a.groupShow(), a.groupCreate(), a.groupUpdate(), a.groupDelete(),
		a.groupSync(), a.groupPause(), a.groupFailover(), a.groupSwitchover(), a.groupReprotect(),
		a.groupExtend(), a.groupHistory(), a.groupExplain(), a.groupVerify(), a.groupPolicy(), a.groupLimit(), a.groupPreview(), a.groupDivergence())
	cmd.AddCommand(a.groupStatements()...)
	return cmd
}

func (a *app) groupList() *cobra.Command {
	var f client.Filter
	cmd := &cobra.Command{
		Use: "list", Short: "List consistency groups", Long: "Lists the project's consistency groups, the newest first.",
		Example: "  lockstep group list --json", Args: noArgs,
	}
	cmd.Flags().StringVar(&f.Name, "name", "", "only those of this name")
	cmd.Flags().StringVar(&f.Status, "status", "", "only those in this status")
	cmd.Flags().StringVar(&f.PriorityStation, "priority-station", "", "only those whose primary is this zone")
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		groups, err := c.Groups(ctx, f)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(append([]client.Group{}, groups...))
		}
		rows := make([][]string, len(groups))
		for i, g := range groups {
			rows[i] = []string{g.ID, orDash(deref(g.Name)), g.Status, g.ReplicationStatus, g.PriorityStation, orDash(deref(g.FaultLevel)), fmt.Sprint(len(g.PairIDs))}
		}
		return a.printTable([]string{"ID", "NAME", "STATUS", "REPLICATION", "PRIMARY", "FAULT", "PAIRS"}, rows)
	})
}

func (a *app) groupShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show GROUP", Short: "Show a consistency group",
		Long:    "Shows one consistency group. fault level 2 means that the production side cannot\nbe read and written: a failover is advised; 5 that replication is stopped by a\nfault: a failover is refused.",
		Example: "  lockstep group show shop", Args: exactArgs("GROUP"),
	}
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		return a.printGroup(g)
	})
}

func (a *app) printGroup(g client.Group) error {
	if a.json {
		return a.printJSON(g)
	}
	fields := [][2]string{
		{"id", g.ID},
		{"name", orDash(deref(g.Name))},
		{"description", orDash(deref(g.Description))},
		{"status", g.Status},
		{"replication status", orDash(g.ReplicationStatus)},
		{"fault level", orDash(deref(g.FaultLevel))},
		{"reason", orDash(printable(deref(g.Reason)))},
		{"without a secondary", orDash(g.OneSided)},
		{"failure detail", orDash(deref(g.FailureDetail))},
		{"priority station", g.PriorityStation},
		{"replication model", orDash(g.Model)},
		{"pairs", orDash(strings.Join(g.PairIDs, ", "))},
		{"synchronization", orDash(resyncShown(g.Resync))},
		{"synchronization limit", limitText(g.ResyncLimitMiB, "none")},
		{"proven equal (UTC)", proofText(g)},
		{"verification", verificationText(g)},
		{"created", formatTime(g.CreatedAt)},
		{"updated", formatTime(g.UpdatedAt)},
	}
	for _, w := range g.Warnings {
		fields = append(fields, [2]string{"warning", w})
	}
	return a.printFields(fields)
}

func (a *app) groupCreate() *cobra.Command {
	var g client.GroupCreate
	var w waiter
	var name, description string
	var pairs []string
	cmd := &cobra.Command{
		Use: "create", Short: "Create a consistency group",
		Long:    "Makes a consistency group of pairs that have the same primary and the same\nsecondary zone. It does not replicate before `lockstep group sync`.",
		Example: "  lockstep group create --name shop --pair db --pair log --priority-station az1 --wait", Args: noArgs,
	}
	cmd.Flags().StringVar(&name, "name", "", "name, at most 255 bytes")
	cmd.Flags().StringVar(&description, "description", "", "description, at most 255 bytes")
	cmd.Flags().StringSliceVar(&pairs, "pair", nil, "pair, id or name; repeat it")
	cmd.Flags().StringVar(&g.PriorityStation, "priority-station", "", "zone of the production volumes")
	w.flags(cmd)
	a.jsonFlag(cmd)
	return needFlags(a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		var err error
		if g.PairIDs, err = pairIDs(ctx, c, pairs); err != nil {
			return err
		}
		g.Name, g.Description = optional(cmd, "name", name), optional(cmd, "description", description)
		created, err := c.CreateGroup(ctx, g)
		if err != nil {
			return err
		}
		return a.groupResult(ctx, w, c, created.ID, settledGroup)
	}), "pair", "priority-station")
}

// groupResult waits if asked to, and prints the group as it is then.
func (a *app) groupResult(ctx context.Context, w waiter, c *client.Client, id string, done func(client.Group) bool) error {
	if w.wait {
		if err := a.untilGroup(ctx, w, c, id, done); err != nil {
			return err
		}
	}
	g, err := c.Group(ctx, id)
	if err != nil {
		return err
	}
	return a.printGroup(g)
}

func (a *app) groupUpdate() *cobra.Command {
	var w waiter
	var name, description string
	var add, remove []string
	cmd := &cobra.Command{
		Use: "update GROUP", Short: "Change texts or members of a group",
		Long:    "Changes name or description at any time. Pairs can be added and removed while the\ngroup does not replicate: pause it first, and synchronize afterwards.",
		Example: "  lockstep group update shop --add-pair files --wait", Args: exactArgs("GROUP"),
	}
	cmd.Flags().StringVar(&name, "name", "", "new name")
	cmd.Flags().StringVar(&description, "description", "", "new description")
	cmd.Flags().StringSliceVar(&add, "add-pair", nil, "pair to add, id or name; may be repeated")
	cmd.Flags().StringSliceVar(&remove, "remove-pair", nil, "pair to remove, id or name; may be repeated")
	w.flags(cmd)
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		u := client.GroupUpdate{Name: optional(cmd, "name", name), Description: optional(cmd, "description", description)}
		if u.Add, err = pairIDs(ctx, c, add); err != nil {
			return err
		}
		if u.Remove, err = pairIDs(ctx, c, remove); err != nil {
			return err
		}
		if _, err := c.UpdateGroup(ctx, g.ID, u); err != nil {
			return err
		}
		return a.groupResult(ctx, w, c, g.ID, settledGroup)
	})
}

func (a *app) groupDelete() *cobra.Command {
	var w waiter
	var yes confirmer
	cmd := &cobra.Command{
		Use: "delete GROUP", Short: "Delete a group without pairs",
		Long:    "Deletes a consistency group from which all pairs were removed.",
		Example: "  lockstep group delete shop --yes --wait", Args: exactArgs("GROUP"),
	}
	w.flags(cmd)
	yes.flag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm(yes, fmt.Sprintf("Group %s (%s) will be deleted.", g.ID, orDash(printable(deref(g.Name))))); err != nil {
			return err
		}
		if err := c.DeleteGroup(ctx, g.ID); err != nil || !w.wait {
			return err
		}
		return a.untilGone(ctx, w, "group "+g.ID, func(ctx context.Context) (string, error) {
			g, err := c.Group(ctx, g.ID)
			return g.Status, err
		})
	})
}

func (a *app) groupExtend() *cobra.Command {
	var size int64
	var pairs []string
	cmd := &cobra.Command{
		Use: "extend GROUP", Short: "Grow both volumes of pairs",
		Long:    "Grows both volumes of each named pair, all or none, and returns when it is done.",
		Example: "  lockstep group extend shop --pair db --size 20", Args: exactArgs("GROUP"),
	}
	cmd.Flags().StringSliceVar(&pairs, "pair", nil, "pair, id or name; may be repeated")
	cmd.Flags().Int64Var(&size, "size", 0, "new size in GiB")
	a.jsonFlag(cmd)
	return needFlags(a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		ids, err := pairIDs(ctx, c, pairs)
		if err != nil {
			return err
		}
		growths := make([]client.Growth, len(ids))
		for i, id := range ids {
			growths[i] = client.Growth{PairID: id, NewSizeGiB: size}
		}
		if err := c.ExtendPairs(ctx, g.ID, growths); err != nil {
			return err
		}
		return a.groupResult(ctx, waiter{}, c, g.ID, settledGroup)
	}), "pair", "size")
}

func (a *app) groupHistory() *cobra.Command {
	cmd := &cobra.Command{
		Use: "history GROUP", Short: "Show what happened to a group",
		Long:    "Prints the group's history: every change of role and every operator's statement,\nwith its epoch and who caused it, the oldest first.",
		Example: "  lockstep group history shop", Args: exactArgs("GROUP"),
	}
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		entries, err := c.History(ctx, g.ID)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(append([]client.HistoryEntry{}, entries...))
		}
		rows := make([][]string, len(entries))
		for i, e := range entries {
			rows[i] = []string{e.At.UTC().Format("2006-01-02 15:04:05.000"), fmt.Sprint(e.Epoch), e.What, orDash(e.By)}
		}
		return a.printTable([]string{"TIME (UTC)", "EPOCH", "WHAT", "BY"}, rows)
	})
}

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

func newPairCommand(a *app) *cobra.Command {
	cmd := parent("pair", "Create, show and delete replication pairs",
		"A replication pair is a production volume and its DR volume: same size and type,\nin different zones. It replicates once it is in a consistency group.\n\nPAIR is an id or a name that only one pair has.",
		"  lockstep pair create --name db --volume db --volume db-dr --priority-station az1 --wait\n  lockstep pair list")
	a.cloudFlags(cmd)
	cmd.AddCommand(a.pairList(), a.pairShow(), a.pairCreate(), a.pairDelete())
	return cmd
}

func (a *app) pairList() *cobra.Command {
	var f client.Filter
	cmd := &cobra.Command{
		Use: "list", Short: "List replication pairs", Long: "Lists the project's replication pairs, the newest first.",
		Example: "  lockstep pair list --priority-station az1", Args: noArgs,
	}
	cmd.Flags().StringVar(&f.Name, "name", "", "only those of this name")
	cmd.Flags().StringVar(&f.Status, "status", "", "only those in this status")
	cmd.Flags().StringVar(&f.PriorityStation, "priority-station", "", "only those whose primary is in this zone")
	cmd.Flags().StringVar(&f.VolumeID, "volume", "", "only the one with this volume id")
	cmd.Flags().StringVar(&f.GroupID, "group", "", "only those in the group with this id")
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		pairs, err := c.Pairs(ctx, f)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(append([]client.Pair{}, pairs...))
		}
		rows := make([][]string, len(pairs))
		for i, p := range pairs {
			rows[i] = []string{p.ID, orDash(deref(p.Name)), p.Status, p.ReplicationStatus, orDash(deref(p.Progress)), p.PriorityStation, orDash(deref(p.FaultLevel)), orDash(deref(p.GroupID))}
		}
		return a.printTable([]string{"ID", "NAME", "STATUS", "REPLICATION", "PROGRESS", "PRIMARY", "FAULT", "GROUP"}, rows)
	})
}

func (a *app) pairShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show PAIR", Short: "Show a replication pair", Long: "Shows one replication pair.",
		Example: "  lockstep pair show db", Args: exactArgs("PAIR"),
	}
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		p, err := findPair(ctx, c, args[0])
		if err != nil {
			return err
		}
		return a.printPair(p)
	})
}

func (a *app) printPair(p client.Pair) error {
	if a.json {
		return a.printJSON(p)
	}
	return a.printFields([][2]string{
		{"id", p.ID},
		{"name", orDash(deref(p.Name))},
		{"description", orDash(deref(p.Description))},
		{"status", p.Status},
		{"replication status", orDash(p.ReplicationStatus)},
		{"progress", orDash(deref(p.Progress))},
		{"fault level", orDash(deref(p.FaultLevel))},
		{"failure detail", orDash(deref(p.FailureDetail))},
		{"priority station", p.PriorityStation},
		{"replication model", orDash(p.Model)},
		{"volumes", strings.Join(p.VolumeIDs, ", ")},
		{"group", orDash(deref(p.GroupID))},
		{"record metadata", orDash(p.RecordMetadata)},
		{"created", formatTime(p.CreatedAt)},
		{"updated", formatTime(p.UpdatedAt)},
	})
}

func (a *app) pairCreate() *cobra.Command {
	var p client.PairCreate
	var w waiter
	var name, description string
	var volumes []string
	cmd := &cobra.Command{
		Use: "create", Short: "Create a replication pair",
		Long:    "Makes a replication pair of two volumes of the same size and type in different\nzones. The volume in the priority station is the production volume; what the other\none holds will be overwritten by the first synchronization.",
		Example: "  lockstep pair create --name db --volume db --volume db-dr --priority-station az1 --wait", Args: noArgs,
	}
	cmd.Flags().StringVar(&name, "name", "", "name, at most 255 bytes")
	cmd.Flags().StringVar(&description, "description", "", "description, at most 255 bytes")
	cmd.Flags().StringSliceVar(&volumes, "volume", nil, "volume, id or name; give it twice")
	cmd.Flags().StringVar(&p.PriorityStation, "priority-station", "", "zone of the production volume")
	w.flags(cmd)
	a.jsonFlag(cmd)
	return needFlags(a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		if len(volumes) != 2 {
			return usage(fmt.Errorf("--volume must be given twice, not %d times", len(volumes)))
		}
		for _, ref := range volumes {
			v, err := findVolume(ctx, c, ref)
			if err != nil {
				return err
			}
			p.VolumeIDs = append(p.VolumeIDs, v.ID)
		}
		p.Name, p.Description = optional(cmd, "name", name), optional(cmd, "description", description)
		created, err := c.CreatePair(ctx, p)
		if err != nil {
			return err
		}
		if w.wait {
			if err := a.untilPair(ctx, w, c, created.ID); err != nil {
				return err
			}
			if created, err = c.Pair(ctx, created.ID); err != nil {
				return err
			}
		}
		return a.printPair(created)
	}), "volume", "priority-station")
}

func (a *app) pairDelete() *cobra.Command {
	var w waiter
	var yes confirmer
	cmd := &cobra.Command{
		Use: "delete PAIR...", Short: "Delete replication pairs",
		Long: `Ends replication pairs that are in no group. Both volumes stay: the primary as a
plain volume, the other with its last consistent image, unserved until it is
released ("lockstep volume release").`,
		Example: "  lockstep pair delete db --yes --wait", Args: atLeastArgs("PAIR"),
	}
	w.flags(cmd)
	yes.flag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		for _, ref := range args {
			p, err := findPair(ctx, c, ref)
			if err != nil {
				return err
			}
			if err := a.confirm(yes,
				fmt.Sprintf("Pair %s (%s) will end; its volumes %s stay.", p.ID, orDash(printable(deref(p.Name))), strings.Join(p.VolumeIDs, " and ")),
				fmt.Sprintf("The volume in %s becomes a plain disk; the other one is unserved until it is released.", p.PriorityStation)); err != nil {
				return err
			}
			if err := c.DeletePair(ctx, p.ID); err != nil {
				return err
			}
			if w.wait {
				err := a.untilGone(ctx, w, "pair "+p.ID, func(ctx context.Context) (string, error) {
					p, err := c.Pair(ctx, p.ID)
					return p.Status, err
				})
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

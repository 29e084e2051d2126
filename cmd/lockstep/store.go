package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

func newStoreCommand(a *app) *cobra.Command {
	cmd := parent("store", "Recover after the store was restored",
		"The store (etcd) holds the records of all groups. These commands speak to the API,\nwith the credentials of an openrc or of clouds.yaml.",
		`  lockstep store recover --reason "etcd restored from the backup of 3:00" --yes`)
	a.cloudFlags(cmd)
	cmd.AddCommand(a.storeRecover())
	return cmd
}

func (a *app) storeRecover() *cobra.Command {
	var reason string
	var off []string
	var yes confirmer
	cmd := &cobra.Command{
		Use: "recover", Short: "Lift every group above what its nodes have, after a restore of the store",
		Long: `After etcd was restored from an older copy its records may be older than what the
nodes have persisted: those nodes serve nothing, for what was decided since the
copy is not known. This command asks every node what it has, and lifts every group
of all projects above the newest record that any node reports. A group stays in
sync only if all its nodes report that very record, under the boot ids and
directories that it names; every other group goes on at its primary alone, and
synchronizes again.

A node that does not report stops the recovery, with nothing changed, unless its
zone is stated with --off-az to be powered off. If that is wrong, two sides may
serve. Run it before any action on a group. It needs the role admin, and is kept
in every group's history.`,
		Example: `  lockstep store recover --reason "etcd restored from the backup of 3:00" --yes
  lockstep store recover --off-az az1 --reason "az1 burnt, etcd restored" --yes`, Args: noArgs,
	}
	cmd.Flags().StringSliceVar(&off, "off-az", nil, "zone that is powered off: its nodes are not waited for; may be repeated")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the groups' history (required)")
	yes.flag(cmd)
	a.jsonFlag(cmd)
	return needFlags(a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		risk := "Groups that cannot be confirmed leave in sync: a failover is refused until they have synchronized again."
		if len(off) > 0 {
			risk += " If a node in " + strings.Join(off, ", ") + " still runs, both sides may take writes."
		}
		if err := a.confirm(yes, "The records of all groups will be lifted above what the nodes report.", risk); err != nil {
			return err
		}
		groups, unknown, err := c.RecoverStore(ctx, off, reason)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]any{"groups": append([]client.Recovered{}, groups...), "unknown_groups": append([]string{}, unknown...)})
		}
		rows := make([][]string, len(groups))
		for i, g := range groups {
			state := "in sync"
			if !g.InSync {
				state = "not in sync: " + orDash(strings.Join(g.Unconfirmed, "; "))
			}
			rows[i] = []string{g.ID, fmt.Sprint(g.EpochBefore), fmt.Sprint(g.Epoch), g.PriorityStation, state}
		}
		if err := a.printTable([]string{"GROUP", "EPOCH BEFORE", "EPOCH", "PRIMARY", "STATE"}, rows); err != nil {
			return err
		}
		for _, id := range unknown {
			fmt.Fprintf(a.out, "group %s is known to nodes only: its volumes stay unserved\n", id)
		}
		return nil
	}), "reason")
}

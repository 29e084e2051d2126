package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

func newNodeListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the storage nodes",
		Long:    "Lists the storage nodes of the deployment with their zones and whether they are\nalive. It speaks to the API, with the credentials of an openrc or of clouds.yaml.",
		Example: "  lockstep node list", Args: noArgs,
	}
	a.cloudFlags(cmd)
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, _ []string) error {
		nodes, err := c.Nodes(ctx)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(append([]client.Node{}, nodes...))
		}
		rows := make([][]string, len(nodes))
		for i, n := range nodes {
			state := "down"
			if n.Alive {
				state = "alive since " + n.Since.UTC().Format(time.DateTime) + " UTC"
			}
			rows[i] = []string{n.ID, n.AZ, state, gib(n.FreeBytes), gib(n.TotalBytes), limitText(n.ResyncLimitMiB, "-"), orDash(n.Version)}
		}
		return a.printTable([]string{"ID", "AZ", "STATE", "FREE GIB", "TOTAL GIB", "RESYNC LIMIT", "VERSION"}, rows)
	})
}

func gib(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<30)) }

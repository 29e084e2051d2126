package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

// parseLimit takes MiB/s, or the word for none, which is 0.
func parseLimit(arg, none string) (int64, error) {
	if arg == none {
		return 0, nil
	}
	mib, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || mib < 1 {
		return 0, usage(fmt.Errorf("the limit is MiB/s, 1 or more, or %s, not %q", none, arg))
	}
	return mib, nil
}

func (a *app) groupLimit() *cobra.Command {
	cmd := &cobra.Command{
		Use: "limit GROUP MIB|none", Short: "Limit the bandwidth of a group's synchronizations",
		Long: `Limits what synchronizations of the group read and send in a second at each of its
primary nodes, in MiB, or takes the limit away. It holds at once, for one that runs,
too, and until it is changed. Writes of clients are not limited, and a synchronization
steps back while there are any.`,
		Example: "  lockstep group limit shop 100\n  lockstep group limit shop none", Args: exactArgs("GROUP", "MIB"),
	}
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		mib, err := parseLimit(args[1], "none")
		if err != nil {
			return err
		}
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		return c.LimitResync(ctx, g.ID, mib)
	})
}

func newNodeLimitCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "limit NODE MIB|default", Short: "Limit the bandwidth of a node's synchronizations",
		Long: `Limits what all synchronizations together of which the node is the primary read and
send in a second, in MiB. It holds at once, and until it is changed; with "default" the
node's own configuration counts again. It needs the role admin.`,
		Example: "  lockstep node limit az1-node-1 200\n  lockstep node limit az1-node-1 default", Args: exactArgs("NODE", "MIB"),
	}
	a.cloudFlags(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		mib, err := parseLimit(args[1], "default")
		if err != nil {
			return err
		}
		return c.LimitNodeResync(ctx, args[0], mib)
	})
}

// limitText is a limit for people.
func limitText(mib *int64, none string) string {
	if mib == nil {
		return none
	}
	return fmt.Sprintf("%d MiB/s", *mib)
}

// resyncText is how a synchronization gets on: what it does in a second, and for how long.
func resyncText(r *client.Resync) string {
	if r == nil || r.BytesPerSecond == 0 {
		return ""
	}
	s := fmt.Sprintf("%.1f MiB/s", float64(r.BytesPerSecond)/(1<<20))
	if r.SecondsLeft != nil {
		s += ", " + (time.Duration(*r.SecondsLeft) * time.Second).String() + " left"
	}
	return s
}

// resyncPercent is how far it is; -1: not known.
func resyncPercent(r *client.Resync) int {
	if r == nil || r.TotalBytes <= 0 {
		return -1
	}
	return min(99, int(float64(r.TotalBytes-r.ToSendBytes)/float64(r.TotalBytes)*100))
}

// resyncShown is a synchronization in one line; empty: none runs.
func resyncShown(r *client.Resync) string {
	if r == nil {
		return ""
	}
	s := fmt.Sprintf("%d of %d bytes to send", r.ToSendBytes, r.TotalBytes)
	if how := resyncText(r); how != "" {
		s += ", " + how
	}
	return s
}

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

// groupPreview is the command that says what a failover would lose.
func (a *app) groupPreview() *cobra.Command {
	cmd := &cobra.Command{
		Use: "failover-preview GROUP", Short: "Show what a failover would do now, and lose",
		Long: `Says whether a failover is possible now, and why not. If the group is not in sync, a
failover loses writes: the preview says what it would go back to, from when that is,
and how many bytes of each volume would be missing, as the old primary reported them
last (in whole chunks of 64 KiB; what it wrote afterwards is not counted). It ends
with a token, which "failover --force" quotes: it counts for ten minutes, and only
while everything is as the preview says. It changes nothing.`,
		Example: "  lockstep group failover-preview shop\n  lockstep group failover shop --force --token 12-1717171717-0123456789abcdef0123456789abcdef",
		Args:    exactArgs("GROUP"),
	}
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		p, err := c.FailoverPreview(ctx, g.ID)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(p)
		}
		return a.printPreview(p)
	})
}

func (a *app) printPreview(p client.FailoverPreview) error {
	allowed := "no"
	switch {
	case p.Allowed && p.Forced:
		allowed = "by force only"
	case p.Allowed:
		allowed = "yes, nothing is lost"
	}
	fields := [][2]string{{"group", p.GroupID}, {"epoch", fmt.Sprint(p.Epoch)}, {"failover", allowed}, {"from", p.From}, {"to", p.To}}
	for _, r := range p.Reasons {
		fields = append(fields, [2]string{"refused", r})
	}
	if len(p.Volumes) > 0 {
		fields = append(fields, [2]string{"goes back to", pointTime(p.RecoveryPointAt)}, [2]string{"missing", missing(p.BytesMissing)})
	}
	for _, w := range p.Warnings {
		fields = append(fields, [2]string{"warning", w})
	}
	if p.Token != nil {
		fields = append(fields, [2]string{"token", *p.Token}, [2]string{"token expires", formatTime(p.Expires)})
	}
	if err := a.printFields(fields); err != nil || len(p.Volumes) == 0 {
		return err
	}
	rows := make([][]string, len(p.Volumes))
	for i, v := range p.Volumes {
		rows[i] = []string{v.PairID, v.VolumeID, v.Image, missing(v.BytesMissing), formatTime(v.AsOf)}
	}
	return a.printTable([]string{"PAIR", "VOLUME", "IMAGE", "MISSING", "AS OF"}, rows)
}

func pointTime(t client.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func missing(n *int64) string {
	if n == nil {
		return "not known"
	}
	return fmt.Sprintf("%d bytes", *n)
}

// stated is the loss in the sentences of a question.
func stated(p client.FailoverPreview) []string {
	lines := []string{
		fmt.Sprintf("Group %s: %s becomes the primary with what it had at %s.", p.GroupID, p.To, pointTime(p.RecoveryPointAt)),
		fmt.Sprintf("WRITES THAT WERE ACKNOWLEDGED ARE LOST: %s missing, by the last report of %s.", missing(p.BytesMissing), p.From),
	}
	for _, v := range p.Volumes {
		lines = append(lines, fmt.Sprintf("  volume %s (image: %s): %s", v.VolumeID, v.Image, missing(v.BytesMissing)))
	}
	for _, w := range p.Warnings {
		lines = append(lines, "Mind: "+w+".")
	}
	return append(lines, fmt.Sprintf("What %s alone has is kept as a divergence image when it returns.", p.From))
}

// forcible gives a failover command the flags of a forced one.
func (a *app) forcible(cmd *cobra.Command) *cobra.Command {
	var force bool
	var token string
	plain := cmd.RunE
	cmd.Flags().BoolVar(&force, "force", false, "fail over to an image that lacks acknowledged writes")
	cmd.Flags().StringVar(&token, "token", "", "token of a failover-preview, for --force; without it the preview is shown, and asked about")
	cmd.Example += "\n  lockstep group failover shop --force\n  lockstep group failover shop --force --token 12-1717171717-0123456789abcdef0123456789abcdef --yes"
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !force {
			if token != "" {
				return usage(errors.New("--token goes with --force"))
			}
			return plain(cmd, args)
		}
		yes := confirmer{yes: cmd.Flags().Changed("yes")}
		if yes.yes && token == "" {
			return usage(errors.New("--force with --yes needs --token: the loss must have been looked at, see failover-preview"))
		}
		wait, err := cmd.Flags().GetBool("wait")
		if err != nil {
			return err
		}
		limit, err := cmd.Flags().GetDuration("timeout")
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		c, err := a.dial(ctx)
		if err != nil {
			return err
		}
		return a.force(ctx, c, args[0], token, yes, waiter{wait: wait, timeout: limit})
	}
	return cmd
}

func (a *app) force(ctx context.Context, c *client.Client, ref, token string, yes confirmer, w waiter) error {
	g, err := findGroup(ctx, c, ref)
	if err != nil {
		return err
	}
	p, err := c.FailoverPreview(ctx, g.ID)
	if err != nil {
		return err
	}
	switch {
	case !p.Allowed:
		return fmt.Errorf("%w: %s", errRefused, strings.Join(p.Reasons, "; "))
	case !p.Forced:
		return fmt.Errorf("%w: the group is in sync, and a failover without --force loses nothing", errRefused)
	case token == "":
		token = *p.Token
	}
	if err := a.confirm(yes, stated(p)...); err != nil {
		return err
	}
	if err := c.ForceFailover(ctx, g.ID, token); err != nil {
		return err
	}
	for _, n := range p.WaitsFor {
		if !n.Alive {
			a.say("It waits for node %s, which is not alive: once its host is surely powered off, run `lockstep group confirm-node-off %s --node %s --reason …`.", n.Node, g.ID, n.Node)
		}
	}
	return a.groupResult(ctx, w, c, g.ID, func(now client.Group) bool { return now.Status == "failovered" })
}

// groupDivergence is the family of commands about divergence images.
func (a *app) groupDivergence() *cobra.Command {
	cmd := parent("divergence", "List, export and delete what a side had that lost a forced failover",
		"When the old primary of a forced failover returns, what it alone had is kept as a\ndivergence image, before a reprotect overwrites it: whole, read-only, and until it is\ndeleted here. Its URI can be read by every NBD client, for instance with\n`qemu-img convert -f raw -O qcow2 URI old.qcow2`.",
		"  lockstep group divergence list shop\n  lockstep group divergence export shop 12 --dir /srv/rescue\n  lockstep group divergence delete shop 12 --yes")
	list := &cobra.Command{
		Use: "list GROUP", Short: "List divergence images",
		Long:    "Lists a group's divergence images with the NBD URIs of their volumes, the oldest\nfirst. IMAGE is the epoch of the forced failover.",
		Example: "  lockstep group divergence list shop", Args: exactArgs("GROUP"),
	}
	a.jsonFlag(list)
	a.apiCommand(list, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		images, err := c.DivergenceImages(ctx, g.ID)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(append([]client.DivergenceImage{}, images...))
		}
		var rows [][]string
		for _, i := range images {
			for _, v := range i.Volumes {
				rows = append(rows, []string{i.ID, formatTime(i.FailedOverAt), v.PairID, v.Node, orDash(deref(v.URI))})
			}
		}
		return a.printTable([]string{"IMAGE", "FAILED OVER", "PAIR", "NODE", "URI"}, rows)
	})
	var yes confirmer
	del := &cobra.Command{
		Use: "delete GROUP IMAGE", Short: "Delete a divergence image for good",
		Long:    "Deletes a divergence image. That of the last forced failover can be deleted before the\nlost side has made it: then a reprotect overwrites what that side alone had. It\nneeds the role operator.",
		Example: "  lockstep group divergence delete shop 12 --yes", Args: exactArgs("GROUP", "IMAGE"),
	}
	yes.flag(del)
	a.apiCommand(del, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm(yes, fmt.Sprintf("Group %s (%s): divergence image %s is deleted for good.", g.ID, orDash(printable(deref(g.Name))), args[1]),
			"What the side that lost the forced failover alone had is nowhere else."); err != nil {
			return err
		}
		return c.DeleteDivergenceImage(ctx, g.ID, args[1])
	})
	cmd.AddCommand(list, a.groupDivergenceExport(), del)
	return cmd
}

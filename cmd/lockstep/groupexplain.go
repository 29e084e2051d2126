package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

func (a *app) groupExplain() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "explain GROUP", Short: "Say what a group does and why, and what can be done about it",
		Long: `Says in which condition a group is, since when and why, who holds requests and what
is waited for, and which actions would be taken now with what each would do. The
answer is found by the code that decides the actions, so it is what they would
answer at this moment. With --all the actions that would be refused are listed too,
with the reason; for the role admin operators' statements are among them.`,
		Example: "  lockstep group explain shop\n  lockstep group explain shop --all", Args: exactArgs("GROUP"),
	}
	cmd.Flags().BoolVar(&all, "all", false, "list what would be refused, too")
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		e, err := c.Explain(ctx, g.ID)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(e)
		}
		return a.printExplanation(e, all)
	})
}

func (a *app) printExplanation(e client.Explanation, all bool) error {
	fields := [][2]string{
		{"id", e.ID},
		{"name", orDash(deref(e.Name))},
		{"condition", e.Condition},
		{"since", formatTime(e.Since)},
		{"primary, secondary", e.PriorityStation + ", " + e.Secondary},
		{"status", fmt.Sprintf("%s, %s, fault level %s", e.Status, e.ReplicationStatus, e.FaultLevel)},
		{"why", orDash(deref(e.Reason))},
		{"known to differ", fmt.Sprintf("%d bytes", e.BehindBytes)},
	}
	for _, list := range []struct {
		name  string
		texts []string
	}{{"held", e.Held}, {"waits for", e.Waiting}, {"warning", e.Warnings}} {
		for _, text := range list.texts {
			fields = append(fields, [2]string{list.name, text})
		}
	}
	if err := a.printFields(fields); err != nil {
		return err
	}
	rows := make([][]string, 0, len(e.Actions))
	for _, o := range e.Actions {
		what := o.Action
		if o.Node != "" {
			what += " " + o.Node
		}
		switch {
		case o.Allowed:
			rows = append(rows, []string{what, "yes", printable(deref(o.Effect))})
		case all:
			rows = append(rows, []string{what, "no", printable(deref(o.Refusal))})
		}
	}
	return a.printTable([]string{"ACTION", "TAKEN NOW", "WHAT IT WOULD DO, OR WHY NOT"}, rows)
}

package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/demo"
)

func newDemoCommand(a *app) *cobra.Command {
	o := demo.Options{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Kill a zone under load and prove that nothing was lost",
		Long: `Starts a deployment of two zones in a temporary directory, writes 200 MiB to each of
two disks, replicates them as one consistency group, writes chains of dependent
writes to both over NBD, kills the whole first zone with SIGKILL in the middle of
it, fails over, and looks for every acknowledged write. Then it brings the zone
back, reprotects, switches back and compares both sides byte by byte.

It prints a timeline, the lost bytes (RPO) and the time from the failover call to
the first accepted write (RTO), and fails (exit code 1) if anything differs.`,
		Example: "  lockstep demo\n  lockstep demo --sabotage --keep",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&o.Sabotage, "sabotage", false, "flip a bit of a DR disk before the comparison: the command must fail")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "keep the deployment's directory")
	cmd.Flags().DurationVar(&o.Timeout, "timeout", 5*time.Minute, "bound on everything")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		defer holdSignals()()
		o.Out, o.Progress = a.out, isTerminal(a.out)
		return demo.Run(cmd.Context(), o)
	}
	return cmd
}

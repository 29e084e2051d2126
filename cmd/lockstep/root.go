package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// app is what commands share: the streams and the flags that every command has.
type app struct {
	in       io.Reader
	out, err io.Writer

	json       bool
	cloud      string
	cloudsFile string
	region     string
}

const exitCodesText = `Exit codes:
  0  done
  1  failed
  2  usage: an unknown command, flag or argument, a wrong configuration, no
     credentials, or a question that was not answered with yes
  3  the thing does not exist
  4  conflict: refused because of the status the thing has
  5  timed out while waiting; what was asked for may still go on
  6  the API or the store cannot be reached`

// run carries out one command line and returns the process's exit code. The first SIGINT or
// SIGTERM cancels the command's context; a second one ends the process at once.
func run(args []string, in io.Reader, out, errw io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // hand the second signal to the default handler
	root := newRoot(&app{in: in, out: out, err: errw})
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(errw, "lockstep: %v\n", err)
		return exitCode(err)
	}
	return exitOK
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "lockstep",
		Short: "Synchronous replication of block volumes between two availability zones",
		Long: `Lockstep keeps block volumes of two availability zones identical, write by
write, and moves a whole application from one zone to the other with one API
call, without losing a write that was ever acknowledged.

The daemons are "lockstep controller" and "lockstep node"; "lockstep dev" runs a
whole deployment on one machine; the other commands speak to the API with the
credentials of an openrc or of clouds.yaml.

` + exitCodesText,
		Example: `  lockstep dev --dir ./dev
  source ./dev/openrc
  lockstep group list`,
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		Args:                       noArgs,
		RunE:                       helpOnly,
		DisableAutoGenTag:          true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(newHelpCommand(root))
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.AddCommand(
		newControllerCommand(a), newNodeCommand(a), newConfigCommand(a), newDevCommand(a),
		newDemoCommand(a), newTortureCommand(a), newVolumeCommand(a), newPairCommand(a), newGroupCommand(a), newStoreCommand(a),
		newUserCommand(a), newProjectCommand(a), newRoleCommand(a), newCACommand(a), newVersionCommand(a),
	)
	for _, c := range allCommands(root) {
		if c != root {
			c.Long += "\n\nExit codes are listed by \"lockstep --help\": " + exitCodesLine
		}
	}
	return root
}

const exitCodesLine = `0 done, 1 failed, 2 usage, 3 not found,
4 conflict, 5 timed out, 6 unreachable.`

// allCommands lists c and all commands below it, depth first.
func allCommands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, allCommands(sub)...)
	}
	return all
}

// helpOnly is for commands that only group others.
func helpOnly(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()))
	}
	return cmd.Help()
}

// newHelpCommand replaces cobra's, which prints an unknown topic's error and then succeeds.
func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND...]", Short: "Show the help of a command",
		Long:    "Shows the help of a command, as its --help does.",
		Example: "  lockstep help group failover",
		RunE: func(_ *cobra.Command, args []string) error {
			target, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usage(fmt.Errorf("unknown command %q", strings.Join(args, " ")))
			}
			return target.Help()
		},
	}
}

// parent makes a command that only groups others.
func parent(use, short, long, example string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: noArgs, RunE: helpOnly}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		if cmd.HasSubCommands() {
			return usage(fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()))
		}
		return usage(fmt.Errorf("unexpected argument %q for %q", args[0], cmd.CommandPath()))
	}
	return nil
}

// exactArgs wants as many arguments as names and says which one is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage(fmt.Errorf("missing argument %s; usage: %s", names[len(args)], cmd.UseLine()))
		case len(args) > len(names):
			return usage(fmt.Errorf("unexpected argument %q; usage: %s", args[len(names)], cmd.UseLine()))
		}
		return nil
	}
}

// atLeastArgs wants one or more of name.
func atLeastArgs(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(fmt.Errorf("missing argument %s; usage: %s", name, cmd.UseLine()))
		}
		return nil
	}
}

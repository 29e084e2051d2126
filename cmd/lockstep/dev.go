package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
)

// devStopGrace is how long a clean stop of a member may take before it is killed.
const devStopGrace = 20 * time.Second

func newDevCommand(a *app) *cobra.Command {
	var dir string
	var o dev.Options
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole deployment of two zones on this machine",
		Long: `Runs a controller with an embedded store and the nodes of every zone, each as a
process of its own, in the foreground until SIGTERM, SIGINT or SIGHUP, and then
stops them all, even if nobody reads its output any more. A line that starts with "ready" says that the API answers and all nodes
are alive. A process that ends by itself is reported and not restarted: use
"lockstep dev start".

The directory holds everything: openrc and clouds.yaml with the credentials, the
logs, the pid files and the volumes. A second start on the same directory goes on
with the same data, credentials and addresses.`,
		Example: `  lockstep dev --dir ./dev
  lockstep dev --dir ./dev --az north --az south --nodes-per-az 2
  lockstep dev kill az1 --dir ./dev
  lockstep dev start az1 --dir ./dev`,
		Args: noArgs,
	}
	devDir(cmd, &dir)
	cmd.Flags().StringVar(&o.Listen, "listen", "", "host:port of the API; port 0: any free one (default 127.0.0.1:8776, then as before)")
	cmd.Flags().StringVar(&o.Region, "region", "", "name of the region (default region-1)")
	cmd.Flags().StringArrayVar(&o.AZs, "az", nil, "name of a zone; repeat it (default az1 and az2)")
	cmd.Flags().StringArrayVar(&o.Etcd, "etcd-endpoint", nil, "URL of an etcd cluster of your own, instead of an embedded member; repeat it (first start only)")
	cmd.Flags().IntVar(&o.NodesPerAZ, "nodes-per-az", 0, "nodes in each zone (default 1, then as before)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		l, err := dev.Open(dir)
		if err != nil {
			return usage(err)
		}
		defer holdSignals()()
		// The terminal may go away: that is a reason to stop, not to leave the members alone.
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
		defer stop()
		return devError(dev.Run(ctx, l, o, &devProbe{}, a.out))
	}
	cmd.AddCommand(a.devStart(), a.devEnd("stop", "Stop processes of a deployment cleanly", syscall.SIGTERM,
		"Stops nodes of a zone, or the controller, with SIGTERM and waits for their end. A\nprocess that takes longer than 20 seconds is killed."),
		a.devEnd("kill", "Kill processes of a deployment", syscall.SIGKILL,
			"Kills nodes of a zone, or the controller, with SIGKILL: all at once, as when a zone\nloses its power, except that the page cache of this machine stays."),
		a.devStatus())
	return cmd
}

// holdSignals keeps signals from ending a command that has processes of its own to stop: a second
// SIGINT while it does so, and SIGPIPE from whoever closed its output. Unlike ignoring them, this is
// not inherited by those processes.
func holdSignals() (restore func()) {
	held := make(chan os.Signal, 1) // never read: what is not taken is dropped
	signal.Notify(held, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	return func() { signal.Stop(held) }
}

func devDir(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "dev", "directory of the deployment")
}

// devError gives the refusals of package dev their exit code.
func devError(err error) error {
	switch {
	case errors.Is(err, dev.ErrUsage):
		return usage(err)
	case errors.Is(err, dev.ErrRefused):
		return fmt.Errorf("%w (%w)", err, lockstep.ErrConflict)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (%w)", err, lockstep.ErrNotFound)
	}
	return err
}

// devMembers resolves "controller" or a zone, and a node of it.
func devMembers(l dev.Layout, target string, node int) ([]dev.Member, error) {
	spec, err := l.Spec()
	if err != nil {
		return nil, devError(err)
	}
	if target == "controller" {
		if node != 0 {
			return nil, usage(errors.New("--node goes with a zone, not with the controller"))
		}
		return []dev.Member{dev.Controller}, nil
	}
	members := spec.Members(target)
	if len(members) == 0 {
		return nil, fmt.Errorf("zone %q of %s: %w; there are %v", target, l.Dir, lockstep.ErrNotFound, spec.AZs)
	}
	if node == 0 {
		return members, nil
	}
	if node < 0 || node > len(members) {
		return nil, fmt.Errorf("node %d of zone %q: %w; there are %d", node, target, lockstep.ErrNotFound, len(members))
	}
	return members[node-1 : node], nil
}

func (a *app) devStart() *cobra.Command {
	var dir string
	var node int
	var w waiter
	cmd := &cobra.Command{
		Use: "start AZ|controller", Short: "Start processes of a deployment again",
		Long: `Starts nodes of a zone, or the controller, that were stopped or killed. They run on
after the command, and "lockstep dev" stops them at its end; without a running
"lockstep dev" on the directory it is refused. What runs already is left alone.`,
		Example: "  lockstep dev start az1 --dir ./dev --wait\n  lockstep dev start az1 --node 2 --dir ./dev", Args: exactArgs("AZ|controller"),
	}
	devDir(cmd, &dir)
	cmd.Flags().IntVar(&node, "node", 0, "only this node of the zone, counted from 1")
	w.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		l, err := dev.Open(dir)
		if err != nil {
			return usage(err)
		}
		members, err := devMembers(l, args[0], node)
		if err != nil {
			return err
		}
		started, err := l.Launch(members)
		for _, m := range started {
			a.say("started %s", m)
		}
		if err != nil {
			return devError(err)
		}
		if len(started) == 0 {
			a.say("runs already")
		}
		if !w.wait {
			return nil
		}
		var probe devProbe
		return a.until(cmd.Context(), w, args[0], func(ctx context.Context) (look, error) {
			alive, err := probe.Alive(ctx, l.CloudsFile())
			if err != nil {
				return look{text: "the API does not answer", percent: -1}, err
			}
			for _, m := range members {
				if m.IsNode() && !alive[m.NodeID()] {
					return look{text: "not alive yet", percent: -1}, nil
				}
			}
			return look{text: "alive", percent: -1, done: true}, nil
		})
	}
	return cmd
}

func (a *app) devEnd(use, short string, sig syscall.Signal, long string) *cobra.Command {
	var dir string
	var node int
	cmd := &cobra.Command{
		Use: use + " AZ|controller", Short: short, Long: long,
		Example: "  lockstep dev " + use + " az1 --dir ./dev\n  lockstep dev " + use + " controller --dir ./dev", Args: exactArgs("AZ|controller"),
	}
	devDir(cmd, &dir)
	cmd.Flags().IntVar(&node, "node", 0, "only this node of the zone, counted from 1")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		l, err := dev.Open(dir)
		if err != nil {
			return usage(err)
		}
		members, err := devMembers(l, args[0], node)
		if err != nil {
			return err
		}
		ran, err := l.End(cmd.Context(), members, sig, devStopGrace)
		for _, m := range ran {
			a.say("ended %s", m)
		}
		if len(ran) == 0 && err == nil {
			a.say("nothing ran")
		}
		return err
	}
	return cmd
}

func (a *app) devStatus() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "status", Short: "Show which processes of a deployment run",
		Long:    "Lists the processes of a deployment with their pids and logs.",
		Example: "  lockstep dev status --dir ./dev", Args: noArgs,
	}
	devDir(cmd, &dir)
	a.jsonFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		l, err := dev.Open(dir)
		if err != nil {
			return usage(err)
		}
		spec, err := l.Spec()
		if err != nil {
			return devError(err)
		}
		type row struct {
			Process string `json:"process"`
			PID     int    `json:"pid"` // 0: does not run
			Log     string `json:"log"`
		}
		var list []row
		for _, m := range append([]dev.Member{dev.Controller}, spec.Members("")...) {
			pid, err := l.PID(m)
			if err != nil {
				return err
			}
			list = append(list, row{m.String(), pid, l.Log(m)})
		}
		if a.json {
			return a.printJSON(list)
		}
		rows := make([][]string, len(list))
		for i, r := range list {
			state := "down"
			if r.PID != 0 {
				state = strconv.Itoa(r.PID)
			}
			rows[i] = []string{r.Process, state, r.Log}
		}
		return a.printTable([]string{"PROCESS", "PID", "LOG"}, rows)
	}
	return cmd
}

// devProbe asks a deployment through its API. It is used by one goroutine.
type devProbe struct {
	c *client.Client // nil: not logged in yet
}

// Login logs in by the project's name and tells its id.
func (*devProbe) Login(ctx context.Context, c dev.Credentials) (dev.Credentials, error) {
	cl, err := client.DialWith(ctx, client.PasswordAuth(c.AuthURL, c.Username, c.Password, c.Domain, c.ProjectName),
		client.AnyRegion, nil, "lockstep/"+version)
	if err != nil {
		return c, err
	}
	c.ProjectID, err = cl.ProjectID()
	return c, err
}

// Alive lists the nodes that are alive.
func (p *devProbe) Alive(ctx context.Context, cloudsFile string) (map[string]bool, error) {
	if p.c == nil {
		c, err := client.Dial(ctx, client.Options{Cloud: "lockstep", CloudsFile: cloudsFile, UserAgent: "lockstep/" + version})
		if err != nil {
			return nil, err
		}
		p.c = c
	}
	nodes, err := p.c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	alive := map[string]bool{}
	for _, n := range nodes {
		alive[n.ID] = n.Alive
	}
	return alive, nil
}

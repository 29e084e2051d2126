package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/torture"
)

func newTortureCommand(a *app) *cobra.Command {
	var o torture.Options
	var file string
	cmd := &cobra.Command{
		Use:   "torture",
		Short: "Break a throw-away deployment for a while and prove that nothing is lost",
		Long: `Starts a deployment of two zones in a temporary directory of this machine, writes
to its disks over NBD from both zones, and breaks it: kills and pauses nodes and
whole zones, cuts links one way and both ways, isolates a zone, takes the quorum
of the store away, gives nodes new boot ids, two or three of these at once, with
failovers, switchovers and pauses in the middle of it. Every other round is aimed
at a moment in which a rule of the protocol matters. After every round it mends
everything, waits until all groups are active again, and checks that

  - every acknowledged write is there, and every read was right: the requests to
    each block have an order that explains all answers of both zones
  - the disks of a group were one consistent cut whenever they were opened
  - both sides are byte-identical
  - every status and every answer of the API was a documented one

It ends with a verdict and a report, and with exit code 1 if anything else than
"nothing lost" was found; the directory with all logs is kept then. What is done
in each round follows from the seed; what it meets depends on the machine, too.

It needs no root, listens on 127.0.0.1 only, and touches nothing but its own
directory and processes. It takes some 1 GiB of disk and 500 MiB of memory for
each group of two disks, and loads the machine. An interrupt ends it early with
the report so far.`,
		Example: `  lockstep torture
  lockstep torture --time 1h --report torture.json
  lockstep torture --time 10m --seed 7 --groups 2 --keep --dir ./torture`,
		Args: noArgs,
	}
	f := cmd.Flags()
	f.DurationVar(&o.Time, "time", 10*time.Minute, "no round begins later than this")
	f.Uint64Var(&o.Seed, "seed", 0, "what is done follows from it; 0: a random one")
	f.StringVar(&o.Dir, "dir", "", "directory of the deployment, new or empty (default: a temporary one)")
	f.IntVar(&o.Groups, "groups", 1, "consistency groups")
	f.IntVar(&o.Disks, "disks", 2, "disks of each group, of 1 GiB")
	f.IntVar(&o.NodesPerAZ, "nodes-per-az", 2, "nodes in each zone")
	f.StringSliceVar(&o.Plans, "plan", nil, "plans that rounds are chosen from (default: all): "+strings.Join(torture.PlanNames(), ", "))
	f.BoolVar(&o.Keep, "keep", false, "keep the directory after a good run, too")
	f.StringVar(&file, "report", "", "write the report as JSON to this file, too")
	a.jsonFlag(cmd)
	cmd.AddCommand(a.tortureMember())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		defer holdSignals()()
		if o.Seed == 0 {
			o.Seed = rand.Uint64()>>12 + 1 // short enough for JSON's numbers
		}
		if o.Out = a.out; a.json {
			o.Out = a.err // what was asked for is the report alone
		}
		var to *os.File
		if file != "" {
			var err error
			if to, err = os.Create(file); err != nil { // before the work, not after it
				return usage(err)
			}
		}
		report, err := torture.Run(cmd.Context(), o)
		if errors.Is(err, torture.ErrUsage) {
			return usage(err)
		}
		if err != nil {
			return fmt.Errorf("torture: %w; seed %d, directory %s", err, report.Seed, report.Directory)
		}
		if to != nil {
			if err := writeReport(to, report); err != nil {
				return fmt.Errorf("write the report: %w", err)
			}
		}
		return a.showTorture(report)
	}
	return cmd
}

// tortureMember is a process of a run, and nothing for people.
func (a *app) tortureMember() *cobra.Command {
	var c torture.MemberConfig
	cmd := &cobra.Command{
		Use: "member", Hidden: true, Short: "Run a member of the store of a run",
		Long:    "Runs a member of the store of \"lockstep torture\", which starts it.",
		Example: "  lockstep torture member --dir D --name s1 --client 127.0.0.1:1 --peer 127.0.0.1:2 --cluster s1=http://127.0.0.1:2", Args: noArgs,
	}
	f := cmd.Flags()
	f.StringVar(&c.Dir, "dir", "", "directory")
	f.StringVar(&c.Name, "name", "", "name in the cluster")
	f.StringVar(&c.Client, "client", "", "host:port for clients")
	f.StringVar(&c.Peer, "peer", "", "host:port for the other members")
	f.StringVar(&c.Cluster, "cluster", "", "all members")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return torture.RunMember(cmd.Context(), c, newLogger(a.err, "info", "text"))
	}
	return cmd
}

func writeReport(to io.WriteCloser, report torture.Report) error {
	enc := json.NewEncoder(to)
	enc.SetIndent("", "  ")
	return errors.Join(enc.Encode(report), to.Close())
}

// showTorture prints the report; it is an error if anything was found.
func (a *app) showTorture(p torture.Report) error {
	if a.json {
		if err := a.printJSON(p); err != nil {
			return err
		}
	} else if err := a.printTorture(p); err != nil {
		return err
	}
	if p.Verdict == torture.NothingLost {
		return nil
	}
	choice := ""
	if len(p.Choice) > 0 {
		choice = fmt.Sprintf(" --plan %q", strings.Join(p.Choice, ","))
	}
	return fmt.Errorf("%s\nthe logs are in %s; the same again: lockstep torture --seed %d --groups %d --disks %d --nodes-per-az %d%s",
		p.Verdict, p.Directory, p.Seed, p.Groups, p.Disks, p.NodesPerAZ, choice)
}

func (a *app) printTorture(p torture.Report) error {
	if len(p.Story) > 0 {
		fmt.Fprintf(a.out, "\nThe story of round %d:\n", p.Rounds)
		for _, line := range p.Story {
			fmt.Fprintln(a.out, printable(line))
		}
	}
	fmt.Fprintln(a.out)
	rows := [][]string{
		{"seed", strconv.FormatUint(p.Seed, 10)},
		{"time", (time.Duration(p.Seconds*1000) * time.Millisecond).Round(100 * time.Millisecond).String()},
		{"rounds", strconv.Itoa(p.Rounds)},
	}
	for _, name := range slices.Sorted(maps.Keys(p.Plans)) {
		c := p.Plans[name]
		text := strconv.Itoa(c.Rounds)
		if name != torture.RandomPlan {
			text += fmt.Sprintf(", %d in the window", c.Reached)
		}
		rows = append(rows, []string{"plan: " + name, text})
	}
	for _, name := range slices.Sorted(maps.Keys(p.Faults)) {
		rows = append(rows, []string{"fault: " + name, strconv.Itoa(p.Faults[name])})
	}
	for _, name := range slices.Sorted(maps.Keys(p.Calls)) {
		c := p.Calls[name]
		rows = append(rows, []string{"call: " + name, fmt.Sprintf("%d done, %d refused, %d unanswered", c["done"], c["refused"], c["unanswered"])})
	}
	rows = append(rows, [][]string{
		{"writes checked", fmt.Sprintf("%d in chains, %d of registers", p.ChainWrites, p.Registers.Writes)},
		{"reads checked", strconv.Itoa(p.Registers.Reads)},
		{"writes without an answer", strconv.Itoa(p.Registers.Open)},
		{"consistent cuts checked", strconv.FormatInt(p.ImagesJudged, 10)},
		{"reads of a hot range", strconv.FormatInt(p.HotReads, 10)},
		{"compared on each side", fmt.Sprintf("%d MiB", p.BytesCompared>>20)},
		{"longest write", fmt.Sprintf("%d ms", p.LongestWriteMS)},
		{"failovers timed", strconv.Itoa(p.Failovers)},
		{"failover call to first write", fmt.Sprintf("median %d ms, worst %d ms", p.FailoverMedMS, p.FailoverWorstMS)},
		{"with more faults meanwhile", fmt.Sprintf("%d failovers, worst %d ms", p.FailoversHurt, p.FailoverHurtWorst)},
	}...)
	if err := a.printTable([]string{"WHAT", "VALUE"}, rows); err != nil {
		return err
	}
	if p.Verdict == torture.NothingLost {
		kept := ""
		if p.Directory != "" {
			kept = "; kept: " + p.Directory
		}
		fmt.Fprintf(a.out, "\nverdict: %s%s\n", p.Verdict, kept)
	}
	return nil
}

package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// median is the middle one; 0 if there is none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// values collects what get gives for the runs of a system under a job.
func values(runs []run, system, workload string, get func(run) float64) []float64 {
	var out []float64
	for _, r := range runs {
		if r.System == system && r.Workload == workload {
			out = append(out, get(r))
		}
	}
	return out
}

// printLoads prints medians with their range, and Lockstep's ratios beside the goals.
func printLoads(w io.Writer, o options, runs []run) {
	jobs, all := chosen(workloads, o.workloads), chosen(systems, o.systems)
	head := table.Row{"4 KiB: requests/s, 1 MiB: MiB/s"}
	for _, j := range jobs {
		head = append(head, j.title)
	}
	newTable := func(title string, first string) table.Writer {
		t := table.NewWriter()
		t.SetOutputMirror(w)
		t.SetTitle(title)
		t.SetStyle(table.StyleLight)
		t.Style().Format.Header = text.FormatDefault
		head[0] = first
		t.AppendHeader(slices.Clone(head))
		return t
	}
	per := newTable("medians (least to most)", "requests/s, or MiB/s")
	lat := newTable("99th percentile, us (flush)", "system")
	cpu := newTable("CPU seconds per 10,000 requests, all processes of the system", "system")
	for _, s := range all {
		rates, tails, costs := table.Row{s.title}, table.Row{s.title}, table.Row{s.title}
		for _, j := range jobs {
			v := values(runs, s.name, j.id, func(r run) float64 { return r.value(j) })
			rates = append(rates, fmt.Sprintf("%.0f (%.0f to %.0f)", median(v), slices.Min(v), slices.Max(v)))
			p := fmt.Sprintf("%.0f", median(values(runs, s.name, j.id, func(r run) float64 { return r.P99Us })))
			if f := median(values(runs, s.name, j.id, func(r run) float64 { return r.SyncP99 })); f > 0 {
				p += fmt.Sprintf(" (%.0f)", f)
			}
			tails = append(tails, p)
			costs = append(costs, fmt.Sprintf("%.3f", median(values(runs, s.name, j.id, func(r run) float64 { return r.CPU }))))
		}
		per.AppendRow(rates)
		lat.AppendRow(tails)
		cpu.AppendRow(costs)
	}
	fmt.Fprintln(w)
	per.Render()
	lat.Render()
	cpu.Render()
	ratios := newTable("Lockstep's median over the peer's (goal)", "against")
	for _, s := range all {
		if s.name == "lockstep" {
			continue
		}
		row := table.Row{s.title}
		for _, j := range jobs {
			mine := median(values(runs, "lockstep", j.id, func(r run) float64 { return r.value(j) }))
			theirs := median(values(runs, s.name, j.id, func(r run) float64 { return r.value(j) }))
			cell := "-"
			if theirs > 0 && mine > 0 {
				cell = fmt.Sprintf("%.2f", mine/theirs)
				if goal := j.goals[s.name]; goal > 0 {
					cell += fmt.Sprintf(" (%.2f)%s", goal, verdict(mine/theirs >= goal))
				}
			}
			row = append(row, cell)
		}
		ratios.AppendRow(row)
	}
	ratios.Render()
	for _, j := range jobs {
		for _, goal := range []struct {
			what  string
			limit float64
			get   func(run) float64
		}{
			{"p99", map[bool]float64{true: 1}[j.p99], func(r run) float64 { return r.P99Us + r.SyncP99 }},
			{"CPU", j.cpu, func(r run) float64 { return r.CPU }},
		} {
			mine, theirs := median(values(runs, "lockstep", j.id, goal.get)), median(values(runs, "quorum", j.id, goal.get))
			if goal.limit > 0 && theirs > 0 {
				fmt.Fprintf(w, "%s, %s: %.2f of QEMU quorum's (at most %.2f)%s\n", j.title, goal.what, mine/theirs, goal.limit, verdict(mine/theirs <= goal.limit))
			}
		}
	}
}

func verdict(ok bool) string {
	if ok {
		return ""
	}
	return " *"
}

package main

import (
	"errors"
	"fmt"
	"image/color"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// plotLoads draws every system's medians as multiples of QEMU quorum's, or, where that was not measured,
// of the first system's.
func plotLoads(o options, runs []run) error {
	jobs, all := chosen(workloads, o.workloads), chosen(systems, o.systems)
	base := all[0].name
	for _, s := range all {
		if s.name == "quorum" {
			base = s.name
		}
	}
	p := plot.New()
	p.Title.Text = "Throughput, as multiples of " + base
	p.Y.Min = 0
	p.Legend.Top = true
	p.BackgroundColor = color.White
	width := vg.Points(11)
	for i, s := range all {
		var bars plotter.Values
		for _, j := range jobs {
			get := func(r run) float64 { return r.value(j) }
			of := median(values(runs, base, j.id, get))
			if of == 0 {
				of = 1
			}
			bars = append(bars, median(values(runs, s.name, j.id, get))/of)
		}
		b, err := plotter.NewBarChart(bars, width)
		if err != nil {
			return fmt.Errorf("plot %s: %w", s.name, err)
		}
		b.LineStyle.Width = 0
		b.Color = plotutil.Color(i)
		b.Offset = (vg.Length(i) - vg.Length(len(all)-1)/2) * width
		p.Add(b)
		p.Legend.Add(s.title, b)
	}
	var labels []string
	for _, j := range jobs {
		labels = append(labels, j.title)
	}
	p.NominalX(labels...)
	return p.Save(14*vg.Inch, 5*vg.Inch, filepath.Join(o.out, "load.svg"))
}

// plotLong draws how late writes ended and what the processes held, over the hours.
func plotLong(o options, run *longRun) error {
	late, held := plot.New(), plot.New()
	late.Title.Text, late.Y.Label.Text = fmt.Sprintf("Writes at %d requests/s", run.Rate), "ms"
	late.Y.Scale, late.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	held.Title.Text, held.Y.Label.Text, held.Y.Min = "Resident memory", "MiB", 0
	draw := func(p *plot.Plot, title string, color int, get func(window) float64) error {
		var xy plotter.XYs
		for _, w := range run.Windows {
			if y := get(w); y > 0 { // a window without requests has no place on a logarithmic scale
				xy = append(xy, plotter.XY{X: w.Seconds / 60, Y: y})
			}
		}
		l, err := plotter.NewLine(xy)
		if err != nil {
			return fmt.Errorf("plot %s: %w", title, err)
		}
		l.Color = plotutil.Color(color)
		p.Add(l)
		p.Legend.Add(title, l)
		return nil
	}
	var errs []error
	for i, x := range []struct {
		title string
		get   func(window) float64
	}{
		{"p99.9", func(w window) float64 { return w.P999Us / 1000 }},
		{"p99", func(w window) float64 { return w.P99Us / 1000 }},
		{"median", func(w window) float64 { return w.P50Us / 1000 }},
	} {
		errs = append(errs, draw(late, x.title, i, x.get))
	}
	for i, name := range processes(run.Windows[0]) {
		errs = append(errs, draw(held, name, i, func(w window) float64 { return w.Processes[name].RSSMiB }))
	}
	for name, p := range map[string]*plot.Plot{"long-latency.svg": late, "long-memory.svg": held} {
		p.X.Label.Text, p.Legend.Top, p.BackgroundColor = "minutes", true, color.White
		errs = append(errs, p.Save(10*vg.Inch, 4*vg.Inch, filepath.Join(o.out, name)))
	}
	return errors.Join(errs...)
}

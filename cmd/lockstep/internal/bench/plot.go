package main

import (
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

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// jsonFlag gives cmd --json.
func (a *app) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON instead of a table")
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// isTerminal reports whether w is a terminal that a person looks at.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// printTable prints rows under a header. Cells are cleaned of control characters: names come from
// other users.
func (a *app) printTable(header []string, rows [][]string) error {
	t := table.NewWriter()
	t.SetStyle(tableStyle())
	t.AppendHeader(toRow(header))
	for _, r := range rows {
		t.AppendRow(toRow(r))
	}
	_, err := fmt.Fprintln(a.out, t.Render())
	return err
}

// printFields prints one thing as two columns.
func (a *app) printFields(fields [][2]string) error {
	t := table.NewWriter()
	t.SetStyle(tableStyle())
	t.AppendHeader(table.Row{"FIELD", "VALUE"})
	for _, f := range fields {
		t.AppendRow(table.Row{f[0], printable(f[1])})
	}
	_, err := fmt.Fprintln(a.out, t.Render())
	return err
}

func tableStyle() table.Style {
	s := table.StyleDefault
	s.Format.Header = text.FormatDefault
	s.Options = table.Options{SeparateColumns: true, SeparateHeader: true}
	s.Box.MiddleVertical = " "
	s.Box.MiddleHorizontal = "-"
	s.Box.MiddleSeparator = " "
	s.Box.PaddingLeft, s.Box.PaddingRight = "", " "
	return s
}

func toRow(cells []string) table.Row {
	row := make(table.Row, len(cells))
	for i, c := range cells {
		row[i] = printable(c)
	}
	return row
}

// printable replaces what could move the cursor or colour the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// say prints a line for people; it goes to stderr, so that stdout stays what was asked for.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.err, format+"\n", args...)
}

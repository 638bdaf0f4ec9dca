package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// formats of every listing.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

// listing adds -o to a command.
func (a *app) listing(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&a.output, "output", "o", formatTable, "table, json or yaml")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{formatTable, formatJSON, formatYAML}, cobra.ShellCompDirectiveNoFileComp))
	inner := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		switch a.output {
		case formatTable, formatJSON, formatYAML:
			return inner(cmd, args)
		}
		return fmt.Errorf("--output: is %q, expected table, json or yaml", a.output)
	}
	return c
}

// show prints v, as a table by what table writes.
func (a *app) show(v any, table func(w io.Writer) error) error {
	if a.output == formatTable {
		return table(a.Stdout)
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	if a.output == formatYAML {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return fmt.Errorf("encode output: %w", err)
		}
	}
	_, err = fmt.Fprintln(a.Stdout, strings.TrimRight(string(b), "\n"))
	return err
}

// columns is a table without trailing blanks.
type columns struct {
	w    io.Writer
	rows [][]string
}

func newColumns(w io.Writer, head ...string) *columns { return &columns{w: w, rows: [][]string{head}} }

func (c *columns) row(cells ...string) {
	for i, s := range cells {
		if cells[i] = strings.Join(strings.Fields(s), " "); s == "" {
			cells[i] = "-"
		}
	}
	c.rows = append(c.rows, cells)
}

func (c *columns) flush(indent string) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range c.rows {
		if _, err := fmt.Fprintln(t, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(c.w, indent+strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// age is how long ago t was, in one or two units.
func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(a.Clock.Now().Sub(t))
}

func (a *app) ago(t time.Time) string {
	if a.Clock.Now().Sub(t) < time.Second {
		return "just now"
	}
	return a.age(t) + " ago"
}

// until is when a moment to come is, and how far away.
func (a *app) until(t time.Time) string {
	left := t.Sub(a.Clock.Now())
	if left <= 0 {
		return "until " + t.Local().Format("15:04:05")
	}
	layout := "15:04:05"
	if left > 20*time.Hour {
		layout = "Jan 2 15:04"
	}
	return fmt.Sprintf("until %s (%s left)", t.Local().Format(layout), span(left))
}

// at is when something happens by itself.
func (a *app) at(t time.Time) string {
	return strings.NewReplacer("until ", "at ", "(", "(in ", " left)", ")").Replace(a.until(t))
}

func span(d time.Duration) string {
	d = d.Abs()
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 10*time.Minute && d%time.Minute >= time.Second:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 10*time.Hour && d%time.Hour >= time.Minute:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

func clockTime(t time.Time) string { return t.Local().Format("15:04:05") }

// short is a type without prefix and version.
func short(typ string) string {
	if d, ok := events.Lookup(typ); ok {
		return d.Suffix()
	}
	return typ
}

func percent(f float64) string { return fmt.Sprintf("%.0f%%", f*100) }

func signed(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%+d", n)
}

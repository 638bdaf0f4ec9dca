package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Problem is one thing that is wrong in a configuration file.
type Problem struct {
	File     string
	Line     int    // 1-based; 0 when the problem has no place in the file
	Column   int    // 1-based
	Key      string // path, e.g. "clusters[0].pools[1].max"
	Value    string // as it stands in the file, references not resolved
	Expected string
	Message  string
}

// String is "file:line:col: key: message", the form that editors understand.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Message)
	if p.Expected != "" {
		b.WriteString(", expected " + p.Expected)
	}
	return b.String()
}

// Errors is everything that is wrong in a configuration file, in its order.
type Errors struct{ Problems []Problem }

func (e *Errors) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Event is the payload of a config.rejected with these problems.
func (e *Errors) Event() events.ConfigRejected {
	out := make([]events.ConfigProblem, len(e.Problems))
	for i, p := range e.Problems {
		out[i] = events.ConfigProblem(p)
	}
	return events.ConfigRejected{Problems: out}
}

// problems collects.
type problems struct {
	list []Problem
}

func (ps *problems) add(p Problem) { ps.list = append(ps.list, p) }

// err returns the problems in the order of the file, each once, or nil.
func (ps *problems) err() error {
	if len(ps.list) == 0 {
		return nil
	}
	list := slices.Clone(ps.list)
	slices.SortStableFunc(list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Errors{Problems: slices.Compact(list)}
}

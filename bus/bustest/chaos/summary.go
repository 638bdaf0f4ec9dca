package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Result is what a run came to.
type Result struct {
	Schedule   Schedule
	Violations []Violation
	// Events is how many the stream of record holds at the end, Dead how many
	// dead letters there are, Effects how many operations took place.
	Events, Dead, Effects int
	// Fired is how often each kind of fault hit something in flight; Missed how
	// often there was nothing to hit.
	Fired, Missed map[Fault]int
	Took          time.Duration
}

// Counts reports whether a fault hit a message or an effect in flight: a run
// that nothing disturbed proves nothing.
func (r Result) Counts() bool {
	for f, n := range r.Fired {
		if n > 0 && f != FaultCompete && f != FaultSkew && f != FaultDuplicate && f != FaultPoison {
			return true
		}
	}
	return false
}

func (r Result) String() string {
	s := fmt.Sprintf("%s: %d events, %d effects, %d dead letters, hit by %s, took %s",
		r.Schedule, r.Events, r.Effects, r.Dead, kinds(r.Fired), r.Took.Round(100*time.Millisecond))
	if !r.Counts() {
		s += "; it does not count"
	}
	return s
}

func kinds(n map[Fault]int) string {
	var out []string
	for _, f := range Faults() {
		if n[f] > 0 {
			out = append(out, fmt.Sprintf("%s %d", f, n[f]))
		}
	}
	return strings.Join(out, ", ")
}

// Summary adds up runs.
type Summary struct {
	// Counted are runs in which a fault hit something in flight; Void those in which
	// none did, and which were replaced; Broken those that could not be finished.
	Counted, Void, Broken int
	Production            int // of Counted: with the default times of the bus
	Events, Effects, Dead int
	Fired, Missed         map[Fault]int
	Violations            map[string]int // by rule
	Topologies            map[Topology]int
}

// Add adds a run, or the error that it ended with.
func (s *Summary) Add(r Result, err error) {
	if s.Fired == nil {
		s.Fired, s.Missed, s.Violations, s.Topologies = map[Fault]int{}, map[Fault]int{}, map[string]int{}, map[Topology]int{}
	}
	for _, v := range r.Violations {
		s.Violations[v.Rule]++
	}
	switch {
	case err != nil:
		s.Broken++
		return
	case !r.Counts():
		s.Void++
		return
	}
	s.Counted++
	if r.Schedule.Times == ProductionTimes() {
		s.Production++
	}
	s.Topologies[r.Schedule.Topology]++
	s.Events += r.Events
	s.Effects += r.Effects
	s.Dead += r.Dead
	for f, n := range r.Fired {
		s.Fired[f] += n
	}
	for f, n := range r.Missed {
		s.Missed[f] += n
	}
}

// rules are what is counted as lost, reordered and doubled.
var rules = []struct {
	name  string
	rules []string
}{
	{"lost", []string{RuleLost, RuleUnended, RuleDead}},
	{"order violations", []string{RuleOrder, RuleOverlap, RuleBatch}},
	{"doubled effects", []string{RuleOnce, RuleOutput, RuleDoubled}},
	{"processes that did not stop", []string{RuleShutdown}},
}

func (s Summary) verdict() string {
	var out []string
	for _, r := range rules {
		n := 0
		for _, rule := range r.rules {
			n += s.Violations[rule]
		}
		out = append(out, fmt.Sprintf("%d %s", n, r.name))
	}
	return strings.Join(out, ", ")
}

func (s Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d schedules (%d with production values; %d more hit nothing and were replaced, %d broke off), %d events, %d effects, %d dead letters: %s\n",
		s.Counted, s.Production, s.Void, s.Broken, s.Events, s.Effects, s.Dead, s.verdict())
	for _, f := range Faults() {
		fmt.Fprintf(&b, "  %-10s hit %4d, found nothing in flight %d\n", f, s.Fired[f], s.Missed[f])
	}
	return b.String()
}

// ReportOptions say about what a report is.
type ReportOptions struct {
	Date      time.Time
	Took      time.Duration
	Commit    string
	FirstSeed uint64
}

// Report is a page about a run.
func (s Summary) Report(o ReportOptions) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Soak\n\nWritten by `make soak`. What a schedule is and what is checked: package `bus/bustest/chaos`.\n\n")
	fmt.Fprintf(&b, "| | |\n|---|---|\n")
	row := func(name string, v any) { fmt.Fprintf(&b, "| %s | %v |\n", name, v) }
	row("date", o.Date.Format(time.RFC3339))
	row("commit", o.Commit)
	row("took", o.Took.Round(time.Second))
	row("first seed", o.FirstSeed)
	row("schedules", fmt.Sprintf("%d, of these %d with production values", s.Counted, s.Production))
	row("schedules that hit nothing in flight and were replaced", s.Void)
	row("schedules that broke off", s.Broken)
	for _, t := range slices.Sorted(maps.Keys(s.Topologies)) {
		row("on "+map[Topology]string{Embedded: "an embedded server with a listener", Single: "one external server", Cluster: "a cluster of three servers"}[t], s.Topologies[t])
	}
	row("events", s.Events)
	row("external effects", s.Effects)
	row("dead letters", s.Dead)
	for _, r := range rules {
		n := 0
		for _, rule := range r.rules {
			n += s.Violations[rule]
		}
		row("**"+r.name+"**", fmt.Sprintf("**%d**", n))
	}
	fmt.Fprintf(&b, "\n| fault | hit something in flight | found nothing to hit |\n|---|---|---|\n")
	for _, f := range Faults() {
		fmt.Fprintf(&b, "| %s | %d | %d |\n", f, s.Fired[f], s.Missed[f])
	}
	return b.String()
}

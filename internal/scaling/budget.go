package scaling

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// RemovalBudget is how many nodes of a pool may leave at a time, always or within
// a window; of several the lowest counts. The form is Karpenter's.
type RemovalBudget struct {
	// Nodes is a number, or a share of the pool such as "10%", rounded up.
	Nodes string
	// Schedule is when a window begins, as cron writes it: minute, hour, day of
	// month, month, day of week. Empty: always.
	Schedule string
	// Duration is how long a window lasts.
	Duration time.Duration
	// Timezone is that of Schedule, e.g. Europe/Berlin; empty: UTC.
	Timezone string
}

// Check says what of a budget can't be understood: the field, and why.
func (b RemovalBudget) Check() (field string, err error) {
	if _, err := b.nodes(1); err != nil {
		return "nodes", err
	}
	if _, err := b.location(); err != nil {
		return "timezone", err
	}
	if b.Schedule == "" {
		if b.Duration != 0 {
			return "duration", fmt.Errorf("is %s without a schedule", b.Duration)
		}
		return "", nil
	}
	if s, err := b.parse(); err != nil || s.Next(time.Unix(0, 0).UTC()).IsZero() { // or on a day that never comes
		return "schedule", fmt.Errorf("is %q", b.Schedule)
	}
	if b.Duration <= 0 {
		return "duration", fmt.Errorf("is %s", b.Duration)
	}
	return "", nil
}

// nodes is how many of all nodes may leave.
func (b RemovalBudget) nodes(all int) (int, error) {
	text, share := strings.CutSuffix(b.Nodes, "%")
	n, err := strconv.Atoi(text)
	switch {
	case err != nil || n < 0 || share && n > 100:
		return 0, fmt.Errorf("is %q", b.Nodes)
	case share:
		return int(math.Ceil(float64(all) * float64(n) / 100)), nil
	}
	return n, nil
}

func (b RemovalBudget) location() (*time.Location, error) {
	loc, err := time.LoadLocation(b.Timezone) // "" is UTC
	if err != nil || b.Timezone == "Local" {
		return nil, fmt.Errorf("is %q", b.Timezone)
	}
	return loc, nil
}

// parse reads the schedule. A zone in it, which the library would take and on some
// of which it panics, has a field of its own; @every has no beginning.
func (b RemovalBudget) parse() (cron.Schedule, error) {
	if strings.Contains(b.Schedule, "TZ=") || strings.HasPrefix(b.Schedule, "@every") {
		return nil, fmt.Errorf("is %q", b.Schedule)
	}
	return cron.ParseStandard(b.Schedule)
}

// window is the end of the window that now is in; zero: the budget always counts.
func (b RemovalBudget) window(now time.Time) (until time.Time, in bool) {
	if b.Schedule == "" {
		return time.Time{}, true
	}
	loc, err := b.location()
	if err != nil {
		return time.Time{}, true // what is not understood protects
	}
	s, err := b.parse()
	if err != nil {
		return time.Time{}, true
	}
	// The next beginning after that of a window that would have ended now.
	began := s.Next(now.Add(-b.Duration).In(loc))
	if began.IsZero() || began.After(now) {
		return time.Time{}, false
	}
	return began.Add(b.Duration).UTC(), true
}

func (b RemovalBudget) String() string {
	if b.Schedule == "" {
		return b.Nodes
	}
	zone := b.Timezone
	if zone == "" {
		zone = "UTC"
	}
	return fmt.Sprintf("%s, for %s from %q in %s", b.Nodes, b.Duration, b.Schedule, zone)
}

// budget finds out how many nodes of the pool may leave at a time now.
func (p *poolRun) budget(now time.Time) {
	p.mayLeave = max(p.MaxRemovals, 1)
	for _, b := range p.Budgets {
		until, in := b.window(now)
		if !in {
			continue
		}
		n, err := b.nodes(p.size + p.leaving)
		if err != nil {
			n = 0 // likewise
		}
		if n < p.mayLeave {
			p.mayLeave, p.tightest, p.budgetEnds = n, &b, until
		}
	}
}

// removalsGuard is what limits how many nodes of the pool leave at a time.
func (p *poolRun) removalsGuard() Guard {
	g := Guard{Guard: "max_removals", code: CodeRemovalsInFlight, Value: fmt.Sprintf("%d of %d", p.leaving, p.mayLeave),
		Message: fmt.Sprintf("%s of pool %s, at most %d may leave at a time", agree(p.leaving, "node is leaving", "nodes are leaving"), p.Name, p.mayLeave),
		Lifts:   "when a removal is over"}
	if b := p.tightest; b != nil {
		g.Guard, g.code, g.Until = "budget", CodeBudget, p.budgetEnds
		g.Message += fmt.Sprintf(" by its budget (%s)", b)
		switch {
		case p.mayLeave == 0 && p.budgetEnds.IsZero():
			g.Lifts = "when the budget is changed"
		case p.mayLeave == 0:
			g.Lifts = "by itself, when the window ends"
		}
	}
	return g
}

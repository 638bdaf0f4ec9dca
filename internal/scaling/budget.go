package scaling

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// RemovalBudget is how many nodes of a pool may leave at a time, always or within
// a window; of several the lowest counts. The form is Karpenter's.
type RemovalBudget struct {
	// Nodes is a number, or a share of the pool such as "10%", rounded up.
	Nodes string
	Window
}

// Check says what of a budget can't be understood: the field, and why.
func (b RemovalBudget) Check() (field string, err error) {
	if _, err := b.nodes(1); err != nil {
		return "nodes", err
	}
	return b.Window.Check()
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

func (b RemovalBudget) String() string {
	if b.Schedule == "" {
		return b.Nodes
	}
	zone := b.Timezone
	if zone == "" {
		zone = "UTC"
	}
	return fmt.Sprintf("%s, for %s from %q in %s", b.Nodes, lasts(b.Duration), b.Schedule, zone)
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

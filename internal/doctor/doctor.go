// Package doctor looks for what is wrong with an installation, and says how to
// mend it. It changes nothing but the two pods with which it tries the pod
// network, and these only with a credential that was given for it.
//
// A check is a function of the outside world that returns results; internal/app
// makes the checks from the configuration.
package doctor

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Status of a result.
type Status string

// Statuses. Only a problem makes the whole a failure.
const (
	OK      Status = "ok"
	Warning Status = "warning" // works, and deserves a look
	Problem Status = "problem"
	Skipped Status = "skipped" // not looked at; the detail says why
)

// Result is one finding.
type Result struct {
	Check  string `json:"check"`            // e.g. "API server"
	Target string `json:"target,omitempty"` // what was looked at, e.g. a cluster
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"` // what to do, of warnings and problems
}

// Check looks at one thing.
type Check struct {
	Name, Target string
	// Limit is how long it may take. Default DefaultLimit.
	Limit time.Duration
	// Run returns at least one result; what it leaves out of Check and Target is
	// filled in.
	Run func(ctx context.Context) []Result
}

// DefaultLimit is how long a check may take.
const DefaultLimit = 20 * time.Second

// Report is what all checks found, in their order.
type Report struct {
	Results  []Result `json:"results"`
	Problems int      `json:"problems"`
	Warnings int      `json:"warnings"`
}

// Add appends results and counts them.
func (r *Report) Add(rs ...Result) {
	for _, x := range rs {
		r.Results = append(r.Results, x)
		switch x.Status {
		case Problem:
			r.Problems++
		case Warning:
			r.Warnings++
		case OK, Skipped:
		}
	}
}

// Run runs all checks at once. One that does not come to its end in time is a
// problem, and so is one that finds nothing to say.
func Run(ctx context.Context, checks []Check) Report {
	found := make([][]Result, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { found[i] = c.run(ctx) })
	}
	wg.Wait()
	var out Report
	for _, rs := range found {
		out.Add(rs...)
	}
	return out
}

func (c Check) run(ctx context.Context) []Result {
	limit := c.Limit
	if limit <= 0 {
		limit = DefaultLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan []Result, 1)
	go func() { done <- c.Run(ctx) }()
	var rs []Result
	select {
	case rs = <-done:
	case <-ctx.Done():
		// What it waits for ends by itself soon, or never.
		rs = []Result{{Status: Problem, Detail: fmt.Sprintf("no answer within %s", limit), Fix: "see whether what it asks is reachable from here, and how loaded it is"}}
	}
	if len(rs) == 0 {
		rs = []Result{{Status: Problem, Detail: "the check said nothing", Fix: "report this as a bug"}}
	}
	for i := range rs {
		if rs[i].Check == "" {
			rs[i].Check = c.Name
		}
		if rs[i].Target == "" {
			rs[i].Target = c.Target
		}
	}
	return rs
}

// Failed is a problem made of an error.
func Failed(err error, fix string) []Result {
	return []Result{{Status: Problem, Detail: err.Error(), Fix: fix}}
}

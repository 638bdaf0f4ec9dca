package demo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

// summary is what the audit store says about the demonstration.
type summary struct {
	added       map[string]int // Ready nodes by the reason of their claim
	removed     int
	drained     map[string]bool
	undrained   []string // removed without having been drained
	failed      int
	deadLetters int
	evicted     int
	stages      map[string][]float64 // seconds by "up/…" or "down/…"
	order       []string             // of the stages
	types       map[string]int
}

// summarize reads everything back from the audit store.
func (d *demo) summarize(ctx context.Context) (*summary, error) {
	s := &summary{added: map[string]int{}, drained: map[string]bool{}, stages: map[string][]float64{}, types: map[string]int{}}
	// The last event was published a moment ago: wait until it is recorded.
	if err := d.await(ctx, "everything is audited", func(ctx context.Context) error { return d.app.Audited(ctx) }); err != nil {
		return nil, err
	}
	reasons := map[string]string{}
	q := audit.Query{Cluster: clusterName, Limit: audit.MaxLimit}
	for {
		page, err := d.app.Audit().List(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("read the audit store: %w", err)
		}
		if len(page) == 0 {
			return s, nil
		}
		for _, r := range page {
			var e events.Event
			if err := json.Unmarshal(r.Event, &e); err != nil {
				return nil, fmt.Errorf("decode audited event %s: %w", r.ID, err)
			}
			if err := s.add(e, reasons); err != nil {
				return nil, err
			}
		}
		q.Cursor = page[len(page)-1].Cursor()
	}
}

func (s *summary) add(e events.Event, reasons map[string]string) error {
	s.types[strings.TrimSuffix(strings.TrimPrefix(e.Type(), events.TypePrefix), ".v1")]++
	switch e.Type() {
	case events.TypeNodeClaimed:
		p, err := events.Decode[events.NodeClaimed](e)
		reasons[p.Node] = p.Reason.Code
		return err
	case events.TypeNodeReady:
		p, err := events.Decode[events.NodeReady](e)
		if p.First {
			s.added[reasons[p.Node]]++
			s.time("up", p.Stages)
		}
		return err
	case events.TypeNodeDrainProgressed:
		p, err := events.Decode[events.NodeDrainProgressed](e)
		s.evicted += len(p.Evicted)
		return err
	case events.TypeNodeDrained:
		p, err := events.Decode[events.NodeDrained](e)
		s.drained[p.Node] = true
		return err
	case events.TypeNodeRemoved:
		p, err := events.Decode[events.NodeRemoved](e)
		s.removed++
		if !s.drained[p.Node] {
			s.undrained = append(s.undrained, p.Node)
		}
		s.time("down", p.Stages)
		return err
	case events.TypeNodeFailed, events.TypeNodeLost:
		s.failed++
	case events.TypeDeadletterRecorded:
		s.deadLetters++
	}
	return nil
}

func (s *summary) time(direction string, stages []events.Stage) {
	for _, st := range stages {
		k := direction + "\t" + st.Name
		if _, known := s.stages[k]; !known {
			s.order = append(s.order, k)
		}
		s.stages[k] = append(s.stages[k], st.Seconds)
	}
}

func (s *summary) total() int {
	n := 0
	for _, c := range s.added {
		n += c
	}
	return n
}

// open says how many nodes are still to leave.
func (s *summary) open() error {
	if s.removed != s.total() {
		return fmt.Errorf("%d nodes added, %d removed", s.total(), s.removed)
	}
	return nil
}

// check says what did not go as it should.
func (s *summary) check() error {
	var errs []error
	if s.total() < 2 || s.added["UnschedulablePods"] == 0 || s.total() == s.added["UnschedulablePods"] {
		errs = append(errs, fmt.Errorf("nodes added by reason: %v, expected at least one by the alert and one by pending pods", s.added))
	}
	errs = append(errs, s.open())
	if len(s.undrained) > 0 {
		errs = append(errs, fmt.Errorf("removed without a drain: %v", s.undrained))
	}
	if s.failed > 0 || s.deadLetters > 0 {
		errs = append(errs, fmt.Errorf("%d nodes failed or were lost, %d dead letters", s.failed, s.deadLetters))
	}
	return errors.Join(errs...)
}

func (s *summary) print(out io.Writer) {
	fmt.Fprintf(out, "\nFrom the audit store:\n\n")
	fmt.Fprintf(out, "  nodes added    %d", s.total())
	for _, reason := range slices.Sorted(maps.Keys(s.added)) {
		fmt.Fprintf(out, "   %s: %d", reason, s.added[reason])
	}
	fmt.Fprintf(out, "\n  nodes removed  %d   after a drain: %d\n  pods evicted   %d\n\n", s.removed, s.removed-len(s.undrained), s.evicted)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "  LATENCY\tSTAGE\tMEDIAN\tMAX")
	for _, k := range s.order {
		v := slices.Clone(s.stages[k])
		slices.Sort(v)
		fmt.Fprintf(w, "  %s\t%s\t%s\n", k, seconds(v[len(v)/2]), seconds(v[len(v)-1]))
	}
	fmt.Fprintln(w, "\t\t\t")
	fmt.Fprintln(w, "  EVENTS\tCOUNT")
	types := slices.SortedFunc(maps.Keys(s.types), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.types[b], s.types[a]), cmp.Compare(a, b))
	})
	for _, t := range types {
		fmt.Fprintf(w, "  %s\t%d\n", t, s.types[t])
	}
	_ = w.Flush() // the writer below reports nothing anyone could act on
}

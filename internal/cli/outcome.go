package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// outcome follows what comes of one request: the decision that names it, and
// the nodes of that decision to their end.
type outcome struct {
	id     string
	onNode bool // it names a node, not a pool
	say    func(api.Entry) error
	nodes  map[string]string // node → what it is to become: up, or the goal of its drain
	done   int               // nodes that got there
	failed string            // why it did not come to pass
}

// outcomeData is what is read of any event.
type outcomeData struct {
	events.Decision
	Node      string `json:"node"`
	RequestID string `json:"request_id"`
	Goal      string `json:"goal"`
	Failure   struct {
		Reason events.Reason `json:"reason"`
	} `json:"failure"`
}

// take reads one event; false when the outcome is known.
func (o *outcome) take(entry api.Entry) (bool, error) {
	var e events.Event
	var d outcomeData
	if json.Unmarshal(entry.Event, &e) != nil {
		return true, nil
	}
	// A reason may be a text in some types: what does not fit is not needed.
	_ = json.Unmarshal(e.Data(), &d)
	switch e.Type() {
	case events.TypeScaleupDecided, events.TypeScaledownDecided, events.TypeScaleHeld:
		if !slices.Contains(d.Requests, o.id) {
			return true, nil
		}
		return o.decided(entry, d, events.IsDryRun(e))
	case events.TypeNodeDrainRequested, events.TypeNodeDrainCancelled:
		if d.RequestID != o.id {
			return true, nil
		}
		o.nodes[d.Node] = d.Goal // a cancellation has none
		return true, o.say(entry)
	}
	goal, ours := o.nodes[nodeKey(e)]
	if !ours {
		return true, nil
	}
	return o.node(entry, e.Type(), nodeKey(e), goal, d)
}

func nodeKey(e events.Event) string {
	_, key, err := events.PartitionKey(e)
	if err != nil {
		return ""
	}
	return key
}

// decided reads the decision that names the request.
func (o *outcome) decided(entry api.Entry, d outcomeData, dryRun bool) (bool, error) {
	if err := o.say(entry); err != nil {
		return false, err
	}
	if len(d.Overruled) > 0 && len(d.Nodes) == 0 {
		o.failed = "held: " + d.Overruled[0].Message
		return false, nil
	}
	if dryRun {
		o.failed = "decided, but this is a dry run: nothing acts on it"
		return false, nil
	}
	for _, n := range d.Nodes {
		if _, known := o.nodes[n]; !known {
			o.nodes[n] = map[string]string{events.VerdictUp: events.VerdictUp, events.VerdictDown: events.GoalRemove}[d.Verdict]
		}
	}
	if d.Verdict != events.VerdictHeld {
		return true, nil
	}
	// Nothing to do: a pool that has its size, a node that is as asked. An order
	// for a node follows its decision.
	return o.onNode && !strings.HasSuffix(o.answer(d), "already"), nil
}

// answer is what the decision says about the request itself.
func (o *outcome) answer(d outcomeData) string {
	for _, r := range d.Rules {
		if r.Rule == "request "+o.id {
			return r.Message
		}
	}
	return d.Reason.Message
}

// node follows one node of the decision.
func (o *outcome) node(entry api.Entry, typ, name, goal string, d outcomeData) (bool, error) {
	reached := map[string]string{
		events.VerdictUp: events.TypeNodeReady, events.GoalRemove: events.TypeNodeRemoved, events.GoalDrain: events.TypeNodeDrained,
		events.GoalCordon: events.TypeNodeCordoned, "": events.TypeNodeUncordoned,
	}[goal]
	switch typ {
	case events.TypeNodeObserved, events.TypeTimerFired, events.TypeNodeDiverged:
		return true, nil
	case reached:
		delete(o.nodes, name)
		o.done++
	case events.TypeNodeFailed:
		o.failed = fmt.Sprintf("node %s failed: %s", name, d.Failure.Reason.Message)
	case events.TypeNodeLost:
		o.failed = fmt.Sprintf("node %s is lost: %s", name, d.Reason.Message)
	case events.TypeNodeUncordoned:
		o.failed = fmt.Sprintf("node %s was uncordoned and stays: %s", name, d.Reason.Message)
	}
	if err := o.say(entry); err != nil {
		return false, err
	}
	return o.failed == "" && len(o.nodes) > 0, nil
}

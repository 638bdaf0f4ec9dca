package announcing

import (
	"fmt"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Reasons of announcements. Where Cluster Autoscaler has a word for the same, it
// is that: people have alerts and habits that know it.
const (
	ReasonTriggeredScaleUp  = "TriggeredScaleUp"  // pod: a node is on the way
	ReasonNotTriggerScaleUp = "NotTriggerScaleUp" // pod: no node can be added for it
	ReasonScaleUp           = "ScaleUp"           // node: asked for, or Ready
	ReasonScaleUpFailed     = "ScaleUpFailed"     // node: it did not come
	ReasonScaleDown         = "ScaleDown"         // node: to be removed, or removed
	ReasonScaleDownFailed   = "ScaleDownFailed"   // node: the removal was undone
	ReasonCordon            = "Cordon"            // node: asked for, and it stays
	ReasonDrain             = "Drain"             // node: asked for, and it stays
	ReasonDrainFailed       = "DrainFailed"       // node: undone at its deadline, or refused
	ReasonDrainBlocked      = "DrainBlocked"      // node: an eviction is refused
	ReasonUncordoned        = "Uncordoned"        // node: called off; it is capacity again
	ReasonNodeLost          = "NodeLost"          // node: vanished without being asked to
	ReasonNodeAdopted       = "NodeAdopted"       // node: it was ours, and nobody knew
)

// namedNodes is how many nodes a pod's note names.
const namedNodes = 3

// notes are what an event gives to tell. An event that can't be understood gives
// nothing: whoever acts on it sets it aside and says so.
func notes(e events.Event) []Note {
	var out []Note
	switch e.Type() {
	case events.TypeScaleupDecided:
		out = told(e, func(p events.ScaleupDecided) []Note { return decided(p.Decision) })
	case events.TypeScaledownDecided:
		out = told(e, func(p events.ScaledownDecided) []Note { return decided(p.Decision) })
	case events.TypeScaleHeld:
		out = told(e, func(p events.ScaleHeld) []Note { return decided(p.Decision) })
	case events.TypeNodeClaimed:
		out = told(e, claimed)
	case events.TypeNodeReady:
		out = told(e, ready)
	case events.TypeNodeFailed:
		out = told(e, failed)
	case events.TypeNodeLost:
		out = told(e, lost)
	case events.TypeNodeAdopted:
		out = told(e, adopted)
	case events.TypeNodeDrainRequested:
		out = told(e, requested)
	case events.TypeNodeDrainBlocked:
		out = told(e, blocked)
	case events.TypeNodeUncordoned:
		out = told(e, uncordoned)
	case events.TypeNodeRemoved:
		out = told(e, removed)
	}
	for i := range out {
		out[i].ID = e.ID()
	}
	return out
}

func told[T events.Payload](e events.Event, tell func(T) []Note) []Note {
	p, err := events.Decode[T](e)
	if err != nil {
		return nil
	}
	return tell(p)
}

// decided tells pods what a decision means to them.
func decided(d events.Decision) []Note {
	var out []Note
	if len(d.Nodes) > 0 && d.Verdict == events.VerdictUp {
		for _, ref := range d.Pods {
			out = append(out, pod(ref, Note{Reason: ReasonTriggeredScaleUp, Message: fmt.Sprintf(
				"pod triggered scale-up: pool %s %d->%d (max %d), %s; why: k3s-autoscaler explain %s",
				d.Pool, d.Size, d.Size+d.Delta, d.Max, nodeList(d.Nodes), d.ID)}))
		}
	}
	for _, a := range d.Rejected {
		for _, ref := range a.Pods {
			out = append(out, pod(ref, Note{Warning: true, Reason: ReasonNotTriggerScaleUp, Message: fmt.Sprintf(
				"pod didn't trigger scale-up of pool %s: %s (%s)%s", d.Pool, a.Reason.Message, a.Reason.Code, remedy(a.Fix))}))
		}
	}
	return out
}

func pod(ref string, n Note) Note {
	n.Namespace, n.Name, _ = strings.Cut(ref, "/")
	return n
}

func nodeList(nodes []string) string {
	if len(nodes) == 1 {
		return "node " + nodes[0]
	}
	if more := len(nodes) - namedNodes; more > 0 {
		return fmt.Sprintf("nodes %s and %d more", strings.Join(nodes[:namedNodes], ", "), more)
	}
	return "nodes " + strings.Join(nodes, ", ")
}

func remedy(fix string) string {
	if fix == "" {
		return ""
	}
	return "; to change that: " + fix
}

func claimed(p events.NodeClaimed) []Note {
	return []Note{{Name: p.Node, Reason: ReasonScaleUp, Message: fmt.Sprintf("node of pool %s asked for: %s (%s)", p.Pool, p.Reason.Message, p.Reason.Code)}}
}

func ready(p events.NodeReady) []Note {
	if !p.First {
		return nil // the kubelet says so itself
	}
	return []Note{{Name: p.Node, Reason: ReasonScaleUp, Message: fmt.Sprintf("node of pool %s is Ready", p.Pool)}}
}

func failed(p events.NodeFailed) []Note {
	r := p.Failure.Reason
	return []Note{{Name: p.Node, Warning: true, Reason: ReasonScaleUpFailed,
		Message: fmt.Sprintf("node of pool %s did not come, it failed after %s: %s (%s)", p.Pool, p.Failure.Stage, r.Message, r.Code)}}
}

func lost(p events.NodeLost) []Note {
	return []Note{{Name: p.Node, Warning: true, Reason: ReasonNodeLost,
		Message: fmt.Sprintf("node of pool %s vanished, and k3s-autoscaler did not remove it: %s (%s)", p.Pool, p.Reason.Message, p.Reason.Code)}}
}

func adopted(p events.NodeAdopted) []Note {
	return []Note{{Name: p.Node, Warning: true, Reason: ReasonNodeAdopted,
		Message: fmt.Sprintf("node of pool %s had no record and has one now: it counts, is drained and removed like any other", p.Pool)}}
}

// goals are the reason and the words for what is asked for.
var goals = map[string]struct{ reason, failed, words string }{
	events.GoalRemove: {ReasonScaleDown, ReasonScaleDownFailed, "to be drained and removed"},
	events.GoalDrain:  {ReasonDrain, ReasonDrainFailed, "to be drained; it stays"},
	events.GoalCordon: {ReasonCordon, ReasonDrainFailed, "to take no new pods; it stays"},
}

func requested(p events.NodeDrainRequested) []Note {
	g := goals[p.Goal]
	return []Note{{Name: p.Node, Reason: g.reason, Message: fmt.Sprintf("node is %s: %s (%s)", g.words, p.Reason.Message, p.Reason.Code)}}
}

func blocked(p events.NodeDrainBlocked) []Note {
	message := "drain is blocked: " + blockers(p.Blockers)
	if !p.Deadline.IsZero() {
		message += "; it is undone at " + p.Deadline.UTC().Format("15:04:05") + " UTC"
	}
	return []Note{{Name: p.Node, Warning: true, Reason: ReasonDrainBlocked, Message: message}}
}

// namedBlockers is how many blockers a node's note names.
const namedBlockers = 3

func blockers(bs []events.Blocker) string {
	var parts []string
	for _, b := range bs[:min(len(bs), namedBlockers)] {
		text := b.Kind
		if b.Name != "" {
			text += " " + b.Name
		}
		if b.Pod != "" {
			text += " keeps pod " + b.Pod
		}
		if b.Message != "" {
			text += ": " + b.Message
		}
		parts = append(parts, text+remedy(b.Fix))
	}
	if more := len(bs) - namedBlockers; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, "; ")
}

// What is undone because somebody wanted it so is no failure.
var wanted = map[string]bool{"NewDemand": true, "Requested": true}

func uncordoned(p events.NodeUncordoned) []Note {
	n := Note{Name: p.Node, Reason: ReasonUncordoned, Message: fmt.Sprintf("node takes pods again: %s (%s)", p.Reason.Message, p.Reason.Code)}
	if !wanted[p.Reason.Code] {
		n.Warning, n.Reason = true, goals[p.Goal].failed
		n.Message = fmt.Sprintf("given up: %s (%s)", p.Reason.Message, p.Reason.Code)
	}
	if len(p.Blockers) > 0 {
		n.Message += "; " + blockers(p.Blockers)
	}
	return []Note{n}
}

func removed(p events.NodeRemoved) []Note {
	return []Note{{Name: p.Node, Reason: ReasonScaleDown, Message: fmt.Sprintf("node of pool %s removed: %s (%s)", p.Pool, p.Reason.Message, p.Reason.Code)}}
}

package api

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// lifePoints are the events that are points of a node's life. All others are what
// somebody saw or asked for; the timeline has them.
var lifePoints = map[string]string{
	events.TypeNodeClaimed: "claimed", events.TypeNodeCreated: "created", events.TypeNodeRegistered: "registered", events.TypeNodeReady: "ready",
	events.TypeNodeUnready: "unready", events.TypeNodeFailed: "failed", events.TypeNodeLost: "lost",
	events.TypeNodeDrainRequested: "drain requested", events.TypeNodeDrainCancelled: "drain called off", events.TypeNodeCordoned: "cordoned",
	events.TypeNodeDrainProgressed: "evicting", events.TypeNodeDrainBlocked: "drain blocked", events.TypeNodeDrained: "drained",
	events.TypeNodeUncordoned: "uncordoned", events.TypeNodeRemovalProgressed: "", events.TypeNodeRemoved: "removed",
	events.TypeNodeTransitionRefused: "refused",
}

// lifeOf are the points of a node's life, from what happened to it, oldest first.
// Rounds of eviction that follow each other are one point.
func lifeOf(timeline []AuditRecord) []LifeStage {
	var out []LifeStage
	for _, r := range timeline {
		name, ok := lifePoints[r.Type]
		if !ok {
			continue
		}
		var e struct {
			Data lifeData `json:"data"`
		}
		_ = json.Unmarshal(r.Event, &e) // what is not there is not shown
		s := LifeStage{Name: name, At: r.StreamTime, Why: e.Data.why(r)}
		if name == "" {
			s.Name = strings.ReplaceAll(e.Data.Step, "-", " ")
		}
		last := len(out) - 1
		if name == "evicting" && last >= 0 && out[last].Name == name {
			out[last].Why = s.Why
			continue
		}
		if last >= 0 {
			s.Seconds = max(0, s.At.Sub(out[last].At).Seconds())
		}
		out = append(out, s)
	}
	return out
}

// lifeData is what a point may say beside its reason.
type lifeData struct {
	Step      string           `json:"step"`
	Detail    string           `json:"detail"`
	Host      string           `json:"host"`
	Image     string           `json:"image"`
	Goal      string           `json:"goal"`
	First     *bool            `json:"first"`
	Remaining int              `json:"remaining"`
	Waiting   []string         `json:"waiting_for"`
	Blockers  []events.Blocker `json:"blockers"`
}

func (d lifeData) why(r AuditRecord) string {
	switch r.Type {
	case events.TypeNodeCreated:
		return strings.TrimSuffix(d.Image+" on "+d.Host, " on ")
	case events.TypeNodeReady:
		if d.First != nil && !*d.First {
			return "again"
		}
		return ""
	case events.TypeNodeRemovalProgressed:
		return d.Detail
	case events.TypeNodeDrainProgressed:
		if len(d.Waiting) > 0 {
			return fmt.Sprintf("waits for pods of Jobs to end: %s", strings.Join(d.Waiting, ", "))
		}
		return fmt.Sprintf("%d left", d.Remaining)
	case events.TypeNodeDrainBlocked:
		if len(d.Blockers) > 0 {
			b := d.Blockers[0]
			return strings.TrimSpace(b.Kind+" "+b.Name) + ": " + b.Message
		}
	}
	text := r.Message
	if text == "" {
		text = r.Reason
	}
	if r.Actor != "" && !strings.Contains(text, r.Actor) {
		text = strings.TrimSuffix(r.Actor+": "+text, ": ")
	}
	if d.Goal != "" && r.Type == events.TypeNodeDrainRequested {
		text = d.Goal + ": " + text
	}
	return text
}

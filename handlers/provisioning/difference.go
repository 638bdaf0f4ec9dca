package provisioning

import (
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// difference is a disagreement about one node. Without a kind it is left alone.
type difference struct {
	cluster, correlation string

	Node, Kind, Detail      string
	Pool, ClaimID, Instance string
	machine                 *events.FoundMachine // of an unrecorded node
	why                     string               // it is left alone

	Since time.Time // seen first by this process
	Due   time.Time // acted on from then on; zero: never
}

func (d difference) finding() finding {
	return finding{d.cluster, d.Node, d.Kind, d.ClaimID, d.Instance}
}

// actions is what is done about each kind.
var actions = map[string]string{
	events.DivergedOrphanInstance: "the machine is stopped and removed, with its Node object, its node password and its volumes",
	events.DivergedOrphanNode:     "the Node object and its node password are deleted",
	events.DivergedNodeLost:       "the node is declared lost and what is left of it is removed; decision replaces it if it is needed",
	events.DivergedStuck:          "the step that is overdue is taken",
	events.DivergedUnrecorded:     "it is adopted: a record is made, so that it counts, is drained and removed like any other",
}

// action says what is done about a difference, or why nothing is.
func (d difference) action() string {
	if d.Kind == "" {
		return "left alone: " + d.why
	}
	return actions[d.Kind]
}

// told is the difference as an event carries it.
func (d difference) told() events.Difference {
	return events.Difference{Node: d.Node, Kind: d.Kind, Detail: d.Detail, Pool: d.Pool, ClaimID: d.ClaimID, Instance: d.Instance,
		Since: d.Since, Due: d.Due, Action: d.action()}
}

func foundMachine(m Machine, o NodeObject) *events.FoundMachine {
	return &events.FoundMachine{Host: m.Host, Image: m.Image, Epoch: m.Epoch, UID: o.UID, CreatedAt: m.CreatedAt}
}

package events

import "time"

// Types of what the reconcile sweep is asked for and answers, and of the record
// that it leads to.
const (
	TypeReconcileRequested = TypePrefix + "reconcile.requested.v1"
	TypeReconcileReported  = TypePrefix + "reconcile.reported.v1"
	TypeNodeAdopted        = TypePrefix + "node.adopted.v1"
)

// MaxDifferences is how many differences a reconcile.reported carries.
const MaxDifferences = 200

// ReconcileRequested asks for a sweep now. Its event id identifies the request.
type ReconcileRequested struct {
	DryRun bool   `json:"dry_run,omitempty"` // only tell what differs
	Actor  string `json:"actor"`
	Reason string `json:"reason,omitempty"`
}

// EventType implements Payload.
func (ReconcileRequested) EventType() string { return TypeReconcileRequested }

// Validate implements Payload.
func (p ReconcileRequested) Validate() error {
	var r required
	r.text("actor", p.Actor)
	return r.err()
}

// ReconcileReported is what a sweep that was asked for found.
type ReconcileReported struct {
	RequestID   string       `json:"request_id"`
	DryRun      bool         `json:"dry_run,omitempty"`
	Differences []Difference `json:"differences,omitempty"`
	More        int          `json:"more,omitempty"` // differences that are not listed
	// Unknown is what could not be read: of that nothing is said.
	Unknown []string  `json:"unknown,omitempty"`
	Nodes   int       `json:"nodes"`   // records, machines and Node objects that were compared, by name
	Records int       `json:"records"` // of these, those with a live record
	At      time.Time `json:"at"`
}

// Difference is a disagreement of provider, API server and records about a node.
type Difference struct {
	Node     string    `json:"node"`
	Kind     string    `json:"kind"` // as in node.diverged; empty: it is left alone
	Detail   string    `json:"detail"`
	Pool     string    `json:"pool,omitempty"`
	ClaimID  string    `json:"claim_id,omitempty"`
	Instance string    `json:"instance,omitempty"`
	Since    time.Time `json:"since"`        // first seen by the process that answers
	Due      time.Time `json:"due,omitzero"` // not acted on earlier
	Action   string    `json:"action"`       // what is done, or why nothing is, in a sentence
}

// EventType implements Payload.
func (ReconcileReported) EventType() string { return TypeReconcileReported }

// Validate implements Payload.
func (p ReconcileReported) Validate() error {
	var r required
	r.text("request_id", p.RequestID)
	return r.err()
}

// NodeAdopted says that a record was made of a Ready node of ours that had none:
// from now on it counts, is drained and removed like any other.
type NodeAdopted struct {
	Node     string       `json:"node"`
	Pool     string       `json:"pool"`
	ClaimID  string       `json:"claim_id"`
	Instance string       `json:"instance,omitempty"` // the provider's id of the machine
	Machine  FoundMachine `json:"machine"`
	At       time.Time    `json:"at"`
}

// EventType implements Payload.
func (NodeAdopted) EventType() string { return TypeNodeAdopted }

// Validate implements Payload.
func (p NodeAdopted) Validate() error { return nodeOnly(p.Node) }

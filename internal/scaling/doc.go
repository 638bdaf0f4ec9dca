// Package scaling decides: from a policy, a state and an observation of a
// cluster it derives which nodes to claim, which to drain, which drains to
// call off, and, just as carefully, why nothing is done.
//
// The package is pure. It reads no clock, writes no log and knows neither the
// bus nor the API server; what it is given is what it knows. The same input
// gives byte-identical output, whatever the order of slices and maps, which is
// what replay and the audit rest on.
//
//	policy ───────┐
//	state ────────┼─► Evaluate ─► state', decisions, claims, drains, cancels
//	observation ──┘
//
// Triggers propose (a pending pod, an alert, low utilisation, a minimum, a
// person), the fit simulation agrees or vetoes, and guards hold back. A
// proposal that does not come to pass stays in the decision as overruled.
//
// Three rules stand above all others. Unknown is not zero: missing or stale
// data never removes a node. Claims in flight are capacity: one need is never
// served twice. And only a node with our claim label and a node record is ever
// cordoned, drained or removed; every other node is capacity and nothing else.
package scaling

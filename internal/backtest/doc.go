// Package backtest tries a policy on a log: what would have happened?
//
// The decisions are those of the handler's own code (decision.Rerun), on the events
// of the log. With another policy there are other nodes, so what the handler sees of
// the cluster is simulated:
//
//	the log ─► workload, other nodes, alerts, requests ─┐
//	                                                    ├─► snapshots ─► decision ─┐
//	nodes of our pools: claimed, Ready, drained, gone ──┘                          │
//	          ▲                                  claims, drains, cancellations ────┘
//	          └────────────────────────────────────────────────────────────────────┘
//
// As they were in the log: when pods appear and end, nodes that are not ours, alerts,
// signals, what people asked for. Simulated: nodes of our pools. A claim becomes a
// Ready node after the time that the log shows for its pool; pods go where the core's
// own fit lets them; a drain moves them, and the node goes, after the times that the
// log shows.
//
// The model has an error. To show it, the recorded policy goes through the same
// simulation: the report has what happened, the recorded policy simulated, and the
// other policy simulated, and a policy is to be judged by the last two.
//
// # Limits
//
// How long a pod lives does not depend on when it got a node. No machine fails, no
// node is lost, and no eviction is refused. Pods do not preempt each other. A pod that
// takes the place of one that a recorded drain evicted is the same pod to the
// simulation.
//
// The same log and policy give the same report, byte for byte.
package backtest

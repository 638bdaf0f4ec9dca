// Package decision is the one subscriber that decides. It reads everything that
// concerns a cluster as a whole (snapshots, alerts, requests, the policy) in one
// total order, folds it into its state, asks internal/scaling what follows, and
// publishes the verdicts with the claims and drains that come of them.
//
// # What it rests on
//
// A decision depends on the log alone: on the events of the cluster up to this
// one, and on their stream times. The policy is the last config.applied before
// the event, never a file. The observation is a fold of the snapshots; it is
// kept in memory, and a process that takes a cluster over builds it again from
// the last full snapshot, whose sequence is in the state. So the same log gives
// the same decisions byte for byte, in whatever process.
//
// # What a crash leaves
//
// State and outbox are written in one step (see bus.State). Before it nothing
// has happened; after it the events are published by whoever handles the
// message again, with the same ids.
//
// # What it holds back
//
// Without a policy it only folds. A snapshot that does not build on the one
// before, or a fold that can't be rebuilt, holds every pool (StaleSnapshot)
// until the next full snapshot. A snapshot of a collector that is no longer the
// leader is ignored: the leader's picture stays.
package decision

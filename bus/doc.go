// Package bus delivers events: it is the only package that knows NATS.
//
// # What it promises
//
//   - Publish returns nil only after JetStream has acknowledged every event.
//   - An acknowledged event reaches every handler that reads its type, at least
//     once, within the retention of the stream.
//   - The events of one key (a node, or a whole cluster) reach a handler one at
//     a time and in order, whatever process dies or freezes meanwhile.
//   - An event that can't be handled is set aside with its reason, never lost
//     and never tried for ever.
//
// # How
//
// One stream of record holds every event. The stream itself puts one of 16
// partitions, a hash of cluster and key, in front of each subject. A handler has
// one durable pull consumer for each partition, with one message in flight:
// that gives order per key, and parallelism over keys. Every process pulls every
// partition with a priority of its own, so that the work spreads and another
// process takes over at once when one is gone.
//
// A process that handles a message proves every third of AckWait that it is
// alive; without a confirmation for 0.8 AckWait its context is cancelled and it
// sends nothing any more, because the server accepts a late acknowledgement of a
// stale owner. That alone does not exclude two owners (nothing could), so the
// state of a handler is written by compare-and-swap together with the sequence
// it belongs to and the events to publish: see State.
//
// The kind of an error decides what happens to the message: Terminal sets it
// aside at once, RetryAfter gives it back for a while, anything else is tried
// again with a growing delay and set aside after a number of attempts.
package bus

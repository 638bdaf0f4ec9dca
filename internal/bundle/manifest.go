// Package bundle keeps a range of the stream of record in one file: what happened,
// to be looked into elsewhere, without a cluster, a bus or a store.
//
// # Format
//
// A tar archive, compressed with zstd, of three files in this order:
//
//	manifest.json  what the bundle holds; see Manifest
//	events.jsonl   the events in stream order, one a line: sequence, stream_time, event
//	SHA256SUMS     the digests of both, as sha256sum writes them
//
// So tar unpacks it, sha256sum -c checks it, and jq reads it. The digests find what
// was damaged or edited by accident; they are no signature.
//
// The events begin, for each cluster, with the full snapshot of the last checkpoint
// before the range, so that all decisions of the range can be taken again. Data that
// the bus keeps apart from its message is in the event.
package bundle

import (
	"errors"
	"fmt"
	"time"
)

// Format is the one that this version writes and reads.
const Format = "k3s-autoscaler-incident/v1"

// Names of the files in a bundle.
const (
	manifestName = "manifest.json"
	eventsName   = "events.jsonl"
	sumsName     = "SHA256SUMS"
)

// Manifest says what a bundle holds.
type Manifest struct {
	Format  string `json:"format"`
	Version string `json:"version"` // of the program that exported it
	// Incarnation of the stream of record that the sequences are of.
	Incarnation string `json:"incarnation"`
	// Cluster is the only one whose events are there; empty: all.
	Cluster string `json:"cluster,omitempty"`
	// RangeFirst is the sequence of the first event of the range that was asked for;
	// those before it are there so that decisions can be taken again.
	RangeFirst uint64    `json:"range_first"`
	First      uint64    `json:"first"` // sequences of the first and the last event
	Last       uint64    `json:"last"`
	FirstTime  time.Time `json:"first_time"`
	LastTime   time.Time `json:"last_time"`
	Events     int       `json:"events"`
	Bytes      int64     `json:"bytes"`  // of events.jsonl
	Digest     string    `json:"digest"` // SHA-256 of events.jsonl in hexadecimal digits
	Clusters   []Part    `json:"clusters"`
	// Redacted are the sequences of events in which something looked like a secret and
	// was taken out. What was decided on them may come out otherwise.
	Redacted []uint64 `json:"redacted,omitempty"`
}

// Part is what a bundle holds of one cluster.
type Part struct {
	Cluster string `json:"cluster"`
	Events  int    `json:"events"`
	// Checkpoint is the sequence of the first checkpoint whose snapshot is there, too:
	// decisions can be taken again from that on. 0: none can.
	Checkpoint uint64 `json:"checkpoint,omitempty"`
	Snapshot   uint64 `json:"snapshot,omitempty"`
	// Policies are the one in force at the checkpoint, and each that was applied.
	Policies []Policy `json:"policies,omitempty"`
	Versions []string `json:"versions,omitempty"` // of the program that decided
}

// Policy is a policy in force.
type Policy struct {
	Sequence uint64 `json:"sequence"` // of its config.applied
	Digest   string `json:"digest"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// Errors of a file that can't be used. They are wrapped in one that names the file.
var (
	// ErrForeign means that nothing of ours made the file.
	ErrForeign = errors.New("is no incident bundle: expected a file that 'k3s-autoscaler export' made")
	// ErrTruncated means that the end of the file is missing.
	ErrTruncated = errors.New("is truncated: its end is missing; copy or export it again")
	// ErrChanged means that the file is not what was exported.
	ErrChanged = errors.New("was changed or damaged since it was exported")
	// ErrFormat means that another version made it.
	ErrFormat = errors.New("has a format that this version can't read")
)

func changed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrChanged, fmt.Sprintf(format, args...))
}

package bus

import (
	"context"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Key identifies what the events of one order are about.
type Key struct {
	Cluster string
	Name    string // the true node name, or events.ClusterKey
}

func (k Key) String() string { return k.Cluster + "/" + k.Name }

// IsCluster reports whether the key stands for a whole cluster.
func (k Key) IsCluster() bool { return k.Name == events.ClusterKey }

// node is the name as events.Meta wants it: empty for a whole cluster.
func (k Key) node() string {
	if k.IsCluster() {
		return ""
	}
	return k.Name
}

// Delivery is one event as it reaches a handler or a reader.
type Delivery struct {
	Event       events.Event
	Key         Key
	Sequence    uint64    // in the stream of record
	Incarnation string    // of the stream of record
	StreamTime  time.Time // when JetStream stored it, UTC
	Partition   int
	Attempt     int // 1 is the first; RetryAfter does not count
	// Redrive marks the copy of a dead letter, which only the handler that it names
	// handles; the zero value for any other event.
	Redrive events.Redrive
}

// origin is the sequence at which the event first stood.
func (d Delivery) origin() uint64 {
	if d.Redrive.Handler != "" {
		return d.Redrive.Origin
	}
	return d.Sequence
}

// Handler handles the events whose types name it as a reader in the catalogue.
type Handler interface {
	// Name is one of events.Handler...: its consumers read events.Suffixes(Name()).
	Name() string
	// Handle is called for one event of a key at a time, in the order of the
	// stream. It may be called again for the same event at any time. The kind of
	// its error decides what happens next: see Terminal and RetryAfter. ctx ends
	// when the process no longer owns the message; the result is discarded then.
	Handle(ctx context.Context, d Delivery) error
}

// BatchHandler handles all events of the stream of record, in stream order.
type BatchHandler interface {
	Name() string
	// HandleBatch is called with one or more deliveries of ascending sequence. All
	// of them are acknowledged after it returned nil; otherwise the same batch is
	// given again.
	HandleBatch(ctx context.Context, ds []Delivery) error
}

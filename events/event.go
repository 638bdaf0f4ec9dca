// Package events is the contract of k3s-autoscaler: the types of its
// CloudEvents, their payloads, and the subjects they travel on.
//
// Everything that happens is one of these events. A type is a past-tense fact,
// versioned and additive: a field may be added, never repurposed. The golden
// files under testdata hold one example of each and fail when an encoding
// changes.
//
// The package knows neither the bus nor the scaling core; it imports the
// CloudEvents SDK and the standard library only, so that a third party can use
// it to write a provider, a notifier or an auditor of its own.
package events

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

// Event is a CloudEvent 1.0 as the official SDK models it.
type Event = cloudevents.Event

// Names of the CloudEvents extension attributes that every event may carry.
const (
	// ExtPartitionKey is "<cluster>/<key>"; events of one key are handled in order.
	ExtPartitionKey = "partitionkey"
	// ExtCorrelationID is one value for one node's life, from its cause to its removal.
	ExtCorrelationID = "correlationid"
	// ExtCausationID is the id of the event that led to this one.
	ExtCausationID = "causationid"
	// ExtTraceParent is the W3C trace context of the publisher.
	ExtTraceParent = "traceparent"
	// ExtDryRun is "true" on what a dry run decided: no handler acts on it.
	ExtDryRun = "dryrun"
	// ExtDataRef and ExtDataDigest ("sha256:" and hexadecimal digits) stand in place
	// of data that has no room in a message: a reference to the object of a NATS
	// object store, "nats-object:/<bucket>/<name>", which is compressed with zstd, and
	// the digest of the data. The bus puts them there and takes them away again; only
	// who reads the stream by other means meets them.
	ExtDataRef    = "dataref"
	ExtDataDigest = "datadigest"
)

// ClusterKey is the pseudo node that everything concerning a whole cluster
// carries as its key: one total order and one decider for each cluster.
const ClusterKey = "_cluster"

// Payload is what an event of the catalogue carries as data.
type Payload interface {
	// EventType returns the CloudEvents type, e.g. "dev.k3s-autoscaler.node.ready.v1".
	EventType() string
	// Validate reports every field that is missing or out of range.
	Validate() error
}

// Meta is everything of an event that is not its payload.
type Meta struct {
	// Cluster is the name of the cluster concerned (a DNS label). Required.
	Cluster string
	// Node is the true node name, or empty for what concerns the whole cluster.
	Node string
	// Publisher is the role that publishes, e.g. "decision". Required; the
	// CloudEvents source is derived from it.
	Publisher string
	// ID identifies the event; the pair of source and id is unique. Required.
	ID string
	// Time is when the fact happened. Required, kept in UTC.
	Time time.Time
	// CorrelationID, CausationID and TraceParent are optional; see the extensions.
	CorrelationID string
	CausationID   string
	TraceParent   string
	// DryRun marks what was decided without the means to act.
	DryRun bool
}

// Key returns the true node name, or ClusterKey.
func (m Meta) Key() string {
	if m.Node == "" {
		return ClusterKey
	}
	return m.Node
}

// New builds and validates an event. The error names every field that is wrong.
func New(m Meta, p Payload) (Event, error) {
	def, ok := Lookup(p.EventType())
	if !ok {
		return Event{}, fmt.Errorf("event type %q is not in the catalogue", p.EventType())
	}
	var errs []error
	if err := ValidateCluster(m.Cluster); err != nil {
		errs = append(errs, err)
	}
	if m.Node != "" {
		if _, err := EncodeKey(m.Node); err != nil {
			errs = append(errs, err)
		}
	}
	if def.Key == KeyNode && m.Node == "" {
		errs = append(errs, errors.New("node: is empty, a node name is required for this type"))
	}
	if def.Key == KeyCluster && m.Node != "" {
		errs = append(errs, fmt.Errorf("node: is %q, must be empty: the type concerns the whole cluster", m.Node))
	}
	if m.Publisher == "" {
		errs = append(errs, errors.New("publisher: is empty"))
	}
	if m.ID == "" {
		errs = append(errs, errors.New("id: is empty"))
	}
	if m.Time.IsZero() {
		errs = append(errs, errors.New("time: is zero"))
	}
	if err := p.Validate(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return Event{}, fmt.Errorf("event %s: %w", p.EventType(), err)
	}
	e := cloudevents.New(cloudevents.CloudEventsVersionV1)
	e.SetID(m.ID)
	e.SetType(p.EventType())
	e.SetSource("/k3s-autoscaler/" + m.Cluster + "/" + m.Publisher)
	e.SetTime(m.Time.UTC())
	e.SetSubject(m.Key())
	e.SetDataSchema(def.SchemaURI())
	e.SetExtension(ExtPartitionKey, m.Cluster+"/"+m.Key())
	for name, v := range map[string]string{
		ExtCorrelationID: m.CorrelationID, ExtCausationID: m.CausationID, ExtTraceParent: m.TraceParent,
	} {
		if v != "" {
			e.SetExtension(name, v)
		}
	}
	if m.DryRun {
		e.SetExtension(ExtDryRun, "true")
	}
	if err := e.SetData(cloudevents.ApplicationJSON, p); err != nil {
		return Event{}, fmt.Errorf("event %s: encode data: %w", p.EventType(), err)
	}
	if err := e.Validate(); err != nil {
		return Event{}, fmt.Errorf("event %s: %w", p.EventType(), err)
	}
	return e, nil
}

// Decode returns the payload of e. The error is a *DecodeError when the type
// differs, the data is not JSON of T, or a required field is missing: none of
// these gets better by trying again.
func Decode[T Payload](e Event) (T, error) {
	var p T
	if want := p.EventType(); e.Type() != want {
		return p, &DecodeError{ID: e.ID(), Type: e.Type(), Err: fmt.Errorf("type: is %q, expected %q", e.Type(), want)}
	}
	if err := unmarshal(e.Data(), &p); err != nil {
		return p, &DecodeError{ID: e.ID(), Type: e.Type(), Err: fmt.Errorf("data: %w", err)}
	}
	if err := p.Validate(); err != nil {
		return p, &DecodeError{ID: e.ID(), Type: e.Type(), Err: err}
	}
	return p, nil
}

// DecodeError says why an event can't be understood. It is permanent.
type DecodeError struct {
	ID, Type string
	Err      error
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("decode event %s (%s): %v", e.ID, e.Type, e.Err)
}
func (e *DecodeError) Unwrap() error { return e.Err }

// Check verifies that e is of the catalogue, carries a partition key of the
// right kind and a payload that decodes. It is what an entry point (the HTTP
// API, a redrive) calls before it publishes an event that others built.
func Check(e Event) error {
	if err := e.Validate(); err != nil {
		return fmt.Errorf("event %s: %w", e.ID(), err)
	}
	def, ok := Lookup(e.Type())
	if !ok {
		return fmt.Errorf("type: %q is not in the catalogue", e.Type())
	}
	cluster, key, err := PartitionKey(e)
	if err != nil {
		return err
	}
	if err := ValidateCluster(cluster); err != nil {
		return err
	}
	if _, err := EncodeKey(key); err != nil {
		return err
	}
	if def.Key == KeyCluster && key != ClusterKey || def.Key == KeyNode && key == ClusterKey {
		return fmt.Errorf("%s: is %q, the type %s needs a %s key", ExtPartitionKey, cluster+"/"+key, e.Type(), def.Key)
	}
	p := def.newPayload()
	if err := json.Unmarshal(e.Data(), p); err != nil {
		return fmt.Errorf("data: %w", err)
	}
	return p.Validate()
}

// PartitionKey returns the cluster and the key (a true node name or
// ClusterKey) of an event.
func PartitionKey(e Event) (cluster, key string, err error) {
	v, _ := e.Extensions()[ExtPartitionKey].(string)
	cluster, key, ok := strings.Cut(v, "/")
	if !ok || cluster == "" || key == "" {
		return "", "", fmt.Errorf("%s: is %q, expected \"<cluster>/<node>\" or \"<cluster>/%s\"", ExtPartitionKey, v, ClusterKey)
	}
	return cluster, key, nil
}

// Extension returns the named extension attribute as text, or "".
func Extension(e Event, name string) string {
	v, _ := extension(e, name)
	text, _ := v.(string)
	return text
}

// extension is e.Extensions()[name], which copies all of them.
func extension(e Event, name string) (any, bool) {
	if c, ok := e.Context.(*cloudevents.EventContextV1); ok {
		v, has := c.Extensions[name]
		return v, has
	}
	v, has := e.Extensions()[name]
	return v, has
}

// IsDryRun reports whether e was decided by a process that can't act.
func IsDryRun(e Event) bool { return Extension(e, ExtDryRun) == "true" }

// ID derives an identifier from parts: the same parts give the same id, in
// any process and at any time, which is what makes publishing twice harmless.
func ID(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		// The length keeps ("ab","c") and ("a","bc") apart.
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)[:20]))
}

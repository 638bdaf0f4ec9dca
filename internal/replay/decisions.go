package replay

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aymanbagabas/go-udiff"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
)

// DecisionOptions of a replay of decisions. Log is required.
type DecisionOptions struct {
	Log Log
	// From and To bound what is read; the first checkpoint in between is where
	// decisions are taken again.
	From, To Position
	// Cluster is the only one; empty: all.
	Cluster string
	Logger  *slog.Logger // default: discards
}

// DecisionReport is what a replay of decisions came to.
type DecisionReport struct {
	Incarnation string             `json:"incarnation"`
	StreamFirst uint64             `json:"stream_first"` // what the stream holds
	StreamLast  uint64             `json:"stream_last"`
	Clusters    []ClusterDecisions `json:"clusters"` // by name
}

// ClusterDecisions is what became of one cluster.
type ClusterDecisions struct {
	Cluster string `json:"cluster"`
	// From is the sequence of the full snapshot whose checkpoint was the beginning,
	// To that of the last event that was read; Since and Until are their times.
	From  uint64    `json:"from"`
	To    uint64    `json:"to"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`

	Inputs      int `json:"inputs"`      // events that were decided on again
	Compared    int `json:"compared"`    // events that the decisions led to, then and now
	Decisions   int `json:"decisions"`   // of them, scale-ups, scale-downs and holds
	Checkpoints int `json:"checkpoints"` // of them; each holds the whole state
	// Open are events that follow from the last inputs and are not in the log yet.
	Open int `json:"open"`
	// Versions are those of the program that decided; the bytes that name it are
	// not compared.
	Versions []string `json:"versions"`

	Differences int `json:"differences"`
	// First is the first difference.
	First *DecisionDifference `json:"first_difference,omitempty"`
}

// DecisionDifference is one event that is not the same when it is decided again.
type DecisionDifference struct {
	// Input is the sequence of the event that was decided on, 0 if unknown.
	Input    uint64 `json:"input,omitempty"`
	Sequence uint64 `json:"sequence,omitempty"` // of the event in the log, 0 if it has none
	EventID  string `json:"event_id"`
	Type     string `json:"type"`
	What     string `json:"what"` // in a sentence
	// Diff is a unified diff of the two events in JSON: - was recorded, + is what
	// the same input gives now.
	Diff string `json:"diff,omitempty"`
}

// Equal says that every decision is what it was, byte for byte.
func (r DecisionReport) Equal() bool {
	return !slices.ContainsFunc(r.Clusters, func(c ClusterDecisions) bool { return c.Differences > 0 })
}

// ErrNoCheckpoint means that there is nothing in the range where decisions can be
// taken again from.
var ErrNoCheckpoint = errors.New("no checkpoint of decision is in this range of the log; each full snapshot has one, every 15 minutes unless collector.full_every says otherwise")

// Decisions takes every decision of a range again, from the first checkpoint on,
// and compares what follows with what the log holds. A difference is no error: it
// stands in the report. After one, it goes on from the next checkpoint.
func Decisions(ctx context.Context, o DecisionOptions) (DecisionReport, error) {
	if o.Log == nil {
		return DecisionReport{}, errors.New("replay decisions: log is required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	state, err := o.Log.LogState(ctx)
	if err != nil {
		return DecisionReport{}, fmt.Errorf("replay decisions: %w", err)
	}
	if !state.Exists {
		return DecisionReport{}, fmt.Errorf("replay decisions: %w", bus.ErrAbsent)
	}
	r := DecisionReport{Incarnation: state.Incarnation, StreamFirst: state.First, StreamLast: state.Last}
	until := state.Last
	if o.To.Sequence > 0 {
		until = min(until, o.To.Sequence)
	}
	clusters := map[string]*rerun{}
	for d, err := range o.Log.Read(ctx, bus.ReadOptions{Cluster: o.Cluster, FromSequence: o.From.Sequence, Since: o.From.Time, UntilSequence: until, Until: o.To.Time}) {
		var undecodable *bus.UndecodableError
		if errors.As(err, &undecodable) {
			continue // decision set it aside
		}
		if err != nil {
			return r, fmt.Errorf("replay decisions: %w", err)
		}
		if o.Cluster != "" && d.Key.Cluster != o.Cluster {
			continue
		}
		c := clusters[d.Key.Cluster]
		if c == nil {
			c = &rerun{log: o.Log, report: ClusterDecisions{Cluster: d.Key.Cluster}, inputs: map[string]uint64{}, want: map[string]wanted{}, have: map[string]bool{}}
			clusters[d.Key.Cluster] = c
		}
		if err := c.take(ctx, d); err != nil {
			return r, fmt.Errorf("replay decisions: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return r, fmt.Errorf("replay decisions: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(clusters)) {
		if c := clusters[name]; c.run != nil {
			c.end()
			r.Clusters = append(r.Clusters, c.report)
		}
	}
	if len(r.Clusters) == 0 {
		return r, fmt.Errorf("replay decisions: %w", ErrNoCheckpoint)
	}
	return r, nil
}

// rerun is one cluster on its way through the log.
type rerun struct {
	log    Log
	report ClusterDecisions
	run    *decision.Rerun // nil before the first checkpoint
	// recent are the inputs since the last full snapshot, that included: its
	// checkpoint comes behind some of them.
	recent []bus.Delivery
	before map[string]bool   // events that were decided on before that
	inputs map[string]uint64 // sequences of what was decided on again, by event
	want   map[string]wanted // what follows from them and was not seen yet
	have   map[string]bool   // what was
	seen   uint64            // sequence of the last input of which something was seen
}

// wanted is an event that a decision leads to now.
type wanted struct {
	event events.Event
	input uint64
}

func (c *rerun) take(ctx context.Context, d bus.Delivery) error {
	switch {
	case decision.Reads(d):
		if d.Event.Type() == events.TypeSnapshotCaptured {
			c.recent = c.recent[:0]
		}
		if c.recent = append(c.recent, d); c.run != nil {
			return c.decide(ctx, d)
		}
	case strings.HasSuffix(d.Event.Source(), "/"+events.HandlerDecision):
		if c.run == nil {
			if d.Event.Type() == events.TypeDecisionCheckpointed {
				return c.begin(ctx, d)
			}
			return nil
		}
		return c.compare(ctx, d)
	}
	return nil
}

// begin begins with a checkpoint, and decides on what was read since its snapshot.
func (c *rerun) begin(ctx context.Context, d bus.Delivery) error {
	p, err := events.Decode[events.DecisionCheckpointed](d.Event)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.recent, func(in bus.Delivery) bool { return in.Sequence == p.Snapshot })
	if i < 0 {
		return nil // the range begins between the snapshot and its checkpoint
	}
	if c.run == nil {
		c.report.From, c.report.Since = p.Snapshot, c.recent[i].StreamTime
		c.report.To, c.report.Until = d.Sequence, d.StreamTime
	}
	if c.run, err = decision.NewRerun(snapshots{c.log}, d); err != nil {
		return err
	}
	c.want, c.before = map[string]wanted{}, map[string]bool{}
	for _, in := range c.recent[:i+1] {
		c.before[in.Event.ID()] = true
	}
	c.have[d.Event.ID()] = true
	c.version(p.Version)
	for _, in := range c.recent[i+1:] {
		if err := c.decide(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

func (c *rerun) decide(ctx context.Context, d bus.Delivery) error {
	out, err := c.run.Handle(ctx, d)
	if err != nil {
		return err
	}
	if c.inputs[d.Event.ID()] != d.Sequence { // it may be decided on once more after a difference
		c.report.Inputs++
	}
	c.inputs[d.Event.ID()] = d.Sequence
	c.report.To, c.report.Until = d.Sequence, d.StreamTime
	for _, e := range out {
		if !c.have[e.ID()] {
			c.want[e.ID()] = wanted{e, d.Sequence}
		}
	}
	return nil
}

// compare compares what the log holds with what is decided now.
func (c *rerun) compare(ctx context.Context, d bus.Delivery) error {
	id := d.Event.ID()
	if c.have[id] {
		return nil // published twice
	}
	c.have[id] = true
	checkpoint := d.Event.Type() == events.TypeDecisionCheckpointed
	w, ok := c.want[id]
	delete(c.want, id)
	if !ok && c.before[events.Extension(d.Event, events.ExtCausationID)] {
		return nil // it follows from the snapshot itself: keys are published side by side
	}
	difference := DecisionDifference{Input: w.input, Sequence: d.Sequence, EventID: id, Type: d.Event.Type()}
	switch input, known := c.inputs[events.Extension(d.Event, events.ExtCausationID)]; {
	case !ok && known:
		difference.Input = input
		difference.What = "this was decided then, and is not now"
		c.differ(difference)
	case !ok:
		difference.What = "this was decided then; the event that it follows from was not decided on again"
		c.differ(difference)
	default:
		c.report.Compared++
		c.seen = max(c.seen, w.input)
		was, err := c.uniform(d.Event)
		if err != nil {
			return err
		}
		now, err := c.uniform(w.event)
		if err != nil {
			return err
		}
		if !bytes.Equal(was, now) {
			if checkpoint {
				c.missing(func(m wanted) bool { return m.input < w.input }) // that is why
			}
			difference.What = "what was decided then is not what the same input gives now"
			difference.Diff = udiff.Unified("recorded", "decided again", string(was), string(now))
			c.differ(difference)
			break
		}
		if checkpoint {
			c.report.Checkpoints++
			c.forget(w.input)
		}
		switch d.Event.Type() {
		case events.TypeScaleupDecided, events.TypeScaledownDecided, events.TypeScaleHeld:
			c.report.Decisions++
		}
		return nil
	}
	if checkpoint {
		return c.begin(ctx, d)
	}
	return nil
}

// forget drops what is before a snapshot whose checkpoint is the same.
func (c *rerun) forget(snapshot uint64) {
	maps.DeleteFunc(c.inputs, func(_ string, seq uint64) bool { return seq < snapshot })
}

// uniform is an event as indented JSON, without the version of the program.
func (c *rerun) uniform(e events.Event) ([]byte, error) {
	var data struct{ Version json.RawMessage }
	if err := json.Unmarshal(e.Data(), &data); err != nil {
		return nil, fmt.Errorf("read event %s: %w", e.ID(), err)
	}
	var version string
	if len(data.Version) > 0 && json.Unmarshal(data.Version, &version) == nil {
		c.version(version)
		e = e.Clone()
		e.DataEncoded = bytes.ReplaceAll(e.Data(), append([]byte(`"version":`), data.Version...), []byte(`"version":""`))
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", e.ID(), err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("encode event %s: %w", e.ID(), err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func (c *rerun) version(v string) {
	if !slices.Contains(c.report.Versions, v) {
		c.report.Versions = append(c.report.Versions, v)
	}
}

func (c *rerun) differ(d DecisionDifference) {
	if c.report.Differences++; c.report.First == nil {
		c.report.First = &d
	}
}

// end judges what was not seen: it is open as long as nothing was seen that
// follows from a later input.
func (c *rerun) end() {
	c.missing(func(w wanted) bool { return w.input < c.seen })
	c.report.Open = len(c.want)
}

// missing reports what is decided now, and the log does not hold, in the order of
// the inputs.
func (c *rerun) missing(is func(wanted) bool) {
	ids := slices.SortedFunc(maps.Keys(c.want), func(a, b string) int {
		return cmp.Or(cmp.Compare(c.want[a].input, c.want[b].input), cmp.Compare(a, b))
	})
	for _, id := range ids {
		if w := c.want[id]; is(w) {
			c.differ(DecisionDifference{Input: w.input, EventID: id, Type: w.event.Type(), What: "this is decided now, and the log does not hold it"})
			delete(c.want, id)
		}
	}
}

// snapshots is a log that a Rerun reads: it gives what is asked for, and no more.
type snapshots struct{ log Log }

// Read implements decision.History.
func (s snapshots) Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		for d, err := range s.log.Read(ctx, o) {
			if err == nil && (o.Cluster != "" && d.Key.Cluster != o.Cluster || len(o.Types) > 0 && !slices.Contains(o.Types, d.Event.Type())) {
				continue
			}
			if !yield(d, err) {
				return
			}
		}
	}
}

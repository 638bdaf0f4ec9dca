package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
)

const (
	// signalLasts is how long a value is good that says nothing else. The rules that
	// look at it have their own stale_after, which is shorter as a rule.
	signalLasts = 24 * time.Hour
	// clockAhead is by how much the clock of who measures may be ahead of ours.
	clockAhead = time.Minute
)

// SignalRequest is values that somebody measured.
type SignalRequest struct {
	Signals []Signal `json:"signals" minItems:"1" maxItems:"100" nullable:"false" doc:"All of them are stored or none is"`
}

// Signal is one value of a metric.
type Signal struct {
	ID         string            `json:"id,omitempty" maxLength:"200" doc:"Makes it safe to send it again: the same id of a name is one value, however often it is sent. Absent: observed_at does, where that is given"`
	Cluster    string            `json:"cluster,omitempty" maxLength:"63" doc:"Absent: the only one, or alerting.default_cluster"`
	Name       string            `json:"name" minLength:"1" maxLength:"100" doc:"As a metric rule of the cluster names it: signal"`
	Value      *float64          `json:"value" doc:"null: unknown, which is not zero"`
	Reason     string            `json:"reason,omitempty" maxLength:"400" doc:"Why it is unknown"`
	Labels     map[string]string `json:"labels,omitempty" doc:"For those who read the audit; decisions don't look at them"`
	ObservedAt time.Time         `json:"observed_at,omitzero" doc:"When it was measured. Absent: now"`
	ExpiresAt  time.Time         `json:"expires_at,omitzero" doc:"From then on it is unknown. Absent: a day later; stale_after of the rule counts as well"`
}

func (s *Server) signals() {
	huma.Register(s.huma, huma.Operation{OperationID: "post-signals", Method: http.MethodPost, Path: "/v1/signals",
		Summary: "Values for metric rules", DefaultStatus: http.StatusAccepted, MaxBodyBytes: s.o.Limits.BodyBytes,
		Description: "Stores one signal.received for each. 2xx only after the bus has stored all of them; a 503 is to be retried.",
		Errors:      []int{http.StatusUnauthorized, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusServiceUnavailable}},
		func(ctx context.Context, in *struct{ Body SignalRequest }) (*body[Accepted], error) {
			return s.postSignals(ctx, in.Body)
		})
}

func (s *Server) postSignals(ctx context.Context, r SignalRequest) (*body[Accepted], error) {
	caller, _ := auth.CallerFrom(ctx)
	var errs []*huma.ErrorDetail
	var es []events.Event
	out := Accepted{IDs: []string{}}
	for i, sg := range r.Signals {
		e, problems := s.signalEvent(caller.Name, sg, fmt.Sprintf("body.signals[%d].", i))
		errs = append(errs, problems...)
		if problems == nil {
			es, out.IDs = append(es, e), append(out.IDs, e.ID())
		}
	}
	if len(errs) > 0 {
		all := make([]error, len(errs))
		for i, e := range errs {
			all[i] = e
		}
		return nil, huma.Error422UnprocessableEntity("The signal was understood and is refused: "+errs[0].Message+".", all...)
	}
	pctx, cancel := context.WithTimeout(ctx, s.o.Limits.PublishWait)
	defer cancel()
	if err := s.o.Publisher.Publish(pctx, es...); err != nil {
		if errors.Is(err, bus.ErrTooLarge) {
			return nil, huma.NewError(http.StatusRequestEntityTooLarge, "A signal is too large for the bus.")
		}
		s.o.Logger.ErrorContext(ctx, "bus does not acknowledge signals, the caller has to send again", "signals", len(es), "key", caller.Name, "error", err)
		return nil, huma.Error503ServiceUnavailable("The bus does not acknowledge. Nothing is lost: send the same signals, with the same ids, again.")
	}
	s.o.Logger.DebugContext(ctx, "signals accepted", "event_ids", out.IDs, "key", caller.Name)
	return &body[Accepted]{out}, nil
}

// signalEvent makes an event of a value, or says field by field why not.
func (s *Server) signalEvent(caller string, sg Signal, at string) (events.Event, []*huma.ErrorDetail) {
	now := s.o.Clock.Now().UTC()
	cluster := cmp.Or(sg.Cluster, s.o.DefaultCluster())
	var errs []*huma.ErrorDetail
	var clusters []string
	var target *Target
	for _, t := range s.o.Targets() {
		clusters = append(clusters, t.Cluster)
		if t.Cluster == cluster {
			target = &t
		}
	}
	switch {
	case cluster == "":
		errs = append(errs, refusal(at+"cluster", "cluster is missing and there are several: "+list(clusters), nil))
	case target == nil:
		errs = append(errs, refusal(at+"cluster", fmt.Sprintf("there is no cluster %q; there are %s", cluster, list(clusters)), cluster))
	default:
		errs = append(errs, target.knows(sg.Name, at+"name")...)
	}
	if sg.Value != nil && sg.Reason != "" {
		errs = append(errs, refusal(at+"reason", "reason says why a value is unknown, and this one is known", sg.Reason))
	}
	key := sg.ID
	if key == "" {
		key = rand.Text()
		if !sg.ObservedAt.IsZero() {
			key = "at " + sg.ObservedAt.UTC().Format(time.RFC3339Nano)
		}
	}
	if sg.ObservedAt.IsZero() {
		sg.ObservedAt = now
	}
	errs = append(errs, aheadOf(now, at+"observed_at", sg.ObservedAt)...)
	if sg.ExpiresAt.IsZero() {
		sg.ExpiresAt = sg.ObservedAt.Add(signalLasts)
	}
	if !sg.ExpiresAt.After(now) {
		errs = append(errs, refusal(at+"expires_at", fmt.Sprintf("expires_at is in the past: %s", sg.ExpiresAt.UTC().Format(time.RFC3339)), sg.ExpiresAt))
	}
	if len(errs) > 0 {
		return events.Event{}, errs
	}
	id := events.ID("pushed signal", cluster, sg.Name, key)
	e, err := events.New(events.Meta{Cluster: cluster, Publisher: "api", ID: id, Time: now, CorrelationID: id},
		events.SignalReceived{Name: sg.Name, Value: sg.Value, Reason: sg.Reason, Source: events.SignalPushed, Labels: sg.Labels, Actor: caller,
			ObservedAt: sg.ObservedAt.UTC(), ExpiresAt: sg.ExpiresAt.UTC()})
	if err != nil {
		return events.Event{}, []*huma.ErrorDetail{refusal(at[:len(at)-1], err.Error(), nil)}
	}
	return e, nil
}

// knows refuses a signal that no metric rule of the cluster looks at, so that a
// slip of the pen is not a value that nobody misses.
func (t Target) knows(name, at string) []*huma.ErrorDetail {
	if slices.Contains(t.Signals, name) {
		return nil
	}
	return []*huma.ErrorDetail{refusal(at, fmt.Sprintf("no metric rule of cluster %q looks at a signal %q; there are %s", t.Cluster, name, list(t.Signals)), name)}
}

// aheadOf refuses what was measured in the future: it would look new for too long.
func aheadOf(now time.Time, at string, measured time.Time) []*huma.ErrorDetail {
	if !measured.After(now.Add(clockAhead)) {
		return nil
	}
	return []*huma.ErrorDetail{refusal(at, fmt.Sprintf("observed_at is in the future: here it is %s", now.Format(time.RFC3339)), measured)}
}

// ownFields refuses what only the collector may say of a signal.
func ownFields(data map[string]json.RawMessage, at string) []*huma.ErrorDetail {
	var errs []*huma.ErrorDetail
	if source := text(data["source"]); source != "" && source != events.SignalPushed {
		errs = append(errs, refusal(at+"data.source", fmt.Sprintf("source is %q, expected %s or nothing", source, events.SignalPushed), source))
	}
	for _, field := range []string{"query", "epoch"} {
		if _, has := data[field]; has {
			errs = append(errs, refusal(at+"data."+field, field+" is set by the collector alone", nil))
		}
	}
	return errs
}

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/danielgtaylor/huma/v2"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/telemetry"
)

const (
	// maxBatch is how many events one call may carry.
	maxBatch = 100
	// ownSources are event sources that only our own roles use.
	ownSources = "/k3s-autoscaler/"
	// CLISource is the source of events that the command line makes.
	CLISource = "/k3s-autoscaler/cli"
)

// accepted lists the types that may come from outside. The rest are facts that
// only the role that observed them may state.
var accepted = []string{
	events.TypeScaleRequested, events.TypePoolPaused, events.TypePoolResumed, events.TypePoolBackoffReset, events.TypeSignalReceived,
	events.TypeReconcileRequested,
}

// invalid is why an event is refused, field by field.
type invalid struct {
	status int
	detail string
	errs   []*huma.ErrorDetail
}

func (e *invalid) Error() string { return e.detail }

func refusal(location, message string, value any) *huma.ErrorDetail {
	return &huma.ErrorDetail{Location: location, Message: message, Value: value}
}

// postEvents takes CloudEvents in any of the three modes of the HTTP binding.
// All of a batch are published or none is.
func (s *Server) postEvents(w http.ResponseWriter, r *http.Request) {
	es, err := readEvents(r)
	if err == nil {
		err = s.complete(r, es)
	}
	if err != nil {
		var bad *invalid
		if errors.As(err, &bad) {
			writeProblem(w, bad.status, bad.detail, bad.errs...)
			return
		}
		s.publishProblem(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.o.Limits.PublishWait)
	defer cancel()
	if err := s.o.Publisher.Publish(ctx, es...); err != nil {
		s.publishProblem(w, r, err)
		return
	}
	out := Accepted{IDs: make([]string, len(es))}
	for i, e := range es {
		out.IDs[i] = e.ID()
		s.o.Logger.InfoContext(telemetry.WithCorrelation(r.Context(), events.Extension(e, events.ExtCorrelationID)),
			"event accepted", "event_id", e.ID(), "type", e.Type(), "partition_key", events.Extension(e, events.ExtPartitionKey), "key", callerName(r))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(out) // the connection may be gone
}

func callerName(r *http.Request) string {
	c, _ := auth.CallerFrom(r.Context())
	return c.Name
}

// readEvents decodes the body; what is wrong with it is an *invalid.
func readEvents(r *http.Request) (es []events.Event, err error) {
	ct, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	msg := cehttp.NewMessageFromHttpRequest(r)
	defer func() { _ = msg.Finish(nil) }() // closes the body, which the server does again
	switch msg.ReadEncoding() {
	case binding.EncodingBatch:
		es, err = binding.ToEvents(r.Context(), msg, msg.BodyReader)
	case binding.EncodingStructured, binding.EncodingBinary:
		var e *events.Event
		if e, err = binding.ToEvent(r.Context(), msg); err == nil {
			es = []events.Event{*e}
		}
	default:
		return nil, &invalid{status: http.StatusUnsupportedMediaType,
			detail: fmt.Sprintf("The body is %q without ce- headers: no CloudEvent. Send application/cloudevents+json, application/cloudevents-batch+json, or the attributes as ce- headers.", ct)}
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &invalid{status: http.StatusRequestEntityTooLarge, detail: fmt.Sprintf("The body is larger than %d bytes.", large.Limit)}
	case err != nil:
		return nil, &invalid{status: http.StatusBadRequest, detail: "The body is no CloudEvent.", errs: []*huma.ErrorDetail{{Location: "body", Message: err.Error()}}}
	case len(es) == 0:
		return nil, &invalid{status: http.StatusBadRequest, detail: "The batch is empty."}
	case len(es) > maxBatch:
		return nil, &invalid{status: http.StatusRequestEntityTooLarge, detail: fmt.Sprintf("The batch holds %d events, at most %d are taken at once.", len(es), maxBatch)}
	}
	return es, nil
}

// complete fills in what may be left out and checks the rest.
func (s *Server) complete(r *http.Request, es []events.Event) error {
	var errs []*huma.ErrorDetail
	for i := range es {
		at := "body."
		if len(es) > 1 {
			at = fmt.Sprintf("body[%d].", i)
		}
		errs = append(errs, s.completeOne(callerName(r), &es[i], at)...)
	}
	if len(errs) == 0 {
		return nil
	}
	return &invalid{status: http.StatusUnprocessableEntity, detail: "The event was understood and is refused: " + errs[0].Message + ".", errs: errs}
}

func (s *Server) completeOne(caller string, e *events.Event, at string) []*huma.ErrorDetail {
	if !slices.Contains(accepted, e.Type()) {
		return []*huma.ErrorDetail{refusal(at+"type", "type must be one of "+strings.Join(accepted, ", "), e.Type())}
	}
	var errs []*huma.ErrorDetail
	if strings.HasPrefix(e.Source(), ownSources) && e.Source() != CLISource {
		errs = append(errs, refusal(at+"source", "source begins with "+ownSources+", which is kept for our own roles", e.Source()))
	}
	if events.Extension(*e, events.ExtDryRun) != "" {
		errs = append(errs, refusal(at+events.ExtDryRun, "dryrun is set by decision alone", nil))
	}
	if _, has := e.Extensions()[events.ExtRedrive]; has {
		errs = append(errs, refusal(at+events.ExtRedrive, "redrive is set by the bus alone", nil))
	}
	now := s.o.Clock.Now().UTC()
	if e.Time().IsZero() {
		e.SetTime(now)
	}
	if e.Extensions()[events.ExtPartitionKey] == nil {
		cluster := s.o.DefaultCluster()
		if cluster == "" {
			return append(errs, refusal(at+events.ExtPartitionKey, "partitionkey is missing and there are several clusters; set it to <cluster>/"+events.ClusterKey, nil))
		}
		e.SetExtension(events.ExtPartitionKey, cluster+"/"+events.ClusterKey)
	}
	if events.Extension(*e, events.ExtCorrelationID) == "" {
		e.SetExtension(events.ExtCorrelationID, e.ID())
	}
	e.SetSubject(events.ClusterKey)
	if def, ok := events.Lookup(e.Type()); ok {
		e.SetDataSchema(def.SchemaURI())
	}
	pool, more := completeData(caller, e, at, now)
	errs = append(errs, more...)
	if len(errs) > 0 {
		return errs
	}
	if err := events.Check(*e); err != nil {
		return fieldErrors(err, at)
	}
	return s.checkTarget(*e, pool, at)
}

// completeData sets the actor to whom the token belongs to: "<key>", or
// "<who it says>@<key>". It returns the pool concerned.
func completeData(caller string, e *events.Event, at string, now time.Time) (pool string, errs []*huma.ErrorDetail) {
	var data map[string]json.RawMessage
	if err := json.Unmarshal(e.Data(), &data); err != nil || data == nil {
		return "", []*huma.ErrorDetail{refusal(at+"data", "data must be a JSON object", nil)}
	}
	if e.Type() == events.TypeSignalReceived {
		errs = ownFields(data, at)
	}
	pool = text(data["pool"])
	actor, problem := actorOf(text(data["actor"]), caller)
	if problem != "" {
		errs = append(errs, refusal(at+"data.actor", problem, actor))
	}
	data["actor"], _ = json.Marshal(actor) // a string is always JSON
	for _, field := range []string{"expires_at", "hold_until", "until"} {
		var t time.Time
		if raw, ok := data[field]; ok && json.Unmarshal(raw, &t) == nil && !t.IsZero() && !t.After(now) {
			errs = append(errs, refusal(at+"data."+field, field+" is in the past", t))
		}
	}
	var measured time.Time
	if raw, ok := data["observed_at"]; ok && json.Unmarshal(raw, &measured) == nil {
		errs = append(errs, aheadOf(now, at+"data.observed_at", measured)...)
	}
	return pool, append(errs, setData(e, data, at)...)
}

// actorOf is whom an action belongs to: the name of the token, behind the name
// that its bearer gives, if any.
func actorOf(claimed, caller string) (actor, problem string) {
	switch {
	case strings.ContainsAny(claimed, "@\n\r"):
		return claimed, "actor must not hold '@' or line breaks"
	case claimed == "" || claimed == caller:
		return caller, ""
	}
	return claimed + "@" + caller, ""
}

func setData(e *events.Event, data map[string]json.RawMessage, at string) []*huma.ErrorDetail {
	b, err := json.Marshal(data)
	if err == nil {
		err = e.SetData("application/json", b)
	}
	if err != nil {
		return []*huma.ErrorDetail{refusal(at+"data", err.Error(), nil)}
	}
	return nil
}

func text(raw json.RawMessage) string {
	var s string
	_ = json.Unmarshal(raw, &s) // a wrong kind is reported by events.Check
	return s
}

// checkTarget refuses what no configured cluster or pool could ever fulfil, so
// that a slip of the pen is not an event that nothing happens to.
func (s *Server) checkTarget(e events.Event, pool, at string) []*huma.ErrorDetail {
	cluster, _, err := events.PartitionKey(e)
	if err != nil {
		return fieldErrors(err, at)
	}
	var clusters []string
	for _, t := range s.o.Targets() {
		clusters = append(clusters, t.Cluster)
		if t.Cluster != cluster {
			continue
		}
		if pool != "" && !slices.Contains(t.Pools, pool) {
			return []*huma.ErrorDetail{refusal(at+"data.pool", fmt.Sprintf("there is no pool %q in cluster %q; there are %s", pool, cluster, list(t.Pools)), pool)}
		}
		if p, err := events.Decode[events.SignalReceived](e); err == nil {
			return t.knows(p.Name, at+"data.name")
		}
		return nil
	}
	return []*huma.ErrorDetail{refusal(at+events.ExtPartitionKey, fmt.Sprintf("there is no cluster %q; there are %s", cluster, list(clusters)), cluster)}
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// maxRaw is how much of a message that is no event is shown, in bytes.
const maxRaw = 4 << 10

// DeadLetter is an event that could not be handled.
type DeadLetter struct {
	ID       string    `json:"id"`
	Handler  string    `json:"handler"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts" doc:"0: it was never tried, an event before it has the same key and failed"`
	Stack    string    `json:"stack,omitempty"`
	At       time.Time `json:"at"`
	Sequence uint64    `json:"sequence"`
	Origin   uint64    `json:"origin" doc:"Sequence at which the event first stood; differs when it was redriven and failed again"`
	Parked   bool      `json:"parked" doc:"Later events of the same node follow it until it is redriven or dropped"`
	Type     string    `json:"type,omitempty"`
	Cluster  string    `json:"cluster,omitempty"`
	Key      string    `json:"key,omitempty"`
	// DropOnly says why it can't be redriven.
	DropOnly string          `json:"drop_only,omitempty" doc:"Why it can't be redriven; absent: it can"`
	Event    json.RawMessage `json:"event,omitempty" doc:"CloudEvent in JSON"`
	Raw      string          `json:"raw,omitempty" doc:"The beginning of a message that is no event"`
}

// Parked is a node that a handler does not act on, because an event of it is
// among the dead letters.
type Parked struct {
	Handler    string    `json:"handler"`
	Node       string    `json:"node"`
	DeadLetter string    `json:"dead_letter" doc:"The one that parked it"`
	Reason     string    `json:"reason"`
	Since      time.Time `json:"since"`
	Redriving  bool      `json:"redriving,omitempty" doc:"A redrive is under way"`
}

func (p Parked) sentence() string {
	if p.Redriving {
		return fmt.Sprintf("Its dead letters are being redriven for %s.", p.Handler)
	}
	return fmt.Sprintf("%s does not act on it since %s, because it could not handle an event of it (%s): redrive or drop dead letter %s.",
		sentence(errors.New(p.Handler)), p.Since.UTC().Format("15:04:05"), strings.TrimSuffix(p.Reason, "."), p.DeadLetter)
}

// LetterFilter selects dead letters; all that is given must hold.
type LetterFilter struct {
	ClusterFilter
	TypeFilter
	Handler   string `query:"handler" enum:"decision,provisioning,draining,auditing,announcing,shadow"`
	Node      string `query:"node" doc:"Only of this node, or _cluster" maxLength:"253"`
	OlderThan string `query:"older_than" doc:"Set aside before: a time (RFC 3339) or how long ago, e.g. 1h" maxLength:"40"`
	NewerThan string `query:"newer_than" doc:"Set aside since: a time (RFC 3339) or how long ago" maxLength:"40"`
}

func (f LetterFilter) empty() bool {
	return f.Cluster == "" && f.Handler == "" && f.Node == "" && f.OlderThan == "" && f.NewerThan == "" && len(f.Type) == 0 && len(f.Exclude) == 0
}

// matcher reports whether a dead letter is selected.
func (f LetterFilter) matcher(now time.Time, where string) (func(bus.DeadLetter) bool, error) {
	types, err := f.full()
	if err != nil {
		return nil, err
	}
	var errs []error
	at := func(name, text string) time.Time {
		t, err := when(text, now)
		if err != nil {
			errs = append(errs, &huma.ErrorDetail{Location: where + name, Message: err.Error(), Value: text})
		}
		return t
	}
	before, since := at("older_than", f.OlderThan), at("newer_than", f.NewerThan)
	if len(errs) > 0 {
		return nil, huma.Error422UnprocessableEntity("A time is not understood.", errs...)
	}
	return func(dl bus.DeadLetter) bool {
		return (f.Cluster == "" || f.Cluster == dl.Key.Cluster) && (f.Handler == "" || f.Handler == dl.Handler) && (f.Node == "" || f.Node == dl.Key.Name) &&
			(before.IsZero() || dl.At.Before(before)) && (since.IsZero() || !dl.At.Before(since)) &&
			(len(types) == 0 || dl.Event.Context != nil && slices.Contains(types, dl.Event.Type()))
	}, nil
}

// deadLetters registers what lists and settles dead letters.
func (s *Server) deadLetters() {
	failures := []int{http.StatusUnauthorized, http.StatusNotFound, http.StatusUnprocessableEntity, http.StatusServiceUnavailable}
	huma.Register(s.huma, huma.Operation{OperationID: "list-deadletters", Method: http.MethodGet, Path: "/v1/deadletters",
		Summary: "Events that could not be handled, newest first", Errors: failures}, s.listDeadLetters)
	huma.Register(s.huma, huma.Operation{OperationID: "get-deadletter", Method: http.MethodGet, Path: "/v1/deadletters/{id}",
		Summary: "One event that could not be handled", Errors: failures}, s.getDeadLetter)
	for _, a := range []struct{ action, summary string }{
		{actionRedrive, "Publish dead letters again, for the handler that set them aside"},
		{actionDrop, "Delete dead letters"},
	} {
		huma.Register(s.huma, huma.Operation{OperationID: a.action + "-deadletters", Method: http.MethodPost, Path: "/v1/deadletters/" + a.action,
			Summary: a.summary, DefaultStatus: http.StatusAccepted, Errors: failures,
			Description: "Stores one request for each handler and key, which that handler carries out when its turn on the key comes. With dry_run nothing is stored."},
			func(ctx context.Context, in *struct{ Body LetterRequest }) (*body[LetterPlan], error) {
				return s.settleLetters(ctx, a.action, in.Body)
			})
	}
}

func (s *Server) listDeadLetters(ctx context.Context, in *LetterFilter) (*body[Page[DeadLetter]], error) {
	match, err := in.matcher(s.o.Clock.Now(), "query.")
	if err != nil {
		return nil, err
	}
	all, err := s.o.DeadLetters.DeadLetters(ctx)
	if err != nil {
		return nil, s.queryError(ctx, "the dead letters", err)
	}
	out := &body[Page[DeadLetter]]{Page[DeadLetter]{Items: []DeadLetter{}}}
	for _, dl := range all {
		if match(dl) {
			out.Body.Items = append(out.Body.Items, deadLetter(dl))
		}
	}
	slices.SortStableFunc(out.Body.Items, func(a, b DeadLetter) int { return b.At.Compare(a.At) })
	return out, nil
}

func (s *Server) getDeadLetter(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"64" doc:"Its id, or the beginning of it"`
}) (*body[DeadLetter], error) {
	all, err := s.o.DeadLetters.DeadLetters(ctx)
	if err != nil {
		return nil, s.queryError(ctx, "the dead letters", err)
	}
	dl, err := letterByID(all, in.ID)
	if err != nil {
		return nil, err
	}
	return &body[DeadLetter]{deadLetter(dl)}, nil
}

// letterByID finds a dead letter by its id or the beginning of it.
func letterByID(all []bus.DeadLetter, id string) (bus.DeadLetter, error) {
	var found []bus.DeadLetter
	for _, dl := range all {
		if dl.ID == id {
			return dl, nil
		}
		if len(id) >= 4 && strings.HasPrefix(dl.ID, id) {
			found = append(found, dl)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return bus.DeadLetter{}, huma.Error404NotFound(fmt.Sprintf("There is no dead letter %s; it was redriven or dropped, or never was.", id))
	}
	return bus.DeadLetter{}, huma.Error422UnprocessableEntity(fmt.Sprintf("%d dead letters begin with %s.", len(found), id))
}

func deadLetter(dl bus.DeadLetter) DeadLetter {
	x := DeadLetter{ID: dl.ID, Handler: dl.Handler, Reason: dl.Reason, Attempts: dl.Attempts, Stack: dl.Stack, At: dl.At,
		Sequence: dl.Sequence, Origin: dl.Origin, Parked: dl.Parked, Cluster: dl.Key.Cluster, Key: dl.Key.Name}
	if err := redrivable(dl); err != nil {
		x.DropOnly = err.Error()
	}
	if dl.Event.Context == nil {
		x.Raw = strings.ToValidUTF8(string(dl.Data[:min(len(dl.Data), maxRaw)]), "\uFFFD")
		return x
	}
	x.Type = dl.Event.Type()
	b, err := dl.Event.MarshalJSON()
	if err != nil { // data that is not what its content type says
		e := dl.Event.Clone()
		e.DataBase64 = true
		b, err = e.MarshalJSON()
	}
	if err == nil {
		x.Event = b
	}
	return x
}

// redrivable says why a dead letter can only be dropped.
func redrivable(dl bus.DeadLetter) error {
	switch {
	case !events.MayRedrive(dl.Handler):
		return fmt.Errorf("%s may publish no copy of what it reads; the next checkpoint of decision sets it right", dl.Handler)
	case dl.Event.Context == nil && dl.Bodyless: // the bus reads its data from where it is
		return nil
	case dl.Event.Context == nil:
		return errors.New("it is no event: " + dl.Undecodable)
	case dl.Bodyless:
		return events.RedrivableType(dl.Event.Type())
	}
	return events.Redrivable(dl.Event)
}

// parked lists the nodes that handlers do not act on.
func (s *Server) parked(ctx context.Context) (map[bus.Key][]Parked, error) {
	out := map[bus.Key][]Parked{}
	for _, h := range []string{events.HandlerProvisioning, events.HandlerDraining} {
		ks, err := s.o.DeadLetters.Parked(ctx, h)
		if err != nil {
			return nil, err
		}
		for _, k := range ks {
			out[k.Key] = append(out[k.Key], Parked{Handler: k.Handler, Node: k.Key.Name, DeadLetter: k.DeadLetter, Reason: k.Reason, Since: k.Since, Redriving: k.Redriving})
		}
	}
	return out, nil
}

// nodes are the nodes with what is parked of them.
func (s *Server) nodes(ctx context.Context) ([]Node, error) {
	all, err := s.o.World.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	parked, err := s.parked(ctx)
	for i, n := range all {
		all[i].Parked = parked[bus.Key{Cluster: n.Cluster, Name: n.Name}]
	}
	return all, err
}

func (s *Server) clusters(ctx context.Context) ([]Cluster, error) {
	all, err := s.o.World.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	parked, err := s.parked(ctx)
	for k, ps := range parked {
		for i, c := range all {
			if c.Name == k.Cluster {
				all[i].Parked = append(all[i].Parked, ps...)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	shadows, err := s.o.Shadows.Shadows(ctx)
	for _, x := range shadows {
		for i, c := range all {
			if c.Name == x.Cluster {
				all[i].Shadow = &x
			}
		}
	}
	for _, c := range all {
		slices.SortFunc(c.Parked, func(a, b Parked) int { return strings.Compare(a.Node+"/"+a.Handler, b.Node+"/"+b.Handler) })
	}
	return all, err
}

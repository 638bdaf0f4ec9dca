package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
)

// What can be done with dead letters.
const (
	actionRedrive = "redrive"
	actionDrop    = "drop"
)

// LetterRequest says which dead letters to redrive or drop: those of IDs, or
// those that a filter selects, or all.
type LetterRequest struct {
	IDs       []string `json:"ids,omitempty" maxItems:"500" doc:"Ids, or the beginnings of them"`
	All       bool     `json:"all,omitempty" doc:"Every dead letter"`
	Cluster   string   `json:"cluster,omitempty" maxLength:"63"`
	Handler   string   `json:"handler,omitempty" enum:"decision,provisioning,draining,auditing,announcing,shadow"`
	Types     []string `json:"types,omitempty" doc:"Event types, e.g. node.ready or node.*"`
	Node      string   `json:"node,omitempty" maxLength:"253"`
	OlderThan string   `json:"older_than,omitempty" maxLength:"40" doc:"Set aside before: a time (RFC 3339) or how long ago"`
	NewerThan string   `json:"newer_than,omitempty" maxLength:"40"`

	Actor  string `json:"actor,omitempty" maxLength:"100" doc:"Who asks; the name of the token is added"`
	Reason string `json:"reason" minLength:"1" maxLength:"1000" doc:"Why, for those who read the audit"`
	DryRun bool   `json:"dry_run,omitempty" doc:"Only say what it would do"`
	// Key makes it safe to send a request again.
	Key string `json:"key,omitempty" maxLength:"100" doc:"The same key is one request, however often it is sent"`
}

func (r LetterRequest) filter() LetterFilter {
	return LetterFilter{ClusterFilter: ClusterFilter{r.Cluster}, TypeFilter: TypeFilter{Type: r.Types}, Handler: r.Handler, Node: r.Node,
		OlderThan: r.OlderThan, NewerThan: r.NewerThan}
}

// LetterPlan is what a request comes to.
type LetterPlan struct {
	Action string       `json:"action" enum:"redrive,drop"`
	DryRun bool         `json:"dry_run,omitempty"`
	Actor  string       `json:"actor"`
	Reason string       `json:"reason"`
	Steps  []LetterStep `json:"steps" nullable:"false"`
}

// LetterStep is what happens to the dead letters of one handler and key.
type LetterStep struct {
	Handler     string   `json:"handler"`
	Cluster     string   `json:"cluster"`
	Key         string   `json:"key"`
	DeadLetters []string `json:"dead_letters" doc:"Ids of those that are concerned, in order"`
	Effect      string   `json:"effect" doc:"What happens, in a sentence or two"`
	RequestID   string   `json:"request_id,omitempty" doc:"Id of the event; explain it to see what came of it"`
	Problem     string   `json:"problem,omitempty" doc:"Why nothing happens"`
}

// settleLetters plans a redrive or drop and, unless it is a dry run, stores it as
// requests. It changes no dead letter itself: only the consumer of the handler
// does, at its turn.
func (s *Server) settleLetters(ctx context.Context, action string, r LetterRequest) (*body[LetterPlan], error) {
	caller, _ := auth.CallerFrom(ctx)
	actor, problem := actorOf(r.Actor, caller.Name)
	if problem != "" {
		return nil, huma.Error422UnprocessableEntity("The request is refused.", refusal("body.actor", problem, r.Actor))
	}
	if strings.TrimSpace(r.Reason) == "" {
		return nil, huma.Error422UnprocessableEntity("The request is refused.", refusal("body.reason", "reason is empty; say why, for those who read the audit", r.Reason))
	}
	all, err := s.o.DeadLetters.DeadLetters(ctx)
	if err != nil {
		return nil, s.queryError(ctx, "the dead letters", err)
	}
	selected, err := s.selectLetters(r, all)
	if err != nil {
		return nil, err
	}
	plan := LetterPlan{Action: action, DryRun: r.DryRun, Actor: actor, Reason: r.Reason, Steps: []LetterStep{}}
	var es []events.Event
	var problems []string
	for _, g := range groups(action, all, selected) {
		step, p := g.plan(action, actor, r.Reason)
		if p == nil {
			problems = append(problems, step.Problem)
		}
		if p != nil && !r.DryRun {
			e, err := s.letterEvent(g, p, cmp.Or(r.Key, s.o.Clock.Now().String()))
			if err != nil {
				return nil, huma.Error422UnprocessableEntity(sentence(err))
			}
			step.RequestID = e.ID()
			es = append(es, e)
		}
		plan.Steps = append(plan.Steps, step)
	}
	if len(problems) == len(plan.Steps) {
		return nil, huma.Error422UnprocessableEntity(sentence(errors.New(strings.Join(problems, "; "))))
	}
	if len(es) > 0 {
		pctx, cancel := context.WithTimeout(ctx, s.o.Limits.PublishWait)
		defer cancel()
		if err := s.o.Publisher.Publish(pctx, es...); err != nil {
			s.o.Logger.ErrorContext(ctx, "request about dead letters not stored, the caller has to send again", "action", action, "error", err)
			return nil, huma.Error503ServiceUnavailable("The bus does not acknowledge. Send the same request, with the same key, again.")
		}
		s.o.Logger.InfoContext(ctx, "request about dead letters accepted", "action", action, "requests", len(es), "actor", actor, "reason", r.Reason)
	}
	return &body[LetterPlan]{plan}, nil
}

func (s *Server) letterEvent(g letterGroup, p events.Payload, key string) (events.Event, error) {
	id := events.ID("deadletter request", key, p.EventType(), g.handler, g.key.String(), g.selected[0].ID)
	m := events.Meta{Cluster: g.key.Cluster, Publisher: "api", ID: id, Time: s.o.Clock.Now().UTC(), CorrelationID: id}
	if !g.key.IsCluster() {
		m.Node = g.key.Name
	}
	return events.New(m, p)
}

// selectLetters finds what the request means.
func (s *Server) selectLetters(r LetterRequest, all []bus.DeadLetter) (map[string]bool, error) {
	f := r.filter()
	match, err := f.matcher(s.o.Clock.Now(), "body.")
	if err != nil {
		return nil, err
	}
	if len(r.IDs) == 0 && f.empty() && !r.All {
		return nil, huma.Error422UnprocessableEntity("Nothing is selected: name ids, a filter (cluster, handler, types, node, older_than, newer_than), or all.")
	}
	out := map[string]bool{}
	for _, id := range r.IDs {
		dl, err := letterByID(all, id)
		if err != nil {
			return nil, err
		}
		if !match(dl) {
			return nil, huma.Error422UnprocessableEntity(fmt.Sprintf("Dead letter %s is not among those that the filters select.", dl.ID))
		}
		out[dl.ID] = true
	}
	if len(r.IDs) > 0 {
		return out, nil
	}
	for _, dl := range all {
		if match(dl) {
			out[dl.ID] = true
		}
	}
	if len(out) == 0 {
		return nil, huma.Error404NotFound("No dead letter matches.")
	}
	return out, nil
}

// letterGroup are the dead letters of one handler and key, in their order.
type letterGroup struct {
	handler  string
	key      bus.Key
	all      []bus.DeadLetter
	selected []bus.DeadLetter // as many as one request may name
}

// groups are those of which a letter is selected, by the order of their first one.
func groups(action string, all []bus.DeadLetter, selected map[string]bool) []letterGroup {
	type place struct {
		handler string
		key     bus.Key
	}
	byPlace := map[place][]bus.DeadLetter{}
	var order []place
	for _, dl := range all {
		at := place{dl.Handler, dl.Key}
		if byPlace[at] == nil {
			order = append(order, at)
		}
		byPlace[at] = append(byPlace[at], dl)
	}
	var out []letterGroup
	for _, at := range order {
		g := letterGroup{handler: at.handler, key: at.key, all: byPlace[at]}
		var mine []bus.DeadLetter
		for _, dl := range g.all {
			if selected[dl.ID] {
				mine = append(mine, dl)
			}
		}
		size := events.MaxRequestedLetters
		if action == actionRedrive && !at.key.IsCluster() {
			size = max(len(mine), 1) // one request means all of the node
		}
		for part := range slices.Chunk(mine, size) {
			g.selected = part
			out = append(out, g)
		}
	}
	return out
}

// plan says what a request does to a group, and returns its payload; nil when
// nothing can be done.
func (g letterGroup) plan(action, actor, reason string) (LetterStep, events.Payload) {
	step := LetterStep{Handler: g.handler, Cluster: g.key.Cluster, Key: g.key.Name, DeadLetters: ids(g.selected)}
	if action == actionDrop {
		step.Effect = g.dropEffect()
		return step, events.DeadletterDropRequested{Handler: g.handler, DeadLetters: step.DeadLetters, Actor: actor, Reason: reason}
	}
	concerned := g.selected
	if !g.key.IsCluster() {
		// The events of a node have one order: all of them go.
		concerned = slices.DeleteFunc(slices.Clone(g.all), func(dl bus.DeadLetter) bool { return !dl.Parked })
	}
	var why error
	var able []bus.DeadLetter
	for _, dl := range concerned {
		err := redrivable(dl)
		if err == nil {
			able = append(able, dl)
			continue
		}
		if why == nil {
			why = fmt.Errorf("dead letter %s can only be dropped: %w", dl.ID, err)
		}
		if !g.key.IsCluster() {
			break // what stands behind it can't overtake it
		}
	}
	if len(concerned) == 0 {
		why = fmt.Errorf("dead letter %s can only be dropped: %w", g.selected[0].ID, cmp.Or(redrivable(g.selected[0]), errNoEvent))
	}
	if len(able) == 0 {
		step.Problem = why.Error()
		return step, nil
	}
	step.DeadLetters = ids(able)
	step.Effect = g.redriveEffect(able, len(concerned))
	if why != nil {
		step.Effect += "; " + why.Error()
	}
	return step, events.DeadletterRedriveRequested{Handler: g.handler, DeadLetters: ids(able[:min(len(able), events.MaxRequestedLetters)]), Actor: actor, Reason: reason}
}

var errNoEvent = errors.New("it is no event")

func (g letterGroup) redriveEffect(able []bus.DeadLetter, of int) string {
	if g.key.IsCluster() {
		return fmt.Sprintf("%s handles %s of cluster %s again", g.handler, count(len(able), "event"), g.key.Cluster)
	}
	text := fmt.Sprintf("%s handles %s of node %s again, in order", g.handler, count(len(able), "event"), g.key.Name)
	if more := len(able) - len(g.selected); more > 0 {
		text += fmt.Sprintf(" (%d more than were named: the events of a node keep their order)", more)
	}
	if len(able) == of {
		text += "; then it acts on the node again"
	}
	return text
}

func (g letterGroup) dropEffect() string {
	text := fmt.Sprintf("%s never handles %s of %s", g.handler, count(len(g.selected), "event"), g.subject())
	if g.key.IsCluster() {
		return text
	}
	parked, left := false, 0
	for _, dl := range g.all {
		gone := slices.ContainsFunc(g.selected, func(x bus.DeadLetter) bool { return x.ID == dl.ID })
		parked = parked || dl.Parked && gone
		if dl.Parked && !gone {
			left++
		}
	}
	switch {
	case left > 0:
		text += fmt.Sprintf("; %s of the node left, and it does not act on the node until nothing is: k3s-autoscaler dlq redrive --handler %s --node %s, or drop",
			count(left, "dead letter"), g.handler, g.key.Name)
	case parked:
		text += "; then it acts on the node again"
	}
	return text
}

func (g letterGroup) subject() string {
	if g.key.IsCluster() {
		return "cluster " + g.key.Cluster
	}
	return "node " + g.key.Name
}

func ids(ls []bus.DeadLetter) []string {
	out := make([]string, len(ls))
	for i, dl := range ls {
		out[i] = dl.ID
	}
	return out
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

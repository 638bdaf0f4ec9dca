package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

const (
	// explainDecisions is how many recent decisions are searched for what
	// concerns a pod, an alert or a node.
	explainDecisions = 1000
	// explainShown is how many of them are shown.
	explainShown = 5
	// explainTimeline is how many events of a life are shown.
	explainTimeline = 200
)

type explainInput struct {
	Subject string `query:"subject" required:"true" minLength:"1" maxLength:"320" doc:"A decision or event id, a node, a pool, pod/<namespace>/<name>, alert/<name or fingerprint>; node/… and pool/… where a name is both"`
	Cluster string `query:"cluster" maxLength:"63" doc:"Where the name exists in several clusters"`
}

// explain finds out what the subject is and gathers what is known about it.
func (s *Server) explain(ctx context.Context, in *explainInput) (*body[Explanation], error) {
	kind, name, ok := strings.Cut(in.Subject, "/")
	if !ok {
		kind, name = "", in.Subject
	}
	x := &Explanation{Subject: in.Subject, Cluster: in.Cluster}
	var err error
	switch kind {
	case "":
		err = s.explainAny(ctx, x, name)
	case KindPod:
		err = s.explainPod(ctx, x, name)
	case KindAlert:
		err = s.explainAlert(ctx, x, name)
	case KindNode:
		err = s.found(s.explainNode(ctx, x, name))
	case KindPool:
		err = s.found(s.explainPool(ctx, x, name))
	case KindDecision, KindEvent, KindRequest:
		err = s.found(s.explainEvent(ctx, x, name))
	default:
		return nil, huma.Error422UnprocessableEntity(fmt.Sprintf("There is nothing called %q to explain.", kind),
			&huma.ErrorDetail{Location: "query.subject", Message: "expected an id, a node, a pool, pod/<namespace>/<name> or alert/<name>", Value: in.Subject})
	}
	if err != nil {
		var p huma.StatusError
		if errors.As(err, &p) {
			return nil, err
		}
		return nil, s.queryError(ctx, "what is to be explained", err)
	}
	return &body[Explanation]{*x}, nil
}

func (s *Server) found(ok bool, err error) error {
	if err == nil && !ok {
		return errUnknownSubject
	}
	return err
}

var errUnknownSubject = huma.Error404NotFound("Nothing of that name or id is known: no pool, node, decision or event. Pods are written pod/<namespace>/<name>, alerts alert/<name>.")

// explainAny takes a bare name for a pool, then a node, then an id.
func (s *Server) explainAny(ctx context.Context, x *Explanation, name string) error {
	for _, try := range []func(context.Context, *Explanation, string) (bool, error){s.explainPool, s.explainNode, s.explainEvent} {
		if ok, err := try(ctx, x, name); ok || err != nil {
			return err
		}
	}
	return errUnknownSubject
}

func (s *Server) explainPool(ctx context.Context, x *Explanation, name string) (bool, error) {
	pools, err := s.o.World.Pools(ctx)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(pools, func(p Pool) bool { return p.Name == name && (x.Cluster == "" || x.Cluster == p.Cluster) })
	if i < 0 {
		return false, nil
	}
	p := pools[i]
	x.Kind, x.Cluster, x.Pool = KindPool, p.Cluster, &p
	ds, err := s.decisions(ctx, audit.Query{Cluster: p.Cluster, Pool: p.Name, Limit: explainShown}, func(d DecisionRecord) bool { return d.Pool == p.Name })
	x.Decisions = ds
	if p.Unknown {
		x.Summary = fmt.Sprintf("Pool %s is not configured and has %s, %d ready: they are capacity, and nothing adds, removes, replaces or cleans up any. "+
			"Name it in renamed_from of a pool to have that pool take its nodes over, or configure it again, e.g. with min 0, to let them go.", p.Name, nodesOf(p.Size), p.Ready)
		return true, err
	}
	x.Summary = fmt.Sprintf("Pool %s has %d of %d to %d nodes, %d ready.", p.Name, p.Size, p.Min, p.Max, p.Ready)
	if len(ds) > 0 {
		x.Summary += " " + verdict(ds[0])
	} else {
		x.Summary += " Nothing has been decided about it yet."
	}
	return true, err
}

func (s *Server) explainNode(ctx context.Context, x *Explanation, name string) (bool, error) {
	nodes, err := s.nodes(ctx)
	if err != nil {
		return false, err
	}
	if i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == name && (x.Cluster == "" || x.Cluster == n.Cluster) }); i >= 0 {
		x.Node, x.Cluster = &nodes[i], nodes[i].Cluster
	}
	if _, err := events.EncodeKey(name); err != nil {
		return false, nil //nolint:nilerr // no node can have this name
	}
	x.Timeline, err = s.timeline(ctx, audit.Query{Cluster: x.Cluster, Node: name})
	if err != nil || (x.Node == nil && len(x.Timeline) == 0) {
		return false, err
	}
	x.Kind, x.Life = KindNode, lifeOf(x.Timeline)
	if x.Cluster == "" {
		x.Cluster = x.Timeline[0].Cluster
	}
	ids, err := s.decisionIDs(ctx, x.Timeline)
	if err != nil {
		return true, err
	}
	x.Decisions, err = s.decisions(ctx, audit.Query{Cluster: x.Cluster, Limit: explainDecisions}, func(d DecisionRecord) bool {
		return ids[d.ID] || slices.Contains(d.Nodes, name) || rejects(d, "node "+name)
	})
	if err != nil {
		return true, err
	}
	x.Summary = nodeSummary(x, name)
	if x.Node == nil {
		err = s.addParked(ctx, x, name)
	}
	return true, err
}

// addParked says who does not act on a node that nobody has a record of.
func (s *Server) addParked(ctx context.Context, x *Explanation, name string) error {
	parked, err := s.parked(ctx)
	for _, p := range parked[bus.Key{Cluster: x.Cluster, Name: name}] {
		x.Summary += " " + p.sentence()
	}
	return err
}

func nodeSummary(x *Explanation, name string) string {
	switch {
	case x.Node != nil && x.Node.Pool == "":
		return fmt.Sprintf("Node %s is not ours: it is capacity, and never cordoned, drained or removed by a decision.", name)
	case x.Node != nil:
		text := fmt.Sprintf("Node %s of pool %s is %s since %s.", name, x.Node.Pool, x.Node.Phase, x.Node.Since.UTC().Format("15:04:05"))
		if x.Node.Failure != nil {
			text += " It failed: " + x.Node.Failure.Reason.Message + "."
		}
		if len(x.Decisions) > 0 {
			for _, a := range x.Decisions[0].Rejected {
				if a.Subject == "node "+name {
					text += " It stays: " + a.Reason.Message + "."
				}
			}
		}
		for _, p := range x.Node.Parked {
			text += " " + p.sentence()
		}
		return text
	}
	state := "has no record"
	if slices.ContainsFunc(x.Timeline, func(r AuditRecord) bool { return r.Type == events.TypeNodeCreated || r.Type == events.TypeNodeRemoved }) {
		state = "is gone"
	}
	last := x.Timeline[len(x.Timeline)-1]
	text := fmt.Sprintf("Node %s %s; the last that happened to it was %s", name, state, short(last.Type))
	if last.Message != "" {
		text += ", because " + strings.TrimSuffix(last.Message, ".")
	}
	return text + "."
}

// decisionIDs are the decisions that claimed or drained the node of a timeline.
func (s *Server) decisionIDs(ctx context.Context, timeline []AuditRecord) (map[string]bool, error) {
	out := map[string]bool{}
	for _, r := range timeline {
		if r.Type != events.TypeNodeClaimed && r.Type != events.TypeNodeDrainRequested && r.Type != events.TypeNodeDrainCancelled {
			continue
		}
		full, err := s.o.Audit.Get(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		var of struct {
			Data struct {
				DecisionID string `json:"decision_id"`
			} `json:"data"`
		}
		if json.Unmarshal(full.Event, &of) == nil && of.Data.DecisionID != "" {
			out[of.Data.DecisionID] = true
		}
	}
	return out, nil
}

func (s *Server) explainEvent(ctx context.Context, x *Explanation, id string) (bool, error) {
	r, err := s.o.Audit.Get(ctx, id)
	if errors.Is(err, audit.ErrNotFound) {
		// A decision's own id differs from its event's.
		ds, err := s.decisions(ctx, audit.Query{Cluster: x.Cluster, Limit: audit.MaxLimit}, func(d DecisionRecord) bool { return d.ID == id })
		if err != nil || len(ds) == 0 {
			return false, err
		}
		return true, s.explainDecision(ctx, x, ds[0])
	}
	if err != nil {
		return false, err
	}
	if d, ok := decisionRecord(r); ok && slices.Contains(decisionTypes, r.Type) {
		return true, s.explainDecision(ctx, x, d)
	}
	x.Kind, x.Cluster = KindEvent, r.Cluster
	if (slices.Contains(accepted, r.Type) || r.Type == events.TypeDeadletterRedriveRequested || r.Type == events.TypeDeadletterDropRequested) && r.Type != events.TypeSignalReceived {
		x.Kind = KindRequest
	}
	x.Timeline = []AuditRecord{auditRecord(r, true)}
	x.Decisions, err = s.decisions(ctx, audit.Query{Cluster: r.Cluster, Since: r.StreamTime, Limit: explainDecisions}, func(d DecisionRecord) bool {
		return slices.Contains(d.Requests, id) || slices.Contains(d.Inputs, id)
	})
	if err != nil {
		return true, err
	}
	if r.CorrelationID != "" {
		more, err := s.timeline(ctx, audit.Query{Cluster: r.Cluster, CorrelationID: r.CorrelationID})
		if err != nil {
			return true, err
		}
		if len(more) > 0 {
			x.Timeline = more
		}
	}
	x.Summary = fmt.Sprintf("%s at %s", short(r.Type), r.StreamTime.UTC().Format("2006-01-02 15:04:05"))
	if r.Actor != "" {
		x.Summary += " by " + r.Actor
	}
	if r.Reason != "" {
		x.Summary += ": " + r.Reason
	}
	x.Summary += "."
	switch {
	case len(x.Decisions) > 0:
		x.Summary += " " + verdict(x.Decisions[0])
	case x.Kind == KindRequest:
		x.Summary += " No decision names it yet."
	}
	return true, nil
}

func (s *Server) explainDecision(ctx context.Context, x *Explanation, d DecisionRecord) error {
	x.Kind, x.Cluster, x.Summary, x.Decisions = KindDecision, d.Cluster, verdict(d), []DecisionRecord{d}
	for _, node := range d.Nodes {
		more, err := s.timeline(ctx, audit.Query{Cluster: d.Cluster, Node: node, Since: d.StreamTime})
		if err != nil {
			return err
		}
		x.Timeline = append(x.Timeline, more...)
	}
	slices.SortStableFunc(x.Timeline, func(a, b AuditRecord) int { return a.StreamTime.Compare(b.StreamTime) })
	return nil
}

func (s *Server) explainPod(ctx context.Context, x *Explanation, name string) error {
	namespace, pod, ok := strings.Cut(name, "/")
	if !ok || namespace == "" || pod == "" || strings.Contains(pod, "/") {
		return huma.Error422UnprocessableEntity("A pod is written pod/<namespace>/<name>.", &huma.ErrorDetail{Location: "query.subject", Message: "expected pod/<namespace>/<name>", Value: x.Subject})
	}
	x.Kind = KindPod
	for _, t := range s.o.Targets() {
		if x.Cluster != "" && x.Cluster != t.Cluster {
			continue
		}
		p, ok, err := s.o.World.Pod(ctx, t.Cluster, namespace, pod)
		if err != nil {
			return err
		}
		if ok {
			x.Pod, x.Cluster = &p, t.Cluster
			break
		}
	}
	ref := namespace + "/" + pod
	var err error
	x.Decisions, err = s.decisions(ctx, audit.Query{Cluster: x.Cluster, Limit: explainDecisions}, func(d DecisionRecord) bool {
		return slices.Contains(d.Pods, ref) || rejects(d, "pod "+ref)
	})
	if err == nil && x.Pod != nil && !x.Pod.UnschedulableSince.IsZero() {
		x.Decisions, err = s.withStanding(ctx, x.Cluster, x.Decisions)
	}
	if err != nil {
		return err
	}
	switch {
	case x.Pod == nil && len(x.Decisions) == 0:
		return huma.Error404NotFound(fmt.Sprintf("Pod %s is in no snapshot and no recent decision names it.", ref))
	case x.Pod == nil:
		x.Summary = fmt.Sprintf("Pod %s is gone.", ref)
	case x.Pod.Node != "":
		x.Summary = fmt.Sprintf("Pod %s runs on node %s.", ref, x.Pod.Node)
	case x.Pod.UnschedulableSince.IsZero():
		x.Summary = fmt.Sprintf("Pod %s is %s; the scheduler has not said that it finds no node for it.", ref, strings.ToLower(x.Pod.Phase))
	default:
		x.Summary = fmt.Sprintf("Pod %s finds no node since %s.", ref, x.Pod.UnschedulableSince.UTC().Format("15:04:05"))
		if x.Pod.Message != "" {
			x.Summary += " The scheduler says: " + strings.TrimSuffix(x.Pod.Message, ".") + "."
		}
	}
	if len(x.Decisions) > 0 {
		x.Cluster = x.Decisions[0].Cluster
		x.Summary += " " + verdict(x.Decisions[0])
	}
	return nil
}

func (s *Server) explainAlert(ctx context.Context, x *Explanation, name string) error {
	x.Kind = KindAlert
	rs, err := s.o.Audit.List(ctx, audit.Query{Cluster: x.Cluster, Types: []string{events.TypeAlertReceived}, Order: audit.NewestFirst, Limit: explainDecisions})
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	var last *events.AlertReceived
	for _, r := range rs {
		var e events.Event
		if json.Unmarshal(r.Event, &e) != nil {
			continue
		}
		a, err := events.Decode[events.AlertReceived](e)
		if err != nil || (a.Labels["alertname"] != name && a.Fingerprint != name) {
			continue
		}
		ids[r.ID] = true
		if last == nil {
			last = &a
			x.Cluster = r.Cluster
		}
		if len(x.Timeline) < explainTimeline {
			x.Timeline = append(x.Timeline, auditRecord(r, true))
		}
	}
	if last == nil {
		return huma.Error404NotFound(fmt.Sprintf("No alert %q was received lately. Does Alertmanager post to /v1/alerts?", name))
	}
	slices.Reverse(x.Timeline)
	x.Decisions, err = s.decisions(ctx, audit.Query{Cluster: x.Cluster, Limit: explainDecisions}, func(d DecisionRecord) bool {
		return slices.ContainsFunc(d.Inputs, func(id string) bool { return ids[id] })
	})
	x.Summary = fmt.Sprintf("Alert %s is %s since %s; last received at %s.", last.Labels["alertname"], last.Status,
		last.StartsAt.UTC().Format("15:04:05"), last.ReceivedAt.UTC().Format("15:04:05"))
	if len(x.Decisions) > 0 {
		x.Summary += " " + verdict(x.Decisions[0])
	} else {
		x.Summary += " No recent decision rests on it: does a rule of policy.alert_rules match its labels?"
	}
	return err
}

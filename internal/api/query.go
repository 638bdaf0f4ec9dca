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
	"github.com/prometheus/common/model"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

type body[T any] struct{ Body T }

// ClusterFilter is the filter that every listing has.
type ClusterFilter struct {
	Cluster string `query:"cluster" doc:"Only of this cluster" maxLength:"63"`
}

// AuditFilter holds the filters of /v1/audit and /v1/decisions.
type AuditFilter struct {
	ClusterFilter
	Pool   string `query:"pool" doc:"Only about this pool" maxLength:"63"`
	Since  string `query:"since" doc:"Not before: a time (RFC 3339) or how long ago, e.g. 2h" maxLength:"40"`
	Until  string `query:"until" doc:"Before: a time (RFC 3339) or how long ago" maxLength:"40"`
	Order  string `query:"order" enum:"newest,oldest" default:"newest"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Records a page"`
	Cursor string `query:"cursor" doc:"'next' of the page before" maxLength:"200"`
}

func (f AuditFilter) query(now time.Time) (audit.Query, error) {
	q := audit.Query{Cluster: f.Cluster, Pool: f.Pool, Limit: f.Limit, Cursor: f.Cursor}
	if f.Order != "oldest" {
		q.Order = audit.NewestFirst
	}
	var errs []error
	for _, x := range []struct {
		name, text string
		to         *time.Time
	}{{"since", f.Since, &q.Since}, {"until", f.Until, &q.Until}} {
		t, err := when(x.text, now)
		if err != nil {
			errs = append(errs, &huma.ErrorDetail{Location: "query." + x.name, Message: err.Error(), Value: x.text})
		}
		*x.to = t
	}
	if len(errs) > 0 {
		return q, huma.Error422UnprocessableEntity("A time is not understood.", errs...)
	}
	return q, nil
}

// ParseAgo reads how long ago something was, as Go or Prometheus write durations:
// 90m, 2h30m, 7d.
func ParseAgo(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		m, merr := model.ParseDuration(s)
		if merr != nil {
			return 0, err
		}
		d = time.Duration(m)
	}
	if d < 0 {
		return 0, fmt.Errorf("%s is not in the past", s)
	}
	return d, nil
}

// when reads an instant, or how long ago.
func when(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t.UTC(), nil
	}
	if d, err := ParseAgo(s); err == nil {
		return now.Add(-d).UTC(), nil
	}
	return time.Time{}, errors.New("expected a time such as 2025-03-01T12:00:00Z or a duration such as 2h")
}

// TypeFilter selects event types.
type TypeFilter struct {
	Type    []string `query:"type,explode" doc:"Event types, e.g. node.ready or node.*"`
	Exclude []string `query:"exclude,explode" doc:"Event types that are left out, e.g. snapshot.*"`
}

// matching lists the types that a pattern means: a full type, its short form,
// or the beginning of short forms with ".*".
func matching(pattern string) []string {
	var out []string
	for _, d := range events.Catalog() {
		if d.Type == pattern || d.Suffix() == pattern || (strings.HasSuffix(pattern, ".*") && strings.HasPrefix(d.Suffix(), strings.TrimSuffix(pattern, "*"))) {
			out = append(out, d.Type)
		}
	}
	return out
}

// MatchTypes lists the types that patterns mean, as the queries read them.
func MatchTypes(patterns []string) ([]string, error) {
	var out []string
	for _, p := range patterns {
		found := matching(p)
		if len(found) == 0 {
			return nil, fmt.Errorf("there is no event type %q, expected e.g. node.ready, node.*, or a full type", p)
		}
		out = append(out, found...)
	}
	return out, nil
}

// full lists the selected types; none means all. An unknown type is an error,
// an unknown one that is excluded is not: nothing is missing.
func (f TypeFilter) full() ([]string, error) {
	out, err := f.included()
	if err != nil || len(f.Exclude) == 0 {
		return out, err
	}
	if len(out) == 0 {
		for _, d := range events.Catalog() {
			out = append(out, d.Type)
		}
	}
	for _, p := range f.Exclude {
		hidden := matching(p)
		out = slices.DeleteFunc(out, func(typ string) bool { return slices.Contains(hidden, typ) })
	}
	if len(out) == 0 {
		return nil, huma.Error422UnprocessableEntity("Every type is excluded.", &huma.ErrorDetail{Location: "query.exclude", Message: "expected to leave a type", Value: f.Exclude})
	}
	return out, nil
}

func (f TypeFilter) included() ([]string, error) {
	var out []string
	for _, s := range f.Type {
		found := matching(s)
		if len(found) == 0 {
			return nil, huma.Error422UnprocessableEntity(fmt.Sprintf("There is no event type %q.", s),
				&huma.ErrorDetail{Location: "query.type", Message: "expected e.g. node.ready, node.*, or a full type", Value: s})
		}
		out = append(out, found...)
	}
	return out, nil
}

// queries registers the listings.
func (s *Server) queries() {
	op := func(id, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary,
			Errors: []int{http.StatusUnauthorized, http.StatusUnprocessableEntity, http.StatusServiceUnavailable}}
	}
	huma.Register(s.huma, op("list-clusters", "/v1/clusters", "The clusters and how fresh their data is"),
		func(ctx context.Context, in *ClusterFilter) (*body[Page[Cluster]], error) {
			all, err := s.clusters(ctx)
			return listed(ctx, s, "clusters", all, err, func(c Cluster) bool { return in.Cluster == "" || in.Cluster == c.Name })
		})
	huma.Register(s.huma, op("list-pools", "/v1/pools", "The pools: size, limits, pauses, backoff, last decision"),
		func(ctx context.Context, in *struct {
			ClusterFilter
			Pool string `query:"pool" maxLength:"63"`
		}) (*body[Page[Pool]], error) {
			all, err := s.o.World.Pools(ctx)
			return listed(ctx, s, "pools", all, err, func(p Pool) bool {
				return (in.Cluster == "" || in.Cluster == p.Cluster) && (in.Pool == "" || in.Pool == p.Name)
			})
		})
	huma.Register(s.huma, op("list-nodes", "/v1/nodes", "The nodes, ours with their phase"),
		func(ctx context.Context, in *struct {
			ClusterFilter
			Pool string `query:"pool" maxLength:"63"`
			Ours bool   `query:"ours" doc:"Only nodes of a pool"`
		}) (*body[Page[Node]], error) {
			all, err := s.nodes(ctx)
			return listed(ctx, s, "nodes", all, err, func(n Node) bool {
				return (in.Cluster == "" || in.Cluster == n.Cluster) && (in.Pool == "" || in.Pool == n.Pool) && (!in.Ours || n.Pool != "")
			})
		})
	huma.Register(s.huma, op("list-decisions", "/v1/decisions", "What was decided, and why"), s.listDecisions)
	huma.Register(s.huma, op("list-events", "/v1/events", "Events of the log, oldest first; without since or cursor, the newest of the last hour"), s.listEvents)
	huma.Register(s.huma, op("list-audit", "/v1/audit", "What happened, from the audit store"), s.listAudit)
	huma.Register(s.huma, op("get-log", "/v1/log", "What the log holds, and how much of it is audited"), s.getLog)
	huma.Register(s.huma, op("list-audit-gaps", "/v1/audit/gaps", "What was lost before it was audited"), s.listGaps)
	huma.Register(s.huma, op("get-audit", "/v1/audit/{id}", "One event of the audit store"),
		func(ctx context.Context, in *struct {
			ID string `path:"id" maxLength:"200"`
		}) (*body[AuditRecord], error) {
			r, err := s.o.Audit.Get(ctx, in.ID)
			if err != nil {
				return nil, s.queryError(ctx, "the audit store", err)
			}
			return &body[AuditRecord]{auditRecord(r, true)}, nil
		})
	huma.Register(s.huma, op("explain", "/v1/explain", "Why something is as it is"), s.explain)
}

func listed[T any](ctx context.Context, s *Server, what string, all []T, err error, keep func(T) bool) (*body[Page[T]], error) {
	if err != nil {
		return nil, s.queryError(ctx, what, err)
	}
	out := &body[Page[T]]{Page[T]{Items: []T{}}}
	for _, x := range all {
		if keep(x) {
			out.Body.Items = append(out.Body.Items, x)
		}
	}
	return out, nil
}

var decisionTypes = []string{events.TypeScaleupDecided, events.TypeScaledownDecided, events.TypeScaleHeld}

func (s *Server) listDecisions(ctx context.Context, in *struct {
	AuditFilter
	Verdict string `query:"verdict" enum:"up,down,held"`
}) (*body[Page[DecisionRecord]], error) {
	q, err := in.query(s.o.Clock.Now())
	if err != nil {
		return nil, err
	}
	q.Types = decisionTypes
	switch in.Verdict {
	case events.VerdictUp:
		q.Types = []string{events.TypeScaleupDecided}
	case events.VerdictDown:
		q.Types = []string{events.TypeScaledownDecided}
	case events.VerdictHeld:
		q.Types = []string{events.TypeScaleHeld}
	}
	rs, err := s.o.Audit.List(ctx, q)
	if err != nil {
		return nil, s.queryError(ctx, "the audit store", err)
	}
	out := &body[Page[DecisionRecord]]{Page[DecisionRecord]{Items: []DecisionRecord{}, Next: nextCursor(rs, q.Limit)}}
	for _, r := range rs {
		if d, ok := decisionRecord(r); ok {
			out.Body.Items = append(out.Body.Items, d)
		}
	}
	return out, nil
}

func (s *Server) listAudit(ctx context.Context, in *struct {
	AuditFilter
	TypeFilter
	Node        string `query:"node" doc:"Only about this node" maxLength:"253"`
	Correlation string `query:"correlation" doc:"Only of this correlation id: one node's life" maxLength:"200"`
	Causation   string `query:"causation" doc:"Only what this event id led to" maxLength:"200"`
	Actor       string `query:"actor" doc:"Only what this person or tool asked for" maxLength:"200"`
	Full        bool   `query:"full" doc:"With the whole events"`
}) (*body[Page[AuditRecord]], error) {
	q, err := in.query(s.o.Clock.Now())
	if err != nil {
		return nil, err
	}
	if q.Types, err = in.full(); err != nil {
		return nil, err
	}
	q.Node, q.CorrelationID, q.CausationID, q.Actor = in.Node, in.Correlation, in.Causation, in.Actor
	rs, err := s.o.Audit.List(ctx, q)
	if err != nil {
		return nil, s.queryError(ctx, "the audit store", err)
	}
	out := &body[Page[AuditRecord]]{Page[AuditRecord]{Items: make([]AuditRecord, len(rs)), Next: nextCursor(rs, q.Limit)}}
	for i, r := range rs {
		out.Body.Items[i] = auditRecord(r, in.Full)
	}
	return out, nil
}

func nextCursor(rs []audit.Record, limit int) string {
	if len(rs) == 0 || len(rs) < limit {
		return ""
	}
	return rs[len(rs)-1].Cursor()
}

func auditRecord(r audit.Record, full bool) AuditRecord {
	out := AuditRecord{
		Incarnation: r.Incarnation, Sequence: r.Sequence, StreamTime: r.StreamTime, ID: r.ID, Source: r.Source, Redrive: r.Redrive, Type: r.Type,
		Cluster: r.Cluster, Key: r.Key, Pool: r.Pool, CorrelationID: r.CorrelationID, CausationID: r.CausationID,
		Actor: r.Actor, Reason: r.Reason, Message: r.Message,
	}
	if full {
		out.Event = r.Event
	}
	return out
}

// decisionRecord decodes a decision; false for one that a newer version wrote
// and this one can't read.
func decisionRecord(r audit.Record) (DecisionRecord, bool) {
	var e events.Event
	d := DecisionRecord{EventID: r.ID, Cluster: r.Cluster, CorrelationID: r.CorrelationID, StreamTime: r.StreamTime}
	if json.Unmarshal(r.Event, &e) != nil || json.Unmarshal(e.Data(), &d.Decision) != nil {
		return DecisionRecord{}, false
	}
	d.DryRun = events.IsDryRun(e)
	return d, true
}

package api

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

// decisions lists recent decisions, newest first, at most explainShown of them.
func (s *Server) decisions(ctx context.Context, q audit.Query, keep func(DecisionRecord) bool) ([]DecisionRecord, error) {
	q.Types, q.Order = decisionTypes, audit.NewestFirst
	rs, err := s.o.Audit.List(ctx, q)
	if err != nil {
		return nil, err
	}
	var out []DecisionRecord
	for _, r := range rs {
		if d, ok := decisionRecord(r); ok && keep(d) {
			if out = append(out, d); len(out) == explainShown {
				break
			}
		}
	}
	return out, nil
}

// timeline lists what happened, oldest first.
func (s *Server) timeline(ctx context.Context, q audit.Query) ([]AuditRecord, error) {
	q.Limit, q.Order = explainTimeline, audit.NewestFirst
	rs, err := s.o.Audit.List(ctx, q)
	if err != nil {
		return nil, err
	}
	out := make([]AuditRecord, len(rs))
	for i, r := range rs {
		out[len(rs)-1-i] = auditRecord(r, true)
	}
	return out, nil
}

// rejects reports whether a decision names a candidate, written "node NAME" or
// "pod NS/NAME", as one that was not taken.
func rejects(d DecisionRecord, subject string) bool {
	pod, _ := strings.CutPrefix(subject, "pod ")
	return slices.ContainsFunc(d.Rejected, func(a events.Alternative) bool { return a.Subject == subject || slices.Contains(a.Pods, pod) })
}

// withStanding puts the last decision about each pool in front of those that
// name a pod which still finds no node: a hold names one pod of many that are
// alike, and what was decided for a pod may be overtaken. Only the pools that
// named the pod count, if any did.
func (s *Server) withStanding(ctx context.Context, cluster string, naming []DecisionRecord) ([]DecisionRecord, error) {
	seen := map[string]bool{}
	standing, err := s.decisions(ctx, audit.Query{Cluster: cluster, Limit: explainDecisions}, func(d DecisionRecord) bool {
		first := !seen[d.Pool]
		seen[d.Pool] = true
		return first && (len(naming) == 0 || slices.ContainsFunc(naming, func(n DecisionRecord) bool { return n.Pool == d.Pool }))
	})
	for _, d := range naming {
		if len(standing) < explainShown && !slices.ContainsFunc(standing, func(s DecisionRecord) bool { return s.ID == d.ID }) {
			standing = append(standing, d)
		}
	}
	return standing, err
}

// verdict is a decision in a sentence.
func verdict(d DecisionRecord) string {
	message := strings.TrimSuffix(d.Reason.Message, ".")
	switch d.Verdict {
	case events.VerdictUp:
		return fmt.Sprintf("Decision: add %s to pool %s, because %s.", nodesOf(d.Delta), d.Pool, message)
	case events.VerdictDown:
		return fmt.Sprintf("Decision: remove %s from pool %s, because %s.", nodesOf(-d.Delta), d.Pool, message)
	}
	return fmt.Sprintf("Decision: leave pool %s as it is, because %s.", d.Pool, message)
}

func nodesOf(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}

// short is a type without prefix and version.
func short(typ string) string {
	if d, ok := events.Lookup(typ); ok {
		return d.Suffix()
	}
	return typ
}

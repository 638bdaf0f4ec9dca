// Package recording makes an audit store what the auditing handler writes to:
// while events come in, and again when they are replayed.
package recording

import (
	"context"
	"errors"

	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/auditing"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

// Store is the port of auditing on an audit store.
type Store struct{ Audit audit.Store }

var _ auditing.Store = Store{}

// Append implements auditing.Store.
func (s Store) Append(ctx context.Context, batch []auditing.Record) error {
	out := make([]audit.Record, len(batch))
	for i, r := range batch {
		out[i] = audit.Record{
			Incarnation: r.Incarnation, Sequence: r.Sequence, StreamTime: r.StreamTime, ID: r.ID, Source: r.Source, Redrive: r.Redrive, Type: r.Type,
			Cluster: r.Cluster, Key: r.Key, Pool: r.Details.Pool, CorrelationID: r.CorrelationID, CausationID: r.CausationID,
			Actor: r.Details.Actor, Reason: r.Details.Reason, Message: r.Details.Message, Event: r.Event,
		}
	}
	err := s.Audit.Append(ctx, out)
	var gap *audit.GapError
	if errors.As(err, &gap) {
		return errors.Join(err, &auditing.GapError{Last: gap.Last, Next: gap.Next})
	}
	return err
}

// Skip implements auditing.Store.
func (s Store) Skip(ctx context.Context, g auditing.Gap) error {
	return s.Audit.Skip(ctx, audit.Gap{Incarnation: g.Incarnation, From: g.From, To: g.To, At: g.At})
}

// High implements auditing.Store.
func (s Store) High(ctx context.Context) (incarnation string, sequence uint64, err error) {
	return s.Audit.High(ctx)
}

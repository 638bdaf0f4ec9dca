package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

const columns = `stream, sequence, stream_time, id, source, redrive, type, cluster, key, pool, correlation_id, causation_id, actor, reason, message, event`

const selectRecords = `SELECT s.incarnation, r.sequence, r.stream_time, r.id, r.source, r.redrive, r.type, r.cluster, r.key, r.pool, r.correlation_id, r.causation_id, r.actor, r.reason, r.message, r.event
FROM records r JOIN streams s ON s.ordinal = r.stream`

// High implements audit.Store.
func (s *Store) High(ctx context.Context) (incarnation string, sequence uint64, err error) {
	var last int64
	err = s.metrics.observe("high", func() error {
		err := s.read.QueryRowContext(ctx, `SELECT incarnation, last_sequence FROM streams ORDER BY ordinal DESC LIMIT 1`).Scan(&incarnation, &last)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return "", 0, fmt.Errorf("read the audit's high-water mark: %w", err)
	}
	return incarnation, uint64(last), nil
}

// Get implements audit.Store.
func (s *Store) Get(ctx context.Context, eventID string) (audit.Record, error) {
	rs, err := s.query(ctx, "get", selectRecords+` WHERE r.id = ? ORDER BY r.stream, r.sequence LIMIT 1`, eventID)
	switch {
	case err != nil:
		return audit.Record{}, fmt.Errorf("read event %s: %w", eventID, err)
	case len(rs) == 0:
		return audit.Record{}, fmt.Errorf("read event %s: %w", eventID, audit.ErrNotFound)
	}
	return rs[0], nil
}

// List implements audit.Store.
func (s *Store) List(ctx context.Context, q audit.Query) ([]audit.Record, error) {
	var (
		where []string
		args  []any
	)
	add := func(cond string, vs ...any) {
		where, args = append(where, cond), append(args, vs...)
	}
	if len(q.Types) > 0 {
		types := make([]any, len(q.Types))
		for i, t := range q.Types {
			types[i] = t
		}
		add("r.type IN (?"+strings.Repeat(",?", len(types)-1)+")", types...)
	}
	for _, f := range []struct{ column, value string }{
		{"cluster", q.Cluster}, {"key", q.Node}, {"pool", q.Pool}, {"correlation_id", q.CorrelationID},
		{"causation_id", q.CausationID}, {"actor", q.Actor},
	} {
		if f.value != "" {
			add("r."+f.column+" = ?", f.value)
		}
	}
	if !q.Since.IsZero() {
		add("r.stream_time >= ?", q.Since.UnixNano())
	}
	if !q.Until.IsZero() {
		add("r.stream_time < ?", q.Until.UnixNano())
	}
	direction, beyond := "", ">"
	if q.Order == audit.NewestFirst {
		direction, beyond = " DESC", "<"
	}
	if q.Cursor != "" {
		incarnation, sequence, err := audit.ParseCursor(q.Cursor)
		if err != nil {
			return nil, err
		}
		ordinal, err := s.ordinal(ctx, incarnation)
		if err != nil {
			return nil, err
		}
		add("(r.stream, r.sequence) "+beyond+" (?, ?)", ordinal, int64(sequence))
	}
	text := selectRecords
	if len(where) > 0 {
		text += " WHERE " + strings.Join(where, " AND ")
	}
	limit := q.Limit
	if limit <= 0 {
		limit = audit.DefaultLimit
	}
	text += fmt.Sprintf(" ORDER BY r.stream%s, r.sequence%s LIMIT %d", direction, direction, min(limit, audit.MaxLimit))
	rs, err := s.query(ctx, "list", text, args...)
	if err != nil {
		return nil, fmt.Errorf("list the audit: %w", err)
	}
	return rs, nil
}

// Gaps implements audit.Store.
func (s *Store) Gaps(ctx context.Context) ([]audit.Gap, error) {
	var out []audit.Gap
	err := s.metrics.observe("gaps", func() error {
		rows, err := s.read.QueryContext(ctx, `SELECT s.incarnation, g.from_sequence, g.to_sequence, g.found_at
			FROM gaps g JOIN streams s ON s.ordinal = g.stream ORDER BY g.stream, g.from_sequence`)
		if err != nil {
			return err
		}
		defer rows.Close() // rows.Err reports what matters
		for rows.Next() {
			var (
				g            audit.Gap
				from, to, at int64
			)
			if err := rows.Scan(&g.Incarnation, &from, &to, &at); err != nil {
				return err
			}
			g.From, g.To, g.At = uint64(from), uint64(to), time.Unix(0, at).UTC()
			out = append(out, g)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list the audit's gaps: %w", err)
	}
	return out, nil
}

func (s *Store) ordinal(ctx context.Context, incarnation string) (int64, error) {
	var ordinal int64
	err := s.metrics.observe("cursor", func() error {
		err := s.read.QueryRowContext(ctx, `SELECT ordinal FROM streams WHERE incarnation = ?`, incarnation).Scan(&ordinal)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	if err == nil && ordinal == 0 {
		err = fmt.Errorf("%w: stream %q is unknown", audit.ErrCursor, incarnation)
	}
	return ordinal, err
}

func (s *Store) query(ctx context.Context, operation, text string, args ...any) ([]audit.Record, error) {
	var out []audit.Record
	err := s.metrics.observe(operation, func() error {
		rows, err := s.read.QueryContext(ctx, text, args...)
		if err != nil {
			return err
		}
		defer rows.Close() // rows.Err reports what matters
		for rows.Next() {
			var (
				r            audit.Record
				sequence, at int64
				event        []byte
			)
			if err := rows.Scan(&r.Incarnation, &sequence, &at, &r.ID, &r.Source, &r.Redrive, &r.Type, &r.Cluster, &r.Key, &r.Pool,
				&r.CorrelationID, &r.CausationID, &r.Actor, &r.Reason, &r.Message, &event); err != nil {
				return err
			}
			r.Sequence, r.StreamTime, r.Event = uint64(sequence), time.Unix(0, at).UTC(), event
			out = append(out, r)
		}
		return rows.Err()
	})
	return out, err
}

package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

// Append implements audit.Store.
func (s *Store) Append(ctx context.Context, batch []audit.Record) error {
	if len(batch) == 0 {
		return nil
	}
	if err := audit.CheckBatch(batch); err != nil {
		return err
	}
	var stored, copies int
	err := s.transact(ctx, "append", func(tx *sql.Tx) error {
		first, last := batch[0], batch[len(batch)-1]
		st, err := stream(ctx, tx, first.Incarnation)
		if err != nil {
			return err
		}
		switch {
		case st.ordinal == 0:
			st.last = first.Sequence - 1
			if st.ordinal, err = addStream(ctx, tx, first.Incarnation, st.last); err != nil {
				return err
			}
		case first.Sequence > st.last+1:
			return &audit.GapError{Incarnation: first.Incarnation, Last: st.last, Next: first.Sequence}
		}
		insert, err := tx.PrepareContext(ctx, `INSERT INTO records (`+columns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id, source, redrive) DO NOTHING`)
		if err != nil {
			return err
		}
		defer insert.Close() //nolint:errcheck // the transaction's end reports what matters
		for _, r := range batch {
			if r.Sequence <= st.last {
				known, err := replayed(ctx, tx, st.ordinal, r)
				if err != nil {
					return err
				}
				if known {
					continue
				}
			}
			res, err := insert.ExecContext(ctx, st.ordinal, int64(r.Sequence), r.StreamTime.UnixNano(), r.ID, r.Source, r.Redrive, r.Type, r.Cluster,
				r.Key, r.Pool, r.CorrelationID, r.CausationID, r.Actor, r.Reason, r.Message, []byte(r.Event))
			if err != nil {
				return fmt.Errorf("record %s: %w", r.Cursor(), err)
			}
			n, err := res.RowsAffected()
			if err != nil {
				return err
			}
			stored += int(n)
			copies += 1 - int(n)
		}
		return advance(ctx, tx, st, last.Sequence)
	})
	if err != nil {
		return fmt.Errorf("append to the audit: %w", err)
	}
	s.metrics.appended(stored, copies, batch[len(batch)-1].Sequence)
	return nil
}

// Skip implements audit.Store.
func (s *Store) Skip(ctx context.Context, g audit.Gap) error {
	if g.Incarnation == "" || g.From == 0 || g.To < g.From || g.At.IsZero() {
		return fmt.Errorf("skip in the audit: gap %d to %d of stream %q is none", g.From, g.To, g.Incarnation)
	}
	err := s.transact(ctx, "skip", func(tx *sql.Tx) error {
		st, err := stream(ctx, tx, g.Incarnation)
		if err != nil {
			return err
		}
		switch {
		case st.ordinal == 0:
			return fmt.Errorf("stream %s has no records yet, so it has no gap", g.Incarnation)
		case g.To <= st.last:
			return nil
		case g.From != st.last+1:
			return &audit.GapError{Incarnation: g.Incarnation, Last: st.last, Next: g.From}
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO gaps (stream, from_sequence, to_sequence, found_at) VALUES (?,?,?,?)`,
			st.ordinal, int64(g.From), int64(g.To), g.At.UnixNano()); err != nil {
			return err
		}
		return advance(ctx, tx, st, g.To)
	})
	if err != nil {
		return fmt.Errorf("skip in the audit: %w", err)
	}
	return nil
}

func (s *Store) transact(ctx context.Context, operation string, fn func(*sql.Tx) error) error {
	return s.metrics.observe(operation, func() error {
		tx, err := s.write.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := fn(tx); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	})
}

// place is where the store is in one incarnation; ordinal 0: it is unknown.
type place struct {
	ordinal int64
	last    uint64
}

// stream finds an incarnation, which must be the latest if it is known.
func stream(ctx context.Context, tx *sql.Tx, incarnation string) (place, error) {
	var (
		p      place
		last   int64
		latest int64
	)
	err := tx.QueryRowContext(ctx, `SELECT ordinal, last_sequence, (SELECT max(ordinal) FROM streams) FROM streams WHERE incarnation = ?`, incarnation).
		Scan(&p.ordinal, &last, &latest)
	if errors.Is(err, sql.ErrNoRows) {
		return place{}, nil
	}
	if err != nil {
		return place{}, err
	}
	if p.ordinal != latest {
		return place{}, fmt.Errorf("%w: %s is not the latest incarnation", audit.ErrOldIncarnation, incarnation)
	}
	p.last = uint64(last)
	return p, nil
}

func addStream(ctx context.Context, tx *sql.Tx, incarnation string, last uint64) (int64, error) {
	res, err := tx.ExecContext(ctx, `INSERT INTO streams (incarnation, last_sequence) VALUES (?,?)`, incarnation, int64(last))
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

func advance(ctx context.Context, tx *sql.Tx, p place, last uint64) error {
	if last <= p.last {
		return nil
	}
	_, err := tx.ExecContext(ctx, `UPDATE streams SET last_sequence = ? WHERE ordinal = ?`, int64(last), p.ordinal)
	return err
}

// replayed reports whether r's place is taken by r itself. A place that holds
// nothing belongs to a copy or to a gap.
func replayed(ctx context.Context, tx *sql.Tx, ordinal int64, r audit.Record) (bool, error) {
	var id, source, redrive string
	err := tx.QueryRowContext(ctx, `SELECT id, source, redrive FROM records WHERE stream = ? AND sequence = ?`, ordinal, int64(r.Sequence)).Scan(&id, &source, &redrive)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	case err != nil:
		return false, err
	case id != r.ID || source != r.Source || redrive != r.Redrive:
		return false, fmt.Errorf("%w: %s holds event %s of %s, got event %s of %s", audit.ErrDiffers, r.Cursor(), id, source, r.ID, r.Source)
	}
	return true, nil
}

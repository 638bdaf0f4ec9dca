package sqlite_test

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/audittest"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/sqlite"
)

func open(t *testing.T, o sqlite.Options) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), o)
	require.NoError(t, err)
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	audittest.Exercise(t, func(t *testing.T) audittest.Opener {
		path := filepath.Join(t.TempDir(), "audit.db")
		return func(t *testing.T) audit.Store { return open(t, sqlite.Options{Path: path}) }
	})
}

func TestFilesBelongToTheirOwnerAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a directory", "50%#?x")
	path := filepath.Join(dir, "audit.db")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, os.WriteFile(path, nil, 0o644))
	s := open(t, sqlite.Options{Path: path})
	require.Equal(t, path, s.Path())
	require.NoError(t, s.Append(t.Context(), []audit.Record{audittest.Record("a", 1)}))
	found := 0
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		require.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), p)
		found++
		return err
	}))
	require.GreaterOrEqual(t, found, 2, "the database and its journal")
	require.NoError(t, s.Close())
	require.FileExists(t, path)
}

func TestOpenSaysWhatIsWrongWithThePath(t *testing.T) {
	t.Parallel()
	_, err := sqlite.Open(t.Context(), sqlite.Options{})
	require.ErrorContains(t, err, "a path is required")

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = sqlite.Open(t.Context(), sqlite.Options{Path: filepath.Join(file, "audit.db")})
	require.ErrorContains(t, err, "directory "+file)
	require.ErrorContains(t, err, "set audit.sqlite.path")

	dir := t.TempDir()
	_, err = sqlite.Open(t.Context(), sqlite.Options{Path: dir})
	require.ErrorContains(t, err, "file "+dir+" can't be opened for writing")

	_, err = sqlite.Open(t.Context(), sqlite.Options{Path: "/proc/audit.db"})
	require.ErrorContains(t, err, "directory /proc is not writable")

	require.NoError(t, os.WriteFile(file, []byte(strings.Repeat("no database", 100)), 0o600))
	_, err = sqlite.Open(t.Context(), sqlite.Options{Path: file})
	require.ErrorContains(t, err, "open audit store "+file)
}

func TestOpenRefusesTablesOfANewerProgram(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.db")
	require.NoError(t, open(t, sqlite.Options{Path: path}).Close())
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	_, err = db.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`)
	require.NoError(t, err)
	require.NoError(t, db.Close())
	_, err = sqlite.Open(t.Context(), sqlite.Options{Path: path})
	require.ErrorContains(t, err, "version 99")
	require.ErrorContains(t, err, "newer program")
}

func TestCommitsAreSafeFromALossOfPower(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.db")
	s := open(t, sqlite.Options{Path: path})
	defer s.Close()
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		require.Equal(t, want, s.WriterPragma(t, pragma), pragma)
	}
}

func TestMetricsCountRecordsCopiesAndFailures(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	path := filepath.Join(t.TempDir(), "audit.db")
	s := open(t, sqlite.Options{Path: path, Registerer: reg})
	copied := audittest.Record("a", 2, func(r *audit.Record) { r.ID = audittest.Record("a", 1).ID })
	require.NoError(t, s.Append(t.Context(), []audit.Record{audittest.Record("a", 1), copied, audittest.Record("a", 3)}))
	require.ErrorIs(t, s.Append(t.Context(), []audit.Record{audittest.Record("a", 9)}), audit.ErrGap)
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP autoscaler_audit_copies_total Later copies of an event that were left out of the audit store.
# TYPE autoscaler_audit_copies_total counter
autoscaler_audit_copies_total 1
# HELP autoscaler_audit_records_total Events written to the audit store.
# TYPE autoscaler_audit_records_total counter
autoscaler_audit_records_total 2
# HELP autoscaler_audit_sequence Highest sequence of the stream of record that is in the audit store.
# TYPE autoscaler_audit_sequence gauge
autoscaler_audit_sequence 3
# HELP autoscaler_database_connection_errors_total Operations on the audit store that the database refused or did not finish.
# TYPE autoscaler_database_connection_errors_total counter
autoscaler_database_connection_errors_total 0
`), "autoscaler_audit_copies_total", "autoscaler_audit_records_total", "autoscaler_audit_sequence", "autoscaler_database_connection_errors_total"))

	_, err := sqlite.Open(t.Context(), sqlite.Options{Path: path, Registerer: reg})
	require.ErrorContains(t, err, "register the audit store's metrics")

	require.NoError(t, s.Close())
	ctx := t.Context()
	_, _, err = s.High(ctx)
	require.ErrorContains(t, err, "high-water mark")
	_, err = s.Get(ctx, "x")
	require.ErrorContains(t, err, "read event x")
	_, err = s.List(ctx, audit.Query{})
	require.ErrorContains(t, err, "list the audit")
	_, err = s.Gaps(ctx)
	require.ErrorContains(t, err, "gaps")
	require.ErrorContains(t, s.Append(ctx, []audit.Record{audittest.Record("a", 4)}), "append to the audit")
	n, err := testutil.GatherAndCount(reg, "autoscaler_db_latency_seconds")
	require.NoError(t, err)
	require.GreaterOrEqual(t, n, 5, "one series for each operation")
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "autoscaler_database_connection_errors_total" {
			require.InDelta(t, 5, f.GetMetric()[0].GetCounter().GetValue(), 0)
		}
	}
}

func TestAFileOfTheFirstVersionKeepsItsRecords(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.db")
	old, err := os.ReadFile("migrations/00001_records.sql")
	require.NoError(t, err)
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	for _, text := range []string{
		string(old), // goose's marks are comments
		`CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL, is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')))`,
		`INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, 1), (1, 1)`,
		`INSERT INTO streams (incarnation, last_sequence) VALUES ('a', 1)`,
		`INSERT INTO records VALUES (1, 1, 5, 'id', '/s', 't', 'home', '_cluster', '', '', '', 'ann', '', '', x'7b7d')`,
	} {
		_, err := db.ExecContext(t.Context(), text)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
	s := open(t, sqlite.Options{Path: path})
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	r, err := s.Get(t.Context(), "id")
	require.NoError(t, err)
	require.Equal(t, audit.Record{Incarnation: "a", Sequence: 1, StreamTime: time.Unix(0, 5).UTC(), ID: "id", Source: "/s", Type: "t", Cluster: "home", Key: "_cluster", Actor: "ann", Event: []byte("{}")}, r)
	require.NoError(t, s.Append(t.Context(), []audit.Record{audittest.Record("a", 2)}), "and takes more")
}

func TestProcessesThatStartTogetherMakeTheTablesOnce(t *testing.T) {
	t.Parallel()
	for range 5 {
		path := filepath.Join(t.TempDir(), "audit.db")
		var wg sync.WaitGroup
		errs := make([]error, 6)
		for i := range errs {
			wg.Go(func() {
				s, err := sqlite.Open(t.Context(), sqlite.Options{Path: path})
				if err == nil {
					err = s.Close()
				}
				errs[i] = err
			})
		}
		wg.Wait()
		require.NoError(t, errors.Join(errs...))
	}
}

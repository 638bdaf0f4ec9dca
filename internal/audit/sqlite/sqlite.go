// Package sqlite keeps the audit in one SQLite file, without cgo.
//
// The file is in WAL mode with synchronous=FULL: a committed batch survives a
// loss of power. One connection writes, several read at the same time.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// busyTimeout is how long a connection waits for another process (a backup,
	// a sqlite3 shell) to let go of the file.
	busyTimeout = 5 * time.Second
	readers     = 4
)

// Options configure the store.
type Options struct {
	// Path of the database file. It is made if absent, readable by its owner
	// alone; so is its directory. Required.
	Path string
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
	// Clock measures latencies. Default: the system's.
	Clock clock.PassiveClock
}

// Store is an audit.Store in a SQLite file.
type Store struct {
	path    string
	write   *sql.DB // one connection
	read    *sql.DB
	metrics *metrics
}

var _ audit.Store = (*Store)(nil)

// Open opens the file and brings its tables up to date. A file written by a
// newer version of the program is refused.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Path == "" {
		return nil, errors.New("audit store: a path is required")
	}
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return nil, fmt.Errorf("audit store: %w", err)
	}
	if err := prepare(path); err != nil {
		return nil, err
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	m, err := newMetrics(o.Registerer, o.Clock)
	if err != nil {
		return nil, err
	}
	s := &Store{path: path, metrics: m}
	if err := s.connect(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open audit store %s: %w", path, err), s.Close())
	}
	return s, nil
}

// prepare makes directory and file, and says what is wrong with them: SQLite
// only says "unable to open database file".
func prepare(path string) error {
	dir := filepath.Dir(path)
	advice := fmt.Sprintf("give user %d write access to it, or set audit.sqlite.path", os.Getuid())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("audit store: directory %s can't be made: %w; %s", dir, err, advice)
	}
	// SQLite keeps its journal beside the file, so the directory must be writable too.
	probe, err := os.CreateTemp(dir, ".writable-")
	if err != nil {
		return fmt.Errorf("audit store: directory %s is not writable: %w; %s", dir, err, advice)
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
		return fmt.Errorf("audit store: directory %s is not writable: %w; %s", dir, err, advice)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("audit store: file %s can't be opened for writing: %w; %s", path, err, advice)
	}
	// SQLite gives the journal the mode of the file.
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return fmt.Errorf("audit store: file %s: %w", path, err)
	}
	return nil
}

func (s *Store) connect(ctx context.Context) error {
	var err error
	if s.write, err = sql.Open("sqlite", dsn(s.path, "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)")+"&_txlock=immediate"); err != nil {
		return err
	}
	s.write.SetMaxOpenConns(1)
	if err := s.metrics.observe("migrate", func() error { return migrate(ctx, s.write) }); err != nil {
		return err
	}
	if s.read, err = sql.Open("sqlite", dsn(s.path, "query_only(1)")); err != nil {
		return err
	}
	s.read.SetMaxOpenConns(readers)
	return s.metrics.observe("ping", func() error { return s.read.PingContext(ctx) })
}

func dsn(path string, pragmas ...string) string {
	q := url.Values{"_pragma": {fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())}}
	for _, p := range pragmas {
		q.Add("_pragma", p)
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// migrateAttempts is how often the tables are brought up to date, when other
// processes that start do the same: each attempt loses to one of them at most.
const migrateAttempts = 20

// errNewer says that no attempt will help.
var errNewer = errors.New("use the newer program that wrote it")

// migrate brings the tables up to date. SQLite has no lock that spans a whole
// migration; whoever is second finds a table that was not there a moment ago.
func migrate(ctx context.Context, db *sql.DB) (err error) {
	for n := range migrateAttempts {
		if err = migrateOnce(ctx, db); err == nil || errors.Is(err, errNewer) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(n) * 10 * time.Millisecond):
		}
	}
	return err
}

func migrateOnce(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		return err
	}
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("read the version of its tables: %w", err)
	}
	sources := p.ListSources()
	if want := sources[len(sources)-1].Version; have > want {
		return fmt.Errorf("its tables have version %d, this program knows %d: %w", have, want, errNewer)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("bring its tables up to date: %w", err)
	}
	return nil
}

// Path is the absolute path of the file.
func (s *Store) Path() string { return s.path }

// Close implements audit.Store.
func (s *Store) Close() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close audit store %s: %w", s.path, err)
	}
	return nil
}

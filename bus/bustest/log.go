package bustest

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Log is a log that is written and read at the same time.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Logger writes to l.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// Entries returns the entries whose message holds msg.
func (l *Log) Entries(t testing.TB, msg string) (out []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		var entry map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &entry))
		if strings.Contains(entry["msg"].(string), msg) {
			out = append(out, entry)
		}
	}
	return out
}

// Find returns the first entry whose message holds msg, or nil.
func (l *Log) Find(t testing.TB, msg string) map[string]any {
	t.Helper()
	if all := l.Entries(t, msg); len(all) > 0 {
		return all[0]
	}
	return nil
}

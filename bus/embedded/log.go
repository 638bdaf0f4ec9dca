package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
)

// logger hands what the server says to slog. The server's notices are about its
// own start and stop, which the process reports itself: they are Debug here.
type logger struct {
	log *slog.Logger

	mu   sync.Mutex
	last string // the last error: why a start failed
}

func (l *logger) say(level slog.Level, format string, v []any) {
	ctx := context.Background()
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "nats server", "message", fmt.Sprintf(format, v...))
	}
}

func (l *logger) failed(format string, v []any) {
	l.mu.Lock()
	l.last = fmt.Sprintf(format, v...)
	l.mu.Unlock()
	l.say(slog.LevelError, format, v)
}

func (l *logger) lastError() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// The methods of server.Logger.

func (l *logger) Noticef(format string, v ...any) { l.say(slog.LevelDebug, format, v) }
func (l *logger) Warnf(format string, v ...any)   { l.say(slog.LevelWarn, format, v) }
func (l *logger) Fatalf(format string, v ...any)  { l.failed(format, v) }
func (l *logger) Errorf(format string, v ...any)  { l.failed(format, v) }
func (l *logger) Debugf(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }
func (l *logger) Tracef(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }

package auth

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const (
	// DefaultRefusalInterval is how often refused calls are reported.
	DefaultRefusalInterval = time.Minute
	// maxKinds bounds how many kinds of refused calls are told apart in an
	// interval: paths are the caller's choice.
	maxKinds   = 100
	maxRemotes = 10
	maxPath    = 128
)

// Refusals counts refused calls and reports them together, so that somebody
// who tries a million tokens writes one event a minute and not a million.
type Refusals struct {
	clock   clock.WithTicker
	publish func(context.Context, events.AccessRefused) error
	log     *slog.Logger

	mu    sync.Mutex
	kinds map[refusalKind]*events.AccessRefused
}

type refusalKind struct{ reason, method, path string }

// NewRefusals makes an empty count; Run reports it with publish.
func NewRefusals(c clock.WithTicker, publish func(context.Context, events.AccessRefused) error, log *slog.Logger) *Refusals {
	return &Refusals{clock: c, publish: publish, log: log, kinds: map[refusalKind]*events.AccessRefused{}}
}

// Add counts one refused call.
func (f *Refusals) Add(r *http.Request, reason error) {
	now := f.clock.Now().UTC()
	remote, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		remote = r.RemoteAddr
	}
	path := r.URL.Path
	if len(path) > maxPath {
		path = path[:maxPath] + "…"
	}
	k := refusalKind{reason.Error(), r.Method, path}
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.kinds[k]
	if !ok && len(f.kinds) >= maxKinds {
		k = refusalKind{reason.Error(), "*", "(other paths)"}
		e, ok = f.kinds[k]
	}
	if !ok {
		e = &events.AccessRefused{Reason: k.reason, Method: k.method, Path: k.path, First: now}
		f.kinds[k] = e
	}
	e.Count++
	e.Last = now
	if len(e.Remotes) < maxRemotes && !slices.Contains(e.Remotes, remote) {
		e.Remotes = append(e.Remotes, remote)
	}
}

// Run reports what was counted every DefaultRefusalInterval, and once more when
// ctx ends. What the bus does not take is logged and not kept.
func (f *Refusals) Run(ctx context.Context) error {
	tick := f.clock.NewTicker(DefaultRefusalInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C():
			f.flush(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			f.flush(last)
			return nil
		}
	}
}

func (f *Refusals) flush(ctx context.Context) {
	f.mu.Lock()
	kinds := f.kinds
	f.kinds = map[refusalKind]*events.AccessRefused{}
	f.mu.Unlock()
	sorted := slices.SortedFunc(maps.Values(kinds), func(a, b *events.AccessRefused) int {
		return cmp.Or(a.First.Compare(b.First), cmp.Compare(a.Path, b.Path))
	})
	for _, e := range sorted {
		f.log.WarnContext(ctx, "calls refused", "reason", e.Reason, "method", e.Method, "path", e.Path, "count", e.Count, "remotes", e.Remotes)
		if err := f.publish(ctx, *e); err != nil {
			f.log.ErrorContext(ctx, "refused calls could not be published, they are in this log alone", "error", err)
		}
	}
}

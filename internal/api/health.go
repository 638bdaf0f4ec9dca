package api

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/telemetry"
)

// checkTimeout bounds one readiness check: a kubelet asks every few seconds.
const checkTimeout = 2 * time.Second

// Health is the answer of /readyz and /health.
type Health struct {
	Status  string            `json:"status" enum:"ok,failing"`
	Version string            `json:"version"`
	Checks  map[string]string `json:"checks" doc:"ok, or failing; with a token, why"`
}

func (s *Server) livez(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // the connection may be gone
}

// readyz runs the checks at once. Why one fails is told to callers with a token
// and to the log; everybody sees which.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	_, err := s.o.Tokens.Authenticate(r.Header.Get("Authorization"))
	h, status := s.health(r.Context(), err == nil), http.StatusOK
	if h.Status != "ok" {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(h) // the connection may be gone
}

func (s *Server) health(ctx context.Context, detailed bool) Health {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	h := Health{Status: "ok", Version: s.o.Version, Checks: map[string]string{}}
	results := make([]error, len(s.o.Ready))
	var wg sync.WaitGroup
	for i, c := range s.o.Ready {
		wg.Go(func() { results[i] = c.Check(ctx) })
	}
	wg.Wait()
	for i, c := range s.o.Ready {
		h.Checks[c.Name] = "ok"
		if err := results[i]; err != nil {
			h.Status, h.Checks[c.Name] = "failing", "failing"
			if detailed {
				h.Checks[c.Name] = "failing: " + telemetry.Redact(err.Error())
			}
			s.o.Logger.WarnContext(ctx, "not ready", "check", c.Name, "error", err)
		}
	}
	return h
}

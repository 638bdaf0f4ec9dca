package scenarios

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/auditing"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api/view"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/recording"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/sqlite"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/cli"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// ask audits the stream as the auditing handler does, serves it as the gateway
// does, and returns what the command line prints about the subject.
func (w *world) ask(ctx context.Context, subject string) (answer string, err error) {
	if w.err != nil {
		return "", w.err
	}
	dir, err := os.MkdirTemp("", "k3s-autoscaler-docgen-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log, clk := slog.New(slog.DiscardHandler), clocktesting.NewFakeClock(w.now)

	store, err := sqlite.Open(ctx, sqlite.Options{Path: filepath.Join(dir, "audit.db"), Clock: clk})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	h, err := auditing.New(auditing.Options{Store: recording.Store{Audit: store}, Log: w.stream, Clock: clk, Logger: log})
	if err != nil {
		return "", err
	}
	if err := h.HandleBatch(ctx, w.stream.all); err != nil {
		return "", err
	}

	now, err := view.New(view.Options{Observe: decision.Observe, Log: w.stream, Audit: store, Memories: view.MemoriesFunc(w.memory), Lives: noLives{}, Clusters: []string{cluster}, Clock: clk, Logger: log})
	if err != nil {
		return "", err
	}
	followed := make(chan error, 1)
	go func() { followed <- now.Run(ctx) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-followed)
	}()
	<-w.stream.read

	token := filepath.Join(dir, "api.token")
	if err := auth.NewKey().WriteFile(token); err != nil {
		return "", err
	}
	tokens, err := auth.Open([]string{token}, log)
	if err != nil {
		return "", err
	}
	reg := prometheus.NewRegistry()
	server, err := api.New(api.Options{
		Version: "docs", Publisher: w.stream, Log: w.stream, DeadLetters: w.stream, Audit: store, World: now, Shadows: noShadows{}, Alerts: http.NotFoundHandler(), Tokens: tokens,
		Targets:        func() []api.Target { return []api.Target{{Cluster: cluster, Pools: []string{"burst"}}} },
		DefaultCluster: func() string { return cluster }, Gatherer: reg, Registerer: reg, Logger: log, Clock: clk, Limits: api.DefaultLimits(),
	})
	if err != nil {
		return "", err
	}
	gateway := httptest.NewServer(server.Handler())
	defer gateway.Close()
	var out, errOut bytes.Buffer
	code := cli.Execute(ctx, cli.Options{Version: "docs", Stdin: &bytes.Buffer{}, Stdout: &out, Stderr: &errOut, Getenv: func(string) string { return "" },
		ConfigDir: dir, Clock: clk}, []string{"explain", subject, "--server", gateway.URL, "--token-file", token})
	if code != cli.ExitOK {
		return "", fmt.Errorf("explain %s: exit code %d: %s", subject, code, errOut.String())
	}
	return out.String(), nil
}

// noShadows is a cluster whose policy is compared with no other; the rest of the
// interface is never asked for.
type noShadows struct{ unasked }

type unasked = api.Shadows

func (noShadows) Shadows(context.Context) ([]api.Shadow, error) { return nil, nil }

// memory is what decision remembers, from its last checkpoint.
func (w *world) memory(context.Context, string) (view.Memory, bool, error) {
	for i := len(w.stream.all) - 1; i >= 0; i-- {
		e := w.stream.all[i].Event
		if e.Type() != events.TypeDecisionCheckpointed {
			continue
		}
		p, err := events.Decode[events.DecisionCheckpointed](e)
		if err != nil {
			return view.Memory{}, false, err
		}
		var r decision.Record
		if err := json.Unmarshal(p.State, &r); err != nil {
			return view.Memory{}, false, err
		}
		m := view.Memory{Core: r.Core, Stale: r.Stale}
		if c := r.Config; c != nil {
			m.Policy, m.Digest, m.Rules = c.Policy, c.Digest, r.Policy()
		}
		return m, true, nil
	}
	return view.Memory{}, false, errors.New("no checkpoint at " + w.now.Format(time.RFC3339))
}

// noLives are the records of provisioning and draining, which no scenario runs: what
// the snapshots say of them counts.
type noLives struct{}

func (noLives) Position(string, string) (lifecycle.Position, bool) {
	return lifecycle.Position{}, false
}

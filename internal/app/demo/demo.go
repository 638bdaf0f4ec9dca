// Package demo shows the main job in about a minute: an alert fires, pods pend,
// nodes join, the load falls, nodes are drained and leave. Everything is the
// product's own (webhook with a token, bus, handlers, audit store) but the
// world, which is simulated.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/app"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/simulated"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/simulation"
)

// Options of a demonstration.
type Options struct {
	Out     io.Writer
	Version string
	// Serve keeps the API up after the summary, until ctx ends.
	Serve bool
	// Listen is the API's address. Default 127.0.0.1:0.
	Listen string
	// Speed divides the delays of the simulated world and the pauses between
	// the chapters. Default 1, about a minute.
	Speed float64
	// Log takes the product's log too. It always goes to a file in the demo's
	// folder, which is kept when something failed.
	Log io.Writer

	// wrap, for tests, stands between the product and the simulated machines.
	wrap func(provider.NodeProvider) provider.NodeProvider
}

const (
	clusterName = "demo"
	poolName    = "burst"
	webhookPath = "/v1/alerts"
	// limit is when the demonstration gives up.
	limit = 3 * time.Minute
)

// configuration is what a user would write, with times short enough to watch.
const configuration = `clusters:
  - name: demo
    pools:
      - name: burst
        provider: simulated
        min: 0
        max: 5
        cpu: "2"
        memory: 4Gi
        claim_expiry: 30s
        register_deadline: 30s
        scale_up: {cooldown: 1m}
        scale_down: {unneeded: 4s, delay_after_add: 4s, delay_after_failure: 2s, cooldown: 1s, stabilization: 3s, min_lifetime: 4s, max_removals: 1}
policy:
  startup_grace: 5s
  alert_rules:
    - {name: queue-backlog, match: ['alertname="QueueBacklog"'], pool: burst, direction: up, amount: 1}
collector: {changed_every: 1s}
bus: {embedded: {dir: bus}}
audit: {sqlite: {path: audit.db}}
`

// Run runs the demonstration. It returns nil only if the cluster ended as it
// should.
func Run(ctx context.Context, o Options) (err error) {
	if o.Out == nil {
		o.Out = os.Stdout
	}
	o.Out = &lockedWriter{w: o.Out} // the story and the timeline write side by side
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Speed <= 0 {
		o.Speed = 1
	}
	dir, err := os.MkdirTemp("", "k3s-autoscaler-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's folder: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w (log, bus and audit store are kept in %s)", err, dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	d, err := prepare(dir, o)
	if err != nil {
		return err
	}
	defer d.log.Close()

	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	a, err := app.New(runCtx, app.Options{Config: d.config, Version: o.Version, World: d, Logger: d.logger})
	if err != nil {
		return err
	}
	d.app = a
	done := make(chan error, 2)
	go func() { done <- ended(runCtx, "the autoscaler", a.Run(runCtx)) }()
	go func() { done <- ended(runCtx, "the simulated cluster", d.world.Run(runCtx)) }()

	failed := make(chan error, 1)
	storyCtx, endStory := context.WithTimeout(runCtx, limit)
	defer endStory()
	go func() { failed <- d.story(storyCtx) }()
	select {
	case err = <-failed:
	case err = <-done:
		done <- nil // it is waited for below
		endStory()
		err = errors.Join(err, <-failed)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil && o.Serve {
		fmt.Fprintf(o.Out, "\nThe API stays up at http://%s, token in %s. End with Ctrl-C.\n", a.Address(), d.token)
		<-ctx.Done()
	}
	stop()
	return errors.Join(err, <-done, <-done, a.Close())
}

// ended turns an end that was asked for into none.
func ended(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	if err == nil {
		err = errors.New("ended unasked")
	}
	return fmt.Errorf("%s: %w", what, err)
}

// demo is one demonstration. It is the app's world.
type demo struct {
	o      Options
	world  *simulation.World
	config *config.Config
	app    *app.App
	token  string // file
	secret string
	log    *os.File
	logger *slog.Logger
	start  time.Time
}

func prepare(dir string, o Options) (*demo, error) {
	d := &demo{o: o, token: filepath.Join(dir, "api.token"), start: time.Now()}
	key := auth.NewKey()
	if err := key.WriteFile(d.token); err != nil {
		return nil, err
	}
	d.secret = key.Token
	text := configuration + fmt.Sprintf("api: {listen: %q, token_files: [api.token]}\n", o.Listen)
	var err error
	if d.config, err = config.Parse("demo.yaml", []byte(text), dir); err != nil {
		return nil, err
	}
	if d.log, err = os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	var log io.Writer = d.log
	if o.Log != nil {
		log = io.MultiWriter(d.log, o.Log)
	}
	d.logger = slog.New(slog.NewTextHandler(log, nil))
	d.world, err = simulation.New(simulation.Options{Seed: 1, Jitter: 0.2, Logger: d.logger, Delays: simulation.Delays{
		Join: d.paced(3 * time.Second), Ready: d.paced(2 * time.Second), PodStart: d.paced(time.Second), PodStop: d.paced(time.Second),
	}})
	return d, err
}

// paced is a duration at the speed that was asked for.
func (d *demo) paced(t time.Duration) time.Duration {
	return time.Duration(float64(t) / d.o.Speed)
}

// Reader implements app.World.
func (d *demo) Reader(config.Cluster) (kubernetes.Interface, metrics.Interface, error) {
	return d.world.Client(), nil, nil
}

// Actor implements app.World.
func (d *demo) Actor(config.Cluster) (kubernetes.Interface, error) { return d.world.Client(), nil }

// Provider implements app.World.
func (d *demo) Provider(c config.Cluster, p config.Pool, _ *bus.Notes) (provider.NodeProvider, error) {
	machines, err := simulated.New(simulated.Options{World: d.world, Cluster: c.Name})
	if err != nil || d.o.wrap == nil {
		return machines, err
	}
	return d.o.wrap(machines), nil
}

// lockedWriter lets several goroutines write to w, one call at a time.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// alert posts to the webhook as Alertmanager does.
func (d *demo) alert(ctx context.Context, status string, startsAt time.Time) error {
	endsAt := "0001-01-01T00:00:00Z"
	if status == "resolved" {
		endsAt = time.Now().UTC().Format(time.RFC3339Nano)
	}
	body := fmt.Sprintf(`{"version":"4","groupKey":"{}:{alertname=\"QueueBacklog\"}","truncatedAlerts":0,"status":%[1]q,"receiver":"k3s-autoscaler",
"groupLabels":{"alertname":"QueueBacklog"},"commonLabels":{"alertname":"QueueBacklog","queue":"mail"},"commonAnnotations":{},"externalURL":"http://alertmanager:9093",
"alerts":[{"status":%[1]q,"labels":{"alertname":"QueueBacklog","queue":"mail","severity":"critical"},"annotations":{"summary":"queue mail has 50 jobs"},
"startsAt":%[2]q,"endsAt":%[3]q,"generatorURL":"http://prometheus:9090/graph","fingerprint":"c7a5e0f2b1d34a68"}]}`,
		status, startsAt.UTC().Format(time.RFC3339Nano), endsAt)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.app.Address()+webhookPath, bytes.NewBufferString(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+d.secret)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("post to the webhook: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("post to the webhook: %s: %s", resp.Status, b)
	}
	return nil
}

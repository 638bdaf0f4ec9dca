package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// syncBuffer is a log that several processes write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// onNATS is a bundle whose roles share an external bus, each with its own
// credential.
func onNATS(t *testing.T, n *natsBundle, role string) (*config.Config, string) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "password"), []byte(role+"\n"), 0o600))
	c, err := config.Parse("test.yaml", fmt.Appendf(nil, `
clusters: [{name: home, pools: [{name: burst, provider: simulated, min: 0, max: 2, cpu: 1, memory: 1Gi}]}]
collector: {changed_every: 1s}
policy: {startup_grace: 1s}
bus: {url: %q, user: %s, password_file: password, provisioned: true, max_bytes: 64Mi}
api: {listen: "127.0.0.1:0"}
`, n.url, role), dir)
	require.NoError(t, err)
	return c, dir
}

// ask publishes a request as the command line does.
func ask(t *testing.T, a *App, token string, p events.ScaleRequested) {
	t.Helper()
	p.Actor, p.Reason = "test", "test"
	body, err := json.Marshal(map[string]any{"specversion": "1.0", "id": fmt.Sprintf("%s-%d", p.Action, time.Now().UnixNano()),
		"source": api.CLISource, "type": events.TypeScaleRequested, "datacontenttype": "application/json", "data": p})
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+a.Address()+"/v1/events", bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/cloudevents+json")
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Less(t, resp.StatusCode, 300, "%s", text)
}

func TestEveryRoleWorksWithItsOwnCredentialAndNoMore(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	n.provision(t)
	b := setup(t)
	worldCtx, endWorld := context.WithCancel(t.Context())
	defer endWorld()
	go func() { _ = b.world.world.Run(worldCtx) }() // ends with the test

	var log syncBuffer
	apps := map[string]*App{}
	for _, role := range Roles() {
		c, _ := onNATS(t, n, role)
		c.Audit = b.config.Audit // auditing writes it, the gateway reads
		c.API.TokenFiles = b.config.API.TokenFiles
		a, err := New(t.Context(), Options{Config: c, Version: "test", Roles: []string{role}, World: b.world, Times: bustest.Times(),
			Logger: slog.New(slog.NewTextHandler(&log, nil)).With("process", role)})
		require.NoError(t, err, role)
		apps[role] = a
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			require.NoError(t, <-done, role)
			require.NoError(t, a.Close())
		})
	}
	gateway := apps[RoleGateway]
	token, err := os.ReadFile(b.config.API.TokenFiles[0])
	require.NoError(t, err)
	key := string(bytes.TrimSpace(token))
	seen := func(eventType string) func() bool {
		return func() bool { return b.count(t, gateway, eventType) > 0 }
	}
	wait := func(eventType string) {
		t.Helper()
		require.Eventually(t, seen(eventType), 60*time.Second, 50*time.Millisecond, "%s\n%s", eventType, &log)
	}
	wait(events.TypeDecisionCheckpointed)
	ask(t, gateway, key, events.ScaleRequested{Action: events.ActionUp, Pool: "burst", Count: 1})
	wait(events.TypeNodeReady)
	var node string
	for d, err := range gateway.Events(t.Context(), bus.ReadOptions{Types: []string{events.TypeNodeReady}}) {
		require.NoError(t, err)
		node = d.Key.Name
	}
	require.Eventually(t, func() bool { // until decision has seen the node Ready
		if seen(events.TypeNodeDrained)() {
			return true
		}
		ask(t, gateway, key, events.ScaleRequested{Action: events.ActionRemove, Node: node, Override: true})
		return false
	}, 60*time.Second, 500*time.Millisecond, &log)
	wait(events.TypeNodeRemoved)
	require.Eventually(t, func() bool { return apps[RoleAuditing].Audited(t.Context()) == nil }, time.Minute, 20*time.Millisecond, "everything is audited")
	require.Eventually(t, func() bool {
		list, err := b.world.world.Client().CoreV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		return slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Name == node && e.Reason == "ScaleDown" && strings.Contains(e.Message, "removed")
		})
	}, time.Minute, 20*time.Millisecond, "what happened is announced")
	require.NoError(t, gateway.bus.Ready(t.Context()))
	require.NotContains(t, log.String(), "refused a request", "nobody tried what it may not")
	require.NotContains(t, log.String(), "level=ERROR")
}

func TestARefusalIsOneClearLineAndEndsTheCallAtOnce(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	n.provision(t)
	var log syncBuffer
	o := n.options(RoleDraining)
	o.Times.Request = time.Minute // a refusal does not wait for it
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	b, err := bus.Open(t.Context(), o)
	require.NoError(t, err)
	defer b.Close()
	e, err := events.New(events.Meta{Cluster: "home", Node: "n1", Publisher: "collector", ID: "x", Time: time.Now()},
		events.NodeObserved{Node: "n1", What: events.ObservedReady, At: time.Now()})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = b.Publish(ctx, e)
	require.ErrorIs(t, err, bus.ErrForbidden)
	require.ErrorIs(t, err, bus.ErrUnavailable, "nothing is lost: it is tried again")
	require.ErrorContains(t, err, `role draining may not publish to "k3sas.home.node.n1.node.observed"`)
	require.ErrorContains(t, err, "'k3s-autoscaler bus permissions --role draining'")
	require.Contains(t, log.String(), `level=ERROR msg="the NATS server refused a request of this process"`)
	require.Contains(t, log.String(), `role=draining subject=k3sas.home.node.n1.node.observed`)

	// Its own bucket only, by lookups too.
	_, err = bus.OpenState(ctx, b, bus.StateOptions[struct{}]{Handler: RoleProvisioning})
	require.ErrorIs(t, err, bus.ErrForbidden)
	for _, err = range b.Read(ctx, bus.ReadOptions{}) {
		break
	}
	require.ErrorIs(t, err, bus.ErrForbidden)
	_, _, err = b.Last(ctx, bus.Key{Cluster: "home", Name: events.ClusterKey}, events.TypeConfigApplied)
	require.ErrorIs(t, err, bus.ErrForbidden)

	// A process that was not told that everything is provisioned tries to make it.
	o.Provisioned = false
	o.Role = RoleDraining
	other, err := bus.Open(ctx, o)
	require.NoError(t, err, "the streams are there")
	defer other.Close()
	err = other.Run(ctx, idle(events.HandlerDraining))
	require.ErrorIs(t, err, bus.ErrForbidden)
	require.ErrorContains(t, err, "set bus.provisioned")
}

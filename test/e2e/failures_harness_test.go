//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env/faults"
)

// faulty is a product whose pools have an engine each that can be made to fail.
type faulty struct {
	*product
	engines map[string]*faults.Docker // by pool
	volumes []string                  // that were there before

	mu   sync.Mutex
	seen []events.Event
}

// often makes the sweep look every second, and orphans old after three.
const often = "reconcile: {every: 1s, grace: 3s}\n"

// newFaulty writes the configuration; begin starts it.
func newFaulty(t *testing.T, cluster string, pools ...pool) *faulty {
	t.Helper()
	sayWhere(t)
	f := &faulty{engines: map[string]*faults.Docker{}, volumes: volumeNames(t)}
	for i := range pools {
		p, err := faults.NewDocker(world.DockerHost)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, p.Close()) })
		f.engines[pools[i].Name], pools[i].Engine, pools[i].Unneeded, pools[i].Max = p, p.Host(), "1h", max(pools[i].Max, 2)
		pools[i].Backoff = "{initial: 1s, max: 4s}"
	}
	pools[0].More, pools[0].Top = pools[1:], often
	f.product = newProduct(t, cluster, pools[0])
	return f
}

// begin starts the product and follows its log.
func (f *faulty) begin() {
	f.t.Helper()
	f.start()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f.follow(ctx) })
	f.t.Cleanup(func() { cancel(); wg.Wait() })
}

func (f *faulty) follow(ctx context.Context) {
	for last := "1"; ctx.Err() == nil; {
		if res, err := f.get(ctx, "/v1/stream?since=1&exclude=snapshot.*&exclude=decision.checkpointed", last); err == nil {
			s := bufio.NewScanner(res.Body)
			s.Buffer(nil, 16<<20)
			for s.Scan() {
				name, value, _ := strings.Cut(s.Text(), ": ")
				switch name {
				case "id":
					last = value
				case "data":
					var entry api.Entry
					var e events.Event
					if json.Unmarshal([]byte(value), &entry) == nil && json.Unmarshal(entry.Event, &e) == nil {
						f.mu.Lock()
						f.seen = append(f.seen, e)
						f.mu.Unlock()
					}
				}
			}
			res.Body.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (f *faulty) get(ctx context.Context, path, lastID string) (*http.Response, error) {
	token, err := os.ReadFile(f.token)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	if lastID != "1" && lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	res, err := http.DefaultClient.Do(r)
	if err == nil && res.StatusCode != http.StatusOK {
		res.Body.Close()
		err = fmt.Errorf("%s: %s", path, res.Status)
	}
	return res, err
}

// counts requires that a metric, with its labels in alphabetical order, is above 0.
func (f *faulty) counts(t *testing.T, metric string) {
	t.Helper()
	name, _, _ := strings.Cut(metric, "{")
	// An event may be known before it is counted.
	eventually(t, 10*time.Second, metric+" is above 0", func() error {
		res, err := f.get(context.Background(), "/metrics", "")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		var near []string
		for s := bufio.NewScanner(res.Body); s.Scan(); {
			if value, found := strings.CutPrefix(s.Text(), metric+" "); found && value != "0" {
				return nil
			}
			if strings.HasPrefix(s.Text(), name) {
				near = append(near, s.Text())
			}
		}
		return fmt.Errorf("there are %v", near)
	})
}

// told returns the events of a type about a pool, in the order of the log.
func told[T events.Payload](f *faulty, about func(T) bool) []T {
	f.mu.Lock()
	defer f.mu.Unlock()
	var zero T
	var out []T
	for _, e := range f.seen {
		if e.Type() != zero.EventType() {
			continue
		}
		if v, err := events.Decode[T](e); err == nil && about(v) {
			out = append(out, v)
		}
	}
	return out
}

// awaits waits for an event.
func awaits[T events.Payload](t *testing.T, f *faulty, limit time.Duration, about func(T) bool) T {
	t.Helper()
	var zero T
	var found []T
	eventually(t, limit, "a "+zero.EventType(), func() error {
		if found = told(f, about); len(found) == 0 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	return found[0]
}

func claimsOf(f *faulty, pool string) []events.NodeClaimed {
	return told(f, func(c events.NodeClaimed) bool { return c.Pool == pool })
}

// keeps asks for so many nodes of a pool, for as long as the test takes.
func (f *faulty) keeps(t *testing.T, pool string, n int) {
	t.Helper()
	args := []string{"scale", "to", "--pool", pool, "--count", fmt.Sprint(n), "--reason", "a failure"}
	if n > 0 {
		args = append(args, "--for", "30m")
	}
	out, errOut, err := f.cli(args...)
	require.NoError(t, err, "%s%s", out, errOut)
}

// readyOf waits for a node of a pool that is Ready for the first time.
func (f *faulty) readyOf(t *testing.T, pool string, limit time.Duration) events.NodeReady {
	t.Helper()
	return awaits(t, f, limit, func(r events.NodeReady) bool { return r.Pool == pool && r.First })
}

// failed waits for the first failure of a pool.
func (f *faulty) failed(t *testing.T, pool string, limit time.Duration) events.NodeFailed {
	t.Helper()
	return awaits(t, f, limit, func(x events.NodeFailed) bool { return x.Pool == pool })
}

// leavesNothing asks for no nodes any more, and verifies that nothing of any node
// is left anywhere.
func (f *faulty) leavesNothing() {
	t := f.t
	t.Helper()
	for pool := range f.engines {
		f.keeps(t, pool, 0)
	}
	eventually(t, 90*time.Second, "every node is gone", func() error {
		if list := containers(t, f.cluster); len(list) > 0 {
			return fmt.Errorf("%d containers are left, e.g. %v (%s)", len(list), list[0].Names, list[0].State)
		}
		return noNodes(t, f.product)()
	})
	noneOpen(t, f.product)
	ctx := context.Background()
	for _, c := range told(f, func(events.NodeClaimed) bool { return true }) {
		_, err := admin.CoreV1().Secrets("kube-system").Get(ctx, c.Node+".node-password.k3s", metav1.GetOptions{})
		require.True(t, apierrors.IsNotFound(err), "password secret of %s: %v", c.Node, err)
	}
	nodes, err := admin.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	for _, n := range nodes.Items {
		if of := n.Labels[events.LabelCluster]; of == "" || of == f.cluster { // those of others are theirs
			require.False(t, n.Spec.Unschedulable, "%s is cordoned", n.Name)
		}
	}
	eventually(t, 30*time.Second, "no volume is left", func() error {
		for _, v := range volumeNames(t) {
			if !slices.Contains(f.volumes, v) {
				return fmt.Errorf("%s is", v)
			}
		}
		return nil
	})
	require.Empty(t, told(f, func(events.DeadletterRecorded) bool { return true }))
	require.NotContains(t, f.mustCLI("dlq", "list", "-o", "json"), `"handler"`)
	// At most one container was ever started for a claim.
	created := map[string]int{}
	for _, c := range told(f, func(events.NodeCreated) bool { return true }) {
		created[c.ClaimID]++
		require.Equal(t, 1, created[c.ClaimID], "claim %s", c.ClaimID)
	}
}

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// A node whose agent hangs is not Ready and not gone: nothing but repair gets rid of
// it. Its machine is stopped before its Node object goes, and nothing of it is left.
func TestANodeThatIsNotReadyForTooLongIsRepaired(t *testing.T) {
	p := newProduct(t, "e2e-repair", pool{Min: 1, Max: 2, Extra: "        repair: {after: 10s}\n"})
	ns := namespace(t, "e2e-repair")
	p.start()
	eventually(t, 90*time.Second, "the pool is at its minimum", readyNodes(t, p, 1))
	deployment(t, ns, "web", p.cluster, 1, "100m")
	waitRunning(t, ns, "web", 1, 60*time.Second)
	names, _ := ourNodes(t, p.cluster)
	sick := names[0]
	hang(t, sick)

	eventually(t, 120*time.Second, "nodes says that it is not Ready, until when, and what comes next", func() error {
		out := p.mustCLI("nodes")
		if line := lineOf(out, sick); !strings.Contains(line, "unready") || !strings.Contains(line, "it becomes Ready again, or is removed") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
	eventually(t, 90*time.Second, "it is removed", func() error {
		for _, r := range payloads[events.NodeRemoved](t, p) {
			if r.Node == sick && r.Reason.Code == "NodeUnready" {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})
	assertGone(t, p, sick)
	drained := payloads[events.NodeDrained](t, p)
	require.Len(t, drained, 1)
	require.True(t, drained[0].Unready)
	require.Len(t, drained[0].Left, 1, "the pod that nobody could evict is named")
	require.Empty(t, evicted(t, p))
	eventually(t, 90*time.Second, "another node is there", readyNodes(t, p, 1))
	waitRunning(t, ns, "web", 1, 120*time.Second)

	x := explained(t, p, "node/"+sick)
	var points []string
	for _, s := range x.Life {
		points = append(points, s.Name)
	}
	require.Equal(t, []string{"claimed", "created", "registered", "ready", "unready", "drain requested", "cordoned", "drained",
		"instance stopped", "node deleted", "secret deleted", "instance deleted", "removed"}, points)
	require.Contains(t, p.mustCLI("explain", "node/"+sick), "Its life")
}

// The end of a backoff is shown, and a person can end it.
func TestABackoffIsShownWithItsEndAndEndedByHand(t *testing.T) {
	p := newProduct(t, "e2e-backoff", pool{Max: 1, Image: world.ImageExits, Register: "20s"})
	text, err := os.ReadFile(p.config)
	require.NoError(t, err)
	slow := strings.Replace(string(text), "backoff: {initial: 3s, max: 10s}", "backoff: {initial: 10m, max: 10m}", 1)
	require.NotEqual(t, string(text), slow)
	require.NoError(t, os.WriteFile(p.config, []byte(slow), 0o600))
	ns := namespace(t, "e2e-backoff")
	p.start()
	deployment(t, ns, "web", p.cluster, 1, "100m")
	for name, args := range map[string][]string{"status": {"status"}, "explain": {"explain", "burst"}} {
		eventually(t, 60*time.Second, name+" shows the backoff and its end", func() error {
			if out := strings.Join(strings.Fields(p.mustCLI(args...)), " "); !strings.Contains(out, "backing off until ") || !strings.Contains(out, "lifts by itself at ") {
				return fmt.Errorf("it says %s", out)
			}
			return nil
		})
	}
	claims := len(p.history(events.TypeNodeClaimed))
	never(t, 3*time.Second, "another claim", func() bool { return len(p.history(events.TypeNodeClaimed)) > claims })
	p.mustCLI("pool", "reset-backoff", "burst", "--reason", "the image is repaired")
	eventually(t, 30*time.Second, "the pool tries again", func() error {
		if n := len(p.history(events.TypeNodeClaimed)); n <= claims {
			return fmt.Errorf("%d claims", n)
		}
		return nil
	})
	reset := payloads[events.PoolBackoffReset](t, p)
	require.Len(t, reset, 1)
	require.Equal(t, "the image is repaired", reset[0].Reason)
}

// hang stops the agent of a machine, which runs on as far as the engine knows.
func hang(t *testing.T, name string) {
	t.Helper()
	c, err := engine.ContainerInspect(context.Background(), name)
	require.NoError(t, err)
	parent := fmt.Sprintf("PPid:\t%d\n", c.State.Pid) // the init that the engine puts before it
	found, err := filepath.Glob("/proc/[0-9]*/status")
	require.NoError(t, err)
	stopped := 0
	for _, file := range found {
		status, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(status), parent) {
			continue // another's, or gone
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		stopped++
	}
	require.Positive(t, stopped, "the agent of %s was not found", name)
}

// explained is what explain knows of a subject.
func explained(t *testing.T, p *product, subject string) api.Explanation {
	t.Helper()
	var x api.Explanation
	require.NoError(t, json.Unmarshal([]byte(p.mustCLI("explain", subject, "-o", "json")), &x))
	return x
}

// lineOf is the line of a table about a name.
func lineOf(table, name string) string {
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, name+" ") {
			return line
		}
	}
	return ""
}

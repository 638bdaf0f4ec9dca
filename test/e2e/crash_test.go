//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	eventtypes "github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// parallelLives is how many crash lives run at once.
const parallelLives = 4

// f. Killed at every step from claim to Ready and from cordon to removal, the
// product finishes its work after a restart: one container for the claim,
// nothing twice in the audit.
func TestKilledAtEveryStepTheWorkIsFinishedOnce(t *testing.T) {
	steps := recordSteps(t)
	t.Logf("%d steps", len(steps))
	for _, expected := range []string{
		"provisioning/create/before", "provisioning/create/after", "provisioning/start/before", "provisioning/start/after",
		"provisioning/stop/before", "provisioning/stop/after", "provisioning/delete-node/before", "provisioning/delete-node/after",
		"provisioning/delete-secret/before", "provisioning/delete-secret/after", "provisioning/delete-machine/before", "provisioning/delete-machine/after",
		"draining/cordon/before", "draining/cordon/after", "draining/evict/before", "draining/evict/after",
		"provisioning/write/before", "provisioning/write/after", "draining/write/before", "draining/write/after",
		"provisioning/created/write/before", "provisioning/created/write/after", "provisioning/created/publish/after",
		"provisioning/instance-deleted/write/before", "provisioning/instance-deleted/publish/after",
		"draining/cordoned/write/before", "draining/emptied/write/before", "draining/emptied/publish/after",
	} {
		require.Contains(t, steps, expected, "a normal life passes this step")
	}
	var mu sync.Mutex
	hit, quick := 0, 0
	t.Run("lives", func(t *testing.T) {
		for i, step := range steps {
			t.Run(step, func(t *testing.T) {
				t.Parallel()
				l := newLife(t, fmt.Sprintf("e2e-f%d", i), step)
				l.live()
				mark, err := os.ReadFile(l.mark)
				if chancy(step) && os.IsNotExist(err) {
					t.Logf("this life was too quick for the step, as it may be")
					mu.Lock()
					quick++
					mu.Unlock()
					return
				}
				require.NoError(t, err, "the product was not killed at this step")
				require.Equal(t, step+"\n", string(mark))
				mu.Lock()
				hit++
				mu.Unlock()
			})
		}
	})
	t.Logf("killed at %d of %d steps, %d lives had no such step", hit, len(steps), quick)
	require.Equal(t, len(steps), hit+quick)
}

// chancy reports whether a life passes the step only if it takes long: a look at
// what has not come yet.
func chancy(step string) bool {
	return slices.ContainsFunc([]string{"/inspect/", "/list/", "draining/look/", "draining/gone/"},
		func(part string) bool { return strings.Contains(step, part) })
}

// recordSteps lives one life undisturbed and returns the steps that it passed.
func recordSteps(t *testing.T) []string {
	t.Helper()
	l := newLife(t, "e2e-f", "")
	l.live()
	b, err := os.ReadFile(l.steps)
	require.NoError(t, err)
	var out []string
	for _, s := range strings.Fields(string(b)) {
		if handler, _, _ := strings.Cut(s, "/"); (handler == events.HandlerProvisioning || handler == events.HandlerDraining) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// life is one node from a request to its removal.
type life struct {
	t           *testing.T
	p           *product
	mark, steps string
	environ     []string
}

func newLife(t *testing.T, cluster, crashAt string) *life {
	p := newProduct(t, cluster, pool{Max: 1, Unneeded: "1h"})
	l := &life{t: t, p: p, mark: filepath.Join(p.dir, "mark"), steps: filepath.Join(p.dir, "steps")}
	l.environ = []string{"K3S_AUTOSCALER_CRASH_AT=" + crashAt, "K3S_AUTOSCALER_CRASH_MARK=" + l.mark, "K3S_AUTOSCALER_STEPS=" + l.steps}
	return l
}

// alive restarts the product if it was killed, without the crash.
func (l *life) alive() {
	l.t.Helper()
	if l.p.cmd != nil {
		select {
		case <-l.p.exited:
			l.p.cmd = nil
			l.p.log.Close()
		default:
			return
		}
		_, err := os.Stat(l.mark)
		require.NoError(l.t, err, "the product ended by itself")
		l.p.startEnv(nil)
		return
	}
	l.p.startEnv(l.environ)
}

// until repeats an act until check succeeds, through crash and restart. The
// acts are idempotent, as those of a person who saw the connection break.
func (l *life) until(what string, act []string, check func() error) {
	l.t.Helper()
	acted := len(act) == 0
	eventually(l.t, 120*time.Second, what, func() error {
		l.alive()
		if !acted {
			if out, errOut, err := l.p.cli(act...); err != nil {
				return fmt.Errorf("%s: %s%s", strings.Join(act, " "), out, errOut)
			}
			acted = true
		}
		return check()
	})
}

func (l *life) live() {
	t, p := l.t, l.p
	ns := namespace(t, p.cluster)
	started := containerActions(t, p.cluster, "start")
	// A selector on a label that numbers pods is not simulated, so that the pod
	// asks for no node: once evicted, it pends and starts no second life.
	deployment(t, ns, "web", p.cluster, 1, "100m", func(s *corev1.PodSpec) {
		s.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{appsv1.PodIndexLabel: "0"}}, TopologyKey: corev1.LabelHostname,
		}}}}
	})
	l.alive()
	l.until("one node is Ready", []string{"scale", "to", "--pool", "burst", "--count", "1", "--reason", "a life"}, readyNodes(t, p, 1))
	l.until("its pod runs", nil, func() error {
		if len(running(t, ns, "web")) != 1 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	names, _ := ourNodes(t, p.cluster)
	node := names[0]
	l.until("it is recorded as Ready", nil, func() error { return l.audited(events.TypeNodeReady) })
	l.until("it is gone", []string{"remove", node, "--reason", "the end of a life"}, readyNodes(t, p, 0))
	l.until("its removal is recorded", nil, func() error { return l.audited(events.TypeNodeRemoved) })
	assertGone(t, p, node)
	require.Empty(t, containers(t, p.cluster))

	starts := started()
	require.Len(t, starts, 1, "containers started for the claim: %v", starts)
	counts, ids := map[string]int{}, map[string]bool{}
	for _, e := range p.history("") {
		require.False(t, ids[e.ID()], "event %s (%s) is audited twice", e.ID(), e.Type())
		ids[e.ID()] = true
		short := strings.TrimSuffix(strings.TrimPrefix(e.Type(), events.TypePrefix), ".v1")
		if s, err := events.Decode[events.NodeRemovalProgressed](e); err == nil {
			short += " " + s.Step
		}
		counts[short]++
	}
	for _, once := range []string{
		"node.claimed", "node.created", "node.registered", "node.ready", "node.drain.requested", "node.cordoned", "node.drain.progressed", "node.drained",
		"node.removal.progressed instance-stopped", "node.removal.progressed node-deleted", "node.removal.progressed secret-deleted",
		"node.removal.progressed instance-deleted", "node.removed",
	} {
		require.Equal(t, 1, counts[once], "%s in the audit: %v", once, counts)
	}
	for _, none := range []string{"node.failed", "node.lost", "node.uncordoned", "node.unready", "deadletter.recorded"} {
		require.Zero(t, counts[none], "%s in the audit: %v", none, counts)
	}
}

func (l *life) audited(eventType string) error {
	list, err := l.p.audited(eventType)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("no %s is audited", eventType)
	}
	return err
}

// containerActions returns what lists the ids of the cluster's containers to
// which an action ("create", "start", "destroy") happened since, by the engine's
// own account.
func containerActions(t *testing.T, cluster, action string) func() []string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	messages, errs := engine.Events(ctx, eventtypes.ListOptions{Filters: filters.NewArgs(
		filters.Arg("type", "container"), filters.Arg("event", action), filters.Arg("label", events.LabelCluster+"="+cluster))})
	var mu sync.Mutex
	var ids []string
	go func() {
		for {
			select {
			case m := <-messages:
				mu.Lock()
				ids = append(ids, m.Actor.ID)
				mu.Unlock()
			case err := <-errs:
				if ctx.Err() == nil {
					t.Errorf("the engine's events broke off, so a %s may have been missed: %v", action, err)
				}
				return
			}
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(ids)
	}
}

//go:build e2e

package live

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

const barrierNamespace = "fit-barrier"

// settle waits until the cluster has come to rest: the controllers have done what
// there is to do, and the scheduler would do nothing more.
//
// That its queue holds nothing but pods that it refused does not say so alone: it
// may not have heard of the last change. So a pod is sent after it that no node
// takes. The scheduler looks at one pod at a time, and hears of them in order:
// when it has refused this one, it has heard of all pods before, has ended its
// work with each, and its message counts the nodes that it knows. If there is
// still nothing to do then, and no pod has changed, that was all.
func (k *cluster) settle(ctx context.Context) error {
	var why error
	err := eventually(ctx, "the cluster comes to rest", func() (bool, error) {
		var before, after string
		if before, why = k.rest(ctx); why != nil {
			return false, nil
		}
		if why = k.barrier(ctx); why != nil {
			return false, why
		}
		after, why = k.rest(ctx)
		return why == nil && before == after, nil
	})
	if err != nil && why != nil {
		return fmt.Errorf("%w: %w", err, why)
	}
	return err
}

// rest returns what the pods are like, or what is still to be done. It does what
// the parts do that are not there.
func (k *cluster) rest(ctx context.Context) (string, error) {
	now, err := k.see(ctx)
	if err != nil {
		return "", err
	}
	if busy, err := k.steps(ctx, now); err != nil {
		return "", err
	} else if busy != "" {
		return "", fmt.Errorf("a step was to be taken: %s", busy)
	}
	if missing := unfinished(now); missing != "" {
		return "", fmt.Errorf("a controller is at work: %s", missing)
	}
	queued, working, err := k.queue(ctx)
	if err != nil {
		return "", err
	}
	waiting := 0
	var state strings.Builder
	for _, p := range now.Pods {
		fmt.Fprintln(&state, fit.Ref(p), p.UID, p.Spec.NodeName, p.Status.NominatedNodeName, p.DeletionTimestamp != nil)
		if p.Spec.NodeName != "" || p.Spec.SchedulerName != corev1.DefaultSchedulerName {
			continue
		}
		waiting++
		if n := p.Status.NominatedNodeName; n != "" && !slices.ContainsFunc(now.Pods, func(v *corev1.Pod) bool {
			return v.Spec.NodeName == n && v.DeletionTimestamp != nil
		}) {
			return "", fmt.Errorf("pod %s is nominated for node %s, where nothing terminates", fit.Ref(p), n)
		}
	}
	if working > 0 || queued != waiting {
		return "", fmt.Errorf("the scheduler has refused %d pods and looks at %d, %d wait", queued, working, waiting)
	}
	return state.String(), nil
}

// queue returns how many pods the scheduler has put aside, and how many it will
// look at without being told anything.
func (k *cluster) queue(ctx context.Context) (aside, next int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.metrics, nil)
	if err != nil {
		return 0, 0, err
	}
	response, err := k.http.Do(request)
	if err != nil {
		return 0, 0, err
	}
	defer response.Body.Close()
	found := 0
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), `scheduler_pending_pods{queue="`)
		if !ok {
			continue
		}
		queue, value, _ := strings.Cut(rest, `"} `)
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("metric of queue %s: %w", queue, err)
		}
		found++
		switch queue {
		case "unschedulable", "gated":
			aside += int(n)
		default:
			next += int(n)
		}
	}
	if found < 4 {
		return 0, 0, fmt.Errorf("the scheduler shows %d queues, expected 4 (%s)", found, response.Status)
	}
	return aside, next, lines.Err()
}

// barrier returns when the scheduler has refused a pod that was created now, with
// all nodes in view.
func (k *cluster) barrier(ctx context.Context) error {
	k.barriers++
	pods := k.CoreV1().Pods(barrierNamespace)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("barrier-%d", k.barriers)},
		Spec: corev1.PodSpec{NodeSelector: map[string]string{"example.com/no": "node"}, Containers: []corev1.Container{{Name: "main"}}}}
	if err := k.admit(ctx, &p.Spec); err != nil {
		return err
	}
	var nodes []*corev1.Node
	err := list(
		func() error {
			if _, err := pods.Create(ctx, p, metav1.CreateOptions{}); err != nil {
				return fmt.Errorf("create the barrier: %w", err)
			}
			return nil
		},
		into(ctx, &nodes, k.CoreV1().Nodes().List, func(l *corev1.NodeList) []corev1.Node { return l.Items }))
	if err != nil {
		return err
	}
	want, seen := fmt.Sprintf("0/%d nodes are available", len(nodes)), ""
	err = eventually(ctx, "the scheduler refuses the barrier", func() (bool, error) {
		p, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				seen = c.Message
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	if err := pods.Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete the barrier: %w", err)
	}
	// With no node at all it says so in other words.
	if !strings.HasPrefix(seen, want) && len(nodes) > 0 {
		return fmt.Errorf("the scheduler said %q, expected %q", seen, want)
	}
	return nil
}

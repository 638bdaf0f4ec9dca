//go:build e2e

package live

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

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
// work with each, and its message counts the nodes that it knows, by what keeps
// the pod off them. If there is still nothing to do then, and no pod has changed,
// that was all. Changes of volumes and claims may come later than those of pods and
// nodes; to be sure of them it is asked twice.
func (k *cluster) settle(ctx context.Context) error {
	var last error
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := k.eventually(ctx, "the cluster comes to rest", func() (bool, error) {
		var before, after string
		for i := range 3 {
			if after, last = k.rest(ctx); last != nil || i > 0 && after != before {
				return false, nil
			}
			if before = after; i < 2 {
				if last = k.barrier(ctx); last != nil {
					return false, nil
				}
			}
		}
		// Another barrier would give it something to do again.
		for after == before {
			if last = k.idle(ctx); last == nil {
				return true, nil
			}
			select {
			case <-ctx.Done():
				return false, ctx.Err()
			case <-time.After(10 * time.Millisecond):
			}
			if after, last = k.rest(ctx); last != nil {
				return false, nil
			}
		}
		return false, nil
	})
	if err != nil && last != nil {
		return fmt.Errorf("%w: %w", err, last)
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
	var state strings.Builder
	for _, p := range now.Pods {
		if k.leaving[fit.Ref(p)] && p.DeletionTimestamp == nil {
			return "", fmt.Errorf("pod %s was to end, and does not yet", fit.Ref(p))
		}
		fmt.Fprintln(&state, fit.Ref(p), p.UID, p.Spec.NodeName, p.Status.NominatedNodeName, p.DeletionTimestamp != nil)
	}
	return state.String(), nil
}

// idle returns what the scheduler has still to do after the last barrier, or nothing.
func (k *cluster) idle(ctx context.Context) error {
	now, err := k.see(ctx)
	if err != nil {
		return err
	}
	if len(now.Nodes) == 0 { // it tries again and again then, but what for?
		return nil
	}
	waiting := 1 // the barrier
	for _, p := range now.Pods {
		if p.Spec.NodeName == "" && p.Spec.SchedulerName == corev1.DefaultSchedulerName {
			waiting++
		}
	}
	q, err := k.queue(ctx)
	if err != nil {
		return err
	}
	if q.next > 0 || q.aside != waiting || q.preempting > 0 {
		return fmt.Errorf("the scheduler has refused %d of %d pods that wait, looks at %d, and makes room for %d", q.aside, waiting, q.next, q.preempting)
	}
	return nil
}

// queue is what the scheduler has to do.
type queue struct {
	aside      int // pods that it has refused, or that are gated
	next       int // pods that it will look at without being told anything
	preempting int // pods for which it is still telling others to go
}

// queue asks the scheduler.
func (k *cluster) queue(ctx context.Context) (queue, error) {
	var q queue
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.metrics, nil)
	if err != nil {
		return q, err
	}
	response, err := k.http.Do(request)
	if err != nil {
		return q, err
	}
	defer response.Body.Close()
	found := 0
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || !strings.HasPrefix(name, "scheduler_p") {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue // a comment, or one that is of no interest here
		}
		switch metric, _, _ := strings.Cut(name, "{"); metric {
		case "scheduler_pending_pods":
			found++
			if strings.Contains(name, `"unschedulable"`) || strings.Contains(name, `"gated"`) {
				q.aside += int(n)
			} else {
				q.next += int(n)
			}
		// A preemption is decided, and carried out beside.
		case "scheduler_preemption_victims_count":
			q.preempting += int(n)
		case "scheduler_preemption_goroutines_execution_total":
			q.preempting -= int(n)
		}
	}
	if found < 4 {
		return q, fmt.Errorf("the scheduler shows %d queues, expected 4 (%s)", found, response.Status)
	}
	return q, lines.Err()
}

// barrier returns when the scheduler has refused a pod that was created now, with
// all nodes in view. The pod stays until the next one, so that the scheduler's queue
// holds it for sure, and none of those before.
func (k *cluster) barrier(ctx context.Context) error {
	now, err := k.see(ctx)
	if err != nil {
		return err
	}
	pods, zero := k.CoreV1().Pods(barrierNamespace), int64(0)
	if k.barriers > 0 {
		if err := gone(pods.Delete(ctx, barrierName(k.barriers), metav1.DeleteOptions{GracePeriodSeconds: &zero})); err != nil {
			return fmt.Errorf("delete the last barrier: %w", err)
		}
	}
	k.barriers++
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: barrierName(k.barriers)},
		Spec: corev1.PodSpec{NodeSelector: map[string]string{"example.com/no": "node"}, Containers: []corev1.Container{{Name: "main"}}}}
	if err := k.admit(ctx, &p.Spec); err != nil {
		return err
	}
	if p, err = pods.Create(ctx, p, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create the barrier: %w", err)
	}
	said := ""
	if err := k.eventually(ctx, "the scheduler refuses the barrier", func() (bool, error) {
		o, there, err := k.view.pods.GetByKey(keyOf(p))
		if err != nil || !there {
			return false, err
		}
		for _, c := range o.(*corev1.Pod).Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				said = c.Message
			}
		}
		return said != "", nil
	}); err != nil {
		return err
	}
	// With no node at all it says so in other words.
	if want, got := viewOf(now.Nodes), readRefusal(said); len(now.Nodes) > 0 && got != want {
		return fmt.Errorf("the scheduler knows of %+v, there are %+v: %s", got, want, said)
	}
	return nil
}

func barrierName(i int) string { return fmt.Sprintf("barrier-%d", i) }

// nodesSeen is how many nodes there are, and what keeps a pod off them that
// tolerates nothing.
type nodesSeen struct{ all, cordoned, tainted int }

func viewOf(nodes []*corev1.Node) nodesSeen {
	out := nodesSeen{all: len(nodes)}
	for _, n := range nodes {
		switch {
		case n.Spec.Unschedulable:
			out.cordoned++
		case !fit.Tolerates(&corev1.Pod{}, n):
			out.tainted++
		}
	}
	return out
}

// readRefusal reads "0/3 nodes are available: 1 node(s) had untolerated taint(s), …".
func readRefusal(said string) nodesSeen {
	var out nodesSeen
	nodes, reasons, _ := strings.Cut(said, " nodes are available: ")
	_, all, _ := strings.Cut(nodes, "/")
	out.all, _ = strconv.Atoi(all)
	reasons, _, _ = strings.Cut(reasons, ". ")
	for reason := range strings.SplitSeq(reasons, ", ") {
		count, why, _ := strings.Cut(reason, " ")
		n, _ := strconv.Atoi(count)
		switch {
		case strings.Contains(why, "unschedulable"):
			out.cordoned += n
		case strings.Contains(why, "untolerated taint"):
			out.tainted += n
		}
	}
	return out
}

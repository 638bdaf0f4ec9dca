package draining

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

var errAPI = errors.New("the API server does not answer")

// world is one cluster in memory: nodes, pods, budgets, and what was done to
// them.
type world struct {
	mu    sync.Mutex
	nodes map[string]*worldNode
	pods  []*worldPod
	// evicted, in the order in which the evictions were accepted.
	evicted            []string
	cordons, uncordons int // that changed something
	budgets            []Budget
	// fail is asked before each call, e.g. "cordon" or "evict default/web-1"; its
	// error is the call's.
	fail func(call string) error
	// hang is asked before that, without the world's lock, and may take its time.
	hang func(ctx context.Context, call string)
	// onPods runs after each listing, e.g. to bring a pod in behind it.
	onPods func(w *world)
}

type worldNode struct {
	claim         string
	unschedulable bool
	unready       bool
	cordonedBy    string
}

type worldPod struct {
	Pod
	node     string
	budget   string // "namespace/name" of a budget that allows nothing; "" allows all
	lingers  bool   // an accepted eviction leaves it terminating
	noBudget bool   // refused without a budget's name
}

func newWorld() *world {
	return &world{nodes: map[string]*worldNode{testNode: {claim: testClaim}}}
}

func (w *world) change(f func(w *world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

func (w *world) node(name string) worldNode {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nodes[name]; n != nil {
		return *n
	}
	return worldNode{}
}

func (w *world) pod(ref string) *worldPod {
	for _, p := range w.pods {
		if p.Ref() == ref {
			return p
		}
	}
	return nil
}

func (w *world) refs() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, p := range w.pods {
		out = append(out, p.Ref())
	}
	return out
}

func (w *world) evictions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.evicted)
}

func (w *world) acts() (cordons, uncordons, evictions int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cordons, w.uncordons, len(w.evicted)
}

// enter is how every call begins: with the lock held, unless it fails.
func (w *world) enter(ctx context.Context, call string) error {
	if w.hang != nil {
		w.hang(ctx, call)
	}
	w.mu.Lock()
	err := ctx.Err()
	if err == nil && w.fail != nil {
		err = w.fail(call)
	}
	if err != nil {
		w.mu.Unlock()
		return fmt.Errorf("%s: %w", call, err)
	}
	return nil
}

func (w *world) Node(ctx context.Context, name string) (Node, error) {
	if err := w.enter(ctx, "node"); err != nil {
		return Node{}, err
	}
	defer w.mu.Unlock()
	n := w.nodes[name]
	if n == nil {
		return Node{}, ErrNotFound
	}
	return Node{Name: name, ClaimID: n.claim, Ready: !n.unready}, nil
}

func (w *world) Cordon(ctx context.Context, name, request string) (bool, error) {
	if err := w.enter(ctx, "cordon"); err != nil {
		return false, err
	}
	defer w.mu.Unlock()
	n := w.nodes[name]
	switch {
	case n == nil:
		return false, ErrNotFound
	case n.unschedulable && n.cordonedBy == "":
		return false, nil
	case !n.unschedulable || n.cordonedBy != request:
		w.cordons++
		n.unschedulable, n.cordonedBy = true, request
	}
	return true, nil
}

func (w *world) Uncordon(ctx context.Context, name string, requests []string, anyone bool) error {
	if err := w.enter(ctx, "uncordon"); err != nil {
		return err
	}
	defer w.mu.Unlock()
	n := w.nodes[name]
	switch {
	case n == nil:
		return ErrNotFound
	case n.unschedulable && (anyone || n.cordonedBy != "" && slices.Contains(requests, n.cordonedBy)):
		w.uncordons++
		n.unschedulable, n.cordonedBy = false, ""
	}
	return nil
}

func (w *world) Pods(ctx context.Context, node string) ([]Pod, error) {
	if err := w.enter(ctx, "pods"); err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	var out []Pod
	for _, p := range w.pods {
		if p.node == node {
			out = append(out, p.Pod)
		}
	}
	if w.onPods != nil {
		w.onPods(w)
	}
	return out, nil
}

func (w *world) Budgets(ctx context.Context) ([]Budget, error) {
	if err := w.enter(ctx, "budgets"); err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	return slices.Clone(w.budgets), nil
}

func (w *world) Evict(ctx context.Context, p Pod) error {
	if err := w.enter(ctx, "evict "+p.Ref()); err != nil {
		return err
	}
	defer w.mu.Unlock()
	have := w.pod(p.Ref())
	switch {
	case have == nil || have.UID != p.UID:
		return ErrNotFound
	case have.noBudget:
		return &Blocked{Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."}
	case have.budget != "":
		return &Blocked{Budget: have.budget, Message: "The disruption budget web needs 6 healthy pods and has 6 currently"}
	case have.Deleting:
		return nil
	}
	w.evicted = append(w.evicted, p.Ref())
	if have.lingers {
		have.Deleting = true
		return nil
	}
	w.remove(p.Ref())
	return nil
}

func (w *world) remove(ref string) {
	w.pods = slices.DeleteFunc(w.pods, func(p *worldPod) bool { return p.Ref() == ref })
}

// add binds a pod of a ReplicaSet to the test's node.
func (w *world) add(namespace, name string, mod ...func(*worldPod)) {
	p := &worldPod{Pod: Pod{Namespace: namespace, Name: name, UID: "uid-" + name, OwnerKind: "ReplicaSet", Ready: true, Grace: time.Second}, node: testNode}
	if namespace == evictable.SystemNamespace { // it comes with k3s
		p.Labels = map[string]string{"k8s-app": "kube-dns"}
	}
	for _, m := range mod {
		m(p)
	}
	w.pods = append(w.pods, p)
}

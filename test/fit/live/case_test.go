//go:build e2e

package live

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

// maxRounds bounds how often the pool may grow for what the scheduler has put
// elsewhere than the simulation did.
const maxRounds = 6

// trial is one case in the cluster.
type trial struct {
	k        *cluster
	c        *fit.Case // as it was generated
	prefix   string
	records  []events.NodeRecord
	declined map[string]bool // placements that even the scheduler's framework refuses
	out      outcome
}

// outcome is how far the simulation and the scheduler agree on a case.
type outcome struct {
	fit.Outcome
	By []string // constraints that made a difference to the first decision
	// Outrun are promised pods that had a place when it was promised, and have none
	// since the scheduler came to others first.
	Outrun []string
	// Endless says that the last round still asked for nodes.
	Endless int
}

func (o *outcome) add(p outcome) {
	o.Add(p.Outcome)
	o.Endless += p.Endless
	o.Outrun = append(o.Outrun, p.Outrun...)
}

func prefixOf(seed uint64) string { return fmt.Sprintf("s%d-", seed) }

func newTrial(k *cluster, seed uint64) *trial {
	prefix := prefixOf(seed)
	c := fit.GenerateNamed(seed, prefix)
	t := &trial{k: k, c: c, prefix: prefix, declined: map[string]bool{}}
	for _, r := range c.Records {
		t.records = append(t.records, record(r.Pool, r.Name, r.ClaimID))
	}
	return t
}

// record is the record of a node that has been Ready for a minute.
func record(pool, node, claim string) events.NodeRecord {
	r := fit.Record(pool, node, claim)
	at := time.Now().UTC().Add(-time.Minute)
	r.Since, r.ClaimedAt, r.ReadyAt = at, at, at
	return r
}

// look is the cluster as decision sees it.
func (t *trial) look(ctx context.Context) (*fit.Case, error) {
	c, err := t.k.look(ctx)
	if err != nil {
		return nil, err
	}
	c.Seed, c.Has, c.Pools, c.Records = t.c.Seed, t.c.Has, t.c.Pools, t.records
	return c, nil
}

// run has the autoscaler decide, gives the nodes to the cluster, and looks again
// for as long as nodes come; then it looks at the pods that wait still.
func (t *trial) run(ctx context.Context) (outcome, error) {
	if err := t.k.create(ctx, t.c); err != nil {
		return t.out, fmt.Errorf("create the case: %w", err)
	}
	first, err := t.look(ctx)
	if err != nil {
		return t.out, err
	}
	if err := t.before(first); err != nil {
		return t.out, err
	}
	asked, promised := first.Waiting(), map[string]bool{}
	for t.out.Endless = 1; t.out.Rounds < maxRounds; t.out.Rounds++ {
		came, err := t.round(ctx, promised)
		if err != nil {
			return t.out, fmt.Errorf("round %d: %w", t.out.Rounds, err)
		}
		if !came {
			t.out.Endless = 0
			break
		}
	}
	err = t.judge(ctx, asked, promised) // which adds to the outcome
	return t.out, err
}

// before looks at the case as it is before anything is decided.
func (t *trial) before(c *fit.Case) error {
	t.out.Pods = len(c.Waiting())
	packed, fitted, err := fit.Pack(t.k.framework, c)
	if err != nil {
		return fmt.Errorf("first fit: %w", err)
	}
	t.out.Packed, t.out.Fitted = packed, fitted
	t.out.By, err = fit.DecidedBy(c)
	return err
}

// round is one decision and what becomes of it. It reports whether nodes came.
func (t *trial) round(ctx context.Context, promised map[string]bool) (came bool, err error) {
	c, err := t.look(ctx)
	if err != nil {
		return false, err
	}
	res, err := fit.Decide(c, t.out.Rounds)
	if err != nil {
		return false, fmt.Errorf("decide: %w", err)
	}
	refused, err := fit.Refusals(t.k.framework, c, res)
	if err != nil {
		return false, err
	}
	waiting := c.Waiting()
	for _, p := range res.Placements {
		if why, ok := refused[p.Pod]; ok {
			t.out.Refused = append(t.out.Refused, fmt.Sprintf("round %d: pod %s on node %s: %s", t.out.Rounds, p.Pod, p.Node, why))
			t.declined[p.Pod] = true
		}
		promised[p.Pod] = true
		if !slices.Contains(waiting, p.Pod) {
			t.out.Unasked = append(t.out.Unasked, fmt.Sprintf("round %d: pod %s waits for no node", t.out.Rounds, p.Pod))
		}
	}
	t.out.Placed += len(res.Placements)
	t.out.Nodes += len(res.Claims)
	if t.out.Rounds == 0 {
		t.out.First = len(res.Claims)
	}
	if t.k.held { // until the nodes are there, the nominated pods have got their room
		t.k.held = false
		if err := t.k.settle(ctx); err != nil {
			return false, err
		}
	}
	var nodes []*corev1.Node
	for _, claim := range res.Claims {
		i := slices.IndexFunc(t.c.Pools, func(p scaling.Pool) bool { return p.Name == claim.Pool })
		nodes = append(nodes, fit.NewNode(t.c.Pools[i], claim.Node, claim.ID))
		t.records = append(t.records, record(claim.Pool, claim.Node, claim.ID))
	}
	return len(nodes) > 0, t.k.join(ctx, nodes)
}

// join adds nodes, with the pods of DaemonSets before all others, and waits for
// what comes of it.
func (k *cluster) join(ctx context.Context, nodes []*corev1.Node) error {
	if len(nodes) == 0 {
		return nil
	}
	c, err := k.see(ctx)
	if err != nil {
		return err
	}
	daemons := slices.ContainsFunc(nodes, func(n *corev1.Node) bool { return len(c.DaemonPods(n)) > 0 })
	if err := all(nodes, func(n *corev1.Node) error { return k.createNode(ctx, n, daemons) }); err != nil {
		return err
	}
	if daemons {
		return k.open(ctx, nodes)
	}
	return k.settle(ctx)
}

// open uncordons the nodes once the pods of DaemonSets are there.
func (k *cluster) open(ctx context.Context, nodes []*corev1.Node) error {
	if err := k.settle(ctx); err != nil {
		return fmt.Errorf("the pods of DaemonSets: %w", err)
	}
	if err := all(nodes, func(n *corev1.Node) error {
		return k.changeNode(ctx, n.Name, func(n *corev1.Node) { n.Spec.Unschedulable = false })
	}); err != nil {
		return err
	}
	return k.settle(ctx)
}

// changeNode changes a node, whatever controllers do to it at the same time.
func (k *cluster) changeNode(ctx context.Context, name string, change func(*corev1.Node)) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		n, err := k.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(n)
		if n, err = k.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{}); err == nil {
			k.view.wrote(k.view.nodes, n)
		}
		return err
	})
}

func ofDaemonSet(p *corev1.Pod) bool {
	o := metav1.GetControllerOf(p)
	return o != nil && o.Kind == "DaemonSet"
}

// judge looks at the pods that wait at the end, or are gone.
func (t *trial) judge(ctx context.Context, asked []string, promised map[string]bool) error {
	c, err := t.look(ctx)
	if err != nil {
		return err
	}
	waiting := c.Waiting()
	t.out.Promised = len(promised)
	t.out.Rejected = len(waiting)
	var left, others []string // without a node though they were promised one; on a node since
	for _, ref := range slices.Sorted(maps.Keys(promised)) {
		if p := find(c, ref); p == nil || p.Spec.NodeName == "" {
			left = append(left, ref)
		}
	}
	t.out.Rejected -= len(left)
	for _, ref := range asked {
		if p := find(c, ref); p != nil && p.Spec.NodeName != "" {
			others = append(others, ref)
		}
	}
	fits, err := t.offer(ctx, c, waiting)
	if err != nil {
		return err
	}
	for _, ref := range waiting {
		if where := fits[ref]; where != "" {
			t.out.Wrong = append(t.out.Wrong, fmt.Sprintf("pod %s would fit on a node of %s", ref, where))
		}
	}
	for _, ref := range left {
		what := fmt.Sprintf("pod %s was promised a place: %s", ref, fate(c, ref))
		var by []string
		if fits[ref] == "" && !t.declined[ref] && slices.Contains(waiting, ref) {
			if by, err = fit.OutrunBy(t.k.framework, c, ref, others); err != nil {
				return err
			}
		}
		if len(by) > 0 {
			t.out.Outrun = append(t.out.Outrun, fmt.Sprintf("%s; the scheduler came first to %v", what, by))
		} else {
			t.out.Stranded = append(t.out.Stranded, what)
		}
	}
	return nil
}

// offer offers the pods a new node of each pool, and returns which of them would go
// on one, and of which pool.
func (t *trial) offer(ctx context.Context, c *fit.Case, pods []string) (map[string]string, error) {
	fits := map[string]string{}
	if len(pods) == 0 {
		return fits, nil
	}
	// The others don't try the new nodes. Those for which others made room keep it.
	var others []*corev1.Pod
	for _, p := range c.Pods {
		if p.Spec.NodeName == "" && p.Status.NominatedNodeName == "" && !slices.Contains(pods, fit.Ref(p)) {
			others = append(others, p)
		}
	}
	if err := all(others, func(p *corev1.Pod) error { return t.k.end(ctx, p) }); err != nil {
		return nil, err
	}
	for _, p := range t.c.Pools {
		if err := t.probe(ctx, p, pods, fits); err != nil {
			return nil, fmt.Errorf("probe %s: %w", p.Name, err)
		}
	}
	return fits, nil
}

// probe offers the pods a new node of the pool, and notes which of them go there. One
// that does makes room for the others to try.
func (t *trial) probe(ctx context.Context, p scaling.Pool, pods []string, fits map[string]string) error {
	for i := 0; len(fits) < len(pods); i++ {
		n := fit.NewNode(p, fmt.Sprintf("%sprobe-%s-%d", t.prefix, p.Name, i), "probe")
		if err := t.k.join(ctx, []*corev1.Node{n}); err != nil {
			return err
		}
		c, err := t.k.see(ctx)
		if err != nil {
			return err
		}
		came := false
		for _, pod := range c.Pods {
			if ref := fit.Ref(pod); pod.Spec.NodeName != "" && slices.Contains(pods, ref) && fits[ref] == "" {
				fits[ref] = p.Name
			}
		}
		if err := t.k.deleteNode(ctx, c, n.Name); err != nil {
			return err
		}
		for _, pod := range c.Pods {
			if pod.Spec.NodeName == n.Name {
				came = came || !ofDaemonSet(pod)
				if err := t.k.end(ctx, pod); err != nil {
					return err
				}
			}
		}
		if !came {
			return nil
		}
	}
	return nil
}

// fate is what the cluster says of a pod.
func fate(c *fit.Case, ref string) string {
	i := slices.IndexFunc(c.Pods, func(p *corev1.Pod) bool { return fit.Ref(p) == ref })
	if i < 0 {
		return "it is gone"
	}
	for _, k := range c.Pods[i].Status.Conditions {
		if k.Type == corev1.PodScheduled {
			return k.Message
		}
	}
	return "nobody has looked at it"
}

//go:build e2e

package live

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

// maxRounds bounds how often the pool may grow for what the scheduler has put
// elsewhere than the simulation did.
const maxRounds = 6

// trial is one case in the cluster.
type trial struct {
	k       *cluster
	s       *fit.Scheduler
	c       *fit.Case // as it was generated
	prefix  string
	records []events.NodeRecord
	out     outcome
}

// outcome is how far the simulation and the scheduler agree on a case.
type outcome struct {
	fit.Outcome
	By []string // constraints that made a difference to the first decision
}

func prefixOf(seed uint64) string { return fmt.Sprintf("s%d-", seed) }

func newTrial(k *cluster, s *fit.Scheduler, seed uint64) *trial {
	prefix := prefixOf(seed)
	c := fit.GenerateNamed(seed, prefix)
	t := &trial{k: k, s: s, c: c, prefix: prefix}
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
	stop := t.k.beat(ctx)
	defer stop()
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
	promised := map[string]bool{}
	for t.out.Rounds = 0; t.out.Rounds < maxRounds; t.out.Rounds++ {
		claims, err := t.round(ctx, promised)
		if err != nil {
			return t.out, fmt.Errorf("round %d: %w", t.out.Rounds, err)
		}
		if claims == 0 {
			break
		}
	}
	return t.out, t.judge(ctx, promised)
}

// before looks at the case as it is before anything is decided.
func (t *trial) before(c *fit.Case) error {
	t.out.Pods = len(c.Waiting())
	packed, fitted, err := fit.Pack(t.s, c)
	if err != nil {
		return fmt.Errorf("first fit: %w", err)
	}
	t.out.Packed, t.out.Fitted = packed, fitted
	t.out.By, err = fit.DecidedBy(c)
	return err
}

// round is one decision and what becomes of it.
func (t *trial) round(ctx context.Context, promised map[string]bool) (claims int, err error) {
	c, err := t.look(ctx)
	if err != nil {
		return 0, err
	}
	res, err := fit.Decide(c, t.out.Rounds)
	if err != nil {
		return 0, fmt.Errorf("decide: %w", err)
	}
	waiting := c.Waiting()
	for _, p := range res.Placements {
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
			return 0, err
		}
	}
	var nodes []*corev1.Node
	for _, claim := range res.Claims {
		i := slices.IndexFunc(t.c.Pools, func(p scaling.Pool) bool { return p.Name == claim.Pool })
		nodes = append(nodes, fit.NewNode(t.c.Pools[i], claim.Node, claim.ID))
		t.records = append(t.records, record(claim.Pool, claim.Node, claim.ID))
	}
	return len(nodes), t.k.join(ctx, nodes)
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
		if err := k.settle(ctx); err != nil {
			return fmt.Errorf("the pods of DaemonSets: %w", err)
		}
		patch := []byte(`{"spec":{"unschedulable":null}}`)
		if err := all(nodes, func(n *corev1.Node) error {
			_, err := k.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, patch, metav1.PatchOptions{})
			return err
		}); err != nil {
			return err
		}
	}
	return k.settle(ctx)
}

// judge looks at the pods that wait at the end.
func (t *trial) judge(ctx context.Context, promised map[string]bool) error {
	c, err := t.look(ctx)
	if err != nil {
		return err
	}
	waiting := c.Waiting()
	t.out.Promised = len(promised)
	for ref := range promised {
		if !slices.ContainsFunc(c.Pods, func(p *corev1.Pod) bool { return fit.Ref(p) == ref && p.Spec.NodeName != "" }) {
			t.out.Stranded = append(t.out.Stranded, fmt.Sprintf("pod %s was promised a place: %s", ref, fate(c, ref)))
		}
	}
	rejected := slices.DeleteFunc(waiting, func(ref string) bool { return promised[ref] })
	t.out.Rejected = len(rejected)
	if len(rejected) == 0 {
		return nil
	}
	// Only those that are said not to fit try the new nodes.
	var others []*corev1.Pod
	for _, p := range c.Pods {
		if p.Spec.NodeName == "" && !slices.Contains(rejected, fit.Ref(p)) {
			others = append(others, p)
		}
	}
	if err := all(others, func(p *corev1.Pod) error { return t.k.end(ctx, p) }); err != nil {
		return err
	}
	for _, p := range t.c.Pools {
		if rejected, err = t.probe(ctx, p, rejected); err != nil {
			return fmt.Errorf("probe %s: %w", p.Name, err)
		}
	}
	return nil
}

// probe offers the pods that don't fit anywhere a new node of the pool, and
// returns those of them that don't fit there either. One that does makes room
// for the others to try.
func (t *trial) probe(ctx context.Context, p scaling.Pool, rejected []string) ([]string, error) {
	for i := 0; len(rejected) > 0; i++ {
		n := fit.NewNode(p, fmt.Sprintf("%sprobe-%s-%d", t.prefix, p.Name, i), "probe")
		if err := t.k.join(ctx, []*corev1.Node{n}); err != nil {
			return nil, err
		}
		c, err := t.k.see(ctx)
		if err != nil {
			return nil, err
		}
		fits := 0
		for _, pod := range c.Pods {
			if ref := fit.Ref(pod); pod.Spec.NodeName != "" && slices.Contains(rejected, ref) {
				fits++
				t.out.Wrong = append(t.out.Wrong, fmt.Sprintf("pod %s would fit on a node of %s", ref, p.Name))
				rejected = slices.DeleteFunc(rejected, func(r string) bool { return r == ref })
			}
		}
		if err := t.k.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{}); err != nil {
			return nil, err
		}
		for _, pod := range c.Pods {
			if pod.Spec.NodeName == n.Name {
				if err := t.k.end(ctx, pod); err != nil {
					return nil, err
				}
			}
		}
		if fits == 0 {
			break
		}
	}
	return rejected, nil
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

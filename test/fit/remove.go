package fit

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// What nodes carry until they have started: as a pool says, or for any of them.
const (
	taintNetwork = "example.com/network"
	taintStartup = "startup-taint.cluster-autoscaler.kubernetes.io/driver"
)

// starting is a constraint that only removals are compared by: pods that wait are put
// on nodes that start, and wait for that.
var starting = Constraint{"startup taints", func(c *Case) {
	for _, n := range c.Nodes {
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taintNetwork || t.Key == taintStartup })
	}
	for i := range c.Pools {
		c.Pools[i].StartupTaints = nil
	}
}, 0.4}

// RemovalConstraints are those by which nodes go or stay.
func RemovalConstraints() []Constraint { return append(slices.Clone(Constraints), starting) }

// Removal is what removals of nodes do to the pods that were on them.
type Removal struct {
	Owned int // nodes that could be removed
	Nodes int // that were
	Moved int // pods that had to move, once for each order
	// Stranded are those that the scheduler has found no place for.
	Stranded []string
}

// Add adds up the removals of many cases.
func (r *Removal) Add(o Removal) {
	r.Owned += o.Owned
	r.Nodes += o.Nodes
	r.Moved += o.Moved
	r.Stranded = append(r.Stranded, o.Stranded...)
}

// Thin takes a share of the pods out of the case, so that nodes can be spared. Some of
// ours are about to start.
func Thin(c *Case, share float64) *Case {
	c = c.Clone()
	g := rand.New(rand.NewPCG(c.Seed, 2027))
	c.Pods = slices.DeleteFunc(c.Pods, func(p *corev1.Pod) bool {
		switch {
		case ofDaemonSet(p):
			return false
		case p.Spec.NodeName == "":
			return g.Float64() < 0.8
		}
		return g.Float64() < share
	})
	c.Has = maps.Clone(c.Has)
	c.Has[starting.Name] = g.Float64() < starting.share
	for i := range c.Pools {
		if c.Has[starting.Name] && g.Float64() < 0.5 {
			c.Pools[i].StartupTaints = []corev1.Taint{{Key: taintNetwork, Effect: corev1.TaintEffectNoSchedule}}
		}
	}
	for _, n := range c.Nodes {
		of := slices.IndexFunc(c.Pools, func(p scaling.Pool) bool { return p.Name == n.Labels[scaling.LabelPool] })
		if of < 0 || !c.Has[starting.Name] || g.Float64() > 0.4 {
			continue
		}
		taint := corev1.Taint{Key: taintStartup, Effect: corev1.TaintEffectNoSchedule}
		if len(c.Pools[of].StartupTaints) > 0 {
			taint = c.Pools[of].StartupTaints[0]
		}
		since := Now.Add(-time.Minute)
		if g.Float64() < 0.3 {
			since = Now.Add(-time.Hour)
		}
		n.Spec.Taints = append(n.Spec.Taints, taint)
		n.Status.Conditions[0].LastTransitionTime = metav1.NewTime(since)
	}
	return c
}

// Removals are the nodes that go when a person asks for as few as possible: the
// utilisation of nodes does not matter then, only whether their pods fit elsewhere.
func Removals(c *Case) ([]string, error) {
	o, err := c.Observe()
	if err != nil {
		return nil, err
	}
	now := c.now()
	policy := scaling.Policy{StaleAfter: time.Minute, MaxUnreadyFraction: 0.45, MaxUnreadyCount: 3}
	state := scaling.State{StartedAt: now.Add(-time.Hour)}
	for _, p := range c.Pools {
		p.MaxRemovals = 3
		policy.Pools = append(policy.Pools, p)
		state = state.Apply(now, scaling.Requested{Request: scaling.Request{ID: "fewer-" + p.Name, Action: scaling.ActionDown, Pool: p.Name, Count: p.Max,
			Actor: "test", Reason: "to compare"}})
	}
	var nodes []string
	for _, d := range scaling.Evaluate(now, policy, state, o, seedOf(c, 0)).Drains {
		nodes = append(nodes, d.Node)
	}
	slices.Sort(nodes)
	return nodes, nil
}

// Remove removes nodes and has the scheduler place the pods, in several orders. know
// returns the case as the simulation sees it.
func Remove(s *Scheduler, c *Case, know func(*Case) *Case, orders int) (Removal, error) {
	out := Removal{Owned: len(c.Records)}
	nodes, err := Removals(know(c))
	if err != nil {
		return out, fmt.Errorf("decide: %w", err)
	}
	out.Nodes = len(nodes)
	if len(nodes) == 0 {
		return out, nil
	}
	g := rand.New(rand.NewPCG(c.Seed, 2028))
	for range orders {
		after := c.Clone()
		moved := after.lose(nodes)
		if len(after.Nodes) == 0 {
			break
		}
		daemons := after.pending(ofDaemonSet)
		queue := slices.DeleteFunc(after.Queue(), func(ref string) bool { return slices.Contains(daemons, ref) })
		g.Shuffle(len(queue), func(i, j int) { queue[i], queue[j] = queue[j], queue[i] })
		if err := run(s, after, append(daemons, queue...)); err != nil {
			return out, err
		}
		out.Moved += len(moved)
		for _, ref := range moved {
			if p := after.pod(ref); p == nil {
				out.Stranded = append(out.Stranded, fmt.Sprintf("pod %s is pushed off without %v", ref, nodes))
			} else if p.Spec.NodeName == "" {
				out.Stranded = append(out.Stranded, fmt.Sprintf("pod %s has no place without %v", ref, nodes))
			}
		}
	}
	return out, nil
}

// lose takes the nodes out of the case, and returns the pods that have to find
// another place: expendable ones need none.
func (c *Case) lose(nodes []string) []string {
	var moved []string
	c.Nodes = slices.DeleteFunc(c.Nodes, func(n *corev1.Node) bool { return slices.Contains(nodes, n.Name) })
	c.Pods = slices.DeleteFunc(c.Pods, func(p *corev1.Pod) bool {
		on := p.Spec.NodeName
		if on == "" && ofDaemonSet(p) {
			return slices.ContainsFunc(nodes, func(n string) bool { return pinned(p, n) })
		}
		return slices.Contains(nodes, on) && (ofDaemonSet(p) || p.DeletionTimestamp != nil)
	})
	for _, p := range c.Pods {
		if !slices.Contains(nodes, p.Spec.NodeName) {
			continue
		}
		p.Spec.NodeName, p.Status.Phase = "", corev1.PodPending
		if *p.Spec.Priority > Expendable {
			moved = append(moved, Ref(p))
		}
	}
	return moved
}

// pinned reports whether the pod is the one that a DaemonSet has on the node.
func pinned(p *corev1.Pod, node string) bool {
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return false
	}
	for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range t.MatchFields {
			if f.Key == metav1.ObjectNameField && slices.Equal(f.Values, []string{node}) {
				return true
			}
		}
	}
	return false
}

// SparedBy returns the constraints that make a difference to which nodes go.
func SparedBy(c *Case) ([]string, error) {
	nodes, err := Removals(c)
	if err != nil {
		return nil, err
	}
	var by []string
	for _, k := range RemovalConstraints() {
		if !c.Has[k.Name] {
			continue
		}
		without, err := Removals(k.Stripped(c))
		if err != nil {
			return nil, err
		}
		if strings.Join(without, " ") != strings.Join(nodes, " ") {
			by = append(by, k.Name)
		}
	}
	return by, nil
}

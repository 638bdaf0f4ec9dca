package scaling

import (
	"slices"
)

// Scheduler puts pods on the nodes of an observation, for those who simulate a
// cluster. What fits is what decisions are based on; among the nodes that fit, a pod
// gets the one with the largest share of CPU and memory left, as the score of
// kube-scheduler's NodeResourcesFit (LeastAllocated, its default) has it, and of
// several the first by name. It preempts nobody.
type Scheduler struct {
	w     *world
	nodes []*simNode
	pods  map[string]*Pod
}

// NewScheduler reads an observation, which it leaves as it is.
func NewScheduler(o Observation) *Scheduler {
	s := &Scheduler{w: newWorld(o, State{}, Policy{}), pods: map[string]*Pod{}}
	for _, n := range s.w.order {
		if n.kind == kindReady {
			n.setTaints(slices.Concat(n.taints, n.startup))
			s.nodes = append(s.nodes, n)
		}
		s.w.attach(n)
	}
	for _, p := range s.w.pods {
		if p.Node == "" {
			s.pods[p.Ref()] = p
		}
	}
	return s
}

// Place puts a pod of the observation that is on no node, named by its Ref, on a
// node, and returns its name. The preferred node is taken if the pod fits there. ok is
// false when no node takes the pod, or there is no such pod.
func (s *Scheduler) Place(ref, preferred string) (node string, ok bool) {
	p := s.pods[ref]
	if p == nil {
		return "", false
	}
	c := s.w.classes[p.Class]
	if c == nil {
		return "", false
	}
	var best *simNode
	var most int64
	for _, n := range s.nodes {
		if !s.w.allowed(c, n) || !s.w.takes(c, n) {
			continue
		}
		if n.name == preferred {
			best = n
			break
		}
		if left := n.left(c); best == nil || left > most {
			best, most = n, left
		}
	}
	if best == nil {
		return "", false
	}
	s.w.occupy(c, best)
	delete(s.pods, ref)
	return best.name, true
}

// Daemons are the DaemonSets, "namespace/name", of which the node is to have a pod and
// has none yet. Their room is taken already.
func (s *Scheduler) Daemons(node string) []string {
	var out []string
	if n := s.w.nodes[node]; n != nil {
		for _, d := range n.daemons {
			out = append(out, d.Namespace+"/"+d.Name)
		}
	}
	return out
}

// left is the sum of the shares of CPU and memory, in thousandths, that are left of
// the node with a pod of the class on it.
func (n *simNode) left(c *PodClass) int64 {
	free := n.unused()
	return permille(free.CPUMilli-c.Requests.CPUMilli, n.alloc.CPUMilli) + permille(free.MemoryBytes-c.Requests.MemoryBytes, n.alloc.MemoryBytes)
}

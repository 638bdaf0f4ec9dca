package scaling

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// spreadKey tells spread constraints apart that count differently.
type spreadKey struct {
	Namespace          string
	Key                string
	Keys               []string
	Selector           *metav1.LabelSelector
	HonorTaints        bool
	IgnoreNodeAffinity bool
	NodeSelector       map[string]string
	NodeAffinity       []corev1.NodeSelectorTerm
	Tolerations        []corev1.Toleration
}

// spread counts the pods of a topology spread constraint by domain, with the
// lowest count at hand.
type spread struct {
	spreadKey
	*topologyKey
	index   int // in the list of all
	pods    podSelector
	class   *PodClass // one whose nodes count
	domains []domain  // by number; without nodes it is none
	live    int       // domains with nodes
	levels  []int     // how many domains have so many pods
	lowest  int
	// promised are the classes with pods that were put on nodes to come, and how
	// many pods each domain must have then; see upsets.
	promised map[*PodClass]int
}

type domain struct{ nodes, pods int }

func (t *topology) spreadOf(key spreadKey, c *PodClass, s SpreadConstraint) *spread {
	name := fingerprint(key)
	if sp, ok := t.spreads[name]; ok {
		return sp
	}
	sp := &spread{spreadKey: key, topologyKey: t.key(key.Key), index: len(t.spreadList), class: c,
		pods: podSelector{{own: c.Namespace, pods: selectorOf(s.Selector)}}}
	t.spreads[name] = sp
	t.spreadList = append(t.spreadList, sp)
	return sp
}

// over reports whether the node is one of those over which pods are spread:
// it has every topology key of the pod and is not left out by the pod's node
// affinity or, where asked, its tolerations.
func (s *spread) over(w *world, n *simNode) bool {
	m := n.memoOf(s.class)
	if m == nil {
		return s.judge(w, n)
	}
	return recall(&m.spread, s.index, len(w.topology.spreadList), func() bool { return s.judge(w, n) })
}

func (s *spread) judge(w *world, n *simNode) bool {
	for _, k := range s.Keys {
		if _, ok := n.labels[k]; !ok {
			return false
		}
	}
	if !s.IgnoreNodeAffinity && w.affine(s.class, n) != nil {
		return false
	}
	return !s.HonorTaints || untolerated(s.class, n) == nil
}

func (s *spread) enter(w *world, n *simNode) {
	n.counts[s.index] = s.over(w, n)
	if !n.counts[s.index] {
		return
	}
	s.domains = atLeast(s.domains, n.domains[s.number]+1)
	d := &s.domains[n.domains[s.number]]
	if d.nodes == 0 {
		s.live++
		s.level(0, 1)
	}
	d.nodes++
	s.settle(d.pods)
}

func (s *spread) leave(n *simNode) {
	if !n.counts[s.index] {
		return
	}
	n.counts[s.index] = false
	d := &s.domains[n.domains[s.number]]
	if d.nodes--; d.nodes == 0 {
		s.live--
		s.level(d.pods, -1)
		*d = domain{}
	}
	s.settle(s.lowest)
}

func (s *spread) count(n *simNode, by int) {
	if !n.counts[s.index] {
		return
	}
	d := &s.domains[n.domains[s.number]]
	s.level(d.pods, -1)
	d.pods += by
	s.level(d.pods, 1)
	s.settle(d.pods)
}

// level notes that a domain more, or less, has so many pods.
func (s *spread) level(pods, by int) {
	s.levels = atLeast(s.levels, pods+1)
	s.levels[pods] += by
}

// settle finds the lowest count again after a domain has changed to so many.
func (s *spread) settle(changed int) {
	s.lowest = min(s.lowest, changed)
	if s.live == 0 {
		s.lowest = 0
		return
	}
	for s.levels[s.lowest] == 0 {
		s.lowest++
	}
}

// here is the node's domain, whether the node counts in it or not; nil: none.
func (s *spread) here(n *simNode) *domain {
	number := n.domains[s.number]
	if number == noDomain || number >= len(s.domains) || s.domains[number].nodes == 0 {
		return nil
	}
	return &s.domains[number]
}

// skew is how far the node's domain would be above the lowest with a pod more.
// A node that is in no domain of the constraint counts as an empty one, as in
// the PodTopologySpread plugin.
func (r spreadRule) skew(n *simNode) int {
	lowest, here := r.lowest, 0
	if r.live < r.minDomains {
		lowest = 0
	}
	if d := r.here(n); d != nil {
		here = d.pods
	}
	return here + r.self - lowest
}

func requiresValue(r labels.Requirement) bool {
	switch r.Operator() {
	case selection.Equals, selection.DoubleEquals, selection.In:
		return true
	}
	return false
}

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
	pods    podSelector
	class   *PodClass // one whose nodes count
	at      map[*simNode]*domain
	domains map[string]*domain
	levels  map[int]int // how many domains have so many pods
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
	sp := &spread{spreadKey: key, class: c, pods: podSelector{{own: c.Namespace, pods: selectorOf(s.Selector)}},
		at: map[*simNode]*domain{}, domains: map[string]*domain{}, levels: map[int]int{}}
	t.spreads[name] = sp
	t.spreadList = append(t.spreadList, sp)
	return sp
}

// counts reports whether the node is one of those over which pods are spread:
// it has every topology key of the pod and is not left out by the pod's node
// affinity or, where asked, its tolerations.
func (s *spread) counts(w *world, n *simNode) bool {
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
	if !s.counts(w, n) {
		return
	}
	v := n.labels[s.Key]
	d := s.domains[v]
	if d == nil {
		d = &domain{}
		s.domains[v] = d
		s.levels[0]++
	}
	d.nodes++
	s.at[n] = d
	s.settle(d.pods)
}

func (s *spread) leave(n *simNode) {
	d := s.at[n]
	if d == nil {
		return
	}
	delete(s.at, n)
	if d.nodes--; d.nodes == 0 {
		s.levels[d.pods]--
		delete(s.domains, n.labels[s.Key])
	}
	s.settle(s.lowest)
}

func (s *spread) count(n *simNode, by int) {
	d := s.at[n]
	if d == nil {
		return
	}
	s.levels[d.pods]--
	d.pods += by
	s.levels[d.pods]++
	s.settle(d.pods)
}

// settle finds the lowest count again after a domain has changed to so many.
func (s *spread) settle(changed int) {
	s.lowest = min(s.lowest, changed)
	if len(s.domains) == 0 {
		s.lowest = 0
		return
	}
	for s.levels[s.lowest] == 0 {
		s.lowest++
	}
}

// skew is how far the node's domain would be above the lowest with a pod more.
// A node that is in no domain of the constraint counts as an empty one, as in
// the PodTopologySpread plugin.
func (r spreadRule) skew(n *simNode) int {
	lowest, here := r.lowest, 0
	if len(r.domains) < r.minDomains {
		lowest = 0
	}
	if d := r.domains[n.labels[r.Key]]; d != nil {
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

package scaling

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KindNamespace is the kind of namespaces in Observation.Freshness. Without
// them a class that selects namespaces by their labels is not simulated.
const KindNamespace = "namespace"

// PodTerm is one required term of a pod's affinity or anti-affinity to other
// pods. A nil selector selects nothing, an empty one everything.
type PodTerm struct {
	TopologyKey string
	Selector    *metav1.LabelSelector
	// Namespaces and NamespaceSelector together say where the other pods live;
	// with neither it is the pod's own namespace.
	Namespaces        []string
	NamespaceSelector *metav1.LabelSelector
}

// SpreadConstraint is a topology spread constraint whose whenUnsatisfiable is
// DoNotSchedule. It looks at pods of the pod's own namespace.
type SpreadConstraint struct {
	TopologyKey string
	MaxSkew     int32
	MinDomains  int32 // 0: 1, as the API's default
	Selector    *metav1.LabelSelector
	// IgnoreNodeAffinity counts nodes that the pod's node selector and affinity
	// exclude (nodeAffinityPolicy: Ignore), HonorTaints leaves out those with
	// taints that the pod does not tolerate (nodeTaintsPolicy: Honor).
	IgnoreNodeAffinity bool
	HonorTaints        bool
}

// HostPort is a port of the node that a pod takes.
type HostPort struct {
	IP       string // empty: every address
	Protocol string // empty: TCP
	Port     int32
}

// conflicts follows the scheduler's HostPortInfo: an unspecified address
// conflicts with every one.
func (p HostPort) conflicts(o HostPort) bool {
	a, b := p.normal(), o.normal()
	return a.Port == b.Port && a.Protocol == b.Protocol && (a.IP == b.IP || a.IP == anyAddress || b.IP == anyAddress)
}

const anyAddress = "0.0.0.0"

func (p HostPort) normal() HostPort {
	if p.IP == "" {
		p.IP = anyAddress
	}
	if p.Protocol == "" {
		p.Protocol = string(corev1.ProtocolTCP)
	}
	return p
}

// Kinds of VolumeTopology.
const (
	VolumeNodeAffinity = "nodeAffinity"      // of a bound volume
	VolumeZone         = "zone"              // labels of a bound volume
	VolumeAllowed      = "allowedTopologies" // of the class of an unbound claim
	VolumeSelectedNode = "selectedNode"      // an unbound claim is being provisioned there
)

// VolumeTopology says from which nodes a volume of the pod can be used: those
// that meet one of the terms.
type VolumeTopology struct {
	Kind  string
	Terms []corev1.NodeSelectorTerm
}

// Namespace is a namespace and what its labels are.
type Namespace struct {
	Name   string
	Labels map[string]string
}

package events

// Constraints that a pod class may carry without our simulating them; see
// PodClass.Unsimulated. Snapshots of earlier versions name all of these, later
// ones only those that PodClass has no field for, or whose field can't say it.
const (
	ConstraintPodAffinity      = "podAffinity"
	ConstraintPodAntiAffinity  = "podAntiAffinity"
	ConstraintTopologySpread   = "topologySpreadConstraints"
	ConstraintHostPorts        = "hostPorts"
	ConstraintVolumes          = "volumes"
	ConstraintResourceClaims   = "resourceClaims"
	ConstraintForeignScheduler = "schedulerName"
)

// PodAffinityTerm is one required term of a pod's affinity or anti-affinity.
type PodAffinityTerm struct {
	TopologyKey string    `json:"topology_key"`
	Selector    *Selector `json:"selector,omitempty"` // absent: selects nothing
	// Namespaces and NamespaceSelector together say where the other pods live;
	// with neither it is the pod's own namespace.
	Namespaces        []string  `json:"namespaces,omitempty"`
	NamespaceSelector *Selector `json:"namespace_selector,omitempty"`
}

// TopologySpread is a spread constraint whose whenUnsatisfiable is DoNotSchedule.
type TopologySpread struct {
	TopologyKey        string    `json:"topology_key"`
	MaxSkew            int32     `json:"max_skew"`
	MinDomains         int32     `json:"min_domains,omitempty"`          // absent: 1
	Selector           *Selector `json:"selector,omitempty"`             // absent: selects nothing
	IgnoreNodeAffinity bool      `json:"ignore_node_affinity,omitempty"` // nodeAffinityPolicy: Ignore
	HonorTaints        bool      `json:"honor_taints,omitempty"`         // nodeTaintsPolicy: Honor
}

// HostPort is a port of the node that a pod takes.
type HostPort struct {
	IP       string `json:"ip,omitempty"`       // absent: every address
	Protocol string `json:"protocol,omitempty"` // absent: TCP
	Port     int32  `json:"port"`
}

// Kinds of VolumeTopology.
const (
	VolumeNodeAffinity = "nodeAffinity"      // of a bound volume
	VolumeZone         = "zone"              // labels of a bound volume
	VolumeAllowed      = "allowedTopologies" // of the storage class of an unbound claim
	VolumeSelectedNode = "selectedNode"      // an unbound claim is being provisioned there
)

// VolumeTopology says from which nodes a volume of the pods can be used.
type VolumeTopology struct {
	Kind  string             `json:"kind"`
	Terms []NodeSelectorTerm `json:"terms"` // alternatives
}

// SnapshotNamespace is a namespace and its labels, by which pods select others.
type SnapshotNamespace struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
}

// Key is the key of the object in SnapshotChanged.Deleted.
func (o SnapshotNamespace) Key() string { return o.Name }

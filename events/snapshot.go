package events

import "time"

// Types of the snapshot events.
const (
	TypeSnapshotCaptured = TypePrefix + "snapshot.captured.v1"
	TypeSnapshotChanged  = TypePrefix + "snapshot.changed.v1"
)

// Names of the kinds of object in a snapshot; keys of Freshness and Deleted.
const (
	KindNode      = "node"
	KindPodClass  = "class"
	KindPod       = "pod"
	KindPDB       = "pdb"
	KindDaemonSet = "daemonset"
	KindUsage     = "usage"
	KindRecord    = "record"
	KindNamespace = "namespace"
)

// SnapshotNode is a node as the API server has it.
type SnapshotNode struct {
	Name           string            `json:"name"`
	UID            string            `json:"uid"`
	CreatedAt      time.Time         `json:"created_at"`
	Labels         map[string]string `json:"labels,omitempty"`
	Annotations    map[string]string `json:"annotations,omitempty"` // listed ones only
	Taints         []Taint           `json:"taints,omitempty"`
	Unschedulable  bool              `json:"unschedulable,omitempty"`
	Ready          string            `json:"ready"` // True, False or Unknown
	ReadySince     time.Time         `json:"ready_since,omitzero"`
	Deleting       bool              `json:"deleting,omitempty"`
	Capacity       Resources         `json:"capacity"`
	Allocatable    Resources         `json:"allocatable"`
	KubeletVersion string            `json:"kubelet_version,omitempty"`
}

// PodClass is what pods that the scheduler treats alike have in common. Its ID
// is a hash of the rest.
type PodClass struct {
	ID            string             `json:"id"`
	Namespace     string             `json:"namespace"`
	Labels        map[string]string  `json:"labels,omitempty"` // what budgets select by
	Requests      Resources          `json:"requests"`         // of the whole pod, init containers and overhead included
	NodeSelector  map[string]string  `json:"node_selector,omitempty"`
	NodeAffinity  []NodeSelectorTerm `json:"node_affinity,omitempty"` // required; the terms are alternatives
	Tolerations   []Toleration       `json:"tolerations,omitempty"`
	Priority      int32              `json:"priority,omitempty"`
	SchedulerName string             `json:"scheduler_name,omitempty"` // absent: default-scheduler
	Unsimulated   []string           `json:"unsimulated,omitempty"`    // Constraint names

	PodAffinity     []PodAffinityTerm `json:"pod_affinity,omitempty"`      // required, all of them
	PodAntiAffinity []PodAffinityTerm `json:"pod_anti_affinity,omitempty"` // required
	TopologySpread  []TopologySpread  `json:"topology_spread,omitempty"`   // DoNotSchedule
	HostPorts       []HostPort        `json:"host_ports,omitempty"`
	Volumes         []VolumeTopology  `json:"volumes,omitempty"`        // all of them
	NeverPreempts   bool              `json:"never_preempts,omitempty"` // preemptionPolicy: Never
}

// OwnerRef names the controller of a pod.
type OwnerRef struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// SnapshotPod is one pod.
type SnapshotPod struct {
	Namespace     string            `json:"namespace"`
	Name          string            `json:"name"`
	UID           string            `json:"uid"`
	Class         string            `json:"class"`          // PodClass.ID
	Node          string            `json:"node,omitempty"` // absent: not bound
	NominatedNode string            `json:"nominated_node,omitempty"`
	Phase         string            `json:"phase"` // Pending, Running, Succeeded, Failed or Unknown
	CreatedAt     time.Time         `json:"created_at"`
	Deleting      bool              `json:"deleting,omitempty"`
	Owner         *OwnerRef         `json:"owner,omitempty"`       // absent: no controller
	Mirror        bool              `json:"mirror,omitempty"`      // static pod
	Gated         bool              `json:"gated,omitempty"`       // has scheduling gates
	Annotations   map[string]string `json:"annotations,omitempty"` // listed ones only
	// LocalStorage names the volumes that live on the node: hostPath and
	// non-memory emptyDir volumes, and claims bound to local volumes.
	LocalStorage []LocalVolume `json:"local_storage,omitempty"`
	// UnschedulableSince is when the scheduler said that nothing fits; absent otherwise.
	UnschedulableSince   time.Time `json:"unschedulable_since,omitzero"`
	UnschedulableMessage string    `json:"unschedulable_message,omitempty"`
	// VolumeProblem says which claim keeps the pod from being scheduled anywhere,
	// until it exists or is bound.
	VolumeProblem string `json:"volume_problem,omitempty"`
}

// Kinds of LocalVolume.
const (
	LocalEmptyDir  = "emptyDir"
	LocalHostPath  = "hostPath"
	LocalPersisted = "persistentVolumeClaim" // e.g. of the local-path provisioner
)

// LocalVolume is a volume of a pod that lives on its node.
type LocalVolume struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
}

// SnapshotPDB is a pod disruption budget and what it allows now.
type SnapshotPDB struct {
	Namespace          string   `json:"namespace"`
	Name               string   `json:"name"`
	Selector           Selector `json:"selector"`
	DisruptionsAllowed int32    `json:"disruptions_allowed"`
	CurrentHealthy     int32    `json:"current_healthy"`
	DesiredHealthy     int32    `json:"desired_healthy"`
}

// SnapshotDaemonSet is a DaemonSet and the class of its pods: each new node
// that fits gets one.
type SnapshotDaemonSet struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Class     PodClass `json:"class"`
}

// SnapshotUsage is the live usage of a node; a node without one is unknown.
type SnapshotUsage struct {
	Node        string    `json:"node"`
	CPUMilli    int64     `json:"cpu_milli"`
	MemoryBytes int64     `json:"memory_bytes"`
	At          time.Time `json:"at"`
}

// DrainRecord is draining's own record of a node.
type DrainRecord struct {
	Goal      string    `json:"goal"`  // GoalCordon, GoalDrain or GoalRemove
	Phase     string    `json:"phase"` // see internal/lifecycle
	Since     time.Time `json:"since"` // in this phase
	Deadline  time.Time `json:"deadline,omitzero"`
	RequestID string    `json:"request_id"` // the drain request it serves
	Reason    string    `json:"reason,omitempty"`
	Blockers  []Blocker `json:"blockers,omitempty"`
	// WaitingFor are pods of Jobs, ns/name, that may end by themselves until the
	// deadline; then they are evicted.
	WaitingFor []string `json:"waiting_for,omitempty"`
}

// NodeRecord is what provisioning and draining know of a node.
type NodeRecord struct {
	Name          string       `json:"name"`
	Pool          string       `json:"pool"`
	ClaimID       string       `json:"claim_id"`
	CorrelationID string       `json:"correlation_id,omitempty"`
	Phase         string       `json:"phase"` // see internal/lifecycle
	Since         time.Time    `json:"since"` // in this phase
	ClaimedAt     time.Time    `json:"claimed_at,omitzero"`
	ReadyAt       time.Time    `json:"ready_at,omitzero"` // first time Ready
	Deadline      time.Time    `json:"deadline,omitzero"` // of this phase
	Failure       *Failure     `json:"failure,omitempty"`
	Drain         *DrainRecord `json:"drain,omitempty"`
}

// SnapshotObjects are the objects of a snapshot or the changed ones of a delta.
type SnapshotObjects struct {
	Nodes      []SnapshotNode      `json:"nodes,omitempty"`
	Classes    []PodClass          `json:"classes,omitempty"`
	Pods       []SnapshotPod       `json:"pods,omitempty"`
	PDBs       []SnapshotPDB       `json:"pdbs,omitempty"`
	DaemonSets []SnapshotDaemonSet `json:"daemonsets,omitempty"`
	Usage      []SnapshotUsage     `json:"usage,omitempty"`
	Records    []NodeRecord        `json:"records,omitempty"`
	Namespaces []SnapshotNamespace `json:"namespaces,omitempty"`
}

// SnapshotCaptured is a full snapshot.
type SnapshotCaptured struct {
	Epoch      int64     `json:"epoch"`  // of the collector; a new leader has a higher one
	Digest     string    `json:"digest"` // of the objects, see Fold
	CapturedAt time.Time `json:"captured_at"`
	// Freshness is, by kind, when the collector last knew its objects to be
	// current. A kind that is missing is unknown.
	Freshness map[string]time.Time `json:"freshness"`
	Objects   SnapshotObjects      `json:"objects"`
	// ServerVersion is the API server's, e.g. "v1.34.4+k3s1".
	ServerVersion string `json:"server_version,omitempty"`
}

// EventType implements Payload.
func (SnapshotCaptured) EventType() string { return TypeSnapshotCaptured }

// Validate implements Payload.
func (p SnapshotCaptured) Validate() error {
	var r required
	r.atLeast("epoch", p.Epoch, 1)
	r.text("digest", p.Digest)
	r.instant("captured_at", p.CapturedAt)
	return r.err()
}

// SnapshotChanged is a delta on the snapshot with digest Base. An unchanged
// cluster gives one without objects, which renews the freshness.
type SnapshotChanged struct {
	Epoch      int64                `json:"epoch"`
	Base       string               `json:"base"`
	Digest     string               `json:"digest"`
	CapturedAt time.Time            `json:"captured_at"`
	Freshness  map[string]time.Time `json:"freshness"`
	Changed    SnapshotObjects      `json:"changed,omitzero"`
	// Deleted holds, by kind, the keys of the objects that are gone.
	Deleted map[string][]string `json:"deleted,omitempty"`
	// FirstChangeAt is when the first change of this delta was seen, for latencies.
	FirstChangeAt time.Time `json:"first_change_at,omitzero"`
}

// EventType implements Payload.
func (SnapshotChanged) EventType() string { return TypeSnapshotChanged }

// Validate implements Payload.
func (p SnapshotChanged) Validate() error {
	var r required
	r.atLeast("epoch", p.Epoch, 1)
	r.text("base", p.Base)
	r.text("digest", p.Digest)
	r.instant("captured_at", p.CapturedAt)
	return r.err()
}

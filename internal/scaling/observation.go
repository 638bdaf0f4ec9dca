package scaling

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// Kinds of object whose freshness counts.
const (
	KindNode      = "node"
	KindPod       = "pod"
	KindBudget    = "pdb"
	KindDaemonSet = "daemonset"
	KindRecord    = "record"
)

// Phases of a node record and of its drain that decisions depend on. They are
// the words of internal/lifecycle; a phase of a node that is not listed here
// counts as existing capacity, one of a drain as a drain under way.
const (
	PhaseClaimed    = "claimed"
	PhaseCreated    = "created"
	PhaseRegistered = "registered"
	PhaseReady      = "ready"
	PhaseUnready    = "unready"
	PhaseFailed     = "failed"
	PhaseLost       = "lost"
	PhaseRemoving   = "removing"
	PhaseRemoved    = "removed"
	PhaseRenamed    = "renamed" // another record has the claim

	DrainRequested   = "requested"
	DrainCordoned    = "cordoned"
	DrainFinishing   = "finishing"
	DrainDraining    = "draining"
	DrainDrained     = "drained"
	DrainUncordoning = "uncordoning"
	DrainUncordoned  = "uncordoned"
	DrainDone        = "done"
)

// Goals of a drain.
const (
	GoalCordon = "cordon"
	GoalDrain  = "drain"
	GoalRemove = "remove"
)

// Names of labels and annotations that are honoured. The labels are ours; the
// annotations are what users of other autoscalers have on their nodes already;
// those of pods are in evictable.
const (
	LabelCluster = "k3s-autoscaler.dev/cluster"
	LabelPool    = "k3s-autoscaler.dev/pool"
	LabelClaim   = "k3s-autoscaler.dev/claim"

	AnnotationScaleDownDisabled = "cluster-autoscaler.kubernetes.io/scale-down-disabled"
	AnnotationDoNotDisrupt      = evictable.DoNotDisrupt // here: of a node
)

// Observation is what is known of the cluster at one instant.
type Observation struct {
	// Cluster is its name, which new nodes carry as a label.
	Cluster string
	// Known says that the objects are a full picture. While it is false,
	// Problem says why, and nothing is decided.
	Known   bool
	Problem string
	// CapturedAt is when the picture was taken.
	CapturedAt time.Time
	// Freshness is, by kind, when the objects were last known to be current. A
	// kind that is missing is unknown.
	Freshness map[string]time.Time

	Nodes      []Node
	Classes    []PodClass
	Pods       []Pod
	Budgets    []Budget
	DaemonSets []DaemonSet
	Records    []Record
	Namespaces []Namespace
	// Usage is the live usage of all nodes; nil among what an index is told: it is
	// as it was.
	Usage []Usage

	index *Index // has the objects; nil: the slices have them
}

// Node is a node as the API server has it.
type Node struct {
	Name          string
	CreatedAt     time.Time
	Labels        map[string]string
	Annotations   map[string]string
	Taints        []corev1.Taint
	Unschedulable bool
	Ready         bool // False and Unknown are both not Ready
	ReadySince    time.Time
	Deleting      bool
	Allocatable   Resources
}

// PodClass is what pods that the scheduler treats alike have in common.
type PodClass struct {
	ID            string
	Namespace     string
	Labels        map[string]string
	Requests      Resources
	NodeSelector  map[string]string
	NodeAffinity  []corev1.NodeSelectorTerm // required; the terms are alternatives
	Tolerations   []corev1.Toleration
	Priority      int32
	SchedulerName string // empty: the default scheduler

	PodAffinity     []PodTerm          // required: all of them
	PodAntiAffinity []PodTerm          // required
	Spread          []SpreadConstraint // whenUnsatisfiable: DoNotSchedule
	HostPorts       []HostPort
	Volumes         []VolumeTopology // all of them
	// NeverPreempts says that the pods wait rather than push others off a node.
	NeverPreempts bool

	// Unsimulated names constraints that the fit simulation does not know. Such
	// a pod is never a reason to add a node, nor is it said to fit elsewhere.
	Unsimulated []string

	rules *classRules // of the copy that a world keeps
}

// Pod is one pod.
type Pod struct {
	Namespace          string
	Name               string
	Class              string // PodClass.ID
	Node               string // empty: not bound
	NominatedNode      string
	Phase              string // corev1.PodPhase
	CreatedAt          time.Time
	Deleting           bool
	OwnerKind          string // empty: no controller
	OwnerName          string
	Mirror             bool
	Gated              bool
	Annotations        map[string]string
	LocalStorage       []LocalVolume
	UnschedulableSince time.Time // zero: the scheduler has not said so
	// VolumeProblem says which claim of the pod has to be bound or made before
	// the scheduler takes the pod at all; empty: none.
	VolumeProblem string

	left bool // an index has no longer a place for it
}

// Ref is "namespace/name".
func (p Pod) Ref() string { return p.Namespace + "/" + p.Name }

// LocalVolume is a volume of a pod that lives on its node.
type LocalVolume = evictable.Volume

// Budget is a pod disruption budget and what it allows now.
type Budget struct {
	Namespace          string
	Name               string
	Selector           metav1.LabelSelector
	DisruptionsAllowed int32
}

// DaemonSet is a DaemonSet and the class of its pods: each node that fits gets one.
type DaemonSet struct {
	Namespace string
	Name      string
	Class     PodClass

	class *PodClass // the copy that evaluations use
}

// Record is what provisioning and draining know of a node.
type Record struct {
	Name      string
	Pool      string
	ClaimID   string
	Phase     string
	Since     time.Time // in this phase
	ClaimedAt time.Time
	ReadyAt   time.Time // first time Ready
	Failure   string    // why it failed, in one sentence
	Drain     *DrainRecord
}

// DrainRecord is draining's own record of a node.
type DrainRecord struct {
	Goal      string
	Phase     string
	RequestID string
	Since     time.Time
}

// Seed makes the ids of an evaluation. Both functions must be pure, so that
// the same event gives the same ids in every process.
type Seed struct {
	// Event is the id of the event that is evaluated.
	Event string
	// ID hashes its parts into an identifier.
	ID func(parts ...string) string
	// NodeName is the name of the node that a claim of a pool creates.
	NodeName func(pool, claimID string) string
}

// active reports whether the drain is under way, or holds the node in its last
// state. It is safe on nil.
func (d *DrainRecord) active() bool {
	return d != nil && d.Phase != DrainUncordoned && d.Phase != DrainDone
}

// undoing reports whether the node is about to be schedulable again.
func (d *DrainRecord) undoing() bool { return d != nil && d.Phase == DrainUncordoning }

// removes reports whether the node is on its way out.
func (d *DrainRecord) removes() bool { return d.active() && !d.undoing() && d.Goal == GoalRemove }

// final reports whether the removal can't be called off any more.
func (d *DrainRecord) final() bool {
	return d != nil && d.Goal == GoalRemove && d.Phase == DrainDrained
}

package draining

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

var (
	// ErrNotFound says that there is no such node or pod.
	ErrNotFound = errors.New("not found")
	// ErrForbidden says that the credential lacks a right.
	ErrForbidden = errors.New("forbidden")
)

// Node is what a drain needs to know of a node.
type Node struct {
	Name    string
	ClaimID string // of our claim label, empty when the node is not ours
	Ready   bool   // False and Unknown are both not Ready
}

// Pod is what a drain needs to know of a pod.
type Pod struct {
	Namespace, Name, UID string
	OwnerKind            string // of its controller, empty when there is none
	DaemonSet            bool   // its controller would put it back on the node
	Mirror               bool   // a static pod of the kubelet
	Finished             bool   // Succeeded or Failed
	Ready                bool   // budgets count it as healthy
	Critical             bool   // the cluster or its node can't do without it, by its priority
	Deleting             bool
	// DeletionDeadline is when a deleting pod's grace ends.
	DeletionDeadline time.Time
	// Grace is how long the pod may take to leave.
	Grace time.Duration
	// Local are the volumes that live on the node.
	Local               []evictable.Volume
	Labels, Annotations map[string]string
}

// Ref is "namespace/name".
func (p Pod) Ref() string { return p.Namespace + "/" + p.Name }

// Budget is a pod disruption budget and what it allows now.
type Budget struct {
	Namespace, Name string
	Selector        labels.Selector
	// Current says that the numbers are of its present specification.
	Current bool
	// Allowed disruptions now, and of the Expected pods that it covers, how many have
	// to be healthy (Desired) and are (Healthy).
	Allowed, Expected, Desired, Healthy int32
}

// Ref is "namespace/name".
func (b Budget) Ref() string { return b.Namespace + "/" + b.Name }

// covers reports whether the budget speaks of a pod.
func (b Budget) covers(p Pod) bool {
	return b.Namespace == p.Namespace && b.Selector.Matches(labels.Set(p.Labels))
}

// Blocked says that the API server refuses an eviction for now.
type Blocked struct {
	Budget  string // "namespace/name" of the disruption budget, empty when unknown
	Message string // the server's own
}

func (b *Blocked) Error() string {
	return fmt.Sprintf("eviction refused by disruption budget %s: %s", b.Budget, b.Message)
}

// Cluster is the API server of one cluster, as a drain uses it. Every act may
// be repeated.
type Cluster interface {
	Cordoner
	Evictor
}

// Cordoner makes nodes unschedulable and schedulable.
type Cordoner interface {
	// Node returns a node, ErrNotFound when there is none.
	Node(ctx context.Context, name string) (Node, error)
	// Cordon makes a node unschedulable in the name of a request. ours is false
	// when somebody else had cordoned it before. ErrNotFound when there is none.
	Cordon(ctx context.Context, name, request string) (ours bool, err error)
	// Uncordon undoes the cordon of any of the requests; with anyone, any cordon. A
	// node that is not cordoned so is left as it is. ErrNotFound when there is none.
	Uncordon(ctx context.Context, name string, requests []string, anyone bool) error
}

// Evictor empties nodes.
type Evictor interface {
	// Pods returns the pods bound to a node.
	Pods(ctx context.Context, node string) ([]Pod, error)
	// Budgets returns the disruption budgets of the cluster. ErrForbidden: they can't
	// be read; evictions are refused by them all the same.
	Budgets(ctx context.Context) ([]Budget, error)
	// Evict asks for a pod to leave through the eviction API, which respects its
	// budget. nil: it is terminating. ErrNotFound: it is gone. *Blocked: refused.
	Evict(ctx context.Context, p Pod) error
}
